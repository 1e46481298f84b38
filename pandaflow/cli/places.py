"""Executors by name, as ``--executor`` spells them: ``local``, ``threads``, ``dask:ADDRESS``."""

from __future__ import annotations

from typing import Any

from pandaflow.core.errors import SiteError, WorkflowError

GROUP = "pandaflow.executors"
BUILT_IN = ("local", "threads", "sync", "dask:ADDRESS")


def parse_executor(text: str | None, workers: int | None) -> Any:
    """Return the executor that ``text`` names; None: worker processes here.

    Parameters
    ----------
    text : str or None
        ``local`` (processes), ``threads``, ``sync`` (in this process, one job at a time),
        ``dask:ADDRESS``, or ``NAME[:ARGUMENT]`` of an entry point in ``pandaflow.executors``.
    workers : int or None
        Only for ``local`` and ``threads``.

    Raises
    ------
    WorkflowError
        Nothing has that name, or ``workers`` makes no sense there.
    """
    name, _, argument = (text or "local").partition(":")
    if name in ("local", "threads", "sync"):
        return _local(name, argument, workers)
    if workers is not None:
        raise WorkflowError(f"--workers is for local and threads; {name!r} has its own workers")
    return _named(name, argument)


def _local(name: str, argument: str, workers: int | None) -> Any:
    from pandaflow.executors import Local

    if argument:
        raise WorkflowError(f"--executor {name}: takes no {argument!r}; use --workers N")
    if name == "sync":
        if workers:
            raise WorkflowError("--executor sync runs one job at a time; leave out --workers")
        return Local(workers=0)
    return Local(workers=workers, processes=name == "local")


def _named(name: str, argument: str) -> Any:
    if name == "dask":
        from pandaflow.executors import Dask

        if not argument:
            raise WorkflowError("--executor dask needs an address: dask:tcp://host:8786")
        return Dask(argument)
    from importlib.metadata import entry_points  # slow to import

    found = entry_points(group=GROUP, name=name)
    if not found:
        others = [point.name for point in entry_points(group=GROUP)]
        known = ", ".join(dict.fromkeys([*BUILT_IN, *sorted(set(others) - {"local", "dask"})]))
        raise WorkflowError(f"no executor {name!r}: use one of {known}")
    made = next(iter(found)).load()
    try:
        return made(argument) if argument else made()
    except TypeError as error:
        raise SiteError(f"executor {name!r} cannot be made of {argument!r}: {error}") from error
