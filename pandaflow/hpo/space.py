"""Search spaces: what an optimizer may vary, and what the objective is called with.

A *point* is what is kept of a choice: a mapping of parameter names to plain values (float, int,
text, truth value, None). The *arguments* of the objective follow from the point; they may be any
objects. Whoever draws a point does it through a :class:`Suggester`, one parameter at a time, so
that a declared space and a define-by-run function are the same thing to every optimizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias

from pandaflow.core.errors import WorkflowError
from pandaflow.core.signature import code_token
from pandaflow.hpo.dimensions import (
    Choice,
    Dimension,
    Fixed,
    Float,
    Int,
    Scalar,
    check_nested,
    choice,
    describe,
    flat,
    integer,
    parse_dimensions,
    real,
)

Point: TypeAlias = dict[str, Scalar]


# --- drawing ----------------------------------------------------------------------------


class Suggester(Protocol):
    """Whoever chooses a value for a parameter: an optimizer, a random number, a stored point."""

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        """Return a value (of a choice: a label)."""
        ...


class RandomSuggester:
    """Chooses uniformly; ``rng`` is a ``random.Random``."""

    def __init__(self, rng: Any) -> None:
        self._rng = rng

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        """Draw a value."""
        del name
        return dimension.at(self._rng.random())


class StoredSuggester:
    """Gives the values of a point.

    Raises
    ------
    WorkflowError
        A parameter is missing or outside its range; names it.
    """

    def __init__(self, point: Mapping[str, Any]) -> None:
        self._point = point
        self.used: set[str] = set()

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        """Return the point's value."""
        if name not in self._point:
            raise WorkflowError(f"parameter {name!r} is missing in {dict(self._point)!r}")
        self.used.add(name)
        try:
            return dimension.parse(self._point[name])
        except ValueError as error:
            raise WorkflowError(f"parameter {name!r}: {error}") from None


class Draw:
    """What a define-by-run function gets: Optuna's verbs over any :class:`Suggester`."""

    def __init__(self, suggester: Suggester, number: int = 0) -> None:
        self._suggester = suggester
        self.number = number
        self.params: dict[str, Any] = {}
        self.point: Point = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Choose a real number."""
        return self._take(name, real(low, high, log=log, step=step))  # type: ignore[no-any-return]

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Choose a whole number."""
        return self._take(name, integer(low, high, log=log, step=step))  # type: ignore[no-any-return]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one of some options."""
        return self._take(name, choice(list(choices)))

    def _take(self, name: str, dimension: Float | Int | Choice) -> Any:
        if name not in self.params:
            label = self._suggester.suggest(name, dimension)
            self.point[name] = label
            chosen = isinstance(dimension, Choice)
            self.params[name] = dimension.option(label) if chosen else label  # type: ignore[union-attr]
        return self.params[name]


# --- spaces -----------------------------------------------------------------------------


