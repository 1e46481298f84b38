"""Rules that end a study before its budget is used up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pandaflow.core.errors import WorkflowError
from pandaflow.core.quantities import parse_seconds
from pandaflow.hpo.book import Book


class StopRule(Protocol):
    """Decides after each trial that was told, and every second."""

    def reached(self, book: Book, elapsed: float) -> str:
        """Return why to stop, or "".

        Parameters
        ----------
        book : Book
        elapsed : float
            Seconds since this part of the study began.
        """
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Stop when a trial is as good as ``value``."""

    value: float

    def reached(self, book: Book, elapsed: float) -> str:
        """Compare the best value with the target."""
        del elapsed
        if len(book.directions) > 1:
            raise WorkflowError("hpo.target is for one objective; this study has several")
        best = book.best
        if best is None:
            return ""
        value, minimize = best.values[0], book.directions[0] == "minimize"
        good = value <= self.value if minimize else value >= self.value
        return f"the target {self.value:g} was reached by trial {best.number}" if good else ""


@dataclass(frozen=True, slots=True)
class Patience:
    """Stop when so many trials in a row brought nothing better."""

    trials: int

    def reached(self, book: Book, elapsed: float) -> str:
        """Count the trials since the best."""
        del elapsed
        idle = book.since_best
        return f"no better trial among the last {idle}" if idle >= self.trials else ""


@dataclass(frozen=True, slots=True)
class Timeout:
    """Stop after so many seconds; trials under way are completed."""

    seconds: float

    def reached(self, book: Book, elapsed: float) -> str:
        """Look at the clock."""
        del book
        return f"{self.seconds:g} s are over" if elapsed >= self.seconds else ""


@dataclass(frozen=True, slots=True)
class Cost:
    """Stop when the evaluations have used so many seconds in sum."""

    seconds: float

    def reached(self, book: Book, elapsed: float) -> str:
        """Sum the durations of all trials."""
        del elapsed
        used = book.seconds
        return f"evaluations have used {used:.4g} s" if used >= self.seconds else ""


def target(value: float) -> Target:
    """Stop when a trial is as good as ``value``."""
    return Target(float(value))


def patience(trials: int) -> Patience:
    """Stop after so many trials in a row without a better one."""
    if type(trials) is not int or trials < 1:
        raise WorkflowError(f"hpo.patience({trials!r}): a whole number of at least 1")
    return Patience(trials)


def timeout(limit: float | str) -> Timeout:
    """Stop after some time: seconds, or a text such as ``"12h"``."""
    return Timeout(_seconds(limit, "timeout"))


def cost(limit: float | str) -> Cost:
    """Stop when all evaluations together took so long."""
    return Cost(_seconds(limit, "cost"))


def _seconds(limit: Any, what: str) -> float:
    return float(parse_seconds(limit, f"hpo.{what}"))


def parse_rules(given: Any) -> tuple[StopRule, ...]:
    """Return ``stop=`` as a tuple of rules.

    Raises
    ------
    WorkflowError
    """
    if given is None:
        return ()
    rules = tuple(given) if isinstance(given, list | tuple) else (given,)
    for rule in rules:
        if not hasattr(rule, "reached"):
            raise WorkflowError(
                f"stop={rule!r} is no rule; use hpo.target(value), hpo.patience(trials), "
                "hpo.timeout('12h') or hpo.cost('100h')"
            )
    return rules
