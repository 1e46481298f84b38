"""The study in memory: what the log says, told again.

The log is the only truth. A record is applied here when it has been written, whether it was
written now by this process or long ago by another, so a study that is looked at from elsewhere,
one that is resumed and one that runs are in the same state by construction.

Kinds of records, and their bodies:

``session``  a driver began: seed, versions, outstanding, budget, run
``ask``      trial n: ``p`` point, ``m`` memo, ``by`` optimizer | user | random
``tell``     trial n: ``s`` state, ``v`` values, ``c`` constraints, ``m`` memo, ``a`` attributes,
             ``i`` intermediate values, ``t`` [began, ended], ``why``
``add``      trial n that was evaluated elsewhere: ``p``, ``s``, ``v``, ``c``
``report``   trial n: ``i`` [step, value], ``prune``
``queue``    points that a user wants tried next: ``p``
``dup``      trial n was told again: ``v``; nothing follows from it
``snapshot`` the optimizer's state is in ``file``
``space``    the space was changed: ``space``
``note``     ``text``: what a person should know
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pandaflow.hpo.port import (
    AskEntry,
    Entry,
    ReportEntry,
    TellEntry,
    Told,
)
from pandaflow.hpo.space import Point

#: Trials that are remembered in the order in which they ended.
_FIRST = 8
#: Trials in a list of the best.
_MOST = 10


@dataclass(slots=True, eq=False)
class TrialRecord:
    """A trial as the study knows it.

    Attributes
    ----------
    number : int
    state : {'running', 'complete', 'pruned', 'failed'}
    point : dict
        Values as the optimizer sees them; ``study.params_of(trial)`` gives the arguments.
    values : tuple of float
        Empty until it is complete.
    constraints : tuple of float
        Feasible where all are <= 0.
    attrs : dict
    reports : list of (int, float)
        Steps and intermediate values.
    began, ended : float
        Of its evaluation, seconds since the epoch; 0.0 while unknown.
    by : str
        Who proposed it: optimizer, user, random, or another study.
    why : str
        Of a failed or pruned trial.
    """

    number: int
    point: Point
    by: str
    state: str = "running"
    values: tuple[float, ...] = ()
    constraints: tuple[float, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    reports: Sequence[tuple[int, float]] = ()
    began: float = 0.0
    ended: float = 0.0
    why: str = ""

    @property
    def value(self) -> float | None:
        """The value of a study with one objective; None until it is complete."""
        return self.values[0] if self.values else None

    @property
    def params(self) -> dict[str, Any]:
        """The point, under the name that Optuna's users know."""
        return dict(self.point)

    @property
    def feasible(self) -> bool:
        """Whether no constraint is violated."""
        return all(limit <= 0 for limit in self.constraints)

    @property
    def seconds(self) -> float:
        """How long its evaluation took."""
        return max(0.0, self.ended - self.began)


