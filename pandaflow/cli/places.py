"""Executors by name, as ``--executor`` spells them: ``local``, ``dask:ADDRESS``, ``slurm:main``.

``[NAME=]WHERE``: with a name it is for tasks that name an executor. ``WHERE`` is one of

* ``local``, ``threads``, ``sync``
* ``dask:ADDRESS``
* ``slurm:PARTITION``, ``sge:QUEUE``, ``pbs:QUEUE``, ``lsf:QUEUE``, ``htcondor``, with settings
  behind a question mark: ``slurm:main?walltime=2h&cores=16``
* ``globus:ENDPOINT_ID``, with settings, and options of the endpoint's template:
  ``globus:4b116d3c-1703-4f8f-9f6f-39921e5864df?slots=64&config.ACCOUNT=m1234``
* ``grid:URL`` of a pool's server: ``grid:https://pool.example.org:8443?queue=CERN``
* ``FILE.py:NAME`` or ``MODULE:NAME``: an executor, or a function that makes one
* ``NAME[:ARGUMENT]`` of an installed one
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from pandaflow.core.errors import SiteError, WorkflowError
from pandaflow.core.quantities import parse_seconds

GROUP = "pandaflow.executors"
LOCAL = ("local", "threads", "sync")
SYSTEMS: Mapping[str, str] = {
    "slurm": "Slurm",
    "sge": "SGE",
    "pbs": "PBS",
    "htcondor": "HTCondor",
    "lsf": "LSF",
}
BUILT_IN = (
    *LOCAL,
    "dask:ADDRESS",
    "slurm:PARTITION",
    "sge:QUEUE",
    "pbs:QUEUE",
    "lsf:QUEUE",
    "htcondor",
    "globus:ENDPOINT_ID",
    "grid:URL",
    "FILE.py:NAME",
)
#: Batch jobs of one core fit anywhere and start soon; ten of them are no burden for a site.
MAX_NODES = 10

_NAMED = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class Places:
    """Where to run.

    Attributes
    ----------
    executor : executor or None
        For tasks that name none; None: worker processes here.
    executors : dict of str to executor
        For tasks that name one.
    """

    executor: Any = None
    executors: dict[str, Any] = field(default_factory=dict)

    def all(self) -> list[Any]:
        """Return all that there are."""
        return [each for each in (self.executor, *self.executors.values()) if each is not None]


def parse_places(texts: Sequence[str], workers: int | None) -> Places:
    """Parse what ``--executor`` said, each time that it was given.

    Parameters
    ----------
    texts : sequence of str
        ``[NAME=]WHERE`` each, at most one of them without a name; none: worker processes here.
    workers : int or None
        For those that are ``local`` or ``threads``.

    Raises
    ------
    WorkflowError
        Two for the same tasks, or one of them is no good.
    """
    said: dict[str, str] = {}
    for text in texts:
        found = _NAMED.fullmatch(text)
        name, where = found.groups() if found else ("", text)
        if name in said:
            raise WorkflowError(_twice(name, said[name], where))
        said[name] = where
    if not any(name in said for name in ("", "default")):
        said[""] = "local"
    there = workers is not None and any(_head(where) in LOCAL for where in said.values())
    made = {
        name: parse_executor(where, workers if not there or _head(where) in LOCAL else None)
        for name, where in said.items()
    }
    return Places(made.pop("", None), made)


def _twice(name: str, one: str, other: str) -> str:
    if name:
        return f"--executor {name}=... is given twice"
    return (
        f"--executor {one} and --executor {other}: one is for tasks that name no executor, the "
        f"other needs a name, as in --executor NAME={other}"
    )


def _head(where: str) -> str:
    return re.split("[:?]", where, maxsplit=1)[0]


def parse_executor(text: str | None, workers: int | None) -> Any:
    """Return the executor that ``text`` names; None: worker processes here.

    Parameters
    ----------
    text : str or None
        As this module's documentation says, without a name before it.
    workers : int or None
        Only for ``local`` and ``threads``.

    Raises
    ------
    WorkflowError
        Nothing has that name, a setting is no good, or ``workers`` makes no sense there.
    """
    where = text or "local"
    head = _head(where)
    if head in LOCAL:
        return _local(head, where.partition(":")[2], workers)
    if workers is not None:
        raise WorkflowError(f"--workers is for local and threads; {where!r} has its own workers")
    if head in SYSTEMS:
        return _batch(where)
    if head == "globus":
        return _globus(where)
    if head == "grid":
        return _grid(where)
    file, _, name = where.rpartition(":")
    if where.endswith(".py") or file.endswith(".py"):
        return _from_file(where, file, name)
    return _installed(where)


def _local(name: str, argument: str, workers: int | None) -> Any:
    from pandaflow.executors import Local

    if argument:
        raise WorkflowError(f"--executor {name}: takes no {argument!r}; use --workers N")
    if name == "sync":
        if workers:
            raise WorkflowError("--executor sync runs one job at a time; leave out --workers")
        return Local(workers=0)
    return Local(workers=workers, processes=name == "local")


# --- batch systems ----------------------------------------------------------------------


def _batch(where: str) -> Any:
    """Return an executor from ``slurm:main?walltime=2h&cores=16``."""
    from pandaflow import executors

    place, _, query = where.partition("?")
    system, _, queue = place.partition(":")
    try:
        given = _settings(query)
        settings = {"max_nodes": max(MAX_NODES, given.get("min_nodes", 0)), **given}
        if system == "htcondor" and queue:
            raise WorkflowError(f"HTCondor has no queues: leave {queue!r} out")
        arguments = [queue] if queue else []
        return getattr(executors, SYSTEMS[system])(*arguments, **settings)
    except WorkflowError as error:
        raise WorkflowError(f"--executor {where}: {error}") from error


def _settings(query: str) -> dict[str, Any]:
    """Parse ``NAME=VALUE&NAME=VALUE``; ``%26`` stands for ``&`` and ``%25`` for ``%``."""
    return {name: _value(name, texts) for name, texts in _pairs(query).items()}


def _pairs(query: str) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise WorkflowError(f"{pair!r}: write settings as ?NAME=VALUE&NAME=VALUE")
        said.setdefault(name, []).append(unquote(value))
    return said


def _value(name: str, texts: list[str]) -> Any:
    """Return a setting as what it is; one that is unknown is refused where all are known."""
    from pandaflow.executors.batch.settings import BatchSettings

    known = BatchSettings.__dataclass_fields__.get(name)
    kind = "str" if known is None else str(known.type)
    if kind.startswith("tuple[str"):
        return texts
    if name == "env":
        return dict(_variable(text) for text in texts)
    if len(texts) > 1:
        raise WorkflowError(f"{name} is given twice")
    if kind.startswith(("tuple", "Mapping")):
        raise WorkflowError(
            f"{name} is too much for one line: make the executor in a file and give "
            "--executor FILE.py:NAME"
        )
    return _plain(name, kind, texts[0])


def _plain(name: str, kind: str, text: str) -> Any:
    if kind.startswith("float"):
        return parse_seconds(text, name)
    if kind.startswith("bool"):
        return _truth(name, text)
    if kind.startswith("int") and name not in ("memory", "disk"):  # these have units
        try:
            return int(text)
        except ValueError:
            raise WorkflowError(f"{name}={text!r}: give a whole number") from None
    return text


def _truth(name: str, text: str) -> bool:
    words = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in words:
        raise WorkflowError(f"{name}={text!r}: give yes or no")
    return words[text.lower()]


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise WorkflowError(f"env={text!r}: write env=NAME=VALUE")
    return name, value


# --- Globus Compute, the grid -----------------------------------------------------------

_GLOBUS_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("slots", "nodes", "cores"), "int"),
    **dict.fromkeys(("request_bytes", "result_bytes", "request_tasks"), "int"),
    **dict.fromkeys(("task_timeout", "poll_seconds", "heartbeat"), "float"),
}
_GRID_KINDS: Mapping[str, str] = {"slots": "int", "wait": "float"}
_GRID_LISTS = frozenset({"near", "tags", "requirements"})


def _globus(where: str) -> Any:
    """Return an executor from ``globus:ENDPOINT_ID?slots=64&config.ACCOUNT=m1234``."""
    from pandaflow.executors import GlobusCompute

    place, _, query = where.partition("?")
    given: dict[str, Any] = {}
    config: dict[str, Any] = {}
    try:
        for name, texts in _pairs(query).items():
            if name.startswith("config."):
                config[name.removeprefix("config.")] = _json_or_text(_once(name, texts))
            else:
                given[name] = _plain(name, _GLOBUS_KINDS.get(name, "str"), _once(name, texts))
        endpoint = place.partition(":")[2]
        return GlobusCompute(endpoint, user_endpoint_config=config, **given)
    except WorkflowError as error:
        raise WorkflowError(f"--executor {where}: {error}") from error


def _grid(where: str) -> Any:
    """Return an executor from ``grid:URL?queue=CERN&tags=a&tags=b``."""
    from pandaflow.executors import Grid

    place, _, query = where.partition("?")
    try:
        given: dict[str, Any] = {
            name: texts
            if name in _GRID_LISTS
            else _plain(name, _GRID_KINDS.get(name, "str"), _once(name, texts))
            for name, texts in _pairs(query).items()
        }
        return Grid(place.partition(":")[2], **given)
    except WorkflowError as error:
        raise WorkflowError(f"--executor {where}: {error}") from error


def _once(name: str, texts: list[str]) -> str:
    if len(texts) > 1:
        raise WorkflowError(f"{name} is given twice")
    return texts[0]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- the user's own ---------------------------------------------------------------------


def _from_file(where: str, file: str, name: str) -> Any:
    from pandaflow.cli.loading import import_file

    if where.endswith(".py"):
        file, name = where, ""
    path = Path(file)
    if not path.is_file():
        raise WorkflowError(f"--executor {where}: no file {file!r}; give FILE.py:NAME")
    return _from_module(where, import_file(path.resolve()), name)


def _from_module(where: str, module: object, name: str) -> Any:
    """Return the executor that a module calls ``name``, or makes in a function of that name."""
    from pandaflow.cli.loading import calling

    names = [each for each in vars(module) if not each.startswith("_")]
    if name not in names and name:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {_some(module, names)}"
        raise WorkflowError(f"--executor {where}: there is no {name!r}; {hint}")
    if not name:
        raise WorkflowError(f"--executor {where}: name the executor; it has {_some(module, names)}")
    value = getattr(module, name)
    if not _is_executor(value) and callable(value):
        value = calling(f"--executor {where}", value)
    return _checked(where, value)


def _some(module: object, names: Sequence[str]) -> str:
    """Return the executors of a module, for people."""
    found = sorted(name for name in names if _is_executor(getattr(module, name)))
    return ", ".join(found) or "no executor; write NAME = pf.executors.Slurm(...) there"


def _is_executor(value: object) -> bool:
    return hasattr(value, "open") and not isinstance(value, type | str | Path | ModuleType)


def _checked(where: str, value: object) -> Any:
    from pandaflow.places import as_executor

    words = isinstance(value, str) or hasattr(value, "scheduler_info")
    if value is not None and (words or _is_executor(value)):
        return as_executor(value)
    raise WorkflowError(
        f"--executor {where}: {value!r} is no executor; name one, such as "
        "pf.executors.Slurm(...), or a function without arguments that returns one"
    )


# --- what is installed ------------------------------------------------------------------


def _installed(where: str) -> Any:
    name, _, argument = where.partition(":")
    if name == "dask":
        from pandaflow.executors import Dask

        if not argument:
            raise WorkflowError("--executor dask needs an address: dask:tcp://host:8786")
        return Dask(argument)
    from importlib.metadata import entry_points  # slow to import

    found = entry_points(group=GROUP, name=name)
    if found:
        return _load(next(iter(found)), name, argument)
    if argument and _MODULE.fullmatch(name) and _importable(name):
        return _from_module(where, _imported(where, name), argument)
    others = {point.name for point in entry_points(group=GROUP)} - {"local", "dask"}
    known = ", ".join(dict.fromkeys([*BUILT_IN, *sorted(others)]))
    close = difflib.get_close_matches(name, [*LOCAL, *SYSTEMS, "dask", *others], 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise WorkflowError(f"no executor {name!r}: use one of {known}{hint}")


def _load(point: Any, name: str, argument: str) -> Any:
    made = point.load()
    try:
        return made(argument) if argument else made()
    except TypeError as error:
        raise SiteError(f"executor {name!r} cannot be made of {argument!r}: {error}") from error


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # the package around it is not there, or is no package
        return False


def _imported(where: str, name: str) -> object:
    from pandaflow.cli.loading import calling

    return calling(f"--executor {where}", lambda: importlib.import_module(name))
