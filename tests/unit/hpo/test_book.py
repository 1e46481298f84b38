"""The book of a study: what it says follows from the log alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.hpo.book import Book, TrialRecord, entry_of
from pandaflow.hpo.engine import Terms
from pandaflow.hpo.port import AskEntry, ReportEntry, TellEntry, Told
from tests.unit.hpo.sitting import Sitting, replayed

#: Few different values, so that ties and repeated points are common.
value = st.integers(-2, 2).map(float)
limit = st.sampled_from([-1.0, 0.0, 0.5])


def tell(state: str = "complete", *values: float, **more: Any) -> dict[str, Any]:
    return {"s": state, "v": list(values), **more}


def told(book: Book, *values: float, **more: Any) -> TrialRecord:
    """Ask and tell one trial."""
    number = len(book.trials)
    book.apply(book.seq + 1, 1.0, "ask", number, {"p": {"x": number}, "by": "optimizer"})
    book.apply(book.seq + 1, 2.0, "tell", number, {**tell("complete", *values), **more})
    return book.trials[number]


def dominates(one: Sequence[float], other: Sequence[float], directions: Sequence[str]) -> bool:
    """Pareto's definition, word by word."""
    columns = list(zip(one, other, directions, strict=True))
    better = [a < b if d == "minimize" else a > b for a, b, d in columns]
    worse = [a > b if d == "minimize" else a < b for a, b, d in columns]
    return any(better) and not any(worse)


def front_of(book: Book) -> list[TrialRecord]:
    """The first of each set of equal trials that nothing dominates, by comparing all pairs."""
    able = [t for t in book.complete() if t.feasible]
    return [
        t
        for t in able
        if not any(dominates(o.values, t.values, book.directions) for o in able)
        and not any(o.values == t.values and o.number < t.number for o in able)
    ]


@given(
    st.lists(st.sampled_from(["minimize", "maximize"]), min_size=1, max_size=3).flatmap(
        lambda directions: st.tuples(
            st.just(directions),
            st.lists(
                st.tuples(
                    st.lists(value, min_size=len(directions), max_size=len(directions)),
                    st.lists(limit, max_size=2),
                ),
                max_size=25,
            ),
        )
    )
)
def test_front_is_what_comparing_all_pairs_gives(
    drawn: tuple[list[str], list[tuple[list[float], list[float]]]],
) -> None:
    directions, outcomes = drawn
    book = Book(directions)
    for values, limits in outcomes:
        told(book, *values, c=limits)
        front = front_of(book)
        assert {t.number for t in book.front()} == {t.number for t in front}
        assert (book.best is None) == (not front)
        if len(directions) == 1 and front:
            assert book.best is front[0]


@given(st.lists(st.tuples(value, st.booleans()), max_size=30))
def test_since_best_counts_back_to_the_last_improvement(results: list[tuple[float, bool]]) -> None:
    book, best, expected = Book(["maximize"]), None, 0
    for number, failed in results:
        told(book, *([] if failed else [number]), s="failed" if failed else "complete")
        better = not failed and (best is None or number > best)
        best, expected = (number, 0) if better else (best, expected + 1)
        assert book.since_best == expected


@st.composite
def sessions(draw: st.DrawFn) -> Sitting:
    """A study that went through random events, some crashes included."""
    terms = Terms(n_trials=12, outstanding=draw(st.integers(1, 4)), prunes=True)
    study = Sitting(terms, prune=lambda report: report.value > 1).begin()
    for _ in range(draw(st.integers(0, 25))):
        match draw(st.sampled_from(["end", "fail", "say", "queue", "add", "crash", "note"])):
            case "end" if study.running:
                study.end(draw(st.sampled_from(study.running)), draw(value), c=[draw(limit)])
            case "fail" if study.running:
                study.fail(draw(st.sampled_from(study.running)))
            case "say" if study.running:
                study.say(draw(st.sampled_from(study.running)), 1, draw(value))
            case "queue":
                study.write("queue", None, {"p": {"x": draw(value)}})
            case "note":
                study.write("note", None, {"text": "something"})
            case "crash":
                study.write("session", None, {"optimizer": {}})
                study = Sitting(terms, study.log, prune=study.prune).begin()
    return study


