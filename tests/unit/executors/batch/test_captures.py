"""Every recorded output of the real systems, where the recordings are at hand."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.htcondor import HTCondor
from pandaflow.executors.batch.model import Backend
from pandaflow.executors.batch.pbs import PBS
from pandaflow.executors.batch.sge import SGE
from pandaflow.executors.batch.slurm import Slurm

CAPTURES = Path(__file__).resolve().parents[5] / "shared" / "components" / "captures"
SYSTEMS: dict[str, Backend] = {
    "htcondor": HTCondor(),
    "pbs": PBS(),
    "sge": SGE(),
    "slurm": Slurm(),
}

pytestmark = pytest.mark.skipif(not CAPTURES.is_dir(), reason="no recorded outputs here")


def said(system: str, name: str) -> tuple[str, str, int]:
    _, exit_line, text = (CAPTURES / system / f"{name}.txt").read_text().split("\n", 2)
    beside = CAPTURES / system / f"{name}.err"
    errors = beside.read_text() if beside.exists() else ""
    return text, errors, int(exit_line.rsplit(" ", 1)[1])


def named(system: str, start: str) -> list[str]:
    return sorted(path.stem for path in (CAPTURES / system).glob(f"{start}*.txt"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_submissions(system: str) -> None:
    backend, seen = SYSTEMS[system], Counter[str]()
    for name in named(system, "submit_"):
        if "refused" in name:
            with pytest.raises(SiteError) as caught:
                backend.parse_submit(*said(system, name))
            assert not caught.value.transient
            seen["refused"] += 1
        else:
            assert backend.parse_submit(*said(system, name))[0].isdigit()
            seen["taken"] += 1
    assert min(seen["refused"], seen["taken"]) >= 2


@pytest.mark.parametrize(
    ("system", "parse", "name"),
    [
        ("slurm", "poll", "down_squeue_format"),
        ("slurm", "history", "down_dbd_sacct"),
        ("slurm", "submit", "down_sbatch"),
        ("slurm", "cancel", "down_scancel"),
        ("pbs", "poll", "down_qstat_f_json"),
        ("pbs", "poll", "down_unknown_server_qstat"),
        ("pbs", "submit", "down_qsub"),
        ("pbs", "cancel", "down_qdel"),
        ("sge", "poll", "down_qstat_xml"),
        ("sge", "submit", "down_qsub"),
        ("sge", "cancel", "down_qdel"),
        ("htcondor", "poll", "down_schedd_condor_q_json"),
        ("htcondor", "poll", "down_pool_condor_q_json"),
        ("htcondor", "queues", "down_pool_condor_status_json"),
        ("htcondor", "submit", "down_schedd_submit"),
        ("htcondor", "submit", "down_pool_submit"),
        ("htcondor", "cancel", "down_schedd_rm"),
        ("htcondor", "cancel", "down_pool_rm"),
    ],
)
def test_a_system_that_is_down(system: str, parse: str, name: str) -> None:
    with pytest.raises(SiteError) as caught:
        getattr(SYSTEMS[system], f"parse_{parse}")(*said(system, name))
    assert caught.value.transient


def cut(text: str, *columns: int) -> str:
    """Keep columns of a recording with more of them, in the order that is asked today."""
    rows = (line.split("|") for line in text.splitlines() if line)
    return "".join("|".join(row[column] for column in columns) + "\n" for row in rows)


def states(found: dict[Any, Any]) -> Counter[str]:
    return Counter(status.state for status in found.values())


def test_squeue() -> None:
    text, errors, code = said("slurm", "squeue_all_format")
    found = SYSTEMS["slurm"].parse_poll(cut(text, 0, 4, 9, 10, 6, 5), errors, code)
    assert states(found) == {
        "done": 14,
        "cancelled": 4,
        "failed": 6,
        "pending": 7,
        "held": 9,
        "running": 3,
        "node_fail": 1,
        "out_of_memory": 1,
    }
    assert found["31", None].nodes == ("n2", "n3")


def test_sacct() -> None:
    text, errors, code = said("slurm", "sacct_PX_final")
    text = "".join(cut(line, 0, 3, 4, 8, 9, 10, 7, 6) for line in text.splitlines()[1:])
    found = SYSTEMS["slurm"].parse_history(text, errors, code)
    assert states(found)["unknown"] == 0
    assert (found["2", None].exit_code, found["12", None].signal) == (7, 9)
    assert found["47", None].state == "timeout"
    assert found["50", 1].state == "cancelled"


def test_scontrol() -> None:
    found = Slurm(accounting=False).parse_history(*said("slurm", "scontrol_show_job_o"))
    assert len(found) == 45 and states(found)["unknown"] == 0
    assert found["15", None].requeues == 1


def test_qacct_and_qstat() -> None:
    found = SYSTEMS["sge"].parse_history(*said("sge", "qacct_o_j_all"))
    assert states(found) == {"done": 6, "failed": 8, "timeout": 2}
    for name in ("qacct_j_unknown", "qacct_j_running", "qacct_j_cq", "qacct_j_rerun"):
        assert SYSTEMS["sge"].parse_history(*said("sge", name)) == {}
    queue = SYSTEMS["sge"].parse_poll(*said("sge", "qstat_xml_deleting"))
    assert states(queue) == {"held": 6, "completing": 1, "running": 2, "pending": 1}
    (main,) = SYSTEMS["sge"].parse_queues(*said("sge", "qconf_sq"))
    assert (main.name, main.cores) == ("main.q", 8)


def test_qstat_of_pbs() -> None:
    found = SYSTEMS["pbs"].parse_history(*said("pbs", "qstat_xtf_json"))
    assert states(found)["unknown"] == 0
    assert found["16.node.example", None].state == "timeout"
    assert found["17.node.example", None].state == "out_of_memory"
    assert found["3[].node.example", 2].exit_code == 7
    flat = PBS(dialect="torque").parse_poll(*said("pbs", "qstat_f"))
    nested = SYSTEMS["pbs"].parse_poll(*said("pbs", "qstat_f_json"))
    assert states(flat) == states(nested)
    for name in ("qstat_unknown_f_json", "qstat_finished_f_json", "qstat_empty_f_json"):
        assert SYSTEMS["pbs"].parse_poll(*said("pbs", name)) == {}
    assert list(SYSTEMS["pbs"].parse_poll(*said("pbs", "qstat_mixed_f_json"))) == [
        ("13.node.example", None)
    ]
    queues = SYSTEMS["pbs"].parse_queues(*said("pbs", "qstat_Q_f_json"))
    assert [(queue.name, queue.open, queue.walltime) for queue in queues] == [
        ("workq", True, None),
        ("short", True, 60.0),
        ("closed", False, None),
    ]


def test_condor() -> None:
    queue = SYSTEMS["htcondor"].parse_poll(*said("htcondor", "condor_q_attrs_json"))
    assert queue["14", None].state == "timeout" and queue["16", None].state == "out_of_memory"
    history = SYSTEMS["htcondor"].parse_history(*said("htcondor", "condor_history_attrs_json"))
    assert (history["8", None].signal, history["2", None].exit_code) == (9, 7)
    assert states(history) == {"done": 8, "cancelled": 6, "failed": 2}
    (pool,) = SYSTEMS["htcondor"].parse_queues(*said("htcondor", "condor_status_json"))
    assert (pool.cores, pool.memory) == (8, 8000 * 2**20)


@pytest.mark.parametrize(
    ("backend", "parse", "pattern", "least"),
    [
        (PBS(), "history", "qstat_*f_json*", 25),
        (PBS(dialect="torque"), "poll", "qstat_*f", 2),
        (SGE(), "poll", "qstat_xml*", 4),
        (SGE(), "poll", "qstat_[efgru]*_xml*", 8),
        (SGE(), "history", "qacct_*", 17),
        (HTCondor(), "poll", "condor_q_*json", 5),
        (HTCondor(), "history", "condor_history_*json", 4),
        (Slurm(accounting=False), "history", "scontrol_show_job_[atr]*", 3),
    ],
)
def test_every_state_that_was_recorded_is_known(
    backend: Any, parse: str, pattern: str, least: int
) -> None:
    names = [path.stem for path in (CAPTURES / backend.name).glob(f"{pattern}.txt")]
    assert len(names) >= least
    for name in names:
        found = getattr(backend, f"parse_{parse}")(*said(backend.name, name))
        assert states(found)["unknown"] == 0, name


def columns(asked: str) -> list[str] | None:
    """Return the columns that a recorded squeue or sacct was asked for."""
    given = re.search(r" -o '?([^']+)'?$", asked)
    return None if given is None else re.split(r"[|,]", given[1])


@pytest.mark.parametrize(
    ("tool", "parse", "order", "least"),
    [
        ("squeue", "poll", ("%i", "%T", "%S", "%e", "%N", "%r"), 16),
        (
            "sacct",
            "history",
            ("JobID", "State", "ExitCode", "Submit", "Start", "End", "NodeList", "Reason"),
            7,
        ),
    ],
)
def test_every_table_of_slurm(tool: str, parse: str, order: tuple[str, ...], least: int) -> None:
    seen, jobs = 0, 0
    for name in named("slurm", f"{tool}_"):
        asked = columns((CAPTURES / "slurm" / f"{name}.txt").read_text().split("\n")[0])
        text, errors, code = said("slurm", name)
        if asked is None or not set(order) <= set(asked) or code:
            continue
        if tool == "sacct":
            text = text.removeprefix("|".join(asked) + "\n")
        rows = cut(text, *(asked.index(column) for column in order))
        found = getattr(SYSTEMS["slurm"], f"parse_{parse}")(rows, errors, code)
        assert states(found)["unknown"] == 0, name
        seen, jobs = seen + 1, jobs + len(found)
    assert seen >= least and jobs > 100


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_recording_crashes_a_parser(system: str) -> None:
    backend = SYSTEMS[system]
    parsers = (
        backend.parse_poll,
        backend.parse_history,
        backend.parse_queues,
        backend.parse_submit,
        backend.parse_cancel,
    )
    for name in named(system, ""):
        for parse in parsers:
            try:
                parse(*said(system, name))
            except SiteError as error:
                assert str(error)
