"""Pilots in the allocations of a real Slurm, and what may happen to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import pandaflow as pf
from pandaflow.core.errors import RunFailed
from pandaflow.executors.batch.slots import Slot
from tests.acceptance.batch_payloads import held

pytestmark = pytest.mark.timeout(300)

#: Nodes import what is tested, and the tests, from where the tests do.
ENV = {"PYTHONPATH": str(Path(__file__).parents[2])}


@pf.task
def double(x: int) -> int:
    return 2 * x


@pf.task
def slow(x: int, seconds: float = 0.2) -> int:
    time.sleep(seconds)
    return x + 1


@pf.task
def counted(x: int, folder: str, seconds: float) -> int:
    """Leave a line for each time it begins; go on as long as a test holds it."""
    handle = os.open(Path(folder, "begun"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{x}\n".encode())
    os.close(handle)
    time.sleep(seconds)
    end = time.monotonic() + 90
    while time.monotonic() < end and Path(folder, "hold").exists():
        time.sleep(0.02)
    return x


@pf.workflow
def chain(n: int, long: int) -> Any:
    return slow(pf.items(range(long))), double(double(pf.items(range(n))))


@pf.workflow
def many(n: int, folder: str, seconds: float) -> Any:
    return counted(pf.items(range(n)), folder, seconds)


def executor(slurm: Any, **settings: Any) -> Any:
    """Return an executor for tests: quick to look, quick to give back."""
    given = {"cores": 2, "max_nodes": 2, "walltime": 600, "poll_seconds": 0.4, "margin": 5.0}
    given |= {"idle_seconds": 2.0, "patience": 12.0, "host": "127.0.0.1", "env": ENV}
    return pf.executors.Slurm(**{**given, "commands_env": slurm.env, **settings})


def queue(slurm: Any) -> list[str]:
    """Return the jobs that the queue still has."""
    return slurm.run(["squeue", "-h", "-o", "%i %T"]).stdout.splitlines()


def failures(run: pf.Run) -> int:
    """Return how many failed attempts were charged."""
    reader = run._reader
    return sum(
        attempt["status"] == "failed" and bool(attempt["charged"])
        for task in run.tasks
        for job in range(task["n"])
        for attempt in reader.attempts(run.id, task["name"], job)
    )


def meanwhile(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def begun(folder: Path) -> Counter[int]:
    path = folder / "begun"
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


def running(slurm: Any) -> list[str]:
    """Return the ids of the batch jobs that run."""
    return [line.split()[0] for line in queue(slurm) if "RUNNING" in line]


# --- the smooth path --------------------------------------------------------------------


def test_short_and_long_jobs(slurm: Any, tmp_path: Path) -> None:
    run = chain(500, 24).run(executor=executor(slurm), store=f"sqlite:///{tmp_path}/s.db")
    longer, short = run.result()
    assert longer == [x + 1 for x in range(24)] and short == [4 * x for x in range(500)]
    assert queue(slurm) == [] and failures(run) == 0


def test_one_stage_on_slurm_the_next_here(slurm: Any, tmp_path: Path) -> None:
    @pf.workflow
    def across(n: int) -> Any:
        return double.options(executor="here")(slow.options(executor="slurm")(pf.items(range(n))))

    executors = {"here": pf.executors.Local(workers=1, processes=False), "slurm": executor(slurm)}
    run = across(16).run(executors=executors, executor="here", store=f"sqlite:///{tmp_path}/s.db")
    assert run.result() == [2 * (x + 1) for x in range(16)]
    rows = {row["task"]: row for row in run.jobs()}
    assert rows["slow"]["executor"] == "slurm" and rows["double"]["executor"] == "here"
    assert queue(slurm) == []


def test_pilots_come_with_work_and_go_without(slurm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    run = many(40, str(folder), 0.3).submit(
        executor=executor(slurm, cores=1, max_nodes=4), store=f"sqlite:///{tmp_path}/s.db"
    )
    most = 0
    while run.status not in ("done", "failed"):
        most = max(most, len(running(slurm)))
        time.sleep(0.1)
    assert run.wait(30) == "done" and 2 <= most <= 4
    assert queue(slurm) == []


def test_cancel_leaves_nothing(slurm: Any, tmp_path: Path) -> None:
    run = many(100, str(tmp_path), 5.0).submit(
        executor=executor(slurm), store=f"sqlite:///{tmp_path}/s.db"
    )
    wait_for(lambda: bool(begun(tmp_path)))
    run.cancel()
    wait_for(lambda: run._thread is None or not run._thread.is_alive())
    assert run.status == "aborted" and queue(slurm) == []


# --- faults -----------------------------------------------------------------------------


def test_an_operator_cancels_a_pilot(slurm: Any, tmp_path: Path) -> None:
    with held(tmp_path):
        run = many(30, str(tmp_path), 0.5).submit(
            executor=executor(slurm), store=f"sqlite:///{tmp_path}/s.db"
        )
        wait_for(lambda: len(begun(tmp_path)) >= 4 and len(running(slurm)) == 2)
        slurm.run(["scancel", running(slurm)[0]])
    assert run.wait(120) == "done"
    assert failures(run) == 0 and set(begun(tmp_path)) == set(range(30))
    assert queue(slurm) == []


def test_a_node_goes_down(slurm: Any, tmp_path: Path) -> None:
    with held(tmp_path):
        run = many(30, str(tmp_path), 0.5).submit(
            executor=executor(slurm), store=f"sqlite:///{tmp_path}/s.db"
        )
        wait_for(lambda: len(begun(tmp_path)) >= 4 and len(running(slurm)) == 2)
        slurm.down(slurm.show(running(slurm)[0])["NodeList"])
    assert run.wait(120) == "done"
    assert failures(run) == 0 and queue(slurm) == []


def test_why_nobody_works_any_more_is_told(slurm: Any, tmp_path: Path) -> None:
    with held(tmp_path):
        run = many(8, str(tmp_path), 0.5).submit(
            executor=executor(slurm, max_nodes=1), store=f"sqlite:///{tmp_path}/s.db"
        )
        wait_for(lambda: bool(begun(tmp_path)))
        for node in slurm.nodes:
            slurm.down(node)
    wait_for(lambda: "wait in the queue" in run.summary()["executors"][0]["reason"])
    for node in slurm.nodes:
        slurm.resume(node)
    assert run.wait(120) == "done"
    assert failures(run) == 0 and queue(slurm) == []


def test_a_session_that_cannot_begin_leaves_nothing_open(slurm: Any, tmp_path: Path) -> None:
    deaf = tmp_path / "bin" / "squeue"
    deaf.parent.mkdir()
    deaf.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    deaf.chmod(0o755)
    env = {**slurm.env, "PATH": f"{deaf.parent}:{os.environ['PATH']}"}
    left = tmp_path / "results" / "pilots" / "jobs"
    left.parent.mkdir(parents=True)
    left.write_text(f"1\tslurm\t{Slot(2).dump()}\n")
    before = ports(), threads()
    with pytest.raises(pf.SiteError, match="Unable to contact"):
        executor(slurm, commands_env=env).open("run", str(left.parents[1]), lambda event: None)
    assert (ports(), threads()) == before


def ports() -> set[int]:
    """Return the ports at which this process listens."""
    found = psutil.Process().net_connections(kind="tcp")
    return {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}


def threads() -> int:
    return sum(thread.name.startswith("pandaflow-") for thread in threading.enumerate())


def test_a_pilot_whose_time_is_up_hands_its_work_on(slurm: Any, tmp_path: Path) -> None:
    run = many(40, str(tmp_path), 1.0).run(
        executor=executor(slurm, walltime=14.0, margin=3.0),
        store=f"sqlite:///{tmp_path}/s.db",
        progress=False,
    )
    assert run.status == "done" and failures(run) == 0
    assert set(begun(tmp_path)) == set(range(40))
    assert queue(slurm) == []


def test_a_job_that_cannot_end_in_time_waits_for_the_next_pilot(slurm: Any, tmp_path: Path) -> None:
    @pf.workflow
    def two(folder: str) -> Any:
        first = counted.options(name="first")(pf.items(range(3)), folder, 1.0)
        late = counted.options(name="late", walltime=9)(first, folder, 3.0)
        return late

    run = two(str(tmp_path)).run(
        executor=executor(slurm, walltime=20.0, margin=2.0, max_nodes=1, cores=1),
        store=f"sqlite:///{tmp_path}/s.db",
        progress=False,
    )
    assert run.status == "done" and failures(run) == 0
    assert max(begun(tmp_path).values()) == 2  # once in each task: none was cut off


def test_a_dead_worker_takes_no_other_job_along(slurm: Any, tmp_path: Path) -> None:
    @pf.task
    def fatal(x: int) -> int:
        if x == 3 and pf.current_job().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        return x

    @pf.workflow
    def risky() -> Any:
        return fatal(pf.items(range(12)))

    run = risky().run(executor=executor(slurm), store=f"sqlite:///{tmp_path}/s.db", progress=False)
    assert run.result() == list(range(12)) and failures(run) == 0  # the first loss is forgiven
    attempts = {row["index"]: row["attempt"] for row in run.jobs()}
    assert attempts.pop(3) == 2 and set(attempts.values()) == {1}, "its neighbours go on"
    assert queue(slurm) == []


def test_a_partition_that_is_not_there(slurm: Any, tmp_path: Path) -> None:
    with pytest.raises((RunFailed, pf.SiteError), match="invalid partition"):
        chain(4, 2).run(
            executor=executor(slurm, partition="nowhere"), store=f"sqlite:///{tmp_path}/s.db"
        ).result()
    assert queue(slurm) == []


# --- drivers that die -------------------------------------------------------------------

SCRIPT = """
import sys
from tests.acceptance.test_slurm_pilots import executor, many

