"""Secondary inputs, and jobs cut by events."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.chunking import Even, Fixed
from pandaflow.core.errors import WorkflowError
from pandaflow.core.secondary import ByEvents, EventRange, InProportion, PerJob, SecondaryMap, Whole

counts = st.lists(st.integers(0, 50), max_size=20)


def read(chunks: SecondaryMap, job: int) -> list[int]:
    return list(chain.from_iterable(chunks.files(job)))


def test_each_job_reads_all() -> None:
    assert read(Whole(3), 0) == read(Whole(3), 9) == [0, 1, 2]
    assert read(Whole(0), 0) == []


def test_so_many_files_a_job_once_or_again_and_again() -> None:
    assert [read(PerJob(6, 3, 2), k) for k in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert [read(PerJob(3, 3, 2, reused=True), k) for k in range(3)] == [[0, 1], [2, 0], [1, 2]]
    assert read(PerJob(2, 1, 5, reused=True), 0) == [0, 1, 0, 1, 0]


def test_files_in_proportion() -> None:
    chunks = InProportion(4, Fixed(6, 3), Fraction(2, 3))
    assert [read(chunks, k) for k in range(2)] == [[0, 1], [2, 3]]
    assert [read(InProportion(9, Fixed(3), Fraction(3)), k) for k in (0, 2)] == [
        [0, 1, 2],
        [6, 7, 8],
    ]


@given(st.integers(1, 60), st.integers(1, 20), st.fractions(Fraction(1, 5), 5, max_denominator=9))
def test_in_proportion_no_file_is_left_out_or_read_twice(
    items: int, jobs: int, ratio: Fraction
) -> None:
    primary = Even(items, min(jobs, items))
    needed = items * ratio.numerator // ratio.denominator
    chunks = InProportion(needed, primary, ratio)
    assert [f for k in range(primary.n_jobs) for f in read(chunks, k)] == list(range(needed))


def test_too_few_files_are_refused() -> None:
    for make in (
        lambda: PerJob(5, 3, 2),
        lambda: PerJob(0, 1, 1, reused=True),
        lambda: InProportion(3, Fixed(6, 3), Fraction(2, 3)),
    ):
        with pytest.raises(WorkflowError, match="the secondary input has"):
            make()
    with pytest.raises(WorkflowError, match="ratio=0"):
        InProportion(3, Fixed(6, 3), Fraction(0))
    assert PerJob(0, 0, 2).n_jobs == 0


def test_small_files_are_grouped_and_large_ones_cut() -> None:
    cut = ByEvents([3, 3, 10], 5)
    assert [cut.ranges(k) for k in range(cut.n_jobs)] == [
        (EventRange(0, 0, 3), EventRange(1, 0, 2)),
        (EventRange(1, 2, 3), EventRange(2, 0, 4)),
        (EventRange(2, 4, 9),),
        (EventRange(2, 9, 10),),
    ]
    apart = ByEvents([3, 2, 12, 1], 5, across=False)
    assert [apart.ranges(k) for k in range(apart.n_jobs)] == [
        (EventRange(0, 0, 3), EventRange(1, 0, 2)),
        (EventRange(2, 0, 5),),
        (EventRange(2, 5, 10),),
        (EventRange(2, 10, 12),),
        (EventRange(3, 0, 1),),
    ]


@given(counts, st.integers(1, 60), st.booleans())
def test_every_event_is_read_once_and_in_order(events: list[int], per: int, across: bool) -> None:
    cut = ByEvents(events, per, across=across)
    jobs = [cut.ranges(k) for k in range(cut.n_jobs)]
    every = [(f, e) for f, n in enumerate(events) for e in range(n)]
    assert [(r.file, e) for job in jobs for r in job for e in range(r.first, r.last)] == every
    sizes = [sum(r.last - r.first for r in job) for job in jobs]
    assert all(0 < size <= per for size in sizes)
    if across:
        assert all(size == per for size in sizes[:-1])


@given(counts, st.integers(1, 60))
def test_a_file_that_is_not_too_large_is_never_cut(events: list[int], per: int) -> None:
    cut = ByEvents(events, per, across=False)
    for job in range(cut.n_jobs):
        for each in cut.ranges(job):
            if events[each.file] <= per:
                assert (each.first, each.last) == (0, events[each.file])


def test_a_million_jobs_are_arithmetic() -> None:
    cut = ByEvents([10**6] * 1000, 1000)
    assert cut.n_jobs == 10**6
    assert cut.ranges(999_999) == (EventRange(999, 999_000, 10**6),)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(WorkflowError, match="events per job 0"):
        ByEvents([1], 0)
    with pytest.raises(WorkflowError, match="fewer than 0 events"):
        ByEvents([-1], 5)
