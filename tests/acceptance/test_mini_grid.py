"""The grid as a whole, in little: what long tests show by thousands of jobs and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

from pandaflow.testing.sites import MiniGrid
from tests.acceptance.grid_storm import Storm, TwoStages


@pytest.mark.timeout(180)
def test_a_workflow_survives_its_grid(store: str, tmp_path: Path) -> None:
    """Two stages with files; the server is restarted, a pilot killed, a queue is a black hole."""
    n = 150
    with MiniGrid(heartbeat=2.0) as grid:
        work = TwoStages(grid, store, tmp_path, n)
        work.add("fast", 2)
        work.add("slow", 1)
        work.add_hole("hole")
        plan = {0.2: work.kill_pilot, 0.5: grid.server.restart}
        with Storm(work.done, 2 * n, plan) as storm:
            assert work.wait(150) == "done"
    assert storm.told == len(plan)
    work.check()
