"""What runs with the payload: the trial handle, and the function behind an evaluation's job."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.payload import JobContext, current_job


class TrialPruned(Exception):
    """Raise it in an objective to end a trial that is not worth going on with."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an objective may return instead of a number.

    Attributes
    ----------
    value : float or sequence of float
        One number for each direction of the study.
    constraints : sequence of float
        The point is feasible where all are <= 0.
    attrs : mapping
        Anything else worth keeping with the trial (JSON-ready), for example paths of artifacts.
    """

    value: float | Sequence[float]
    constraints: Sequence[float] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Trial:
    """A trial as its objective sees it, in the job that evaluates it.

    Attributes
    ----------
    number : int
        Counts from 0 within the study.
    params : dict
        What the objective is called with.
    seed : int
        63 bits that depend on study, trial and repeat only: the same in every attempt.
    repeat : int
        Which evaluation of the point this is, for a study with ``repeats=``.
    attrs : dict
        Kept with the trial; put anything JSON-ready in.
    """

    def __init__(
        self,
        number: int,
        params: Mapping[str, Any],
        *,
        seed: int = 0,
        repeat: int = 0,
        job: JobContext | None = None,
    ) -> None:
        self.number, self.seed, self.repeat = number, seed, repeat
        self.params = dict(params)
        self.attrs: dict[str, Any] = {}
        self.reports: list[tuple[int, float]] = []
        self._job = job

    def report(self, value: float, step: int | None = None) -> None:
        """Tell an intermediate value; costs microseconds and never waits.

        Parameters
        ----------
        value : float
        step : int, optional
            Epoch, fold or the like; default: one more than the last.
        """
        if step is None:
            step = self.reports[-1][0] + 1 if self.reports else 0
        try:
            number, at = float(value), int(step)
        except (TypeError, ValueError):
            text = f"trial.report({value!r}, step={step!r}): a number and a whole step"
            raise WorkflowError(text) from None
        self.reports.append((at, number))
        if self._job is not None:
            self._job.send({"trial": self.number, "repeat": self.repeat, "report": [at, number]})

    def should_prune(self) -> bool:
        """Return whether the study's pruner has given this trial up."""
        return self._job is not None and bool(self._job.stopping)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep something with the trial, as in Optuna."""
        self.attrs[key] = value

    def __repr__(self) -> str:
        return f"Trial({self.number}, {self.params})"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The payload of an evaluation's job: calls the objective at a point.

    Attributes
    ----------
    function : callable
        The objective.
    wants_trial : bool
        It takes an argument named ``trial``.
    objectives : int
        Numbers that it must return.
    """

    function: Callable[..., Any]
    wants_trial: bool
    objectives: int

    def __call__(self, ticket: Mapping[str, Any], /, **given: Any) -> dict[str, Any]:
        """Evaluate the point of a ticket (see :func:`ticket_of`)."""
        began = time.time()
        trial = Trial(
            ticket["n"], ticket["p"], seed=ticket["seed"], repeat=ticket["r"], job=current_job()
        )
        arguments = {**given, **ticket["p"]}
        if self.wants_trial:
            arguments["trial"] = trial
        state, answer, why = "complete", None, ""
        try:
            answer = self.function(**arguments)
        except Exception as error:
            if not _is_pruned(error):
                raise
            state, why = "pruned", str(error)
        return _outcome(trial, state, answer, why, self.objectives, began)


def _is_pruned(error: Exception) -> bool:
    """Whether it is TrialPruned: ours, or Optuna's, which need not be installed here."""
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return isinstance(error, TrialPruned) or "optuna.exceptions.TrialPruned" in names


def ticket_of(number: int, repeat: int, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the item of a study's dataset that stands for one evaluation."""
    return {"n": number, "r": repeat, "p": dict(arguments), "seed": seed}


def _outcome(
    trial: Trial, state: str, answer: Any, why: str, objectives: int, began: float
) -> dict[str, Any]:
    out: dict[str, Any] = {"n": trial.number, "r": trial.repeat, "t": [began, time.time()]}
    if state == "complete":
        result = read_result(answer, objectives)
        why, attrs = result.pop("why"), {**trial.attrs, **result.pop("a")}
        state = "failed" if why else "complete"
        out |= result
    else:
        attrs = trial.attrs
    out |= {"s": state, "why": why}
    if attrs:
        out["a"] = attrs
    if trial.reports:
        out["i"] = [[step, value] for step, value in trial.reports]
    return out


def read_result(answer: Any, objectives: int) -> dict[str, Any]:
    """Parse what an objective returned.

    Returns
    -------
    dict
        ``v`` values, ``c`` constraints, ``a`` attributes, and ``why`` the result is none ("":
        it is one). NaN and infinities are none; 0.0 is one.
    """
    constraints: tuple[Any, ...] = ()
    attrs: dict[str, Any] = {}
    if isinstance(answer, Result):
        answer, constraints, attrs = answer.value, tuple(answer.constraints), dict(answer.attrs)
    elif isinstance(answer, Mapping) and "value" in answer:
        constraints = tuple(answer.get("constraints", ()))
        attrs = dict(answer.get("attrs", {}))
        answer = answer["value"]
    elif isinstance(answer, Mapping):
        answer = tuple(answer.values())
    try:
        values, limits = _numbers(answer), [float(limit) for limit in constraints]
    except (TypeError, ValueError):
        text = f"the objective returned {type(answer).__name__}; return a number"
        return {"v": [], "c": [], "a": attrs, "why": text if objectives == 1 else f"{text}s"}
    why = ""
    if len(values) != objectives:
        why = f"the objective returned {len(values)} numbers, the study has {objectives} directions"
    elif not all(map(math.isfinite, values + limits)):
        why = f"the objective returned {', '.join(map(str, values + limits))}"
    return {"v": [] if why else values, "c": [] if why else limits, "a": attrs, "why": why}


def _numbers(answer: Any) -> list[float]:
    if isinstance(answer, bool | str | bytes) or answer is None:
        raise TypeError
    if isinstance(answer, list | tuple):
        return [_numbers(part)[0] for part in answer]
    return [float(answer)]


# --- checks when a study is set up ------------------------------------------------------


def wants_trial(function: Callable[..., Any]) -> bool:
    """Return whether an objective takes ``trial``."""
    try:
        return "trial" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def check_call(
    name: str, function: Callable[..., Any], given: Sequence[str], *, complete: bool
) -> None:
    """Refuse an objective that cannot be called with parameters of these names.

    Parameters
    ----------
    complete : bool
        These are all; otherwise others may be there at some points.

    Raises
    ------
    WorkflowError
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    kinds = {p.kind for p in parameters.values()}
    unknown = [n for n in given if n not in parameters]
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise WorkflowError(
            f"objective {name}{inspect.signature(function)} takes no argument {unknown[0]!r}, "
            "which the search space or the call of the study gives it"
        )
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind in named and n not in given and n != "trial"
    ]
    if missing and complete:
        hint = ""
        if len(missing) == 1 and len(parameters) == 1:
            hint = (
                ". For Optuna's style, where the objective itself calls trial.suggest_..., move "
                "these calls into a function of the trial and give it as the search space"
            )
        raise WorkflowError(
            f"objective {name} needs an argument {missing[0]!r}: add it to the search space or "
            f"pass it to the study, {missing[0]}=...{hint}"
        )
