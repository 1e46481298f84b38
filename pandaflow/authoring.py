"""How a workflow is written: tasks, sources, and the shapes that join them.

Calling a task inside a ``@pf.workflow`` function runs nothing: the call is noted in the
active :class:`Trace` and a :class:`Collection` stands for its outputs. When the function
returns, the trace holds the whole workflow as a :class:`~pandaflow.core.model.WorkflowSpec`
and the pickled payloads beside it.
"""

from __future__ import annotations

import contextvars
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import cloudpickle

from pandaflow.core import chunking
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import (
    Choice,
    Concat,
    Cross,
    CrossPart,
    Dataset,
    File,
    Input,
    LoopEnd,
    LoopSpec,
    Output,
    PayloadKind,
    ResultShape,
    Scattered,
    Source,
    SourceSpec,
    SplitRule,
    TaskSpec,
    WorkflowSpec,
)
from pandaflow.core.signature import UNKNOWN, code_token, describe, hints, incompatible
from pandaflow.core.template import NodeRef, Payload, Slot
from pandaflow.options import Options, change, name_of

_active: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("trace", default=None)


# --- collections: what tasks are called on ------------------------------------------------


class Collection:
    """Stands for the items of a dataset while a workflow is written.

    Attributes
    ----------
    length : int or None
        Number of items, where it is known before the run.
    single : bool
        One item by construction: a value, which is broadcast when zipped with collections.
    type : type
        What the items are annotated to be, or ``inspect.Parameter.empty``.
    """

    def __init__(self, label: str, *, length: int | None, single: bool = False) -> None:
        self.label, self.length, self.single = label, length, single
        self.type: Any = UNKNOWN

    def dataset(self, trace: Trace) -> Dataset:
        """Return the dataset within ``trace``."""
        raise NotImplementedError(type(self).__name__)

    def files(self) -> Sequence[File] | None:
        """Return the items, where they are files that are known now."""
        return None

    def all(self) -> Whole:
        """Hand the whole collection, as a list, to each job."""
        return Whole(self)

    def __repr__(self) -> str:
        size = "1 value" if self.single else f"{self.length} items" if self.length is not None else "open"
        return f"<{self.label}: {size}>"

    def __iter__(self) -> Iterator[Any]:
        raise WorkflowError(
            f"{self.label} has no items while the workflow is written; pass it to a task, "
            "which maps over it (pf.scatter flattens lists, pf.loop iterates)"
        )

    def __bool__(self) -> bool:
        raise WorkflowError(
            f"the value of {self.label} is not known while the workflow is written; "
            "use pf.when(condition, then, otherwise)"
        )


@dataclass(frozen=True)
class Whole:
    """A collection that each job gets whole."""

    of: Collection


@dataclass(frozen=True)
class After:
    """A barrier: jobs wait until all of these exist."""

    collections: tuple[Collection, ...]


class SourceCollection(Collection):
    """Items that the workflow brings along (see ``pf.files``, ``pf.items``, ``pf.stream``)."""

    def __init__(
        self, spec: SourceSpec, items: Sequence[Any] | None = None, *, length: int | None, single: bool = False
    ) -> None:
        super().__init__(spec.name, length=length, single=single)
        self.spec, self.items = spec, items
        if spec.kind == "files":
            self.type = File
        elif spec.kind == "range":
            self.type = int

    def dataset(self, trace: Trace) -> Dataset:
        return Source(trace.adopt(self))

    def files(self) -> Sequence[File] | None:
        return self.spec.files if self.spec.kind == "files" else None

    def _repr_html_(self) -> str:
        from pandaflow.display.html import dataset_html

        sample = [str(item) for item in list(self.spec.files or self.items or ())[:5]]
        return dataset_html(self.spec.name, self.spec.kind, self.length, sample)


