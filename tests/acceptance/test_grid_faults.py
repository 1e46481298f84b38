"""What may happen to runs on the grid: drivers, servers, databases, pilots and sites go away."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.sites import MiniGrid
from tests.acceptance.drivers import Drivers
from tests.acceptance.grid_storm import Flaky, Storm, TwoStages
from tests.acceptance.grid_work import lines, wait_for

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
    "n", [100, pytest.param(2500, marks=[pytest.mark.very_slow, pytest.mark.timeout(900)])]
)
def test_everything_at_once(
    own_postgres: PostgresServer, store: str, tmp_path: Path, n: int
) -> None:
    """Two stages of n jobs on a fast, a flaky and a slow queue, and one that is a black hole.

    Pilots are killed at random, the server is restarted and killed, PostgreSQL is restarted.
    """
    with MiniGrid(own_postgres.create_database(), heartbeat=2.0) as grid:
        work = TwoStages(grid, store, tmp_path, n)
        for name, cores in (("fast", 2), ("fast", 2), ("slow", 1)):
            work.add(name, cores)
        work.add_hole("hole")
        plan = {
            0.15: grid.server.restart,
            0.40: own_postgres.restart,
            0.65: work.kill_server,
            **dict.fromkeys((0.1, 0.25, 0.5, 0.75), work.kill_pilot),
        }
        with Flaky(work, "flaky"), Storm(work.done, 2 * n, plan) as storm:
            status = work.wait(800)
        held = grid.look("hole")
    assert status == "done"
    assert storm.told == len(plan)
    assert held.state in ("held", "probing"), "the circuit breaker has cut it off"
    assert "no work directory" in held.reason
    work.check()
    print(f"{2 * n} jobs in {work.took:.1f} s; {work.summary()}")
