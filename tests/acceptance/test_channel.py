"""What running jobs tell the process that drives them, and how it stops them, in whole runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core.events import JobSaid

PATIENCE = 30.0


@pf.task(retries=3)
def train(x, gate):
    """Wait for the gate, then report until pruned; the last of them stops by itself."""
    job = pf.current_job()
    end = time.monotonic() + PATIENCE
    while not os.path.exists(gate) and time.monotonic() < end:
        time.sleep(0.005)
    for step in range(3 if x == 0 else 10**9):
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


@pf.workflow
def study(n, gate):
    return train(pf.items(range(n)), gate)


@pf.workflow
def talk(n, gate):
    return tell(pf.items(range(n)), gate)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Ear:
    """Keeps what a run says."""

    def __init__(self, run: pf.Run) -> None:
        self.run, self.heard = run, []
        run._listen(self.hear)

    def hear(self, said: JobSaid, task: str) -> None:
        self.heard.append((task, said))


def test_messages_reach_the_driver(tmp_path: Path, executor: Any, store: str) -> None:
    gate = tmp_path / "gate"
    run = talk(5, str(gate)).submit(executor=executor, store=store)
    ear = Ear(run)
    gate.touch()
    assert run.result(timeout=PATIENCE) == list(range(5))
    assert sorted((task, said.job, said.body["x"]) for task, said in ear.heard) == [
        ("tell", x, x) for x in range(5)
    ]


def test_a_listener_that_raises_does_no_harm(
    tmp_path: Path, executor: Any, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = tmp_path / "gate"
    run = talk(3, str(gate)).submit(executor=executor, store=store)

    def broken(said: JobSaid, task: str) -> None:
        raise ValueError("this listener is broken")

    run._listen(broken)
    ear = Ear(run)
    gate.touch()
    assert run.result(timeout=PATIENCE) == [0, 1, 2]
    assert len(ear.heard) == 3
    assert "a listener failed" in caplog.text


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_jobs_that_report_are_stopped(
    tmp_path: Path, kind: str, store: str, request: pytest.FixtureRequest
) -> None:
    """The decision is made where the report is heard, as a pruner makes it."""
    gate = tmp_path / "gate"
    executor = request.getfixturevalue(kind)
    run = study(4, str(gate)).submit(executor=executor, store=store)
    answers: list[bool] = []

    def prune(said: JobSaid, task: str) -> None:
        if said.body["x"] > 0 and said.body["step"] == 2:
            answers.append(run._stop_jobs(task, [said.job], f"bad value of {said.job}", 0.3))

    run._listen(prune)
    gate.touch()
    assert run.wait(PATIENCE) == "done"
    jobs = list(run.jobs())
    assert jobs[0]["status"] == "finished" and answers == [True] * 3
    assert [job["attempt"] for job in jobs] == [1, 1, 1, 1], "a stopped job is not tried again"
    assert "bad value of 1" in jobs[1]["reason"] and "bad value of 3" in jobs[3]["reason"]
    assert "I agree: bad value of 2" in jobs[2]["reason"]
    assert not any(job["failure"] for job in jobs)


def test_in_the_callers_thread_jobs_are_asked_only(tmp_path: Path, store: str) -> None:
    seen: list[str] = []

    @pf.task
    def work(x):
        job = pf.current_job()
        end = time.monotonic() + PATIENCE
        job.send({"x": x})
        while x == 1 and not job.stopping and time.monotonic() < end:
            time.sleep(0.01)
        return job.stopping

    @pf.workflow
    def flow():
        return work(pf.items(range(4)))

    gate = threading.Event()
    run = _held(flow(), gate, store)

    def prune(said: JobSaid, task: str) -> None:
        seen.append(said.body["x"])
        if said.body["x"] == 1:
            threading.Timer(0.05, run._stop_jobs, (task, [1, 2], "asked", 0.0)).start()

    run._listen(prune)
    gate.set()
    assert run.wait(PATIENCE) == "done"
    assert seen == [0, 1, 3], "job 2 was asked before it began"
    assert run.result(partial=True)[1] == "asked"


def _held(call: Any, gate: threading.Event, store: str) -> pf.Run:
    """Submit to the caller's thread, which waits for the gate before the first job."""

    class Held(pf.executors.Local):
        def open(self, *args: Any) -> Any:
            assert gate.wait(PATIENCE)
            return super().open(*args)

    return call.submit(executor=Held(workers=0), store=store)


def test_a_handle_listens_on_after_it_resumes_the_run(
    tmp_path: Path, processes: Any, store: str
) -> None:
    gate = tmp_path / "gate"
    run = talk(3, str(gate)).submit(executor=processes, store=store)
    ear = Ear(run)
    until(lambda: any(run.jobs(status="running")))
    assert not run._stop_jobs("tell", [], "nobody") or run._runner is not None
    run.stop()
    assert run._stop_jobs("tell", [0], "nobody drives it") is False
    gate.touch()
    from pandaflow.places import pick_executors

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

    gate = tmp_path / "gate"
    run = talk(1, str(gate)).submit(executor=Mute(), store=store)
    until(lambda: any(run.jobs(status="running")) or run._runner._sessions)
    assert run._stop_jobs("tell", [0], "unheard") is False
    gate.touch()
    assert run.result(timeout=PATIENCE) == [0]
