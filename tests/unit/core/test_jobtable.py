"""Job columns: moves by the table, counters, ranges, places of values."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.errors import InvalidTransition
from pandaflow.core.jobtable import (
    BLOCKED,
    CLOSED,
    FAILED,
    FINISHED,
    FRESH,
    HOLDING,
    NOT_COMING,
    NOT_FINISHED,
    NOT_TERMINAL,
    PENDING,
    QUEUED,
    READY,
    RUNNING,
    SENT,
    STATUS_OF,
    JobTable,
)
from pandaflow.core.model import compact
from pandaflow.core.status import JOB_LIVE, JOB_TERMINAL, JOB_TRANSITIONS, JobStatus


def table(*codes: int) -> JobTable:
    """A table with jobs in the given states, however they came there."""
    made = JobTable("select")
    made.grow(len(codes), PENDING)
    for job, code in enumerate(codes):
        made.counts[made.state[job]] -= 1
        made.counts[code] += 1
        made.state[job] = code
    return made


def test_growth() -> None:
    made = JobTable("select")
    made.grow(3, PENDING)
    made.grow(5, READY)
    assert list(made.state) == [PENDING] * 3 + [READY] * 2
    assert list(made.ended) == [0] * 5
    assert list(made.bundle) == [-1] * 5
    assert (made.counts[PENDING], made.counts[READY]) == (3, 2)


def test_a_million_jobs_are_three_arrays() -> None:
    made = JobTable("select")
    made.grow(1_000_000, READY)
    assert (type(made.state), type(made.ended), type(made.bundle)) == (bytearray, array, array)
    made.move(range(1_000_000), SENT)
    assert made.live() == 1_000_000


@pytest.mark.parametrize("jobs", [range(1, 4), (0, 2, 4)], ids=["range", "scattered"])
def test_illegal_move_changes_nothing(jobs: range | tuple[int, ...]) -> None:
    made = table(READY, READY, FINISHED, READY, READY)
    with pytest.raises(InvalidTransition, match=r"job select\[2\]: finished -> sent"):
        made.move(jobs, SENT)
    assert list(made.state) == [READY, READY, FINISHED, READY, READY]
    assert made.counts[READY] == 4


@pytest.mark.parametrize("start", range(len(STATUS_OF)))
@pytest.mark.parametrize("finish", range(len(STATUS_OF)))
def test_moves_are_those_of_the_table(start: int, finish: int) -> None:
    made = table(start)
    names = STATUS_OF[start], STATUS_OF[finish]
    if names in JOB_TRANSITIONS or names[0] == names[1]:
        made.move(range(1), finish)
        assert made.status(0) == names[1]
    else:
        with pytest.raises(InvalidTransition):
            made.move(range(1), finish)


def test_blocked_and_queued_have_public_names() -> None:
    made = table(BLOCKED, QUEUED)
    assert [made.status(job) for job in range(2)] == [JobStatus.PENDING, JobStatus.READY]


@given(
    st.lists(st.integers(0, len(STATUS_OF) - 1), min_size=1, max_size=30),
    st.data(),
)
def test_counts_and_searches_agree_with_the_states(codes: list[int], data: st.DataObject) -> None:
    made = table(*codes)
    finish = data.draw(st.integers(0, len(STATUS_OF) - 1))
    chosen = data.draw(st.sets(st.integers(0, len(codes) - 1), min_size=1))
    before = bytes(made.state)
    try:
        made.move(compact(sorted(chosen)), finish)
    except InvalidTransition:
        assert bytes(made.state) == before
    assert made.counts == [made.state.count(code) for code in range(len(STATUS_OF))]
    lo = data.draw(st.integers(0, len(codes)))
    hi = data.draw(st.integers(lo, len(codes)))
    wanted = data.draw(st.sets(st.integers(0, len(STATUS_OF) - 1), min_size=1))
    found = [job for piece in made.jobs_in(wanted, lo, hi) for job in piece]
    assert found == [job for job in range(lo, hi) if made.state[job] in wanted]
    statuses = [made.status(job) for job in range(len(codes))]
    assert made.terminal() == sum(status in JOB_TERMINAL for status in statuses)
    assert made.live() == sum(status in JOB_LIVE for status in statuses)


def test_patterns() -> None:
    made = table(PENDING, READY, BLOCKED, QUEUED, SENT, RUNNING, HOLDING, FINISHED, FAILED)
    jobs = range(len(made))

    def matching(pattern) -> list[int]:
        return [job for job in jobs if made.first(pattern, job, job + 1) is not None]

    assert matching(FRESH) == [0, 1]
    assert matching(NOT_COMING) == [0, 1, 2, 3, 8]
    assert matching(NOT_FINISHED) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert matching(NOT_TERMINAL) == [0, 1, 2, 3, 4, 5, 6]
    assert made.first(FRESH, 2, len(made)) is None


def test_places_of_values() -> None:
    made = table(*[READY] * 6)
    made.move(range(6), SENT)
    made.place((0, 1, 4), 7)
    made.place(range(2, 4), 8)
    assert list(made.bundle) == [7, 7, 8, 8, 7, -1]
    assert made.bundles(0, 6) == {7, 8}
    assert made.bundles(5, 6) in (set(), {-1})


@pytest.mark.parametrize("code", [QUEUED, FAILED, PENDING, CLOSED])
def test_a_job_that_gave_nothing_has_no_place(code: int) -> None:
    """Its bundle may never have come to write a file."""
    made = table(RUNNING, RUNNING, RUNNING)
    made.place(range(3), 9)
    made.move(range(1, 2), code)
    assert list(made.bundle) == [9, -1, 9]
