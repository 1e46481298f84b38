"""The account of pilots of one kind, as scripts of what happens to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.executors.batch.fleet import Allowance, Fleet, Pilot, Plan, Seen
from pandaflow.executors.batch.model import BatchStatus, State

IDLE, BUSY = Seen(0), Seen(2)


def status(one: str, state: State, reason: str = "") -> BatchStatus:
    return BatchStatus(id=one, state=state, reason=reason)


def running(*ids: str) -> dict[str, BatchStatus]:
    return {one: status(one, "running") for one in ids}


def pending(*ids: str) -> dict[str, BatchStatus]:
    return {one: status(one, "pending", "Priority") for one in ids}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(idle=10.0, tardy=100.0)


# --- what becomes of pilots -------------------------------------------------------------


def test_a_pilot_joins_when_its_worker_does(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    assert fleet.update(1.0, pending("1"), {}) == {}
    assert not fleet.pilots["1"].joined
    assert (fleet.pilots["1"].state, fleet.pilots["1"].reason) == ("pending", "Priority")
    fleet.update(2.0, running("1"), {"1": BUSY})
    assert fleet.pilots["1"].joined
    assert (fleet.started, fleet.spoiled) == (1, 0)


def test_a_worker_counts_although_the_batch_system_is_behind(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(500.0, {"1": status("1", "cancelled")}, {"1": IDLE})
    assert fleet.pilots["1"].joined


def test_an_end_is_told_once(fleet: Fleet) -> None:
    fleet.submitted(["1", "2"], 0.0)
    fleet.update(1.0, running("1", "2"), {"1": BUSY, "2": BUSY})
    gone = status("1", "node_fail")
    assert fleet.update(2.0, {**running("2"), "1": gone}, {"2": BUSY}) == {"1": gone}
    assert fleet.update(3.0, {**running("2"), "1": gone}, {"2": BUSY}) == {}
    assert fleet.spoiled == 0, "it had come: its site is not to blame for the start"


def test_a_pilot_without_workers_is_there_while_its_batch_job_runs(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(1.0, running("1"), {"1": BUSY})
    assert fleet.update(2.0, running("1"), {}) == {}
    assert fleet.staying(2.0) == 1


def test_what_the_system_does_not_know_is_lost_after_a_while(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    assert fleet.update(1.0, {}, {}) == {}
    assert fleet.update(30.0, {}, {}) == {}
    assert fleet.update(31.0, {}, {}) == {"1": None}
    assert fleet.spoiled == 1


def test_unknown_for_a_moment_is_not_lost(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(1.0, {"1": status("1", "unknown")}, {})
    fleet.update(20.0, running("1"), {})
    assert fleet.update(40.0, {}, {}) == {}, "it counts from anew"
    assert "1" in fleet.update(70.0, {}, {})


def test_pilots_found_again_after_a_change_of_drivers_are_counted(fleet: Fleet) -> None:
    fleet.submitted(["7", "8"], 50.0)
    fleet.update(51.0, running("7", "8"), {})
    assert fleet.plan(51.0, 2) == Plan()
    assert fleet.plan(51.0, 3).submit == 1


def test_a_pilot_that_is_requeued_waits_again(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(1.0, running("1"), {"1": Seen(1, draining=True)})
    assert fleet.staying(1.0) == 0
    fleet.update(2.0, {"1": status("1", "completing")}, {})
    fleet.update(200.0, pending("1"), {})
    assert not fleet.pilots["1"].joined
    assert (fleet.staying(200.0), fleet.tardy(299.0), fleet.tardy(300.0)) == (1, 0, 1)
    assert fleet.plan(200.0, 1) == Plan(), "no other one is needed"


def test_a_pilot_whose_state_is_told_late_is_no_requeued_one(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(1.0, pending("1"), {"1": BUSY})
    fleet.update(2.0, pending("1"), {})
    assert fleet.pilots["1"].joined


# --- failures ---------------------------------------------------------------------------


def spoil(fleet: Fleet, now: float, number: int) -> None:
    ids = [f"{now}-{each}" for each in range(number)]
    fleet.submitted(ids, now)
    fleet.update(now, {one: status(one, "failed") for one in ids}, {})


def test_three_failures_in_a_row_earn_a_rest_that_doubles(fleet: Fleet) -> None:
    spoil(fleet, 0.0, 2)
    assert fleet.plan(0.0, 1).submit == 1
    spoil(fleet, 1.0, 1)
    assert fleet.plan(1.0, 1).submit == 0
    assert "left alone" in fleet.trouble(1.0)
    assert fleet.plan(31.0, 1).submit == 1
    assert fleet.trouble(31.0) == ""
    spoil(fleet, 31.0, 3)
    assert fleet.plan(90.0, 1).submit == 0
    assert fleet.plan(91.0, 1).submit == 1


def test_the_rest_has_an_upper_limit(fleet: Fleet) -> None:
    for _ in range(12):
        fleet.refused(0.0)
    assert fleet.trouble(599.0)
    assert not fleet.trouble(600.0)


def test_a_pilot_that_joins_clears_the_record(fleet: Fleet) -> None:
    fleet.refused(0.0)
    fleet.submitted(["1"], 30.0)
    fleet.update(31.0, running("1"), {"1": BUSY})
    spoil(fleet, 32.0, 2)
    assert fleet.plan(32.0, 4).submit == 3
    fleet.refused(33.0)
    assert fleet.plan(63.0, 4).submit == 3, "the first rest again, not the second"


def test_a_pilot_that_was_told_to_go_does_not_count_as_failed(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    assert fleet.plan(20.0, 0).cancel == ("1",)
    assert "1" in fleet.update(21.0, {"1": status("1", "cancelled")}, {})
    assert fleet.spoiled == 0


# --- plans ------------------------------------------------------------------------------


def test_as_many_as_are_wanted(fleet: Fleet) -> None:
    assert fleet.plan(0.0, 3).submit == 3
    fleet.submitted(["1", "2"], 0.0)
    assert fleet.plan(0.0, 3).submit == 1


def test_what_is_idle_for_long_enough_goes_the_longest_idle_first(fleet: Fleet) -> None:
    fleet.submitted(["1", "2", "3"], 0.0)
    fleet.update(0.0, running("1", "2", "3"), {"1": BUSY, "2": IDLE, "3": BUSY})
    fleet.update(5.0, running("1", "2", "3"), {"1": IDLE, "2": IDLE, "3": BUSY})
    assert fleet.plan(9.0, 1) == Plan()
    assert fleet.plan(15.0, 2).retire == ("2",)
    assert fleet.plan(15.0, 2).retire == ("2",), "until it is gone"
    assert set(fleet.plan(15.0, 1).retire) == {"2", "1"}


def test_work_in_between_is_no_idleness(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    for now, seen in ((0.0, IDLE), (8.0, BUSY), (9.0, IDLE)):
        fleet.update(now, running("1"), {"1": seen})
    assert fleet.plan(18.0, 0) == Plan()
    assert fleet.plan(19.0, 0).retire == ("1",)


def test_what_still_waits_goes_before_what_is_idle(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(0.0, running("1"), {"1": IDLE})
    fleet.submitted(["2"], 1.0)
    fleet.update(20.0, {**running("1"), **pending("2")}, {"1": IDLE})
    plan = fleet.plan(20.0, 1)
    assert (plan.cancel, plan.retire) == (("2",), ())


def test_a_pilot_on_its_way_is_not_cancelled(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(50.0, running("1"), {})  # it runs, and its worker is about to come
    assert fleet.plan(50.0, 0) == Plan()


def names(pilots: list[Pilot]) -> list[str]:
    return [pilot.id for pilot in pilots]


def test_what_is_idle_is_given_first_and_what_is_busy_only_if_it_must_be(fleet: Fleet) -> None:
    def made() -> Fleet:
        made = Fleet(idle=10.0, tardy=100.0)
        made.submitted(["1", "2", "3"], 0.0)
        made.update(0.0, {**running("1", "2"), **pending("3")}, {"1": BUSY, "2": IDLE})
        return made

    assert names(made().give(0.0, 0, 9, busy=False)) == ["2", "3"]
    assert names(made().give(0.0, 0, 9, busy=True)) == ["2", "3", "1"]
    assert names(made().give(0.0, 0, 1, busy=True)) == ["2"]
    assert names(made().give(0.0, 2, 9, busy=True)) == ["2"], "what is wanted stays"
    assert made().give(0.0, 3, 9, busy=True) == []


def test_what_was_given_is_counted_where_it_was_taken(fleet: Fleet) -> None:
    other = Fleet(idle=10.0, tardy=100.0)
    fleet.submitted(["1", "2"], 0.0)
    fleet.update(90.0, {**running("1"), **pending("2")}, {"1": IDLE})
    other.take(fleet.give(90.0, 0, 2, busy=False), 90.0)
    assert (fleet.staying(90.0), other.staying(90.0)) == (0, 2)
    assert not other.pilots["1"].joined, "its new workers are still to come"
    assert other.tardy(101.0) == 1, "what waits has waited since it was submitted"
    assert other.update(91.0, {"1": status("1", "failed")}, {}).keys() == {"1"}


def test_a_pilot_that_drains_by_itself_is_replaced(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(0.0, running("1"), {"1": Seen(1, draining=True)})
    assert fleet.plan(0.0, 1).submit == 1


def test_a_tardy_pilot_is_not_counted_on_and_kept_while_there_is_work(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(99.0, pending("1"), {})
    assert (fleet.tardy(99.0), fleet.plan(99.0, 1)) == (0, Plan())
    fleet.update(100.0, pending("1"), {})
    assert (fleet.tardy(100.0), fleet.staying(100.0)) == (1, 0)
    assert fleet.plan(100.0, 1) == Plan(submit=1)
    assert fleet.plan(100.0, 0) == Plan()
    assert fleet.plan(100.0, 0, work=False).cancel == ("1",)


def test_a_tardy_pilot_that_comes_in_the_end_counts_again(fleet: Fleet) -> None:
    fleet.submitted(["1"], 0.0)
    fleet.update(200.0, running("1"), {"1": IDLE})
    assert (fleet.tardy(200.0), fleet.staying(200.0)) == (0, 1)


seens = st.one_of(st.none(), st.builds(Seen, st.integers(0, 3), st.booleans()))
states = st.sampled_from(["pending", "held", "running", "unknown", "failed", "done", None])


@given(st.data())
def test_whatever_happens_the_account_holds(data: st.DataObject) -> None:
    fleet, now, count = Fleet(idle=10.0, tardy=100.0), 0.0, 0
    for _ in range(data.draw(st.integers(1, 25))):
        now += data.draw(st.sampled_from([0.5, 9.0, 40.0, 120.0]))
        statuses, workers = {}, {}
        for one in list(fleet.pilots):
            state, seen = data.draw(states), data.draw(seens)
            if state is not None:
                statuses[one] = status(one, state)
            if seen is not None:
                workers[one] = seen
        before = set(fleet.pilots)
        ended = fleet.update(now, statuses, workers)
        assert before == set(ended) | set(fleet.pilots)
        assert not set(ended) & set(workers)
        wanted, work = data.draw(st.integers(0, 4)), data.draw(st.booleans())
        staying, tardy = fleet.staying(now), fleet.tardy(now)
        plan = fleet.plan(now, wanted, work=work)
        told = [*plan.cancel, *plan.retire]
        assert len(told) == len(set(told)), "each is told one thing"
        assert set(told) <= set(fleet.pilots)
        assert plan.submit <= max(0, wanted - staying)
        left = fleet.staying(now) + (0 if work else fleet.tardy(now))
        counted = staying + (0 if work else tardy)
        assert left >= min(wanted, counted), "none goes that is wanted"
        fleet.submitted([f"p{count + n}" for n in range(plan.submit)], now)
        count += plan.submit


# --- the rate ---------------------------------------------------------------------------


def test_a_minute_s_worth_at_once_and_then_the_rate() -> None:
    allowance = Allowance(6.0)
    assert allowance.take(100.0, 10) == 6
    assert allowance.take(100.0, 1) == 0
    assert allowance.take(109.0, 1) == 0
    assert allowance.take(111.0, 5) == 1
    assert allowance.take(10_000.0, 100) == 6


def test_nothing_wanted_costs_nothing() -> None:
    allowance = Allowance(2.0)
    assert [allowance.take(0.0, wanted) for wanted in (0, -3, 5)] == [0, 0, 2]


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0.0, 50.0), st.integers(0, 300)), max_size=40),
)
def test_never_above_the_rate(rate: int, asked: list[tuple[float, int]]) -> None:
    allowance, now, taken = Allowance(float(rate)), 0.0, 0
    for pause, wanted in asked:
        now += pause
        taken += allowance.take(now, wanted)
    assert taken <= rate + now / 60.0 * rate + 1e-6
