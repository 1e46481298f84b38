"""Runs that were left for runners: driven, shared, taken over, given back, refused."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow import __version__
from pandaflow.core.status import RUN_TERMINAL, RunStatus
from pandaflow.executors.remote import wire
from pandaflow.grid.messages import Acquire, PilotUpdate, Report
from pandaflow.runners import RunnerService, RunnerSettings
from pandaflow.store.sql import open_store
from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.sites import MiniGrid
from tests.acceptance.grid_work import PATIENCE, all_noted, double, lines, noted, wait_for
from tests.acceptance.runner_work import RunnerProcess, everything, leave, needs_a_file

pytestmark = pytest.mark.timeout(240)
PYTHON = "{}.{}".format(*sys.version_info)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MiniGrid, str]]:
    """A grid and its store, for tests that leave both as they are."""
    store = f"sqlite:///{tmp_path_factory.mktemp('shared') / 'store.db'}"
    with MiniGrid(store) as grid:
        grid.queue("here")
        grid.pilot("here", cores=2)
        yield grid, store


def ended(run: pf.Run) -> RunStatus:
    wait_for(lambda: run.status in RUN_TERMINAL)
    return run.status


def drive(store: str, server: str, **settings: Any) -> RunnerService:
    """Drive in this process what there is, and return when that has ended."""
    service = RunnerService(RunnerSettings(store=store, server=server, **settings))
    service.serve(once=True)
    return service


# --- whose code runs where --------------------------------------------------------------


def test_only_pilots_run_users_code(shared: tuple[MiniGrid, str], tmp_path: Path) -> None:
    """Payloads, items, conditions, loops, graphs, arguments of commands, values between tasks."""
    grid, store = shared
    folder = str(tmp_path)
    run = leave(everything(folder), store, tmp_path)
    assert not (tmp_path / "unpickled").exists()
    drive(store, grid.url)
    assert run.status == "done", [(task["name"], task["reason"]) for task in run.tasks]
    told = [line.split(" ", 1) for line in (tmp_path / "unpickled").read_text().splitlines()]
    ours = {str(os.getpid()), str(grid.server.pid), str(grid.pilots[0].process.pid)}
    assert [what for pid, what in told if pid in ours] == []
    wanted = {"item", "argument", "condition", "branch", "loop", "graph", "command argument"}
    assert wanted | {"upstream", "next", "node"} <= {what for _, what in told}
    assert run.status == "done"
    result = run.result()  # this process is the user's now
    assert result["said"] == ["upstream command argument"]
    assert Path(result["wrote"][0].path).read_text() == "upstream\n"
    assert (result["chosen"], str(result["looped"])) == ("branch", "next")
    assert {name: str(value) for name, value in result["graph"].items()} == {
        "a": "node",
        "b": "node",
    }


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> Any:
        return (os.system, (self.line,))


def test_a_hostile_pilot_gets_nothing_to_run(tmp_path: Path) -> None:
    """It has the bundle, and answers whatever it likes."""
    store = f"sqlite:///{tmp_path / 'store.db'}"
    evil = Shell(f"touch {tmp_path}/run")
    with MiniGrid(store) as grid, grid.server.client() as client:
        grid.queue("there")
        run = leave(pair(1, str(tmp_path), 0.0), store, tmp_path)
        driver = threading.Thread(target=drive, args=(store, grid.url))
        driver.start()
        question = Acquire(pilot="p", queue="there", python=PYTHON, pandaflow=__version__, cores=1)
        while run.status not in RUN_TERMINAL:
            for leased in client.acquire(question.model_copy(update={"wait": 0.5})).bundles:
                reply = wire.pack(wire.Reply(leased.bundle, [{"op": evil}]))  # type: ignore[dict-item]
                about = {"id": leased.id, "lease": leased.lease, "seq": 1}
                report = Report(**about, state="ended", reply=reply)
                client.update(PilotUpdate(pilot="p", reports=(report,)))
        driver.join()
    assert run.status == "failed"
    (row,) = run.jobs("noted")
    assert "system is no class of plain values" in row["failure"]["message"]
    assert not (tmp_path / "run").exists()


# --- lives of runners -------------------------------------------------------------------


@pf.workflow
def pair(n: int, folder: str, seconds: float) -> Any:
    """Return the numbers doubled, with a line for each payload that began."""
    return double(noted(pf.items(range(n)), folder, seconds))


def begun(folder: Path) -> list[int]:
    return sorted(lines(folder, "begun"))


@pytest.mark.very_slow
def test_a_run_is_driven_soon_after_it_was_left(
    shared: tuple[MiniGrid, str], tmp_path: Path
) -> None:
    grid, store = shared
    with RunnerProcess(store, grid.url, "--name", "one") as runner:
        wait_for(lambda: "one drives runs of everybody" in runner.log)
        run = leave(pair(3, str(tmp_path), 0.0), store, tmp_path)
        assert ended(run) == "done", runner.log
        assert run.result() == [0, 2, 4]
        assert begun(tmp_path) == [0, 1, 2]
        wait_for(lambda: f"{run.id}: is done" in runner.log)
        with grid.server.client() as client:
            wait_for(lambda: run.id not in {row["run"] for row in client.runs()})


def test_a_failing_run_ends_and_a_request_runs_it_again(
    shared: tuple[MiniGrid, str], tmp_path: Path
) -> None:
    grid, store = shared
    run = leave(needs_a_file(str(tmp_path / "there")), store, tmp_path)
    drive(store, grid.url)
    assert run.status == "failed"
    assert open_store(store).waiting_runs() == []
    (tmp_path / "there").touch()
    open_store(store).request(run.id, "retry", {"task": None, "restart": False, "options": {}})
    (waiting,) = open_store(store).waiting_runs()
    assert (waiting.id, waiting.ended) == (run.id, True)
    drive(store, grid.url)
    assert run.status == "done"
    assert run.result() == "there"


@pf.task(executor="gpus")
def elsewhere(x: int) -> int:
    return x


@pf.workflow
def asks_for_gpus() -> Any:
    return elsewhere(1)


def test_a_run_that_no_runner_can_drive_says_so_and_can_be_tried_again(
    shared: tuple[MiniGrid, str], tmp_path: Path
) -> None:
    grid, store = shared
    run = leave(asks_for_gpus(), store, tmp_path)
    other = leave(pair(1, str(tmp_path), 0.0), store, tmp_path)
    drive(store, grid.url)
    assert (run.status, other.status) == ("failed", "done")
    told = run.summary()["reason"]
    assert "'elsewhere' asks for executor 'gpus'" in told
    with pytest.raises(pf.RunFailed, match="asks for executor 'gpus'"):
        run.result()
    open_store(store).request(run.id, "retry", {"task": None, "restart": False, "options": {}})
    drive(store, grid.url, executors={"gpus": {"queue": "here"}})
    assert run.status == "done"
    assert run.result() == 1


def test_a_run_whose_payload_is_gone_fails_and_says_so(
    shared: tuple[MiniGrid, str], tmp_path: Path
) -> None:
    grid, store = shared
    run = leave(pair(1, str(tmp_path), 0.0), store, tmp_path)
    url = Path(open_store(store).reader().run(run.id)["results"])
    (payload,) = url.glob("payload-0*")
    payload.unlink()
    drive(store, grid.url)
    assert run.status == "failed"
    (row,) = run.jobs("noted")
    assert payload.name in row["failure"]["message"]


@pytest.mark.very_slow
def test_trouble_is_told_to_people_and_tried_again(tmp_path: Path) -> None:
    """The server is away for a while."""
    store = f"sqlite:///{tmp_path / 'store.db'}"
    with MiniGrid(store) as grid:
        grid.queue("here")
        grid.pilot("here", cores=1)
        service = RunnerService(RunnerSettings(store=store, server=grid.url))
        thread = threading.Thread(target=service.serve)
        first = leave(pair(1, str(tmp_path), 0.0), store, tmp_path)
        thread.start()
        try:
            assert ended(first) == "done"
            grid.server.stop()
            run = leave(pair(1, str(tmp_path), 0.0), store, tmp_path)
            (told,) = wait_for(lambda: [e for e in run.summary()["executors"] if e["reason"]])
            assert told["name"] == "runner"
            assert "does not answer" in told["reason"]
            grid.server.start()
            assert ended(run) == "done"
            rows, _ = open_store(store).reader().noted(run.id, "executor_noted")
            assert [row["reason"] for row in rows if row["detail"]["executor"] == "runner"][
                -1
            ] == ""
        finally:
            service.stop()
            thread.join()


@pytest.mark.very_slow
def test_two_runners_share_what_there_is(shared: tuple[MiniGrid, str], tmp_path: Path) -> None:
    grid, store = shared
    runs = []
    with (
        RunnerProcess(store, grid.url, "--runs", "3", "--name", "one") as one,
        RunnerProcess(store, grid.url, "--runs", "3", "--name", "two") as two,
    ):
        for runner in (one, two):
            wait_for(lambda runner=runner: "drives runs" in runner.log)
        for number in range(6):
            folder = tmp_path / str(number)
            folder.mkdir()
            runs.append((leave(all_noted(2, str(folder), 0.2), store, folder), folder))
        for run, folder in runs:
            assert ended(run) == "done"
            assert begun(folder) == [0, 1]
    taken = [sum(f"{run.id}: taken" in log for run, _ in runs) for log in (one.said, two.said)]
    assert taken == [3, 3]


@pytest.mark.very_slow
def test_another_runner_takes_over_from_one_that_was_killed(
    shared: tuple[MiniGrid, str], tmp_path: Path
) -> None:
    """What is in the pool goes on: no payload runs twice."""
    grid, store = shared
    run = leave(pair(8, str(tmp_path), 0.4), store, tmp_path)
    with RunnerProcess(store, grid.url) as first:
        wait_for(lambda: len(begun(tmp_path)) >= 2)
        first.process.kill()
    with RunnerProcess(store, grid.url):
        assert ended(run) == "done"
    assert run.result() == [2 * n for n in range(8)]
    assert begun(tmp_path) == list(range(8))
    assert [job["attempt"] for job in run.jobs("noted")] == [1] * 8


def test_a_runner_that_is_told_to_stop_gives_its_runs_back(
    shared: tuple[MiniGrid, str], tmp_path: Path
) -> None:
    grid, store = shared
    run = leave(pair(8, str(tmp_path), 0.4), store, tmp_path)
    with RunnerProcess(store, grid.url) as first:
        wait_for(lambda: len(begun(tmp_path)) >= 2)
        first.process.terminate()
        assert first.process.wait(PATIENCE) == 0
    assert f"{run.id}: given back" in first.said
    assert run.status == "running"
    assert not open_store(store).driven(run.id)
    with grid.server.client() as client:
        assert run.id in {row["run"] for row in client.runs()}, "its bundles stay in the pool"
    with RunnerProcess(store, grid.url):
        assert ended(run) == "done"
    assert begun(tmp_path) == list(range(8))
    assert [job["attempt"] for job in run.jobs("noted")] == [1] * 8


@pytest.mark.very_slow
def test_wishes_reach_a_run_that_a_runner_drives(
    shared: tuple[MiniGrid, str], tmp_path: Path
) -> None:
    grid, store = shared
    run = leave(pair(50, str(tmp_path), 0.5), store, tmp_path)
    with RunnerProcess(store, grid.url):
        wait_for(lambda: begun(tmp_path))
        run.cancel()
        assert run.status == "aborted"
    assert len(begun(tmp_path)) < 50


@pytest.mark.very_slow
@pytest.mark.postgres
def test_runners_die_over_and_over_on_postgresql(postgres: PostgresServer, tmp_path: Path) -> None:
    """Each payload once, although runners are killed and stopped all the time."""
    with MiniGrid(store := postgres.create_database()) as grid:
        grid.queue("here")
        grid.pilot("here", cores=2)
        runs = []
        for number in range(4):
            folder = tmp_path / str(number)
            folder.mkdir()
            runs.append((leave(pair(15, str(folder), 0.2), store, folder), folder))
        for number in range(6):
            with RunnerProcess(store, grid.url, lease=2.0) as runner:
                wait_for(lambda runner=runner: ": taken" in runner.log)
                before = sum(len(begun(folder)) for _, folder in runs)
                wait_for(
                    lambda before=before: (
                        sum(len(begun(folder)) for _, folder in runs) > before
                        or all(run.status in RUN_TERMINAL for run, _ in runs)
                    )
                )
                runner.process.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
                runner.process.wait(PATIENCE)
        with RunnerProcess(store, grid.url), RunnerProcess(store, grid.url):
            for run, folder in runs:
                assert ended(run) == "done"
                assert run.result() == [2 * n for n in range(15)]
                assert begun(folder) == list(range(15))
