"""Designs, points that do not depend on results: random, grid, lists, Sobol, Latin hypercube.

Point ``k`` is a function of ``k`` and the seed alone: a resumed study goes on where it was.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib import metadata
from random import Random
from typing import Any, ClassVar

from pandaflow.core.errors import PandaflowError, WorkflowError
from pandaflow.hpo.dimensions import Choice, Dimension, Fixed, Float, Int, Scalar
from pandaflow.hpo.port import Asked, AskEntry, Brief, Entry, Memo, Optimizer, Told
from pandaflow.hpo.space import AnySpace, Point, RandomSuggester, Space

#: A larger grid is a mistake more often than a wish.
MAX_POINTS = 10**6


class Exhausted(PandaflowError):
    """The optimizer has no further point: the study ends normally."""


# --- the optimizer behind each design ---------------------------------------------------


class _Design(ABC):
    """Hands out points by their index; results do not matter to it."""

    def __init__(self, space: AnySpace, brief: Brief) -> None:
        self._space, self._brief = space, brief
        self._next = 0

    @abstractmethod
    def at(self, index: int) -> Point:
        """Return a point; raises :class:`Exhausted` behind the last one."""

    def ask(self, number: int) -> Asked:
        point = self.at(self._next)
        self._next += 1
        return Asked(point, {"index": self._next - 1})

    def adopt(self, number: int, point: Point) -> Memo:
        return {}

    def tell(self, told: Told) -> Memo:
        return {}

    def report(self, number: int, step: int, value: float) -> bool:
        return False

    def snapshot(self) -> bytes | None:
        return None

    def restore(self, entries: Sequence[Entry], snapshot: bytes | None = None) -> str:
        """Go on behind the last point that was handed out; compare some with the log."""
        asked = [e for e in entries if isinstance(e, AskEntry) and e.own]
        own = [(index, e) for e in asked if type(index := e.memo.get("index")) is int]
        self._next = max((index for index, _ in own), default=-1) + 1
        for index, entry in own[-100:]:
            try:
                point = self.at(index)
            except Exhausted:
                return f"trial {entry.number} is beyond the end of the design as it is now"
            if point != entry.point:
                return f"design, space or seed changed: trial {entry.number} had another point"
        return ""


class _Random(_Design):
    def __init__(self, space: AnySpace, brief: Brief) -> None:
        super().__init__(space, brief)
        self._rng = Random(0)
        self._suggester = RandomSuggester(self._rng)

    def ask(self, number: int) -> Asked:
        return Asked(self.at(number), {"index": number})

    def at(self, index: int) -> Point:
        # One long integer, not a hash of both: the generator mixes all its bits.
        self._rng.seed((index + 1 << 64) | self._brief.seed)
        return self._space.draw(self._suggester, index)


class _Finite(_Design):
    """Points that are known beforehand, each made when it is asked for."""

    def __init__(
        self, space: AnySpace, brief: Brief, size: int, fill: Callable[[int, Point], None]
    ) -> None:
        super().__init__(space, brief)
        self._size, self._fill = size, fill

    def at(self, index: int) -> Point:
        if index >= self._size:
            raise Exhausted(f"all {self._size} points are asked for")
        point: Point = {}
        self._fill(index, point)
        return point


class _Rows(_Design):
    """Points of the unit cube, one column for each parameter."""

    #: Rows made at once; a power of two keeps Sobol's balance, and SciPy from warning.
    BLOCK = 256

    def __init__(self, space: Space, brief: Brief, n: int | None) -> None:
        super().__init__(space, brief)
        self._names, self._n = list(space.varied), n
        self._block, self._rows = -1, [[0.0]]
        self._qmc = _qmc()

    @abstractmethod
    def _make(self, block: int) -> list[list[float]]: ...

    def at(self, index: int) -> Point:
        if self._n is not None and index >= self._n:
            raise Exhausted(f"all {self._n} points of the design are asked for")
        block, row = divmod(index, self.BLOCK)
        if block != self._block:
            self._block, self._rows = block, self._make(block)
        columns = dict(zip(self._names, self._rows[row], strict=True))
        return self._space.draw(_Columns(columns), index)


class _Columns:
    def __init__(self, columns: Mapping[str, float]) -> None:
        self._columns = columns

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        return dimension.at(self._columns[name])


class _Sobol(_Rows):
    def _make(self, block: int) -> list[list[float]]:
        start = block * self.BLOCK
        engine = self._qmc.Sobol(len(self._names), scramble=True, rng=self._brief.seed)
        if start:
            engine.fast_forward(start)
        rows: list[list[float]] = engine.random(self.BLOCK).tolist()
        return rows


class _Lhs(_Rows):
    BLOCK = MAX_POINTS

    def _make(self, block: int) -> list[list[float]]:
        engine = self._qmc.LatinHypercube(len(self._names), rng=self._brief.seed)
        rows: list[list[float]] = engine.random(self._n).tolist()
        return rows


def _qmc() -> Any:
    try:
        return importlib.import_module("scipy.stats.qmc")
    except ImportError:
        raise WorkflowError(
            'this design needs the package "scipy": pip install "pandaflow[hpo]"'
        ) from None


# --- grids: index arithmetic over a product, with a sub-product for each branch ------------


@dataclass(frozen=True, slots=True)
class _Axis:
    """A parameter's values; ``branches`` (if any) has the sub-product of each value."""

    name: str
    values: Sequence[Scalar]
    count: int
    branches: tuple[_Product, ...] = ()

    @property
    def size(self) -> int:
        return sum(branch.size for branch in self.branches) if self.branches else self.count

    def fill(self, index: int, point: Point) -> None:
        if not self.branches:
            point[self.name] = self.values[index]
            return
        for value, branch in zip(self.values, self.branches, strict=True):
            if index < branch.size:
                point[self.name] = value
                branch.fill(index, point)
                return
            index -= branch.size


