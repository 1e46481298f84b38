"""The compiled Dask graph of a workflow: one lazy layer a task, one node a job.

This is the graph that ``wf.dask_graph()`` shows and ``wf.compute()`` hands to any Dask
scheduler. A layer makes its nodes when they are looked at, so a million-job graph costs nothing
until somebody walks over it. (Durable runs send the same jobs in slices, as bundles.)
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask._task_spec import DataNode, Task, TaskRef
from dask.base import DaskMethodsMixin
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer

from pandaflow.core.bundle import Blocked, BundleSpec, BundleValues, JobInputs, SourceSlice
from pandaflow.core.datasets import makers
from pandaflow.core.engine import Engine
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import (
    Choice,
    Dataset,
    LoopEnd,
    Output,
    ResultShape,
    Scattered,
    WorkflowSpec,
)
from pandaflow.core.slices import describe
from pandaflow.core.taskrun import TaskRun
from pandaflow.core.template import NodeRef, Payload, Slot

Key = tuple[str, int]


def bound(spec: WorkflowSpec) -> Engine:
    """Return an engine in which all is bound that can be before the run."""
    engine = Engine(spec)
    changed = True
    while changed:
        changed = False
        for task in list(engine._active):
            if not task.spec.guards:
                changed = engine._bind(task) or changed
    return engine


@dataclass(frozen=True)
class Compiled:
    """A Dask graph and how to put its values back into shape."""

    graph: HighLevelGraph
    keys: list[Any]
    shape: ResultShape
    engine: Engine
    items: _Items

    def finish(self, values: Sequence[Any]) -> Any:
        """Return computed values in the shape that the workflow function gave them."""
        return _shaped(self, self.shape, iter(values))

    def finish_persist(self, graph: Mapping[Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Return a collection over persisted values."""
        return _Persisted(graph, self.keys, self.finish)


class _Persisted(DaskMethodsMixin):
    """What ``dask.persist`` leaves of a workflow."""

    __dask_optimize__ = None

    def __init__(self, graph: Mapping[Any, Any], keys: list[Any], finish: Any) -> None:
        self._graph, self._keys, self._finish = graph, keys, finish

    def __dask_graph__(self) -> Mapping[Any, Any]:
        return self._graph

    def __dask_keys__(self) -> list[Any]:
        return self._keys

    def __dask_postcompute__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._finish, ()

    @property
    def __dask_scheduler__(self) -> Any:
        return default_scheduler()


def compile_graph(spec: WorkflowSpec, blobs: Mapping[str, bytes]) -> Compiled:
    """Compile a workflow whose size is known.

    Raises
    ------
    WorkflowError
        It grows while it runs.
    """
    _refuse_growth(spec)
    engine = bound(spec)
    items = _Items(spec, blobs)
    names = {task.id: f"{task.name}-{_token(spec, task.id, blobs)}" for task in spec.tasks}
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    for number, task in engine.tasks.items():
        if task.chunks is None or task.terminal:
            raise WorkflowError(f"task {task.spec.name!r} cannot be cut into jobs: {_why(engine)}")
        name = names[number]
        code = f"payload-{name}"
        layers[code] = MaterializedLayer(
            {code: DataNode(code, pickle.loads(blobs[task.spec.payload]))}
        )
        layers[name] = TaskLayer(engine, task, names, code, items)
        dependencies[code] = set()
        used = {m for slot in task.spec.inputs for m in makers(slot.dataset)}
        dependencies[name] = {code, *(names[m] for m in used)}
    keys = list(_keys(engine, spec.result, names))
    return Compiled(HighLevelGraph(layers, dependencies), keys, spec.result, engine, items)


def _why(engine: Engine) -> str:
    said = [str(getattr(command, "reason", "")) for command in engine._out]
    return next((reason for reason in reversed(said) if reason), "its inputs are not known")


def _refuse_growth(spec: WorkflowSpec) -> None:
    reasons = [f"stream {s.name!r}" for s in spec.sources if s.kind == "stream"]
    reasons += [f"loop {loop.name!r}" for loop in spec.loops]
    for task in spec.tasks:
        if task.scatters:
            reasons.append(f"pf.scatter({task.name})")
        if task.gate:
            reasons.append(f"condition {task.name!r}")
        if task.kind == "command":
            reasons.append(f"command {task.name!r} (it needs a work directory)")
    if reasons:
        raise WorkflowError(
            f"workflow {spec.name!r} has no fixed Dask graph because of {', '.join(reasons)}; "
            "use run() or submit()"
        )


