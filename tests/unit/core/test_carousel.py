"""The data carousel as scripts of events: budgets, turns, races, downtimes, restarts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as hyp

from pandaflow.core import staging as st
from pandaflow.core.carousel import Carousel
from pandaflow.core.errors import InvalidTransition, WorkflowError
from pandaflow.core.staging import (
    BoostRule,
    Budget,
    CarouselSettings,
    Command,
    Downtime,
    ExtendRule,
    FailJobs,
    FileStage,
    FilesWanted,
    JobsDone,
    LockOk,
    Lost,
    ReleaseJobs,
    ReleaseRule,
    ReportStuck,
    RequestRule,
    Resumed,
    RuleGone,
    RuleMade,
    RuleRefused,
    RuleStuck,
    Tick,
    WakeAt,
    backoff,
)
from pandaflow.core.tapequeue import Entry, TapeQueue
from pandaflow.core.tapestate import StagedFile, StagingRule

TB = 10**12


def carousel(size: int = 100, files: int = 100, **more: Any) -> Carousel:
    more = {"refill": 1.0, "quantum": 10, **more}
    return Carousel(CarouselSettings(default=Budget(size, files), **more))


def wanted(
    names: Iterable[str] | str, at: float = 0.0, run: str = "r", size: int = 10, **more: Any
) -> FilesWanted:
    about = {"tape": "T", "dataset": "d", **more}
    return FilesWanted(at, run, files=tuple((name, size) for name in names), **about)


def play(it: Carousel, events: Iterable[st.Event]) -> list[Command]:
    """Tell events one by one, as they would come; return all that is said."""
    return [command for event in events for command in it.handle([event])]


def said(commands: Iterable[Command]) -> list[Command]:
    """Leave out when it wants to be woken."""
    return [command for command in commands if not isinstance(command, WakeAt)]


def asked(commands: Iterable[Command]) -> list[tuple[int, tuple[str, ...]]]:
    return [(c.request, c.files) for c in commands if isinstance(c, RequestRule)]


# --- tables -------------------------------------------------------------------------------

TABLES = [
    (FileStage, st.FILE_MEANING, st.FILE_TRANSITIONS, FileStage.WAITING),
    (st.RuleState, st.RULE_MEANING, st.RULE_TRANSITIONS, st.RuleState.ASKED),
]


@pytest.mark.parametrize(("states", "meaning", "moves", "first"), TABLES)
def test_every_state_is_told_and_reached(
    states: type[StrEnum],
    meaning: Mapping[StrEnum, str],
    moves: Mapping[tuple[StrEnum, StrEnum], str],
    first: StrEnum,
) -> None:
    assert set(meaning) == set(states)
    assert all(meaning.values()) and all(moves.values())
    reached = {first}
    for _ in states:
        reached |= {finish for start, finish in moves if start in reached}
    assert reached == set(states)
    assert not any(start is finish for start, finish in moves)


def test_what_the_tables_do_not_have_is_refused() -> None:
    with pytest.raises(InvalidTransition, match="file f: waiting -> stuck"):
        StagedFile("f", 1, "T", "d").move(FileStage.STUCK)
    with pytest.raises(InvalidTransition, match="rule 3: asked -> releasing"):
        StagingRule(3, "T", "d").move(st.RuleState.RELEASING)


@pytest.mark.parametrize(
    "bad",
    [
        {"refill": 1.5},
        {"quantum": 0},
        {"rule_files": 0},
        {"tries": 0},
        {"boosts": -1},
        {"lifetime": 0.0},
        {"boost_after": -1.0},
    ],
)
def test_settings_that_cannot_be_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(WorkflowError, match=next(iter(bad))):
        CarouselSettings(**bad)
    with pytest.raises(WorkflowError, match="at least one byte"):
        Budget(0)


# --- the way of a file --------------------------------------------------------------------


def test_each_file_releases_its_jobs_by_its_own_lock() -> None:
    it = carousel()
    (request,) = play(it, [wanted("abc")])
    assert request == RequestRule(1, "T", "d", ("a", "b", "c"), 30, it._settings.lifetime)
    assert said(play(it, [RuleMade(1.0, 1, "id")])) == []
    assert said(play(it, [LockOk(2.0, 1, ("b",))])) == [ReleaseJobs("r", ("b",))]
    assert [it.stage(name) for name in "abc"] == ["requested", "staged", "requested"]
    assert said(play(it, [LockOk(3.0, 1, ("a", "b", "c"))])) == [ReleaseJobs("r", ("a", "c"))]
    assert it.in_flight("T") == (0, 0)


def test_a_rule_is_released_when_the_last_job_is_done() -> None:
    it = carousel()
    play(it, [wanted("ab"), RuleMade(1.0, 1, "id"), LockOk(2.0, 1, ("a", "b"))])
    assert said(play(it, [JobsDone(3.0, "r", ("a",))])) == []
    assert said(play(it, [JobsDone(4.0, "r", ("b",))])) == [ReleaseRule(1, "id")]
    assert said(play(it, [RuleGone(5.0, 1), RuleGone(6.0, 1)])) == []
    assert it.records().files == it.records().rules == ()


def test_a_file_wanted_by_two_runs_is_requested_once() -> None:
    it = carousel()
    commands = play(it, [wanted("ab"), wanted("bc", run="s")])
    assert asked(commands) == [(1, ("a", "b")), (2, ("c",))] or asked(commands) == [
        (1, ("a", "b", "c"))
    ]
    number = asked(commands)[0][0]
    play(it, [RuleMade(1.0, number, "id")])
    assert said(play(it, [LockOk(2.0, number, ("b",))])) == [
        ReleaseJobs("r", ("b",)),
        ReleaseJobs("s", ("b",)),
    ]
    # One of the two is done with everything: the other keeps the rule.
    assert said(play(it, [JobsDone(3.0, "r")])) == []
    assert it.stage("b") == "staged"


def test_what_is_on_disk_releases_a_second_run_at_once() -> None:
    it = carousel()
    play(it, [wanted("a"), LockOk(1.0, 1, ("a",))])
    assert said(play(it, [wanted("a", 2.0, "s")])) == [ReleaseJobs("s", ("a",))]
    assert said(play(it, [wanted("a", 3.0, "s")])) == []


def test_wanted_again_before_its_rule_is_gone() -> None:
    it = carousel()
    play(it, [wanted("abc"), RuleMade(1.0, 1, "id"), LockOk(1.0, 1, ("a",))])
    play(it, [JobsDone(2.0, "r", ("a", "b"))])
    assert said(play(it, [wanted("ab", 3.0, "s")])) == [ReleaseJobs("s", ("a",))]
    assert it.stage("b") == "requested"


def test_wanted_again_while_its_rule_is_released_needs_another_rule() -> None:
    it = carousel()
    play(it, [wanted("a"), RuleMade(1.0, 1, "id"), LockOk(1.0, 1, ("a",)), JobsDone(2.0, "r")])
    assert asked(play(it, [wanted("a", 3.0)])) == [(2, ("a",))]
    assert said(play(it, [RuleGone(4.0, 1), LockOk(4.0, 1, ("a",))])) == []
    assert said(play(it, [LockOk(5.0, 2, ("a",))])) == [ReleaseJobs("r", ("a",))]


# --- races --------------------------------------------------------------------------------


def test_a_lock_is_ok_before_the_rule_is_known() -> None:
    it = carousel()
    play(it, [wanted("a")])
    assert said(play(it, [LockOk(1.0, 1, ("a",))])) == [ReleaseJobs("r", ("a",))]
    # Its jobs end before the answer: the rule is released once its id is known.
    assert said(play(it, [JobsDone(2.0, "r")])) == []
    assert said(play(it, [RuleMade(3.0, 1, "id")])) == [ReleaseRule(1, "id")]


def test_a_lock_that_was_ok_is_not_stuck() -> None:
    it = carousel()
    play(it, [wanted("a"), RuleMade(0.0, 1, "id"), LockOk(1.0, 1, ("a",))])
    late = play(it, [RuleStuck(2.0, 1, ("a",)), RuleStuck(2.0, 1), Tick(1e5)])
    assert not [c for c in late if isinstance(c, BoostRule | ReportStuck)]
    assert it.stage("a") == "staged"


def test_stuck_before_the_rule_is_known_is_boosted_when_it_is() -> None:
    it = carousel(boost_after=10.0)
    play(it, [wanted("a"), RuleStuck(1.0, 1)])
    assert said(play(it, [Tick(50.0)])) == []
    assert said(play(it, [RuleMade(60.0, 1, "id")])) == [BoostRule(1, "id", 1)]


def test_answers_of_strangers_and_old_ones_change_nothing() -> None:
    it = carousel()
    play(it, [wanted("a"), RuleMade(0.0, 1, "id")])
    before = it.records()
    late: list[st.Event] = [
        RuleMade(1.0, 1, "other"),
        RuleRefused(1.0, 1, "late", transient=False),
        RuleMade(1.0, 9, "x"),
        RuleRefused(1.0, 9, "x"),
        LockOk(1.0, 9, ("a",)),
        LockOk(1.0, 1, ("z",)),
        RuleStuck(1.0, 9),
        RuleGone(1.0, 9),
        JobsDone(1.0, "nobody", ("a",)),
        JobsDone(1.0, "r", ("z",)),
        Lost(1.0, "z", "?"),
    ]
    assert said(play(it, late)) == []
    assert it.records() == before


def test_a_rule_that_somebody_deleted_is_made_again_without_releasing_jobs_twice() -> None:
    it = carousel()
    play(it, [wanted("ab"), RuleMade(0.0, 1, "id"), LockOk(1.0, 1, ("a",))])
    assert asked(play(it, [RuleGone(2.0, 1)])) == [(2, ("a", "b"))]
    assert said(play(it, [LockOk(3.0, 2, ("a", "b"))])) == [ReleaseJobs("r", ("b",))]


def test_nobody_needs_it_before_the_rule_is_made() -> None:
    it = carousel()
    play(it, [wanted("a")])
    assert said(play(it, [JobsDone(1.0, "r")])) == []
    assert it.in_flight("T") == (10, 1)  # the tape system may be at work on it
    assert said(play(it, [RuleRefused(2.0, 1, "no quota")])) == []
    assert it.in_flight("T") == (0, 0)
    assert it.records().files == ()


# --- stuck --------------------------------------------------------------------------------


def stuck_until_reported(it: Carousel, request: int, at: float = 0.0) -> tuple[list[float], float]:
    """Tell that a rule is stuck whenever it was boosted; return the pauses and the time."""
    pauses: list[float] = []
    while True:
        commands = play(it, [RuleStuck(at, request, why="no space")])
        if any(isinstance(c, ReportStuck) for c in commands):
            return pauses, at
        (wake,) = (c.time for c in commands if isinstance(c, WakeAt))
        assert said(play(it, [RuleStuck(at, request), Tick(wake - 0.1)])) == [], "not before"
        assert said(play(it, [Tick(wake)])) == [BoostRule(request, f"id{request}", len(pauses) + 1)]
        pauses.append(wake - at)
        at = wake


def test_a_stuck_rule_is_boosted_with_back_off_then_reported_and_its_file_asked_anew() -> None:
    it = carousel(boost_after=10.0, boost_most=60.0, boosts=5, tries=2)
    play(it, [wanted("ab"), RuleMade(0.0, 1, "id1"), LockOk(0.0, 1, ("a",))])
    pauses, at = stuck_until_reported(it, 1)
    assert pauses == [10.0, 20.0, 40.0, 60.0, 60.0]
    # Asked anew while the old rule keeps the other file on disk.
    assert it.stage("b") == "requested"
    assert it.why("b") == "requested from T: 0 of 1 files of its rule are on disk"
    play(it, [RuleMade(at, 2, "id2")])
    _, at = stuck_until_reported(it, 2, at)
    assert it.stage("b") == "lost"
    assert it.why("b") == "lost: requested in vain 2 times: no space"


def test_a_file_that_was_lost_fails_its_jobs_and_may_be_wanted_again() -> None:
    it = carousel()
    play(it, [wanted("ab"), wanted("a", run="s"), RuleMade(0.0, 1, "id")])
    assert said(play(it, [Lost(1.0, "a", "broken tape"), Lost(1.0, "a", "again")])) == [
        FailJobs("r", ("a",), "broken tape"),
        FailJobs("s", ("a",), "broken tape"),
    ]
    assert it.in_flight("T") == (10, 1)
    assert asked(play(it, [wanted("a", 2.0)])) == [(2, ("a",))]


def given_up() -> Carousel:
    """One of two files is on disk; the other was given up and cannot be asked for again yet."""
    it = carousel(boosts=0)
    play(it, [wanted("ab"), RuleMade(0.0, 1, "id"), LockOk(0.0, 1, ("a",)), wanted("c", 1.0)])
    play(it, [RuleRefused(1.0, 2, "busy")])
    (report,) = said(it.handle([RuleStuck(2.0, 1, why="no space")]))
    assert report == ReportStuck(1, "id", ("b",), 0, "no space")
    assert it.stage("b") == "waiting"
    return it


def test_a_lock_that_was_given_up_may_come_ok_after_all() -> None:
    it = given_up()
    assert said(it.handle([LockOk(3.0, 1, ("b",))])) == [ReleaseJobs("r", ("b",))]
    assert said(it.handle([JobsDone(4.0, "r", ("a",))])) == []
    assert said(it.handle([JobsDone(5.0, "r", ("b",))])) == [ReleaseRule(1, "id")]


def test_a_lock_that_comes_ok_when_its_rule_is_released_does_not_count() -> None:
    it = given_up()
    assert said(it.handle([JobsDone(3.0, "r", ("a",))])) == [ReleaseRule(1, "id")]
    assert said(it.handle([LockOk(4.0, 1, ("b",))])) == []
    assert it.stage("b") == "waiting"


def test_what_was_given_up_goes_behind_the_others() -> None:
    it = carousel(size=10, boosts=0, tries=9)
    play(it, [wanted("abc"), RuleMade(0.0, 1, "id")])
    assert asked(it.handle([RuleStuck(1.0, 1)])) == [(2, ("b",))]
    assert list(it.queue("T")) == ["c", "a"]


def test_wanted_again_while_its_rule_is_stuck() -> None:
    it = carousel(boost_after=10.0)
    play(it, [wanted("ab"), RuleMade(0.0, 1, "id"), RuleStuck(0.0, 1, ("b",), "no space")])
    play(it, [JobsDone(1.0, "r", ("b",)), wanted("b", 2.0, "s")])
    assert (it.stage("a"), it.stage("b")) == ("requested", "stuck")
    assert said(it.handle([Tick(10.0)])) == [BoostRule(1, "id", 1)]
    assert it.stage("b") == "requested"


def test_progress_begins_the_boosts_anew() -> None:
    it = carousel(boost_after=10.0, boosts=1)
    play(it, [wanted("ab"), RuleMade(0.0, 1, "id"), RuleStuck(0.0, 1), Tick(10.0)])
    play(it, [LockOk(11.0, 1, ("a",))])
    again = play(it, [RuleStuck(12.0, 1)])
    assert not [c for c in again if isinstance(c, ReportStuck)]
    assert said(play(it, [Tick(22.0)])) == [BoostRule(1, "id", 1)]


@given(hyp.integers(0, 2000), hyp.floats(-1, 2))
def test_a_back_off_is_bounded(times: int, jitter: float) -> None:
    pause = backoff(10.0, 60.0, times, jitter)
    assert min(10.0 * 2 ** min(times, 3), 60.0) / 2 <= pause <= 60.0


# --- refusals -----------------------------------------------------------------------------


def test_a_refused_request_is_tried_again_later_and_keeps_its_place() -> None:
    it = carousel(size=20, refused_after=10.0, refused_most=15.0)
    assert asked(play(it, [wanted("abcd")])) == [(1, ("a", "b"))]
    refused = play(it, [RuleRefused(1.0, 1, "no quota", jitter=1.0)])
    assert refused == [WakeAt(6.0)]
    assert it.why("a", 2.0) == "position 1 in the queue of T: asks again in 4 s, since no quota"
    assert asked(play(it, [Tick(6.0)])) == [(2, ("a", "b"))]
    assert play(it, [RuleRefused(7.0, 2, "no quota")]) == [WakeAt(22.0)]
    assert asked(play(it, [Tick(22.0)])) == [(3, ("a", "b"))]


def test_what_is_refused_for_good_is_lost() -> None:
    it = carousel()
    play(it, [wanted("ab")])
    assert said(play(it, [RuleRefused(1.0, 1, "no such RSE", transient=False)])) == [
        FailJobs("r", ("a",), "no such RSE"),
        FailJobs("r", ("b",), "no such RSE"),
    ]


# --- downtimes ----------------------------------------------------------------------------


def test_a_downtime_holds_requests_and_fails_nothing() -> None:
    it = carousel()
    play(it, [Downtime(0.0, "T", 0.0, 100.0)])
    assert play(it, [wanted("a", 1.0)]) == [WakeAt(100.0)]
    assert it.why("a", 40.0) == (
        "position 1 in the queue of T: announced to be down for another 60 s"
    )
    assert asked(play(it, [wanted("x", 2.0, tape="other")])) == [(1, ("x",))]
    assert asked(play(it, [Tick(100.0)])) == [(2, ("a",))]


def test_what_is_stuck_in_a_downtime_is_boosted_after_it_and_not_counted() -> None:
    it = carousel(boosts=1, boost_after=10.0)
    play(it, [wanted("a"), RuleMade(0.0, 1, "id"), Downtime(1.0, "T", 5.0, 100.0)])
    held = play(it, [RuleStuck(6.0, 1), Tick(50.0), RuleStuck(60.0, 1)])
    assert held == [WakeAt(100.0)]
    assert said(play(it, [Tick(100.0)])) == [BoostRule(1, "id", 0)]
    assert not said(play(it, [RuleStuck(101.0, 1)]))
    assert said(play(it, [Tick(111.0)])) == [BoostRule(1, "id", 1)]
    assert play(it, [RuleStuck(112.0, 1, why="x")])[0] == ReportStuck(1, "id", ("a",), 1, "x")


def test_a_boost_that_falls_into_a_downtime_waits() -> None:
    it = carousel(boost_after=10.0)
    play(it, [wanted("a"), RuleMade(0.0, 1, "id"), RuleStuck(1.0, 1)])
    play(it, [Downtime(2.0, "T", 5.0, 50.0), Downtime(2.0, "T", 50.0, 70.0)])
    assert said(play(it, [Tick(11.0), Tick(69.0)])) == []
    assert said(play(it, [Tick(70.0)])) == [BoostRule(1, "id", 1)]


def test_rules_are_released_and_locks_taken_in_a_downtime() -> None:
    it = carousel()
    play(it, [wanted("ab"), RuleMade(0.0, 1, "id"), Downtime(1.0, "T", 1.0, 100.0)])
    assert said(play(it, [LockOk(2.0, 1, ("a",))])) == [ReleaseJobs("r", ("a",))]
    assert said(play(it, [JobsDone(3.0, "r")])) == [ReleaseRule(1, "id")]


def test_a_downtime_may_be_taken_back() -> None:
    it = carousel()
    play(it, [Downtime(0.0, "T", 0.0, 100.0), wanted("a")])
    assert asked(play(it, [Downtime(5.0, "T", 0.0, 0.0)])) == [(1, ("a",))]


# --- budget, turns, order -----------------------------------------------------------------


def test_requests_keep_within_the_budget_and_roll_on() -> None:
    it = carousel(size=30)
    assert asked(play(it, [wanted("abcde")])) == [(1, ("a", "b", "c"))]
    assert it.why("e") == (
        "position 2 in the queue of T: 30 B in flight of 30 B allowed, 3 files of 100"
    )
    assert asked(play(it, [LockOk(1.0, 1, ("b",))])) == [(2, ("d",))]


def test_requests_are_made_in_bulk() -> None:
    it = carousel(size=100, refill=0.5)
    names = [f"f{k:02d}" for k in range(30)]
    assert len(asked(play(it, [wanted(names)]))[0][1]) == 10
    for k in range(4):
        assert asked(play(it, [LockOk(1.0, 1, (names[k],))])) == []
    ((_, files),) = asked(play(it, [LockOk(1.0, 1, (names[4],))]))
    assert len(files) == 5


def test_the_number_of_files_is_bounded_too() -> None:
    it = carousel(size=1000, files=2)
    assert asked(play(it, [wanted("abc")])) == [(1, ("a", "b"))]


def test_a_file_larger_than_the_budget_goes_alone() -> None:
    it = carousel(size=30)
    play(it, [wanted("a"), wanted("b", size=99)])
    assert it.stage("b") == "waiting"
    assert asked(play(it, [wanted("c", 1.0)])) == []  # it does not overtake
    assert asked(play(it, [LockOk(2.0, 1, ("a",))])) == [(2, ("b",))]
    assert asked(play(it, [LockOk(3.0, 2, ("b",))])) == [(3, ("c",))]


def test_rules_hold_one_dataset_and_so_many_files() -> None:
    it = carousel(rule_files=2)
    commands = play(it, [wanted("abc"), wanted("xy", dataset="e")])
    assert asked(commands) == [(1, ("a", "b")), (2, ("c",)), (3, ("x", "y"))]


def test_a_run_with_few_files_does_not_wait_for_one_with_many() -> None:
    it = carousel(size=40, quantum=20)
    many = [f"m{k:03d}" for k in range(200)]
    play(it, [wanted(many, run="large", dataset="L")])
    play(it, [wanted("abcd", run="small", dataset="S")])
    # Turns of two files each, whatever came first.
    assert set("abcd") <= {name[0] for name in list(it.queue("T"))[:10]}


def test_within_a_run_priority_goes_before_dataset_and_dataset_before_arrival() -> None:
    it = carousel(size=10)
    play(it, [wanted("a", dataset="x")])  # fills the budget
    play(it, [wanted("b", dataset="x"), wanted("c", dataset="y"), wanted("d", dataset="x")])
    play(it, [wanted("e", dataset="z", priority=1)])
    assert list(it.queue("T")) == ["e", "b", "d", "c"]
    play(it, [wanted("c", priority=2)])
    assert list(it.queue("T")) == ["c", "e", "b", "d"]


def test_a_dataset_that_is_being_served_takes_no_more_members() -> None:
    it = carousel(size=10)
    play(it, [wanted("ab", dataset="x"), wanted("c", dataset="y")])
    play(it, [wanted("d", 1.0, dataset="x")])
    assert list(it.queue("T")) == ["b", "c", "d"]


@given(
    hyp.lists(
        hyp.tuples(hyp.sampled_from("rst"), hyp.sampled_from("xy"), hyp.integers(0, 30)),
        max_size=60,
    ),
    hyp.integers(1, 50),
)
def test_runs_get_equal_bytes_as_long_as_they_have_files(
    files: list[tuple[str, str, int]], quantum: int
) -> None:
    """Bytes taken by runs that still wait differ by a quantum and a file at most."""
    queue = TapeQueue(quantum)
    cost: dict[Entry, int] = {}
    waiting: dict[str, set[Entry]] = {run: set() for run, _, _ in files}
    for k, (run, dataset, size) in enumerate(files):
        entry = queue.new_entry(run, dataset, 0, f"f{k}")
        queue.push(run, entry)
        cost[entry] = size
        waiting[run].add(entry)
    got = dict.fromkeys(waiting, 0)
    taken = []
    while turn := queue.front(lambda run, entry: cost[entry] if entry in waiting[run] else None):
        run, entry = turn
        assert queue.take(run, cost[entry]) == entry
        waiting[run].remove(entry)
        taken.append(entry.file)
        got[run] += cost[entry]
        rest = [got[each] for each, left in waiting.items() if left]
        assert max(rest, default=0) - min(rest, default=0) <= quantum + 30
    assert len(taken) == len(set(taken)) == len(files)


def test_large_and_small_files_share_the_bytes() -> None:
    it = carousel(size=1000, quantum=100)
    play(it, [Downtime(0.0, "T", 0.0, 1.0)])
    play(it, [wanted([f"a{k}" for k in range(100)], run="small", size=10, dataset="a")])
    play(it, [wanted([f"b{k}" for k in range(100)], run="large", size=50, dataset="b")])
    requests = [c for c in play(it, [Tick(1.0)]) if isinstance(c, RequestRule)]
    assert {c.dataset: c.size for c in requests} == {"a": 500, "b": 500}


# --- time, restarts, records --------------------------------------------------------------


def test_a_rule_that_is_needed_longer_is_extended() -> None:
    it = carousel(lifetime=100.0)
    play(it, [wanted("a"), LockOk(0.0, 1, ("a",))])
    assert play(it, [RuleMade(10.0, 1, "id")]) == [WakeAt(60.0)]
    assert said(play(it, [Tick(60.0)])) == [ExtendRule(1, "id", 100.0)]
    assert said(play(it, [Tick(109.0)])) == []
    assert said(play(it, [Tick(110.0)])) == [ExtendRule(1, "id", 100.0)]


def test_what_was_not_answered_is_said_again_after_a_restart() -> None:
    it = carousel()
    play(it, [wanted("a"), wanted("x", dataset="e")])
    play(it, [RuleMade(1.0, 2, "id2"), JobsDone(2.0, "r", ("x",))])
    back = Carousel.restore(it.records(), it._settings)
    assert said(play(back, [Resumed(9.0)])) == [
        RequestRule(1, "T", "d", ("a",), 10, it._settings.lifetime),
        ReleaseRule(2, "id2"),
    ]
    assert back.records() == it.records()


def test_changes_are_those_since_the_last_time() -> None:
    it = carousel(size=10)
    play(it, [wanted("ab")])
    assert {file.name for file in it.changes().files} == {"a", "b"}
    assert it.changes().files == it.changes().rules == ()
    play(it, [RuleMade(1.0, 1, "id"), LockOk(1.0, 1, ("a",))])
    changed = it.changes()
    assert {file.name for file in changed.files} == {"a", "b"}
    assert [rule.request for rule in changed.rules] == [1, 2]
    play(it, [JobsDone(2.0, "r", ("a",)), RuleGone(3.0, 1)])
    gone = it.changes()
    assert (gone.gone_files, gone.gone_rules) == (("a",), (1,))


def test_a_restart_may_change_the_budget() -> None:
    it = carousel(size=10)
    play(it, [wanted("abc")])
    wider = CarouselSettings(budgets={"T": Budget(30, 9)}, refill=1.0)
    back = Carousel.restore(it.records(), wider)
    assert asked(play(back, [Resumed(1.0)])) == [(1, ("a",)), (2, ("b", "c"))]


def test_what_people_are_told() -> None:
    it = carousel(size=10, boost_after=60.0)
    play(it, [wanted("ab"), RuleMade(0.0, 1, "id")])
    assert it.why("zz") == "nobody wants it"
    assert it.why("a") == "requested from T: 0 of 1 files of its rule are on disk"
    play(it, [RuleStuck(0.0, 1, why="no space")])
    assert it.why("a", 10.0) == "stuck at T: no space; boosted 0 times, again in 50 s"
    play(it, [LockOk(20.0, 1, ("a",))])
    assert it.why("a") == "on disk"
    large = carousel(size=40 * TB)
    play(large, [wanted(("x",), size=40 * TB), wanted(("y",), size=TB)])
    assert large.why("y").startswith(
        "position 1 in the queue of T: 40 TB in flight of 40 TB allowed"
    )


def test_what_has_come_is_counted_once() -> None:
    it = carousel()
    play(it, [wanted("ab"), RuleMade(0.0, 1, "id"), LockOk(1.0, 1, ("a",)), RuleGone(2.0, 1)])
    play(it, [RuleMade(3.0, 2, "id"), LockOk(3.0, 2, ("a", "b")), JobsDone(4.0, "r", ("a",))])
    (row,) = it.rows(5.0)
    counts = [row[f"{step}_files"] for step in ("wanted", "requested", "staged", "processed")]
    assert counts == [2, 2, 2, 1]
    assert (row["at"], row["tape"], row["processed_bytes"], row["lost_files"]) == (5.0, "T", 10, 0)


def test_a_campaign_of_many_files_ends(size: int = 20_000) -> None:
    """20,000 files of four runs through a budget of 500 files."""
    it = Carousel(CarouselSettings(default=Budget(10**9, 500), rule_files=100, quantum=1000))
    events: list[st.Event] = [
        wanted([f"{run}{k}" for k in range(size // 4)], run=run, dataset=run) for run in "rstu"
    ]
    released = 0
    for at in range(1, size):
        commands = it.handle(events)
        events = []
        for kind, group in groupby(commands, type):
            if kind is RequestRule:
                events += [
                    e
                    for c in group
                    for e in (RuleMade(at, c.request, "i"), LockOk(at, c.request, c.files))
                ]
            elif kind is ReleaseJobs:
                some = list(group)
                released += sum(len(c.files) for c in some)
                events += [JobsDone(at, c.run, c.files) for c in some]
            elif kind is ReleaseRule:
                events += [RuleGone(at, c.request) for c in group]
        if not events:
            break
    assert released == size
    assert it.records().files == it.records().rules == ()