@dataclass(frozen=True, slots=True)
class _Product:
    axes: tuple[_Axis, ...]
    size: int

    def fill(self, index: int, point: Point) -> None:
        digits = []
        for axis in reversed(self.axes):
            index, digit = divmod(index, axis.size)
            digits.append(digit)
        for axis, digit in zip(self.axes, reversed(digits), strict=True):
            axis.fill(digit, point)


@dataclass(frozen=True, slots=True)
class _Resolution:
    """Values wanted of each parameter that has no natural raster."""

    default: int | None
    named: Mapping[str, int]

    def product(self, dimensions: Mapping[str, Dimension]) -> _Product:
        axes = tuple(
            self.axis(name, dimension)
            for name, dimension in dimensions.items()
            if not isinstance(dimension, Fixed)
        )
        return _Product(axes, math.prod(axis.size for axis in axes))

    def axis(self, name: str, dimension: Float | Int | Choice) -> _Axis:
        if isinstance(dimension, Int):
            return self._whole(name, dimension)
        if isinstance(dimension, Float):
            return self._real(name, dimension)
        branches: tuple[_Product, ...] = ()
        if dimension.branches:
            branches = tuple(self.product(dimension.branches[at]) for at in dimension.labels)
        return _Axis(name, dimension.labels, len(dimension.labels), branches)

    def _whole(self, name: str, dimension: Int) -> _Axis:
        low, step = dimension.low, dimension.step
        count = (dimension.high - low) // step + 1
        if name not in self.named or self.named[name] >= count:
            return _Axis(name, range(low, dimension.high + 1, step), count)
        last = low + step * (count - 1)
        spread = Float(low, last, log=dimension.log).grid(self.named[name])
        values = sorted({low + step * round((value - low) / step) for value in spread})
        return _Axis(name, values, len(values))

    def _real(self, name: str, dimension: Float) -> _Axis:
        if dimension.low == dimension.high:
            return _Axis(name, (dimension.low,), 1)
        if dimension.step is not None:
            count = math.floor((dimension.high - dimension.low) / dimension.step + 1e-9) + 1
        else:
            count = self.named.get(name, self.default or 0)
        if not count:
            raise WorkflowError(
                f"hpo.grid: {name!r} is a real number, give the values wanted: "
                f"hpo.grid(points=5) or hpo.grid(points={{{name!r}: 5}})"
            )
        return _Axis(name, dimension.grid(count) if count <= MAX_POINTS else (), count)