def _token(spec: WorkflowSpec, number: int, blobs: Mapping[str, bytes]) -> str:
    """Hash a task with all that it is computed from, so that equal keys mean equal values."""
    task = spec.tasks[number]
    digest = hashlib.blake2b(task.token.encode(), digest_size=6)
    digest.update(blobs[task.payload])
    digest.update(repr((task.inputs, task.split, task.edges)).encode())
    for slot in task.inputs:
        for maker in makers(slot.dataset):
            digest.update(_token(spec, maker, blobs).encode())
    for source in spec.sources:
        digest.update(repr((source.files, source.bounds)).encode() + blobs.get(source.blob, b""))
    return digest.hexdigest()


class _Items:
    """Items of sources from the workflow's own blobs."""

    def __init__(self, spec: WorkflowSpec, blobs: Mapping[str, bytes]) -> None:
        self._sources = spec.sources
        self._frames = {s.id: pickle.loads(blobs[s.blob]) for s in spec.sources if s.blob}

    def items(self, source: int, lo: int, hi: int) -> SourceSlice:
        spec = self._sources[source]
        if spec.kind == "files":
            return SourceSlice(lo, spec.files[lo:hi])
        if spec.kind == "range":
            return SourceSlice(lo, range(*spec.bounds)[lo:hi])
        return SourceSlice(lo, tuple(self._frames[source][lo:hi]), pickled=True)


class TaskLayer(Layer):
    """The jobs of one task as a lazy mapping from key to Dask task."""

    def __init__(
        self, engine: Engine, task: TaskRun, names: Mapping[int, str], code: str, items: _Items
    ) -> None:
        super().__init__()
        self._engine, self._task, self._names = engine, task, names
        self._code, self._items = code, items

    @property
    def _name(self) -> str:
        return self._names[self._task.spec.id]

    def is_materialized(self) -> bool:
        """Nodes are made on demand."""
        return False

    def get_output_keys(self) -> set[Key]:
        """All of them."""
        return {(self._name, job) for job in range(self._task.n)}

    def __len__(self) -> int:
        return self._task.n

    def __iter__(self) -> Iterator[Key]:
        return ((self._name, job) for job in range(self._task.n))

    def __contains__(self, key: object) -> bool:
        return (
            isinstance(key, tuple)
            and len(key) == 2
            and key[0] == self._name
            and isinstance(key[1], int)
            and 0 <= key[1] < self._task.n
        )

    def __getitem__(self, key: Any) -> Task:
        if key not in self:
            raise KeyError(key)
        job: int = key[1]
        needs = self._needs(job)
        spec = self._spec(job, needs)
        refs = [TaskRef((self._names[task], upstream)) for task, upstream in needs]
        jobs = tuple(upstream for _, upstream in needs)
        return Task(key, compute_job, spec, jobs, TaskRef(self._code), *refs)

    def _needs(self, job: int) -> list[tuple[int, int]]:
        found = {
            (task, upstream): None
            for task, lo, hi, _ in self._engine._needs(self._task, job, job + 1)
            for upstream in range(lo, hi)
        }
        for barrier in self._task.spec.after:
            for maker in makers(barrier):
                found |= {(maker, j): None for j in range(self._engine.tasks[maker].n)}
        return list(found)

    def _spec(self, job: int, needs: Sequence[tuple[int, int]]) -> BundleSpec:
        outputs: dict[int, list[int]] = {}
        for dep, (task, _) in enumerate(needs):
            outputs.setdefault(task, []).append(dep)
        return describe(
            self._engine,
            self._task,
            range(job, job + 1),
            self._items,
            {task: tuple(deps) for task, deps in outputs.items()},
        )


