"""What running jobs tell the process that drives them, and how it stops them, in whole runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core.events import JobSaid
from pandaflow.places import open_store, pick_executors

PATIENCE = 60.0


@pf.task(retries=3)
def train(x):
    """Report until pruned; job 0 ends soon, job 2 when it is asked to, the others by force."""
    job = pf.current_job()
    for step in range(3 if x == 0 else 10_000):
        job.send({"x": x, "step": step})
        if x == 2 and job.stopping:
            raise pf.Skip(f"I agree: {job.stopping}")
        time.sleep(0.01)
    return x


@pf.task
def tell(x, gate):
    end = time.monotonic() + PATIENCE
    while not os.path.exists(gate) and time.monotonic() < end:
        time.sleep(0.005)
    pf.current_job().send({"x": x})
    return x


@pf.task
def ask_until_stopped(x):
    """Job 1 goes on until it is asked to stop."""
    job = pf.current_job()
    end = time.monotonic() + PATIENCE
    job.send({"x": x})
    while x == 1 and not job.stopping and time.monotonic() < end:
        time.sleep(0.01)
    return job.stopping


@pf.workflow
def study(n):
    return train(pf.items(range(n)))


@pf.workflow
def talk(n, gate):
    return tell(pf.items(range(n)), gate)


@pf.workflow
def one_by_one(n):
    return ask_until_stopped(pf.items(range(n)))


def begin(call: Any, executor: Any, store: str, *listeners: Any) -> pf.Run:
    """Drive a run in a thread; the listeners hear it from its first message on."""
    run = call._create(open_store(store), None, ())
    for listener in listeners:
        run._listen(listener)
    run._drive(pick_executors(executor, None))
    return run


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Ear:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, JobSaid]] = []

    def __call__(self, said: JobSaid, task: str) -> None:
        self.heard.append((task, said))


def test_messages_reach_the_driver(tmp_path: Path, executor: Any, store: str) -> None:
    ear = Ear()
    run = begin(talk(5, str(tmp_path)), executor, store, ear)
    assert run.result(timeout=PATIENCE) == list(range(5))
    assert sorted((task, said.job, said.body["x"]) for task, said in ear.heard) == [
        ("tell", x, x) for x in range(5)
    ]


def test_a_listener_that_raises_does_no_harm(
    tmp_path: Path, executor: Any, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(said: JobSaid, task: str) -> None:
        raise ValueError("this listener is broken")

    ear = Ear()
    run = begin(talk(3, str(tmp_path)), executor, store, broken, ear)
    assert run.result(timeout=PATIENCE) == [0, 1, 2]
    assert len(ear.heard) == 3
    assert "a listener failed" in caplog.text


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_jobs_that_report_are_stopped(
    kind: str, store: str, request: pytest.FixtureRequest
) -> None:
    """The decision is made where the report is heard, as a pruner makes it."""
    executor = request.getfixturevalue(kind)
    answers: list[bool] = []

    def prune(said: JobSaid, task: str) -> None:
        if said.body["x"] > 0 and said.body["step"] == 2:
            grace = PATIENCE if said.job == 2 else 0.3
            answers.append(run._stop_jobs(task, [said.job], f"bad value of {said.job}", grace))

    run = begin(study(4), executor, store, prune)
    assert run.wait(PATIENCE) == "done"
    jobs = list(run.jobs())
    assert jobs[0]["status"] == "finished" and answers == [True] * 3
    assert [job["attempt"] for job in jobs] == [1, 1, 1, 1], "a stopped job is not tried again"
    assert "bad value of 1" in jobs[1]["reason"] and "bad value of 3" in jobs[3]["reason"]
    assert "I agree: bad value of 2" in jobs[2]["reason"]
    assert not any(job["failure"] for job in jobs)


def test_in_the_callers_thread_jobs_are_asked_only(store: str) -> None:
    seen: list[int] = []

    def prune(said: JobSaid, task: str) -> None:
        seen.append(said.body["x"])
        if said.body["x"] == 1:
            assert run._stop_jobs(task, [1, 2], "asked", 0.0)

    run = one_by_one(4)._create(open_store(store), None, ())
    run._listen(prune)
    run._drive(pick_executors(pf.executors.Local(workers=0), None), here=True)
    assert run.status == "done"
    assert seen == [0, 1, 3], "job 2 was asked before it began"
    assert run.result(partial=True)[1] == "asked"


def test_a_handle_listens_on_after_it_resumes_the_run(
    tmp_path: Path, processes: Any, store: str
) -> None:
    gate = tmp_path / "gate"
    ear = Ear()
    run = begin(talk(3, str(gate)), processes, store, ear)
    until(lambda: any(run.jobs(status="running")))
    run.stop()
    assert run._stop_jobs("tell", [0], "nobody drives it") is False
    gate.touch()
    run._drive(pick_executors(processes, None))
    assert run.result(timeout=PATIENCE) == [0, 1, 2]
    assert sorted(said.body["x"] for _, said in ear.heard) == [0, 1, 2]


def test_an_executor_without_a_channel(tmp_path: Path, store: str) -> None:
    class Mute:
        """Passes on what the port demands, and no more."""

        def open(self, run_id: str, results: str, report: Any) -> Any:
            session = pf.executors.Local(workers=0).open(run_id, results, report)

            class Bare:
                submit, cancel = session.submit, session.cancel
                release, close = session.release, session.close

            return Bare()

    ear = Ear()

    def stop(said: JobSaid, task: str) -> None:
        answers.append(run._stop_jobs(task, [said.job], "unheard"))

    answers: list[bool] = []
    run = begin(talk(1, str(tmp_path)), Mute(), store, ear, stop)
    assert run.result(timeout=PATIENCE) == [0]
    assert answers == [False] and len(ear.heard) == 1
