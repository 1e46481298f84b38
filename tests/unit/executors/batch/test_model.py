"""Requests, statuses and what they mean for the retries of a payload."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.htcondor import HTCondor
from pandaflow.executors.batch.lsf import LSF
from pandaflow.executors.batch.model import (
    Backend,
    BatchRequest,
    BatchStatus,
    Describing,
    State,
    failure,
    plain_name,
)
from pandaflow.executors.batch.pbs import PBS
from pandaflow.executors.batch.sge import SGE
from pandaflow.executors.batch.slurm import Slurm


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"nodes": 0}, "nodes"),
        ({"cores": True}, "cores"),
        ({"array": 0}, "array"),
        ({"memory": -1}, "memory"),
        ({"gpus": -1}, "gpus"),
        ({"walltime": 0}, "walltime"),
        ({"walltime": float("nan")}, "walltime"),
        ({"walltime": float("inf")}, "walltime"),
        ({"name": ""}, "name"),
        ({"extra": ("--a\n--b",)}, "extra"),
        ({"env": {"A B": "1"}}, "env"),
        ({"env": {"A;rm": "1"}}, "env"),
        ({"warn": ("USR1", 60)}, "walltime"),
        ({"warn": ("USR1", 60), "walltime": 60}, "walltime"),
        ({"warn": ("HELLO", 6), "walltime": 60}, "HELLO"),
    ],
)
def test_requests_that_cannot_be(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(WorkflowError, match=word):
        BatchRequest(**({"name": "a"} | wrong))


def test_every_state_is_live_or_over_or_unknown() -> None:
    for state in get_args(State):
        status = BatchStatus(id="1", state=state)
        assert status.live + status.over + (state == "unknown") == 1


@pytest.mark.parametrize(
    ("state", "more", "kind", "code", "charged"),
    [
        ("failed", {"exit_code": 7}, "exit", 7, True),
        ("failed", {"signal": 9}, "signal", 9, True),
        ("failed", {}, "exit", None, True),
        ("timeout", {"signal": 15}, "walltime", 15, True),
        ("out_of_memory", {}, "memory", None, True),
        ("cancelled", {}, "cancelled", None, False),
        ("node_fail", {}, "lost", None, False),
        ("preempted", {}, "lost", None, False),
        ("unknown", {}, "lost", None, False),
    ],
)
def test_failures(
    state: State, more: dict[str, int], kind: str, code: int | None, charged: bool
) -> None:
    why = failure(BatchStatus(id="1", state=state, reason="their words", **more))
    assert why is not None
    assert (why.kind, why.code, why.charged) == (kind, code, charged)
    assert "their words" in why.message


@pytest.mark.parametrize("state", ["pending", "held", "running", "completing", "done"])
def test_what_did_not_fail(state: State) -> None:
    assert failure(BatchStatus(id="1", state=state)) is None


def test_names_that_every_system_takes() -> None:
    names = ("select-muons.v2_a", "1: an/array", "é", "a" * 300, "-x")
    assert [plain_name(name, 20) for name in names] == [
        "select-muons.v2_a",
        "j1__an_array",
        "j_",
        "a" * 20,
        "j-x",
    ]


def test_back_ends_are_back_ends() -> None:
    systems = [Slurm(), SGE(), PBS(), PBS(dialect="torque"), HTCondor(), LSF()]
    assert all(isinstance(system, Backend) for system in systems)
    assert [system.name for system in systems if isinstance(system, Describing)] == ["htcondor"]
    assert len({hash(system) for system in systems}) == len(systems)
