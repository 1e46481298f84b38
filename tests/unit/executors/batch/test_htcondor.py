"""HTCondor: what 25.0 printed, what it is asked, and its own parser of descriptions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.htcondor import HTCondor
from pandaflow.executors.batch.model import BatchRequest, BatchStatus, JobRef
from pandaflow.testing.batch import BackendTests, Said


def ad(cluster: int, status: int, process: int = 0, **more: Any) -> dict[str, Any]:
    base = {"ClusterId": cluster, "ProcId": process, "JobStatus": status, "ExitBySignal": False}
    return base | {"EnteredCurrentStatus": 1795343660, "NumJobStarts": 1} | more


CAPTURES = Path(__file__).resolve().parents[5] / "shared" / "components" / "captures" / "htcondor"
ONCE = "The job attribute PeriodicRemove expression 'JobStatus == 1 && NumJobStarts > 0' was TRUE"


class TestHTCondor(BackendTests):
    backend = HTCondor()
    taken = (
        Said(stdout="Submitting job(s).....\n5 job(s) submitted to cluster 3.\n", id="3"),
        Said(stdout="20.0 - 20.4\n", id="20"),
    )
    refused = (
        Said(
            stdout="Submitting job(s)",
            stderr="ERROR: Parse error in expression: \n\tRequestMemory = lots of it\n",
            code=1,
            words="RequestMemory = lots of it",
        ),
    )
    silent = (
        Said(stderr="\nERROR: Can't find address of local schedd\n", code=1),
        Said(stderr="condor_rm: (null)\n", code=1),
        Said(stderr="Error: communication error\nCEDAR:6001:Failed to connect to <x>\n", code=1),
    )
    polls = (
        Said(
            stdout=json.dumps(
                [
                    ad(9, 2, RemoteHost="slot1_7@node.example"),
                    ad(3, 1, 0),
                    ad(3, 2, 1),
                    ad(5, 1, 0, PandaflowElements=1),
                    ad(10, 5, HoldReasonCode=1, ExitBySignal=True, ExitSignal=15),
                    ad(14, 5, HoldReasonCode=47, ExitBySignal=True, ExitSignal=15),
                    ad(16, 5, HoldReasonCode=21, HoldReason="memory usage exceeded"),
                    ad(17, 5, HoldReasonCode=12, ExitCode=0, HoldReason="Transfer failure"),
                    ad(18, 4, ExitCode=7),
                    ad(19, 6),
                    ad(20, 77),
                ]
            ),
            states={
                ("9", None): "running",
                ("3", 0): "pending",
                ("3", 1): "running",
                ("5", 0): "pending",
                ("10", None): "held",
                ("14", None): "timeout",
                ("16", None): "out_of_memory",
                ("17", None): "failed",
                ("18", None): "failed",
                ("19", None): "completing",
                ("20", None): "unknown",
            },
            exits={
                ("14", None): (None, None),
                ("17", None): (None, None),
                ("18", None): (7, None),
            },
        ),
        Said(),
    )
    histories = (
        Said(
            stdout=json.dumps(
                [
                    ad(1, 4, ExitCode=0),
                    ad(8, 4, ExitBySignal=True, ExitSignal=9),
                    ad(11, 3, ExitBySignal=True, ExitSignal=15, RemoveReason="via condor_rm"),
                    ad(12, 3, RemoveReason=ONCE),
                ]
            ),
            states={
                ("1", None): "done",
                ("8", None): "failed",
                ("11", None): "cancelled",
                ("12", None): "preempted",
            },
            exits={("1", None): (0, None), ("8", None): (None, 9), ("11", None): (None, None)},
        ),
        Said(stdout="[\n]\n"),
    )
    cancelled = (
        Said(stdout="All jobs in cluster 12 have been marked for removal\n"),
        Said(stdout="Job 20.2 marked for removal\n", stderr="Job 99999.0 not found\n"),
        Said(stderr="\nCouldn't find/remove all jobs in cluster 11\n", code=1),
    )
    not_cancelled = (Said(stderr="Permission denied for job 3.0\n", code=1),)
    queue_lists = (
        Said(
            stdout=json.dumps(
                [
                    {"Machine": "a", "TotalCpus": 8.0, "TotalMemory": 8000},
                    {"Machine": "b", "TotalCpus": 4.0, "TotalMemory": 16000, "TotalGPUs": 2},
                ]
            ),
            queues=("pool",),
        ),
    )


def test_the_pool_has_the_largest_machine() -> None:
    (pool,) = TestHTCondor.queue_lists[0].given(HTCondor().parse_queues)
    assert (pool.cores, pool.memory, pool.gpus, pool.nodes) == (8, 16000 * 2**20, 2, 2)


def test_a_job_held_for_its_fault_remains_in_the_queue() -> None:
    found = TestHTCondor.polls[0].given(HTCondor().parse_poll)
    assert [ref for ref, status in found.items() if status.remains] == [
        ("14", None),
        ("16", None),
        ("17", None),
    ]


def test_queues_are_refused_with_the_way_out() -> None:
    with pytest.raises(WorkflowError, match="JobFlavour"):
        HTCondor().directives(BatchRequest(name="a", queue="longlunch"))


def test_what_a_description_cannot_hold() -> None:
    for workdir in ("/a\\", "/a "):
        with pytest.raises(WorkflowError, match="HTCondor"):
            HTCondor().directives(BatchRequest(name="a", workdir=workdir))


def test_its_own_parser_reads_the_description() -> None:
    htcondor2 = pytest.importorskip("htcondor2")
    request = BatchRequest(
        name="two words",
        account="group_physics",
        cores=4,
        tasks_per_node=2,
        memory=3 * 2**30 + 1,
        gpus=1,
        walltime=90.5,
        array=5,
        max_running=2,
        workdir="/a b/$(HOME)",
        stdout="/a b/$x-{id}-{index}.out",
        extra=('+JobFlavour = "longlunch"',),
    )
    path, text = HTCondor().describe("/a b/job.sh", request)
    assert path == "/a b/job.sh.sub"
    submit = htcondor2.Submit(text)
    assert submit.getQArgs() == "5"
    read = {key: submit.expand(key) for key in ("executable", "initialdir", "batch_name")}
    assert read == {
        "executable": "/a b/job.sh",
        "initialdir": "/a b/$(HOME)",
        "batch_name": "two words",
    }
    numbers = {key: submit.expand(f"request_{key}") for key in ("cpus", "memory", "gpus")}
    assert numbers == {"cpus": "8", "memory": "3073", "gpus": "1"}
    assert submit.expand("allowed_execute_duration") == "91"
    assert submit["max_materialize"] == "2"
    assert submit["output"] == "/a b/$(DOLLAR)x-$(ClusterId)-$(ProcId).out"
    assert submit["My.JobFlavour"] == '"longlunch"'


def parsed(request: BatchRequest) -> Any:
    """Return the description of a request as HTCondor's own parser reads it."""
    htcondor2 = pytest.importorskip("htcondor2")
    return htcondor2.Submit(HTCondor().describe("/a/job.sh", request)[1])


