"""``kill -9`` of the driver at any moment loses no committed job and repeats none."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import pandaflow as pf
from pandaflow.store.sql import open_store

N = 1000  # jobs of each of the two stages
SCRIPT = """
import os, sys
import pandaflow as pf

COUNTER = sys.argv[2]

def note(stage, x):
    fd = os.open(COUNTER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{stage} {x}\\n".encode())
    os.close(fd)

@pf.task
def first(x):
    note("first", x)
    return x

@pf.task
def second(x):
    note("second", x)
    return x

@pf.workflow
def two(n):
    return second(first(pf.items(range(n))))

executor = pf.executors.Local(workers=2, processes=sys.argv[3] == "processes")
if sys.argv[4] == "new":
    run = two(int(sys.argv[5])).submit(executor=executor, store=sys.argv[1], name="killed")
else:
    run = pf.resume(sys.argv[4], store=sys.argv[1], executor=executor)
print("RUN", run.id, flush=True)
print(run.wait(), flush=True)
executor.close()
"""


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    """End the drivers of a test that failed."""
    yield
    for process in _started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    _started.clear()


class Driver:
    """A driver process that can be killed."""

    def __init__(self, folder: Path, kind: str, what: str) -> None:
        script = folder / "driver.py"
        script.write_text(SCRIPT)
        self.store = f"sqlite:///{folder}/kill.db"
        self.counter = folder / "counter.txt"
        command = [sys.executable, str(script), self.store, str(self.counter), kind, what, str(N)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        _started.append(self.process)

    def run_id(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()[1]

    def kill_at(self, jobs: int) -> None:
        """Kill -9 when so many payloads have begun."""
        deadline = time.monotonic() + 120
        while self.begun() < jobs and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        self.kill()

    def begun(self) -> int:
        return self.counter.read_bytes().count(b"\n") if self.counter.exists() else 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def finish(self) -> str:
        # Not communicate(): what it prints at once with its first line may be read already.
        self.process.wait(timeout=200)
        assert self.process.stdout is not None
        return self.process.stdout.read().split()[-1]


def committed(store: str, run_id: str) -> set[tuple[str, int]]:
    reader = open_store(store).reader()
    return {(row["task"], row["index"]) for row in reader.jobs(run_id, status="finished")}


def ran(counter: Path) -> Counter[tuple[str, int]]:
    lines = (line.split() for line in counter.read_text().splitlines())
    return Counter((stage, int(x)) for stage, x in lines)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_kill_nine_at_random_moments(tmp_path: Path, kind: str) -> None:
    seed = int(os.environ.get("PANDAFLOW_TEST_SEED", "20261122"))
    dice = random.Random(f"{seed}/{kind}")
    driver = Driver(tmp_path, kind, "new")
    run_id = driver.run_id()
    moments = []
    for _ in range(6):
        # Anywhere: in a stage, at the boundary of stages, while a commit is written.
        driver.kill_at(driver.begun() + dice.randrange(1, 400))
        time.sleep(dice.random() * 0.05)
        moments.append((committed(driver.store, run_id), ran(driver.counter)))
        driver = Driver(tmp_path, kind, run_id)
        assert driver.run_id() == run_id
    assert driver.finish() == "done"
    after = ran(driver.counter)
    for finished, seen in moments:
        assert not {job for job in finished if after[job] > seen[job]}
    assert set(after) == {(stage, x) for stage in ("first", "second") for x in range(N)}
    assert committed(driver.store, run_id) == set(after)
    run = pf.attach(run_id, store=driver.store)
    assert run.result() == list(range(N))


def test_a_run_that_is_driven_refuses_a_second_driver(tmp_path: Path) -> None:
    driver = Driver(tmp_path, "threads", "new")
    run_id = driver.run_id()
    try:
        with pytest.raises(pf.RunLocked, match=str(driver.process.pid)):
            pf.resume(run_id, store=driver.store, executor="sync")
    finally:
        driver.kill()
    # The lease of a process of this host that is gone is void at once.
    run = pf.resume(run_id, store=driver.store, executor="threads")
    assert run.wait(60) == "done"
    assert run.result() == list(range(N))
