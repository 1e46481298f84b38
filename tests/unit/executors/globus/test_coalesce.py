"""Which calls go together, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pandaflow.executors.globus.coalesce import Pace, first_group

SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=60)


@given(SIZES, st.integers(1, 3000), st.integers(1, 20))
def test_groups_stay_below_both_limits_and_lose_nothing(
    sizes: list[int], limit: int, most: int
) -> None:
    left, groups = list(sizes), []
    while left:
        count = first_group(left, limit, most)
        groups.append(left[:count])
        left = left[count:]
    assert [size for group in groups for size in group] == sizes
    assert all(1 <= len(group) <= most for group in groups)
    assert all(sum(group) <= limit or len(group) == 1 for group in groups)


@given(SIZES, st.integers(1, 3000), st.integers(1, 20))
def test_groups_are_as_large_as_they_may(sizes: list[int], limit: int, most: int) -> None:
    count = first_group(sizes, limit, most)
    if count < min(len(sizes), most):
        assert sum(sizes[: count + 1]) > limit


@given(st.lists(st.floats(0.0, 3.0), max_size=80), st.integers(1, 10))
def test_no_window_has_more_requests_than_allowed(pauses: list[float], requests: int) -> None:
    pace, now, made = Pace(requests, 10.0), 0.0, []
    for pause in pauses:
        now += pause
        now += pace.wait(now)
        assert pace.wait(now) < 1e-6
        pace.made(now)
        made.append(now)
    for first, later in zip(made, made[requests:], strict=False):
        assert later - first >= 10.0 - 1e-6


def test_the_first_requests_need_not_wait() -> None:
    pace = Pace(3, 10.0)
    for at in (0.0, 0.1, 0.2):
        assert pace.wait(at) == 0.0
        pace.made(at)
    assert pace.wait(0.3) == 9.7
