"""A study without store, processes and clock: an engine, its book and a list as the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pandaflow.hpo.book import Book
from pandaflow.hpo.engine import (
    Adopt,
    Announce,
    Answer,
    Ask,
    Command,
    Dispatch,
    Finish,
    Log,
    Prune,
    Report,
    Request,
    StudyEngine,
    Tell,
    Terms,
)

Record = tuple[int, float, str, int | None, Mapping[str, Any]]


def value_of(number: int) -> float:
    """Return a value that is never 0 and that no two trials share."""
    return float((number * 37) % 101) + number / 1000 + 1.0


def replayed(records: Sequence[Record], directions: Sequence[str] = ("minimize",)) -> Book:
    """Return the book that a log tells."""
    book = Book(directions)
    for seq, at, kind, trial, body in records:
        book.apply(seq, at, kind, trial, body)
    return book


class Sitting:
    """One session of a study, as its driver would have it.

    Parameters
    ----------
    terms : Terms
    log : list of records, optional
        Of earlier sessions; goes on to be written.
    size : int, optional
        Points that the optimizer has.
    prune : callable, optional
        Of a report: whether the trial is to be pruned.
    """

    def __init__(
        self,
        terms: Terms,
        log: list[Record] | None = None,
        *,
        directions: Sequence[str] = ("minimize",),
        size: int | None = None,
        prune: Callable[[Report], bool] = lambda report: False,
        lazy: bool = False,
    ) -> None:
        self.log = [] if log is None else log
        self.book = replayed(self.log, directions)
        self.engine = StudyEngine(self.book, terms)
        self.size, self.prune, self.lazy = size, prune, lazy
        self.requests: list[Request] = []
        self.dispatched: list[int] = [trial.number for trial in self.book.outstanding]
        self.announced: list[int] = []
        self.pruned: list[int] = []
        self.finish: Finish | None = None
        self.finishes = 0

    # --- what may happen ----------------------------------------------------------------

    def begin(self) -> Sitting:
        """Ask for the first trials."""
        self.work(self.engine.begin())
        self.work(self.engine.settled(0.0))
        return self

    def end(self, number: int, value: float | None = None, **more: Any) -> None:
        """A trial (or one repeat of it) has ended."""
        given = value_of(number) if value is None else value
        outcome = {"n": number, "s": "complete", "v": [given], **more}
        self.work(self.engine.outcome(number, outcome))

    def fail(self, number: int, why: str = "ValueError: no", **more: Any) -> None:
        """A trial has failed for good."""
        failed = {"n": number, "s": "failed", "v": [], "why": why, **more}
        self.work(self.engine.outcome(number, failed))

    def say(self, number: int, step: int, value: float, repeat: int = 0) -> None:
        """A trial has reported."""
        self.work(self.engine.said(number, repeat, step, value))

    def tick(self, elapsed: float = 0.0) -> None:
        """Some time has gone by."""
        self.work(self.engine.settled(elapsed))

    def answer(self) -> None:
        """The optimizer answers its oldest request."""
        request = self.engine.requests[0]
        answer = Answer()
        match request:
            case Ask(number=number) if self.size is None or number < self.size:
                answer = Answer({"x": number / 64}, {"k": number})
            case Adopt(point=point):
                answer = Answer(point)
            case Report():
                answer = Answer(prune=self.prune(request))
        self.work(self.engine.answered(answer) or self.engine.settled(0.0))

    # --- as the driver does it ----------------------------------------------------------

    def work(self, commands: Sequence[Command]) -> None:
        """Write, apply and carry out; unless lazy, have the optimizer answer at once."""
        while commands:
            changed = False
            for command in commands:
                changed |= self._one(command)
            commands = self.engine.settled(0.0) if changed else []
        while not self.lazy and self.engine.requests:
            self.answer()

    def _one(self, command: Command) -> bool:
        match command:
            case Log():
                self.write(command.kind, command.trial, command.body)
            case Ask() | Adopt() | Tell() | Report():
                self.requests.append(command)
            case Dispatch(number=number):
                self.dispatched.append(number)
            case Announce(number=number):
                self.announced.append(number)
            case Prune(number=number):
                self.pruned.append(number)
            case Finish():
                self.finish = command
                self.finishes += 1
        return isinstance(command, Log | Ask | Adopt | Tell | Report)

    def write(self, kind: str, trial: int | None, body: Mapping[str, Any]) -> None:
        """Write a record and apply it."""
        seq = len(self.log) + 1
        self.log.append((seq, float(seq), kind, trial, body))
        self.book.apply(seq, float(seq), kind, trial, body)
        if kind == "tell" and trial is not None:
            self.engine.written(trial)

    # --- looking ------------------------------------------------------------------------

    @property
    def order(self) -> list[str]:
        """What the optimizer was sent: a3 for an ask, t0 for a tell, u1 for a user's point."""
        letters: dict[type, str] = {Ask: "a", Tell: "t", Adopt: "u", Report: "r"}
        return [f"{letters[type(one)]}{_number(one)}" for one in self.requests]

    @property
    def running(self) -> list[int]:
        """Trials that are evaluated now."""
        return [trial.number for trial in self.book.outstanding]

    def kinds(self) -> Counter[str]:
        """Count the records of the log."""
        return Counter(record[2] for record in self.log)


def _number(request: Request) -> int:
    return request.told.number if isinstance(request, Tell) else request.number