# --- specifications ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DesignSpec(ABC):
    """How to make a design; see :func:`random` and its like.

    Attributes
    ----------
    seed : int or None
        The user's.
    n : int or None
        Number of points, if it is limited from the beginning.
    """

    seed: int | None = None
    n: int | None = None
    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    isolated: ClassVar[bool] = False

    def size(self, space: AnySpace) -> int | None:
        """Return the number of points; None: there is no last one."""
        del space
        return self.n

    def describe(self) -> dict[str, Any]:
        """Return kind, name, options and versions."""
        versions = {package: _version(package) for package in self.packages}
        options = self._options()
        return {"kind": "design", "name": self.name, "options": options, "versions": versions}

    def check(self, space: AnySpace, brief: Brief) -> None:
        """Refuse a space that the design cannot cover, with a WorkflowError."""
        self._make(space, brief)

    def build(self, space: AnySpace, brief: Brief) -> Optimizer:
        """Make the optimizer; raises WorkflowError like :meth:`check`."""
        return self._make(space, brief)

    @abstractmethod
    def _make(self, space: AnySpace, brief: Brief) -> Optimizer: ...

    def _options(self) -> dict[str, Any]:
        return {} if self.n is None else {"n": self.n}


class RandomSpec(DesignSpec):
    """Independent random points; see :func:`random`."""

    name = "random"

    def _make(self, space: AnySpace, brief: Brief) -> Optimizer:
        return _Random(space, brief)


@dataclass(frozen=True, slots=True)
class GridSpec(DesignSpec):
    """All combinations; see :func:`grid`."""

    default: int | None = None
    named: Mapping[str, int] = field(default_factory=dict)
    name = "grid"

    def size(self, space: AnySpace) -> int:
        """Return the number of combinations; raises WorkflowError like :meth:`check`."""
        return self._product(space).size

    def _make(self, space: AnySpace, brief: Brief) -> Optimizer:
        product = self._product(space)
        if product.size > MAX_POINTS:
            raise WorkflowError(
                f"hpo.grid would have {product.size:,} points (at most {MAX_POINTS:,}): give "
                "fewer values with points=, or take hpo.random() or hpo.sobol()"
            )
        return _Finite(space, brief, product.size, product.fill)

    def _options(self) -> dict[str, Any]:
        return {"points": self.default, "named": dict(self.named)}

    def _product(self, space: AnySpace) -> _Product:
        declared = _declared("grid", space)
        for name in self.named:
            if not isinstance(declared.dimensions.get(name), Float | Int):
                raise WorkflowError(f"hpo.grid: points= names {name!r}, which is no number here")
        return _Resolution(self.default, self.named).product(declared.top)


@dataclass(frozen=True, slots=True)
class PointsSpec(DesignSpec):
    """The user's own points; see :func:`points`."""

    given: tuple[Mapping[str, Any], ...] = ()
    name = "points"

    def _make(self, space: AnySpace, brief: Brief) -> Optimizer:
        parsed = []
        for number, point in enumerate(self.given):
            try:
                parsed.append(space.parse(point))
            except WorkflowError as error:
                raise WorkflowError(f"hpo.points: point {number}: {error}") from None
        return _Finite(space, brief, len(parsed), lambda index, point: point.update(parsed[index]))

    def _options(self) -> dict[str, Any]:
        text = repr([sorted((name, _plain(at)) for name, at in p.items()) for p in self.given])
        digest = blake2b(text.encode(), digest_size=8).hexdigest()
        return {"n": self.n, "digest": digest}


