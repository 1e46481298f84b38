"""Configurations of PanDA's ``phpo`` and of iDDS's HPO requests.

Sources: ``phpo --help``, the PanDA manual ("Hyperparameter optimization"), the iDDS manual
("Hyperparameter Optimization"), and the search space methods of its ``hpogrid`` containers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pandaflow.core.errors import DataError, WorkflowError
from pandaflow.hpo.dimensions import Choice, Dimension, choice, fixed, integer, ordinal, real
from pandaflow.hpo.filejob import Command, is_finite
from pandaflow.hpo.optimizers.external import ExternalSpec, external, space_to_phpo
from pandaflow.hpo.space import Point, Space

__all__ = ["PhpoConfig", "from_phpo", "space_from_phpo", "space_to_phpo"]

#: Each option by phpo's name, and its other names: those of iDDS's requests among them.
_ALIASES = {
    "maxPoints": ("max_points",),
    "nParallelEvaluation": (),
    "nPointsPerIteration": ("num_points_per_generation", "num_points_per_iteration"),
    "minUnevaluatedPoints": ("min_unevaluated_points",),
    "initialPoints": ("initial_points",),
    "searchSpaceFile": (),
    "searchSpace": ("opt_space", "search_space"),
    "steeringExec": ("arguments",),
    "evaluationExec": (),
    "evaluationInput": (),
    "evaluationOutput": (),
    "evaluationMeta": (),
}


@dataclass(frozen=True, slots=True)
class PhpoConfig:
    """What a phpo configuration says, in this library's terms.

    Attributes
    ----------
    space : Space
    n_trials : int
        ``maxPoints``.
    parallel : int
        ``nParallelEvaluation``.
    initial : tuple of (point, loss or None)
        Points to begin with; a loss is a result that is already known, 0.0 included.
    evaluation : Command or None
        The objective.
    steering : ExternalSpec or None
        The optimizer.
    points_per_iteration, min_unevaluated : int
        As given. New points are asked for as soon as a slot is free, so that nothing waits for
        a generation to end; their difference is what a steering command is asked for at once.
    ignored : tuple of str
        Keys that have no effect here, for example containers, sites and datasets.
    notes : tuple of str
        What was read in another way than it was written.
    """

    space: Space
    n_trials: int = 10
    parallel: int = 1
    initial: tuple[tuple[Point, float | None], ...] = ()
    evaluation: Command | None = None
    steering: ExternalSpec | None = None
    points_per_iteration: int = 2
    min_unevaluated: int = 0
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def from_phpo(source: str | os.PathLike[str] | Mapping[str, Any]) -> PhpoConfig:
    """Read a configuration as ``phpo --loadJson`` takes it, or an iDDS request.

    Parameters
    ----------
    source : path or dict
        The file named by ``searchSpaceFile`` is looked for beside a configuration file, then
        in the current directory.

    Raises
    ------
    DataError
        A file is missing or no JSON.
    WorkflowError
        A value is not what it should be, or the search space is missing.
    """
    base = os.getcwd()
    if not isinstance(source, Mapping):
        path = os.path.abspath(os.fspath(source))
        base, source = os.path.dirname(path), _load(path)
    if not isinstance(source, Mapping):
        raise WorkflowError("phpo: a configuration is a JSON object")
    return _Reader(source, base).read()


class _Reader:
    def __init__(self, given: Mapping[str, Any], base: str) -> None:
        self._given, self._base = given, base
        self._used: set[str] = set()
        self._notes: list[str] = []

    def read(self) -> PhpoConfig:
        if self._given.get("segmentSpecFile") is not None:
            raise WorkflowError(
                "phpo: segmentSpecFile is not supported; make one study for each segment"
            )
        space = self._space()
        per, minimum = self._whole("nPointsPerIteration", 2), self._low_water()
        config = PhpoConfig(
            space=space,
            n_trials=self._whole("maxPoints", 10),
            parallel=self._whole("nParallelEvaluation", 1),
            initial=self._initial(space),
            evaluation=self._evaluation(),
            steering=self._steering(max(1, per - minimum)),
            points_per_iteration=per,
            min_unevaluated=minimum,
            ignored=tuple(sorted(map(str, set(self._given) - self._used))),
            notes=tuple(self._notes),
        )
        return config

    def _take(self, name: str) -> Any:
        """Return an option under whichever name it has; None if it is not given."""
        found = {key: self._given[key] for key in (name, *_ALIASES[name]) if key in self._given}
        self._used |= set(found)
        said = {key: value for key, value in found.items() if value is not None}
        if len({repr(value) for value in said.values()}) > 1:
            raise WorkflowError(f"phpo: {' and '.join(said)} are one option, given differently")
        return next(iter(said.values()), None)

    def _whole(self, name: str, default: int, least: int = 1) -> int:
        value = self._take(name)
        if value is None:
            return default
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if type(number) is not int or number < least:
            raise WorkflowError(f"phpo: {name}={value!r} must be a whole number >= {least}")
        return number

    def _low_water(self) -> int:
        return self._whole("minUnevaluatedPoints", 0, least=0)

    def _text(self, name: str) -> str | None:
        value = self._take(name)
        if value is not None and not isinstance(value, str):
            raise WorkflowError(f"phpo: {name}={value!r} must be text")
        return value

    def _space(self) -> Space:
        inline, name = self._take("searchSpace"), self._text("searchSpaceFile")
        if inline is not None and name is not None:
            raise WorkflowError("phpo: give the search space inline or as a file, not both")
        if name is not None:
            inline = _load(self._beside(name))
        if inline is None:
            raise WorkflowError(
                'phpo: no search space: set "searchSpaceFile", or "searchSpace" to the space'
            )
        space, notes = _read_space(inline)
        self._notes += notes
        return space

    def _beside(self, name: str) -> str:
        path = os.path.join(self._base, os.path.expanduser(name))
        return path if os.path.exists(path) else os.path.abspath(name)

    def _initial(self, space: Space) -> tuple[tuple[Point, float | None], ...]:
        given = self._take("initialPoints")
        if given is None:
            return ()
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise WorkflowError("phpo: initial points are a list")
        return tuple(_known(number, entry, space) for number, entry in enumerate(given))

    def _evaluation(self) -> Command | None:
        command, output = self._text("evaluationExec"), self._text("evaluationOutput")
        file, metadata = self._text("evaluationInput"), self._text("evaluationMeta")
        if command is None:
            return None
        return Command(
            command,
            input=file or "input.json",
            output=output or "output.json",
            metadata=metadata,
            source=self._base,
        )

    def _steering(self, points: int) -> ExternalSpec | None:
        command = self._text("steeringExec")
        if command is None:
            return None
        return external(command, points=points, source=self._base)


def _known(number: int, entry: Any, space: Space) -> tuple[Point, float | None]:
    """Read a point, or a pair of a point and its loss."""
    point, loss = entry, None
    if not isinstance(entry, Mapping):
        if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 2:
            raise WorkflowError(f"phpo: initial point {number}: give [{{point}}, loss or null]")
        point, loss = entry
    if loss is not None:
        loss = _finite(f"initial point {number}: loss", loss)
    try:
        return space.parse(point), loss
    except WorkflowError as error:
        raise WorkflowError(f"phpo: initial point {number}: {error}") from None


def _load(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise DataError(f"phpo: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"phpo: {path} is no JSON file: {error}") from None


# --- search spaces ----------------------------------------------------------------------


def space_from_phpo(given: Mapping[str, Any]) -> Space:
    """Return a search space from PanDA's, or from those of iDDS's own optimizers.

    Parameters
    ----------
    given : dict
        By parameter: ``{"method": "uniformint", "dimension": {"low": 1, "high": 3}}``, or
        Nevergrad's ``{"type": "Scalar", "bounds": [0, 5]}``, or just ``[low, high]``.

    Raises
    ------
    WorkflowError
        Names the parameter.
    """
    return _read_space(given)[0]


def _read_space(given: Any) -> tuple[Space, list[str]]:
    if isinstance(given, list):
        raise WorkflowError(
            "phpo: a list of search spaces belongs to segments; make one study for each"
        )
    if not isinstance(given, Mapping) or not given:
        raise WorkflowError("phpo: a search space is a JSON object of parameters")
    notes: list[str] = []
    return Space({name: _parameter(name, entry, notes) for name, entry in given.items()}), notes


def _parameter(name: str, entry: Any, notes: list[str]) -> Dimension:
    try:
        return _dimension(name, entry, notes)
    except WorkflowError as error:
        text = str(error)
        raise WorkflowError(f"phpo: parameter {name!r}: {text}") from None


def _dimension(name: str, entry: Any, notes: list[str]) -> Dimension:
    if isinstance(entry, list | tuple):
        if len(entry) != 2:
            raise WorkflowError(f"{entry!r} is no pair of bounds")
        return real(_finite("low", entry[0]), _finite("high", entry[1]))
    if isinstance(entry, Mapping) and "method" in entry:
        return _by_method(name, entry, notes)
    if isinstance(entry, Mapping) and "type" in entry:
        return _by_type(name, entry, notes)
    raise WorkflowError('give {"method": ..., "dimension": {...}}')


def _by_method(name: str, entry: Mapping[str, Any], notes: list[str]) -> Dimension:
    method, dimension = entry["method"], entry.get("dimension", {})
    if not isinstance(dimension, Mapping):
        raise WorkflowError(f"dimension must be a JSON object, not {dimension!r}")
    if method == "categorical":
        return _categories(name, _named(dimension, "categories"), notes)
    if isinstance(method, str) and method in _METHODS:
        return _METHODS[method](dimension)
    if isinstance(method, str) and method.endswith("normal"):
        raise WorkflowError(
            f"method {method!r} has no bounds; use uniform or loguniform over the range wanted"
        )
    if method == "qloguniform":
        raise WorkflowError("method 'qloguniform': use loguniform, or loguniformint if q is 1")
    known = ", ".join(["categorical", *_METHODS])
    raise WorkflowError(f"unknown method {method!r}; known are {known}")


def _uniform(dimension: Mapping[str, Any]) -> Dimension:
    return real(*_bounds(dimension))


def _loguniform(dimension: Mapping[str, Any]) -> Dimension:
    # The base of the logarithm does not matter: uniform in one is uniform in all.
    return real(*_bounds(dimension), log=True)


def _uniformint(dimension: Mapping[str, Any]) -> Dimension:
    low, high = _bounds(dimension)
    return integer(_int("low", low), _int("high", high))


def _loguniformint(dimension: Mapping[str, Any]) -> Dimension:
    low, high = _bounds(dimension)
    return integer(_int("low", low), _int("high", high), log=True)


def _quniform(dimension: Mapping[str, Any]) -> Dimension:
    """Return the multiples of q within the bounds."""
    first, last, q = _multiples(dimension)
    return real(first * q, last * q, step=q)


def _quniformint(dimension: Mapping[str, Any]) -> Dimension:
    first, last, q = _multiples(dimension)
    step = _int("q", q)
    return integer(first * step, last * step, step=step)


def _fixed(dimension: Mapping[str, Any]) -> Dimension:
    return fixed(_named(dimension, "value"))


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Dimension]] = {
    "uniform": _uniform,
    "loguniform": _loguniform,
    "uniformint": _uniformint,
    "loguniformint": _loguniformint,
    "quniform": _quniform,
    "quniformint": _quniformint,
    "fixed": _fixed,
}


def _by_type(name: str, entry: Mapping[str, Any], notes: list[str]) -> Dimension:
    """Read a parameter of iDDS's Nevergrad method."""
    kind, given = entry["type"], {**entry.get("params", {})}
    if kind in ("Choice", "TransitionChoice"):
        found = _categories(name, _named(given, "choices"), notes)
        return ordinal(found.options) if kind == "TransitionChoice" else found
    if kind not in ("Scalar", "Log"):
        raise WorkflowError(
            f"type {kind!r} is not supported; use Scalar, Log, Choice or TransitionChoice"
        )
    bounds = entry.get("bounds") or [given.get("lower"), given.get("upper")]
    if len(bounds) != 2 or None in bounds:
        raise WorkflowError(f"type {kind!r} needs two bounds")
    low, high = _finite("lower bound", bounds[0]), _finite("upper bound", bounds[1])
    return real(low, high, log=kind == "Log")


