"""Dataset arithmetic: how long a dataset is, which jobs make its items, who reads them.

These functions ask a :class:`World` (the engine) what it knows of tasks and sources, and answer
in ranges; none of them walks over items.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pandaflow.core.model import (
    Choice,
    Concat,
    Cross,
    CrossPart,
    Dataset,
    LoopEnd,
    Output,
    Scattered,
    Source,
    TaskSpec,
)


@dataclass(slots=True)
class Arrivals:
    """Items of the lists that a scattering task's jobs returned, in order of arrival.

    Attributes
    ----------
    jobs : list of int
        The job that brought each segment.
    starts : list of int
        First item of each segment; one more entry than ``jobs``.
    """

    jobs: list[int]
    starts: list[int]

    @property
    def n(self) -> int:
        """Items so far."""
        return self.starts[-1]

    def add(self, job: int, count: int) -> None:
        """Note that ``job`` brought ``count`` items."""
        self.jobs.append(job)
        self.starts.append(self.starts[-1] + count)

    def locate(self, item: int) -> tuple[int, int]:
        """Return (job, position in its list) of an item."""
        segment = bisect_right(self.starts, item) - 1
        return self.jobs[segment], item - self.starts[segment]

    def jobs_of(self, lo: int, hi: int) -> list[int]:
        """Return the jobs that brought the items ``[lo, hi)``, ascending."""
        if hi <= lo:
            return []
        first, last = bisect_right(self.starts, lo) - 1, bisect_right(self.starts, hi - 1) - 1
        starts = self.starts
        return sorted({self.jobs[k] for k in range(first, last + 1) if starts[k] < starts[k + 1]})


@dataclass(frozen=True, slots=True)
class Size:
    """Items known so far; ``closed``: no more will come. ``known`` False: not even that."""

    n: int = 0
    closed: bool = False
    known: bool = True


UNBOUND = Size(known=False)


class World(Protocol):
    """What dataset arithmetic asks of the engine."""

    def source_size(self, source: int) -> Size:
        """Size of a source."""
        ...

    def task_size(self, task: int) -> Size:
        """Jobs of a task."""
        ...

    def arrivals(self, task: int) -> Arrivals:
        """Items of a scattering task."""
        ...

    def ended(self, task: int) -> bool:
        """Whether a task has succeeded, so that it will bring no more items."""
        ...

    def verdict(self, gate: int) -> bool | None:
        """What a gate said; None: nothing yet."""
        ...

    def loop_result(self, loop: int) -> Dataset | None:
        """A loop's last state; None: it goes on."""
        ...


def resolve(world: World, dataset: Dataset) -> Dataset | None:
    """Return the dataset behind a choice or a loop; None where it is not decided."""
    if isinstance(dataset, Choice):
        verdict = world.verdict(dataset.gate)
        if verdict is None:
            return None
        return resolve(world, dataset.then if verdict else dataset.otherwise)
    if isinstance(dataset, LoopEnd):
        result = world.loop_result(dataset.loop)
        return None if result is None else resolve(world, result)
    return dataset


def size(world: World, dataset: Dataset) -> Size:
    """Return how long a dataset is."""
    match dataset:
        case Source(id=source):
            return world.source_size(source)
        case Output(task=task):
            return world.task_size(task)
        case Scattered(task=task):
            return Size(world.arrivals(task).n, world.ended(task))
        case CrossPart(cross=cross):
            return size(world, cross)
        case Cross(parts=parts):
            return _product([size(world, part) for part in parts])
        case Concat(parts=parts):
            return _sum([size(world, part) for part in parts])
    inner = resolve(world, dataset)
    return UNBOUND if inner is None else size(world, inner)


def _product(sizes: list[Size]) -> Size:
    # Only the first part may still grow: the others are strides of the numbering.
    if not all(s.known for s in sizes) or not all(s.closed for s in sizes[1:]):
        return UNBOUND
    total = 1
    for part in sizes:
        total *= part.n
    return Size(total, sizes[0].closed)


