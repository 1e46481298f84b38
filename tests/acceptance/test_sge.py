"""Workflows on a real Grid Engine of one host, in both modes, and what may happen to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.testing.gridengine import GridEngine
from tests.acceptance.batch_payloads import BatchSite, many, two_stages, wait_for

pytestmark = pytest.mark.timeout(300)


@pf.task
def picky(x: int) -> int:
    if x == 2:
        raise ValueError(f"no {x}")
    return x


@pf.workflow
def picking(n: int) -> Any:
    return picky(pf.items(range(n)))


class Site(BatchSite):
    """A Grid Engine, a store, and executors for runs there."""

    def __init__(self, cluster: GridEngine, folder: Path) -> None:
        super().__init__(folder)
        self.cluster = cluster

    def executor(self, mode: str, **settings: Any) -> Any:
        given = {"mode": mode, "cores": 2, "max_nodes": 2, "walltime": 600, "poll_seconds": 0.4}
        given |= {"submit_rate": 600.0, "commands_env": self.cluster.env, "host": "127.0.0.1"}
        given |= {"margin": 5.0, "idle_seconds": 2.0, "patience": 12.0}
        return pf.executors.SGE(**{**given, **settings})

    def queue(self, *states: str) -> list[str]:
        """Return the batch jobs in the queue (in these states), elements one by one."""
        found = self.cluster.states().items()
        return [job for job, state in found if not states or state in states]

    def delete_one(self) -> None:
        """Delete a batch job that runs; the one that was seen may just have ended."""

        def deleted() -> bool:
            running = self.queue("r", "t")
            return (
                bool(running)
                and not self.cluster.run(["qdel", running[-1]], check=False).returncode
            )

        wait_for(deleted)


@pytest.fixture
def site(gridengine: GridEngine, tmp_path: Path) -> Site:
    return Site(gridengine, tmp_path)


both_modes = pytest.mark.parametrize("mode", ["pilots", "batch"])


@both_modes
def test_two_stages(site: Site, mode: str) -> None:
    run = two_stages(24).run(executor=site.executor(mode), store=site.store, progress=False)
    assert run.result() == 10 * sum(2 * x for x in range(24))
    assert all(job["attempt"] == 1 for job in run.jobs())
    assert site.queue() == []


@both_modes
def test_a_job_that_fails_is_to_blame(site: Site, mode: str) -> None:
    run = site.submit(picking(4), mode)
    assert run.wait(60) == "failed"
    assert run.result(partial=True) == [0, 1, 3]
    (failed,) = site.attempts(run, "picky", 2)
    assert "no 2" in failed["failure"]["message"] and failed["charged"]
    assert site.queue() == []


def test_a_job_over_the_limit_of_the_queue_has_failed(site: Site) -> None:
    # A limit of the site's own: Grid Engine ends the batch job, before the job's walltime does.
    run = site.submit(many(1, str(site.folder), 60.0), "batch", extra=("-l h_rt=3",))
    assert run.wait(60) == "failed"
    (failed,) = site.attempts(run, "counted")
    assert (failed["failure"]["kind"], failed["charged"]) == ("walltime", True)
    assert site.queue() == []


@both_modes
def test_cancel_leaves_nothing(site: Site, mode: str) -> None:
    run = site.submit(many(40, str(site.folder), 60.0), mode)
    wait_for(lambda: len(site.begun()) >= 4)
    run.cancel()
    assert run.wait(60) == "aborted"
    assert site.queue() == []


@both_modes
def test_what_an_operator_deletes_runs_again(site: Site, mode: str) -> None:
    run = site.submit(many(8, str(site.folder), 2.0), mode)
    wait_for(lambda: len(site.begun()) >= 4)  # so every batch job that runs has begun something
    site.delete_one()
    assert run.wait(90) == "done"  # without any retry
    assert set(site.begun()) == set(range(8)) and len(site.begun()) > 8
    attempts = [one for job in range(8) for one in site.attempts(run, "counted", job)]
    assert not any(one["charged"] for one in attempts if one["status"] == "failed")
    assert site.queue() == []
