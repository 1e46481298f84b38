"""What others ask for and read of the same jobs: dask-jobqueue, psij-python."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pandaflow.executors.batch.answers import duration, size
from pandaflow.executors.batch.htcondor import HTCondor
from pandaflow.executors.batch.lsf import LSF
from pandaflow.executors.batch.model import Backend, BatchRequest, BatchStatus, JobRef
from pandaflow.executors.batch.pbs import PBS
from pandaflow.executors.batch.sge import SGE
from pandaflow.executors.batch.slurm import Slurm
from pandaflow.testing import slurm as cluster

REQUEST = BatchRequest(
    name="dask-worker", queue="main", account="physics", walltime=5400, cores=4, memory=3 * 10**9
)

# --- dask-jobqueue: what is asked for -------------------------------------------------------


def words(script: str, prefix: str) -> list[tuple[str, str]]:
    """Return the options of a script, in order: ``--key=value`` as ``-k value``."""
    found = []
    for line in script.splitlines():
        if line.startswith(f"{prefix} "):
            key, *values = shlex.split(line[len(prefix) :])
            long, _, value = key.partition("=")
            found.append((long, " ".join([value, *values] if value else values)))
    return found


def of_slurm(script: str) -> dict[str, Any]:
    short = {"-J": "--job-name", "-p": "--partition", "-A": "--account", "-t": "--time"}
    said = {short.get(key, key): value for key, value in words(script, "#SBATCH")}
    return {
        "name": said["--job-name"],
        "queue": said["--partition"],
        "account": said["--account"],
        "walltime": duration(said["--time"]),
        "cores": int(said["--cpus-per-task"]),
        "memory": size(said["--mem"], "m"),
    }


def of_sge(script: str) -> dict[str, Any]:
    said = words(script, "#$")
    limits = dict(value.split("=") for key, value in said if key == "-l")
    one = dict(said)
    return {
        "name": one["-N"],
        "queue": one["-q"],
        "account": one["-P"],
        "walltime": duration(limits["h_rt"]),
        # Per slot, in both.
        "memory": 4 * (size(limits["h_vmem"]) or 0),
    }


def of_pbs(script: str) -> dict[str, Any]:
    said = words(script, "#PBS")
    limits = dict(part.split("=", 1) for key, value in said for part in [value] if key == "-l")
    count, *chunk = limits["select"].split(":")
    each = dict(part.split("=") for part in chunk)
    one = dict(said)
    return {
        "name": one["-N"],
        "queue": one["-q"],
        "account": one["-A"],
        "walltime": duration(limits["walltime"]),
        "cores": int(count) * int(each["ncpus"]),
        "memory": size(each["mem"]),
    }


def of_lsf(script: str) -> dict[str, Any]:
    said = dict(words(script, "#BSUB"))
    return {
        "name": said["-J"],
        "queue": said["-q"],
        "account": said["-P"],
        "walltime": 60.0 * int(said["-W"]),
        "cores": int(said["-n"]),
        "memory": int(said["-M"]) * 1024,
    }


def of_condor(script: str) -> dict[str, Any]:
    """Let HTCondor's own parser and ClassAds say what a description asks for."""
    htcondor2 = pytest.importorskip("htcondor2")
    classad2 = pytest.importorskip("classad2")
    submit = htcondor2.Submit(script)
    mine = {key[3:]: submit[key] for key in submit if key.lower().startswith("my.")}
    ad = classad2.ClassAd("[" + ";".join(f"{k} = {v}" for k, v in mine.items()) + "]")

    def number(key: str) -> int:
        ad["Asked"] = classad2.ExprTree(submit.expand(key))
        return int(ad.eval("Asked"))

    return {
        "name": submit.expand("batch_name"),
        "account": submit.expand("accounting_group"),
        "cores": number("request_cpus"),
        "memory": number("request_memory") * 2**20,
    }


ASKED = {
    "name": "dask-worker",
    "queue": "main",
    "account": "physics",
    "walltime": 5400.0,
    "cores": 4,
    "memory": 3 * 10**9,
}