def test_its_own_parser_counts_the_elements() -> None:
    single, array = parsed(BatchRequest(name="a")), parsed(BatchRequest(name="a", array=500))
    assert (single.getQArgs(), array.getQArgs()) == ("", "500")
    # No line of ours reads as data of the queue statement.
    assert single.itemdata() is None or not list(single.itemdata())
    assert "my.pandaflowelements" not in {key.lower() for key in single}
    assert array["My.PandaflowElements"] == "500"


def test_its_own_parser_sees_no_macro_and_no_second_statement_in_our_texts() -> None:
    odd = "/a/$(HOME) # $ENV(HOME) queue 7 = x"
    submit = parsed(BatchRequest(name="queue 3", workdir=odd, account="a$b", stdout=f"{odd}/o"))
    read = [submit.expand(key) for key in ("batch_name", "accounting_group", "initialdir")]
    assert read == ["queue 3", "a$b", odd]
    assert submit.expand("output") == submit.expand("error") == f"{odd}/o"
    assert submit.getQArgs() == ""


def test_several_nodes_are_of_the_parallel_universe() -> None:
    submit = parsed(BatchRequest(name="mpi", nodes=3, cores=2))
    read = {key: submit.expand(key) for key in ("universe", "machine_count", "request_cpus")}
    assert read == {"universe": "parallel", "machine_count": "3", "request_cpus": "2"}


