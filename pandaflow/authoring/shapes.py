"""Ways to join collections: products, barriers, flattened lists, conditions, loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from pandaflow.authoring.arguments import Arguments
from pandaflow.authoring.collections import (
    After,
    Collection,
    ConcatCollection,
    CrossCollection,
    Placed,
)
from pandaflow.authoring.sources import items, value_of
from pandaflow.authoring.tasks import Task
from pandaflow.authoring.trace import Trace, active_trace
from pandaflow.core.datasets import makers
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import (
    Choice,
    Dataset,
    Input,
    LoopEnd,
    LoopSpec,
    Output,
    Scattered,
    Source,
    TaskSpec,
)
from pandaflow.core.signature import UNKNOWN
from pandaflow.core.template import Slot
from pandaflow.options import Options, name_of


def as_collection(value: Any, what: str) -> Collection:
    """Return ``value`` as a collection: lists and ranges become items."""
    if isinstance(value, Collection):
        return value
    if isinstance(value, list | tuple | range):
        return items(value)
    raise WorkflowError(f"{what} takes datasets and outputs of tasks, not {type(value).__name__}")


def cross(*collections: Any) -> CrossCollection:
    """Return the product of collections; the last varies fastest.

    Mapping over it gives tuples; ``f(*pf.cross(a, b))`` gives the parts as two arguments.
    """
    if len(collections) < 2:
        raise WorkflowError("pf.cross takes two collections or more")
    return CrossCollection(tuple(as_collection(c, "pf.cross") for c in collections))


def concat(*collections: Any) -> ConcatCollection:
    """Return collections one after the other, as one collection."""
    return ConcatCollection(tuple(as_collection(c, "pf.concat") for c in collections))


def after(*collections: Any) -> After:
    """Make a barrier: passed as an extra argument to a task, its jobs wait for all of these.

    Examples
    --------
    >>> import pandaflow as pf
    >>> @pf.workflow
    ... def two_steps(data, first, second):
    ...     return second(data, pf.after(first(data)))
    """
    return After(tuple(as_collection(c, "pf.after") for c in collections))


def scatter(collection: Any) -> Placed:
    """Flatten jobs that each return a list: whoever maps over it gets the lists' items."""
    trace = active_trace("pf.scatter")
    place = collection.dataset(trace) if isinstance(collection, Placed) else None
    if not isinstance(place, Output):
        raise WorkflowError("pf.scatter takes the output of a task whose jobs return lists")
    tasks = trace.tasks if place.task >= 0 else cast(dict[int, TaskSpec], trace.body)
    tasks[place.task] = replace(tasks[place.task], scatters=True)
    inner = collection.type
    args: tuple[Any, ...] = getattr(inner, "__args__", ())
    kind = args[0] if len(args) == 1 else UNKNOWN
    return Placed(f"scatter({collection.label})", Scattered(place.task), length=None, type=kind)


def when(condition: Any, then: Any, otherwise: Any = None) -> Any:
    """Choose by a value that is known only when the workflow runs.

    Parameters
    ----------
    condition : output of a task with one job, or bool
        Its truth decides.
    then, otherwise : output, callable without arguments, or plain value
        A callable is traced at once, and the tasks it calls run only if its branch is
        taken; so do tasks called before that nobody else needs.
    """
    if isinstance(condition, bool):
        chosen = then if condition else otherwise
        return chosen() if callable(chosen) else chosen
    trace = active_trace("pf.when")
    if not isinstance(condition, Collection) or not condition.single:
        raise WorkflowError(
            "pf.when: the condition must be one value: the output of a task with one job "
            "(n_jobs=1, or called on values)"
        )
    gate = _gate(trace, condition, "when", _truth)
    branches = [_branch(trace, gate, wanted, b) for wanted, b in ((True, then), (False, otherwise))]
    for wanted, (branch, made) in zip((True, False), branches, strict=True):
        _guard_exclusive(trace, branch, made, (gate, wanted), branches)
    first, second = branches[0][0], branches[1][0]
    single = first.single and second.single
    length = first.length if first.length == second.length else None
    place = Choice(gate, first.dataset(trace), second.dataset(trace))
    return Placed(f"when({condition.label})", place, length=length, single=single)


def _truth(value: Any) -> bool:
    return bool(value)


def _gate(trace: Trace, value: Collection, name: str, test: Callable[..., Any]) -> int:
    """Add a task whose one job tells the truth of ``test(value)``."""
    options = Options(name=f"{name}({value.label})".replace("[", "(").replace("]", ")"))
    judge = Task(test, options)
    mode = "single" if value.single else "whole"
    call = Arguments(judge, trace)
    call._inputs.append(Input(value.dataset(trace), cast(Any, mode)))
    call._args = (Slot(0),)
    place = cast(Output, call.place()._place)
    tasks = trace.tasks if trace.body is None else trace.body
    tasks[place.task] = replace(tasks[place.task], gate=True, internal=True)
    return place.task


