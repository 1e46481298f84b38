"""Chunk maps: each item is read by one job, and all views of a map agree."""

from __future__ import annotations

import itertools
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.chunking import Bounds, ChunkMap, Even, Fixed, NoItems, grow, split
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import File
from pandaflow.core.policy import SplitRule

sizes = st.lists(st.integers(1, 6), max_size=25)


def _bounds(chunk_sizes: list[int]) -> Bounds:
    chunks = Bounds()
    for size in chunk_sizes:
        chunks.append(size)
    return chunks


fixed = st.builds(Fixed, st.integers(0, 80), st.integers(1, 12))
even = st.integers(1, 80).flatmap(lambda n: st.builds(Even, st.just(n), st.integers(1, n)))
maps = st.one_of(fixed, even, sizes.map(_bounds))


def _n_items(chunks: ChunkMap) -> int:
    return chunks.items(chunks.n_jobs - 1)[1] if chunks.n_jobs else 0


# --- properties of every map --------------------------------------------------------------


@given(maps)
def test_jobs_partition_the_items(chunks: ChunkMap) -> None:
    edges = [chunks.items(job) for job in range(chunks.n_jobs)]
    assert all(lo < hi for lo, hi in edges)
    assert [item for lo, hi in edges for item in range(lo, hi)] == list(range(_n_items(chunks)))


@given(st.one_of(fixed, even))
def test_all_items_are_read(chunks: Fixed | Even) -> None:
    assert _n_items(chunks) == chunks.n_items


@given(maps)
def test_jobs_is_the_inverse_of_items(chunks: ChunkMap) -> None:
    for job in range(chunks.n_jobs):
        assert chunks.jobs(*chunks.items(job)) == (job, job + 1)
        for item in range(*chunks.items(job)):
            assert chunks.jobs(item, item + 1) == (job, job + 1)


@given(maps, st.data())
def test_jobs_of_a_slice_are_those_that_read_it(chunks: ChunkMap, data: st.DataObject) -> None:
    n = _n_items(chunks)
    lo = data.draw(st.integers(0, n))
    hi = data.draw(st.integers(lo, n))
    readers = [
        job
        for job in range(chunks.n_jobs)
        if chunks.items(job)[0] < hi and chunks.items(job)[1] > lo and lo < hi
    ]
    assert list(range(*chunks.jobs(lo, hi))) == readers


@given(maps)
def test_an_empty_slice_has_no_readers(chunks: ChunkMap) -> None:
    assert len(range(*chunks.jobs(3, 3))) == 0


# --- single maps --------------------------------------------------------------------------


def test_jobs_without_items() -> None:
    chunks = NoItems(3)
    assert [chunks.items(job) for job in range(3)] == [(0, 0)] * 3
    assert chunks.jobs(0, 10) == (0, 0)


@given(even)
def test_even_parts_differ_by_one_at_most(chunks: Even) -> None:
    lengths = [hi - lo for lo, hi in map(chunks.items, range(chunks.n_jobs))]
    assert max(lengths) - min(lengths) <= 1


def test_a_map_of_a_million_jobs_is_arithmetic() -> None:
    chunks = split(SplitRule(), 10**12)
    assert chunks.n_jobs == 10**12
    assert chunks.items(10**12 - 1) == (10**12 - 1, 10**12)
    assert split(SplitRule(n_jobs=10**6), 10**12).items(10**6 - 1)[1] == 10**12


# --- open datasets ------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(1, 7))
def test_growing_step_by_step_is_cutting_at_once(steps: list[int], size: int) -> None:
    chunks, arrived, made = Bounds(), 0, 0
    for step in steps:
        arrived += step
        made += grow(chunks, arrived, size, closed=False)
        assert arrived - chunks.bounds[-1] < size, "nothing whole may wait"
    made += grow(chunks, arrived, size, closed=True)
    whole = Fixed(arrived, size)
    assert made == chunks.n_jobs == whole.n_jobs
    assert [chunks.items(j) for j in range(made)] == [whole.items(j) for j in range(made)]


@given(st.integers(0, 30), st.integers(1, 7))
def test_growing_is_idempotent(arrived: int, size: int) -> None:
    chunks = Bounds()
    grow(chunks, arrived, size, closed=True)
    before = array("q", chunks.bounds)
    assert grow(chunks, arrived, size, closed=True) == 0
    assert chunks.bounds == before


# --- split rules --------------------------------------------------------------------------

weights = st.lists(st.integers(0, 50), max_size=30)


def _files(events: list[int], gigabytes: float = 1.0) -> list[File]:
    size = int(gigabytes * 10**9)
    return [File(f"f{k}.root", size=size, events=n) for k, n in enumerate(events)]


def test_no_rule_is_one_job_per_item() -> None:
    assert split(SplitRule(), 7) == Fixed(7, 1)


def test_events_beat_items_beat_gigabytes_beat_jobs() -> None:
    files = _files([10] * 12)
    rules = {"events_per_job": 20, "items_per_job": 3, "gb_per_job": 4.0, "n_jobs": 2}
    counts = []
    while rules:
        counts.append(split(SplitRule(**rules), 12, files).n_jobs)  # type: ignore[arg-type]
        del rules[next(iter(rules))]
    assert counts == [6, 4, 3, 2]


@given(weights, st.integers(1, 60))
def test_events_fill_jobs_in_order_up_to_the_limit(events: list[int], limit: int) -> None:
    chunks = split(SplitRule(events_per_job=limit), len(events), _files(events))
    parts = [events[lo:hi] for lo, hi in map(chunks.items, range(chunks.n_jobs))]
    assert [n for part in parts for n in part] == events
    assert all(len(part) == 1 or sum(part) <= limit for part in parts)
    followers = itertools.pairwise(parts)
    assert all(sum(part) + after[0] > limit for part, after in followers), "greedy"


def test_gigabytes_count_bytes_of_ten_to_the_nine() -> None:
    chunks = split(SplitRule(gb_per_job=2.5), 6, _files([1] * 6))
    assert [chunks.items(job) for job in range(chunks.n_jobs)] == [(0, 2), (2, 4), (4, 6)]


@given(st.integers(0, 40), st.integers(1, 50))
def test_never_more_jobs_than_items(n_items: int, n_jobs: int) -> None:
    assert split(SplitRule(n_jobs=n_jobs), n_items).n_jobs == min(n_jobs, n_items)


@pytest.mark.parametrize("rule", [SplitRule(events_per_job=5), SplitRule(gb_per_job=1.0)])
def test_a_rule_by_weight_needs_files(rule: SplitRule) -> None:
    with pytest.raises(WorkflowError, match=r"task 'select'.*pf\.files"):
        split(rule, 3, task="select")


@pytest.mark.parametrize(
    ("rule", "file"),
    [
        (SplitRule(events_per_job=5), File("b.root", size=1)),
        (SplitRule(gb_per_job=1.0), File("b.root", events=1)),
    ],
)
def test_a_file_without_its_weight_is_named(rule: SplitRule, file: File) -> None:
    with pytest.raises(WorkflowError, match=r"b\.root has none"):
        split(rule, 2, [File("a.root", size=1, events=1), file])


def test_a_weight_of_zero_is_known() -> None:
    assert split(SplitRule(events_per_job=5), 2, _files([0, 0])).n_jobs == 1
