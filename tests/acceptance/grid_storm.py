"""A workflow of two stages with files on a grid that suffers, and whether all of it is right."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandaflow as pf
from pandaflow.data.results import adler32
from pandaflow.testing.sites import MiniGrid, PilotProcess
from tests.acceptance.grid_work import records

#: Each attempt of a payload leaves a line when it has done its work, and a file of 20 kB.
FIRST = (
    "yes %IN | head -c 20000 > %OUT{data.txt}; "
    "echo %IN $PANDAFLOW_ATTEMPT $PANDAFLOW_BUNDLE >> %{folder}/first"
)
SECOND = (
    "cksum < %IN; head -c 8 %IN > %OUT{head.txt}; "
    "echo $PANDAFLOW_INDEX $PANDAFLOW_ATTEMPT $PANDAFLOW_BUNDLE >> %{folder}/second"
)
STAGES = ("first", "second")


@pf.workflow
def two_stages(n: int, folder: str) -> Any:
    made = pf.command(FIRST, name="first")(pf.items(range(n)), folder=folder)
    return made, pf.command(SECOND, name="second")(made, folder=folder)


class TwoStages:
    """A run of two stages of n jobs each, and the queues and pilots that it has.

    Parameters
    ----------
    grid : MiniGrid
    store : str
    folder : Path
        For notes of payloads, and for files.
    n : int
    """

    def __init__(self, grid: MiniGrid, store: str, folder: Path, n: int) -> None:
        self.grid, self._store, self._folder, self._n = grid, store, folder, n
        self._notes = folder / "notes"
        self._notes.mkdir()
        self._dice = random.Random(11)
        self._good: dict[str, int] = {}
        self._run: pf.Run | None = None
        self.took = 0.0

    # --- queues and pilots ---

    def add(self, queue: str, cores: int, *options: str) -> PilotProcess:
        """Start a pilot of a queue, which is made if need be."""
        if queue not in self._good:
            self.grid.queue(queue)
        self._good[queue] = cores
        return self.grid.pilot(queue, *options, cores=cores)

    def add_hole(self, queue: str) -> None:
        """Make a queue that fails whatever it gets, at once."""
        self.grid.queue(queue)
        self.grid.pilot(queue, cores=2).spoil()

    def kill_pilot(self) -> None:
        """Kill a pilot of a good queue, and start another, as a batch system would."""
        alive = [each for each in self.grid.pilots if each.queue in self._good and each.alive]
        victim: PilotProcess = self._dice.choice(alive)
        victim.kill()
        self.add(victim.queue, self._good[victim.queue])

    def kill_server(self) -> None:
        """Kill the server with whatever it is doing, and start it again."""
        self.grid.server.kill()
        self.grid.server.start()

    # --- the run ---

    def wait(self, seconds: float) -> str:
        """Run the workflow to its end; return its status."""
        began = time.monotonic()
        data = str(self._folder / "data")
        executor = pf.executors.Grid(self.grid.url, data=data)
        flow = two_stages(self._n, str(self._notes))
        self._run = flow.submit(executor=executor, store=self._store)
        status = self._run.wait(seconds)
        self.took = time.monotonic() - began
        return str(status)

    def done(self) -> int:
        """Return how many payloads have done their work."""
        return sum(len(self._read(name)) for name in STAGES)

    def _read(self, name: str) -> list[tuple[int, int, int]]:
        path = self._notes / name
        rows = path.read_text().splitlines() if path.exists() else []
        return [(int(a), int(b), int(c)) for a, b, c in (row.split() for row in rows)]

    # --- whether it is right ---

    def check(self) -> None:
        """Check every file, and that each committed attempt had its effect exactly once."""
        assert self._run is not None
        made, seen = self._run.result()
        assert len(made) == len(seen) == self._n
        for number in range(self._n):
            text = (f"{number}\n".encode() * 20_000)[:20_000]
            for file, data in ((made[number], text), (seen[number], text[:8])):
                assert Path(file).read_bytes() == data
                assert (file.checksum, file.size) == (adler32(data), len(data))
        for name in STAGES:
            self._check_notes(name)

    def _check_notes(self, name: str) -> None:
        told = Counter(self._read(name))
        assert self._run is not None
        jobs = [job for job in records(self._run, self._store) if job["task"] == name]
        assert len(jobs) == self._n
        committed = {(job["index"], job["attempt"], job["bundle"]) for job in jobs}
        assert {key: told[key] for key in committed} == dict.fromkeys(committed, 1)
        assert set(told.values()) == {1}, "no attempt ran twice"

    def summary(self) -> dict[str, object]:
        """Return where jobs ran, and in which attempt."""
        assert self._run is not None
        jobs = records(self._run, self._store)
        return {
            "sites": dict(Counter(job["site"] for job in jobs)),
            "attempts": dict(Counter(job["attempt"] for job in jobs)),
        }


class Storm:
    """Things that happen when a share of the jobs has ended.

    Parameters
    ----------
    done : callable
        Jobs that have ended.
    n : int
        All jobs.
    plan : mapping of float to callable
        By share.

    Attributes
    ----------
    told : int
        How many have happened.
    """

    def __init__(
        self, done: Callable[[], int], n: int, plan: Mapping[float, Callable[[], object]]
    ) -> None:
        self._done, self._n, self._plan = done, n, sorted(plan.items(), key=lambda each: each[0])
        self._over, self._pool = threading.Event(), ThreadPoolExecutor(1)
        self.told = 0

    def __enter__(self) -> Storm:
        self._blowing = self._pool.submit(self._blow)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self._blowing.result()

    def _blow(self) -> None:
        for share, what in self._plan:
            while self._done() < share * self._n:
                if self._over.wait(0.05):
                    return
            what()
            self.told += 1


class Flaky:
    """A queue whose pilots never last: they are killed after some seconds, and others come.

    Parameters
    ----------
    work : TwoStages
    queue : str
    """

    def __init__(self, work: TwoStages, queue: str) -> None:
        self._work, self._queue, self._dice = work, queue, random.Random(5)
        self._over, self._pool = threading.Event(), ThreadPoolExecutor(1)
        work.add(queue, 1)

    def __enter__(self) -> Flaky:
        self._failing = self._pool.submit(self._fail)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self._failing.result()

    def _fail(self) -> None:
        while not self._over.wait(self._dice.uniform(4.0, 12.0)):
            for pilot in list(self._work.grid.pilots):
                if pilot.queue == self._queue and pilot.alive:
                    pilot.kill()
            self._work.add(self._queue, 1)
