"""LSF: what its manual says that it prints, and what it is asked."""

from __future__ import annotations

from datetime import datetime

from pandaflow.executors.batch.lsf import LSF
from pandaflow.executors.batch.model import BatchRequest
from pandaflow.testing.batch import BackendTests, Said

# jobid jobindex stat exit_code exec_host start_time finish_time exit_reason pend_reason
JOBS = """\
101|0|RUN|-|4*hosta:4*hostb|Nov 22 10:30 2026|Nov 22 11:30 2026 L|-|-
102|1|PEND|-|-|-|-|-|New job is waiting for scheduling;a | b
102|10|PSUSP|-|-|-|-|-|The job was suspended by the user while pending
103|0|DONE|-|hosta|Nov 22 10:30 2026|Nov 22 10:31 2026|-|-
104|0|EXIT|7|hosta|Nov 22 10:30 2026|Nov 22 10:31 2026|-|-
105|0|EXIT|137|hosta|Nov 22 10:30 2026|Nov 22 10:31 2026|TERM_UNKNOWN: unknown|-
106|0|EXIT|140|hosta|Nov 22 10:30 2026|Nov 22 10:31 2026|TERM_RUNLIMIT: job killed after reaching LSF run time limit|-
107|0|EXIT|130|hosta|Nov 22 10:30 2026|Nov 22 10:31 2026|TERM_MEMLIMIT: job killed|-
108|0|EXIT|130|hosta|Nov 22 10:30 2026|Nov 22 10:31 2026|TERM_OWNER: job killed by owner|-
109|0|ZOMBI|-|hosta|Nov 22 10:30 2026|-|-|-
110|0|UNKWN|-|hosta|Nov 22 10:30 2026|-|-|-
111|0|USUSP|-|hosta|Nov 22 10:30 2026|-|-|-
"""  # noqa: E501
STATES = {
    ("101", None): "running",
    ("102", 0): "pending",
    ("102", 9): "held",
    ("103", None): "done",
    ("104", None): "failed",
    ("105", None): "failed",
    ("106", None): "timeout",
    ("107", None): "out_of_memory",
    ("108", None): "cancelled",
    ("109", None): "node_fail",
    ("110", None): "unknown",
    ("111", None): "held",
}


class TestLSF(BackendTests):
    backend = LSF()
    taken = (
        Said(stdout="Job <101> is submitted to queue <normal>.\n", id="101"),
        Said(stdout="Job <102> is submitted to default queue <normal>.\n", id="102"),
    )
    refused = (
        Said(stderr="nosuch: No such queue. Job not submitted.\n", code=255, words="No such queue"),
    )
    silent = (
        Said(stderr="Failed in an LSF library call: LIM is down; try later\n", code=255),
        Said(stderr="Cannot connect to LSF. Please wait ...\n", code=255),
    )
    polls = (
        Said(
            stdout=JOBS,
            states=STATES,
            exits={
                ("103", None): (0, None),
                ("104", None): (7, None),
                ("105", None): (None, 9),
                ("106", None): (None, None),
            },
        ),
        Said(stderr="Job <99> is not found\n", code=255),
        Said(stderr="No job found\n"),
    )
    histories = polls
    cancelled = (
        Said(stdout="Job <101> is being terminated\n"),
        Said(stderr="Job <103>: Job has already finished\n", code=255),
        Said(stderr="Job <99>: No matching job found\n", code=255),
    )
    not_cancelled = (Said(stderr="Job <7>: User permission denied\n", code=255),)
    queue_lists = (
        Said(
            stdout="""
QUEUE: normal
  -- For normal low priority jobs.  This is the default queue.

PARAMETERS/STATISTICS
PRIO NICE STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN SSUSP USUSP  RSV PJOBS
 30   20  Open:Active       -    -    -    -     0     0     0     0     0    0     0

RUNLIMIT
 1440.0 min of hosta

MEMLIMIT
     16 G

SCHEDULING PARAMETERS
-------------------------------------------------------------------------------

QUEUE: night
  -- No description provided.

PRIO NICE STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN SSUSP USUSP  RSV PJOBS
 40   20  Open:Inact_Win    -    -    -    -     0     0     0     0     0    0     0
""",
            queues=("normal", "night"),
        ),
    )


def test_hosts_times_and_reasons() -> None:
    found = LSF().parse_poll(JOBS, "", 0)
    assert found["101", None].nodes == ("hosta", "hostb")
    assert found["101", None].started == datetime(2026, 11, 22, 10, 30).timestamp()
    assert found["103", None].ended == datetime(2026, 11, 22, 10, 31).timestamp()
    assert found["102", 0].reason == "New job is waiting for scheduling;a | b"


def test_limits_of_queues() -> None:
    normal, night = TestLSF.queue_lists[0].given(LSF().parse_queues)
    assert (normal.walltime, normal.memory) == (86400.0, 16 * 2**30)
    assert (normal.default, normal.open, night.default, night.open) == (True, True, False, False)


def test_minutes_and_the_units_of_the_site() -> None:
    request = BatchRequest(
        name="a", walltime=61, memory=2**30 + 1, array=4, max_running=2, nodes=2, cores=8
    )
    lines = LSF(unit="MB").directives(request)
    for line in ("-J 'a[1-4]%2'", "-W 2", "-M 1025", "-n 16", "-R 'span[ptile=8]'"):
        assert line in lines
    assert "-M 1048577" in LSF().directives(request)
