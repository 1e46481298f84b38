"""The transition tables hang together, and the page drawn from them has not drifted."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from pandaflow.core import status
from pandaflow.core.status import JobStatus, RunStatus, TaskStatus

DOCS = Path(__file__).parents[3] / "docs"

#: Words by which the tables mark a change that a person asked for.
BY_A_PERSON = ("by a person", "retry", "restart")


class Table(NamedTuple):
    states: type[StrEnum]
    first: Collection[StrEnum]
    terminal: Collection[StrEnum]
    moves: Mapping[tuple[StrEnum, StrEnum], str]
    meaning: Mapping[StrEnum, str]


TABLES = {
    "job": Table(
        JobStatus,
        {JobStatus.PENDING, JobStatus.READY},
        status.JOB_TERMINAL,
        status.JOB_TRANSITIONS,
        status.JOB_MEANING,
    ),
    "task": Table(
        TaskStatus,
        {TaskStatus.DEFINED},
        status.TASK_TERMINAL,
        status.TASK_TRANSITIONS,
        status.TASK_MEANING,
    ),
    "run": Table(
        RunStatus,
        {RunStatus.DEFINED},
        status.RUN_TERMINAL,
        status.RUN_TRANSITIONS,
        status.RUN_MEANING,
    ),
}

each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def _reachable(
    start: Collection[StrEnum], moves: Collection[tuple[StrEnum, StrEnum]]
) -> set[StrEnum]:
    seen, edge = set(start), list(start)
    while edge:
        here = edge.pop()
        fresh = {finish for begin, finish in moves if begin == here} - seen
        seen |= fresh
        edge.extend(fresh)
    return seen


@each_table
def test_every_state_has_a_meaning_in_order(table: Table) -> None:
    assert list(table.meaning) == list(table.states)
    assert all(table.meaning.values())


@each_table
def test_every_state_is_reachable_from_the_first(table: Table) -> None:
    assert _reachable(table.first, table.moves) == set(table.states)


@each_table
def test_every_state_can_end_without_a_person(table: Table) -> None:
    forward = {move for move in table.moves if move[0] not in table.terminal}
    stuck = [s for s in table.states if not _reachable({s}, forward) & set(table.terminal)]
    assert stuck == []


@each_table
def test_only_a_person_leaves_a_terminal_state(table: Table) -> None:
    leaving = {move: why for move, why in table.moves.items() if move[0] in table.terminal}
    assert leaving, "a person can always try again"
    assert not [move for move, why in leaving.items() if not _asked(why)]


@each_table
def test_a_person_can_leave_every_terminal_state(table: Table) -> None:
    assert {start for start, _ in table.moves if start in table.terminal} == set(table.terminal)


@each_table
def test_leaving_a_terminal_state_never_ends_in_another(table: Table) -> None:
    jumps = [m for m in table.moves if m[0] in table.terminal and m[1] in table.terminal]
    assert jumps == []


@each_table
def test_no_state_changes_into_itself(table: Table) -> None:
    assert not [move for move in table.moves if move[0] == move[1]]


@each_table
def test_every_change_says_why(table: Table) -> None:
    assert all(why.strip() for why in table.moves.values())


@each_table
def test_everything_unfinished_can_be_cancelled(table: Table) -> None:
    cancelled = {"job": "cancelled", "task": "aborted", "run": "aborted"}
    name = next(name for name, other in TABLES.items() if other is table)
    active = set(table.states) - set(table.terminal)
    can = {start for start, finish in table.moves if finish == cancelled[name]}
    assert active <= can


def _asked(why: str) -> bool:
    return any(word in why for word in BY_A_PERSON)


def test_a_job_succeeds_only_through_holding() -> None:
    before = {start for start, finish in status.JOB_TRANSITIONS if finish == JobStatus.FINISHED}
    assert before == {JobStatus.HOLDING}


def test_live_jobs_are_those_an_executor_has() -> None:
    assert not status.JOB_LIVE & status.JOB_TERMINAL
    idle = set(JobStatus) - status.JOB_LIVE - status.JOB_TERMINAL
    assert idle == {JobStatus.PENDING, JobStatus.READY}
    # Only being given to an executor brings a job to life.
    births = {
        finish
        for start, finish in status.JOB_TRANSITIONS
        if start not in status.JOB_LIVE and finish in status.JOB_LIVE
    }
    assert births == {JobStatus.SENT}


def test_codes_are_small_numbers_in_order() -> None:
    assert [status.JOB_CODES[status.JOB_CODE[s]] for s in JobStatus] == list(JobStatus)
    assert set(status.JOB_CODE.values()) == set(range(len(JobStatus)))


def test_states_are_their_own_text() -> None:
    assert f"{JobStatus.FINISHED}" == "finished"
    assert JobStatus("failed") is JobStatus.FAILED


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_states", DOCS / "make_states.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_drawn_from_the_tables(maker: ModuleType) -> None:
    page = (DOCS / "states.md").read_text(encoding="utf-8")
    assert page == maker.render(), "run `make docs`"


@each_table
def test_the_page_tells_every_change(table: Table, maker: ModuleType) -> None:
    page = maker.render()
    for (start, finish), why in table.moves.items():
        assert f"| `{start}` | `{finish}` | {why} |" in page
        assert f"    {start} --> {finish}" in page