@pytest.mark.parametrize(
    ("backend", "job", "more", "read"),
    [
        (
            Slurm(),
            "slurm.SLURMJob",
            {"queue": "main", "account": "physics", "walltime": "01:30:00"},
            of_slurm,
        ),
        (
            SGE(),
            "sge.SGEJob",
            {
                "queue": "main",
                "project": "physics",
                "walltime": "5400",
                "resource_spec": "h_vmem=750000000",
            },
            of_sge,
        ),
        (
            PBS(),
            "pbs.PBSJob",
            {"queue": "main", "account": "physics", "walltime": "01:30:00"},
            of_pbs,
        ),
        (
            LSF(),
            "lsf.LSFJob",
            {
                "queue": "main",
                "project": "physics",
                "walltime": "90",
                "use_stdin": True,
                "lsf_units": "kb",
            },
            of_lsf,
        ),
        (
            HTCondor(),
            "htcondor.HTCondorJob",
            {
                "disk": "1GB",
                "job_extra_directives": {
                    "accounting_group": "physics",
                    "batch_name": "dask-worker",
                },
            },
            of_condor,
        ),
    ],
    ids=["slurm", "sge", "pbs", "lsf", "htcondor"],
)
def test_dask_jobqueue_asks_for_the_same(
    backend: Backend, job: str, more: dict[str, Any], read: Callable[[str], dict[str, Any]]
) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    module, kind = job.split(".")
    settings = {"cores": 4, "memory": "3GB", "processes": 1} | more
    made = getattr(getattr(jobqueue, module), kind)("tcp://127.0.0.1:9", name="a", **settings)
    theirs, ours = read(made.job_script()), read(our_script(backend))
    assert theirs.keys() == ours.keys()
    exact = ours.keys() - {"memory"}
    assert {key: ours[key] for key in exact} == {key: ASKED[key] for key in exact}
    if isinstance(backend, HTCondor):
        del theirs["name"], ours["name"]  # theirs comes twice: it is the worker's
        exact -= {"name"}
    assert {key: theirs[key] for key in exact} == {key: ours[key] for key in exact}
    # Units differ, and with them what it takes to hold 3 GB; ours is never less, by a unit at most.
    assert 3 * 10**9 <= ours["memory"] < 3 * 10**9 + 2**20
    assert 0.99 < theirs["memory"] / ours["memory"] < 1.1


def our_script(backend: Backend) -> str:
    if isinstance(backend, HTCondor):
        return backend.describe("/a/job.sh", replace(REQUEST, queue=None))[1]
    return "\n".join(f"{backend.prefix} {line}" for line in backend.directives(REQUEST))


# --- psij-python: what answers mean ---------------------------------------------------------

CAPTURES = Path(__file__).resolve().parents[5] / "shared" / "components" / "captures"
#: Its requirements are older than ours: it has a folder of its own, and only what it must have.
PSIJ = ("psij-python==0.9.11", "typeguard==4.5.2", "pystache==0.6.8")
ASK_PSIJ = """
import json, sys
from importlib import import_module
module, kind = sys.argv[1:]
parser = getattr(import_module(f"psij.executors.batch.{module}"), kind)
# Without its threads: they would look for a batch system.
found = parser.parse_status_output(object.__new__(parser), 0, sys.stdin.read())
print(json.dumps({job: status.state.name for job, status in found.items()}))
"""


@pytest.fixture(scope="module")
def psij() -> Path:
    """A folder with psij-python, installed the first time."""
    folder = Path(sys.prefix) / "oracles" / "psij-0.9.11"
    if not (folder / "psij").is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        done = subprocess.run([*install, str(folder), *PSIJ], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"psij-python cannot be installed: {done.stderr.strip()[-200:]}")
    return folder


def read_by_psij(folder: Path, module: str, kind: str, answer: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK_PSIJ, module, kind],
        env={"PYTHONPATH": str(folder)},
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


