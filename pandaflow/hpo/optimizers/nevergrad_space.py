"""Search spaces as Nevergrad's parametrizations, and points as its candidates."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import Choice, Dimension, Fixed, Float, Int, Scalar
from pandaflow.hpo.space import AnySpace, FunctionSpace, Point, Space


def library(module: str = "nevergrad") -> Any:
    """Import a module of Nevergrad, which takes two seconds the first time, without its warnings.

    Raises
    ------
    WorkflowError
        It is not installed.
    """
    require_package()
    with quiet():
        return importlib.import_module(module)


def require_package() -> None:
    """Refuse to go on without Nevergrad, with the remedy."""
    if importlib.util.find_spec("nevergrad") is None:
        raise WorkflowError('hpo.nevergrad needs Nevergrad: pip install "pandaflow[hpo]"')


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switch off warnings: those of Nevergrad and its libraries are about their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def installed() -> dict[str, str]:
    """Return the versions of Nevergrad and of what its points depend on."""
    names = ("nevergrad", "numpy", "cma")
    found = (name for name in names if importlib.util.find_spec(name) is not None)
    return {name: importlib.metadata.version(name) for name in found}


# --- points and candidates --------------------------------------------------------------

#: The numbers' key in a candidate's value; the choices have their positions as keys.
_NUMBERS = "numbers"


@dataclass(frozen=True, slots=True)
class _Slot:
    """A parameter, and its place among the numbers or the choices (None: nothing to choose)."""

    name: str
    dimension: Float | Int | Choice
    place: int | None
    branches: Mapping[Scalar, tuple[_Slot, ...]] = field(default_factory=dict)


class Layout:
    """Where Nevergrad has the parameters of a space.

    Nevergrad copies, freezes and checks every part of its parametrization several times a trial,
    in Python, so the parts are few: all numbers, those of branches included, are one array of
    ``[0, 1]`` (rasters and whole numbers are as many equal pieces of it), and every choice with
    two or more options is one more. Its algorithms work on the flat vector of all parts, where the
    numbers of branches that were not chosen are in any case.

    Parameters
    ----------
    dimensions : mapping of str to dimension
    """

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self._size = 0
        self._choices: list[Choice] = []
        self._slots = self._arrange(dimensions)

    @property
    def dimension(self) -> int:
        """The length of the vector that Nevergrad's algorithms work on."""
        return self._size + sum(1 if one.ordered else len(one.labels) for one in self._choices)

    def _arrange(self, dimensions: Mapping[str, Dimension]) -> tuple[_Slot, ...]:
        slots = []
        for name, dimension in dimensions.items():
            if isinstance(dimension, Choice):
                slots.append(self._arrange_choice(name, dimension))
            elif not isinstance(dimension, Fixed):
                place = self._size if varies(dimension) else None
                self._size += place is not None
                slots.append(_Slot(name, dimension, place))
        return tuple(slots)

    def _arrange_choice(self, name: str, dimension: Choice) -> _Slot:
        place = len(self._choices) if len(dimension.labels) > 1 else None
        if place is not None:
            self._choices.append(dimension)
        inner = {label: self._arrange(branch) for label, branch in dimension.branches.items()}
        return _Slot(name, dimension, place, inner)

    def parametrize(self) -> Any:
        """Return Nevergrad's parametrization: an ``ng.p.Array``, or an ``ng.p.Dict`` of parts."""
        kinds = library().p
        parts = {str(place): _choice_part(one) for place, one in enumerate(self._choices)}
        if not self._size:
            return kinds.Dict(**parts)
        numbers = kinds.Array(init=[0.5] * self._size).set_mutation(sigma=1 / 6)
        # Both as ng.p.Scalar has them by default, which ng.p.Array has not.
        numbers.set_bounds(0.0, 1.0, full_range_sampling=True)
        return kinds.Dict(**{_NUMBERS: numbers}, **parts) if parts else numbers

    def decode(self, value: Any) -> Point:
        """Return the point of a candidate's value."""
        parts = value if isinstance(value, Mapping) else {_NUMBERS: value}
        units = parts[_NUMBERS].tolist() if self._size else []
        indices = [_index(parts[str(place)]) for place in range(len(self._choices))]
        point: Point = {}
        _fill(point, self._slots, units, indices)
        return point

    def encode(self, point: Mapping[str, Any]) -> Any:
        """Return the candidate's value of a point; inverse of :meth:`decode`."""
        import numpy as np

        units, indices = [0.5] * self._size, [0] * len(self._choices)
        _place(point, self._slots, units, indices)
        parts = {
            str(place): index if one.ordered else np.array([index])
            for place, (one, index) in enumerate(zip(self._choices, indices, strict=True))
        }
        if not self._size:
            return parts
        return {_NUMBERS: np.array(units), **parts} if parts else np.array(units)


def varies(dimension: Dimension) -> bool:
    """Return whether there is anything to choose."""
    if isinstance(dimension, Fixed):
        return False
    if isinstance(dimension, Choice):
        inner = (one for branch in dimension.branches.values() for one in branch.values())
        return len(dimension.labels) > 1 or any(map(varies, inner))
    return dimension.low != dimension.high and _steps(dimension) != 1


