"""Bundle sizes follow what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.sizing import (
    LONG_S,
    MAX_JOBS,
    TARGET_S,
    Pace,
    bundle_size,
    refill_below,
    window,
)


def pace(mean: float) -> Pace:
    made = Pace()
    made.add([mean] * 10)
    return made


def test_nothing_is_assumed() -> None:
    assert bundle_size(Pace(), 10**6, 2) == 1


def test_measured_mean() -> None:
    made = Pace()
    made.add([])
    assert (made.mean, made.measured) == (0.0, 0)
    made.add([0.1, 0.3])
    assert made.mean == pytest.approx(0.2)
    made.add([0.0] * 1000)  # a bundle of many weighs more than what was known
    assert made.mean < 0.01
    assert made.measured == 1002


def test_new_durations_take_over() -> None:
    made = pace(0.001)
    for _ in range(20):
        made.add([1.0])
    assert made.mean > 0.9


def test_no_duration_is_too_short_to_divide_by() -> None:
    assert bundle_size(pace(0.0), 10**6, 2) == MAX_JOBS


def test_short_jobs_fill_the_target() -> None:
    assert bundle_size(pace(0.001), 10**6, 2) == pytest.approx(TARGET_S / 0.001, abs=1)


def test_long_jobs_travel_alone() -> None:
    assert bundle_size(pace(LONG_S), 10**6, 2) == 1
    assert bundle_size(pace(100.0), 10**6, 2) == 1


def test_the_tail_is_shared_by_all_slots() -> None:
    assert bundle_size(pace(0.002), 40, 4) < 40
    assert bundle_size(pace(1e-6), 40, 4) == 40  # not worth the while


@given(
    mean=st.floats(0, 1e4),
    remaining=st.integers(1, 10**7),
    slots=st.integers(0, 10**4),
)
def test_sizes_are_possible(mean: float, remaining: int, slots: int) -> None:
    size = bundle_size(pace(mean), remaining, slots)
    assert 1 <= size <= min(MAX_JOBS, remaining)
    assert size == 1 or size * mean <= 2 * TARGET_S


@given(slots=st.integers(1, 10**4))
def test_the_window_is_refilled_before_slots_run_dry(slots: int) -> None:
    assert slots <= refill_below(slots) < window(slots)