def test_a_job_that_ran_is_not_started_again() -> None:
    classad2 = pytest.importorskip("classad2")
    once = parsed(BatchRequest(name="a"))["periodic_remove"]
    assert "periodic_remove" not in parsed(BatchRequest(name="a", requeue=True))
    removed = {}
    for status, starts in ((1, 0), (1, 1), (2, 1), (5, 1)):
        job = classad2.ClassAd({"JobStatus": status, "NumJobStarts": starts})
        job["Removed"] = classad2.ExprTree(once)
        removed[status, starts] = job.eval("Removed")
    assert removed == {(1, 0): False, (1, 1): True, (2, 1): False, (5, 1): False}


@pytest.mark.parametrize(("cpus", "fits"), [(8, True), (7, False)])
def test_requirements_of_the_user_go_to_the_match(cpus: int, fits: bool) -> None:
    classad2 = pytest.importorskip("classad2")
    wish = 'requirements = (TARGET.OpSys == "LINUX") && (TARGET.Cpus >= MY.RequestCpus)'
    request = BatchRequest(name="a", cores=4, tasks_per_node=2)
    submit = parsed(replace(request, extra=(wish,)))
    job = classad2.ClassAd({"RequestCpus": int(submit.expand("request_cpus"))})
    job["Requirements"] = classad2.ExprTree(submit["requirements"])
    for system in ("LINUX", "WINDOWS"):
        machine = classad2.ClassAd({"OpSys": system, "Cpus": cpus, "Requirements": True})
        assert job.symmetricMatch(machine) is (fits and system == "LINUX")


def known() -> dict[JobRef, BatchStatus]:
    """Return what is read in the recorded answers of condor_q and condor_history."""
    found: dict[JobRef, BatchStatus] = {}
    for name, parse in (
        ("condor_q_attrs_json", HTCondor().parse_poll),
        ("condor_history_attrs_json", HTCondor().parse_history),
    ):
        found |= parse((CAPTURES / f"{name}.txt").read_text().split("\n", 2)[2], "", 0)
    return found


def last_word(events: list[Any]) -> dict[str, Any]:
    """Return how a job ended by its event log: the last event that says so."""
    ends = ("JobTerminatedEvent", "JobAbortedEvent", "JobHeldEvent")
    return dict([event for event in events if event["MyType"] in ends][-1])


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no recorded outputs here")
def test_its_own_event_logs_tell_the_same(tmp_path: Path) -> None:
    htcondor2 = pytest.importorskip("htcondor2")
    jobs, ends = known(), set()
    for recorded in sorted(CAPTURES.glob("eventlog_*.txt")):
        log = tmp_path / recorded.name
        log.write_text(recorded.read_text().split("\n", 2)[2])
        by_element: dict[tuple[int, int], list[Any]] = {}
        for event in htcondor2.JobEventLog(str(log)).events(0):
            by_element.setdefault((event["Cluster"], event["Proc"]), []).append(event)
        for (job, process), events in by_element.items():
            status = jobs.get((str(job), None)) or jobs.get((str(job), process))
            if status is not None:
                agree(status, last_word(events))
                ends.add(status.state)
    assert {"done", "failed", "cancelled", "timeout", "out_of_memory"} <= ends


def agree(status: BatchStatus, end: dict[str, Any]) -> None:
    if end["MyType"] == "JobTerminatedEvent":
        assert status.state in ("done", "failed")
        assert status.exit_code == (end["ReturnValue"] if end["TerminatedNormally"] else None)
        assert status.signal == (None if end["TerminatedNormally"] else end["TerminatedBySignal"])
    elif end["MyType"] == "JobAbortedEvent":
        assert status.state in ("cancelled", "timeout", "preempted")
    else:
        assert status.remains or status.state in ("held", "cancelled")
