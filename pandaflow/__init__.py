"""PandaFlow: workload management for science as a Python library on Dask.

Write tasks as functions or commands, join them over datasets, run them durably::

    import pandaflow as pf

    @pf.task
    def square(x):
        return x * x

    @pf.workflow
    def squares(n: int = 10):
        return square(pf.items(range(n)))

    squares(n=100).run().result()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandaflow import executors
    from pandaflow.authoring.commands import command
    from pandaflow.authoring.job_graphs import job_graph, ref
    from pandaflow.authoring.shapes import after, concat, cross, loop, scatter, when
    from pandaflow.authoring.sources import files, items, stream
    from pandaflow.authoring.tasks import task
    from pandaflow.client import Run, Transition, attach, resume, runs
    from pandaflow.core.errors import (
        DataError,
        InvalidTransition,
        PandaflowError,
        RunFailed,
        RunLocked,
        RunNotFound,
        SiteError,
        StoreError,
        StoreUnavailable,
        WorkflowError,
    )
    from pandaflow.core.model import Failure, File, Resources, Retry, RetryRule, Site
    from pandaflow.executors.outcome import Skip
    from pandaflow.executors.payload import current_job
    from pandaflow.workflows import Workflow, workflow

__version__ = "0.1.0"

_HOME = {
    "pandaflow.authoring.commands": "command",
    "pandaflow.authoring.job_graphs": "job_graph ref",
    "pandaflow.authoring.shapes": "after concat cross loop scatter when",
    "pandaflow.authoring.sources": "files items stream",
    "pandaflow.authoring.tasks": "task",
    "pandaflow.client": "Run Transition attach resume runs",
    "pandaflow.core.errors": (
        "DataError InvalidTransition PandaflowError RunFailed RunLocked RunNotFound SiteError "
        "StoreError StoreUnavailable WorkflowError"
    ),
    "pandaflow.core.model": "Failure File Resources Retry RetryRule Site",
    "pandaflow.executors.outcome": "Skip",
    "pandaflow.executors.payload": "current_job",
    "pandaflow.workflows": "Workflow workflow",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}
_MODULES = frozenset({"executors", "testing"})

__all__ = sorted([*_WHERE, "executors"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import pandaflow`` stays quick."""
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
    elif name in _MODULES:
        value = import_module(f"pandaflow.{name}")
    else:
        raise AttributeError(f"module 'pandaflow' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_MODULES})
