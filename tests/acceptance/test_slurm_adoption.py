"""Drivers of batch jobs that are killed, and the next driver, which goes on with what runs."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.store.sql import open_store
from pandaflow.testing.slurm import Slurm
from tests.acceptance.test_slurm_batch import wait_for

pytestmark = pytest.mark.timeout(240)


@pf.task
def noted(x: int, folder: str, seconds: float = 0.0) -> int:
    """Leave a line when it begins and one when it has ended; go on as long as a test holds it."""
    with open(Path(folder, "begun"), "a") as file:
        file.write(f"{x}\n")
    time.sleep(seconds)
    end = time.monotonic() + 90
    while time.monotonic() < end and Path(folder, "hold").exists():
        time.sleep(0.05)
    with open(Path(folder, "over"), "a") as file:
        file.write(f"{x}\n")
    return x


@pf.workflow
def two_kinds(short: int, longer: int, folder: str, seconds: float) -> Any:
    slow = noted.options(name="slow", priority=1)
    return noted(pf.items(range(short)), folder), slow(pf.items(range(-longer, 0)), folder, seconds)


SCRIPT = """
import sys
import pandaflow as pf
from tests.acceptance.test_slurm_adoption import two_kinds
from tests.acceptance.test_slurm_batch import settings_of

store, folder, conf, run, short, longer, seconds = sys.argv[1:]
executor = pf.executors.Slurm(**settings_of(conf))
if run == "new":
    flow = two_kinds(int(short), int(longer), folder, float(seconds))
    run = flow.submit(executor=executor, store=store)
else:
    run = pf.resume(run, store=store, executor=executor)
print(run.id, flush=True)
print(run.wait(), flush=True)
"""


class Drivers:
    """Starts drivers of one run as processes of their own."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        self.store = f"sqlite:///{folder}/store.db"

    def start(self, run: str, short: int, longer: int, seconds: float) -> subprocess.Popen[str]:
        conf = self.slurm.env["SLURM_CONF"]
        argv = [sys.executable, "-c", SCRIPT, self.store, str(self.folder), conf, run]
        argv += [str(short), str(longer), str(seconds)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def killed(self, when: Callable[[], bool], *size: Any) -> str:
        """Start a run, kill its driver at some moment, return the id of the run."""
        first = self.start("new", *size)
        assert first.stdout is not None
        try:
            run = first.stdout.readline().strip()
            wait_for(when)
        finally:
            first.kill()
            first.wait()
            first.stdout.close()
        return run

    def resumed(self, run: str) -> str:
        """Return how the run ends under another driver."""
        told, _ = self.start(run, 0, 0, 0.0).communicate(timeout=150)
        return told.split()[-1]

    def lines(self, name: str) -> list[int]:
        path = self.folder / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def states(self, run: str, task: str) -> Counter[str]:
        return Counter(
            job["status"] for job in open_store(self.store).reader().jobs(run, task=task)
        )


@pytest.fixture
def drivers(slurm: Slurm, tmp_path: Path) -> Drivers:
    return Drivers(slurm, tmp_path)


def left(slurm: Slurm) -> list[str]:
    return [j for j, s in slurm.states().items() if s in ("PENDING", "RUNNING", "COMPLETING")]


def test_nothing_runs_twice_when_the_driver_is_killed_at_some_moment(drivers: Drivers) -> None:
    begun = random.randrange(8, 600)
    print(f"killed when {begun} jobs have begun")
    run = drivers.killed(lambda: len(drivers.lines("begun")) >= begun, 1000, 50, 2.0)
    assert drivers.resumed(run) == "done"
    expected = Counter(dict.fromkeys([*range(1000), *range(-50, 0)], 1))
    assert Counter(drivers.lines("over")) == expected
    assert Counter(drivers.lines("begun")) == expected
    assert drivers.states(run, "noted") == {"finished": 1000}
    assert drivers.states(run, "slow") == {"finished": 50}
    assert left(drivers.slurm) == []


def test_what_runs_goes_on_under_the_next_driver(drivers: Drivers) -> None:
    hold = drivers.folder / "hold"
    hold.touch()  # however long sixteen interpreters take to start, none has ended by then
    run = drivers.killed(lambda: len(drivers.lines("begun")) == 16, 0, 20, 3.0)
    held = set(left(drivers.slurm))
    second = drivers.start(run, 0, 0, 0.0)
    hold.unlink()
    try:
        wait_for(lambda: len(drivers.lines("over")) >= 1)
        assert set(drivers.lines("begun")) >= set(range(-20, -4))
        told, _ = second.communicate(timeout=90)
    finally:
        second.kill()
        second.wait()
    assert told.split()[-1] == "done"
    assert len(held) == 16, "one batch job for each"
    assert Counter(drivers.lines("begun")) == Counter(range(-20, 0))
    attempts = [
        attempt
        for job in range(20)
        for attempt in open_store(drivers.store).reader().attempts(run, "slow", job)
    ]
    assert len(attempts) == 20
    assert left(drivers.slurm) == []
