"""What people are told while jobs wait, and of wishes that the run's driver refuses."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pandaflow as pf
from pandaflow.cli.app import app
from pandaflow.core.events import BundlePlaced, Event, SlotsChanged
from pandaflow.core.model import Resources
from pandaflow.display.html import run_html
from pandaflow.ports import Assignment, Session

WAITS = "slurm: 2 pilot(s) wait in the queue (Resources)"


class Queued:
    """Threads of this machine that say, as a batch system would, why jobs wait."""

    def __init__(self) -> None:
        self.reason = ""
        self._threads = pf.executors.Local(workers=2, processes=False)
        self._report: Callable[[Event], None] = lambda event: None

    def open(self, run_id: str, results: str, report: Callable[[Event], None]) -> Session:
        def pass_on(event: Event) -> None:
            if isinstance(event, SlotsChanged):
                event = replace(event, reason=self.reason)
            report(event)

        self._report = report
        return self._threads.open(run_id, results, pass_on)

    def say(self, reason: str) -> None:
        self.reason = reason
        self._report(SlotsChanged(time.time(), "", 2, reason))

    def close(self) -> None:
        self._threads.close()


@pytest.fixture
def queued() -> Iterator[Queued]:
    executor = Queued()
    yield executor
    executor.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Jobs wait until there is this file; it is there at the end in any case."""
    path = tmp_path / "gate"
    yield path
    path.touch()


@pf.task(items_per_job=1)
def gated(x, gate):
    deadline = time.monotonic() + 60
    while not os.path.exists(gate) and time.monotonic() < deadline:
        time.sleep(0.01)
    return x


@pf.workflow
def all_gated(n, gate):
    return gated(pf.items(range(n)), str(gate))


def wait_for(condition: Callable[[], Any], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def call(store: str, *args: str) -> Result:
    return CliRunner().invoke(app, ["--store", store, *args])


def notes(run: Any) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["kind"] == "executor_noted"]


def test_why_jobs_wait_is_told_while_they_do(queued: Queued, gate: Path, store: str) -> None:
    run = all_gated(12, gate).submit(executor=queued, store=store)
    wait_for(lambda: any(run.jobs(status="sent")) and any(run.jobs(status="running")))
    assert run.summary()["executors"] == []
    assert notes(run) == []
    queued.say(WAITS)
    wait_for(lambda: notes(run))
    other = pf.attach(run.id, store=store)
    sent = next(iter(other.jobs(status="sent")))
    assert f"\n  {WAITS}\n" in other.explain((sent["task"], sent["index"]))
    held_up = [{"name": "default", "slots": 2, "reason": WAITS}]
    assert run.summary()["executors"] == other.summary()["executors"] == held_up
    assert json.loads(call(store, "status", run.id, "--json").stdout)["executors"] == held_up
    assert WAITS in call(store, "status", run.id).stdout.splitlines()
    assert f"\n  {WAITS}" in str(other)
    assert WAITS in run_html(other.summary())
    queued.say("")
    wait_for(lambda: len(notes(run)) == 2)
    for text in (str(other), run_html(other.summary()), call(store, "status", run.id).stdout):
        assert "pilot" not in text
    assert WAITS not in other.explain((sent["task"], sent["index"])).split("story:")[0]
    queued.say(WAITS)
    wait_for(lambda: len(notes(run)) == 3)
    gate.touch()
    assert run.wait(60) == "done"
    assert run.summary()["executors"] == other.summary()["executors"] == []
    assert WAITS not in other.explain((sent["task"], sent["index"]))


def test_an_executor_that_reports_all_the_time_does_not_flood_the_log(
    queued: Queued, gate: Path, store: str
) -> None:
    run = all_gated(4, gate).submit(executor=queued, store=store)
    wait_for(lambda: any(run.jobs(status="running")))
    for number in range(300):
        queued.say(f"{number} wait")
        time.sleep(0.005)
    wait_for(lambda: run.summary()["executors"][0]["reason"] == "299 wait")
    times = [event["at"] for event in notes(run)]
    assert len(times) >= 2
    assert min(b - a for a, b in pairwise(times)) >= 1.0
    gate.touch()
    assert run.wait(60) == "done"


def test_a_resumed_run_forgets_what_its_last_driver_heard(
    queued: Queued, gate: Path, store: str
) -> None:
    run = all_gated(4, gate).submit(executor=queued, store=store)
    wait_for(lambda: any(run.jobs(status="running")))
    queued.say(WAITS)
    wait_for(lambda: notes(run))
    run.stop()
    assert run.status == "running"
    assert [each["reason"] for each in run.summary()["executors"]] == [WAITS]
    queued.reason = ""
    again = pf.resume(run.id, store=store, executor=queued)
    wait_for(lambda: [each["reason"] for each in again.summary()["executors"]] == [""])
    gate.touch()
    assert again.wait(60) == "done"