class Box:
    env = dict(pair.split("=", 1) for pair in sys.argv[3:])

here = executor(Box, patience=7.0)
many(40, sys.argv[2], 0.5).run(executor=here, store=sys.argv[1], progress=False)
"""


def driver(slurm: Any, store: str, folder: Path) -> subprocess.Popen[bytes]:
    words = [f"{k}={v}" for k, v in slurm.env.items() if k in ("SLURM_CONF", "PATH")]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, store, str(folder), *words], env=env)


def test_a_resumed_run_takes_its_pilots_over(slurm: Any, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    known = set(slurm.states())
    process = driver(slurm, store, tmp_path)
    wait_for(lambda: len(begun(tmp_path)) >= 8)
    with held(tmp_path):
        wait_for(lambda: len(running(slurm)) == 2)
        process.kill()
        process.wait()
    before = set(running(slurm))
    assert before
    run = pf.resume("last", store=store, executor=executor(slurm))
    assert run.wait(120) == "done"
    assert failures(run) == 0 and set(begun(tmp_path)) == set(range(40))
    assert max(begun(tmp_path).values()) <= 2  # only what was in flight begins again
    assert set(slurm.states()) - known == before, "no other pilot was needed"
    assert queue(slurm) == []


def test_pilots_end_by_themselves_when_nobody_comes(slurm: Any, tmp_path: Path) -> None:
    process = driver(slurm, f"sqlite:///{tmp_path}/s.db", tmp_path)
    wait_for(lambda: len(begun(tmp_path)) >= 4)
    process.kill()
    process.wait()
    assert queue(slurm)
    wait_for(lambda: queue(slurm) == [], seconds=60)
