"""Where jobs run. Each executor is imported when it is first named."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandaflow.executors.batch.systems import LSF, PBS, SGE, HTCondor, Slurm
    from pandaflow.executors.dask import Dask
    from pandaflow.executors.globus.executor import GlobusCompute
    from pandaflow.executors.grid.executor import Grid
    from pandaflow.executors.local import Local

__all__ = ["LSF", "PBS", "SGE", "Dask", "GlobusCompute", "Grid", "HTCondor", "Local", "Slurm"]

_BUILT_IN = {
    "Local": "pandaflow.executors.local",
    "Dask": "pandaflow.executors.dask",
    "GlobusCompute": "pandaflow.executors.globus.executor",
    "Grid": "pandaflow.executors.grid.executor",
    **dict.fromkeys(
        ("Slurm", "SGE", "PBS", "HTCondor", "LSF"), "pandaflow.executors.batch.systems"
    ),
}


def __getattr__(name: str) -> Any:
    """Import an executor by name: built-in, or third-party by entry point."""
    if name in _BUILT_IN:
        return getattr(import_module(_BUILT_IN[name]), name)
    if not name.startswith("_"):
        for entry in entry_points(group="pandaflow.executors"):
            if entry.name == name:
                return entry.load()
    raise AttributeError(f"no executor {name!r}; there are {', '.join(_BUILT_IN)}")


def __dir__() -> list[str]:
    return sorted(
        {*_BUILT_IN, *(entry.name for entry in entry_points(group="pandaflow.executors"))}
    )
