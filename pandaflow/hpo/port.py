"""The seam between a study and an optimizer, and what both keep.

An optimizer sees one order of events, that of the study's log: asks, tells and reports. It is
built from (space, brief) and, on resume, brought back by :meth:`Optimizer.restore` from the
entries of the log, so that its next point is the one it would have given without the break.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from pandaflow.hpo.space import AnySpace, Point

TrialState: TypeAlias = Literal["complete", "pruned", "failed"]
#: JSON-ready values that an optimizer wants kept with an event, and back on resume.
Memo: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Brief:
    """What an optimizer is told about the study.

    Attributes
    ----------
    directions : tuple of {'minimize', 'maximize'}
        One for each objective. Values are always told in the user's sense.
    seed : int
        63 bits. All randomness must follow from it and from the events seen.
    outstanding : int
        Trials that are asked for and not told at the same time.
    budget : int or None
        Trials wanted in all, if that is known.
    pruner : str, tuple of (str, options) or None
        A name such as ``"median"``, with options.
    """

    directions: tuple[Literal["minimize", "maximize"], ...]
    seed: int
    outstanding: int = 1
    budget: int | None = None
    pruner: Any = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A point, and what the optimizer wants kept with it."""

    point: Point
    memo: Memo = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a trial.

    Attributes
    ----------
    number : int
        The trial.
    state : {'complete', 'pruned', 'failed'}
    values : tuple of float
        Finite; one for each objective if complete, empty otherwise (a pruned trial's value is
        its last report).
    constraints : tuple of float
        Feasible where all are <= 0.
    point : mapping or None
        For a trial that nobody asked this optimizer for (a user's point, one of another
        study, a random one in an emergency): where it was.
    """

    number: int
    state: TrialState
    values: tuple[float, ...] = ()
    constraints: tuple[float, ...] = ()
    point: Point | None = None


@dataclass(frozen=True, slots=True)
class AskEntry:
    """The log's account of an ask."""

    number: int
    point: Point
    memo: Memo
    #: False: the point came from elsewhere (a user, another study, a random number).
    own: bool = True


@dataclass(frozen=True, slots=True)
class TellEntry:
    """The log's account of a tell."""

    told: Told
    memo: Memo


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """The log's account of an intermediate value."""

    number: int
    step: int
    value: float


Entry: TypeAlias = AskEntry | TellEntry | ReportEntry


class Optimizer(Protocol):
    """Proposes points. Used from one thread, in one process.

    Any exception that it raises means that it is broken: the study starts another from the
    log, and if that one fails too, goes on with random points.
    """

    def ask(self, number: int) -> Asked:
        """Return the point of trial ``number``, which counts as outstanding from now on."""
        ...

    def adopt(self, number: int, point: Point) -> Memo:
        """Take in an outstanding trial whose point came from elsewhere."""
        ...

    def tell(self, told: Told) -> Memo:
        """Take in what came of an outstanding trial (or, with a point, of any other)."""
        ...

    def report(self, number: int, step: int, value: float) -> bool:
        """Take in an intermediate value of an outstanding trial; return whether to prune it."""
        ...

    def restore(self, entries: Sequence[Entry], snapshot: bytes | None = None) -> str:
        """Come back to where the log ends; called once, before anything else.

        Parameters
        ----------
        entries : sequence of Entry
            With a snapshot only those after it.

        Returns
        -------
        str
            Why the next points may differ from those of an uninterrupted study; "" if they
            will not.
        """
        ...

    def snapshot(self) -> bytes | None:
        """Return its state, if restoring from one is quicker than from the log; else None."""
        ...


class OptimizerSpec(Protocol):
    """What ``hpo.optuna(...)`` and the like return: how to make an optimizer.

    A frozen dataclass that can be pickled; making it imports nothing heavy.
    """

    @property
    def seed(self) -> int | None:
        """The seed that the user gave, if any."""
        ...

    @property
    def isolated(self) -> bool:
        """Whether it must run in a process of its own (it may hang, crash or take long)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return JSON-ready values: kind, name, options, versions of the libraries it uses."""
        ...

    def check(self, space: AnySpace, brief: Brief) -> None:
        """Refuse what cannot work, with the remedy.

        Raises
        ------
        WorkflowError
            Unknown name, a space it cannot search, no parallel use, a missing package.
        """
        ...

    def build(self, space: AnySpace, brief: Brief) -> Optimizer:
        """Make a fresh optimizer."""
        ...
