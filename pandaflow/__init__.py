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
    from pandaflow.authoring import (
        after,
        concat,
        cross,
        job_graph,
        loop,
        ref,
        scatter,
        task,
        when,
    )
    from pandaflow.client import Run, Transition, attach, resume, runs
    from pandaflow.commandline import command
    from pandaflow.core.errors import (
        DataError,
        InvalidTransition,
        PandaflowError,
        RunFailed,
        RunLocked,
        RunNotFound,
        SiteError,
        StoreError,
        WorkflowError,
    )
    from pandaflow.core.model import Failure, File, Resources, Retry, RetryRule, Site
    from pandaflow.executors.outcome import Skip
    from pandaflow.executors.payload import current_job
    from pandaflow.sources import files, items, stream
    from pandaflow.workflows import Workflow, workflow

__version__ = "0.1.0"

_HOME = {
    "pandaflow.authoring": "after concat cross job_graph loop ref scatter task when",
    "pandaflow.client": "Run Transition attach resume runs",
    "pandaflow.commandline": "command",
    "pandaflow.core.errors": (
        "DataError InvalidTransition PandaflowError RunFailed RunLocked RunNotFound SiteError "
        "StoreError WorkflowError"
    ),
    "pandaflow.core.model": "Failure File Resources Retry RetryRule Site",
    "pandaflow.executors.outcome": "Skip",
    "pandaflow.executors.payload": "current_job",
    "pandaflow.sources": "files items stream",
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
