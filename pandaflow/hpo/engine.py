"""What a study does next: a pure state machine over its book.

Same book, same events, same commands: no clock, no randomness, no I/O. The driver writes the
log, applies it to the book and carries the commands out, in this order.

Rule 1: at any time so many trials are outstanding as the terms say, no more; each tell is
followed by one ask. (While trials are short, a few more are asked for ahead of need, so that no
slot waits for a point; whether they are is decided once, by the first tells.) So the order of
asks and tells is decided by the order of completion alone, however fast anything is, and a seeded
optimizer gives the same points on every executor.
Rule 2: what an optimizer is sent is answered in the order sent; the log has the answers in that
order. A trial is dispatched after its ask is in the log.
Rule 3: the first outcome of a trial counts; later ones are noted and nothing follows from them.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pandaflow.hpo.book import Book
from pandaflow.hpo.port import Memo, Told, TrialState
from pandaflow.hpo.space import Point
from pandaflow.hpo.stops import StopRule

Outcome: TypeAlias = Mapping[str, Any]
Aggregate: TypeAlias = Callable[[Sequence[float]], float]

#: Trials that must have ended before the share of failures can stop a study.
_FEW = 10
#: Points are asked for ahead of need if the first trials take less than so many seconds (all of
#: them below the first number, a third below the second): against longer trials the time for a
#: point is nothing, and a point that is chosen later knows more.
_SHORT_S, _LONGER_S, _FIRST = 0.5, 5.0, 8
#: Below so many seconds trials wait for the optimizer, and points ahead would only know less.
_TINY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a study is to be run.

    Attributes
    ----------
    n_trials : int or None
        Trials in all, those of earlier sessions included; None: until a rule ends it.
    outstanding : int
        Trials asked for and not told at the same time.
    ahead : int
        So many more, if trials are short.
    repeats : int
        Evaluations of each point, with seeds of their own.
    aggregate : callable
        Of the values of the repeats.
    on_error : 'fail', 'stop' or float
        What a trial that failed for good is told as: failed; the study stops; or this value.
    max_failed : float
        Share of failures that stops the study, among at least ten trials of a session.
    stops : tuple of StopRule
    prunes : bool
        There is a pruner.
    """

    n_trials: int | None = None
    outstanding: int = 1
    ahead: int = 0
    repeats: int = 1
    aggregate: Aggregate = statistics.fmean
    on_error: Literal["fail", "stop"] | float = "fail"
    max_failed: float = 0.5
    stops: tuple[StopRule, ...] = ()
    prunes: bool = False


# --- commands ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the optimizer for the point of a trial."""

    number: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Tell the optimizer of a trial whose point a user wants."""

    number: int
    point: Point


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the optimizer what came of a trial."""

    told: Told
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the optimizer an intermediate value."""

    number: int
    step: int
    value: float


Request: TypeAlias = Ask | Adopt | Tell | Report


@dataclass(frozen=True, slots=True)
class Log:
    """Write a record."""

    kind: str
    trial: int | None
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Have a trial evaluated."""

    number: int


@dataclass(frozen=True, slots=True)
class Prune:
    """Stop the evaluation of a trial."""

    number: int