class Placed(Collection):
    """A collection whose dataset is known: a task's output and what is made of outputs."""

    def __init__(
        self, label: str, place: Dataset, *, length: int | None, single: bool = False, type: Any = UNKNOWN
    ) -> None:
        super().__init__(label, length=length, single=single)
        self._place, self.type = place, type

    def dataset(self, trace: Trace) -> Dataset:
        return self._place


class CrossCollection(Collection):
    """A product; unpack it (``a, b = pf.cross(x, y)``) or map over its tuples."""

    def __init__(self, parts: tuple[Collection, ...]) -> None:
        length: int | None = 1
        for part in parts:
            length = None if length is None or part.length is None else length * part.length
        super().__init__(f"cross({', '.join(p.label for p in parts)})", length=length)
        self.parts = parts
        types = [part.type for part in parts]
        self.type = UNKNOWN if UNKNOWN in types else tuple.__class_getitem__(tuple(types))

    def dataset(self, trace: Trace) -> Dataset:
        return Cross(tuple(part.dataset(trace) for part in self.parts))

    def __iter__(self) -> Iterator[Any]:
        return iter([CrossComponent(self, k) for k in range(len(self.parts))])


class CrossComponent(Collection):
    """One side of a product."""

    def __init__(self, of: CrossCollection, part: int) -> None:
        super().__init__(f"{of.label}.{part}", length=of.length)
        self._of, self._part = of, part
        self.type = of.parts[part].type

    def dataset(self, trace: Trace) -> Dataset:
        return CrossPart(cast(Cross, self._of.dataset(trace)), self._part)


class ConcatCollection(Collection):
    """Collections one after the other."""

    def __init__(self, parts: tuple[Collection, ...]) -> None:
        lengths = [part.length for part in parts]
        length = None if None in lengths else sum(cast(list[int], lengths))
        super().__init__(f"concat({', '.join(p.label for p in parts)})", length=length)
        self.parts = parts

    def dataset(self, trace: Trace) -> Dataset:
        return Concat(tuple(part.dataset(trace) for part in self.parts))


# --- the trace --------------------------------------------------------------------------


@dataclass
class Trace:
    """The workflow so far, while its function is called.

    ``template`` is the number of loop bodies around: their tasks get negative ids.
    """

    name: str
    tasks: dict[int, TaskSpec] = field(default_factory=dict)
    sources: list[SourceSpec] = field(default_factory=list)
    loops: list[LoopSpec] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    streams: dict[int, Any] = field(default_factory=dict)
    guards: tuple[tuple[int, bool], ...] = ()
    prefix: str = ""
    body: dict[int, TaskSpec] | None = None
    body_loops: list[LoopSpec] = field(default_factory=list)
    _adopted: dict[int, tuple[int, Collection]] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _lengths: dict[int, int | None] = field(default_factory=dict)
    _negative: int = 0

    def next_id(self) -> int:
        """Return the id of the task to be added."""
        if self.body is None:
            return len(self.tasks)
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
        number = len(self.sources)
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
        """Keep bytes that travel with the workflow; return their name."""
        self.blobs[name] = data
        return name


def _frames(source: SourceCollection) -> bytes:
    """Pickle each item by itself, so that slices can be sent without unpickling any."""
    frames = []
    for index, item in enumerate(source.items or ()):
        try:
            frames.append(cloudpickle.dumps(item))
        except Exception as error:  # noqa: BLE001 - whatever the user's __reduce__ raises
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
    trace = _active.get()
    if trace is None:
        raise WorkflowError(f"{what} works inside a function decorated with @pf.workflow")
    return trace


