"""Where things are: which executors a run gets, which store, which folder for results."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pandaflow.config import read_settings
from pandaflow.core.errors import WorkflowError
from pandaflow.store.port import Serving

if TYPE_CHECKING:
    from pandaflow.grid.runs.store import ServerStore
    from pandaflow.ports import Executor
    from pandaflow.store.port import RunStore
    from pandaflow.store.sql import SqlStore


def open_store(store: Any = None) -> RunStore:
    """Return a store from a URL, a path, a store or nothing (the default).

    A URL that begins with ``https://`` is a server's, at which runs were left.
    """
    found: Any = read_settings().store if store is None else store
    if is_open_server(found):
        opened: RunStore = found
        return opened
    return open_server(found) if is_server(found) else open_database(found)


def open_database(store: Any = None) -> SqlStore:
    """Return a store in a database, where runs are driven and studies are kept.

    Raises
    ------
    WorkflowError
        It is a server.
    """
    from pandaflow.store.sql import SqlStore, open_store

    if isinstance(store, SqlStore):
        return store
    found = read_settings().store if store is None else store
    if is_open_server(found) or is_server(found):
        raise WorkflowError(
            "a server has runs only, and drives none: give a database by store=, such as "
            "sqlite:///.pandaflow/pandaflow.db"
        )
    return open_store(found)


def is_open_server(store: Any) -> bool:
    """Tell whether something is a store behind a server."""
    return isinstance(store, Serving)


def is_server(store: Any) -> bool:
    """Tell whether a store is named by a server's address."""
    return isinstance(store, str) and store.startswith(("https://", "http://"))


def open_server(url: str, vo: str | None = None, ca: str | Path | None = None) -> ServerStore:
    """Return a server as a store of runs.

    Parameters
    ----------
    url : str
    vo : str, optional
        Virtual organisation to act for; default: the only one, or ``PANDAFLOW_VO``.
    ca : str or Path, optional
        Certificates that the server's is checked with; default: ``PANDAFLOW_CA``, else the
        system's.

    Raises
    ------
    WorkflowError
        Packages are missing.
    StoreError
        The address is no good, or the certificates are.
    """
    try:
        from pandaflow.grid.runs.store import ServerStore
    except ModuleNotFoundError as error:
        raise WorkflowError(
            f"a server needs {error.name}: pip install 'pandaflow[grid]'"
        ) from error
    return ServerStore(url, vo, ca or os.environ.get("PANDAFLOW_CA") or None)


def place_of_run(
    store: Any = None,
    server: str | None = None,
    vo: str | None = None,
    ca: str | Path | None = None,
) -> SqlStore | Serving:
    """Return where a run goes: a database, or a server that is named as one or the other.

    Raises
    ------
    WorkflowError
        Both are given, or ``server`` is no address.
    """
    if store is not None and server is not None:
        raise WorkflowError("give store= or server=, not both: the server has its own store")
    if server is not None and not is_server(server):
        raise WorkflowError(f"server={server!r}: give its address, https://...")
    found: Any = server or (read_settings().store if store is None else store)
    if not is_server(found):
        opened: SqlStore | Serving = found if is_open_server(found) else open_database(found)
        return opened
    return open_server(found, vo, ca)


def check_left(executor: Any, executors: Any, callbacks: Any) -> None:
    """Refuse what would be promised in vain of a run that is left with a server.

    Raises
    ------
    WorkflowError
    """
    if executor is not None or executors:
        raise WorkflowError(
            "runners of the server drive the run, on executors of theirs: leave out executor= and "
            "executors=, or drive it here with executor=pf.executors.Grid(...) and no server="
        )
    if callbacks:
        raise WorkflowError(
            "callbacks are called where a run is driven, and a server's runners have none of "
            "yours: use run.events(follow=True)"
        )


def new_run_id(name: str) -> str:
    """Return an id for a run: the name and six hexadecimal digits."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:40] or "run"
    return f"{plain}-{uuid.uuid4().hex[:6]}"


def results_root(store: RunStore) -> str:
    """Return where a store's runs keep their results: as configured, else beside the database."""
    settings = read_settings()
    if settings.results is not None:
        return settings.results.rstrip("/")
    path: Path | None = getattr(store, "path", None)  # a server's folder is not ours
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
