"""A study as a node of a workflow: ``best = hpo.search(objective, space, ...)``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import cloudpickle

from pandaflow.authoring.collections import Collection, Placed, SourceCollection
from pandaflow.authoring.sources import Stream
from pandaflow.authoring.tasks import Task
from pandaflow.authoring.trace import Trace, active_trace
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Output, SteererSpec
from pandaflow.hpo.driver import StudyPlan
from pandaflow.hpo.engine import Aggregate, Terms
from pandaflow.hpo.objective import Evaluation, check_call, read_result, wants_trial
from pandaflow.hpo.port import OptimizerSpec
from pandaflow.hpo.space import AnySpace, Space, parse_space
from pandaflow.hpo.stops import parse_rules
from pandaflow.options import Options, change, name_of
from pandaflow.workflows import WorkflowFunction

#: What a job's options may be, by parameters of the point.
Resources = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """All that is needed to go on with a search, in whatever process drives its run.

    Attributes
    ----------
    study : StudyPlan
        With an empty name the study belongs to the run and is named after it.
    label : str
        Begins the names of the search's tasks and streams.
    task : int or None
        The task that evaluates the points of the stream; None: each trial gets tasks of its own.
    objective : WorkflowFunction, Task or None
        What is called for these.
    fixed : mapping
        Its arguments besides the point: values, and datasets of the run.
    resources : mapping, callable or None
        Options of a trial's task.
    """

    study: StudyPlan
    label: str
    task: int | None
    objective: Any = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources | None = None

    def stream(self, which: str) -> str:
        """Return the name of one of its streams: points, trials or result."""
        return f"{self.label}/{which}"


class Search:
    """What :func:`search` returns: stand-ins for what the study will find.

    Attributes
    ----------
    best : collection of one value
        The best trial as a dict: ``number``, ``params``, ``value``, ``values``, ``attrs``. Tasks
        that take it wait for the end of the study.
    best_params : collection of one value
        Its parameters.
    trials : collection
        All trials as dicts, in the order in which they end: tasks that map over it start on
        each as soon as it is there.
    """

    def __init__(self, best: Collection, best_params: Collection, trials: Collection) -> None:
        self.best, self.best_params, self.trials = best, best_params, trials

    def __repr__(self) -> str:
        return f"<search: {self.best.label}>"


def search(
    objective: Any,
    space: Any,
    *,
    name: str | None = None,
    resources: Resources | None = None,
    **settings: Any,
) -> Search:
    """Search for the best parameters within a workflow.

    Parameters
    ----------
    objective : task, workflow or function
        Called with the parameters of a point.
    space : Space, dict or function
    name : str, optional
        Default: the objective's.
    resources : dict or function of the parameters, optional
        Options of a trial's job.
    **settings
        As for :class:`Study` and :meth:`Study.optimize`: ``n_trials``, ``parallel``,
        ``optimizer``, ``direction``, ``pruner``, ``stop``, ... Other keywords are arguments of
        the objective, which may be outputs of tasks.

    Examples
    --------
    >>> import pandaflow as pf
    >>> from pandaflow import hpo
    >>> @pf.task
    ... def fit(x):
    ...     return (x - 1) ** 2
    >>> @pf.task
    ... def report(best):
    ...     return best["params"]
    >>> @pf.workflow
    ... def tune():
    ...     found = hpo.search(fit, {"x": hpo.float(-3, 3)}, n_trials=20, parallel=4)
    ...     return report(found.best)
    """
    trace = active_trace("hpo.search")
    if trace.body is not None:
        raise WorkflowError("hpo.search cannot stand in a loop or in a trial's own workflow")
    own = {key: settings.pop(key) for key in list(settings) if key in SETTINGS}
    plan = study_plan("", space, Settings(**own))
    return place(trace, plan, objective, name=name, resources=resources, fixed=settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a study as its author gave them; :func:`study_plan` parses them.

    What each means is told by :class:`pandaflow.hpo.Study` and its ``optimize``.
    """

    n_trials: int | None = None
    parallel: int = 8
    direction: str | None = None
    directions: Any = None
    optimizer: Any = None
    pruner: Any = None
    seed: int | None = None
    stop: Any = None
    on_error: Any = "fail"
    max_failed: float = 0.5
    repeats: int = 1
    aggregate: Any = "mean"
    patience: float = 60.0
    extend: bool = False
    ahead: int | None = None


#: What is not among these goes to the objective.
SETTINGS = frozenset(field.name for field in fields(Settings))


