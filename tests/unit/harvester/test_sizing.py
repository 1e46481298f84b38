from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.grid.messages import Needs
from pandaflow.harvester.sizing import (
    LINGER,
    Leave,
    Limits,
    Plan,
    Seat,
    Submit,
    Wanted,
    holds,
    plan,
    window,
)
from pandaflow.harvester.submitter import Shape

NODE = Shape(cores=4, memory=8_000)
LARGE = Shape(cores=16, memory=64_000, gpus=2)


def want(ready: int, probe: bool = False, **needs: Any) -> Wanted:
    return Wanted(Needs(**needs), ready, probe)


def seat(name: str = "p", stage: Any = "idle", **more: Any) -> Seat:
    cores = 4 if stage == "idle" else 0
    return Seat(name, NODE, stage, **{"cores": cores, **more})


def ask(*wanted: Wanted, seats: tuple[Seat, ...] = (), **limits: Any) -> Plan:
    return plan(wanted, seats, [NODE], Limits(**{"pilots_a_minute": 1_000, **limits}))


# --- demand -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "pilots"),
    [
        (want(1), 1),
        (want(4), 1),
        (want(5), 2),
        (want(3, cores=2), 2),
        (want(2, cores=3), 2),
        (want(4, memory=4_000), 2),
    ],
)
def test_bundles_share_pilots(wanted: Wanted, pilots: int) -> None:
    assert ask(wanted).submit == (Submit(NODE, pilots),)


def test_small_ones_fill_what_large_ones_leave() -> None:
    assert ask(want(2), want(2, cores=3)).count == 2
    assert ask(want(3), want(2, cores=3)).count == 3


@pytest.mark.parametrize("stage", ["idle", "starting", "waiting", "ordered"])
def test_pilots_on_their_way_count(stage: Any) -> None:
    assert ask(want(4), seats=(seat(stage=stage),)).count == 0
    assert ask(want(5), seats=(seat(stage=stage),)).count == 1


def test_a_busy_pilot_takes_what_it_has_free() -> None:
    assert ask(want(1), seats=(seat(stage="busy", cores=1),)).count == 0
    assert ask(want(2), seats=(seat(stage="busy", cores=1),)).count == 1


def test_a_pilot_that_leaves_takes_nothing_but_has_its_place() -> None:
    leaving = seat(leaving=True)
    assert ask(want(1), seats=(leaving,)).count == 1
    assert ask(want(1), seats=(leaving,), max_pilots=1).count == 0


def test_walltime_that_is_left_must_do() -> None:
    late = seat(left=100.0)
    assert ask(want(1, walltime=60.0), seats=(late,)).count == 0
    assert ask(want(1, walltime=600.0), seats=(late,)).count == 1


def test_the_smallest_shape_that_holds_a_bundle() -> None:
    wanted = [want(1, cores=2), want(1, cores=8), want(1, gpus=1), want(1, cores=99)]
    made = plan(wanted, [], [NODE, LARGE], Limits())
    assert made.submit == (Submit(LARGE, 1),), "both others fit into it as well"
    assert made.unserved == 1
    assert plan([wanted[0]], [], [NODE, LARGE], Limits()).submit == (Submit(NODE, 1),)


def test_tags_are_of_pilots_and_queue() -> None:
    wanted = [want(1, tags=("ssd",))]
    assert plan(wanted, [], [NODE], Limits()).unserved == 1
    assert plan(wanted, [], [NODE], Limits(), frozenset({"ssd", "x"})).count == 1
    assert not holds(NODE, wanted[0].needs, frozenset())


def test_shapes_take_turns_under_a_limit() -> None:
    wanted = [want(40), want(10, gpus=2)]
    made = plan(wanted, [], [NODE, LARGE], Limits(max_pilots=4))
    assert dict(made.submit) in ({NODE: 2, LARGE: 2}, {LARGE: 4})
    assert made.why == "max_pilots=4 is reached"


def test_a_class_that_was_left_before_gets_one_pilot() -> None:
    assert ask(want(100, probe=True)).count == 1


