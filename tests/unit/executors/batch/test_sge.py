"""Grid Engine: what 8.1.9 printed, and what it is asked."""

from __future__ import annotations

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.model import BatchRequest
from pandaflow.executors.batch.sge import SGE
from pandaflow.testing.batch import BackendTests, Said

SILENCE = (
    "error: commlib error: got select error (Connection refused)\n"
    'error: unable to send message to qmaster using port 16444 on host "h": got send error\n'
)
HEAD = "<?xml version='1.0'?>\n<job_info xmlns:xsd=\"http://example.org/qstat.xsd\">\n"


def entry(job: int, state: str, tasks: str = "", queue: str = "") -> str:
    return (
        f'<job_list state="any"><JB_job_number>{job}</JB_job_number><JB_name>a &amp; b</JB_name>'
        f"<state>{state}</state><JAT_start_time>2026-11-22T10:30:28</JAT_start_time>"
        f"<queue_name>{queue}</queue_name><slots>1</slots>"
        + (f"<tasks>{tasks}</tasks>" if tasks else "")
        + "</job_list>"
    )


def account(job: int, failed: str, status: str, task: str = "undefined", **more: str) -> str:
    fields = {
        "qname": "main.q",
        "hostname": "node.example",
        "jobname": "a",
        "jobnumber": str(job),
        "taskid": task,
        "start_time": "Sun Nov 22 10:30:27 2026",
        "end_time": "Sun Nov 22 10:30:31 2026",
        "slots": "1",
        "failed": failed,
        "exit_status": status,
        "ru_wallclock": "4s",
        "maxvmem": "4.742MB",
        "category": "NONE",
    } | more
    return "=" * 62 + "\n" + "".join(f"{key:<13}{value:<20}\n" for key, value in fields.items())


QUEUE = f"""{HEAD}<queue_info>
{entry(5, "r", "1", "main.q@node.example")}{entry(5, "t", "2", "main.q@node.example")}
{entry(28, "s", queue="main.q@node.example")}{entry(29, "dr", queue="main.q@node.example")}
</queue_info><job_info>
{entry(30, "Rq")}{entry(32, "hqw", "1-9:4,12")}{entry(23, "Eqw")}{entry(40, "qw")}{entry(41, "?")}
</job_info></job_info>"""


class TestSGE(BackendTests):
    backend = SGE()
    taken = (
        Said(stdout='Your job 3 ("ok") has been submitted\n', id="3"),
        Said(stdout='Your job-array 5.1-5:1 ("arr") has been submitted\n', id="5"),
        Said(stdout="4\n", id="4"),
        Said(stdout="6.2-10:4\n", id="6"),
    )
    refused = (
        Said(
            stderr='Unable to run job: Job was rejected because job requests unknown queue "q".\n',
            code=1,
            words="unknown queue",
        ),
        Said(
            stderr='Unable to run job: unknown resource "x"\nExiting.\n', code=1, words="resource"
        ),
    )
    silent = (Said(stderr=SILENCE, code=1),)
    polls = (
        Said(
            stdout=QUEUE,
            states={
                ("5", 0): "running",
                ("5", 1): "running",
                ("28", None): "held",
                ("29", None): "completing",
                ("30", None): "pending",
                ("32", 0): "held",
                ("32", 4): "held",
                ("32", 8): "held",
                ("32", 11): "held",
                ("23", None): "failed",
                ("40", None): "pending",
                ("41", None): "unknown",
            },
        ),
        Said(stdout=HEAD + "<queue_info>\n</queue_info><job_info>\n</job_info>\n</job_info>\n"),
    )
    histories = (
        Said(
            stdout=account(3, "0", "0")
            + account(4, "0", "7")
            + account(5, "0", "7", task="2")
            + account(13, "100 : assumedly after job", "137                  (Killed)")
            + account(17, "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit", "137 (Killed)")
            + account(18, "100 : assumedly after job", "138 (User)", category="-l s_rt=3")
            + account(19, "100 : assumedly after job", "137", category="-l h_vmem=4M")
            + account(23, "26  : opening input/output file", "0", start_time="-/-", end_time="-/-")
            + account(24, "19  : before writing exit_status", "0")
            + account(30, "25  : rescheduling", "0")
            + account(31, "25  : rescheduling", "0")
            + account(31, "0", "0"),
            states={
                ("3", None): "done",
                ("4", None): "failed",
                ("5", 1): "failed",
                ("13", None): "failed",
                ("17", None): "timeout",
                ("18", None): "timeout",
                ("19", None): "out_of_memory",
                ("23", None): "failed",
                ("24", None): "node_fail",
                ("31", None): "done",
            },
            exits={
                ("4", None): (7, None),
                ("13", None): (None, 9),
                ("23", None): (None, None),
            },
        ),
        Said(stderr="error: job id 99999 not found\n", code=1),
        Said(
            stdout="no jobs running since startup\n",
            stderr="/var/lib/sge/common/accounting: No such file or directory\n",
            code=1,
        ),
    )
    cancelled = (
        Said(stdout="alice has registered the job 15 for deletion\n"),
        Said(stdout='alice has deleted job 26\ndenied: job "99999" does not exist\n', code=1),
        Said(stdout="job 29 is already in deletion\n"),
    )
    not_cancelled = (Said(stdout='denied: job "9": you have no permission to delete it\n', code=1),)
    queue_lists = (
        Said(
            stdout="qname                 main.q\nhostlist              node.example n2\n"
            "slots                 8,[n2=4], \\\n                      [n3=2]\n"
            "h_rt                  24:00:00\nh_vmem                2G\n"
            "initial_state         default\n\nqname   off.q\nhostlist  @allhosts\nslots 1\n"
            "initial_state disabled\n",
            queues=("main.q", "off.q"),
        ),
    )


def test_what_stays_in_the_queue_and_what_was_started_again() -> None:
    found = SGE().parse_poll(QUEUE, "", 0)
    assert found["23", None].remains and not found["40", None].remains
    assert found["30", None].requeues == 1
    assert found["5", 0].nodes == ("node.example",)
    ended = TestSGE.histories[0].given(SGE().parse_history)
    assert ended["31", None].requeues == 1


def test_queues_have_their_limits() -> None:
    main, off = TestSGE.queue_lists[0].given(SGE().parse_queues)
    assert (main.cores, main.walltime, main.memory, main.nodes) == (8, 86400.0, 2 * 2**30, 2)
    assert main.open and not off.open


def test_units_per_slot() -> None:
    request = BatchRequest(
        name="a",
        cores=2,
        tasks_per_node=2,
        memory=1001,
        walltime=90.5,
        warn=("USR1", 30),
        array=5,
        stdout="/a b/{id}.{index}",
    )
    lines = SGE(memory="mem_free").directives(request)
    for line in (
        "-pe smp 4",
        "-l mem_free=251",
        "-l h_rt=91",
        "-t 1-5",
        "-o '/a b/$JOB_ID.$TASK_ID'",
        "-S /bin/bash",
    ):
        assert line in lines


def test_several_nodes_need_an_environment_of_the_site() -> None:
    request = BatchRequest(name="mpi", nodes=2, cores=4)
    assert "-pe mpi 8" in SGE(spread="mpi").directives(request)
    with pytest.raises(WorkflowError, match="spread"):
        SGE().directives(request)
