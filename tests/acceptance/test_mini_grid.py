"""The grid as a whole, in little: what long tests show by thousands of jobs and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow.testing.sites import MiniGrid
from tests.acceptance.grid_storm import Storm, TwoStages
from tests.acceptance.grid_work import PATIENCE, wait_for


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


@pf.workflow
def one_file(path: str) -> Any:
    return pf.command("cat %IN", name="show")(pf.items([pf.File(path)]))


@pytest.mark.timeout(180)
def test_a_job_does_not_go_back_to_the_site_that_spoiled_it(store: str, tmp_path: Path) -> None:
    """The black hole is free all the time, but three losses would be the end of the job."""
    given = tmp_path / "given"
    given.write_text("what it was")
    with MiniGrid(heartbeat=2.0) as grid:
        for name in ("hole", "good"):
            grid.queue(name)
        hole = grid.pilot("hole", cores=2)
        hole.spoil()
        executor = pf.executors.Grid(grid.url, wait=0.5)
        run = one_file(str(given)).submit(executor=executor, store=store)
        wait_for(lambda: "no room" in hole.log or "begins" in hole.log)
        wait_for(lambda: _ready(grid))
        grid.pilot("good", cores=1)
        assert run.wait(PATIENCE) == "done"
        assert run.result() == ["what it was"]
        assert hole.log.count("begins") == 1
        (job,) = run.jobs()
    assert job["attempt"] == 1, "the site's fault is not charged"


def _ready(grid: MiniGrid) -> bool:
    """Whether the pool has the next attempt, which the black hole does not get."""
    with grid.server.client(retries=4) as client:
        rows = [row for run in client.runs() for row in client.bundle_rows(run["run"])]
    return {"lost", "ready"} <= {row["state"] for row in rows}