# --- limits -----------------------------------------------------------------------------


def test_each_limit_holds_and_says_so() -> None:
    many = want(1_000)
    assert (made := ask(many)).count == 10 and made.why == "max_pilots=10 is reached"
    made = ask(many, seats=tuple(seat(f"{n}", "waiting") for n in range(3)), max_waiting=5)
    assert made.count == 2 and made.why == "3 wait in the batch system already"
    made = ask(many, pilots_a_minute=4, recent=3)
    assert made.count == 1 and "3 were submitted within 60 s" in made.why
    made = ask(many, credit=1)
    assert made.count == 1 and "pilots have failed" in made.why
    assert ask(many, credit=1, seats=(seat(stage="starting"),)).count == 0
    made = ask(many, shut="the queue is closed: rain")
    assert made.count == 0 and made.why == "the queue is closed: rain"


def test_less_than_one_pilot_a_minute() -> None:
    assert window(0.5) == 120 and window(10) == 60
    assert ask(want(9), pilots_a_minute=0.5).count == 1
    assert ask(want(9), pilots_a_minute=0.5, recent=1).count == 0


def test_the_least_number_of_pilots() -> None:
    assert ask(min_pilots=2).count == 2
    assert ask(min_pilots=2, seats=(seat(since=9_999.0),)) == Plan((Submit(NODE, 1),), wanted=1)
    assert ask(want(4), min_pilots=2).count == 2
    assert ask(min_pilots=2, shut="closed").count == 0


# --- who goes ---------------------------------------------------------------------------


def test_what_nothing_waits_for_is_cancelled_after_a_while() -> None:
    waiting = seat(stage="waiting", since=LINGER + 1)
    assert ask(seats=(replace(waiting, since=LINGER - 1),)).leave == ()
    (leave,) = ask(seats=(waiting,)).leave
    assert leave == Leave("p", "cancel", "nothing waits for it any more")
    assert ask(want(1), seats=(waiting,)).leave == ()
    assert ask(seats=(waiting,), min_pilots=1).leave == ()


def test_idle_pilots_are_drained() -> None:
    (leave,) = ask(seats=(seat(since=301.0),)).leave
    assert leave == Leave("p", "drain", "idle for 301 s")
    assert ask(want(1), seats=(seat(since=301.0),)).leave == ()
    assert ask(seats=(seat(since=301.0),), min_pilots=1).leave == ()


def test_a_lower_limit_sends_the_least_useful_away() -> None:
    seats = (
        seat("busy", "busy"),
        seat("idle"),
        seat("waiting", "waiting"),
        seat("starting", "starting"),
        seat("ordered", "ordered"),
    )
    assert [x[:2] for x in ask(want(99), seats=seats, max_pilots=2).leave] == [
        ("waiting", "cancel"),
        ("starting", "cancel"),
        ("idle", "drain"),
    ]
    assert len(ask(seats=seats, max_pilots=0).leave) == 4, "nobody knows the ordered one yet"


def test_a_shut_queue_keeps_what_runs() -> None:
    seats = (seat("a", "waiting"), seat("b", "idle"), seat("c", "starting"))
    made = ask(want(9), seats=seats, shut="held")
    assert [each.name for each in made.leave] == ["a"]


def test_pilots_of_others_only_take_work() -> None:
    other = seat("other", ours=False, since=9_999.0)
    made = ask(want(5), seats=(other,), max_pilots=1)
    assert made.count == 1 and made.leave == ()


# --- whatever there is ------------------------------------------------------------------

