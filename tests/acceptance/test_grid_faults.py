"""What may happen to runs on the grid: drivers, servers, databases, pilots and sites go away."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow.data.results import adler32
from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.sites import MiniGrid, PilotProcess
from tests.acceptance.drivers import Drivers
from tests.acceptance.grid_work import lines, records, wait_for

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def grid() -> Iterator[MiniGrid]:
    with MiniGrid(heartbeat=3.0) as grid:
        grid.queue("here")
        yield grid


# --- drivers ----------------------------------------------------------------------------

SCRIPT = """
import sys
import pandaflow as pf
from tests.acceptance.grid_work import all_noted

url, store, folder, run, n, seconds = sys.argv[1:]
executor = pf.executors.Grid(url)
if run == "new":
    run = all_noted(int(n), folder, float(seconds)).submit(executor=executor, store=store)
else:
    run = pf.resume(run, store=store, executor=executor)
print(run.id, flush=True)
print(run.wait(), flush=True)
"""


def drivers_of(grid: MiniGrid, store: str, folder: Path) -> Drivers:
    paths = f"{ROOT}{os.pathsep}{ROOT / 'pilot'}"
    env = os.environ | {"PYTHONPATH": paths, "PANDAFLOW_RESULTS": f"{folder}/results"}
    return Drivers([sys.executable, "-c", SCRIPT, grid.url, store, str(folder)], env)


def test_the_next_driver_collects_what_finished_meanwhile(
    grid: MiniGrid, store: str, tmp_path: Path
) -> None:
    """Some outcomes were acknowledged, some ended unheard, some bundles had not begun."""
    grid.pilot("here", cores=2)
    drivers = drivers_of(grid, store, tmp_path)
    with drivers.killed(8, 0.3), grid.server.client() as client:
        wait_for(lambda: len(lines(tmp_path, "over")) >= 3)
        wait_for(lambda: _rows(client, drivers.run, "ended"))
        wait_for(lambda: not all(row["unread"] for row in _rows(client, drivers.run, "ended")))
    with grid.server.client() as client:
        wait_for(lambda: len(lines(tmp_path, "over")) == 8)
        wait_for(lambda: not _rows(client, drivers.run, "running"))
        over = _rows(client, drivers.run, "ended")
    assert not all(row["unread"] for row in over), "some were acknowledged, and stay for a while"
    assert drivers.resume() == "done"
    assert Counter(lines(tmp_path, "begun")) == Counter(range(8)), "none ran twice"


def _rows(client: Any, run: str, state: str) -> list[dict[str, Any]]:
    return list(client.bundle_rows(run, state))


@pytest.mark.very_slow
def test_the_next_driver_goes_on_with_what_runs_and_what_waits(
    grid: MiniGrid, store: str, tmp_path: Path
) -> None:
    drivers = drivers_of(grid, store, tmp_path)
    with drivers.killed(3, 0.5), grid.server.client() as client:
        wait_for(lambda: any(row["ready"] for row in client.runs()))
    grid.pilot("here", cores=1)
    wait_for(lambda: lines(tmp_path, "begun"))
    assert drivers.resume() == "done"
    assert Counter(lines(tmp_path, "begun")) == Counter(range(3)), "none ran twice"


@pytest.mark.very_slow
def test_drivers_that_are_killed_again_and_again(
    grid: MiniGrid, store: str, tmp_path: Path
) -> None:
    """Wherever they were: between noting and sending, between hearing and acknowledging."""
    grid.pilot("here", cores=2)
    drivers, dice = drivers_of(grid, store, tmp_path), random.Random(7)
    with drivers.killed(12, 0.1):
        wait_for(lambda: lines(tmp_path, "begun"))
    for _ in range(2):
        with drivers.killed(0, 0.0):
            time.sleep(dice.uniform(0.0, 0.5))
    assert drivers.resume() == "done"
    assert Counter(lines(tmp_path, "begun")) == Counter(range(12)), "none ran twice"


# --- everything at once -----------------------------------------------------------------


#: Each attempt of a payload leaves a line when it has done its work, and a file of 20 kB.
FIRST = (
    "yes %IN | head -c 20000 > %OUT{data.txt}; "
    "echo %IN $PANDAFLOW_ATTEMPT $PANDAFLOW_BUNDLE >> %{folder}/first"
)
SECOND = (
    "cksum < %IN; head -c 8 %IN > %OUT{head.txt}; "
    "echo $PANDAFLOW_INDEX $PANDAFLOW_ATTEMPT $PANDAFLOW_BUNDLE >> %{folder}/second"
)


@pf.workflow
def two_stages(n: int, folder: str) -> Any:
    made = pf.command(FIRST, name="first")(pf.items(range(n)), folder=folder)
    return made, pf.command(SECOND, name="second")(made, folder=folder)


class Storm:
    """Things that happen to a grid while a run goes on.

    Parameters
    ----------
    grid : MiniGrid
    postgres : PostgresServer
    done : callable
        Jobs that have ended; at shares of all of them things happen.
    n : int
        All jobs.
    """

    def __init__(
        self, grid: MiniGrid, postgres: PostgresServer, done: Callable[[], int], n: int
    ) -> None:
        self._grid, self._postgres, self._done, self._n = grid, postgres, done, n
        self._dice, self._over = random.Random(11), threading.Event()
        self.told: list[str] = []
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Storm:
        self._blowing = self._pool.submit(self._blow)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self._blowing.result()

    def _blow(self) -> None:
        for share, what in self._plan():
            while self._done() < share * self._n:
                if self._over.wait(0.05):
                    return
            what()
            self.told.append(what.__name__)

    def _plan(self) -> list[tuple[float, Callable[[], None]]]:
        events: list[tuple[float, Callable[[], None]]] = [
            (0.15, self.restart_server),
            (0.40, self.restart_postgres),
            (0.65, self.kill_server),
        ]
        events += [(share, self.kill_pilot) for share in (0.1, 0.25, 0.5, 0.75)]
        return sorted(events, key=lambda each: each[0])

    def restart_server(self) -> None:
        self._grid.server.restart()

    def kill_server(self) -> None:
        self._grid.server.kill()
        self._grid.server.start()

    def restart_postgres(self) -> None:
        self._postgres.restart()

    def kill_pilot(self) -> None:
        """Kill a pilot of the good queues, and start another, as a batch system would."""
        alive = [
            pilot
            for pilot in self._grid.pilots
            if pilot.queue in ("fast", "slow") and pilot.process.poll() is None
        ]
        victim: PilotProcess = self._dice.choice(alive)
        victim.kill()
        self._grid.pilot(victim.queue, cores=2 if victim.queue == "fast" else 1)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """One that may be restarted, without others' tests."""
    from pandaflow.testing.postgres import PostgresMissing

    try:
        server = PostgresServer()
    except PostgresMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.mark.postgres
