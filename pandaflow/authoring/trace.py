"""The workflow so far, while its function is called."""

from __future__ import annotations

import contextvars
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import cloudpickle

from pandaflow.authoring.collections import Collection, SourceCollection, Whole
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import (
    LoopSpec,
    ResultShape,
    SourceSpec,
    SteererSpec,
    TaskSpec,
    WorkflowSpec,
)

#: The workflow that is being written in this context, if any.
ACTIVE: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("trace", default=None)


@dataclass
class Trace:
    """The workflow so far, while its function is called.

    Tasks go to ``body`` where there is one, with negative ids: in loop bodies, and in fragments,
    which join a run that goes on. ``fragment`` says that sources and loops are a fragment's too.
    """

    name: str
    tasks: dict[int, TaskSpec] = field(default_factory=dict)
    sources: list[SourceSpec] = field(default_factory=list)
    loops: list[LoopSpec] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    streams: dict[int, Any] = field(default_factory=dict)
    guards: tuple[tuple[int, bool], ...] = ()
    prefix: str = ""
    steerers: list[SteererSpec] = field(default_factory=list)
    body: dict[int, TaskSpec] | None = None
    fragment: bool = False
    body_loops: list[LoopSpec] = field(default_factory=list)
    _adopted: dict[int, tuple[int, Collection]] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _lengths: dict[int, int | None] = field(default_factory=dict)
    _negative: int = 0

    def next_id(self) -> int:
        """Return the id of the task to be added."""
        return len(self.tasks) if self.body is None else self.template_id()

    def template_id(self) -> int:
        """Return a fresh id within loop bodies: templates count downwards."""
        self._negative -= 1
        return self._negative

    def add(self, spec: TaskSpec) -> None:
        """Note a task."""
        (self.tasks if self.body is None else self.body)[spec.id] = spec

    def unique(self, name: str) -> str:
        """Return ``name``, numbered when it is taken."""
        name = candidate = f"{self.prefix}{name}"
        count = 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}-{count}"
        self._names.add(candidate)
        return candidate

    def adopt(self, source: SourceCollection) -> int:
        """Return the id of a source here, noting it on first sight."""
        known = self._adopted.get(id(source))
        if known is not None:
            return known[0]
        if self.fragment and source.spec.kind == "stream":
            raise WorkflowError(
                f"{source.spec.name!r} is a stream, and a sub-workflow that joins a run takes "
                "none: a stream belongs to the run's own workflow"
            )
        number = self.template_id() if self.fragment else len(self.sources)
        spec = replace(source.spec, id=number)
        if spec.kind in ("items", "stream"):
            count = len(source.items or ())
            spec = replace(spec, n=count, blob=self.blob(f"items-{number}", _frames(source)))
        self.sources.append(spec)
        self._adopted[id(source)] = (number, source)  # the reference keeps id() unique
        if spec.kind == "stream":
            self.streams[number] = source
            source.sent = spec.n  # type: ignore[attr-defined]
        return number

    def blob(self, name: str, data: bytes) -> str:
        """Keep bytes that travel with the workflow; return their name.

        Fragments meet others in one run, so theirs are named after their content.
        """
        if self.fragment:
            name = f"content-{hashlib.blake2b(data, digest_size=16).hexdigest()}"
        self.blobs[name] = data
        return name


def _frames(source: SourceCollection) -> bytes:
    """Pickle each item by itself, so that slices can be sent without unpickling any."""
    frames = []
    for index, item in enumerate(source.items or ()):
        try:
            frames.append(cloudpickle.dumps(item))
        except Exception as error:  # whatever the user's __reduce__ raises
            raise WorkflowError(
                f"item {index} of {source.spec.name} cannot be serialized: {error}"
            ) from error
    return cast(bytes, cloudpickle.dumps(frames))


def active_trace(what: str) -> Trace:
    """Return the trace of the workflow being written.

    Raises
    ------
    WorkflowError
        None is: ``what`` must be used inside a ``@pf.workflow`` function.
    """
    trace = ACTIVE.get()
    if trace is None:
        raise WorkflowError(f"{what} works inside a function decorated with @pf.workflow")
    return trace


def trace_workflow(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[WorkflowSpec, Trace]:
    """Call a workflow function and return what it described."""
    trace = Trace(name)
    token = ACTIVE.set(trace)
    try:
        shape = shape_of(function(*args, **kwargs), trace, name)
    finally:
        ACTIVE.reset(token)
    if not trace.tasks and not trace.loops:
        raise WorkflowError(f"workflow {name!r} calls no task, so there is nothing to run")
    spec = WorkflowSpec(
        name=name,
        tasks=tuple(trace.tasks.values()),
        sources=tuple(trace.sources),
        loops=tuple(trace.loops),
        result=shape,
        params={key: _short(value) for key, value in _bound(function, args, kwargs).items()},
        steerers=tuple(trace.steerers),
    )
    return spec, trace


def _bound(function: Callable[..., Any], args: Any, kwargs: Any) -> Mapping[str, Any]:
    return inspect.signature(function).bind(*args, **kwargs).arguments


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def shape_of(value: Any, trace: Trace, name: str) -> ResultShape:
    """Return the shape of what a workflow function returned."""
    if isinstance(value, Whole):
        value = value.of
    if isinstance(value, Collection):
        return ResultShape(kind="dataset", dataset=value.dataset(trace), single=value.single)
    if isinstance(value, list | tuple):
        parts = tuple(shape_of(part, trace, name) for part in value)
        return ResultShape(kind="list" if isinstance(value, list) else "tuple", parts=parts)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise WorkflowError(f"workflow {name!r}: keys of a returned dict must be texts")
        parts = tuple(shape_of(part, trace, name) for part in value.values())
        return ResultShape(kind="dict", keys=tuple(value), parts=parts)
    if value is None or isinstance(value, bool | int | float | str):
        return ResultShape(kind="value", value=value)
    raise WorkflowError(
        f"workflow {name!r} returned a {type(value).__name__}; return what tasks returned, "
        "or a tuple, list or dict of that"
    )


def serialize(value: Any, task: str, parts: tuple[Any, ...]) -> bytes:
    """Pickle ``value`` for jobs; on failure name which of its ``parts`` is to blame."""
    try:
        return cast(bytes, cloudpickle.dumps(value))
    except Exception as error:  # whatever a user's object raises when pickled
        culprit = _culprit(parts) or "an argument"
        raise WorkflowError(
            f"task {task!r}: {culprit} cannot be serialized ({type(error).__name__}: {error}); "
            "open files, locks, connections and the like must be made inside the function"
        ) from error


def _culprit(parts: tuple[Any, ...]) -> str:
    function, args, kwargs = parts
    named = {"its function": function, **{f"argument {k}": v for k, v in enumerate(args)}}
    for label, value in {**named, **{f"argument {k!r}": v for k, v in kwargs.items()}}.items():
        try:
            cloudpickle.dumps(value)
        except Exception:  # noqa: BLE001 - see _dumps
            return label
    return ""
