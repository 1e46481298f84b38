"""Runs that are left with a server: submitted, driven by others, looked at, steered, gathered."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow.cli.app import app
from pandaflow.core.errors import (
    NotInRun,
    RunFailed,
    RunLocked,
    RunNotFound,
    StoreError,
    WorkflowError,
)
from pandaflow.grid.runs.store import ServerStore
from pandaflow.places import pick_executors
from pandaflow.store.sql import SqlStore
from pandaflow.testing.grid import GridServer, random_name

PATIENCE = 30.0
WAITS = "waits for a runner"


@pf.task
def double(x):
    print("doubling", x)
    return {2 * x}  # a set: travels as a pickle


@pf.task
def picky(x, path):
    if x == 2 and not os.path.exists(path):
        raise ValueError("not two")
    return x


@pf.task
def patient(x, path):
    print("waiting", x, flush=True)
    while not os.path.exists(path):
        time.sleep(0.02)
    return x


@pf.workflow
def doubles(n: int = 3):
    return double(pf.items(list(range(n))))


@pf.workflow
def picks(path: str, n: int = 4):
    return picky(pf.items(list(range(n))), path)


@pf.workflow
def waits(path: str, n: int = 2):
    return patient(pf.items(list(range(n))), path)


@pytest.fixture(scope="module")
def server() -> Iterator[GridServer]:
    with GridServer(options=["--rate", "0"]) as running:
        yield running


@contextmanager
def runner(server: GridServer, run: pf.Run) -> Iterator[pf.Run]:
    """Drive a run from the server's database, as a runner does; yield its handle there."""
    driving = pf.attach(run.id, store=server.store)
    # Also one that has ended: somebody may have asked for a retry.
    driving._drive(pick_executors("threads"), ended=True)
    try:
        yield driving
    finally:
        driving.stop()


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def command(server: GridServer, *words: str) -> Any:
    return CliRunner().invoke(app, ["--store", server.url, *words])


def test_a_run_is_left_driven_by_others_and_gathered_from_anywhere(server: GridServer) -> None:
    run = doubles(n=3).submit(server=server.url, name="first")
    assert run.id.startswith("first-")
    assert (run.name, run.status) == ("first", "defined")
    with runner(server, run):
        assert run.wait(PATIENCE) == "done"
    again = pf.attach(run.id[:-2], store=server.url)
    assert again.result() == [{0}, {2}, {4}]
    assert again.logs("double[1]") == "doubling 1\n"
    assert "double[1] is finished" in again.explain("double[1]")
    assert [row["index"] for row in again.jobs(status="finished")] == [0, 1, 2]
    assert [row["index"] for row in again.jobs(task="double", limit=2)] == [0, 1]
    assert list(again.events())[-1]["finish"] == "done"
    assert next(again.events(after=3, follow=True))["seq"] == 4
    assert "<svg" in again.timeline()._repr_svg_()
    assert run.id in [one.id for one in pf.runs(store=server.url)]


def test_what_the_server_tells_is_what_the_database_tells(server: GridServer) -> None:
    run = picks(path="/nowhere").submit(server=server.url)
    with runner(server, run):
        assert run.wait(PATIENCE) == "failed"
    there, here = run._reader, SqlStore(server.store).reader()
    own = {"results", "executors"}
    told, known = there.run(run.id), here.run(run.id)
    assert {k: v for k, v in told.items() if k not in own} == {
        k: v for k, v in known.items() if k not in own
    }
    for method, *arguments in [
        ("events",),
        ("events", 2, 3),
        ("noted", "executor_noted"),
        ("story", "picky", 2),
        ("attempts", "picky", 2),
        ("upstream", "picky"),
        ("sites",),
        ("bundle", 1),
        ("timeline",),
        ("open_requests",),
        ("counts",),
    ]:
        wire = getattr(there, method)(run.id, *arguments)
        # Through JSON: what SQL calls a tuple is a list on its way.
        assert _plain(wire) == _plain(getattr(here, method)(run.id, *arguments)), method
    for only in ({}, {"status": "failed"}, {"task": "picky", "index": 2}, {"limit": 1}):
        assert list(there.jobs(run.id, **only)) == list(here.jobs(run.id, **only))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=sorted))