@pytest.mark.parametrize(
    "n", [100, pytest.param(2500, marks=[pytest.mark.very_slow, pytest.mark.timeout(1800)])]
)
def test_everything_at_once(
    own_postgres: PostgresServer, store: str, tmp_path: Path, n: int
) -> None:
    """Two stages of n jobs each: the run ends ``done``, every file is right, nothing is doubled."""
    folder = tmp_path / "notes"
    folder.mkdir()

    def done() -> int:
        return sum(len(_notes(folder, name)) for name in ("first", "second"))

    with MiniGrid(own_postgres.create_database(), heartbeat=2.0) as grid:
        for name in ("fast", "slow", "hole"):
            grid.queue(name)
        grid.pilot("hole", cores=2).spoil()
        grid.pilot("fast", cores=2)
        grid.pilot("fast", cores=2)
        grid.pilot("slow", cores=1)
        began = time.monotonic()
        executor = pf.executors.Grid(grid.url, data=str(tmp_path / "data"))
        run = two_stages(n, str(folder)).submit(executor=executor, store=store)
        with Storm(grid, own_postgres, done, 2 * n) as storm:
            status = run.wait(1500)
        took = time.monotonic() - began
        held = grid.look("hole")
    assert status == "done"
    assert sorted(storm.told) == [
        *["kill_pilot"] * 4,
        *("kill_server", "restart_postgres", "restart_server"),
    ]
    assert held.state in ("held", "probing"), "the circuit breaker has cut it off"
    assert "no work directory" in held.reason
    _check_files(run, n)
    _check_notes(run, store, folder, n)
    print(f"{2 * n} jobs in {took:.1f} s; {_summary(run, store)}")


def _check_files(run: pf.Run, n: int) -> None:
    made, seen = run.result()
    for number in range(n):
        text = (f"{number}\n".encode() * 20_000)[:20_000]
        assert Path(made[number]).read_bytes() == text
        assert made[number].checksum == adler32(text)
        assert Path(seen[number]).read_bytes() == text[:8]
        assert seen[number].checksum == adler32(text[:8])


def _notes(folder: Path, name: str) -> list[tuple[int, int, int]]:
    path = folder / name
    rows = path.read_text().splitlines() if path.exists() else []
    return [(int(a), int(b), int(c)) for a, b, c in (row.split() for row in rows)]


def _check_notes(run: pf.Run, store: str, folder: Path, n: int) -> None:
    """Each job's committed attempt has left its line once, and no attempt ran twice."""
    for name in ("first", "second"):
        told = Counter(_notes(folder, name))
        jobs = [job for job in records(run, store) if job["task"] == name]
        assert len(jobs) == n
        committed = {(job["index"], job["attempt"], job["bundle"]) for job in jobs}
        assert {key: told[key] for key in committed} == dict.fromkeys(committed, 1)
        assert set(told.values()) == {1}, "no attempt ran twice"


def _summary(run: pf.Run, store: str) -> dict[str, object]:
    jobs = records(run, store)
    return {
        "sites": dict(Counter(job["site"] for job in jobs)),
        "attempts": dict(Counter(job["attempt"] for job in jobs)),
    }
