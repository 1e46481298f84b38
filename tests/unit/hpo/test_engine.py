"""The study engine as scripts of events: who is asked, told and stopped, and in which order."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from pandaflow.hpo.book import Book
from pandaflow.hpo.engine import Answer, Dispatch, Log, StudyEngine, Tell, Terms
from pandaflow.hpo.port import Told
from pandaflow.hpo.stops import cost, patience, target, timeout
from tests.unit.hpo.sitting import Sitting, replayed, value_of


def sitting(**terms: Any) -> Sitting:
    return Sitting(Terms(**{"n_trials": 10, "outstanding": 2, **terms}))


# --- order and number -------------------------------------------------------------------


def test_each_tell_is_followed_by_one_ask() -> None:
    study = sitting(n_trials=5).begin()
    for number in (1, 0, 3, 2, 4):
        study.end(number)
    assert study.order == "a0 a1 t1 a2 t0 a3 t3 a4 t2 t4".split()
    assert study.finish is not None and study.finish.status == "done"


@pytest.mark.parametrize("seed", range(5))
def test_order_of_requests_follows_from_order_of_completion_alone(seed: int) -> None:
    """However slowly the optimizer answers, it is sent the same."""
    slow = Sitting(Terms(n_trials=30, outstanding=4), lazy=True).begin()
    rng, ended = Random(seed), []
    while slow.finish is None:
        ready = [n for n in slow.running if n not in ended]
        if ready and (not slow.engine.requests or rng.random() < 0.4):
            ended.append(rng.choice(ready))
            slow.end(ended[-1])
        elif slow.engine.requests:
            slow.answer()
    quick = Sitting(Terms(n_trials=30, outstanding=4)).begin()
    for number in ended:
        quick.end(number)
    assert slow.order == quick.order
    assert [r[3] for r in slow.log if r[2] == "ask"] == list(range(30))


def test_never_more_outstanding_than_allowed() -> None:
    study = Sitting(Terms(n_trials=40, outstanding=5), lazy=True).begin()
    rng, ended = Random(3), set()
    while study.finish is None:
        asked = sum(name[0] in "au" for name in study.order)
        told = sum(name[0] == "t" for name in study.order)
        assert asked - told <= 5
        ready = [n for n in study.running if n not in ended]
        if ready and (not study.engine.requests or rng.random() < 0.5):
            ended.add(ready[-1])
            study.end(ready[-1])
        else:
            study.answer()
    assert len(study.book.trials) == 40


def test_a_trial_is_dispatched_with_its_ask_and_not_before() -> None:
    engine = StudyEngine(replayed([]), Terms(n_trials=1))
    assert not any(isinstance(c, Dispatch) for c in engine.begin())
    commands = engine.answered(Answer({"x": 0.5}, {"k": 1}))
    assert commands == [
        Log("ask", 0, {"p": {"x": 0.5}, "by": "optimizer", "m": {"k": 1}}),
        Dispatch(0),
    ]


def test_random_points_of_an_emergency_are_marked_as_such() -> None:
    engine = StudyEngine(replayed([]), Terms(n_trials=1))
    engine.begin()
    log = engine.answered(Answer({"x": 0.5}, by="random"))[0]
    assert isinstance(log, Log) and log.body["by"] == "random"


def test_budget_counts_earlier_sessions() -> None:
    first = sitting(n_trials=3).begin()
    for number in range(3):
        first.end(number)
    second = Sitting(Terms(n_trials=5, outstanding=4), first.log).begin()
    assert second.order == ["a3", "a4"]
    again = Sitting(Terms(n_trials=3, outstanding=4), first.log[:6])
    assert again.begin().requests == [] and again.finish is not None


def test_a_smaller_limit_than_what_is_outstanding_asks_for_nothing_until_it_is_met() -> None:
    first = Sitting(Terms(n_trials=20, outstanding=6)).begin()
    second = Sitting(Terms(n_trials=20, outstanding=2), first.log).begin()
    for number in range(4):
        assert second.order == [f"t{n}" for n in range(number)]
        second.end(number)
    second.end(4)
    assert second.order == "t0 t1 t2 t3 t4 a6".split()


def test_what_was_evaluated_elsewhere_uses_up_no_budget() -> None:
    study = sitting(n_trials=2)
    study.write("add", 0, {"p": {"x": 9.0}, "s": "complete", "v": [3.0], "by": "earlier"})
    study.begin()
    assert study.order == ["a1", "a2"]
    assert study.book.best is not None and study.book.best.number == 0


# --- points of users --------------------------------------------------------------------


def test_points_of_users_come_first_and_once() -> None:
    study = sitting(n_trials=6, outstanding=2)
    for x in (10.0, 11.0, 12.0):
        study.write("queue", None, {"p": {"x": x}})
    study.begin()
    for number in range(6):
        study.end(number)
    assert study.order == "u0 u1 t0 u2 t1 a3 t2 a4 t3 a5 t4 t5".split()
    assert [t.point["x"] for t in study.book.trials[:3]] == [10.0, 11.0, 12.0]
    assert [t.by for t in study.book.trials] == ["user"] * 3 + ["optimizer"] * 3
    assert not study.book.queue


def test_a_crash_before_the_answer_leaves_a_users_point_in_the_queue() -> None:
    study = Sitting(Terms(n_trials=4, outstanding=2), lazy=True)
    for x in (10.0, 11.0):
        study.write("queue", None, {"p": {"x": x}})
    study.begin()
    study.answer()
    again = Sitting(Terms(n_trials=4, outstanding=2), study.log).begin()
    assert [trial.point["x"] for trial in again.book.trials] == [10.0, 11.0]
    assert again.order == ["u1"]


def test_points_of_users_count_for_the_budget() -> None:
    study = sitting(n_trials=1)
    study.write("queue", None, {"p": {"x": 1.0}})
    study.write("queue", None, {"p": {"x": 2.0}})
    study.begin()
    study.end(0)
    assert study.finish is not None and len(study.book.queue) == 1


# --- outcomes ---------------------------------------------------------------------------


def test_the_first_outcome_counts_and_later_ones_are_noted() -> None:
    study = sitting().begin()
    study.end(0, 5.0)
    study.end(0, 1.0)
    study.fail(0)
    assert study.book.trials[0].values == (5.0,)
    assert study.book.duplicates == 2
    assert study.announced == [0]
    assert study.order == "a0 a1 t0 a2".split()


def test_a_second_outcome_while_the_first_is_being_told() -> None:
    study = Sitting(Terms(n_trials=4, outstanding=1), lazy=True).begin()
    study.answer()
    study.end(0, 5.0)
    study.end(0, 1.0)
    while study.engine.requests:
        study.answer()
    assert study.book.trials[0].values == (5.0,) and study.book.duplicates == 1


def test_outcomes_of_trials_that_nobody_asked_for_change_nothing() -> None:
    study = sitting().begin()
    study.end(7)
    assert study.kinds() == {"ask": 2, "dup": 1}
    assert study.order == ["a0", "a1"]


def test_zero_is_a_value() -> None:
    study = sitting().begin()
    study.end(0, 0.0)
    assert study.book.best is study.book.trials[0] and study.book.trials[0].values == (0.0,)


def test_a_failed_trial_is_told_as_failed() -> None:
    study = sitting().begin()
    study.fail(0, "boom")
    told = [request.told for request in study.requests if isinstance(request, Tell)]
    assert told == [Told(0, "failed")]
    assert (study.book.trials[0].state, study.book.trials[0].why) == ("failed", "boom")


def test_a_failed_trial_may_count_as_a_value() -> None:
    study = sitting(on_error=100.0).begin()
    study.fail(0, "boom")
    told = [request.told for request in study.requests if isinstance(request, Tell)]
    assert told == [Told(0, "complete", (100.0,))]
    assert study.book.errors == 1 and study.book.trials[0].why == "boom"


def test_a_failed_trial_may_end_the_study() -> None:
    study = sitting(on_error="stop").begin()
    study.fail(0, "boom")
    assert study.finish is None  # trial 1 is under way
    study.end(1)
    assert study.finish is not None and study.finish.status == "failed"
    assert "boom" in study.finish.reason
    assert study.order == "a0 a1 t0 t1".split()


def test_many_failures_end_the_study() -> None:
    study = sitting(n_trials=100).begin()
    for number in range(12):
        if study.finish is None and number in study.running:
            study.fail(number, f"boom {number}")
    study.fail(10)
    assert study.finish is not None and study.finish.status == "failed"
    assert "10 of 10 trials failed" in study.finish.reason


def test_a_share_of_failures_at_the_limit_is_allowed() -> None:
    study = sitting(n_trials=40, max_failed=0.5).begin()
    for number in range(40):
        study.end(number) if number % 2 == 0 else study.fail(number)
    assert study.finish is not None and study.finish.status == "done"


def test_failures_without_a_reason_end_the_study_too() -> None:
    study = sitting(n_trials=100).begin()
    for number in range(11):
        study.fail(number, why="")
    assert study.finish is not None and study.finish.status == "failed"


def test_a_mended_objective_gets_another_chance() -> None:
    """Failures of an earlier session do not end the next one before it has begun."""
    first = sitting(n_trials=100).begin()
    for number in range(11):
        first.fail(number)
    assert first.finish is not None and first.finish.status == "failed"
    second = Sitting(Terms(n_trials=20, outstanding=2), first.log).begin()
    while second.running:
        second.end(second.running[0])
    assert second.finish is not None and second.finish.status == "done"
    assert second.book.counts["complete"] == 20 - 11


def test_failures_of_trials_that_count_as_a_value_are_failures_all_the_same() -> None:
    study = sitting(n_trials=100, on_error=9.0).begin()
    for number in range(11):
        study.fail(number)
    assert study.finish is not None and study.finish.status == "failed"


# --- repeats ----------------------------------------------------------------------------


def test_repeats_are_told_once_as_their_mean() -> None:
    study = sitting(repeats=3, n_trials=1).begin()
    for repeat, value in ((2, 3.0), (0, 1.0), (1, 5.0)):
        assert study.running == [0]
        study.end(0, value, r=repeat, t=[10.0 + repeat, 20.0 + repeat])
    trial = study.book.trials[0]
    assert trial.values == (3.0,) and trial.attrs["repeats"] == [[1.0], [5.0], [3.0]]
    assert (trial.began, trial.ended) == (10.0, 22.0)
    assert study.announced == [0] and study.book.duplicates == 0


def test_one_repeat_that_comes_twice_is_no_other_repeat() -> None:
    study = sitting(repeats=2, n_trials=1, aggregate=max).begin()
    study.end(0, 1.0, r=0)
    study.end(0, 7.0, r=0)
    assert study.running == [0] and study.book.duplicates == 1
    study.end(0, 2.0, r=1)
    assert study.book.trials[0].values == (2.0,)


@pytest.mark.parametrize("bad", range(3))
def test_a_point_fails_with_its_first_repeat_that_fails(bad: int) -> None:
    study = sitting(repeats=3, n_trials=1).begin()
    for repeat in range(bad):
        study.end(0, 1.0, r=repeat)
    study.fail(0, "boom", r=bad)
    assert study.book.trials[0].state == "failed" and study.announced == [0]


def test_the_worst_constraint_of_the_repeats_holds() -> None:
    study = sitting(repeats=2, n_trials=1).begin()
    study.end(0, 1.0, r=0, c=[-1.0, 3.0])
    study.end(0, 1.0, r=1, c=[2.0, -4.0])
    assert study.book.trials[0].constraints == (2.0, 3.0)


def test_repeats_that_were_in_before_a_crash_are_evaluated_again() -> None:
    """Parts of a trial are not in the log: its next session starts it anew, asked once."""
    first = sitting(repeats=2, n_trials=1).begin()
    first.end(0, 1.0, r=0)
    second = Sitting(Terms(repeats=2, n_trials=1), first.log).begin()
    assert second.dispatched == [0] and second.requests == []
    second.end(0, 4.0, r=1)
    second.end(0, 2.0, r=0)
    assert second.book.trials[0].values == (3.0,)


# --- pruning ----------------------------------------------------------------------------


def pruning(**terms: Any) -> Sitting:
    given = {"n_trials": 10, "outstanding": 2, "prunes": True, **terms}
    return Sitting(Terms(**given), prune=lambda report: report.value > 1.0)


def test_a_bad_report_stops_the_trial_once() -> None:
    study = pruning().begin()
    study.say(0, 0, 0.5)
    assert study.pruned == []
    study.say(0, 1, 5.0)
    study.say(0, 2, 6.0)
    assert study.pruned == [0]
    assert study.book.trials[0].reports == [(0, 0.5), (1, 5.0), (2, 6.0)]
    assert study.running == [0, 1]  # until its job has ended


def test_a_stopped_job_is_a_pruned_trial_and_no_failure() -> None:
    study = pruning().begin()
    study.say(0, 1, 5.0)
    study.fail(0, "stopped")
    told = [request.told for request in study.requests if isinstance(request, Tell)]
    assert told == [Told(0, "pruned")] and study.book.errors == 0


def test_a_pruned_trial_that_completes_first_is_complete() -> None:
    study = pruning().begin()
    study.say(0, 1, 5.0)
    study.end(0, 0.25)
    assert study.book.trials[0].values == (0.25,) and study.book.counts["pruned"] == 0


def test_pruned_trials_are_no_failures_that_end_a_study() -> None:
    study = pruning(n_trials=30).begin()
    for number in range(30):
        study.say(number, 0, 5.0)
        study.fail(number, "stopped")
    assert study.finish is not None and study.finish.status == "done"
    assert study.book.counts["pruned"] == 30


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_reports_that_are_no_numbers_do_not_reach_the_optimizer(value: float) -> None:
    study = pruning().begin()
    study.say(0, 0, value)
    assert study.order == ["a0", "a1"]


def test_reports_without_pruner_or_after_the_end_are_left_out() -> None:
    study = sitting().begin()
    study.say(0, 0, 1.0)
    pruner = pruning().begin()
    pruner.end(0)
    pruner.say(0, 0, 5.0)
    assert study.order == ["a0", "a1"] and pruner.order == "a0 a1 t0 a2".split()
    assert pruner.pruned == []


def test_repeats_are_the_reports_of_a_noisy_study() -> None:
    study = pruning(repeats=3).begin()
    study.end(0, 4.0, r=0)
    assert study.pruned == [0] and study.order == "a0 a1 r0".split()
    study.fail(0, "stopped", r=1)
    assert study.book.trials[0].state == "pruned"


# --- ends -------------------------------------------------------------------------------


def test_a_target_ends_the_study_when_what_is_under_way_is_done() -> None:
    study = sitting(n_trials=None, stops=(target(2.0),)).begin()
    study.end(0, 1.5)
    assert study.finish is None
    study.end(1, 9.0)
    assert study.finish is not None and "trial 0" in study.finish.reason
    assert len(study.book.trials) == 2 and study.finishes == 1


def test_points_that_come_after_the_end_are_forgotten() -> None:
    """An ask that was on its way when the end was decided leaves no trial behind."""
    study = Sitting(Terms(n_trials=9, outstanding=1, stops=(target(2.0),)), lazy=True).begin()
    study.answer()
    study.end(0, 1.0)
    assert study.order == "a0 t0 a1".split()
    study.answer()
    study.answer()
    assert study.kinds() == {"ask": 1, "tell": 1} and study.dispatched == [0]
    assert study.finish is not None


def test_patience_counts_trials_since_the_best() -> None:
    study = sitting(n_trials=None, outstanding=1, stops=(patience(3),)).begin()
    for number, value in enumerate((5.0, 4.0, 6.0, 6.0, 3.0, 7.0, 3.0, 3.5)):
        assert study.finish is None
        study.end(number, value)
    assert study.finish is not None and study.book.best is study.book.trials[4]


def test_a_time_limit_lets_trials_end() -> None:
    study = sitting(n_trials=None, stops=(timeout(60),)).begin()
    study.tick(59.9)
    study.end(0)
    study.tick(60.0)
    assert study.finish is None and study.running == [1, 2]
    study.end(1)
    study.end(2)
    assert study.finish is not None and len(study.book.trials) == 3


def test_cost_sums_the_durations_of_trials() -> None:
    study = sitting(n_trials=None, outstanding=1, stops=(cost(25),)).begin()
    for number in range(3):
        assert study.finish is None
        study.end(number, t=[100.0, 110.0])
    assert study.finish is not None


def test_the_first_rule_that_is_reached_gives_the_reason() -> None:
    study = sitting(stops=(patience(100), target(2.0), cost(5))).begin()
    study.end(0, 1.0, t=[0.0, 9.0])
    study.end(1)
    assert study.finish is not None and "target" in study.finish.reason


def test_an_optimizer_without_more_points_ends_the_study_in_order() -> None:
    study = Sitting(Terms(n_trials=100, outstanding=3), size=5).begin()
    for number in range(5):
        assert study.finish is None
        study.end(number)
    assert study.finish is not None and study.finish.status == "done"
    assert "no more points" in study.finish.reason
    assert [t.number for t in study.book.trials] == list(range(5))


def test_a_study_without_any_point_ends_too() -> None:
    study = Sitting(Terms(n_trials=3, outstanding=2), size=0).begin()
    assert study.finish is not None and not study.book.trials


def test_outcomes_after_the_end_change_nothing() -> None:
    study = sitting(n_trials=1).begin()
    study.end(0)
    before = study.book.summary()
    study.end(0, 0.5)
    study.end(3)
    study.say(0, 1, 1.0)
    study.tick(1e9)
    assert study.book.summary() == before and study.finishes == 1


def test_a_stop_from_outside_ends_after_what_is_under_way() -> None:
    study = sitting().begin()
    study.work(study.engine.stop("enough"))
    assert study.finish is None
    study.end(0)
    study.end(1)
    assert study.finish is not None
    assert (study.finish.status, study.finish.reason) == ("done", "enough")


def test_same_book_and_events_give_the_same_commands() -> None:
    def script() -> list[str]:
        study = pruning(n_trials=20, outstanding=3, on_error=50.0).begin()
        rng = Random(11)
        while study.running:
            number = rng.choice(study.running)
            kind = rng.randrange(4)
            if kind == 0:
                study.say(number, rng.randrange(5), rng.random() * 2)
            elif kind == 1:
                study.fail(number)
            else:
                study.end(number, value_of(number))
        return [*study.order, repr(study.log)]

    assert script() == script()


def test_a_study_by_hand_asks_for_nothing_by_itself() -> None:
    book = Book(["minimize"])
    engine = StudyEngine(book, Terms(n_trials=None, outstanding=0, ahead=0))
    assert engine.begin() == [] and engine.settled(0.0) == []
