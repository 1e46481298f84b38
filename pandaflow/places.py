"""Where things are: which executors a run gets, which store, which folder for results."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pandaflow.config import read_settings
from pandaflow.core.errors import WorkflowError

if TYPE_CHECKING:
    from pandaflow.ports import Executor
    from pandaflow.store.sql import SqlStore


def open_store(store: Any = None) -> SqlStore:
    """Return a store from a URL, a path, a store or nothing (the default)."""
    from pandaflow.store.sql import SqlStore, open_store

    return store if isinstance(store, SqlStore) else open_store(store)


def new_run_id(name: str) -> str:
    """Return an id for a run: the name and six hexadecimal digits."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40] or "run"
    return f"{plain}-{uuid.uuid4().hex[:6]}"


def results_root(store: SqlStore) -> str:
    """Return where a store's runs keep their results: as configured, else beside the database."""
    settings = read_settings()
    if settings.results is not None:
        return settings.results.rstrip("/")
    path = store.path
    return str((path.parent if path is not None else Path(".pandaflow")).resolve() / "results")


#: The executor that runs of this process share when they name none.
_default: dict[str, Any] = {}


def pick_executors(
    executor: Any = None, executors: Mapping[str, Any] | None = None
) -> dict[str, Executor]:
    """Return executors by name, the default first.

    Parameters
    ----------
    executor : executor, 'processes', 'threads', 'sync', address or name in ``executors``
    executors : mapping of str to executor
        Those that tasks name by ``executor="..."``.
    """
    named = {str(name): as_executor(value) for name, value in (executors or {}).items()}
    if isinstance(executor, str) and executor in named:
        return {executor: named.pop(executor), **named}
    return {"default": as_executor(executor), **named}


def as_executor(value: Any) -> Executor:
    """Return an executor from an object, a word or a Dask scheduler's address."""
    from pandaflow import executors

    if value is None or value == "processes":
        # Worker processes cost seconds to start, so runs of one process share them.
        made: Executor = _default.setdefault("local", executors.Local())
        return made
    if value == "threads":
        return executors.Local(processes=False)
    if value == "sync":
        return executors.Local(workers=0)
    if isinstance(value, str) and "://" in value:
        return executors.Dask(value)
    if hasattr(value, "open") and not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    if hasattr(value, "scheduler_address") or hasattr(value, "scheduler_info"):
        return executors.Dask(value)
    raise WorkflowError(
        f"executor={value!r}: give pf.executors.Local(...), pf.executors.Dask(...), 'processes', "
        "'threads', 'sync' or the address of a Dask scheduler"
    )
