"""Between our dimensions and Optuna's distributions.

A choice is categorical over its labels; an ordinal is a whole number, its position, so that
samplers see the order. Labels that are equal though of different types (1 and True) are given
to Optuna as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import Choice, Float, Int, Scalar
from pandaflow.hpo.space import AnySpace, Point, Space, StoredSuggester

if TYPE_CHECKING:
    from optuna.trial import Trial


class Distributions:
    """Optuna's distributions of a space, made once per declared dimension."""

    def __init__(self, space: AnySpace) -> None:
        # A define-by-run function makes its dimensions anew for each trial.
        declared = space.varied if isinstance(space, Space) else {}
        self._known = {name: (given, distribution(given)) for name, given in declared.items()}
        #: Those that every trial has, if that is known: Optuna can draw them without being asked
        #: one by one.
        self.always = {} if space.conditional else {n: d for n, (_, d) in self._known.items()}

    def of(self, name: str, dimension: Float | Int | Choice) -> Any:
        """Return the distribution of a parameter."""
        known = self._known.get(name)
        if known is not None and known[0] is dimension:
            return known[1]
        return distribution(dimension)


def distribution(dimension: Float | Int | Choice, *, ordinal_as_number: bool = True) -> Any:
    """Return the Optuna distribution of a dimension.

    Parameters
    ----------
    dimension : Float, Int or Choice
        The parameter.
    ordinal_as_number : bool
        Whether an ordinal becomes the number of its option; else it keeps its labels.

    Returns
    -------
    optuna.distributions.BaseDistribution
    """
    from optuna import distributions

    if isinstance(dimension, Float):
        return distributions.FloatDistribution(
            dimension.low, _last(dimension), log=dimension.log, step=dimension.step
        )
    if isinstance(dimension, Int):
        last = dimension.low + (dimension.high - dimension.low) // dimension.step * dimension.step
        return distributions.IntDistribution(
            dimension.low, last, log=dimension.log, step=dimension.step
        )
    if dimension.ordered and ordinal_as_number:
        return distributions.IntDistribution(0, len(dimension.labels) - 1)
    return distributions.CategoricalDistribution(_options(dimension))


def _last(dimension: Float) -> float:
    """Return the highest value of a raster; Optuna warns if ``high`` is none."""
    if dimension.step is None:
        return dimension.high
    low, high, step = (Decimal(str(n)) for n in (dimension.low, dimension.high, dimension.step))
    return float(low + (high - low) // step * step)


def _options(dimension: Choice) -> tuple[Scalar, ...]:
    if len(set(dimension.labels)) == len(dimension.labels):
        return dimension.labels
    return tuple(repr(label) for label in dimension.labels)


def encode(dimension: Float | Int | Choice, value: Scalar, known: Any) -> Any:
    """Return a point's value as Optuna keeps it; off a raster, the nearest value on it."""
    if isinstance(dimension, Choice):
        number = position(dimension, value)
        return number if dimension.ordered else known.choices[number]
    return _on_raster(dimension, value, known)


def decode(dimension: Float | Int | Choice, value: Any, known: Any) -> Scalar:
    """Return what Optuna keeps as a point's value."""
    if isinstance(dimension, Float):
        return float(value)
    if isinstance(dimension, Int):
        return int(value)
    return dimension.labels[int(value if dimension.ordered else known.to_internal_repr(value))]


def _on_raster(dimension: Float | Int, value: Any, known: Any) -> Any:
    step = dimension.step
    if step is not None and step != 1:
        steps = (value - dimension.low) / step
        if abs(steps - round(steps)) > 1e-8:
            value = dimension.low + round(steps) * step
    return min(value, known.high)


def position(dimension: Choice, value: Scalar) -> int:
    """Return the number of a label."""
    for number, label in enumerate(dimension.labels):
        if type(label) is type(value) and label == value:
            return number
    return dimension.labels.index(value)


class TrialSuggester:
    """Lets an Optuna trial choose."""

    def __init__(self, trial: Trial, distributions: Distributions) -> None:
        self._trial = trial
        self._drawn = trial.params if distributions.always else {}
        self._distributions = distributions

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        """Return what the trial suggests."""
        known = self._distributions.of(name, dimension)
        if name in self._drawn:
            value = self._drawn[name]
        elif isinstance(dimension, Choice) and not dimension.ordered:
            value = self._trial.suggest_categorical(name, known.choices)
        elif isinstance(dimension, Float):
            value = self._trial.suggest_float(
                name, known.low, known.high, log=known.log, step=known.step
            )
        else:
            value = self._trial.suggest_int(
                name, known.low, known.high, log=known.log, step=known.step
            )
        return decode(dimension, value, known)


class _Encoder:
    def __init__(self, point: Mapping[str, Any], distributions: Distributions) -> None:
        self._stored = StoredSuggester(point)
        self._distributions = distributions
        self.params: dict[str, Any] = {}
        self.kinds: dict[str, Any] = {}

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        value = self._stored.suggest(name, dimension)
        self.kinds[name] = known = self._distributions.of(name, dimension)
        self.params[name] = encode(dimension, value, known)
        return value


def params_of(
    space: AnySpace, point: Point, number: int, distributions: Distributions
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return a point as Optuna's params and distributions; None if it does not fit the space."""
    encoder = _Encoder(point, distributions)
    try:
        space.draw(encoder, number)
    except WorkflowError:
        return None
    return encoder.params, encoder.kinds
