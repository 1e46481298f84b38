"""The PBS executor on a real Slurm, by the PBS commands that Slurm brings along.

Those commands know no elements of arrays, so in mode ``batch`` the executor gets one slot: then
it submits one job after the other. The rest is as on any PBS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.testing.slurm import Slurm
from pandaflow.testing.torque import Torque, TorqueMissing, torque_commands
from tests.acceptance.batch_payloads import BatchSite, held, many, two_stages, wait_for

pytestmark = pytest.mark.timeout(300)


class Site(BatchSite):
    """PBS commands, a store, and executors for runs there."""

    def __init__(self, torque: Torque, folder: Path) -> None:
        super().__init__(folder)
        self.torque = torque

    def executor(self, mode: str, **settings: Any) -> Any:
        given = {"mode": mode, "walltime": 600, "poll_seconds": 0.4, "host": "127.0.0.1"}
        given |= {"cores": 1, "max_nodes": 1} if mode == "batch" else {"cores": 2, "max_nodes": 2}
        given |= {"submit_rate": 600.0, "commands_env": self.torque.env}
        given |= {"margin": 5.0, "idle_seconds": 2.0, "patience": 12.0}
        return pf.executors.PBS("main", dialect="slurm", **{**given, **settings})

    def queue(self, *states: str) -> list[str]:
        """Return the batch jobs in the queue of Slurm (in these states)."""
        # What these commands call ended may be "completing" for a moment yet.
        wanted = states or ("PENDING", "RUNNING")
        return [job for job, state in self.torque.slurm.states().items() if state in wanted]


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Site:
    try:
        return Site(Torque(slurm, torque_commands()), tmp_path)
    except TorqueMissing as error:
        pytest.skip(str(error))


both_modes = pytest.mark.parametrize("mode", ["pilots", "batch"])


@both_modes
def test_two_stages(site: Site, mode: str) -> None:
    run = two_stages(24).run(executor=site.executor(mode), store=site.store, progress=False)
    assert run.result() == 10 * sum(2 * x for x in range(24))
    assert all(job["attempt"] == 1 for job in run.jobs())
    assert site.queue() == []


@pytest.mark.parametrize(("mode", "slots", "jobs"), [("pilots", 4, 10), ("batch", 1, 2)])
def test_what_an_operator_deletes_is_replaced(site: Site, mode: str, slots: int, jobs: int) -> None:
    with held(site.folder):  # so there is work for another batch job, whenever it comes
        run = site.submit(many(jobs, str(site.folder), 0.5), mode)
        # Every batch job that runs has begun something; a pilot lets it end, if it may.
        wait_for(lambda: len(site.begun()) >= slots)
        known = set(site.torque.slurm.states())
        site.torque.run(["qdel", site.queue("RUNNING")[0]])
        wait_for(lambda: bool(set(site.torque.slurm.states()) - known))
    assert run.wait(90) == "done"  # without any retry
    assert set(site.begun()) == set(range(jobs))
    attempts = [a for job in range(jobs) for a in site.attempts(run, "counted", job)]
    assert not any(one["charged"] for one in attempts)
    assert site.queue() == []


@both_modes
def test_cancel_leaves_nothing(site: Site, mode: str) -> None:
    run = site.submit(many(20, str(site.folder), 60.0), mode)
    wait_for(lambda: bool(site.begun()))
    run.cancel()
    assert run.wait(60) == "aborted"
    assert site.queue() == []


def test_arrays_are_refused_with_the_way_out(site: Site) -> None:
    run = site.submit(many(20, str(site.folder), 0.0), "batch", cores=2, max_nodes=2)
    assert run.wait(60) == "failed"
    with pytest.raises(pf.RunFailed, match=r"does not tell the elements of an array apart.*Slurm"):
        run.result()
    assert site.begun() == []