def _categories(name: str, given: Any, notes: list[str]) -> Choice:
    """Read options; one that is given twice is one option: weights cannot be kept."""
    if not isinstance(given, list | tuple) or not given:
        raise WorkflowError(f"categories must be a list, not {given!r}")
    options: list[Any] = []
    for option in given:
        if not any(type(option) is type(known) and option == known for known in options):
            options.append(option)
    if len(options) < len(given):
        notes.append(f"{name}: repeated categories count once")
    return choice(options)


def _named(dimension: Mapping[str, Any], name: str) -> Any:
    if name not in dimension:
        raise WorkflowError(f"{name!r} is missing")
    return dimension[name]


def _bounds(dimension: Mapping[str, Any]) -> tuple[float, float]:
    return _finite("low", _named(dimension, "low")), _finite("high", _named(dimension, "high"))


def _multiples(dimension: Mapping[str, Any]) -> tuple[int, int, float]:
    low, high = _bounds(dimension)
    q = _finite("q", _named(dimension, "q"))
    if not q > 0:
        raise WorkflowError(f"q={q!r} must be positive")
    first, last = math.ceil(low / q - 1e-9), math.floor(high / q + 1e-9)
    if first > last:
        raise WorkflowError(f"no multiple of {q!r} is between {low!r} and {high!r}")
    return first, last, q


def _finite(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise WorkflowError(f"{what}={value!r} is no finite number")
    return value


def _int(what: str, value: float) -> int:
    if value != int(value):
        raise WorkflowError(f"{what}={value!r} is no whole number")
    return int(value)
