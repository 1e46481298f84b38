"""Hyperparameter optimization: studies whose trials are jobs of a run.

::

    from pandaflow import hpo

    space = hpo.Space(lr=hpo.log(1e-5, 1e-1), depth=hpo.int(2, 12), kind=["bdt", "nn"])
    study = hpo.Study("ttH", optimizer=hpo.optuna("tpe", seed=7))
    study.optimize(train, space, n_trials=1000, parallel=64)
    study.best_params
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandaflow.hpo.active import active_learning as active_learning
    from pandaflow.hpo.book import TrialRecord as TrialRecord
    from pandaflow.hpo.dimensions import choice as choice
    from pandaflow.hpo.dimensions import fixed as fixed
    from pandaflow.hpo.dimensions import integer as integer
    from pandaflow.hpo.dimensions import log as log
    from pandaflow.hpo.dimensions import ordinal as ordinal
    from pandaflow.hpo.dimensions import real as real
    from pandaflow.hpo.errors import StudyFailed as StudyFailed
    from pandaflow.hpo.filejob import Command as Command
    from pandaflow.hpo.objective import Result as Result
    from pandaflow.hpo.objective import Trial as Trial
    from pandaflow.hpo.objective import TrialPruned as TrialPruned
    from pandaflow.hpo.optimizers.designs import grid as grid
    from pandaflow.hpo.optimizers.designs import lhs as lhs
    from pandaflow.hpo.optimizers.designs import points as points
    from pandaflow.hpo.optimizers.designs import random as random
    from pandaflow.hpo.optimizers.designs import sobol as sobol
    from pandaflow.hpo.optimizers.external import external as external
    from pandaflow.hpo.optimizers.nevergrad import nevergrad as nevergrad
    from pandaflow.hpo.optimizers.optuna import optuna as optuna
    from pandaflow.hpo.phpo import from_phpo as from_phpo
    from pandaflow.hpo.scans import scan as scan
    from pandaflow.hpo.searching import search as search
    from pandaflow.hpo.space import Space as Space
    from pandaflow.hpo.stops import cost as cost
    from pandaflow.hpo.stops import patience as patience
    from pandaflow.hpo.stops import target as target
    from pandaflow.hpo.stops import timeout as timeout
    from pandaflow.hpo.study import Study as Study
    from pandaflow.hpo.study import load as load
    from pandaflow.hpo.study import studies as studies

    int, float = integer, real

_HOME = {
    "active": "active_learning",
    "book": "TrialRecord",
    "optimizers.designs": "grid lhs points random sobol",
    "errors": "StudyFailed",
    "optimizers.external": "external",
    "filejob": "Command",
    "optimizers.nevergrad": "nevergrad",
    "objective": "Result Trial TrialPruned",
    "optimizers.optuna": "optuna",
    "phpo": "from_phpo",
    "scans": "scan",
    "searching": "search",
    "space": "Space",
    "dimensions": "choice fixed log ordinal",
    "stops": "cost patience target timeout",
    "study": "Study load studies",
}
_WHERE = {name: (home, name) for home, names in _HOME.items() for name in names.split()}
_WHERE |= {"int": ("dimensions", "integer"), "float": ("dimensions", "real")}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: Optuna and the like are not small."""
    if name not in _WHERE:
        raise AttributeError(f"module 'pandaflow.hpo' has no attribute {name!r}")
    module, there = _WHERE[name]
    value = getattr(import_module(f"pandaflow.hpo.{module}"), there)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