SHAPES = [NODE, LARGE, Shape(cores=1, walltime=600.0)]
needs = st.builds(
    Needs,
    cores=st.integers(1, 20),
    gpus=st.integers(0, 3),
    memory=st.none() | st.integers(0, 100_000),
    walltime=st.none() | st.floats(1, 1_000),
)
wishes = st.lists(st.builds(Wanted, needs, st.integers(0, 10_000), st.booleans()), max_size=5)
stages = st.sampled_from(["ordered", "waiting", "starting", "busy", "idle"])
crowd = st.lists(
    st.builds(
        Seat,
        st.integers(0, 10**6).map(str),
        st.sampled_from(SHAPES),
        stages,
        cores=st.integers(0, 16),
        since=st.floats(0, 10_000),
        left=st.floats(0, 10_000),
        ours=st.booleans(),
        leaving=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda each: each.name,
)
least = st.integers(0, 5)
bounds = st.builds(
    lambda low, more, **fields: Limits(min_pilots=low, max_pilots=low + more, **fields),
    least,
    st.integers(0, 20),
    max_waiting=st.integers(0, 20),
    pilots_a_minute=st.floats(0.1, 100),
    recent=st.integers(0, 100),
    credit=st.none() | st.integers(0, 2),
    shut=st.sampled_from(["", "", "", "closed"]),
)


@given(wishes, crowd, bounds)
def test_limits_are_never_passed(wanted: list[Wanted], seats: list[Seat], limits: Limits) -> None:
    made = plan(wanted, seats, SHAPES, limits)
    ours = [each for each in seats if each.ours]
    queued = [each for each in ours if each.stage in ("ordered", "waiting")]
    assert all(each.pilots > 0 for each in made.submit)
    if made.count:
        assert not limits.shut
        assert len(ours) + made.count <= limits.max_pilots
        assert len(queued) + made.count <= limits.max_waiting
        rate = limits.pilots_a_minute * window(limits.pilots_a_minute) / 60
        assert limits.recent + made.count <= rate + 0.5
        assert limits.credit is None or made.count <= limits.credit
    assert made.count <= made.wanted
    assert bool(made.why) == (made.count < made.wanted or bool(limits.shut))


@given(crowd, bounds)
def test_without_demand_only_the_least_number_is_kept(seats: list[Seat], limits: Limits) -> None:
    there = sum(each.ours and not each.leaving for each in seats)
    made = plan([Wanted(Needs(), 0)], seats, SHAPES, limits)
    assert made.count <= max(0, limits.min_pilots - there)


@given(wishes, crowd, bounds)
def test_who_goes_is_ours_once_and_leaves_enough(
    wanted: list[Wanted], seats: list[Seat], limits: Limits
) -> None:
    made = plan(wanted, seats, SHAPES, limits)
    known = {each.name: each for each in seats}
    names = [each.name for each in made.leave]
    assert len(set(names)) == len(names)
    assert all(known[name].ours and not known[name].leaving for name in names)
    staying = sum(each.ours and not each.leaving for each in seats)
    if not limits.shut:
        assert staying - len(names) >= min(staying, limits.min_pilots)
    for each in made.leave:
        unheard = known[each.name].stage in ("waiting", "starting")
        assert each.how == ("cancel" if unheard else "drain") and each.why


@given(wishes, bounds)
def test_what_was_submitted_is_not_wanted_again(wanted: list[Wanted], limits: Limits) -> None:
    free = replace(limits, max_pilots=10**6, max_waiting=10**6, pilots_a_minute=1e6, credit=None)
    free = replace(free, recent=0, shut="", min_pilots=0)
    first = plan(wanted, [], SHAPES, free)
    seats = [
        Seat(f"{shape}-{number}", shape, "ordered")
        for shape, count in first.submit
        for number in range(min(count, 3_000))
    ]
    if len(seats) == first.count and not any(each.probe for each in wanted):
        assert plan(wanted, seats, SHAPES, free).count <= first.count // 2
        assert plan(wanted, [], SHAPES, free).unserved == first.unserved


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_equal_bundles_are_exactly_seated(counts: list[int]) -> None:
    """With bundles of one core the number of pilots is the least that holds them all."""
    wanted = [Wanted(Needs(near=(str(i),)), count) for i, count in enumerate(counts)]
    assert ask(*wanted, max_pilots=10**6, max_waiting=10**6).count == -(-sum(counts) // 4)
