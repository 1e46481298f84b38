"""PBS: what OpenPBS 23.06 printed, Torque's dialect, and what they are asked."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.model import BatchRequest
from pandaflow.executors.batch.pbs import PBS
from pandaflow.testing.batch import BackendTests, Said

HEAD = {"timestamp": 1795343443, "pbs_version": "23.06.06", "pbs_server": "node.example"}
WHEN = {"stime": "Sun Nov 22 10:30:27 2026", "obittime": "Sun Nov 22 10:30:33 2026"}


def answer(jobs: dict[str, dict[str, Any]]) -> str:
    return json.dumps(HEAD | ({"Jobs": jobs} if jobs else {}), indent="\t")


def ended(status: int | None, **more: Any) -> dict[str, Any]:
    fields = {"job_state": "F", "substate": 92, "exec_host": "n1/0*4+n2/0*4"} | WHEN | more
    return fields if status is None else fields | {"Exit_status": status}


JOBS = {
    "13.node.example": {"job_state": "R", "exec_host": "node.example/6", "run_count": 2} | WHEN,
    "15.node.example": {"job_state": "H"},
    "18.node.example": {"job_state": "Q", "comment": "Can Never Run: ncpus (R: 500 A: 8 T: 8)"},
    "19.node.example": {"job_state": "W"},
    "23.node.example": {"job_state": "E", "Exit_status": 0, "exec_host": "node.example/2"},
    "26[].node.example": {"job_state": "B", "array": "True"},
    "26[0].node.example": ended(7, job_state="X"),
    "26[3].node.example": {"job_state": "R", "exec_host": "node.example/3"},
    "26[11].node.example": {"job_state": "X", "Exit_status": 1, "comment": "Subjob finished"},
    "99.node.example": {"job_state": "?"},
}
JOB_STATES = {
    ("13.node.example", None): "running",
    ("15.node.example", None): "held",
    ("18.node.example", None): "pending",
    ("19.node.example", None): "pending",
    ("23.node.example", None): "completing",
    ("26[].node.example", 0): "failed",
    ("26[].node.example", 3): "running",
    ("26[].node.example", 11): "cancelled",
    ("99.node.example", None): "unknown",
}
HISTORY = {
    "2.s": ended(0),
    "11.s": ended(7),
    "12.s": ended(137),
    "27.s": ended(265),
    "16.s": ended(-29, comment="exceeded resource walltime"),
    "17.s": ended(-27),
    "14.s": ended(271, substate=91),
    "22.s": ended(0, substate=91),
    "21.s": {"job_state": "F", "substate": 91},
    "33.s": ended(-3),
    "34.s": ended(-1),
}
REFUSED = (
    Said(stderr="qsub: Unknown queue\n", code=170, words="Unknown queue"),
    Said(
        stderr="qsub: Job violates queue and/or server resource limits\n",
        code=188,
        words="violates queue",
    ),
)
SILENT = (
    Said(
        stdout=answer({}),
        stderr="Connection refused\nqstat: cannot connect to server node.example (errno=15010)\n",
        code=255,
    ),
    Said(stderr="Connection refused\nCouldn't connect to cluster: node.example\n", code=162),
)
CANCELLED = (
    Said(),
    Said(stderr="qdel: Unknown Job Id 99999.node.example\n", code=153),
    Said(stderr="qdel: Job has finished 2.node.example\n", code=35),
)
NOT_CANCELLED = (
    Said(stderr="qdel: illegally formed job identifier: notanid\n", code=1),
    Said(stderr="qdel: Unauthorized Request 3.s\nqdel: Unknown Job Id 9.s\n", code=159),
)


class TestOpenPBS(BackendTests):
    backend = PBS()
    taken = (
        Said(stdout="2.node.example\n", id="2.node.example"),
        Said(stdout="3[].node.example\n", id="3[].node.example"),
    )
    refused, silent, cancelled, not_cancelled = REFUSED, SILENT, CANCELLED, NOT_CANCELLED
    polls = (
        Said(stdout=answer(JOBS), states=JOB_STATES),
        Said(
            stdout=answer({"13.s": {"job_state": "R"}}),
            stderr="qstat: Unknown Job Id 99999.s\nqstat: 2.s Job has finished, use -x or -H\n",
            code=35,
            states={("13.s", None): "running"},
        ),
        Said(stdout=answer({}), stderr="qstat: Unknown Job Id 99999.node.example\n", code=153),
        Said(stdout=answer({})),
    )
    histories = (
        Said(
            stdout=answer(HISTORY),
            states={
                ("2.s", None): "done",
                ("11.s", None): "failed",
                ("12.s", None): "failed",
                ("27.s", None): "failed",
                ("16.s", None): "timeout",
                ("17.s", None): "out_of_memory",
                ("14.s", None): "cancelled",
                ("22.s", None): "cancelled",
                ("21.s", None): "cancelled",
                ("33.s", None): "node_fail",
                ("34.s", None): "failed",
            },
            exits={
                ("2.s", None): (0, None),
                ("11.s", None): (7, None),
                ("27.s", None): (None, 9),
                ("22.s", None): (None, None),
            },
        ),
    )
    queue_lists = (
        Said(
            stdout=json.dumps(
                HEAD
                | {
                    "Queue": {
                        "workq": {"enabled": "True", "started": "True"},
                        "short": {
                            "enabled": "True",
                            "started": "False",
                            "resources_max": {"walltime": "00:01:00", "ncpus": 8, "mem": "4gb"},
                        },
                    }
                }
            ),
            queues=("workq", "short"),
        ),
    )


class TestTorque(BackendTests):
    backend = PBS(dialect="torque")
    taken = (
        Said(stdout="2.node.example\n", id="2.node.example"),
        Said(stdout="3[].node.example\n", id="3[].node.example"),
    )
    refused, silent, cancelled, not_cancelled = REFUSED, SILENT, CANCELLED, NOT_CANCELLED
    polls = (
        Said(
            stdout="Job Id: 13.s\n    Job_Name = run\n    job_state = R\n    exec_host = n1/6\n"
            "    Variable_List = PBS_O_HOME=/home,PBS_O_LANG=C.UTF-8,\n\tPBS_O_LOGNAME=alice,\n"
            "\tPBS_O_PATH=/bin\n    start_time = 1795343427\n\n"
            "Job Id: 14[2].s\n    job_state = C\n    exit_status = -11\n    exec_host = n1/0\n"
            "    comp_time = 1795343429\n\n"
            "Job Id:\t15\n\tjob_state = Q\n",
            states={("13.s", None): "running", ("14[].s", 2): "timeout", ("15", None): "pending"},
        ),
        Said(),
    )
    queue_lists = (
        Said(
            stdout="Queue: batch\n    queue_type = Execution\n    enabled = True\n"
            "    started = True\n    resources_max.walltime = 48:00:00\n",
            queues=("batch",),
        ),
    )


def wrapped(job: int, letter: str, *more: str) -> str:
    """What the qstat of Slurm 22.05 prints of a job."""
    lines = ["Job_Name = a", f"job_state = {letter}", "queue = main", *more]
    return f"Job Id:\t{job}\n" + "".join(f"\t{line}\n" for line in lines) + "\n"


ENDED = (
    "mtime = Sun Nov 22 17:34:20 2026",
    "ctime = Sun Nov 22 17:34:26 2026",
    "exec_host = n1/2+n2/2",
)


class TestWrappersOfSlurm(BackendTests):
    backend = PBS(dialect="slurm")
    arrays = False
    taken = (Said(stdout="17\n", id="17"),)
    refused = (
        Said(
            stdout="There was an error running the Slurm sbatch command.\nThe command was:\n"
            "'/usr/bin/sbatch -o a.o%j a.sh 2>&1'\nand the output was:\n"
            "'sbatch: error: invalid partition specified: nowhere\n sbatch: error: Batch job "
            "submission failed: Invalid partition name specified\n'\n",
            code=1,
            words="invalid partition specified: nowhere",
        ),
    )
    silent = (
        Said(stderr="Problem loading jobs.\n", code=8),
        Said(
            stdout="There was an error running the Slurm sbatch command.\nand the output was:\n"
            "'sbatch: error: Batch job submission failed: Unable to contact slurm controller "
            "(connect failure)\n'\n",
            code=1,
        ),
    )
    polls = (
        Said(
            stdout=wrapped(1, "Q") + wrapped(2, "R", *ENDED) + wrapped(3, "S") + wrapped(4, "U"),
            states={
                ("1", None): "pending",
                ("2", None): "running",
                ("3", None): "held",
                ("4", None): "unknown",
            },
        ),
        Said(code=153),
    )
    histories = (
        Said(
            stdout=wrapped(5, "C", *ENDED),
            states={("5", None): "cancelled"},
            exits={("5", None): (None, None)},
        ),
    )
    cancelled = (Said(), Said(code=2))
    not_cancelled = (
        Said(stdout="qdel: Kill job error on job id 3: Access/permission denied\n", code=1),
        Said(
            stdout="qdel: Kill job error on job id 1: Unable to contact slurm controller "
            "(connect failure)\n",
            code=1,
        ),
    )
    queue_lists = (
        Said(
            stdout="Queue:\tmain\n\tqueue_type = Execution\n\tresources_default.nodes = 2\n"
            "\tenabled = yes\n\tstarted = yes\n\nQueue:\tnight\n\tenabled = no\n"
            "\tstarted = no\n\n",
            queues=("main", "night"),
        ),
    )


def test_what_the_wrappers_do_not_tell_is_not_guessed() -> None:
    backend = PBS(dialect="slurm")
    ended = backend.parse_history(wrapped(5, "C", *ENDED), "", 0)["5", None]
    assert ended.infrastructure and "does not tell how it ended" in ended.reason
    assert ended.nodes == ("n1", "n2")
    assert ended.started is not None and ended.ended == ended.started + 6
    main, night = TestWrappersOfSlurm.queue_lists[0].given(backend.parse_queues)
    assert main.open and not night.open


def test_the_wrapper_of_qsub_hands_its_words_to_a_shell() -> None:
    argv = PBS(dialect="slurm").submit("/a b/50% $x.sh", BatchRequest(name="a"))
    assert shlex.split(" ".join(argv)) == [
        *("qsub", "-j", "oe", "-o", "/a b/50%% $x.sh.o%j"),
        "/a b/50% $x.sh",
    ]


def test_an_unknown_dialect() -> None:
    with pytest.raises(WorkflowError, match="moab"):
        PBS(dialect="moab")


def test_nodes_times_and_starts() -> None:
    status = PBS().parse_history(answer({"2.s": ended(0)}), "", 0)["2.s", None]
    assert status.nodes == ("n1", "n2")
    assert status.started is not None and status.ended == status.started + 6
    assert PBS().parse_poll(answer(JOBS), "", 0)["13.node.example", None].requeues == 1


def test_limits_of_queues() -> None:
    _, short = TestOpenPBS.queue_lists[0].given(PBS().parse_queues)
    assert (short.open, short.walltime, short.cores) == (False, 60.0, 8)
    assert short.memory == 4 * 2**30


def test_units_of_both_dialects() -> None:
    request = BatchRequest(
        name="a", nodes=2, tasks_per_node=2, cores=4, memory=2**30, walltime=3661, gpus=1
    )
    lines = PBS().directives(request)
    assert "-l select=2:ncpus=8:mpiprocs=2:mem=1024mb:ngpus=1" in lines
    assert {"-l walltime=01:01:01", "-l place=scatter"} <= set(lines)
    torque = PBS(dialect="torque").directives(request)
    assert {"-l nodes=2:ppn=8:gpus=1", "-l mem=2048mb"} <= set(torque)


def test_an_array_of_one() -> None:
    assert "-J 0-1:2" in PBS().directives(BatchRequest(name="a", array=1))
    assert "-t 0-0" in PBS(dialect="torque").directives(BatchRequest(name="a", array=1))


def test_an_element_goes_into_the_brackets() -> None:
    refs = [("26[].s", 3), ("26[].s", None), ("2.s", None)]
    assert PBS().cancel(refs) == ["qdel", "26[3].s", "26[].s", "2.s"]