def compute_job(spec: BundleSpec, jobs: Sequence[int], payload: Any, *values: Any) -> Any:
    """Run one job with the values of the upstream ``jobs``, as a plain Dask task."""
    pairs = zip(jobs, values, strict=True)
    deps = [BundleValues(range(job, job + 1), [value]) for job, value in pairs]
    return call_job(spec, payload, deps)


def call_job(spec: BundleSpec, payload: Any, deps: Sequence[BundleValues]) -> Any:
    """Call the payload of the one job of ``spec``; whatever it raises is raised.

    Raises
    ------
    WorkflowError
        An input has no value, or the payload is a command.
    """
    inputs = JobInputs(spec, deps, pickle.loads)
    job = spec.jobs[0]
    try:
        if spec.kind == "graph":
            function, args, kwargs = pickle.loads(payload[job])
            upstream = inputs.upstream(job)
            return function(*_filled(args, upstream), **_filled(kwargs, upstream))
        assert isinstance(payload, Payload)
        slots = inputs.slots(job)
    except Blocked as error:
        raise WorkflowError(f"{spec.name}[{job}]: no value for {error}") from None
    return payload.function(*_filled(payload.args, slots), **_filled(payload.kwargs or {}, slots))


def _filled(template: Any, values: Any) -> Any:
    if isinstance(template, Slot):
        return values[template.number]
    if isinstance(template, NodeRef):
        return values[template.name]
    if type(template) in (list, tuple):
        return type(template)(_filled(part, values) for part in template)
    if type(template) is dict:
        return {key: _filled(part, values) for key, part in template.items()}
    return template


# --- results ----------------------------------------------------------------------------


def _keys(engine: Engine, shape: ResultShape, names: Mapping[int, str]) -> Iterator[Key]:
    for part in shape.parts:
        yield from _keys(engine, part, names)
    if shape.dataset is not None:
        for task in _tasks_in(shape.dataset):
            yield from ((names[task], job) for job in range(engine.tasks[task].n))


def _tasks_in(dataset: Dataset) -> list[int]:
    return list(dict.fromkeys(makers(dataset)))


def _shaped(compiled: Compiled, shape: ResultShape, values: Iterator[Any]) -> Any:
    match shape.kind:
        case "value":
            return shape.value
        case "dict":
            parts = [_shaped(compiled, part, values) for part in shape.parts]
            return dict(zip(shape.keys, parts, strict=True))
        case "list":
            return [_shaped(compiled, part, values) for part in shape.parts]
        case "tuple":
            return tuple(_shaped(compiled, part, values) for part in shape.parts)
    assert shape.dataset is not None
    found = {
        task: [next(values) for _ in range(compiled.engine.tasks[task].n)]
        for task in _tasks_in(shape.dataset)
    }
    return _dataset_value(compiled, shape, found)


def _dataset_value(compiled: Compiled, shape: ResultShape, found: dict[int, list[Any]]) -> Any:
    dataset = shape.dataset
    assert dataset is not None and not isinstance(dataset, Choice | LoopEnd | Scattered)
    if isinstance(dataset, Output):
        spec = compiled.engine.tasks[dataset.task].spec
        if spec.kind == "graph":
            return dict(zip(spec.node_names, found[dataset.task], strict=True))
        return found[dataset.task][0] if shape.single else found[dataset.task]
    from pandaflow.core.datasets import size
    from pandaflow.core.slices import reader

    get = reader(compiled.engine, dataset, compiled.items, found)
    values = [get(item) for item in range(size(compiled.engine, dataset).n)]
    return values[0] if shape.single else values


# --- schedulers -------------------------------------------------------------------------


def default_scheduler() -> Any:
    """Return Dask's threaded scheduler."""
    from dask.threaded import get

    return get


def compute(collection: Any, scheduler: Any, options: Mapping[str, Any]) -> Any:
    """Compute a collection with a scheduler by name, or a ``distributed.Client``."""
    import dask

    if hasattr(scheduler, "compute") and hasattr(scheduler, "gather"):
        return scheduler.compute(collection, **options).result()
    (value,) = dask.compute(collection, scheduler=scheduler, **options)
    return value


def visualize(collection: Any, filename: str | None, options: Mapping[str, Any]) -> Any:
    """Draw a collection's graph with Dask."""
    import dask

    return dask.visualize(collection, filename=filename or "workflow", **options)
