"""Arithmetic of datasets against walking over every item."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.datasets import (
    UNBOUND,
    Arrivals,
    Size,
    atoms,
    leaves,
    loops_in,
    makers,
    readers,
    resolve,
    size,
)
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
)


@dataclass
class Known:
    """What the arithmetic asks of an engine."""

    sources: dict[int, Size] = field(default_factory=dict)
    tasks: dict[int, Size] = field(default_factory=dict)
    lists: dict[int, Arrivals] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)
    truths: dict[int, bool] = field(default_factory=dict)
    ends: dict[int, Dataset] = field(default_factory=dict)

    def source_size(self, source: int) -> Size:
        return self.sources[source]

    def task_size(self, task: int) -> Size:
        return self.tasks[task]

    def arrivals(self, task: int) -> Arrivals:
        return self.lists[task]

    def ended(self, task: int) -> bool:
        return task in self.over

    def verdict(self, gate: int) -> bool | None:
        return self.truths.get(gate)

    def loop_result(self, loop: int) -> Dataset | None:
        return self.ends.get(loop)


WORLD = Known(
    sources={0: Size(4, True), 1: Size(0, True)},
    tasks={0: Size(3, True), 1: Size(5, True), 2: Size(2, True), 9: UNBOUND},
    lists={2: Arrivals([1, 0], [0, 3, 4])},
    over={2},
    truths={7: True, 8: False},
    ends={0: Output(1), 1: LoopEnd(0)},
)
LEAVES = st.sampled_from([Source(0), Source(1), Output(0), Output(1), Scattered(2)])
CHOSEN = st.sampled_from(
    [Choice(7, Output(0), Output(9)), Choice(8, Output(9), Source(0)), LoopEnd(1)]
)
DATASETS: st.SearchStrategy[Dataset] = st.recursive(
    LEAVES | CHOSEN,
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: Concat(tuple(parts)))
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: Cross(tuple(parts)))
    ),
    max_leaves=5,
).filter(lambda dataset: size(WORLD, dataset).n <= 500)  # the naive walk visits each item


def walk(dataset: Dataset) -> list[frozenset[tuple[object, int]]]:
    """For each item, the leaf items that it is made of, found by brute force."""
    match dataset:
        case Source(id=source):
            return [frozenset({(dataset, k)}) for k in range(WORLD.sources[source].n)]
        case Output(task=task):
            return [frozenset({(dataset, k)}) for k in range(WORLD.tasks[task].n)]
        case Scattered(task=task):
            return [frozenset({(dataset, k)}) for k in range(WORLD.lists[task].n)]
        case Concat(parts=parts):
            return [item for part in parts for item in walk(part)]
        case Cross(parts=parts):
            out = [frozenset[tuple[object, int]]()]
            for part in parts:
                out = [one | other for one in out for other in walk(part)]
            return out
        case CrossPart(cross=cross, part=part):
            return [item for item in _components(cross, part)]
    inner = resolve(WORLD, dataset)
    assert inner is not None
    return walk(inner)


def _components(cross: Cross, part: int) -> list[frozenset[tuple[object, int]]]:
    lists = [walk(one) for one in cross.parts]
    out: list[frozenset[tuple[object, int]]] = [frozenset()]
    for number, items in enumerate(lists):
        out = [one if number != part else item for one in out for item in items]
    return out


@given(DATASETS)
def test_size(dataset: Dataset) -> None:
    assert size(WORLD, dataset) == Size(len(walk(dataset)), True)


@given(DATASETS, st.data())
def test_leaves(dataset: Dataset, data: st.DataObject) -> None:
    items = walk(dataset)
    lo = data.draw(st.integers(0, len(items)))
    hi = data.draw(st.integers(lo, min(len(items), lo + 12)))
    found = {
        (leaf.of, k) for leaf in leaves(WORLD, dataset, lo, hi) for k in range(leaf.lo, leaf.hi)
    }
    exact = frozenset().union(*items[lo:hi])
    assert exact <= found
    if not any(isinstance(part, Cross) for part in _parts(dataset)):
        assert found == exact


@given(DATASETS, st.data())
def test_components_of_products(dataset: Dataset, data: st.DataObject) -> None:
    cross = Cross((dataset, Output(0)))
    part = data.draw(st.integers(0, 1))
    items = walk(CrossPart(cross, part))
    assert size(WORLD, CrossPart(cross, part)).n == len(items)
    lo = data.draw(st.integers(0, len(items)))
    hi = data.draw(st.integers(lo, min(len(items), lo + 12)))
    component = leaves(WORLD, CrossPart(cross, part), lo, hi)
    found = {(leaf.of, k) for leaf in component for k in range(leaf.lo, leaf.hi)}
    assert frozenset().union(*items[lo:hi]) <= found


@given(DATASETS, st.sampled_from([0, 1]), st.data())
def test_readers(dataset: Dataset, task: int, data: st.DataObject) -> None:
    n = WORLD.tasks[task].n
    lo = data.draw(st.integers(0, n))
    hi = data.draw(st.integers(lo, n))
    wanted = {(Output(task), k) for k in range(lo, hi)}
    exact = {item for item, made in enumerate(walk(dataset)) if made & wanted}
    found = {k for a, b in readers(WORLD, dataset, task, lo, hi) for k in range(a, b)}
    assert exact <= found
    assert found <= set(range(len(walk(dataset))))


def _parts(dataset: Dataset) -> list[Dataset]:
    inner = list(dataset.parts) if isinstance(dataset, Cross | Concat) else []
    decided = resolve(WORLD, dataset)
    if decided is not None and decided is not dataset:
        inner.append(decided)
    return [dataset, *(p for part in inner for p in _parts(part))]


def test_readers_of_scattered_items() -> None:
    assert list(readers(WORLD, Scattered(2), 2, 1, 2)) == [(0, 3)]
    assert list(readers(WORLD, Scattered(2), 2, 0, 2)) == [(0, 3), (3, 4)]
    assert list(readers(WORLD, Scattered(2), 1, 0, 2)) == []


def test_openness() -> None:
    open_ = Known(
        sources={0: Size(2, False), 1: Size(3, True)},
        tasks={0: Size(1, False), 9: UNBOUND},
        lists={3: Arrivals([0], [0, 5])},
    )
    stream, known, scattered = Source(0), Source(1), Scattered(3)
    assert size(open_, stream) == Size(2, False)
    assert size(open_, scattered) == Size(5, False)
    # What comes first may grow in a product, what comes last in a concatenation.
    assert size(open_, Cross((stream, known))) == Size(6, False)
    assert size(open_, Cross((known, stream))) == UNBOUND
    assert size(open_, Concat((known, stream))) == Size(5, False)
    assert size(open_, Concat((stream, known))) == UNBOUND
    assert size(open_, Choice(1, known, stream)) == UNBOUND
    assert size(open_, LoopEnd(0)) == UNBOUND
    assert size(open_, Concat((known, Output(9)))) == UNBOUND


def test_arrivals() -> None:
    came = Arrivals([], [0])
    for job, count in ((3, 2), (0, 0), (1, 3)):
        came.add(job, count)
    assert came.n == 5
    assert [came.locate(item) for item in range(5)] == [(3, 0), (3, 1), (1, 0), (1, 1), (1, 2)]
    assert came.jobs_of(0, 2) == [3]
    assert came.jobs_of(1, 3) == [1, 3]
    assert came.jobs_of(2, 2) == []


def test_makers_atoms_and_loops() -> None:
    dataset = Concat(
        (Cross((Output(1), Source(0))), Choice(7, Scattered(2), LoopEnd(4)), LoopEnd(5))
    )
    assert list(makers(dataset)) == [1, 7, 2]
    assert list(loops_in(dataset)) == [4, 5]
    assert list(atoms(dataset)) == [
        Output(1),
        Source(0),
        Choice(7, Scattered(2), LoopEnd(4)),
        LoopEnd(5),
    ]
    assert list(atoms(CrossPart(Cross((Output(1), Output(2))), 0))) == [Output(1), Output(2)]


def test_resolving() -> None:
    assert resolve(WORLD, Choice(7, LoopEnd(1), Source(0))) == Output(1)
    assert resolve(WORLD, Choice(99, Source(0), Source(0))) is None
    assert resolve(WORLD, LoopEnd(99)) is None
    assert resolve(WORLD, Choice(8, Source(0), Choice(99, Source(0), Source(0)))) is None