def trace_workflow(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[WorkflowSpec, Trace]:
    """Call a workflow function and return what it described."""
    trace = Trace(name)
    token = _active.set(trace)
    try:
        shape = shape_of(function(*args, **kwargs), trace, name)
    finally:
        _active.reset(token)
    if not trace.tasks and not trace.loops:
        raise WorkflowError(f"workflow {name!r} calls no task, so there is nothing to run")
    spec = WorkflowSpec(
        name=name,
        tasks=tuple(trace.tasks.values()),
        sources=tuple(trace.sources),
        loops=tuple(trace.loops),
        result=shape,
        params={key: _short(value) for key, value in _bound(function, args, kwargs).items()},
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


# --- tasks ------------------------------------------------------------------------------


class Task:
    """A job template; made by ``@pf.task`` or :func:`command`.

    Called inside a workflow it maps over the collections among its arguments. Called
    elsewhere with plain values it is the plain function, which makes it easy to test.
    """

    kind: PayloadKind = "function"

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.function, self._options = function, options
        functools.update_wrapper(self, function, updated=())

    @property
    def name(self) -> str:
        """The name under which its jobs appear."""
        return self._options.name

    def options(self, **changes: Any) -> Task:
        """Return a changed copy.

        Examples
        --------
        >>> import pandaflow as pf
        >>> @pf.task(retries=1)
        ... def double(x):
        ...     return 2 * x
        >>> double.options(memory="2 GiB", retries=3)
        <task double: memory=2147483648, retries=3>
        """
        return type(self)(self.function, change(self._options, changes))

    def __repr__(self) -> str:
        o = self._options
        said = {
            **{k: getattr(o.split, k) for k in ("events_per_job", "items_per_job", "gb_per_job", "n_jobs")},
            "memory": o.resources.memory,
            "walltime": o.resources.walltime,
            "retries": o.retry.retries or None,
        }
        text = ", ".join(f"{k}={v}" for k, v in said.items() if v is not None)
        return f"<task {self.name}{': ' + text if text else ''}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = _active.get()
        if trace is not None:
            return self._note(trace, args, kwargs)
        if any(isinstance(value, Collection | Whole | After) for value in (*args, *kwargs.values())):
            raise WorkflowError(
                f"task {self.name!r} was called on a dataset outside of a workflow; call it in a "
                "function decorated with @pf.workflow"
            )
        return self.function(*args, **kwargs)

    def _note(self, trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Placed:
        call = _Arguments(self, trace)
        call.read(args, kwargs)
        return call.place()

    def payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the pickled payload with ``args`` and ``kwargs`` as templates.

        Raises
        ------
        WorkflowError
            The function or an argument cannot be serialized.
        """
        return _dumps(Payload(self.function, args, kwargs), self.name, (self.function, args, kwargs))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any] | None:
        """Return arguments by parameter name, None where there is no signature to check."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):
            return None
        try:
            return signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise WorkflowError(f"task {self.name!r}: {error}; it takes {signature}") from None

    def annotations(self) -> Mapping[str, Any]:
        """Return the types of parameters and of ``return``."""
        return hints(self.function)

    def token(self) -> str:
        """Return a hash of the code."""
        return code_token(self.function)


def _dumps(value: Any, task: str, parts: tuple[Any, ...]) -> bytes:
    try:
        return cast(bytes, cloudpickle.dumps(value))
    except Exception as error:  # noqa: BLE001 - whatever a user's object raises when pickled
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


class _Arguments:
    """Reads the arguments of one call into slots, and places the task in the trace."""

    def __init__(self, task: Task, trace: Trace) -> None:
        self._task, self._trace = task, trace
        self._mapped: list[tuple[str, Collection]] = []
        self._inputs: list[Input] = []
        self._after: list[Dataset] = []
        self._types: dict[str, Any] = {}
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        args, kwargs = self._without_barriers(args, kwargs)
        args = self._unpacked_cross(args, kwargs)
        named = self._task.bind(args, kwargs)
        if named is not None:
            self._check_types(named)
        listed = self._task._options.split.given
        singles_map = listed and not self._any_collection((*args, *kwargs.values()))
        self._args = tuple(self._read(f"argument {k + 1}", v, singles_map) for k, v in enumerate(args))
        self._kwargs = {k: self._read(f"argument {k!r}", v, singles_map) for k, v in kwargs.items()}

    def _any_collection(self, values: Iterable[Any]) -> bool:
        return any(
            isinstance(v, Collection) and not v.single
            or isinstance(v, list) and any(isinstance(part, Collection) for part in v)
            for v in values
        )

    def _without_barriers(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        barriers = [v for v in (*args, *kwargs.values()) if isinstance(v, After)]
        for barrier in barriers:
            self._after += [part.dataset(self._trace) for part in barrier.collections]
        return (
            tuple(v for v in args if not isinstance(v, After)),
            {k: v for k, v in kwargs.items() if not isinstance(v, After)},
        )

    def _unpacked_cross(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """``f(pf.cross(a, b))`` for ``def f(a, b)``: a tuple where one fits, else its parts."""
        if not any(isinstance(value, CrossCollection) for value in args):
            return args
        try:
            inspect.signature(self._task.function).bind(*args, **kwargs)
        except (TypeError, ValueError):
            parts: list[Any] = []
            for value in args:
                parts += list(value) if isinstance(value, CrossCollection) else [value]
            return tuple(parts)
        return args

    def _read(self, label: str, value: Any, singles_map: bool) -> Any:
        if isinstance(value, Whole):
            return self._slot(Input(value.of.dataset(self._trace), "whole"))
        if isinstance(value, Collection):
            return self._read_collection(label, value, singles_map)
        if isinstance(value, list) and value and all(isinstance(v, Collection) for v in value):
            if singles_map or not all(v.single for v in value):
                return self._read_collection(label, ConcatCollection(tuple(value)), singles_map)
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(self._read(label, part, False) for part in value)
        if type(value) is dict:
            return {key: self._read(label, part, False) for key, part in value.items()}
        return value

    def _read_collection(self, label: str, value: Collection, singles_map: bool) -> Slot:
        dataset = value.dataset(self._trace)
        if value.single and not singles_map:
            return self._slot(Input(dataset, "single"))
        self._mapped.append((label, value))
        return self._slot(Input(dataset, "mapped"))

    def _slot(self, given: Input) -> Slot:
        self._inputs.append(given)
        return Slot(len(self._inputs) - 1)

    def _check_types(self, named: Mapping[str, Any]) -> None:
        wanted = self._task.annotations()
        listed = self._task._options.split.given
        for name, value in named.items():
            given = _type_of(value, listed=listed)
            if name in wanted and incompatible(given, wanted[name]):
                source = value.of.label if isinstance(value, Whole) else value.label
                raise WorkflowError(
                    f"task {self._task.name!r}, argument {name!r}: {source} gives "
                    f"{describe(given)}, but {describe(wanted[name])} is annotated"
                )

    def place(self) -> Placed:
        length, single, n_static = self._jobs()
        trace, task, options = self._trace, self._task, self._task._options
        number = trace.next_id()
        name = trace.unique(options.name)
        payload = task.payload(self._args, self._kwargs)
        token = self._token()
        spec = TaskSpec(
            id=number,
            name=name,
            token=token,
            payload=trace.blob(f"payload-{len(trace.blobs)}-{token}", payload),
            kind=task.kind,
            inputs=tuple(self._inputs),
            after=tuple(self._after),
            split=options.split,
            lists=options.split.given and bool(self._mapped),
            single=single,
            n_static=n_static,
            guards=trace.guards,
            **_common(options),
        )
        trace.add(spec)
        kind = task.annotations().get("return", UNKNOWN)
        return Placed(name, Output(number), length=length, single=single, type=kind)

    def _token(self) -> str:
        """Hash code and static arguments: what the values depend on besides the items."""
        static = cast(bytes, cloudpickle.dumps((self._args, self._kwargs)))
        return hashlib.blake2b(self._task.token().encode() + static, digest_size=8).hexdigest()

    def _jobs(self) -> tuple[int | None, bool, int | None]:
        """Return (number of jobs or None, whether it is one by construction, static number)."""
        split = self._task._options.split
        if not self._mapped:
            n = split.n_jobs or 1
            return n, n == 1, n
        items = self._zipped()
        only_n = split.n_jobs is not None and split == SplitRule(n_jobs=split.n_jobs)
        if only_n and split.n_jobs == 1:
            return 1, True, None
        if items is None:
            return None, False, None
        jobs = chunking.split(split, items, self._weighing(), task=self._task.name).n_jobs
        return jobs, False, None

    def _weighing(self) -> Sequence[File] | None:
        for _, collection in self._mapped:
            files = collection.files()
            if files is not None:
                return files
        return None

    def _zipped(self) -> int | None:
        split = self._task._options.split
        lengths = {label: c.length for label, c in self._mapped if c.length is not None}
        if len(set(lengths.values())) > 1:
            said = ", ".join(
                f"{label} ({c.label}) has {c.length}" for label, c in self._mapped if c.length is not None
            )
            raise WorkflowError(
                f"task {self._task.name!r}: mapped arguments are zipped and must be equally long, "
                f"but {said}; use pf.cross for the product or .all() for the whole"
            )
        if (split.events_per_job or (split.gb_per_job and not split.items_per_job)) and (
            self._weighing() is None
        ):
            chunking.split(split, 0, None, task=self._task.name)
        return next(iter(lengths.values()), None)


def _common(options: Options) -> dict[str, Any]:
    fields = ("resources", "retry", "priority", "executor", "container", "cache")
    fields += ("goal", "scouts", "max_failure_rate")
    return {name: getattr(options, name) for name in fields}


def _type_of(value: Any, *, listed: bool) -> Any:
    if isinstance(value, Whole):
        return list if value.of.type is UNKNOWN else list[value.of.type]
    if not isinstance(value, Collection):
        return UNKNOWN
    if not listed:
        return value.type
    return list if value.type is UNKNOWN else list[value.type]


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a function.

    Parameters
    ----------
    files_per_job, items_per_job, gb_per_job, events_per_job, n_jobs : optional
        The split rule. With one, the function gets the list of its job's items; without,
        there is one job per item and the function gets the item. Given together, events beat
        files/items beat GB beat n_jobs, as in PanDA.
    cores, memory, walltime, disk, gpus : optional
        What one job needs: ``memory="2 GiB"``, ``walltime="90 min"``.
    retries : int or pandaflow.Retry
        How often a failed job is tried again.
    priority : int
        Jobs of tasks with a higher priority go first.
    executor : str
        The name of the executor that runs its jobs.
    container : str
        An image for its jobs, on executors that have a container runtime.
    cache : bool or 'checksum'
        Skip jobs whose code and inputs are unchanged since an earlier run.
    goal : float
        The fraction of jobs that must finish; the rest may fail.
    scouts : int
        Run so many jobs first, alone, to measure what the others will need.
    max_failure_rate : float
        Stop the task (``exhausted``) when more than this fraction of its jobs fail.
    name : str
        The name under which its jobs appear; default: the function's.

    Examples
    --------
    >>> import pandaflow as pf
    >>> @pf.task(files_per_job=2, memory="1 GiB", retries=2)
    ... def count(files):
    ...     return len(files)
    """
    if function is not None and not callable(function):
        raise WorkflowError("@pf.task takes options by keyword: @pf.task(files_per_job=2)")

    def make(inner: Callable[..., Any]) -> Task:
        return Task(inner, change(Options(name=name_of(inner)), options))

    return make if function is None else make(function)


# --- shapes -----------------------------------------------------------------------------


def as_collection(value: Any, what: str) -> Collection:
    """Return ``value`` as a collection: lists and ranges become items."""
    from pandaflow.sources import items

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
    args = getattr(inner, "__args__", ())
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
    call = _Arguments(judge, trace)
    call._inputs.append(Input(value.dataset(trace), cast(Any, mode)))
    call._args = (Slot(0),)
    place = cast(Output, call.place()._place)
    tasks = trace.tasks if trace.body is None else trace.body
    tasks[place.task] = replace(tasks[place.task], gate=True, internal=True)
    return place.task


def _branch(trace: Trace, gate: int, wanted: bool, branch: Any) -> tuple[Collection, set[int]]:
    from pandaflow.sources import value_of

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


def tasks_of(dataset: Dataset) -> set[int]:
    """Return the ids of the tasks that a dataset is made of."""
    match dataset:
        case Output(task=task) | Scattered(task=task):
            return {task}
        case Cross(parts=parts) | Concat(parts=parts):
            return set().union(*(tasks_of(part) for part in parts))
        case CrossPart(cross=inner):
            return tasks_of(inner)
        case Choice(gate=gate, then=then, otherwise=otherwise):
            return {gate} | tasks_of(then) | tasks_of(otherwise)
    return set()


def _reads(spec: TaskSpec) -> set[int]:
    datasets = [given.dataset for given in spec.inputs] + list(spec.after)
    return set().union(*(tasks_of(dataset) for dataset in datasets))


def _ancestors(tasks: Mapping[int, TaskSpec], dataset: Dataset) -> set[int]:
    seen: set[int] = set()
    todo = [t for t in tasks_of(dataset) if t in tasks]
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
    from pandaflow.sources import value_of

    trace = active_trace("pf.loop")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
        raise WorkflowError(f"pf.loop: max_iterations={max_iterations!r} must be at least 1")
    first = state if isinstance(state, Collection) else value_of(state)
    trace._negative -= 1
    state_id = trace._negative
    name = trace.unique(f"loop-{name_of(cast(Any, getattr(body, 'function', body)))}")
    outer = (trace.body, trace.body_loops, trace.guards, trace.prefix)
    trace.body, trace.body_loops, trace.guards = dict(outer[0] or {}), [], ()
    before = set(trace.body)
    try:
        inner = Placed("state", Source(state_id), length=first.length, single=first.single)
        result = body(inner)
        if not isinstance(result, Collection):
            raise WorkflowError(f"{name}: the body must return the output of a task")
        if result.single != first.single:
            kinds = {True: "one value", False: "a collection"}
            raise WorkflowError(
                f"{name}: the state begins as {kinds[first.single]} and the body returns "
                f"{kinds[result.single]}; they must be alike"
            )
        test = getattr(until, "function", until)
        gate = _gate(trace, result, "until", test) if until is not None else None
        made = {k: v for k, v in trace.body.items() if k not in before}
        inner_loops = tuple(trace.body_loops)
        place = result.dataset(trace)
    finally:
        trace.body, trace.body_loops, trace.guards, trace.prefix = outer
    loops = trace.loops if trace.body is None else trace.body_loops
    trace._negative -= 1
    number = len(trace.loops) if trace.body is None else trace._negative
    loops.append(
        LoopSpec(
            id=number,
            name=name,
            state=first.dataset(trace),
            state_id=state_id,
            body=tuple(made.values()),
            loops=inner_loops,
            gate=gate,
            result=place,
            max_iterations=max_iterations,
            single=first.single,
            guards=trace.guards,
        )
    )
    return Placed(name, LoopEnd(number), length=first.length if first.single else None, single=first.single)


# --- job graphs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Ref:
    """The value of another node of a job graph; see :func:`ref`."""

    name: str


def ref(name: str) -> Ref:
    """Stand for the value of node ``name`` among a node's arguments; implies the edge."""
    return Ref(name)


def job_graph(
    nodes: Mapping[str, Any], edges: Iterable[tuple[str, str]] = (), **options: Any
) -> Placed:
    """Take an arbitrary DAG of jobs, as Rubin's quanta: a payload and its arguments per node.

    Parameters
    ----------
    nodes : mapping of str to (callable, args) or (callable, args, kwargs) or callable
        ``pf.ref(name)`` among the arguments hands over a value and implies the edge.
    edges : iterable of (str, str)
        Pure precedence: the first before the second.
    **options
        Task options for all nodes.

    Returns
    -------
    Collection
        As a result ``{name: value}``; mapped over, the values in topological order.
    """
    trace = active_trace("pf.job_graph")
    parsed = {str(name): _parse_node(name, node) for name, node in nodes.items()}
    if not parsed:
        raise WorkflowError("pf.job_graph: there are no nodes")
    upstream = _upstream(parsed, edges)
    order = _topological(upstream)
    index = {name: k for k, name in enumerate(order)}
    task = Task(_nothing, change(Options(name="job_graph"), options))
    number, name = trace.next_id(), trace.unique(task.name)
    frames = [_dumps(parsed[node], f"{name}, node {node!r}", parsed[node]) for node in order]
    digest = hashlib.blake2b(digest_size=6)
    for frame in frames:
        digest.update(frame)
    token = digest.hexdigest()
    trace.add(
        TaskSpec(
            id=number,
            name=name,
            token=token,
            payload=trace.blob(f"payload-{len(trace.blobs)}-{token}", cloudpickle.dumps(frames)),
            kind="graph",
            edges=tuple(tuple(sorted(index[u] for u in upstream[node])) for node in order),
            node_names=tuple(order),
            n_static=len(order),
            guards=trace.guards,
            **_common(task._options),
        )
    )
    return Placed(name, Output(number), length=len(order), single=False)


def _nothing() -> None:
    """Hold the options of a job graph; its payloads are the nodes' own."""


def _parse_node(name: Any, node: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if callable(node):
        node = (node,)
    if not isinstance(node, tuple | list) or not 1 <= len(node) <= 3 or not callable(node[0]):
        raise WorkflowError(
            f"pf.job_graph: node {name!r} must be a function, (function, args) or "
            "(function, args, kwargs)"
        )
    args = tuple(node[1]) if len(node) > 1 else ()
    kwargs = dict(node[2]) if len(node) > 2 else {}
    args, kwargs = _with_node_refs(args), _with_node_refs(kwargs)
    return getattr(node[0], "function", node[0]), args, kwargs


def _with_node_refs(value: Any) -> Any:
    if isinstance(value, Ref):
        return NodeRef(value.name)
    if isinstance(value, Collection | Whole):
        raise WorkflowError("pf.job_graph: nodes take values and pf.ref(name), not datasets")
    if type(value) in (list, tuple):
        return type(value)(_with_node_refs(part) for part in value)
    if type(value) is dict:
        return {key: _with_node_refs(part) for key, part in value.items()}
    return value


def _refs_in(value: Any) -> set[str]:
    if isinstance(value, NodeRef):
        return {value.name}
    if type(value) in (list, tuple):
        return set().union(*(_refs_in(part) for part in value))
    if type(value) is dict:
        return set().union(*(_refs_in(part) for part in value.values()))
    return set()


def _upstream(
    nodes: Mapping[str, tuple[Any, ...]], edges: Iterable[tuple[str, str]]
) -> dict[str, set[str]]:
    upstream = {name: _refs_in(node[1]) | _refs_in(node[2]) for name, node in nodes.items()}
    for edge in edges:
        if len(edge) != 2:
            raise WorkflowError(f"pf.job_graph: edge {edge!r} is not a pair of names")
        before, behind = edge
        if behind not in upstream:
            raise WorkflowError(f"pf.job_graph: edge {edge!r}: there is no node {behind!r}")
        upstream[behind].add(before)
    for name, needed in upstream.items():
        for other in needed:
            if other not in nodes:
                raise WorkflowError(f"pf.job_graph: node {name!r} needs {other!r}, which is no node")
    return upstream


def _topological(upstream: Mapping[str, set[str]]) -> list[str]:
    from graphlib import CycleError, TopologicalSorter

    try:
        return list(TopologicalSorter(upstream).static_order())
    except CycleError as error:
        path = " -> ".join(error.args[1])
        raise WorkflowError(f"pf.job_graph: the nodes form a cycle: {path}") from None