#: What psij says for our states; it has no words for limits, faults of nodes and holds.
MEANS = {
    "pending": {"QUEUED"},
    "held": {"QUEUED"},
    "running": {"ACTIVE"},
    "completing": {"ACTIVE"},
    "done": {"COMPLETED"},
    "cancelled": {"CANCELED"},
    "failed": {"FAILED"},
    "timeout": {"FAILED"},
    "out_of_memory": {"FAILED"},
    "node_fail": {"FAILED"},
    "preempted": {"FAILED"},
}


def apart(
    theirs: Mapping[str, str], ours: Mapping[JobRef, BatchStatus]
) -> dict[str, tuple[str, str]]:
    """Return where the two differ: their state and ours, by id."""
    named = {one.id if one.index is None else element(*ref): one for ref, one in ours.items()}
    both = theirs.keys() & named.keys()
    return {
        job: (theirs[job], named[job].state)
        for job in both
        if theirs[job] not in MEANS[named[job].state]
    }


def element(job: str, index: int | None) -> str:
    return job.replace("[]", f"[{index}]")


#: Both are about jobs that were deleted. One that waits, or traps the signal while it runs, is
#: said to have completed; one that shows the signal that ended it is said to have failed.
#: (And the exit status 265, of a job that killed itself, to be a cancellation.)
PSIJ_IS_WRONG = {("COMPLETED", "cancelled"), ("FAILED", "cancelled"), ("CANCELED", "failed")}


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no recorded outputs here")
def test_psij_reads_the_same_in_histories_of_pbs_but_for_its_mistakes(psij: Path) -> None:
    compared, wrong = 0, set()
    for name in ("xtf_json", "xf_json_after_all", "xtf_json_array_cancelled"):
        recorded = (CAPTURES / "pbs" / f"qstat_{name}.txt").read_text().split("\n", 2)[2]
        theirs = read_by_psij(psij, "pbs", "PBSJobExecutor", recorded)
        ours = PBS().parse_history(recorded, "", 0)
        compared += len(theirs.keys() & {element(*ref) for ref in ours})
        wrong |= set(apart(theirs, ours).values())
    assert compared > 60
    assert wrong == PSIJ_IS_WRONG


@pytest.fixture(scope="module")
def site() -> Any:
    try:
        running = cluster.Slurm(nodes=1)
    except cluster.SlurmMissing as error:
        pytest.skip(str(error))
    with running:
        yield running


def ended(site: cluster.Slurm, jobs: Sequence[str]) -> bool:
    return not {site.states()[job] for job in jobs} & {"PENDING", "RUNNING", "COMPLETING"}


def test_psij_reads_the_same_of_a_slurm_that_runs(psij: Path, site: cluster.Slurm) -> None:
    over = [site.submit(command) for command in ("true", "exit 7")]
    gone = site.submit("exec sleep 600")
    runs = site.submit("exec sleep 600")
    waits, held = site.submit("true", "--begin=now+1hour"), site.submit("true", "--hold")
    site.wait_state(gone, "RUNNING")
    site.run(["scancel", gone])
    deadline = time.monotonic() + 60
    while not ended(site, [*over, gone]) or site.states()[runs] != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The question that psij asks.
    asked = ["squeue", "-O", "JobArrayID,StateCompact,Reason", "-t", "all", "--me"]
    theirs = read_by_psij(psij, "slurm", "SlurmJobExecutor", site.run(asked).stdout)
    backend = Slurm(accounting=False)
    jobs = [*over, gone, runs, waits, held]
    said = site.run(backend.poll(jobs, "root"))
    ours = backend.parse_poll(said.stdout, said.stderr, said.returncode)
    assert {ours[job, None].state for job in jobs} == {
        *("done", "failed", "cancelled", "running", "pending", "held")
    }
    assert theirs.keys() >= set(jobs)
    assert apart(theirs, ours) == {}
    told = site.run(backend.history(over, "root"))
    history = backend.parse_history(told.stdout, told.stderr, told.returncode)
    # Exit codes are not in what psij asks for: it takes them from its wrapper's files.
    assert [history[job, None].exit_code for job in over] == [0, 7]