class Book:
    """All trials of a study, and what follows from them.

    Parameters
    ----------
    directions : sequence of {'minimize', 'maximize'}
    """

    def __init__(self, directions: Sequence[str]) -> None:
        self.directions = tuple(directions)
        self.trials: list[TrialRecord] = []
        self.queue: deque[Point] = deque()
        self.notes: list[tuple[float, str]] = []
        self.sessions: list[Mapping[str, Any]] = []
        self.counts = dict.fromkeys(("running", "complete", "pruned", "failed"), 0)
        #: The best trial; of several objectives the last that entered the front.
        self.best: TrialRecord | None = None
        self._front: list[tuple[tuple[float, ...], TrialRecord]] = []
        #: The ten best of one objective, best first, as (cost, number).
        self._top: list[tuple[float, int]] = []
        self.since_best = 0
        self.seconds = 0.0
        #: The first trials that ended after an evaluation, in that order.
        self.first_told: list[TrialRecord] = []
        self.asked = 0
        self.duplicates = 0
        self.errors = 0
        self.seq = 0

    def apply(self, seq: int, at: float, kind: str, trial: int | None, body: Any) -> None:
        """Take in one record of the log, in order."""
        self.seq = seq
        take = getattr(self, f"_on_{kind}", None)
        if take is not None:
            take(at, trial or 0, body)

    def _on_ask(self, at: float, trial: int, body: Any) -> None:
        self._begin(TrialRecord(trial, body["p"], body["by"], began=at))
        self.asked += 1
        if body["by"] == "user" and self.queue:
            self.queue.popleft()

    def _on_add(self, at: float, trial: int, body: Any) -> None:
        record = TrialRecord(trial, body["p"], body["by"], began=at)
        self._begin(record)
        self._end(record, body, at)

    def _on_tell(self, at: float, trial: int, body: Any) -> None:
        self._end(self.trials[trial], body, at)

    def _on_report(self, at: float, trial: int, body: Any) -> None:
        record = self.trials[trial]
        step, value = body["i"]
        record.reports = [*record.reports, (step, value)]

    def _on_dup(self, at: float, trial: int, body: Any) -> None:
        self.duplicates += 1

    def _on_queue(self, at: float, trial: int, body: Any) -> None:
        self.queue.append(body["p"])

    def _on_session(self, at: float, trial: int, body: Any) -> None:
        self.sessions.append(body)

    def _on_note(self, at: float, trial: int, body: Any) -> None:
        self.notes.append((at, body["text"]))

    def _begin(self, record: TrialRecord) -> None:
        self.trials.append(record)
        self.counts["running"] += 1

    def _end(self, record: TrialRecord, body: Mapping[str, Any], at: float) -> None:
        record.state = body["s"]
        record.values = tuple(body.get("v", ()))
        record.constraints = tuple(body.get("c", ()))
        record.why = body.get("why", "")
        record.attrs = body.get("a", {})
        if "i" in body:
            record.reports = [(step, value) for step, value in body["i"]]
        record.began, record.ended = body.get("t", (record.began, at))
        if "t" in body and len(self.first_told) < _FIRST:
            self.first_told.append(record)
        self.counts["running"] -= 1
        self.counts[record.state] += 1
        self.seconds += record.seconds
        self.errors += record.state == "failed" or (record.state == "complete" and bool(record.why))
        self.since_best += 1
        if record.state == "complete" and record.feasible and self._enters(record):
            self.best, self.since_best = record, 0
        if record.state == "complete" and record.feasible and len(self.directions) == 1:
            sign = 1.0 if self.directions[0] == "minimize" else -1.0
            insort(self._top, (sign * record.values[0], record.number))
            del self._top[_MOST:]

    def _enters(self, record: TrialRecord) -> bool:
        """Put a trial into the front unless one there is as good."""
        signs = (1.0 if d == "minimize" else -1.0 for d in self.directions)
        cost = tuple(sign * value for sign, value in zip(signs, record.values, strict=True))
        if any(_covers(other, cost) for other, _ in self._front):
            return False
        self._front = [(c, r) for c, r in self._front if not _covers(cost, c)]
        self._front.append((cost, record))
        return True

    # --- looking ------------------------------------------------------------------------

    @property
    def outstanding(self) -> list[TrialRecord]:
        """Trials that were asked and not told."""
        return [record for record in self.trials if record.state == "running"]

    @property
    def told(self) -> int:
        """Number of trials that have ended."""
        return len(self.trials) - self.counts["running"]

    def complete(self) -> Iterator[TrialRecord]:
        """Yield the trials that have a value."""
        return (record for record in self.trials if record.state == "complete")

    def front(self) -> list[TrialRecord]:
        """Return the trials that no other dominates, in order; of one objective the best."""
        return [record for _, record in self._front]

    def top(self) -> list[TrialRecord]:
        """Return the ten best feasible trials, best first; of several objectives of the front."""
        if len(self.directions) > 1:
            return self.front()[:_MOST]
        return [self.trials[number] for _, number in self._top]

    def summary(self) -> dict[str, Any]:
        """Return what a look at the study shows, as JSON-ready values."""
        best = self.best
        return {
            "trials": dict(self.counts),
            "asked": self.asked,
            "best": list(best.values) if best is not None else None,
            "best_trial": best.number if best is not None else None,
            "front": len(self._front),
            "top": [
                {"number": t.number, "values": list(t.values), "by": t.by, "point": t.point}
                for t in self.top()
            ],
            "began": self.trials[0].began if self.trials else None,
            "session": dict(self.sessions[-1]) if self.sessions else {},
            "notes": [text for _, text in self.notes[-5:]],
        }


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether ``one`` is nowhere worse; lower is better."""
    return all(a <= b for a, b in zip(one, other, strict=True))


def entry_of(kind: str, trial: int | None, body: Mapping[str, Any]) -> Entry | None:
    """Return a record of the log as optimizers see it; None if it does not concern them."""
    number = trial or 0
    match kind:
        case "ask":
            return AskEntry(number, body["p"], body.get("m", {}), body["by"] == "optimizer")
        case "tell" | "add":
            values, limits = tuple(body.get("v", ())), tuple(body.get("c", ()))
            told = Told(number, body["s"], values, limits, body.get("p"))
            return TellEntry(told, body.get("m", {}))
        case "report" if body["i"][1] is not None:
            return ReportEntry(number, *body["i"])
    return None
