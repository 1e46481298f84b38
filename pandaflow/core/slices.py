"""Slices of the compiled workflow: what a worker must know to run one bundle.

The chunk maps of a million jobs stay arithmetic in the driver; a bundle gets the few pieces that
its own jobs read: a slice of each source, and which upstream bundle holds which value.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pandaflow.core.bundle import BundleSpec, BundleValues, Chunks, JobInputs, SourceSlice
from pandaflow.core.chunking import Bounds, ChunkMap, Fixed, NoItems
from pandaflow.core.commands import EmitBundle
from pandaflow.core.datasets import resolve, size
from pandaflow.core.engine import Engine
from pandaflow.core.model import (
    Choice,
    Concat,
    Cross,
    CrossPart,
    Dataset,
    Input,
    Jobs,
    LoopEnd,
    Output,
    Scattered,
    Source,
    TaskSpec,
)
from pandaflow.core.sizing import PATIENCE_S
from pandaflow.core.taskrun import TaskRun


class SourceItems(Protocol):
    """Gives the items of sources."""

    def items(self, source: int, lo: int, hi: int) -> SourceSlice:
        """Return items ``[lo, hi)`` of a source."""
        ...


@dataclass(frozen=True, slots=True)
class Shifted:
    """A piece of a chunk map with irregular bounds: those of some jobs only."""

    first: int
    bounds: tuple[int, ...]

    def items(self, job: int) -> tuple[int, int]:
        """Return the items ``[lo, hi)`` that ``job`` reads."""
        return self.bounds[job - self.first], self.bounds[job - self.first + 1]


def concrete(engine: Engine, dataset: Dataset) -> Dataset:
    """Return a dataset with its choices and loops replaced by what they came to."""
    match dataset:
        case Choice() | LoopEnd():
            inner = resolve(engine, dataset)
            assert inner is not None, "jobs are sent only when their inputs are decided"
            return concrete(engine, inner)
        case Cross(parts=parts):
            return Cross(tuple(concrete(engine, part) for part in parts))
        case Concat(parts=parts):
            return Concat(tuple(concrete(engine, part) for part in parts))
        case CrossPart(cross=cross, part=part):
            inner_cross = concrete(engine, cross)
            assert isinstance(inner_cross, Cross)
            return CrossPart(inner_cross, part)
    return dataset


def bundle_spec(
    engine: Engine, emit: EmitBundle, sources: SourceItems, *, run: str, results: str
) -> BundleSpec:
    """Describe a bundle to its worker."""
    task = engine.tasks[emit.task]
    pieces = _Pieces(engine, task, emit.jobs)
    made = describe(engine, task, emit.jobs, sources, _places(emit, pieces.outputs), pieces)
    upstream = set(pieces.outputs) | {number for number, _ in emit.absent}
    return replace(
        made,
        run=run,
        bundle=emit.bundle,
        attempt=emit.attempt,
        absent=frozenset(emit.absent),
        names={number: engine.tasks[number].spec.name for number in sorted(upstream)},
        resources=emit.resources,
        join=emit.join,
        seconds=PATIENCE_S if len(emit.jobs) > 1 else 0.0,
        results=results,
    )


def describe(
    engine: Engine,
    task: TaskRun,
    jobs: Jobs,
    sources: SourceItems,
    outputs: Mapping[int, tuple[int, ...]],
    pieces: _Pieces | None = None,
) -> BundleSpec:
    """Describe jobs of a task, given where the values are that they read."""
    spec = task.spec
    inputs = tuple(Input(concrete(engine, s.dataset), s.mode) for s in spec.inputs)
    pieces = pieces or _Pieces(engine, task, jobs)
    return BundleSpec(
        run="",
        bundle=0,
        task=spec.id,
        name=spec.name,
        token=spec.token,
        kind=spec.kind,
        jobs=jobs,
        attempt=1,
        lists=spec.lists,
        inputs=inputs,
        chunks=_piece(task.chunks or NoItems(0), jobs),
        lengths=_lengths(engine, inputs),
        sources={s: sources.items(s, lo, hi) for s, (lo, hi) in pieces.sources.items()},
        outputs=outputs,
        scattered=pieces.scattered,
        edges={job: spec.edges[job] for job in jobs} if spec.edges else {},
        node_names=_node_names(task, jobs),
        container=spec.container or "",
        requirements=spec.requirements,
        cache=spec.cache,
        scatters=spec.scatters,
        gate=spec.gate,
    )


def reader(
    engine: Engine, dataset: Dataset, sources: SourceItems, found: Mapping[int, Sequence[Any]]
) -> Callable[[int], Any]:
    """Return a function from item number to item, given all values of the tasks it is made of."""
    n = size(engine, dataset).n
    probe = TaskRun(TaskSpec(id=-1, name="", token="", payload="", inputs=(Input(dataset),)))
    probe.chunks = Fixed(n)
    order = list(found)
    spec = describe(engine, probe, range(n), sources, {task: (k,) for k, task in enumerate(order)})
    deps = [BundleValues(range(len(found[task])), list(found[task])) for task in order]
    slots = JobInputs(spec, deps, pickle.loads)
    return lambda item: slots.slots(item)[0]


def _piece(chunks: ChunkMap, jobs: Jobs) -> Chunks:
    if not isinstance(chunks, Bounds):
        return chunks
    return Shifted(jobs[0], tuple(chunks.bounds[jobs[0] : jobs[-1] + 2]))


def _node_names(task: TaskRun, jobs: Jobs) -> dict[int, str]:
    if not task.spec.edges:
        return {}
    wanted = {up for job in jobs for up in task.spec.edges[job]} | set(jobs)
    return {job: task.spec.node_names[job] for job in wanted}


def _lengths(engine: Engine, inputs: Sequence[Input]) -> dict[Dataset, int]:
    out: dict[Dataset, int] = {}

    def note(dataset: Dataset) -> None:
        if isinstance(dataset, Cross | Concat):
            for part in dataset.parts:
                out[part] = size(engine, part).n
                note(part)
        elif isinstance(dataset, CrossPart):
            note(dataset.cross)

    for slot in inputs:
        if slot.mode == "whole":
            out[slot.dataset] = size(engine, slot.dataset).n
        note(slot.dataset)
    return out


class _Pieces:
    """Collects what the jobs of a bundle read."""

    def __init__(self, engine: Engine, task: TaskRun, jobs: Jobs) -> None:
        self._engine, self._task, self._jobs = engine, task, jobs
        self.sources: dict[int, tuple[int, int]] = {}
        self.outputs: dict[int, set[int]] = {}
        self.scattered: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {}
        self._collect()

    def _collect(self) -> None:
        first, last = self._jobs[0], self._jobs[-1] + 1
        for slot in self._task.spec.inputs:
            for leaf in self._engine.leaves_of(self._task, slot, first, last):
                match leaf.of:
                    case Source(id=source):
                        lo, hi = self.sources.get(source, (leaf.lo, leaf.hi))
                        self.sources[source] = (min(lo, leaf.lo), max(hi, leaf.hi))
                    case Output(task=task):
                        table = self._engine.tasks[task].table
                        self._need(task, table.bundles(leaf.lo, leaf.hi))
                    case Scattered(task=task):
                        self._scatter(task, leaf.lo, leaf.hi)
        if self._task.spec.edges:
            table = self._task.table
            upstream = {up for job in self._jobs for up in self._task.spec.edges[job]}
            self._need(self._task.spec.id, {table.bundle[up] for up in upstream})

    def _need(self, task: int, bundles: set[int]) -> None:
        self.outputs.setdefault(task, set()).update(bundles - {-1})

    def _scatter(self, task: int, lo: int, hi: int) -> None:
        offset, known = self.scattered.get(task, (lo, ()))
        lo, hi = min(lo, offset), max(hi, offset + len(known))
        run = self._engine.tasks[task]
        self.scattered[task] = (lo, tuple(run.arrivals.locate(item) for item in range(lo, hi)))
        self._need(task, {run.table.bundle[job] for job in run.arrivals.jobs_of(lo, hi)})


def _places(emit: EmitBundle, outputs: dict[int, set[int]]) -> dict[int, tuple[int, ...]]:
    """Return the numbers of the dependencies by task; bundles are numbered in order of time."""
    place = {bundle: dep for dep, bundle in enumerate(emit.needs)}
    return {
        task: tuple(place[b] for b in sorted(bundles) if b in place)
        for task, bundles in outputs.items()
    }
