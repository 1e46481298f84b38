"""One batch job per bundle, on a real Slurm, and what may happen to batch jobs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.testing.slurm import Slurm
from tests.acceptance.batch_payloads import BatchSite, counted, double, held, many, wait_for

pytestmark = pytest.mark.timeout(240)

MB = 2**20


@pf.task
def nap(x: int) -> int:
    time.sleep(0.5)
    return x + 1


@pf.workflow
def short_and_long(short: int, longer: int) -> Any:
    return double(double(pf.items(range(short)))), nap(pf.items(range(longer)))


class Site(BatchSite):
    """A Slurm, a store, and executors for runs there."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        super().__init__(folder)
        self.slurm = slurm
        self.settings = settings_of(slurm.env["SLURM_CONF"])

    def executor(self, partition: str | None = None, **settings: Any) -> Any:
        return pf.executors.Slurm(partition, **{**self.settings, **settings})

    def live(self, *states: str) -> list[str]:
        """Return the batch jobs in the queue (in these states)."""
        wanted = states or ("PENDING", "RUNNING", "COMPLETING")
        return [job for job, state in self.slurm.states().items() if state in wanted]


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Site:
    return Site(slurm, tmp_path)


# --- the smooth path --------------------------------------------------------------------


def test_a_thousand_short_jobs_and_fifty_longer_ones(site: Site) -> None:
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.2):
            most = max(most, len(site.live("PENDING")))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run = site.submit(short_and_long(500, 50))
        assert run.wait(200) == "done"
    finally:
        ended.set()
        thread.join()
    short, longer = run.result()
    assert short == [4 * x for x in range(500)] and longer == [x + 1 for x in range(50)]
    assert site.live() == []
    assert most <= 16, "no more elements wait in the queue than there are slots"
    assert all(job["attempt"] == 1 for job in run.jobs())


def test_elements_get_what_their_task_asks_for(site: Site) -> None:
    asked = counted.options(cores=2, memory="300MB", walltime="90s")

    @pf.workflow
    def flow() -> Any:
        return asked(pf.items([7]), str(site.folder))

    with held(site.folder):
        run = site.submit(flow(), account="physics", prologue="export CHOSEN=yes")
        wait_for(lambda: site.live("RUNNING") != [])
        shown = site.slurm.show(site.live("RUNNING")[0])
    assert (shown["NumCPUs"], shown["TimeLimit"], shown["Account"]) == ("2", "00:03:00", "physics")
    assert shown["MinMemoryNode"] == f"{300_000_000 // MB + 257}M"
    assert run.wait(60) == "done"


# --- jobs that fail ---------------------------------------------------------------------


def test_failures_of_jobs_are_theirs(site: Site) -> None:
    @pf.task(retries=1)
    def raises(x: int) -> int:
        raise ValueError(f"no {x}")

    @pf.task
    def leaves(x: int) -> int:
        os._exit(3)

    @pf.task
    def dies_once(x: int) -> int:
        if pf.current_job().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    @pf.workflow
    def flow() -> Any:
        one = pf.items([5])
        return raises(one), leaves(one), dies_once(one), double(one)

    run = site.submit(flow())
    assert run.wait(120) == "failed"
    assert run.result(partial=True) == ([], [], [5], [10])
    assert [a["charged"] for a in site.attempts(run, "raises")] == [True, True]
    lost = site.attempts(run, "leaves")
    assert [(a["failure"]["kind"], a["charged"]) for a in lost] == [("lost", False)] * 3
    assert "exit code 3" in lost[0]["failure"]["message"]
    assert "signal 9" in site.attempts(run, "dies_once")[0]["failure"]["message"]
    assert site.live() == []


def test_a_job_that_takes_too_much_memory_gets_more(site: Site) -> None:
    if not site.slurm.cgroups:
        pytest.skip("memory is a limit of batch jobs where there are control groups")

    @pf.task(memory="50MB", retries=pf.Retry(retries=1, memory_factor=20))
    def greedy(x: int) -> int:
        return len(bytes(600 * MB).replace(b"\0", b"1", 1)) * x

    @pf.workflow
    def flow() -> Any:
        return greedy(pf.items([1]))

    run = site.submit(flow())
    assert run.wait(90) == "done"
    first, second = site.attempts(run, "greedy")
    assert (first["failure"]["kind"], first["charged"], second["status"]) == (
        "memory",
        True,
        "finished",
    )


