"""Specifications that strangers send: those that a store could not keep, or an engine not hold.

They are parsed by the store's own parser; payloads and items are names here, and stay so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pandaflow.core.engine import Engine
from pandaflow.core.errors import PandaflowError, StoreError, WorkflowError
from pandaflow.core.growth import all_tasks
from pandaflow.core.model import SourceSpec, TaskSpec, WorkflowSpec
from pandaflow.grid.runs.messages import MOST_ITEMS
from pandaflow.grid.runs.store import steered
from pandaflow.store.spec import parse_workflow

#: What an engine may say of a workflow whose parts do not fit together.
_UNFIT = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError)
_LONGEST = 1_000
_MOST_NUMBERS = 2**31


def parse_left(spec: Mapping[str, Any], run: str) -> WorkflowSpec:
    """Return a workflow that somebody leaves here.

    Raises
    ------
    WorkflowError
        With the reason.
    """
    try:
        found = parse_workflow(spec, run)
    except (StoreError, RecursionError) as error:
        raise WorkflowError(f"no workflow of this PandaFlow: {_first_line(error)}") from error
    if found.steerers:
        raise WorkflowError(steered(found))
    tasks = list(tasks_of(found))
    _check_names([found.name, *(task.name for task in tasks)])
    _check_numbers([source.id for source in found.sources], "source")
    _check_numbers([task.id for task in found.tasks], "task")
    _check_unique([task.name for task in found.tasks], "task")
    for source in found.sources:
        _check_source(source)
    for task in tasks:
        if not 0 <= (task.n_static or 0) <= MOST_ITEMS:
            raise WorkflowError(f"task {task.name!r} has more than {MOST_ITEMS:,} jobs")
    _check_engine(found)
    return found


def tasks_of(spec: WorkflowSpec) -> Iterator[TaskSpec]:
    """Yield all tasks, those of loops' bodies included."""
    yield from spec.tasks
    for loop in spec.loops:
        yield from all_tasks(loop)


def blobs_of(spec: WorkflowSpec) -> set[str]:
    """Return the names of what a run brings along."""
    return {task.payload for task in tasks_of(spec)} | {s.blob for s in spec.sources if s.blob}


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not (0 < len(name) <= _LONGEST and name.isprintable()):
            raise WorkflowError(f"{name[:50]!r} is no name: 1 to {_LONGEST} printable characters")


def _check_numbers(numbers: list[int], what: str) -> None:
    _check_unique(numbers, what)
    if not all(0 <= number < _MOST_NUMBERS for number in numbers):
        raise WorkflowError(f"the number of a {what} is out of range")


def _check_unique(names: Iterable[object], what: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise WorkflowError(f"there are {count} {what}s {name!r}")


def _check_source(source: SourceSpec) -> None:
    known = {"files": len(source.files)}
    if source.kind == "range":
        known["range"] = _length(source)
    if not 0 <= source.n <= MOST_ITEMS or source.n != known.get(source.kind, source.n):
        raise WorkflowError(
            f"source {source.name[:50]!r} has {source.n} items: they must be as many as it says, "
            f"and at most {MOST_ITEMS:,}"
        )
    if source.kind == "items" and source.n and not source.blob:
        raise WorkflowError(f"source {source.name[:50]!r} does not say where its items are")


def _length(source: SourceSpec) -> int:
    try:
        return len(range(*source.bounds))
    except (ValueError, OverflowError):
        return -1


def _check_engine(spec: WorkflowSpec) -> None:
    """Refuse what refers to tasks and sources that are not there."""
    try:
        Engine(spec)
    except (*_UNFIT, RecursionError, PandaflowError) as error:
        raise WorkflowError(
            f"the workflow's parts do not fit together ({type(error).__name__}: "
            f"{_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
