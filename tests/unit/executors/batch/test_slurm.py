"""Slurm: what 22.05 printed, and what it is asked."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.model import BatchRequest
from pandaflow.executors.batch.script import batch_script
from pandaflow.executors.batch.slurm import Slurm
from pandaflow.testing.batch import BackendTests, Said

NO_ANSWER = "Unable to contact slurm controller (connect failure)"
QUEUE = """\
13|CANCELLED|2026-11-22T10:32:24|2026-11-22T10:32:25|n4|None
3_7|COMPLETED|1795343582|1795343594|n3|None
17|NODE_FAIL|2026-11-22T10:32:24|2026-11-22T10:32:30|n4|NodeDown
16|OUT_OF_MEMORY|2026-11-22T10:32:24|2026-11-22T10:32:25|n4|OutOfMemory
47|TIMEOUT|2026-11-22T10:35:43|2026-11-22T10:35:54|n2|TimeLimit
18|PENDING|N/A|N/A||ReqNodeNotAvail, UnavailableNodes:n4|and a bar
26|PENDING|2026-11-22T11:32:24|2026-11-22T11:42:24||Resources
29_[1-2,7%2]|PENDING|N/A|N/A||JobHeldUser
31|RUNNING|2026-11-22T10:32:25|2026-11-22T10:42:25|n[2-3,08-10],login|None
25|SUSPENDED|2026-11-22T10:32:25|2026-11-22T10:42:25|n1|None
49|COMPLETING|2026-11-22T10:35:43|2026-11-22T10:35:44|n1|None
50|REVOLVING|2026-11-22T10:35:43|2026-11-22T10:35:44|n1|None
"""
QUEUE_STATES = {
    ("13", None): "cancelled",
    ("3", 7): "done",
    ("17", None): "node_fail",
    ("16", None): "out_of_memory",
    ("47", None): "timeout",
    ("18", None): "pending",
    ("26", None): "pending",
    ("29", 1): "held",
    ("29", 2): "held",
    ("29", 7): "held",
    ("31", None): "running",
    ("25", None): "held",
    ("49", None): "completing",
    ("50", None): "unknown",
}
# JobID,State,ExitCode,Submit,Start,End,NodeList,Reason
ACCOUNTS = """\
1|COMPLETED|0:0|1795343544|1795343544|1795343545|n1|None
2|FAILED|7:0|1795343544|1795343544|1795343545|n1|None
12|FAILED|0:9|1795343544|1795343544|1795343545|n3|None
30|FAILED|0:53|1795343544|1795343545|1795343545|n3|None
16|OUT_OF_MEMORY|0:125|1795343544|1795343544|1795343545|n4|None
49|CANCELLED by 1001|0:0|1795343743|1795343743|1795343744|n1|None
3_2|FAILED|7:0|1795343544|1795343545|1795343558|n1|JobArrayTaskLimit
18|NODE_FAIL|0:0|1795343544|1795343545|1795343550|n4|None
48|REQUEUED|0:0|1795343743|1795343743|1795343744|n3|None
18|CANCELLED by 0|0:0|1795343550|1795343599|1795343636|n4|ReqNodeNotAvail
48|RUNNING|0:0|1795343744|1795343750|Unknown|n3|BeginTime
"""
ACCOUNT_STATES = {
    ("1", None): "done",
    ("2", None): "failed",
    ("12", None): "failed",
    ("30", None): "failed",
    ("16", None): "out_of_memory",
    ("49", None): "cancelled",
    ("3", 2): "failed",
    ("18", None): "cancelled",
    ("48", None): "running",
}
ACCOUNT_EXITS = {
    ("1", None): (0, None),
    ("2", None): (7, None),
    ("12", None): (None, 9),
    ("30", None): (None, None),
    ("16", None): (None, None),
}


class SlurmTexts(BackendTests):
    taken = (
        Said(stdout="Submitted batch job 1\n", id="1"),
        Said(stdout="4\n", id="4"),
        Said(stdout="4;cluster-2\n", id="4"),
    )
    refused = (
        Said(
            stderr="sbatch: error: invalid partition specified: nosuch\nsbatch: error: Batch job "
            "submission failed: Invalid partition name specified\n",
            code=1,
            words="Invalid partition name specified",
        ),
        Said(
            stderr="sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch "
            "job submission failed: Requested node configuration is not available\n",
            code=1,
            words="Memory specification can not be satisfied",
        ),
        Said(stderr="sbatch: unrecognized option '--nosuch'\n", code=255, words="--nosuch"),
    )
    silent = (
        Said(stderr=f"sbatch: error: Batch job submission failed: {NO_ANSWER}\n", code=1),
        Said(stderr=f"slurm_load_jobs error: {NO_ANSWER}\n", code=1),
        Said(
            stderr="sacct: error: Problem talking to the database: Connection refused\n",
            code=1,
        ),
    )
    polls = (
        Said(stdout=QUEUE, states=QUEUE_STATES),
        Said(stderr="slurm_load_jobs error: Invalid job id specified\n", code=1),
        Said(),
    )
    cancelled = (
        Said(),
        Said(
            stderr="scancel: error: Kill job error on job id 99: Invalid job id specified\n", code=1
        ),
    )
    not_cancelled = (
        Said(
            stderr="scancel: error: Kill job error on job id 9: Access/permission denied\n", code=1
        ),
    )
    queue_lists = (
        Said(
            stdout="main*|up|1-00:00:00|3|4|4000|(null)\nmain*|up|1-00:00:00|1|8|8000+|gpu:2\n"
            "short|down|1:00|4|4|4000|(null)\n",
            queues=("main", "short"),
        ),
    )


class TestSlurm(SlurmTexts):
    backend = Slurm()
    histories = (
        Said(stdout=ACCOUNTS, states=ACCOUNT_STATES, exits=ACCOUNT_EXITS),
        Said(),
    )


class TestSlurmWithoutAccounting(SlurmTexts):
    backend = Slurm(accounting=False)
    histories = (
        Said(
            stdout="JobId=2 JobName=a Reason=x JobState=FAILED Reason=NonZeroExitCode Restarts=0 "
            "ExitCode=7:0 StartTime=2026-11-22T10:32:24 EndTime=2026-11-22T10:32:25 NodeList=n1\n"
            "JobId=3 ArrayJobId=3 ArrayTaskId=2-4%2 JobName=arr JobState=PENDING Reason=JobHeldUser"
            " Restarts=0 ExitCode=0:0 StartTime=Unknown EndTime=Unknown NodeList=\n",
            states={
                ("2", None): "failed",
                ("3", 2): "held",
                ("3", 3): "held",
                ("3", 4): "held",
            },
            exits={("2", None): (7, None)},
        ),
        Said(stderr="slurm_load_jobs error: Invalid job id specified\n", code=1),
        Said(stdout="No jobs in the system\n"),
    )


def test_nodes_times_and_reasons() -> None:
    found = Slurm().parse_poll(QUEUE, "", 0)
    assert found["31", None].nodes == ("n2", "n3", "n08", "n09", "n10", "login")
    assert found["18", None].reason == "ReqNodeNotAvail, UnavailableNodes:n4|and a bar"
    start = datetime(2026, 11, 22, 10, 32, 25).timestamp()
    assert (found["31", None].started, found["31", None].ended) == (start, None)
    assert (found["3", 7].started, found["3", 7].ended) == (1795343582.0, 1795343594.0)
    assert found["26", None].started is None  # an estimate


def test_the_last_start_of_a_requeued_job_counts() -> None:
    found = Slurm().parse_history(ACCOUNTS, "", 0)
    assert (found["18", None].requeues, found["18", None].ended) == (1, 1795343636.0)
    assert found["48", None].requeues == 1
    assert "output file" in found["30", None].reason


def test_partitions_have_the_largest_of_their_nodes() -> None:
    main, short = TestSlurm.queue_lists[0].given(Slurm().parse_queues)
    assert (main.default, main.open, main.walltime) == (True, True, 86400.0)
    assert (main.cores, main.memory, main.gpus, main.nodes) == (8, 8000 * 2**20, 2, 4)
    assert (short.default, short.open, short.walltime) == (False, False, 60.0)


def test_units_and_quotes() -> None:
    request = BatchRequest(
        name="two words",
        walltime=3600.5,
        memory=2**30 + 1,
        array=10,
        max_running=2,
        warn=("USR1", 60),
        stdout="/a b/100%/{id}_{index}.out",
    )
    lines = Slurm().directives(request)
    for line in (
        "'--job-name=two words'",
        "--time=01:00:01",
        "--mem=1025M",
        "--array=0-9%2",
        "--signal=B:USR1@60",
        "'--output=/a b/100%%/%A_%a.out'",
        "--no-requeue",
    ):
        assert line in lines
    assert "'--output=/a b/100%%/%j_0.out'" in Slurm().directives(
        replace(request, array=None, max_running=None)
    )


def test_without_accounting_the_remedy_is_named() -> None:
    with pytest.raises(SiteError, match=r"Slurm\(accounting=False\)") as caught:
        Slurm().parse_history("", "Slurm accounting storage is disabled\n", 1)
    assert not caught.value.transient


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch")
def test_sbatch_itself_understands_the_directives(tmp_path: Path) -> None:
    # No controller answers, so sbatch gets as far as to ask one: the script was accepted.
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\n"
        "AuthType=auth/none\nCredType=cred/none\nMessageTimeout=1\nNodeName=n1\n"
        "PartitionName=main Nodes=n1\nPlugStackConfig=/dev/null\n"
    )
    request = BatchRequest(
        name='it\'s "a" name',
        queue="main",
        walltime=60,
        memory=2**30,
        array=3,
        workdir=str(tmp_path),
        warn=("USR1", 10),
    )
    (tmp_path / "job.sh").write_text(batch_script(Slurm(), request, "true"))
    run = subprocess.run(
        ["sbatch", "-vv", "--parsable", "job.sh"],
        cwd=tmp_path,
        env={"SLURM_CONF": str(tmp_path / "slurm.conf"), "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert run.returncode
    if "job-name" not in run.stderr:
        pytest.skip(f"this sbatch does not get far without a controller: {run.stderr[:200]}")
    assert 'it\'s "a" name' in run.stderr
