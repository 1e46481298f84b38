"""Sub-workflows that join a run while it goes on: traced with ids of their own, as loop bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pandaflow.authoring.arguments import Arguments
from pandaflow.authoring.collections import Collection, Whole
from pandaflow.authoring.tasks import Task
from pandaflow.authoring.trace import ACTIVE, Trace
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Fragment, LoopSpec, Output, ResultShape, TaskSpec
from pandaflow.options import Options


class _Elsewhere(dict[int, TaskSpec]):
    """The run's own tasks, which a fragment can read and not change."""

    def __missing__(self, number: int) -> TaskSpec:
        raise WorkflowError(
            "pf.scatter of a task outside of the sub-workflow: scatter it in the run's own workflow"
        )


def trace_fragment(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], prefix: str
) -> tuple[Fragment, Mapping[str, bytes], str]:
    """Call ``function`` and return the sub-workflow that it described.

    Parameters
    ----------
    function : callable
        Calls tasks and returns one value of theirs, or a tuple, list or dict of such values.
    args, kwargs
        Plain values, and collections of the run that the fragment is to join.
    prefix : str
        Begins the names of all its tasks.

    Returns
    -------
    (Fragment, mapping of str to bytes, str)
        With the bytes that its tasks refer to by name, and the name of the task whose one job
        returns the result.

    Raises
    ------
    WorkflowError
        The result is not of that kind, or the function is at fault otherwise.
    """
    trace = Trace(prefix, tasks=_Elsewhere(), prefix=prefix, body={}, fragment=True)
    token = ACTIVE.set(trace)
    try:
        last = _result_task(trace, function(*args, **kwargs), prefix)
    finally:
        ACTIVE.reset(token)
    assert trace.body is not None
    tasks = {number: replace(spec, optional=True) for number, spec in trace.body.items()}
    shape = ResultShape(kind="dataset", dataset=Output(last), single=True)
    fragment = Fragment(
        tasks=tuple(tasks.values()),
        sources=tuple(trace.sources),
        loops=tuple(map(_optional, trace.body_loops)),
        result=shape,
    )
    return fragment, trace.blobs, tasks[last].name


def _optional(loop: LoopSpec) -> LoopSpec:
    body = tuple(replace(spec, optional=True) for spec in loop.body)
    return replace(loop, body=body, loops=tuple(map(_optional, loop.loops)))


def _result_task(trace: Trace, value: Any, prefix: str) -> int:
    """Return the task whose job gives the result; add one where no task of the fragment does."""
    value = _singles(value, prefix)
    assert trace.body is not None
    if isinstance(value, Collection):
        place = value.dataset(trace)
        if isinstance(place, Output) and place.task in trace.body:
            return place.task
    elif not trace.body and not trace.body_loops:
        raise WorkflowError(f"{prefix}: the sub-workflow calls no task")
    call = Arguments(Task(_same, Options(name="result")), trace)
    call.read((value,), {})
    made = call.place().dataset(trace)
    assert isinstance(made, Output)
    trace.body[made.task] = replace(trace.body[made.task], internal=True)
    return made.task


def _same(value: Any) -> Any:
    return value


def _singles(value: Any, prefix: str) -> Any:
    """Return ``value`` with plain containers, where all that it holds are single values."""
    if isinstance(value, list | tuple):
        parts = [_singles(part, prefix) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, Mapping):
        return {key: _singles(part, prefix) for key, part in value.items()}
    given = value.of if isinstance(value, Whole) else value
    if isinstance(given, Collection) and (given is not value or not given.single):
        raise WorkflowError(
            f"{prefix}: the sub-workflow must return one value, and {given} is a collection; "
            "reduce it with a task that takes it whole (n_jobs=1, or .all())"
        )
    return value
