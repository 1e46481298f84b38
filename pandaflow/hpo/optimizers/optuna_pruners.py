"""Optuna's pruners by name, their state, and pruning for optimizers of another kind."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cloudpickle

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.port import Asked, AskEntry, Brief, Entry, Memo, Optimizer, TellEntry, Told
from pandaflow.hpo.space import Point

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.study import Study

    from pandaflow.hpo.optimizers.optuna_state import Mirror

PRUNERS: Mapping[str, str] = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "asha": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
    "patient": "PatientPruner",
    "wilcoxon": "WilcoxonPruner",
    "nop": "NopPruner",
}
_ALSO = {"successivehalving": "asha", "sha": "asha", "none": "nop"}


def make_pruner(given: Any) -> BasePruner:
    """Return a pruner.

    Parameters
    ----------
    given : str, tuple of (str, options), optuna.pruners.BasePruner or None
        ``"median"``, ``("percentile", {"percentile": 25.0})``,
        ``("patient", {"wrapped_pruner": "median", "patience": 3})``. An object is copied.

    Raises
    ------
    WorkflowError
        The name is unknown, an option is unknown or wrong.
    """
    import optuna

    if isinstance(given, optuna.pruners.BasePruner):
        return pickle.loads(cloudpickle.dumps(given))  # type: ignore[no-any-return]
    name, options = _parse(given)
    pruner_class = getattr(optuna.pruners, PRUNERS[name])
    accepted = list(inspect.signature(pruner_class).parameters)
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise WorkflowError(
            f"pruner {name!r} has no option {unknown[0]!r}; accepted are {', '.join(accepted)}"
        )
    if "wrapped_pruner" in options and options["wrapped_pruner"] is not None:
        options["wrapped_pruner"] = make_pruner(options["wrapped_pruner"])
    try:
        return pruner_class(**options)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise WorkflowError(f"pruner {name!r}: {error}") from error


def _parse(given: Any) -> tuple[str, dict[str, Any]]:
    options: Any = {}
    if given is None:
        return "nop", {}
    if isinstance(given, list | tuple) and len(given) == 2:
        given, options = given
    if not isinstance(given, str) or not isinstance(options, Mapping):
        raise WorkflowError(
            f"a pruner is a name, (name, options) or an Optuna pruner, not {given!r}"
        )
    plain = "".join(c for c in given.lower() if c.isalnum()).removesuffix("pruner")
    plain = _ALSO.get(plain, plain)
    if plain not in PRUNERS:
        raise WorkflowError(f"unknown pruner {given!r}; known are {', '.join(sorted(PRUNERS))}")
    return plain, dict(options)


def check_pruner(brief: Brief) -> None:
    """Refuse a pruner that cannot work.

    Raises
    ------
    WorkflowError
        It is unknown, or there are several objectives.
    """
    if brief.pruner is None:
        return
    if len(brief.directions) > 1:
        raise WorkflowError("pruning compares one objective; leave out pruner=")
    make_pruner(brief.pruner)


def pruner_state(pruner: BasePruner) -> dict[str, int]:
    """Return what a pruner found out from the first trials and keeps for good.

    Successive halving takes its smallest resource, Hyperband its largest, from the trials that
    are complete when it is first asked; later ones would give other numbers.
    """
    import optuna

    inner = _innermost(pruner)
    if isinstance(inner, optuna.pruners.SuccessiveHalvingPruner):
        least = inner._min_resource
        return {} if least is None else {"min_resource": least}
    if isinstance(inner, optuna.pruners.HyperbandPruner) and inner._pruners:
        return {"max_resource": int(inner._max_resource)}
    return {}


def set_pruner_state(study: Study, state: Mapping[str, int]) -> None:
    """Bring a study's new pruner to a state that :func:`pruner_state` returned."""
    inner: Any = _innermost(study.pruner)
    if "min_resource" in state:
        inner._min_resource = state["min_resource"]
    if "max_resource" in state:
        inner._max_resource = state["max_resource"]
        inner._try_initialization(study)


