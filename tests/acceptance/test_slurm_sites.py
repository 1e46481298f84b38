"""Batch jobs on several partitions, and over several nodes, of a real Slurm."""

from __future__ import annotations

import ctypes
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.store.sql import open_store
from pandaflow.testing.slurm import Slurm
from tests.acceptance.test_slurm_batch import settings_of, wait_for

pytestmark = pytest.mark.timeout(240)


@pf.task
def nap(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x


@pf.workflow
def naps(n: int, seconds: float) -> Any:
    return nap(pf.items(range(n)), seconds)


class Partitions:
    """A Slurm with the sites ``wide`` (two nodes) and ``tight`` (two cores, little memory)."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        self.store = f"sqlite:///{folder}/store.db"

    def run(self, flow: Any, *sites: pf.Site, **settings: Any) -> pf.Run:
        given = {**settings_of(self.slurm.env["SLURM_CONF"]), "memory": "1600 MB", **settings}
        executor = pf.executors.Slurm(**given, sites=sites)
        return flow.submit(executor=executor, store=self.store)

    def records(self, run: pf.Run) -> list[dict[str, Any]]:
        return list(open_store(self.store).reader().jobs(run.id))


WIDE = pf.Site("wide", queue="main", nodes=2)
TIGHT = pf.Site("tight", queue="small", nodes=1, cores=2, memory="480 MB", walltime=300)


@pytest.fixture
def partitions(slurm: Slurm, tmp_path: Path) -> Partitions:
    return Partitions(slurm, tmp_path)


def used(slurm: Slurm) -> Counter[str]:
    """Return how many batch jobs are in each partition's part of the queue."""
    return Counter(slurm.run(["squeue", "-h", "-r", "-o", "%P"]).stdout.split())


def test_jobs_go_where_they_fit_and_where_there_is_room(partitions: Partitions) -> None:
    run = partitions.run(naps(14, 2.0), TIGHT, WIDE)
    wait_for(lambda: used(partitions.slurm)["main"] > 0 and used(partitions.slurm)["small"] > 0)
    seen = used(partitions.slurm)
    assert seen["main"] <= 8 and seen["small"] <= 2, "never more than there is room for"
    assert run.wait(90) == "done"
    assert Counter(job["site"] for job in partitions.records(run)).keys() == {"wide", "tight"}
    assert used(partitions.slurm) == Counter()


def test_what_fits_one_site_only_goes_there(partitions: Partitions) -> None:
    @pf.workflow
    def flow() -> Any:
        return nap.options(memory="700 MB")(pf.items(range(3)), 0.0)

    run = partitions.run(flow(), TIGHT, WIDE)
    assert run.wait(60) == "done"
    assert {job["site"] for job in partitions.records(run)} == {"wide"}


def test_what_fits_nowhere_fails_at_once_and_says_why(partitions: Partitions) -> None:
    @pf.workflow
    def flow() -> Any:
        return nap.options(cores=3, walltime=900)(pf.items([1]), 0.0)

    run = partitions.run(flow(), TIGHT, WIDE)
    assert run.wait(60) == "failed"
    with pytest.raises(pf.RunFailed, match=r"nap fits nowhere: not at tight: asks for 3 cores .*"):
        run.result()
    assert partitions.records(run)[0]["attempt"] == 1
    assert used(partitions.slurm) == Counter()


def test_a_site_that_refuses_is_left_for_the_next(partitions: Partitions) -> None:
    closed = pf.Site("closed", queue="nowhere", nodes=4)
    run = partitions.run(naps(6, 0.1), closed, WIDE)
    assert run.wait(60) == "done"
    assert {job["site"] for job in partitions.records(run)} == {"wide"}


def test_jobs_that_all_sites_refuse_fail_with_what_each_said(partitions: Partitions) -> None:
    sites = [pf.Site("one", queue="nowhere"), pf.Site("two", queue="elsewhere")]
    run = partitions.run(naps(2, 0.0), *sites)
    assert run.wait(90) == "failed"
    with pytest.raises(pf.RunFailed, match=r"nowhere.*elsewhere|elsewhere.*nowhere"):
        run.result()


def test_two_executors_of_one_run_keep_out_of_each_other_s_way(partitions: Partitions) -> None:
    @pf.workflow
    def flow() -> Any:
        first = nap.options(name="first", executor="one")(pf.items(range(6)), 0.1)
        return nap.options(name="second", executor="two")(first, 0.1)

    conf = settings_of(partitions.slurm.env["SLURM_CONF"])
    executors = {"one": pf.executors.Slurm("main", **conf), "two": pf.executors.Slurm(**conf)}
    run = flow().submit(executors=executors, store=partitions.store)
    assert run.wait(60) == "done"
    assert run.result() == list(range(6))
    assert used(partitions.slurm) == Counter()


# --- several nodes ----------------------------------------------------------------------

RANKS = pf.command(
    "srun --cpu-bind=none sh -c 'echo $SLURM_NODEID $SLURM_PROCID $SLURM_NTASKS' && "
    "echo $PANDAFLOW_NODES $PANDAFLOW_RANKS_PER_NODE $SLURM_JOB_NUM_NODES : %{number}",
    name="ranks",
)


def test_a_job_of_several_nodes_starts_its_ranks_on_all_of_them(partitions: Partitions) -> None:
    @pf.workflow
    def flow() -> Any:
        asked = RANKS.options(nodes=2, ranks_per_node=2, cores=1, walltime=120)
        return asked(number=pf.items([7, 8]))

    run = partitions.run(flow(), WIDE)
    assert run.wait(90) == "done"
    for number, printed in zip((7, 8), run.result(), strict=True):
        *ranks, last = printed.splitlines()
        assert sorted(ranks) == ["0 0 4", "0 1 4", "1 2 4", "1 3 4"]
        assert last == f"2 2 2 : {number}"
    assert used(partitions.slurm) == Counter()


PROGRAM = """
import ctypes
mpi = ctypes.CDLL("libmpich.so.12")
WORLD, INT, SUM = 0x44000000, 0x4C000405, 0x58000003  # of MPICH's ABI
mpi.MPI_Init(None, None)
rank, size, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
mpi.MPI_Comm_rank(WORLD, ctypes.byref(rank))
mpi.MPI_Comm_size(WORLD, ctypes.byref(size))
mpi.MPI_Allreduce(ctypes.byref(rank), ctypes.byref(total), 1, INT, SUM, WORLD)
if rank.value == 0:
    print(size.value, "ranks, sum", total.value)
mpi.MPI_Finalize()
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The command of an MPI program that adds up the numbers of its ranks."""
    try:
        ctypes.CDLL("libmpich.so.12")
    except OSError:
        pytest.skip("MPICH is not here")
    if shutil.which("mpiexec.hydra") is None:
        pytest.skip("MPICH's mpiexec is not here")
    (tmp_path / "sum.py").write_text(PROGRAM)
    return f"{sys.executable} {tmp_path}/sum.py"


@pytest.mark.slow
def test_an_mpi_program_runs_over_two_nodes(partitions: Partitions, program: str) -> None:
    ranks = pf.command(f"mpiexec.hydra -n 4 {program} && : %{{number}}", name="mpi")

    @pf.workflow
    def flow() -> Any:
        return ranks.options(nodes=2, ranks_per_node=2, walltime=120)(number=pf.items([1, 2]))

    run = partitions.run(flow(), WIDE)
    assert run.wait(120) == "done"
    assert run.result() == ["4 ranks, sum 6"] * 2
    assert used(partitions.slurm) == Counter()