def _branch(trace: Trace, gate: int, wanted: bool, branch: Any) -> tuple[Collection, set[int]]:
    tasks = trace.tasks if trace.body is None else trace.body
    before = set(tasks)
    if callable(branch) and not isinstance(branch, Collection):
        outer, trace.guards = trace.guards, (*trace.guards, (gate, wanted))
        try:
            branch = branch()
        finally:
            trace.guards = outer
    made = set(tasks) - before
    if not isinstance(branch, Collection):
        branch = value_of(branch)
    return branch, made


def _guard_exclusive(
    trace: Trace,
    branch: Collection,
    made: set[int],
    guard: tuple[int, bool],
    branches: list[tuple[Collection, set[int]]],
) -> None:
    """Guard tasks called before that only this branch needs."""
    tasks = trace.tasks if trace.body is None else trace.body
    mine = _ancestors(tasks, branch.dataset(trace))
    others = set(_ancestors(tasks, Output(guard[0])))
    for other, _ in branches:
        if other is not branch:
            others |= _ancestors(tasks, other.dataset(trace))
    exclusive = mine - others - made
    for number in sorted(exclusive, key=abs, reverse=True):
        users = {t.id for t in tasks.values() if number in _reads(t)}
        if users <= exclusive and guard not in tasks[number].guards:
            tasks[number] = replace(tasks[number], guards=(*tasks[number].guards, guard))
        else:
            exclusive.discard(number)


def _reads(spec: TaskSpec) -> set[int]:
    datasets = [given.dataset for given in spec.inputs] + list(spec.after)
    return {number for dataset in datasets for number in makers(dataset)}


def _ancestors(tasks: Mapping[int, TaskSpec], dataset: Dataset) -> set[int]:
    seen: set[int] = set()
    todo = [t for t in makers(dataset) if t in tasks]
    while todo:
        number = todo.pop()
        if number not in seen:
            seen.add(number)
            todo += [t for t in _reads(tasks[number]) if t in tasks]
    return seen


def loop(
    body: Callable[[Any], Any],
    state: Any,
    until: Callable[[Any], Any] | None = None,
    max_iterations: int = 100,
) -> Placed:
    """Run ``body`` on its own output until ``until(state)`` is true.

    Parameters
    ----------
    body : callable
        A task, a workflow or a function that calls tasks: takes the state, returns the new.
        It is traced once; every iteration gets tasks of its own when the run comes to it.
    state : output, dataset or plain value
        The first state. A plain value is one value.
    until : callable or None
        A plain function (or task) of the state, run as a job after each iteration.
    max_iterations : int
        Stop after so many in any case.

    Returns
    -------
    Collection
        The last state.
    """
    trace = active_trace("pf.loop")
    if type(max_iterations) is not int or max_iterations < 1:
        raise WorkflowError(f"pf.loop: max_iterations={max_iterations!r} must be at least 1")
    first = state if isinstance(state, Collection) else value_of(state)
    name = trace.unique(f"loop-{name_of(cast(Any, getattr(body, 'function', body)))}")
    template = _trace_body(trace, name, body, first, until)
    number = len(trace.loops) if trace.body is None else trace.template_id()
    loops = trace.loops if trace.body is None else trace.body_loops
    loops.append(
        LoopSpec(
            id=number,
            name=name,
            state=first.dataset(trace),
            max_iterations=max_iterations,
            single=first.single,
            guards=trace.guards,
            **template,
        )
    )
    length = first.length if first.single else None
    return Placed(name, LoopEnd(number), length=length, single=first.single)


def _trace_body(
    trace: Trace,
    name: str,
    body: Callable[[Any], Any],
    first: Collection,
    until: Callable[[Any], Any] | None,
) -> dict[str, Any]:
    """Call the body once on a stand-in for the state; return the template that it describes."""
    state_id = trace.template_id()
    outer = (trace.body, trace.body_loops, trace.guards)
    trace.body, trace.body_loops, trace.guards = dict(outer[0] or {}), [], ()
    before = set(trace.body)
    try:
        state = Placed("state", Source(state_id), length=first.length, single=first.single)
        result = body(state)
        _check_state(name, first, result)
        test: Any = getattr(until, "function", until)
        gate = _gate(trace, result, "until", test) if until is not None else None
        return {
            "state_id": state_id,
            "body": tuple(spec for key, spec in trace.body.items() if key not in before),
            "loops": tuple(trace.body_loops),
            "gate": gate,
            "result": result.dataset(trace),
        }
    finally:
        if outer[0] is not None:
            _keep_scatters(outer[0], trace.body)
        trace.body, trace.body_loops, trace.guards = outer


def _keep_scatters(outer: dict[int, TaskSpec], inner: Mapping[int, TaskSpec]) -> None:
    """Note in a loop's body what an inner body, which has a copy of it, scatters of its tasks."""
    for number, spec in outer.items():
        if inner[number].scatters:
            outer[number] = replace(spec, scatters=True)


def _check_state(name: str, first: Collection, result: Any) -> None:
    if not isinstance(result, Collection):
        raise WorkflowError(f"{name}: the body must return the output of a task")
    if result.single != first.single:
        kinds = {True: "one value", False: "a collection"}
        raise WorkflowError(
            f"{name}: the state begins as {kinds[first.single]} and the body returns "
            f"{kinds[result.single]}; they must be alike"
        )