def test_pages_of_jobs_make_the_whole_list(
    server: GridServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = doubles(n=7).submit(server=server.url)
    with runner(server, run):
        run.wait(PATIENCE)
    monkeypatch.setattr("pandaflow.grid.runs.reader.PAGE", 3)
    assert [row["index"] for row in run.jobs()] == list(range(7))
    assert [row["index"] for row in run.jobs(status="finished")] == list(range(7))
    assert list(run.jobs(status="failed")) == []


def test_errors_are_those_of_a_database(server: GridServer) -> None:
    run = doubles().submit(server=server.url)
    with pytest.raises(RunNotFound, match="no run 'nothing'"):
        pf.attach("nothing", store=server.url)
    with pytest.raises(NotInRun, match="has no task 'nix'"):
        run.jobs(task="nix")
    with pytest.raises(WorkflowError, match="has no job 17"):
        run.logs("double[17]")
    with pytest.raises(WorkflowError, match="has no task 'nix'"):
        run.cancel(task="nix")
    with pytest.raises(RunLocked, match="runners of that server"):
        pf.resume(run.id, store=server.url)
    with pytest.raises(StoreError, match="does not answer"):
        pf.runs(store="http://127.0.0.1:9")
    with pytest.raises(StoreError, match="https"):
        pf.runs(store="http://example.org")
    for promise in ({"executor": "threads"}, {"callbacks": print}, {"store": server.store}):
        with pytest.raises(WorkflowError):
            doubles().submit(server=server.url, **promise)
    with pytest.raises(WorkflowError, match="database"):
        pf.hpo.studies(store=server.url)


def test_a_run_without_a_runner_waits_and_says_so(server: GridServer) -> None:
    run = doubles().submit(server=server.url)
    with pytest.raises(TimeoutError):
        run.wait(timeout=0.1)
    there = pf.attach(run.id, store=server.store)
    with pytest.raises(TimeoutError):  # longer than a run of nobody's would be waited for
        there.wait(timeout=6.0)
    assert not run.orphaned and not there.orphaned
    assert WAITS in str(run) and WAITS in str(there)
    assert WAITS in command(server, "status", run.id).output
    with runner(server, run):
        run.wait(PATIENCE)
    assert WAITS not in str(run)


def test_cancel_pause_resume_and_retry_reach_whoever_drives(
    server: GridServer, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    run = waits(path=str(gate)).submit(server=server.url)
    with runner(server, run):
        eventually(lambda: run.summary()["jobs"].get("running", 0) > 0)
        run.pause()
        assert run.status == "paused"
        run.resume()
        assert run.status == "running"
        run.cancel()
        assert run.status == "aborted"
    gate.touch()
    run.retry()
    with runner(server, run):
        eventually(lambda: run.status == "done")
    assert sorted(run.result()) == [0, 1]


def test_a_retry_with_other_options_waits_for_a_runner(server: GridServer, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    run = picks(path=str(mended)).submit(server=server.url)
    with runner(server, run):
        with pytest.raises(RunFailed, match="not two"):
            run.result(timeout=PATIENCE)
    assert run.result(partial=True) == [0, 1, 3]
    assert run.failed_items("picky") is not None
    with pytest.raises(WorkflowError, match="memori"):
        run.retry(memori="1 GiB")
    mended.touch()
    run.retry(retries=2)
    assert [row["kind"] for row in run._reader.open_requests(run.id)] == ["retry"]
    with runner(server, run):
        eventually(lambda: run.status == "done")
    assert run.result() == [0, 1, 2, 3]


def test_a_refused_request_says_why(server: GridServer) -> None:
    run = doubles().submit(server=server.url)
    number = run._store.request(run.id, "retry", {"task": "nix"})
    asked = f"{server.url}/api/v1/runs/{run.id}/requests/{number}"
    assert httpx.get(asked).json()["status"] == "open"
    with runner(server, run):
        run.wait(PATIENCE)
        eventually(lambda: httpx.get(asked).json()["status"] == "refused")
    told = httpx.get(asked).json()
    assert "no task 'nix'" in told["reason"]
    assert command(server, "status", run.id).output.count("refused: retry") == 1


def test_a_stream_is_fed_through_the_server(server: GridServer) -> None:
    stream = pf.stream(name="numbers")

    @pf.workflow
    def fed():
        return double(stream)

    run = fed().submit(server=server.url)
    stream.append(1, 2)
    with runner(server, run):
        eventually(lambda: run.summary()["jobs"].get("finished") == 2)
        elsewhere = pf.attach(run.id, store=server.url).stream("numbers")
        elsewhere.append(3, 4)
        elsewhere.close()
        assert run.wait(PATIENCE) == "done"
    assert run.result() == [{2}, {4}, {6}, {8}]


def test_a_job_is_reproduced_with_inputs_from_the_server(
    server: GridServer, tmp_path: Path
) -> None:
    @pf.workflow
    def chained():
        return pf.task(max, name="largest")(double(pf.items([1, 4])).all(), key=len)

    run = chained().submit(server=server.url)
    with runner(server, run):
        run.wait(PATIENCE)
    script = tmp_path / "again.py"
    script.write_text(run.reproduce("double[1]"))
    again = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert again.stdout.endswith("{8}\n"), again.stderr


def test_the_command_line_leaves_looks_and_steers(server: GridServer, tmp_path: Path) -> None:
    script = tmp_path / "flow.py"
    script.write_text(
        "import pandaflow as pf\n\n\n@pf.task\ndef triple(x):\n    print('three times', x)\n"
        "    return 3 * x\n\n\n@pf.workflow\ndef triples(n: int = 2):\n"
        "    return triple(pf.items(range(n)))\n"
    )
    target = f"{script}:triples"
    left = CliRunner().invoke(app, ["run", target, "--server", server.url, "--detach"])
    assert left.exit_code == 0, left.output
    run = pf.attach(left.stdout.strip(), store=server.url)
    paused = command(server, "pause", run.id)
    assert paused.exit_code == 0
    with runner(server, run):
        resumed = command(server, "resume", run.id)
        assert resumed.exit_code == 0, resumed.output
        run.wait(PATIENCE)
    for words, said in [
        (("ls",), run.id),
        (("ls", "--json"), '"served": true'),
        (("status", run.id), "triple"),
        (("status", run.id, "--json"), '"done"'),
        (("jobs", run.id), "finished"),
        (("logs", run.id, "triple[1]"), "three times 1"),
        (("explain", run.id, "triple[0]"), "is finished"),
        (("graph", run.id), "triple"),
        (("events", run.id), "run_moved"),
        (("timeline", run.id, "--out", str(tmp_path / "t.svg")), "t.svg"),
        (("reproduce", run.id, "triple[0]"), "run_alone"),
        (("cancel", run.id), "cancel"),
    ]:
        told = command(server, *words)
        assert told.exit_code == 0 and said in told.output, (words, told.output)
    after = CliRunner().invoke(app, ["ls", "--store", server.url])
    assert run.id in after.output
    for words in (
        ["--server", "nowhere"],
        ["--detach"],
        ["--server", server.url, "--workers", "2"],
    ):
        assert CliRunner().invoke(app, ["run", target, *words]).exit_code == 2


def test_watching_ends_with_the_run_and_ctrl_c_leaves_it(
    server: GridServer, tmp_path: Path
) -> None:
    script = tmp_path / "flow.py"
    script.write_text(
        "import pandaflow as pf\n\n\n@pf.task\ndef one():\n    return 1\n\n\n"
        "@pf.workflow\ndef ones():\n    return one()\n"
    )
    name = random_name("watched")
    words = ["run", f"{script}:ones", "--server", server.url, "--name", name]
    watching = subprocess.Popen(
        [sys.executable, "-m", "pandaflow.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    named = lambda: [run for run in pf.runs(store=server.url) if run.name == name]  # noqa: E731
    try:
        eventually(lambda: bool(named()))
        time.sleep(1.0)  # it watches now
        watching.send_signal(2)
        _, err = watching.communicate(timeout=PATIENCE)
    finally:
        watching.kill()
    run = named()[0]
    assert watching.returncode == 130, err
    assert f"{run.id} goes on" in err and f"--store {server.url} status {run.id}" in err
    assert run.status == "defined" and not run._reader.open_requests(run.id)
    with runner(server, run):
        run.wait(PATIENCE)

    driving = threading.Thread(target=_drive_next, args=(server, run.id))
    driving.start()
    watched = subprocess.run(
        [sys.executable, "-m", "pandaflow.cli", *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    driving.join()
    assert (watched.returncode, watched.stdout.strip()) == (0, "1"), watched.stderr


def _drive_next(server: GridServer, last: str) -> None:
    """Drive the next run that somebody leaves."""
    eventually(lambda: pf.attach("last", store=server.store).id != last)
    pf.resume("last", store=server.store, executor="threads").wait(PATIENCE)


def test_the_server_may_be_away_for_a_while(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with GridServer() as own:
        run = waits(path=str(gate)).submit(server=own.url)
        store = ServerStore(own.url)
        with runner(own, run):
            waiting = threading.Thread(target=lambda: seen.append(run.wait(PATIENCE)))
            seen: list[str] = []
            waiting.start()
            own.kill()
            gate.touch()
            own.start()
            waiting.join(PATIENCE)
            assert seen == ["done"]
        assert pickle.loads(pickle.dumps(store)).state(run.id).status == "done"


def test_server_sent_events_go_on_where_they_were_cut(server: GridServer) -> None:
    run = doubles(n=2).submit(server=server.url)
    with runner(server, run):
        run.wait(PATIENCE)
    url = f"{server.url}/api/v1/runs/{run.id}/events"
    whole = [line for line in httpx.get(url).text.splitlines() if line.startswith("id:")]
    assert [int(line[3:]) for line in whole] == [row["seq"] for row in run.events()]
    rest = httpx.get(url, headers={"Last-Event-ID": whole[-2][4:]})
    assert rest.headers["content-type"].startswith("text/event-stream")
    assert [line for line in rest.text.splitlines() if line.startswith("id:")] == whole[-1:]
    assert '"finish": "done"' in rest.text