@pytest.mark.slow
def test_a_job_at_the_walltime_gets_more(site: Site) -> None:
    again = counted.options(walltime=300, retries=pf.Retry(retries=1, walltime_factor=1.5))

    @pf.workflow
    def flow() -> Any:
        return again(pf.items([1]), str(site.folder), 100.0)

    run = site.submit(flow())
    wait_for(lambda: bool(site.begun()))
    site.slurm.end_now(site.live("RUNNING")[0])
    assert run.wait(120) == "done"
    first, second = site.attempts(run, "counted")
    assert (first["failure"]["kind"], first["charged"], second["status"]) == (
        "walltime",
        True,
        "finished",
    )
    assert site.live() == []


# --- faults of the site -----------------------------------------------------------------


def test_what_an_operator_cancels_runs_again(site: Site) -> None:
    run = site.submit(many(8, str(site.folder), 60.0))
    wait_for(lambda: len(site.begun()) == 8)
    site.slurm.run(["scancel", *{job.partition("_")[0] for job in site.live("RUNNING")}])
    assert run.wait(90) == "done"  # without any retry
    assert sorted(site.begun()) == [x for x in range(8) for _ in range(2)]
    assert not any(site.attempts(run, "counted", x)[0]["charged"] for x in range(8))
    assert site.live() == []


def test_a_node_that_breaks_hands_its_jobs_to_others(site: Site) -> None:
    with held(site.folder):  # none has ended when the last begins
        run = site.submit(many(16, str(site.folder), 1.0))
        wait_for(lambda: len(site.begun()) == 16)
        site.slurm.down(site.slurm.nodes[1])
    assert run.wait(120) == "done"
    again = [job for job, times in Counter(site.begun()).items() if times == 2]
    assert len(site.begun()) == 20 and len(again) == 4
    assert site.live() == []


@pytest.mark.parametrize("how", ["restarts", "dies"])
def test_a_controller_that_goes_away_is_waited_for(site: Site, how: str) -> None:
    run = site.submit(many(24, str(site.folder), 1.0))
    wait_for(lambda: len(site.begun()) >= 4)
    if how == "dies":
        site.slurm.kill_controller()  # it forgets the latest jobs, or that they have started
    site.slurm.restart_controller()
    if how == "dies":
        for node in site.slurm.nodes:  # it may have forgotten its nodes, too
            site.slurm.restart_slurmd(node)
    assert run.wait(120) == "done"
    assert set(site.begun()) == set(range(24))
    wait_for(lambda: site.live() == [])


def test_what_is_refused_fails_with_the_words_of_the_system(site: Site) -> None:
    run = site.submit(many(3, str(site.folder), 0.0), "nowhere")
    assert run.wait(60) == "failed"
    with pytest.raises(pf.RunFailed, match="invalid partition specified: nowhere"):
        run.result()
    assert not any(a["charged"] for a in site.attempts(run, "counted"))


def test_elements_that_cannot_begin_fail_with_their_output(site: Site) -> None:
    prologue = ("echo no such module: physics >&2", "exit 4")
    run = site.submit(many(2, str(site.folder), 0.0), prologue=prologue)
    assert run.wait(90) == "failed"
    with pytest.raises(pf.RunFailed, match=r"exit code 4.*no such module: physics"):
        run.result()
    assert site.begun() == []


def test_a_job_larger_than_a_node_says_so(site: Site) -> None:
    @pf.workflow
    def flow() -> Any:
        return double.options(cores=64)(pf.items([1]))

    run = site.submit(flow())
    assert run.wait(60) == "failed"
    with pytest.raises(pf.RunFailed, match=r"fits nowhere: .*asks for 64 cores and it has 4"):
        run.result()


def test_cancel_leaves_nothing(site: Site) -> None:
    run = site.submit(many(40, str(site.folder), 60.0))
    wait_for(lambda: len(site.begun()) >= 4)
    run.cancel()
    assert run.wait(60) == "aborted"
    assert site.live() == []


def settings_of(conf: str) -> dict[str, Any]:
    return {
        "mode": "batch",
        "cores": 4,
        "max_nodes": 4,
        "walltime": 600,
        "poll_seconds": 0.3,
        "submit_rate": 600.0,
        "commands_env": {"SLURM_CONF": conf},
    }