def _choice_part(dimension: Choice) -> Any:
    """Return the parameter of an option's number."""
    options, kinds = range(len(dimension.labels)), library().p
    if dimension.ordered:
        return kinds.TransitionChoice(options)
    # The drawing of the number alone, without a constant for each option.
    return kinds.Choice(options).indices


def _index(value: Any) -> int:
    """Return an option's number: ordered ones are a number, others an array of one."""
    return int(value if isinstance(value, int) else value[0])


def _fill(
    point: Point, slots: tuple[_Slot, ...], units: Sequence[float], indices: Sequence[int]
) -> None:
    """Note in ``point`` what the units and indices mean."""
    for slot in slots:
        dimension, place = slot.dimension, slot.place
        if isinstance(dimension, Choice):
            label = dimension.labels[0 if place is None else indices[place]]
            point[slot.name] = label
            _fill(point, slot.branches.get(label, ()), units, indices)
        else:
            point[slot.name] = _number(dimension, 0.0 if place is None else units[place])


def _place(
    point: Mapping[str, Any], slots: tuple[_Slot, ...], units: list[float], indices: list[int]
) -> None:
    """Note in ``units`` and ``indices`` what the point means."""
    for slot in slots:
        dimension, place = slot.dimension, slot.place
        if isinstance(dimension, Choice):
            label = dimension.parse(point[slot.name])
            if place is not None:
                # By identity: True and 1 are equal, but two options.
                indices[place] = [known is label for known in dimension.labels].index(True)
            _place(point, slot.branches.get(label, ()), units, indices)
        elif place is not None:
            units[place] = _unit(dimension, point[slot.name])


def _steps(dimension: Float | Int) -> int | None:
    """Return how many values a raster has; None where values are searched continuously."""
    if dimension.log or dimension.step is None:
        return None
    if isinstance(dimension, Int):
        return (dimension.high - dimension.low) // dimension.step + 1
    return math.floor((dimension.high - dimension.low) / dimension.step + 1e-9) + 1


def _number(dimension: Float | Int, unit: float) -> float | int:
    """Return the value at a number of ``[0, 1]``, whose ends are the range's ends exactly."""
    unit = min(1.0, max(0.0, unit))
    steps = _steps(dimension)
    if steps is None:
        return dimension.high if unit == 1.0 else dimension.at(unit)
    number = min(steps - 1, int(unit * steps))
    if isinstance(dimension, Int):
        return dimension.low + dimension.step * number
    return dimension.at((number + 0.5) / steps)


def _unit(dimension: Float | Int, value: float) -> float:
    """Return the number of ``[0, 1]`` of a value; of a raster's, the middle of its piece."""
    steps = _steps(dimension)
    if steps is not None:
        number = round((value - dimension.low) / (dimension.step or 1))
        return (min(steps - 1, max(0, number)) + 0.5) / steps
    low, high = float(dimension.low), float(dimension.high)
    if dimension.log:
        # Whole numbers reach half a step beyond their ends, as in Int.at.
        half = 0.5 if isinstance(dimension, Int) else 0.0
        low, high, value = math.log(low - half), math.log(high + half), math.log(value)
    return min(1.0, max(0.0, (value - low) / (high - low)))


# --- the spaces that it can search ------------------------------------------------------


class _Tracer:
    """Notes every parameter that a space function asks for; draws at random, or all alike."""

    def __init__(self, rng: random.Random, unit: float | None) -> None:
        self._rng, self._unit = rng, unit
        self.seen: dict[str, Float | Int | Choice] = {}

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        """Draw a value."""
        self.seen[name] = dimension
        return dimension.at(self._rng.random() if self._unit is None else self._unit)


def dimensions_of(space: AnySpace) -> Mapping[str, Dimension]:
    """Return the parameters of a space; a space function is called 64 times to find them.

    Raises
    ------
    WorkflowError
        The function does not suggest the same parameters in the same ranges every time.
    """
    if isinstance(space, Space):
        return space.top
    rng = random.Random(0)
    units = [0.0, 0.5, 1 - 2**-53, *[None] * 61]
    first = _traced(space, rng, None)
    for unit in units:
        other = _traced(space, rng, unit)
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                raise _conditional(name)
    return first


def _traced(
    space: FunctionSpace, rng: random.Random, unit: float | None
) -> dict[str, Float | Int | Choice]:
    tracer = _Tracer(rng, unit)
    space.draw(tracer)
    return tracer.seen


def _conditional(name: str) -> WorkflowError:
    return WorkflowError(
        f"hpo.nevergrad: the space function suggests {name!r} only sometimes, or in changing "
        "ranges; Nevergrad must know all parameters beforehand. Declare such a space, for example "
        'hpo.Space(kind=hpo.choice({"bdt": {"depth": hpo.int(2, 12)}, "nn": {}})), or use '
        "hpo.optuna"
    )
