"""Trials of ours as an Optuna study, for its plots and dashboard, and Optuna's as ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import Choice, Dimension, Float, Int, Scalar, choice, integer, real
from pandaflow.hpo.optimizers.optuna_samplers import REMEDY, need
from pandaflow.hpo.optimizers.optuna_space import distribution, encode, position
from pandaflow.hpo.optimizers.optuna_trials import silence
from pandaflow.hpo.port import Told, TrialState
from pandaflow.hpo.space import AnySpace, Point, StoredSuggester

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial as :func:`study_of` wants it.

    Attributes
    ----------
    number : int
        Of the trial.
    state : {'running', 'complete', 'pruned', 'failed'}
        Where it stands.
    point : mapping of str to scalar
        Its parameters.
    values : tuple of float
        One for each objective if complete.
    constraints : tuple of float
        Feasible where all are <= 0.
    reports : sequence of (int, float)
        Steps and intermediate values.
    started, ended : datetime, float or None
        Local date, or seconds since 1970.
    attrs : mapping of str to value
        Shown as the trial's user attributes.
    """

    number: int
    state: str
    point: Mapping[str, Scalar]
    values: tuple[float, ...] = ()
    constraints: tuple[float, ...] = ()
    reports: Sequence[tuple[int, float]] = ()
    started: datetime | float | None = None
    ended: datetime | float | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


def study_of(
    space: AnySpace,
    directions: Sequence[str],
    trials: Iterable[TrialRecord],
    *,
    name: str = "pandaflow",
    storage: Any = None,
) -> Study:
    """Return an Optuna study that holds our trials.

    An ordinal shows its labels. A trial whose point does not fit the space keeps its outcome,
    and its point as the user attribute ``point``.

    Parameters
    ----------
    space : Space or FunctionSpace
        What was searched.
    directions : sequence of {'minimize', 'maximize'}
        One for each objective.
    trials : iterable of TrialRecord
        In any order; Optuna numbers them from 0, the user attribute ``number`` is ours.
    name : str
        The study's name in Optuna.
    storage : optuna.storages.BaseStorage or str, optional
        Where Optuna keeps it; in memory by default.

    Returns
    -------
    optuna.Study

    Raises
    ------
    WorkflowError
        Optuna is missing.
    """
    need("optuna", REMEDY, "an Optuna study")
    import optuna

    silence()
    study = optuna.create_study(
        storage=storage or optuna.storages.InMemoryStorage(),
        study_name=name,
        directions=list(directions),  # type: ignore[arg-type]
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    study.add_trials([_frozen(space, one) for one in sorted(trials, key=lambda t: t.number)])
    return study


class _Shown:
    """Collects a point's params with labels, whatever the samplers see."""

    def __init__(self, point: Mapping[str, Scalar]) -> None:
        self._stored = StoredSuggester(point)
        self.params: dict[str, Any] = {}
        self.kinds: dict[str, Any] = {}

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        value = self._stored.suggest(name, dimension)
        known = self.kinds[name] = distribution(dimension, ordinal_as_number=False)
        if isinstance(dimension, Choice):
            self.params[name] = known.choices[position(dimension, value)]
        else:
            self.params[name] = encode(dimension, value, known)
        return value


def _frozen(space: AnySpace, record: TrialRecord) -> FrozenTrial:
    import optuna

    states = {
        "running": optuna.trial.TrialState.RUNNING,
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    shown = _Shown(record.point)
    attrs = {**record.attrs, "number": record.number}
    try:
        space.draw(shown, record.number)
        params, kinds = shown.params, shown.kinds
    except WorkflowError:
        params, kinds = {}, {}
        attrs["point"] = dict(record.point)
    reports: dict[int, float] = {}
    for step, value in record.reports:
        reports.setdefault(step, value)
    trial = optuna.trial.create_trial(
        state=states[record.state],
        values=_values(record, reports),
        params=params,
        distributions=kinds,
        user_attrs=attrs,
        intermediate_values=reports,
        constraints={f"c{k}": value for k, value in enumerate(record.constraints)} or None,
    )
    _date(trial, record)
    return trial


def _values(record: TrialRecord, reports: Mapping[int, float]) -> list[float] | None:
    if record.state == "complete":
        return list(record.values)
    if record.state == "pruned" and reports and not math.isnan(last := reports[max(reports)]):
        return [last]
    return None


def _date(trial: FrozenTrial, record: TrialRecord) -> None:
    started, ended = _when(record.started), _when(record.ended)
    if started or ended:
        trial.datetime_start = started or ended
    if trial.state.is_finished():
        trial.datetime_complete = ended or trial.datetime_start


def _when(given: datetime | float | None) -> datetime | None:
    if given is None or isinstance(given, datetime):
        return given
    return datetime.fromtimestamp(given)


def entries_of(study: Study) -> tuple[dict[str, Dimension], list[Told]]:
    """Return the parameters and the finished trials of an Optuna study.

    Parameters
    ----------
    study : optuna.Study
        Any; trials that run or wait are left out.

    Returns
    -------
    dimensions : dict of str to Dimension
        As far as the trials tell: ranges that changed are united, of options those given last
        count, and parameters that exist only for some choices appear like all others.
    told : list of Told
        With points, numbered as in Optuna.
    """
    finished = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    dimensions: dict[str, Dimension] = {}
    for trial in finished:
        for name, known in trial.distributions.items():
            dimensions[name] = _united(dimensions.get(name), _dimension(known))
    return dimensions, [_told(trial, dimensions) for trial in finished]


def _dimension(known: Any) -> Float | Int | Choice:
    from optuna import distributions

    if isinstance(known, distributions.FloatDistribution):
        return real(known.low, known.high, log=known.log, step=known.step)
    if isinstance(known, distributions.IntDistribution):
        return integer(known.low, known.high, log=known.log, step=known.step)
    return choice(list(known.choices))


def _united(old: Any, new: Float | Int | Choice) -> Dimension:
    if isinstance(new, Choice) or type(old) is not type(new):
        return new
    low, high = min(old.low, new.low), max(old.high, new.high)
    same = old.step == new.step
    if isinstance(new, Float):
        return Float(low, high, new.log, new.step if same else None)
    return Int(int(low), int(high), new.log, new.step if same else 1)


def _told(trial: FrozenTrial, dimensions: Mapping[str, Any]) -> Told:
    names: dict[str, TrialState] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    state = names[trial.state.name]
    point: Point = {name: _parsed(dimensions[name], v) for name, v in trial.params.items()}
    complete = state == "complete" and all(map(math.isfinite, trial.values or ()))
    values = tuple(trial.values or ()) if complete else ()
    constraints = tuple(trial.constraints.values())
    if state == "complete" and not complete:  # Optuna takes infinity for a value
        state = "failed"
    return Told(trial.number, state, values, constraints, point)


def _parsed(dimension: Float | Int | Choice, value: Any) -> Scalar:
    try:
        return dimension.parse(value)
    except ValueError:  # of a range or options that changed later
        return value if isinstance(value, bool | int | float | str) else repr(value)