class SobolSpec(DesignSpec):
    """A scrambled Sobol sequence; see :func:`sobol`."""

    name, packages = "sobol", ("scipy",)

    def _make(self, space: AnySpace, brief: Brief) -> Optimizer:
        return _Sobol(_declared(self.name, space), brief, self.n)


class LhsSpec(DesignSpec):
    """A Latin hypercube; see :func:`lhs`."""

    name, packages = "lhs", ("scipy",)

    def _make(self, space: AnySpace, brief: Brief) -> Optimizer:
        return _Lhs(_declared(self.name, space), brief, self.n)


def _declared(name: str, space: AnySpace) -> Space:
    if not isinstance(space, Space):
        raise WorkflowError(
            f"hpo.{name} needs a declared hpo.Space(...): what a function of a trial will "
            "suggest is not known beforehand. Use hpo.random(), or declare the space"
        )
    if not space.varied:
        raise WorkflowError(f"hpo.{name}: every parameter of the space is fixed")
    return space


def _plain(value: Any) -> str:
    """Return a stable text: the repr of an arbitrary object may hold its address."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return str(getattr(value, "__name__", type(value).__qualname__))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# --- what users call --------------------------------------------------------------------


def random(seed: int | None = None) -> RandomSpec:
    """Return independent random points, uniform in each parameter's own scale.

    Parameters
    ----------
    seed : int, optional
        Point ``k`` follows from it and ``k`` alone.
    """
    return RandomSpec(_seed("random", seed))


def grid(points: int | Mapping[str, int] | None = None) -> GridSpec:
    """Return all combinations; the last parameter varies fastest.

    Parameters
    ----------
    points : int or dict, optional
        Values of each real parameter, ends included; in a dict by parameter name, where a
        whole-number parameter may be named too (else all its values are taken). A real
        parameter with a step has its own values.
    """
    if points is None or not isinstance(points, Mapping):
        return GridSpec(default=None if points is None else _count("grid(points=", points))
    named = {name: _count(f"grid(points={{{name!r}: ", n) for name, n in points.items()}
    return GridSpec(named=named)


def points(points: Iterable[Mapping[str, Any]]) -> PointsSpec:
    """Return given points, in order and with repetitions.

    Parameters
    ----------
    points : iterable of dict
        Values by parameter name.
    """
    given = tuple(points)
    if not given or not all(isinstance(point, Mapping) for point in given):
        raise WorkflowError("hpo.points takes a list of dicts, with at least one")
    return PointsSpec(n=len(given), given=tuple(dict(point) for point in given))


def sobol(n: int | None = None, seed: int | None = None) -> SobolSpec:
    """Return a scrambled Sobol sequence (low discrepancy), without end unless ``n`` is given.

    Source: A. B. Owen, "Scrambling Sobol' and Niederreiter-Xing points", 1998, by SciPy. Its
    balance is best where the number of points is a power of two.
    """
    return SobolSpec(_seed("sobol", seed), None if n is None else _count("sobol(", n))


def lhs(n: int, seed: int | None = None) -> LhsSpec:
    """Return a Latin hypercube: ``n`` points, one in each of ``n`` strips of every parameter.

    Source: M. D. McKay, R. J. Beckman, W. J. Conover, Technometrics 21 (1979), by SciPy.
    """
    return LhsSpec(_seed("lhs", seed), _count("lhs(", n))


def _count(what: str, n: Any) -> int:
    if type(n) is not int or not 1 <= n <= MAX_POINTS:
        raise WorkflowError(f"hpo.{what}{n!r}: give a whole number from 1 to {MAX_POINTS:,}")
    return n


def _seed(what: str, seed: Any) -> int | None:
    if seed is None or (type(seed) is int and 0 <= seed < 2**63):
        return seed
    raise WorkflowError(f"hpo.{what}: seed={seed!r} must be a whole number from 0 to 2**63 - 1")