@given(sessions())
def test_a_log_that_is_read_again_gives_the_same_book(study: Sitting) -> None:
    stored = [(n, at, kind, trial, json.dumps(body)) for n, at, kind, trial, body in study.log]
    again = replayed([(n, at, kind, t, json.loads(body)) for n, at, kind, t, body in stored])
    assert again.summary() == study.book.summary()
    assert [_plain(t) for t in again.trials] == [_plain(t) for t in study.book.trials]
    for name in ("queue", "notes", "sessions", "since_best", "seconds", "errors", "duplicates"):
        assert getattr(again, name) == getattr(study.book, name)
    assert [t.number for t in again.front()] == [t.number for t in study.book.front()]
    assert again.seq == len(study.log)


def _plain(trial: TrialRecord) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in TrialRecord.__slots__}


@given(sessions())
def test_counts_are_those_of_the_trials(study: Sitting) -> None:
    book = study.book
    states = [trial.state for trial in book.trials]
    assert book.counts == {state: states.count(state) for state in book.counts}
    assert book.told == len(states) - states.count("running")
    assert [t.number for t in book.outstanding] == [
        n for n, state in enumerate(states) if state == "running"
    ]
    assert [t.number for t in book.trials] == list(range(len(states)))


def test_infeasible_trials_are_never_the_best() -> None:
    book = Book(["minimize"])
    told(book, -10.0, c=[-1.0, 0.1])
    assert book.best is None and not book.trials[0].feasible
    allowed = told(book, 5.0, c=[0.0, -1.0])
    assert book.best is allowed


def test_negative_zero_and_zero_are_as_good() -> None:
    book = Book(["minimize"])
    first = told(book, 0.0)
    told(book, -0.0)
    assert book.best is first and book.since_best == 1


def test_times_and_durations() -> None:
    book = Book(["minimize"])
    assert told(book, 1.0, t=[10.0, 14.5]).seconds == 4.5
    told(book, 1.0, t=[14.0, 13.0])  # a clock that was set back
    untimed = told(book, 1.0)  # from its ask to its tell
    assert book.seconds == 4.5 + untimed.seconds


def test_kinds_of_records_that_a_book_does_not_know_are_passed_over() -> None:
    book = Book(["minimize"])
    book.apply(1, 0.0, "snapshot", None, {"file": "x"})
    book.apply(2, 0.0, "from a newer version", None, {})
    assert book.seq == 2 and not book.trials


def test_a_point_of_a_user_leaves_the_queue_when_it_is_asked() -> None:
    book = Book(["minimize"])
    book.apply(1, 0.0, "queue", None, {"p": {"x": 1}})
    book.apply(2, 0.0, "ask", 0, {"p": {"x": 7}, "by": "random"})
    assert len(book.queue) == 1
    book.apply(3, 0.0, "ask", 1, {"p": {"x": 1}, "by": "user"})
    assert not book.queue


def test_reports_of_the_outcome_replace_those_that_came_live() -> None:
    book = Book(["minimize"])
    book.apply(1, 0.0, "ask", 0, {"p": {}, "by": "optimizer"})
    book.apply(2, 0.0, "report", 0, {"i": [0, 4.0]})
    assert book.trials[0].reports == [(0, 4.0)]
    book.apply(3, 0.0, "tell", 0, {"s": "pruned", "i": [[0, 4.0], [1, None]]})
    assert book.trials[0].reports == [(0, 4.0), (1, None)]


@pytest.mark.parametrize(
    ("kind", "trial", "body", "entry"),
    [
        ("ask", 0, {"p": {"x": 1}, "by": "optimizer"}, AskEntry(0, {"x": 1}, {})),
        ("ask", 3, {"p": {}, "by": "user", "m": {"k": 1}}, AskEntry(3, {}, {"k": 1}, own=False)),
        ("ask", 3, {"p": {}, "by": "random"}, AskEntry(3, {}, {}, own=False)),
        ("tell", 2, {"s": "failed"}, TellEntry(Told(2, "failed"), {})),
        (
            "tell",
            2,
            {"s": "complete", "v": [0.0], "c": [1.0], "m": {"k": 2}},
            TellEntry(Told(2, "complete", (0.0,), (1.0,)), {"k": 2}),
        ),
        (
            "add",
            1,
            {"p": {"x": 2}, "s": "complete", "v": [3.0]},
            TellEntry(Told(1, "complete", (3.0,), (), {"x": 2}), {}),
        ),
        ("report", 1, {"i": [4, 0.5], "prune": True}, ReportEntry(1, 4, 0.5)),
        ("report", 1, {"i": [4, None]}, None),
        ("note", None, {"text": "?"}, None),
        ("dup", 1, {"v": [1.0]}, None),
    ],
)
def test_records_as_optimizers_see_them(kind: str, trial: Any, body: Any, entry: Any) -> None:
    assert entry_of(kind, trial, body) == entry