def _sum(sizes: list[Size]) -> Size:
    if not all(s.known for s in sizes) or not all(s.closed for s in sizes[:-1]):
        return UNBOUND
    return Size(sum(s.n for s in sizes), sizes[-1].closed)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A piece of a dataset: items ``[lo, hi)`` of a source, or jobs ``[lo, hi)`` of a task."""

    of: Source | Output | Scattered
    lo: int
    hi: int


def leaves(world: World, dataset: Dataset, lo: int, hi: int) -> Iterator[Leaf]:
    """Yield what the items ``[lo, hi)`` of a dataset are made of.

    For a scattered dataset the range counts its items, not the jobs that brought them.
    """
    if hi <= lo:
        return
    match dataset:
        case Source() | Output() | Scattered():
            yield Leaf(dataset, lo, hi)
        case Cross(parts=parts):
            for part in range(len(parts)):
                yield from leaves(world, CrossPart(dataset, part), lo, hi)
        case CrossPart(cross=cross, part=part):
            for a, b in _component(world, cross, part, lo, hi):
                yield from leaves(world, cross.parts[part], a, b)
        case Concat(parts=parts):
            start = 0
            for inner in parts:
                stop = start + size(world, inner).n
                yield from leaves(world, inner, max(lo, start) - start, min(hi, stop) - start)
                start = stop
        case _:
            inner_dataset = resolve(world, dataset)
            if inner_dataset is not None:
                yield from leaves(world, inner_dataset, lo, hi)


def _strides(world: World, cross: Cross, part: int) -> tuple[int, int]:
    stride = 1
    for later in cross.parts[part + 1 :]:
        stride *= size(world, later).n
    return stride, size(world, cross.parts[part]).n


def _component(world: World, cross: Cross, part: int, lo: int, hi: int) -> list[tuple[int, int]]:
    """Items of one part that the items ``[lo, hi)`` of a product read."""
    stride, length = _strides(world, cross, part)
    first, last = lo // stride, (hi - 1) // stride
    if last - first + 1 >= length:
        return [(0, length)]
    a, b = first % length, last % length
    return [(a, b + 1)] if a <= b else [(a, length), (0, b + 1)]


def readers(
    world: World, dataset: Dataset, task: int, lo: int, hi: int
) -> Iterator[tuple[int, int]]:
    """Yield ranges of items of ``dataset`` that are made of the jobs ``[lo, hi)`` of ``task``."""
    match dataset:
        case Output(task=maker) if maker == task:
            yield lo, hi
        case Scattered(task=maker) if maker == task:
            yield from _brought(world.arrivals(task), lo, hi)
        case Cross(parts=parts):
            for part in range(len(parts)):
                yield from readers(world, CrossPart(dataset, part), task, lo, hi)
        case CrossPart(cross=cross, part=part):
            for a, b in readers(world, cross.parts[part], task, lo, hi):
                yield from _repeats(world, cross, part, a, b)
        case Concat():
            yield from _readers_in_row(world, dataset, task, lo, hi)
        case Choice() | LoopEnd():
            decided = resolve(world, dataset)
            if decided is not None:
                yield from readers(world, decided, task, lo, hi)


def _readers_in_row(
    world: World, row: Concat, task: int, lo: int, hi: int
) -> Iterator[tuple[int, int]]:
    start = 0
    for inner in row.parts:
        for a, b in readers(world, inner, task, lo, hi):
            yield a + start, b + start
        start += size(world, inner).n


def _brought(arrivals: Arrivals, lo: int, hi: int) -> Iterator[tuple[int, int]]:
    for segment, job in enumerate(arrivals.jobs):
        if lo <= job < hi:
            yield arrivals.starts[segment], arrivals.starts[segment + 1]


def _repeats(world: World, cross: Cross, part: int, lo: int, hi: int) -> Iterator[tuple[int, int]]:
    stride, length = _strides(world, cross, part)
    block = stride * length
    total = size(world, cross).n
    if part == 0:
        yield lo * stride, min(hi * stride, total)
        return
    if not total:
        return  # another part is empty, and so is the block
    for start in range(0, total, block):
        yield start + lo * stride, start + hi * stride


def makers(dataset: Dataset) -> Iterator[int]:
    """Yield the tasks whose outputs a dataset may hold, both sides of choices included."""
    match dataset:
        case Output(task=task) | Scattered(task=task):
            yield task
        case Cross(parts=parts) | Concat(parts=parts):
            for part in parts:
                yield from makers(part)
        case CrossPart(cross=cross):
            yield from makers(cross)
        case Choice(gate=gate, then=then, otherwise=otherwise):
            yield gate
            yield from makers(then)
            yield from makers(otherwise)


def atoms(dataset: Dataset) -> Iterator[Dataset]:
    """Yield the sources, outputs, choices and loop ends that a dataset is put together from."""
    match dataset:
        case Cross(parts=parts) | Concat(parts=parts):
            for part in parts:
                yield from atoms(part)
        case CrossPart(cross=cross):
            yield from atoms(cross)
        case _:
            yield dataset


def loops_in(dataset: Dataset) -> Iterator[int]:
    """Yield the loops whose ends a dataset may hold, both sides of choices included."""
    for atom in atoms(dataset):
        match atom:
            case LoopEnd(loop=loop):
                yield loop
            case Choice(then=then, otherwise=otherwise):
                yield from loops_in(then)
                yield from loops_in(otherwise)


def upstream_of(spec: TaskSpec) -> set[int] | None:
    """Return the tasks that a task names as its inputs, barriers and gates.

    None if it reads what a loop comes to: the tasks behind that change from turn to turn.
    """
    given = [*(slot.dataset for slot in spec.inputs), *spec.after]
    if any(True for dataset in given for _ in loops_in(dataset)):
        return None
    return {task for dataset in given for task in makers(dataset)} | {g for g, _ in spec.guards}