@pytest.mark.timeout(300)
def test_pilots_behind_others_in_a_real_queue(slurm: Any, gate: Path, store: str) -> None:
    in_the_way = [slurm.submit("sleep 600", f"--nodelist={n}", "--exclusive") for n in slurm.nodes]
    wait_for(lambda: [slurm.states()[job] for job in in_the_way] == ["RUNNING"] * len(slurm.nodes))
    pilots = pf.executors.Slurm(
        cores=1,
        max_nodes=1,
        walltime=600,
        poll_seconds=0.4,
        idle_seconds=2.0,
        margin=5.0,
        host="127.0.0.1",
        commands_env=slurm.env,
    )
    run = all_gated(3, gate).submit(executor=pilots, store=store)
    wait_for(lambda: "wait in the queue (" in str(run), 60)
    (told,) = run.summary()["executors"]
    assert told["reason"] in run.explain("gated[0]")
    for job in in_the_way:
        slurm.run(["scancel", job])
    wait_for(lambda: any(run.jobs(status="running")), 60)
    wait_for(lambda: run.summary()["executors"][0]["reason"] == "")
    gate.touch()
    assert run.wait(60) == "done"


# --- wishes that are refused ------------------------------------------------------------


@pf.task(cores=8, memory="1 GiB")
def wide(x):
    raise ValueError("never")


@pf.task(cores=2, walltime=60.0)
def narrow(x):
    raise ValueError("never")


@pf.workflow
def two_fail(n):
    return wide(pf.items(range(n))), narrow(pf.items(range(n)))


def test_a_retry_of_all_leaves_each_task_its_own(store: str) -> None:
    run = two_fail(2).run(executor="sync", store=store)
    assert run.status == "failed"
    run.retry(memory="4 GiB", executor="sync")
    assert run.wait(60) == "failed"
    asked = {task.spec.name: task.spec.resources for task in run._engine().tasks.values()}
    assert asked == {
        "wide": Resources(cores=8, memory=4 * 2**30),
        "narrow": Resources(cores=2, memory=4 * 2**30, walltime=60.0),
    }
    assert {row["attempt"] for row in run.jobs()} == {2}


def refusals(run: Any) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["kind"] == "request_refused"]


def test_a_refused_retry_is_told_to_whoever_asks(store: str) -> None:
    run = two_fail(2).run(executor="sync", store=store)
    with pytest.raises(pf.WorkflowError, match=r"retry was refused: task 'wide' asks for 2 node"):
        run.retry(nodes=2, executor="sync")
    assert run.status == "failed"
    assert {row["attempt"] for row in run.jobs()} == {1}
    (event,) = refusals(run)
    assert "starts jobs on one node" in event["reason"]
    assert event["detail"]["kind"] == "retry"
    result = call(store, "retry", run.id, "--nodes", "2", "--executor", "threads")
    assert result.exit_code != 0
    assert "refused" in result.output
    shown = call(store, "status", run.id)
    assert shown.stdout.count("refused: retry (by ") == 2
    listed = json.loads(call(store, "status", run.id, "--json").stdout)["refused"]
    assert [each["kind"] for each in listed] == ["retry", "retry"]
    assert listed[0]["reason"] == event["reason"]
    run.retry(retries=0, executor="sync")  # what was refused does not come back
    assert run.wait(60) == "failed"
    assert {row["attempt"] for row in run.jobs()} == {2}


@pf.workflow
def one_fails(n, gate):
    return gated(pf.items(range(n)), str(gate)), narrow(1)


def test_a_refusal_reaches_another_handle_while_the_run_goes_on(
    gate: Path, threads: Any, store: str
) -> None:
    run = one_fails(1, gate).submit(executor=threads, store=store)
    wait_for(lambda: any(run.jobs(status="failed")))
    other = pf.attach(run.id, store=store)
    with pytest.raises(pf.WorkflowError, match=r"retry was refused: .*starts jobs on one node"):
        other.retry(task="narrow", nodes=2)
    other.retry(task="narrow")
    wait_for(lambda: [row["attempt"] for row in run.jobs(task="narrow", status="failed")] == [2])
    run._store.request(run.id, "dance", {})
    wait_for(lambda: len(refusals(run)) == 2)
    assert refusals(run)[1]["reason"] == "unknown request 'dance'"
    gate.touch()
    assert run.wait(60) == "failed"


# --- placements are committed in groups -------------------------------------------------


class Placing:
    """Threads that say of each bundle where it goes, one by one."""

    def __init__(self, threads: pf.executors.Local) -> None:
        self._threads = threads

    def open(self, run_id: str, results: str, report: Callable[[Event], None]) -> Session:
        session = self._threads.open(run_id, results, report)
        submit = session.submit

        def place_first(assignments: list[Assignment]) -> None:
            for assignment in assignments:
                report(BundlePlaced(time.time(), assignment.emit.bundle, "here", "most room"))
            submit(assignments)

        session.submit = place_first  # type: ignore[method-assign]
        return session


def test_placements_come_in_the_log(gate: Path, threads: Any, store: str) -> None:
    gate.touch()
    run = all_gated(3, gate).submit(executor=Placing(threads), store=store)
    assert run.wait(60) == "done"
    placed = [event for event in run.events() if event["kind"] == "bundle_placed"]
    assert [event["detail"] for event in placed] == [{"site": "here"}] * len(placed)
    assert sum(1 for _ in placed) == len({event["bundle"] for event in placed})
    assert {row["site"] for row in run.jobs()} == {"here"}
