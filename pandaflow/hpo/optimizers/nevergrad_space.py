"""Search spaces as Nevergrad's parametrizations, and points as its candidates."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import math
import random
import warnings
from collections.abc import Iterator, Mapping
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


def parametrize(dimensions: Mapping[str, Dimension]) -> Any:
    """Return Nevergrad's parametrization of some parameters: an ``ng.p.Dict``.

    Reals (and whole numbers with a logarithm) are searched in ``[0, 1]``, rasters by their index,
    choices by the index of the option; :func:`decode` maps back, so that ends are never crossed by
    a rounding error.
    """
    return _parameter_dict(dimensions, {})


def _parameter_dict(dimensions: Mapping[str, Dimension], content: dict[str, Any]) -> Any:
    for name, dimension in dimensions.items():
        if varies(dimension):
            content[name] = _parameter(dimension)
    return library().p.Dict(**content)


def varies(dimension: Dimension) -> bool:
    """Return whether there is anything to choose."""
    if isinstance(dimension, Fixed):
        return False
    if isinstance(dimension, Choice):
        return len(dimension.labels) > 1 or _has_parameters(dimension, 0)
    return dimension.low != dimension.high and _steps(dimension) != 1


def _has_parameters(dimension: Choice, number: int) -> bool:
    """Return whether an option has parameters of its own that vary."""
    branch = dimension.branches.get(dimension.labels[number], {})
    return any(varies(inner) for inner in branch.values())


def _parameter(dimension: Any) -> Any:
    """Return the parameter of a dimension that varies."""
    if isinstance(dimension, Choice):
        return _choice_parameter(dimension)
    steps = _steps(dimension)
    scalar = library().p.Scalar
    if steps is None:
        return scalar(lower=0.0, upper=1.0)
    return scalar(lower=-0.5, upper=steps - 0.5).set_integer_casting()


def _choice_parameter(dimension: Choice) -> Any:
    options = [_option(dimension, number) for number in range(len(dimension.labels))]
    if len(options) == 1:
        return options[0]
    kinds = library().p
    return kinds.TransitionChoice(options) if dimension.ordered else kinds.Choice(options)


def _option(dimension: Choice, number: int) -> Any:
    """Return the option's number, or a Dict of it (under the empty name) and its parameters."""
    if not _has_parameters(dimension, number):
        return number
    return _parameter_dict(dimension.branches[dimension.labels[number]], {"": number})


def _steps(dimension: Float | Int) -> int | None:
    """Return how many values a raster has; None where values are searched continuously."""
    if dimension.log or dimension.step is None:
        return None
    if isinstance(dimension, Int):
        return (dimension.high - dimension.low) // dimension.step + 1
    return math.floor((dimension.high - dimension.low) / dimension.step + 1e-9) + 1


def decode(dimensions: Mapping[str, Dimension], value: Mapping[str, Any]) -> Point:
    """Return the point of a candidate's value."""
    point: Point = {}
    _decode(dimensions, value, point)
    return point


def _decode(dimensions: Mapping[str, Dimension], value: Mapping[str, Any], point: Point) -> None:
    for name, dimension in dimensions.items():
        if isinstance(dimension, Choice):
            inner = value.get(name, 0)
            number = int(inner[""] if isinstance(inner, Mapping) else inner)
            point[name] = label = dimension.labels[number]
            inside = inner if isinstance(inner, Mapping) else {}
            _decode(dimension.branches.get(label, {}), inside, point)
        elif not isinstance(dimension, Fixed):
            point[name] = _number(dimension, value.get(name, 0))


def _number(dimension: Float | Int, value: Any) -> float | int:
    steps = _steps(dimension)
    if steps is None:
        return dimension.at(min(1.0, max(0.0, float(value))))
    number = min(steps - 1, max(0, int(value)))
    if isinstance(dimension, Int):
        return dimension.low + dimension.step * number
    return dimension.at((number + 0.5) / steps)


def encode(dimensions: Mapping[str, Dimension], point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the candidate's value of a point; inverse of :func:`decode`."""
    value: dict[str, Any] = {}
    for name, dimension in dimensions.items():
        if isinstance(dimension, Fixed) or not varies(dimension):
            continue
        if isinstance(dimension, Choice):
            value[name] = _encode_choice(dimension, point[name], point)
        else:
            value[name] = _encode_number(dimension, point[name])
    return value


def _encode_choice(dimension: Choice, label: Scalar, point: Mapping[str, Any]) -> Any:
    number = dimension.labels.index(dimension.parse(label))
    if not _has_parameters(dimension, number):
        return number
    return {"": number, **encode(dimension.branches[label], point)}


def _encode_number(dimension: Float | Int, value: float) -> float | int:
    steps = _steps(dimension)
    if steps is not None:
        return min(steps - 1, max(0, round((value - dimension.low) / (dimension.step or 1))))
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