def study_plan(name: str, space: Any, given: Settings) -> StudyPlan:
    """Parse the settings of a study.

    Raises
    ------
    WorkflowError
        Names the setting.
    """
    return StudyPlan(
        name=name,
        directions=_directions(given.direction, given.directions),
        space=parse_space(space),
        optimizer=_optimizer(given.optimizer, given.seed),
        pruner=given.pruner,
        terms=_terms(given),
        patience=float(given.patience),
        extend=bool(given.extend),
    )


def _terms(given: Settings) -> Terms:
    rules = parse_rules(given.stop)
    if given.n_trials is None and not rules:
        raise WorkflowError("give n_trials=, or stop=[hpo.timeout('1h')] or another rule")
    parallel = _whole("parallel", given.parallel)
    fixed = 0 if given.ahead is None else _whole("ahead", given.ahead, least=0)
    return Terms(
        n_trials=None if given.n_trials is None else _whole("n_trials", given.n_trials),
        outstanding=parallel + fixed,
        ahead=3 * parallel // 4 if given.ahead is None else 0,
        repeats=_whole("repeats", given.repeats),
        aggregate=_aggregate(given.aggregate),
        on_error=_on_error(given.on_error),
        max_failed=float(given.max_failed),
        stops=rules,
        prunes=given.pruner is not None,
    )


def _whole(what: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WorkflowError(f"{what}={value!r} is not a whole number of at least {least}")
    return value


def _directions(one: str | None, several: Any) -> tuple[str, ...]:
    if one is not None and several is not None:
        raise WorkflowError("give direction= or directions=, not both")
    given = tuple(several) if several is not None else (one or "minimize",)
    for word in given:
        if word not in ("minimize", "maximize"):
            raise WorkflowError(f"direction {word!r}: 'minimize' or 'maximize'")
    if not given:
        raise WorkflowError("directions=[] is empty")
    return given


def _optimizer(given: Any, seed: int | None) -> OptimizerSpec:
    if given is None or isinstance(given, str):
        given = _named_optimizer(given)
    if not hasattr(given, "build"):
        raise WorkflowError(
            f"optimizer={given!r}: use hpo.optuna('tpe'), hpo.nevergrad('CMA'), hpo.random(), "
            "hpo.grid(), hpo.sobol(), hpo.lhs(n) or hpo.external(command)"
        )
    if seed is not None and given.seed is None:
        given = replace(given, seed=int(seed))
    return cast(OptimizerSpec, given)


def _named_optimizer(name: str | None) -> Any:
    """Return an optimizer by word; the default is TPE where Optuna is installed."""
    from importlib.util import find_spec

    from pandaflow.hpo.optimizers import designs

    if name is None:
        name = "tpe" if find_spec("optuna") else "random"
    if name in ("random", "grid", "sobol"):
        return getattr(designs, name)()
    from pandaflow.hpo.optimizers.optuna import optuna

    return optuna(name)


def _aggregate(given: Any) -> Aggregate:
    known: dict[str, Aggregate] = {
        "mean": statistics.fmean,
        "median": statistics.median,
        "max": max,
        "min": min,
    }
    if callable(given):
        return cast(Aggregate, given)
    if given not in known:
        raise WorkflowError(f"aggregate={given!r}: {', '.join(known)}, or a function of values")
    return known[given]


def _on_error(given: Any) -> Any:
    if given in ("fail", "stop"):
        return given
    if isinstance(given, tuple) and len(given) == 2 and given[0] == "penalty":
        given = given[1]
    if isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given):
        return float(given)
    raise WorkflowError(
        f"on_error={given!r}: 'fail', 'stop', or a number that a failed trial counts as"
    )


# --- placing ----------------------------------------------------------------------------


