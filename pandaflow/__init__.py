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
    from pandaflow import executors as executors
    from pandaflow import hpo as hpo
    from pandaflow.authoring.commands import command as command
    from pandaflow.authoring.job_graphs import job_graph as job_graph
    from pandaflow.authoring.job_graphs import ref as ref
    from pandaflow.authoring.shapes import after as after
    from pandaflow.authoring.shapes import concat as concat
    from pandaflow.authoring.shapes import cross as cross
    from pandaflow.authoring.shapes import loop as loop
    from pandaflow.authoring.shapes import scatter as scatter
    from pandaflow.authoring.shapes import when as when
    from pandaflow.authoring.sources import files as files
    from pandaflow.authoring.sources import items as items
    from pandaflow.authoring.sources import stream as stream
    from pandaflow.authoring.tasks import task as task
    from pandaflow.client import Run as Run
    from pandaflow.client import attach as attach
    from pandaflow.client import resume as resume
    from pandaflow.client import runs as runs
    from pandaflow.core.brokerage import Site as Site
    from pandaflow.core.errors import DataError as DataError
    from pandaflow.core.errors import InvalidTransition as InvalidTransition
    from pandaflow.core.errors import PandaflowError as PandaflowError
    from pandaflow.core.errors import RunFailed as RunFailed
    from pandaflow.core.errors import RunLocked as RunLocked
    from pandaflow.core.errors import RunNotFound as RunNotFound
    from pandaflow.core.errors import SiteError as SiteError
    from pandaflow.core.errors import StoreError as StoreError
    from pandaflow.core.errors import StoreUnavailable as StoreUnavailable
    from pandaflow.core.errors import WorkflowError as WorkflowError
    from pandaflow.core.model import Failure as Failure
    from pandaflow.core.model import File as File
    from pandaflow.core.model import Resources as Resources
    from pandaflow.core.policy import Retry as Retry
    from pandaflow.core.policy import RetryRule as RetryRule
    from pandaflow.executors.outcome import Skip as Skip
    from pandaflow.executors.payload import current_job as current_job
    from pandaflow.hooks import Transition as Transition
    from pandaflow.workflows import Workflow as Workflow
    from pandaflow.workflows import workflow as workflow

__version__ = "0.1.0"

_HOME = {
    "pandaflow.authoring.commands": "command",
    "pandaflow.authoring.job_graphs": "job_graph ref",
    "pandaflow.authoring.shapes": "after concat cross loop scatter when",
    "pandaflow.authoring.sources": "files items stream",
    "pandaflow.authoring.tasks": "task",
    "pandaflow.client": "Run attach resume runs",
    "pandaflow.hooks": "Transition",
    "pandaflow.core.brokerage": "Site",
    "pandaflow.core.errors": (
        "DataError InvalidTransition PandaflowError RunFailed RunLocked RunNotFound SiteError "
        "StoreError StoreUnavailable WorkflowError"
    ),
    "pandaflow.core.model": "Failure File Resources",
    "pandaflow.core.policy": "Retry RetryRule",
    "pandaflow.executors.outcome": "Skip",
    "pandaflow.executors.payload": "current_job",
    "pandaflow.workflows": "Workflow workflow",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}
_MODULES = frozenset({"executors", "hpo", "testing"})

__all__ = sorted([*_WHERE, "executors", "hpo"])  # pyright: ignore[reportUnsupportedDunderAll]


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