@dataclass(frozen=True, slots=True)
class Announce:
    """A trial has ended: hand it to whoever reads the study's trials."""

    number: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The session is over."""

    status: Literal["done", "failed"]
    reason: str


Command: TypeAlias = Request | Log | Dispatch | Prune | Announce | Finish


# --- answers of the optimizer -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """The optimizer's answer to a request, in the order of requests.

    Attributes
    ----------
    point : dict or None
        To an :class:`Ask`; None: it has no more points.
    memo : mapping
    prune : bool
        To a :class:`Report`.
    by : str
        Who gave the point: 'optimizer', or 'random' in an emergency.
    """

    point: Point | None = None
    memo: Memo = field(default_factory=dict)
    prune: bool = False
    by: str = "optimizer"


class StudyEngine:
    """Decides; see the rules above.

    Parameters
    ----------
    book : Book
        As the log has it; whoever drives the engine applies what it logs.
    terms : Terms
    """

    def __init__(self, book: Book, terms: Terms) -> None:
        self.book, self.terms = book, terms
        #: Requests without an answer, oldest first.
        self.requests: deque[Request] = deque()
        self.ending = ""
        self.failed = False
        self._parts: dict[int, dict[int, Outcome]] = {}
        #: Intermediate values heard so far, for trials that end without bringing their own.
        self._reports: dict[int, list[list[float]]] = {}
        self._telling: set[int] = set()
        self._pruned: set[int] = set()
        self._asking = self._adopting = 0
        #: Before this session: failures of then say nothing about the objective as it is now.
        self._earlier = (book.told, book.errors)
        self._out: list[Command] = []
        self._finished = False

        #: Seconds of the first trials, in the order in which they were told.
        self._first = [r.seconds for r in book.first_told[:_FIRST]]

    # --- events -------------------------------------------------------------------------

    def begin(self) -> list[Command]:
        """Ask for as many trials as may be outstanding."""
        self._top_up()
        return self._taken()

    def outcome(self, number: int, outcome: Outcome) -> list[Command]:
        """Take in how one evaluation of a trial ended."""
        if not self.expects(number):
            self._log("dup", number, {"v": list(outcome.get("v", ()))})
            return self._taken()
        parts = self._parts.setdefault(number, {})
        if outcome.get("r", 0) in parts:
            self._log("dup", number, {"v": list(outcome.get("v", ()))})
            return self._taken()
        parts[outcome.get("r", 0)] = outcome
        if outcome["s"] == "complete" and len(parts) < self.terms.repeats:
            self._part_done(number, parts)
        else:
            self._tell(number, _combined(parts, self.terms.aggregate))
        return self._taken()

    def said(self, number: int, repeat: int, step: int, value: float) -> list[Command]:
        """Take in an intermediate value of a trial that runs."""
        if repeat == 0 and self.expects(number):
            self._reports.setdefault(number, []).append([step, value])
            if self.terms.prunes and self.terms.repeats == 1 and math.isfinite(value):
                self._request(Report(number, step, value))
        return self._taken()

    def answered(self, answer: Answer) -> list[Command]:
        """Take in the answer to the oldest request."""
        match self.requests.popleft():
            case Ask(number=number):
                self._asking -= 1
                self._asked(number, answer)
            case Adopt(number=number, point=point):
                self._adopting -= 1
                self._placed(number, point, answer.memo, "user")
            case Tell(told=told, body=body):
                self._log("tell", told.number, {**body, "m": answer.memo} if answer.memo else body)
                self._out.append(Announce(told.number))
            case Report() as report:
                self._reported(report, answer)
        return self._taken()

    def settled(self, elapsed: float) -> list[Command]:
        """Decide whether to stop; called when the book is up to date.

        Parameters
        ----------
        elapsed : float
            Seconds since this session began.
        """
        if not self.ending:
            self._look_at_failures()
        for rule in () if self.ending else self.terms.stops:
            self.ending = self.ending or rule.reached(self.book, elapsed)
        self._top_up()
        if self._over() and not self._finished:
            self._finished = True
            reason = self.ending or "all trials are done"
            self._out.append(Finish("failed" if self.failed else "done", reason))
        return self._taken()

    def stop(self, reason: str, *, failed: bool = False) -> list[Command]:
        """Ask for no more; trials under way are completed."""
        self.ending, self.failed = self.ending or reason, self.failed or failed
        return self.settled(0.0)

    def expects(self, number: int) -> bool:
        """Whether a trial runs and its outcome is still open."""
        trials = self.book.trials
        return (
            number < len(trials)
            and trials[number].state == "running"
            and number not in self._telling
        )

    # --- inside -------------------------------------------------------------------------

    def _taken(self) -> list[Command]:
        out, self._out = self._out, []
        return out

    def _log(self, kind: str, trial: int | None, body: Mapping[str, Any]) -> None:
        self._out.append(Log(kind, trial, body))

    def _request(self, request: Request) -> None:
        self.requests.append(request)
        self._out.append(request)

    def _outstanding(self) -> int:
        running = self.book.counts["running"] - len(self._telling)
        return running + self._asking + self._adopting

    def _limit(self) -> int:
        """How many may be outstanding."""
        base, ahead = self.terms.outstanding, self.terms.ahead
        few = min(_FIRST, base)
        if not few or len(self._first) < few:
            return base
        mean = sum(self._first[:few]) / few
        if mean < _TINY_S:
            return base
        return base + (ahead if mean < _SHORT_S else ahead // 3 if mean < _LONGER_S else 0)

    def _next_number(self) -> int:
        return len(self.book.trials) + self._asking + self._adopting

    def _top_up(self) -> None:
        limit = self.terms.n_trials
        while not self.ending and self._outstanding() < self._limit():
            asked = self.book.asked + self._asking + self._adopting
            if limit is not None and asked >= limit:
                return
            if len(self.book.queue) > self._adopting:
                point = self.book.queue[self._adopting]
                self._request(Adopt(self._next_number(), point))
                self._adopting += 1
            else:
                self._request(Ask(self._next_number()))
                self._asking += 1

    def _asked(self, number: int, answer: Answer) -> None:
        if answer.point is None:
            self.ending = self.ending or "the optimizer has no more points"
        else:
            self._placed(number, answer.point, answer.memo, answer.by)

    def _placed(self, number: int, point: Point, memo: Memo, by: str) -> None:
        """Log a trial and have it evaluated; not if the study ends, which then forgets it."""
        if self.ending:
            return
        body: dict[str, Any] = {"p": point, "by": by}
        self._log("ask", number, {**body, "m": memo} if memo else body)
        self._out.append(Dispatch(number))

    def _part_done(self, number: int, parts: Mapping[int, Outcome]) -> None:
        """One of several evaluations of a point is there: a pruner may have seen enough."""
        if self.terms.prunes and len(self.book.directions) == 1:
            mean = self.terms.aggregate([part["v"][0] for part in parts.values()])
            self._request(Report(number, len(parts) - 1, mean))

    def _tell(self, number: int, outcome: dict[str, Any]) -> None:
        self._parts.pop(number, None)
        reports = self._reports.pop(number, None)
        if reports and not outcome.get("i"):
            outcome["i"] = reports
        if outcome["s"] == "failed" and number in self._pruned:
            outcome |= {"s": "pruned", "why": "stopped where it ran"}
        if outcome["s"] == "failed":
            self._judge(outcome)
        state: TrialState = outcome["s"]
        values, limits = tuple(outcome.get("v", ())), tuple(outcome.get("c", ()))
        self._telling.add(number)
        if len(self._first) < _FIRST and outcome.get("t"):
            self._first.append(max(0.0, outcome["t"][1] - outcome["t"][0]))
        self._request(Tell(Told(number, state, values, limits), _body(outcome)))
        self._top_up()

    def _judge(self, outcome: dict[str, Any]) -> None:
        rule = self.terms.on_error
        if rule == "stop":
            self.failed = True
            self.ending = self.ending or f"a trial failed: {outcome.get('why', '')}"
        elif not isinstance(rule, str):
            outcome["s"], outcome["v"] = "complete", [float(rule)] * len(self.book.directions)
            outcome["why"] = outcome.get("why") or "failed"

    def _reported(self, report: Report, answer: Answer) -> None:
        body: dict[str, Any] = {"i": [report.step, report.value]}
        self._log("report", report.number, {**body, "prune": True} if answer.prune else body)
        if answer.prune and report.number not in self._pruned and self.expects(report.number):
            self._pruned.add(report.number)
            self._out.append(Prune(report.number))

    def written(self, number: int) -> None:
        """Note that the tell of a trial is in the book."""
        self._telling.discard(number)
        self._pruned.discard(number)

    def _look_at_failures(self) -> None:
        told, errors = self.book.told - self._earlier[0], self.book.errors - self._earlier[1]
        if told >= _FEW and errors > self.terms.max_failed * told:
            whys = (t.why for t in reversed(self.book.trials) if t.why and t.state != "pruned")
            last = next(whys, "no reason given")
            self.failed = True
            self.ending = f"{errors} of {told} trials failed, the last one with: {last}"

    def _over(self) -> bool:
        if self.requests or self.book.counts["running"]:
            return False
        limit = self.terms.n_trials
        return bool(self.ending) or (limit is not None and self.book.asked >= limit)


def _body(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the log keeps of an outcome: finite numbers, and only what is there."""
    body: dict[str, Any] = {"s": outcome["s"]}
    for key in ("v", "c", "a", "why", "t"):
        if outcome.get(key):
            body[key] = outcome[key]
    if outcome.get("i"):
        body["i"] = [[step, v if math.isfinite(v) else None] for step, v in outcome["i"]]
    return body


def _combined(parts: Mapping[int, Outcome], aggregate: Aggregate) -> dict[str, Any]:
    """Return one outcome for the evaluations of a point."""
    if len(parts) == 1:
        return dict(next(iter(parts.values())))
    ordered = [parts[repeat] for repeat in sorted(parts)]
    for state in ("failed", "pruned"):
        for part in ordered:
            if part["s"] == state:
                return dict(part)
    columns = zip(*(part["v"] for part in ordered), strict=True)
    limits = zip(*(part.get("c", ()) for part in ordered), strict=False)
    times = [part["t"] for part in ordered if "t" in part]
    return {
        "s": "complete",
        "v": [float(aggregate(column)) for column in columns],
        "c": [max(column) for column in limits],
        "a": {**ordered[-1].get("a", {}), "repeats": [part["v"] for part in ordered]},
        "t": [min(t[0] for t in times), max(t[1] for t in times)] if times else None,
    }
