"""Specifications that strangers send: those that a store could not keep, or an engine not hold.

They are parsed by the store's own parser; payloads and items are names here, and stay so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pandaflow.core.datasets import atoms
from pandaflow.core.engine import Engine
from pandaflow.core.errors import PandaflowError, StoreError, WorkflowError
from pandaflow.core.growth import all_tasks
from pandaflow.core.model import (
    Choice,
    Dataset,
    LoopEnd,
    LoopSpec,
    Output,
    ResultShape,
    Scattered,
    Source,
    SourceSpec,
    TaskSpec,
    WorkflowSpec,
)
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
    _check_parts(found)
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


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a task, or the body of a loop, may refer to; gates may come after what they guard."""

    sources: frozenset[int]
    tasks: frozenset[int]
    loops: frozenset[int]
    gates: frozenset[int]

    def check(self, whose: str, datasets: Iterable[Dataset]) -> None:
        for dataset in datasets:
            for atom in _atoms(dataset):
                if not self._has(atom):
                    raise WorkflowError(f"{whose[:50]!r} reads {atom}, which is not there")

    def _has(self, atom: Dataset) -> bool:
        match atom:
            case Source(id=number):
                return number in self.sources
            case Output(task=number) | Scattered(task=number):
                return number in self.tasks
            case Choice(gate=number):
                return number in self.gates
            case LoopEnd(loop=number):
                return number in self.loops
        return False

    def inside(self, loop: LoopSpec) -> _Scope:
        body = {task.id for task in loop.body}
        return _Scope(
            self.sources | {loop.state_id},
            self.tasks | body,
            self.loops | {inner.id for inner in loop.loops},
            self.gates | body,
        )


def _check_references(spec: WorkflowSpec) -> None:
    """Refuse what refers to a source, a task or a loop that is not there, or comes later."""
    tasks = frozenset(task.id for task in spec.tasks)
    scope = _Scope(
        frozenset(source.id for source in spec.sources),
        tasks,
        frozenset(loop.id for loop in spec.loops),
        tasks,
    )
    for task in spec.tasks:
        before = frozenset(number for number in scope.tasks if number < task.id)
        _check_task(task, replace(scope, tasks=before, gates=scope.tasks))
    for loop in spec.loops:
        _check_loop(loop, scope)
    scope.check("the result", _datasets(spec.result))


def _check_task(task: TaskSpec, scope: _Scope) -> None:
    scope.check(task.name, [*(slot.dataset for slot in task.inputs), *task.after])
    if not all(gate in scope.gates for gate, _ in task.guards):
        raise WorkflowError(f"{task.name[:50]!r} is guarded by a task that is not there")


def _check_loop(loop: LoopSpec, scope: _Scope) -> None:
    inside = scope.inside(loop)
    scope.check(loop.name, [loop.state])
    inside.check(loop.name, [loop.result])
    for task in loop.body:
        _check_task(task, inside)
    for inner in loop.loops:
        _check_loop(inner, inside)


def _atoms(dataset: Dataset) -> Iterator[Dataset]:
    """Yield what a dataset is made of, both sides of choices included."""
    for atom in atoms(dataset):
        yield atom
        if isinstance(atom, Choice):
            yield from _atoms(atom.then)
            yield from _atoms(atom.otherwise)


def _datasets(shape: ResultShape) -> Iterator[Dataset]:
    if shape.dataset is not None:
        yield shape.dataset
    for part in shape.parts:
        yield from _datasets(part)


def _check_parts(spec: WorkflowSpec) -> None:
    """Refuse what an engine cannot hold."""
    try:
        _check_references(spec)
        Engine(spec)
    except WorkflowError:
        raise
    except (*_UNFIT, RecursionError, PandaflowError) as error:
        raise WorkflowError(
            f"the workflow's parts do not fit together ({type(error).__name__}: "
            f"{_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