class Space:
    """A declared search space.

    Parameters
    ----------
    **dimensions
        By parameter name: ``hpo.float``, ``hpo.log``, ``hpo.int``, ``hpo.choice``,
        ``hpo.ordinal``, ``hpo.fixed``; a list is a choice, a ``range`` whole numbers, any
        other plain value is fixed.

    Examples
    --------
    >>> from pandaflow import hpo
    >>> space = hpo.Space(lr=hpo.log(1e-5, 1e-1), depth=hpo.int(2, 12), kind=["bdt", "nn"])
    >>> sorted(space.dimensions)
    ['depth', 'kind', 'lr']
    """

    def __init__(self, dimensions: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        self._top = parse_dimensions({**(dimensions or {}), **named})
        if not self._top:
            raise WorkflowError("hpo.Space() is empty: name at least one parameter")
        self.dimensions: dict[str, Dimension] = {}
        for name, dimension in flat(self._top):
            if self.dimensions.setdefault(name, dimension) != dimension:
                raise WorkflowError(f"parameter {name!r} is declared twice, and differently")
        check_nested(self._top, frozenset())

    @property
    def varied(self) -> dict[str, Float | Int | Choice]:
        """The parameters that vary, conditional ones included."""
        return {n: d for n, d in self.dimensions.items() if not isinstance(d, Fixed)}

    @property
    def conditional(self) -> bool:
        """Whether some parameters exist only for some choices."""
        return any(isinstance(d, Choice) and d.branches for d in self.dimensions.values())

    @property
    def top(self) -> Mapping[str, Dimension]:
        """The parameters that always exist, in order; those of branches hang below choices."""
        return self._top

    def draw(self, suggester: Suggester, number: int = 0) -> Point:
        """Choose a point, parameter by parameter."""
        del number
        point: Point = {}
        _draw(self._top, suggester, point)
        return point

    def arguments(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the objective is called with at a point."""
        out: dict[str, Any] = {}
        _fill(self._top, point, out)
        return out

    def parse(self, given: Mapping[str, Any]) -> Point:
        """Return ``given`` (values or labels by name) as a point.

        Raises
        ------
        WorkflowError
            A parameter is unknown, missing or outside its range.
        """
        return _parse(self, given)

    def describe(self) -> dict[str, Any]:
        """Return the space as JSON-ready values; equal spaces give equal descriptions."""
        return {name: describe(dimension) for name, dimension in self._top.items()}

    @property
    def digest(self) -> str:
        """A short hash of the description."""
        return _digest(self.describe())

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={dimension!r}" for name, dimension in self._top.items())
        return f"Space({inner})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.digest)


class FunctionSpace:
    """A define-by-run space: a function that calls ``suggest_*`` of the trial it is given.

    What it returns (a dict) are the objective's arguments; None means the chosen parameters.
    It runs where the optimizer runs, never with the objective.
    """

    conditional = True

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def draw(self, suggester: Suggester, number: int = 0) -> Point:
        """Choose a point by calling the function."""
        trial = Draw(suggester, number)
        self._call(trial)
        if not trial.point:
            raise WorkflowError(f"space function {self._name!r} suggested no parameter")
        return trial.point

    def arguments(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the objective is called with at a point."""
        return self._call(Draw(StoredSuggester(point)))

    def parse(self, given: Mapping[str, Any]) -> Point:
        """Return ``given`` as a point; see :meth:`Space.parse`."""
        return _parse(self, given)

    def describe(self) -> dict[str, Any]:
        """Return the function's name and the hash of its code."""
        return {"function": self._name, "code": code_token(self.function)}

    @property
    def digest(self) -> str:
        """A short hash of the description."""
        return _digest(self.describe())

    def _call(self, trial: Draw) -> dict[str, Any]:
        given = self.function(trial)
        if given is None:
            return dict(trial.params)
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise WorkflowError(
                f"space function {self._name!r} returned {type(given).__name__}; return a dict "
                "of the objective's arguments, or nothing"
            )
        return dict(given)

    @property
    def _name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __repr__(self) -> str:
        return f"FunctionSpace({self._name})"


AnySpace: TypeAlias = Space | FunctionSpace


def parse_space(given: Any) -> AnySpace:
    """Return a space: a :class:`Space` or dict as declared, a function as define-by-run.

    Raises
    ------
    WorkflowError
    """
    if isinstance(given, Space | FunctionSpace):
        return given
    if isinstance(given, Mapping):
        return Space(given)
    if callable(given):
        return FunctionSpace(given)
    raise WorkflowError(
        f"a search space is an hpo.Space(...), a dict of parameters or a function of a trial, "
        f"not {type(given).__name__}"
    )


def _draw(dimensions: Mapping[str, Dimension], suggester: Suggester, point: Point) -> None:
    for name, dimension in dimensions.items():
        if isinstance(dimension, Fixed):
            continue
        point[name] = suggester.suggest(name, dimension)
        if isinstance(dimension, Choice):
            _draw(dimension.branches.get(point[name], {}), suggester, point)


def _fill(
    dimensions: Mapping[str, Dimension], point: Mapping[str, Any], out: dict[str, Any]
) -> None:
    for name, dimension in dimensions.items():
        if isinstance(dimension, Fixed):
            out[name] = dimension.value
        elif isinstance(dimension, Choice):
            out[name] = dimension.option(point[name])
            _fill(dimension.branches.get(point[name], {}), point, out)
        else:
            out[name] = point[name]


def _parse(space: AnySpace, given: Mapping[str, Any]) -> Point:
    if not isinstance(given, Mapping):
        raise WorkflowError(f"a point is a dict of parameters, not {type(given).__name__}")
    stored = StoredSuggester(given)
    point = space.draw(stored)
    declared = set(space.dimensions) if isinstance(space, Space) else set()
    unknown = sorted(set(given) - stored.used - declared)
    if unknown:
        raise WorkflowError(f"unknown parameter {unknown[0]!r}; known are {', '.join(point)}")
    return point


def _digest(description: Mapping[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()
