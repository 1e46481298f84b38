"""What one parameter may be: a range of numbers, one of some options, a fixed value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pandaflow.core.errors import WorkflowError

Scalar: TypeAlias = float | int | str | bool | None


@dataclass(frozen=True, slots=True)
class Float:
    """A real number in ``[low, high]``; ``log``: uniform in its logarithm; ``step``: a raster."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log, self.step)

    def parse(self, value: Any) -> float:
        """Return ``value`` as a float of this range.

        Raises
        ------
        ValueError
        """
        number = _number(value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{number!r} is outside [{self.low!r}, {self.high!r}]")
        if self.step is not None:
            steps = (number - self.low) / self.step
            if abs(steps - round(steps)) > 1e-6:
                raise ValueError(f"{number!r} is between the steps of {self.step!r}")
        return number

    def at(self, unit: float) -> float:
        """Map a number of ``[0, 1)`` into the range."""
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return min(self.high, self.low + self.step * int(unit * steps))
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return min(self.high, max(self.low, math.exp(low + unit * (high - low))))
        return min(self.high, self.low + unit * (self.high - self.low))

    def grid(self, points: int) -> list[float]:
        """Return all values of a raster, or ``points`` values evenly spread, ends included."""
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self.at((k + 0.5) / steps) for k in range(steps)]
        if points == 1:
            return [self.at(0.5)]
        last = points - 1
        return [self.low, *(self.at(k / last) for k in range(1, last)), self.high]


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number in ``[low, high]``; ``log``: uniform in its logarithm."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            if type(getattr(self, name)) is not int:
                raise WorkflowError(f"hpo.int: {name}={getattr(self, name)!r} is no whole number")
        _check_range(self.low, self.high, self.log, None if self.step == 1 else self.step)
        if self.step < 1:
            raise WorkflowError(f"hpo.int: step={self.step!r} must be at least 1")

    def parse(self, value: Any) -> int:
        """Return ``value`` as a whole number of this range.

        Raises
        ------
        ValueError
        """
        number = value if type(value) is int else _number(value)
        if number != int(number):
            raise ValueError(f"{value!r} is no whole number")
        if not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is outside [{self.low}, {self.high}]")
        if (int(number) - self.low) % self.step:
            raise ValueError(f"{value!r} is between the steps of {self.step}")
        return int(number)

    def at(self, unit: float) -> int:
        """Map a number of ``[0, 1)`` into the range."""
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(self.high, max(self.low, round(math.exp(low + unit * (high - low)))))
        steps = (self.high - self.low) // self.step + 1
        return self.low + self.step * min(steps - 1, int(unit * steps))

    def grid(self, points: int) -> list[int]:
        """Return all values."""
        del points
        return list(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some options.

    Attributes
    ----------
    options : tuple
        What the objective gets: any objects.
    labels : tuple of scalars
        What a point holds instead; the options themselves where these are plain values.
    ordered : bool
        The options have an order (small < medium < large) that optimizers may use.
    branches : mapping of label to mapping of str to dimension
        Parameters that exist only if this option is chosen.
    """

    options: tuple[Any, ...]
    labels: tuple[Scalar, ...]
    ordered: bool = False
    branches: Mapping[Scalar, Mapping[str, Dimension]] = field(default_factory=dict)

    def parse(self, value: Any) -> Scalar:
        """Return the label of an option (or of its label).

        Raises
        ------
        ValueError
        """
        for label, option in zip(self.labels, self.options, strict=True):
            if _same(value, option) or _same(value, label):
                return label
        raise ValueError(f"{value!r} is none of {', '.join(map(repr, self.labels))}")

    def option(self, label: Scalar) -> Any:
        """Return the option behind a label."""
        return self.options[_index(self.labels, label)]

    def at(self, unit: float) -> Scalar:
        """Map a number of ``[0, 1)`` to a label."""
        return self.labels[min(len(self.labels) - 1, int(unit * len(self.labels)))]

    def grid(self, points: int) -> list[Scalar]:
        """Return all labels."""
        del points
        return list(self.labels)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A value that does not vary."""

    value: Any


Dimension: TypeAlias = Float | Int | Choice | Fixed


def real(low: float, high: float, *, log: bool = False, step: float | None = None) -> Float:
    """Return a real parameter (``hpo.float``).

    Examples
    --------
    >>> from pandaflow import hpo
    >>> hpo.float(0, 1)
    Float(low=0.0, high=1.0, log=False, step=None)
    """
    try:
        ends = (float(low), float(high), None if step is None else float(step))
    except (TypeError, ValueError):
        raise WorkflowError(f"hpo.float({low!r}, {high!r}): give two numbers") from None
    return Float(ends[0], ends[1], log, ends[2])


def log(low: float, high: float) -> Float:
    """Return a positive real parameter that is uniform in its logarithm."""
    return real(low, high, log=True)


def integer(low: int, high: int, *, log: bool = False, step: int = 1) -> Int:
    """Return a whole-number parameter, both ends included (``hpo.int``)."""
    return Int(low, high, log, step)


def choice(options: Sequence[Any] | Mapping[Any, Mapping[str, Any]]) -> Choice:
    """Return a parameter that is one of some options.

    Parameters
    ----------
    options : sequence, or mapping of option to dict of parameters
        A mapping gives each option parameters of its own, which exist only if it is chosen:
        ``choice({"bdt": {"depth": hpo.int(2, 12)}, "nn": {"width": hpo.int(8, 64)}})``.
    """
    if isinstance(options, Mapping) and options:
        labels = tuple(_label(k, option) for k, option in enumerate(options))
        inner = [parse_dimensions(given) for given in options.values()]
        branches = dict(zip(labels, inner, strict=True))
        return Choice(tuple(options), labels, branches=branches)
    return _choice(options, ordered=False)


def ordinal(options: Sequence[Any]) -> Choice:
    """Return a parameter that is one of some options that have an order."""
    return _choice(options, ordered=True)


def fixed(value: Any) -> Fixed:
    """Return a parameter that does not vary."""
    return Fixed(value)


def _choice(options: Any, *, ordered: bool) -> Choice:
    if isinstance(options, str) or not isinstance(options, Sequence) or not options:
        raise WorkflowError(f"hpo.choice takes a list of options, not {options!r}")
    labels = tuple(_label(k, option) for k, option in enumerate(options))
    for number, label in enumerate(labels):
        if any(_same(label, earlier) for earlier in labels[:number]):
            raise WorkflowError(f"hpo.choice({list(options)!r}): an option is given twice")
    return Choice(tuple(options), labels, ordered)


def _label(number: int, option: Any) -> Scalar:
    if option is None or isinstance(option, bool | int | str):
        return option
    if isinstance(option, float) and math.isfinite(option):
        return option
    return f"{number}: {_text(option)[:60]}"


def _text(value: Any) -> str:
    """Return an object in words that are the same in every process."""
    return getattr(value, "__name__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) and bool in (type(one), type(other)):
        return False
    try:
        return bool(one is other or one == other)
    except (TypeError, ValueError):  # arrays and the like compare in their own way
        return False


def _index(labels: Sequence[Scalar], label: Scalar) -> int:
    for number, known in enumerate(labels):
        if _same(known, label):
            return number
    raise ValueError(f"{label!r} is none of {', '.join(map(repr, labels))}")


def _number(value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise ValueError(f"{value!r} is no number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{value!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    what = f"range [{low!r}, {high!r}]"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise WorkflowError(f"{what}: both ends must be finite")
    if low > high:
        raise WorkflowError(f"{what}: the first number is above the second")
    if log and low <= 0:
        raise WorkflowError(f"{what}: a logarithmic range must be positive")
    if step is not None and log:
        raise WorkflowError(f"{what}: a step and a logarithm exclude each other")
    if step is not None and not 0 < step:
        raise WorkflowError(f"{what}: step={step!r} must be positive")


# --- mappings of them -------------------------------------------------------------------


def parse_dimensions(given: Mapping[str, Any]) -> dict[str, Dimension]:
    """Return parameters by name; lists, ranges and plain values are taken for what they mean."""
    if not isinstance(given, Mapping):
        raise WorkflowError(f"parameters are given by name, not as {type(given).__name__}")
    for name in given:
        if not isinstance(name, str) or not name.isidentifier():
            raise WorkflowError(f"parameter {name!r}: names must be Python identifiers")
    return {name: _dimension(name, value) for name, value in given.items()}


def _dimension(name: str, value: Any) -> Dimension:
    if isinstance(value, Float | Int | Choice | Fixed):
        return value
    if isinstance(value, range) and value and value.step > 0:
        return Int(value[0], value[-1], step=value.step)
    if isinstance(value, list):
        return _choice(value, ordered=False)
    if value is None or isinstance(value, bool | int | float | str):
        return Fixed(value)
    raise WorkflowError(
        f"parameter {name!r}: {type(value).__name__} is no range; use hpo.float, hpo.int, "
        "hpo.log, hpo.choice, or hpo.fixed(value)"
    )


def flat(dimensions: Mapping[str, Dimension]) -> Iterator[tuple[str, Dimension]]:
    """Yield all parameters, those that hang below choices included."""
    for name, dimension in dimensions.items():
        yield name, dimension
        if isinstance(dimension, Choice):
            for branch in dimension.branches.values():
                yield from flat(branch)


def check_nested(dimensions: Mapping[str, Dimension], above: frozenset[str]) -> None:
    """Refuse a parameter that would be there twice at one point."""
    for name in dimensions:
        if name in above:
            raise WorkflowError(f"parameter {name!r} is declared again below itself or beside it")
    here = above | set(dimensions)
    for dimension in dimensions.values():
        for branch in dimension.branches.values() if isinstance(dimension, Choice) else ():
            check_nested(branch, here)


def describe(dimension: Dimension) -> dict[str, Any]:
    """Return a parameter as JSON-ready values."""
    match dimension:
        case Float():
            return {
                "type": "float",
                "low": dimension.low,
                "high": dimension.high,
                "log": dimension.log,
                "step": dimension.step,
            }
        case Int():
            return {
                "type": "int",
                "low": dimension.low,
                "high": dimension.high,
                "log": dimension.log,
                "step": dimension.step,
            }
        case Fixed():
            return {"type": "fixed", "value": _text(dimension.value)}
    out: dict[str, Any] = {"type": "choice", "options": list(dimension.labels)}
    if dimension.ordered:
        out["type"] = "ordinal"
    if dimension.branches:
        out["branches"] = [
            {name: describe(inner) for name, inner in branch.items()}
            for branch in dimension.branches.values()
        ]
    return out