def place(
    trace: Trace,
    plan: StudyPlan,
    objective: Any,
    *,
    name: str | None = None,
    resources: Resources | None = None,
    fixed: Mapping[str, Any],
) -> Search:
    """Add a study's tasks and streams to the workflow that is being written."""
    made = as_objective(objective)
    label = trace.unique(name or made.name)
    _check_arguments(made, plan.space, fixed)
    points, trials, best = (Stream(f"{label}/{which}") for which in ("points", "trials", "result"))
    for stream in (points, trials, best):
        trace.adopt(stream)
    options = {} if callable(resources) else dict(resources or {})
    if isinstance(made, WorkflowFunction) and plan.pruner is not None and plan.terms.repeats == 1:
        raise WorkflowError(
            f"objective {made.name!r} is a workflow, whose tasks report no intermediate values: "
            "leave pruner= out (with repeats= it decides after each repeat)"
        )
    number = None
    grows = isinstance(made, WorkflowFunction) or callable(resources)
    if isinstance(made, Task) and not grows:
        number = _evaluations(trace, made, points, f"{label}/trial", options, plan, fixed)
    search = SearchPlan(
        study=plan,
        label=label,
        task=number,
        objective=made if grows else None,
        fixed=_placed(trace, fixed) if grows else {},
        resources=resources if grows else None,
    )
    blob = trace.blob(f"search-{label}", cloudpickle.dumps(search))
    trace.steerers.append(
        SteererSpec(
            name=label,
            module="pandaflow.hpo.steering",
            blob=blob,
            edges=tuple((f"{label}/trial", search.stream(which)) for which in ("trials", "result")),
        )
    )
    found = _reader(trace, _first, best, f"{label}/best")
    return Search(found, _reader(trace, _params, best, f"{label}/best-params"), trials)


def _evaluations(
    trace: Trace,
    made: Task,
    points: Stream,
    name: str,
    options: Mapping[str, Any],
    plan: StudyPlan,
    fixed: Mapping[str, Any],
) -> int:
    task = evaluating(made, len(plan.directions)).options(**options)
    task = Task(task.function, replace(task._options, name=name))
    placed = task(points, **fixed).dataset(trace)
    assert isinstance(placed, Output)
    trace.tasks[placed.task] = replace(trace.tasks[placed.task], optional=True)
    return placed.task


def evaluating(made: Task, objectives: int) -> Task:
    """Return the task that evaluates tickets with an objective, under the objective's options."""
    function = Evaluation(made.function, wants_trial(made.function), objectives)
    return Task(cast(Callable[..., Any], function), made._options)


def as_objective(given: Any) -> Task | WorkflowFunction:
    """Return an objective as a task or workflow.

    Raises
    ------
    WorkflowError
    """
    if isinstance(given, WorkflowFunction):
        return given
    if isinstance(given, Task):
        if given._options.split.given:
            raise WorkflowError(
                f"objective {given.name!r} has a split rule; a trial is one job with one point"
            )
        return given
    if not callable(given):
        raise WorkflowError(f"objective {given!r} is no task, workflow or function")
    name = name_of(given) if hasattr(given, "__name__") else type(given).__name__
    return Task(given, change(Options(name="objective"), {"name": _plain(name)}))


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip("-") or "objective"


def _check_arguments(made: Any, space: AnySpace, fixed: Mapping[str, Any]) -> None:
    known = list(space.top) if isinstance(space, Space) else []
    every = list(space.dimensions) if isinstance(space, Space) else []
    twice = [key for key in fixed if key in every]
    if twice:
        raise WorkflowError(f"{twice[0]!r} is in the search space and given as an argument too")
    complete = isinstance(space, Space)
    check_call(made.name, made.function, [*known, *fixed], complete=complete)
    check_call(made.name, made.function, [*every, *fixed], complete=False)


def _placed(trace: Trace, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that can be pickled: outputs as references to datasets of the run."""
    out: dict[str, Any] = {}
    for key, value in fixed.items():
        if isinstance(value, Collection):
            dataset = value.dataset(trace)
            out[key] = Placed(value.label, dataset, length=value.length, single=value.single)
        else:
            out[key] = value
    return out


def _reader(
    trace: Trace, function: Callable[..., Any], best: SourceCollection, name: str
) -> Collection:
    """Add the one job that waits for the study's end and returns what was found."""
    placed = Task(function, change(Options(name="best"), {"n_jobs": 1, "name": name}))(best)
    output = placed.dataset(trace)
    assert isinstance(output, Output)
    trace.tasks[output.task] = replace(trace.tasks[output.task], internal=True)
    return cast(Collection, placed)


def _first(found: list[dict[str, Any]]) -> dict[str, Any]:
    from pandaflow.hpo.errors import StudyFailed

    if "error" in found[0]:
        raise StudyFailed(found[0]["error"])
    return found[0]


def _params(found: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(_first(found)["params"])


def read_value(value: Any, number: int, repeat: int, objectives: int) -> dict[str, Any]:
    """Return what a trial's own workflow returned as an outcome."""
    result = read_result(value, objectives)
    why = result.pop("why")
    return {"n": number, "r": repeat, "s": "failed" if why else "complete", "why": why, **result}
