"""The same job as dask-jobqueue would ask for it, where it is installed."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from pandaflow.executors.batch.lsf import LSF
from pandaflow.executors.batch.model import Backend, BatchRequest
from pandaflow.executors.batch.pbs import PBS
from pandaflow.executors.batch.sge import SGE
from pandaflow.executors.batch.slurm import Slurm

REQUEST = BatchRequest(
    name="dask-worker", queue="main", account="physics", walltime=5400, cores=4, memory=3 * 10**9
)
#: Long names of options that dask-jobqueue writes short.
LONG = {
    "-J": "--job-name",
    "-p": "--partition",
    "-A": "--account",
    "-t": "--time",
    "-n": "--ntasks-per-node",
}


def options(script: str, prefix: str) -> set[tuple[str, str]]:
    found = set()
    for line in script.splitlines():
        if line.startswith(f"{prefix} "):
            words = shlex.split(line[len(prefix) :].replace("=", " ", line.count("--")))
            key, value = words[0], " ".join(words[1:])
            found.add((LONG.get(key, key) if prefix == "#SBATCH" else key, value))
    return found


@pytest.mark.parametrize(
    ("backend", "job", "more", "same"),
    [
        (
            Slurm(),
            "slurm.SLURMJob",
            {"account": "physics", "walltime": "01:30:00"},
            {"--job-name", "--partition", "--account", "--time", "--cpus-per-task"},
        ),
        (
            SGE(),
            "sge.SGEJob",
            {"project": "physics", "walltime": "5400", "resource_spec": "h_vmem=750000000"},
            {"-N", "-q", "-P", "-l", "-j"},
        ),
        (
            PBS(),
            "pbs.PBSJob",
            {"account": "physics", "walltime": "01:30:00"},
            {"-N", "-q", "-A"},
        ),
        (
            LSF(),
            "lsf.LSFJob",
            {"project": "physics", "walltime": "90", "use_stdin": True, "lsf_units": "kb"},
            {"-J", "-q", "-P", "-W", "-n"},
        ),
    ],
    ids=["slurm", "sge", "pbs", "lsf"],
)
def test_dask_jobqueue_asks_for_the_same(
    backend: Backend, job: str, more: dict[str, Any], same: set[str]
) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    module, kind = job.split(".")
    settings = {"queue": "main", "cores": 4, "memory": "3GB", "processes": 1} | more
    theirs = getattr(getattr(jobqueue, module), kind)("tcp://127.0.0.1:9", name="a", **settings)
    wanted = options(theirs.job_script(), backend.prefix)
    lines = "\n".join(f"{backend.prefix} {line}" for line in backend.directives(REQUEST))
    ours = options(lines, backend.prefix)
    assert {key for key, _ in wanted} >= same
    assert {pair for pair in wanted if pair[0] in same} <= ours