def unknown_pruner(pruner: BasePruner) -> str:
    """Return why a pruner's decisions may differ after a resume; "" if they will not."""
    inner = _innermost(pruner)
    if type(inner).__module__.startswith("optuna.pruners"):
        return ""
    return f"pruner {type(inner).__name__} may keep a state of its own"


def _innermost(pruner: BasePruner) -> Any:
    inner: Any = pruner
    while getattr(inner, "_wrapped_pruner", None) is not None:
        inner = inner._wrapped_pruner
    return inner


# --- for other optimizers ---------------------------------------------------------------

#: Where a wrapped optimizer's memo keeps what the pruner needs.
_KEY = "pruning"


class PrunedOptimizer:
    """An optimizer with the decisions of an Optuna pruner; see :func:`pruned_by`."""

    def __init__(self, inner: Optimizer, mirror: Mirror) -> None:
        self._inner = inner
        self._mirror = mirror

    def ask(self, number: int) -> Asked:
        """Ask the optimizer."""
        asked = self._inner.ask(number)
        self._mirror.open(number)
        return Asked(asked.point, self._with_ours(asked.memo, number))

    def adopt(self, number: int, point: Point) -> Memo:
        """Take in a trial from elsewhere."""
        memo = self._inner.adopt(number, point)
        self._mirror.open(number)
        return self._with_ours(memo, number)

    def tell(self, told: Told) -> Memo:
        """Tell the optimizer, and the pruner's study."""
        memo = self._inner.tell(told)
        self._mirror.tell(replace(told, point=None if told.point is None else {}))
        return self._with_ours(memo, told.number)

    def report(self, number: int, step: int, value: float) -> bool:
        """Take in an intermediate value; the optimizer or the pruner may want to prune."""
        theirs = self._inner.report(number, step, value)
        return self._mirror.report(number, step, value) or theirs

    def restore(self, entries: Sequence[Entry], snapshot: bytes | None = None) -> str:
        """Restore both; see :meth:`pandaflow.hpo.port.Optimizer.restore`."""
        ours = [_ours(entry) for entry in entries]
        if snapshot is None:
            return self._inner.restore(entries) or self._mirror.replay(ours)
        inner, mirror = pickle.loads(snapshot)
        why = self._inner.restore(entries, inner)
        self._mirror.load(mirror)
        self._mirror.follow(ours)
        return why or unknown_pruner(self._mirror.study.pruner)

    def snapshot(self) -> bytes | None:
        """Return both states, if the optimizer has one."""
        inner = self._inner.snapshot()
        return None if inner is None else pickle.dumps((inner, self._mirror.dump()))

    def _with_ours(self, memo: Memo, number: int) -> Memo:
        ours = self._mirror.memo(number)
        return {**memo, _KEY: ours} if ours else memo


def _ours(entry: Entry) -> Entry:
    """Return an entry as the pruner's study sees it: without a point."""
    if isinstance(entry, AskEntry):
        return replace(entry, point={}, memo=entry.memo.get(_KEY, {}))
    if isinstance(entry, TellEntry):
        told = replace(entry.told, point=None if entry.told.point is None else {})
        return TellEntry(told, entry.memo.get(_KEY, {}))
    return entry


def pruned_by(optimizer: Optimizer, brief: Brief) -> Optimizer:
    """Add the decisions of ``brief.pruner`` to an optimizer that knows no pruning.

    Parameters
    ----------
    optimizer : Optimizer
        Proposes the points.
    brief : Brief
        With a pruner; without one, ``optimizer`` itself is returned.

    Returns
    -------
    Optimizer

    Raises
    ------
    WorkflowError
        Optuna is missing, the pruner is unknown, or there are several objectives.
    """
    from pandaflow.hpo.optimizers.optuna_samplers import REMEDY, need
    from pandaflow.hpo.optimizers.optuna_state import Mirror

    if brief.pruner is None:
        return optimizer
    need("optuna", REMEDY, "pruning")
    check_pruner(brief)
    return PrunedOptimizer(optimizer, Mirror(brief))
