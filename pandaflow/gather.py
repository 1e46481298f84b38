"""Results: from the files of a run's bundles back to what the workflow function returned."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from pandaflow.core.bundle import Missing
from pandaflow.core.datasets import resolve, size
from pandaflow.core.engine import Engine
from pandaflow.core.jobtable import FINISHED
from pandaflow.core.model import (
    Concat,
    Cross,
    CrossPart,
    Dataset,
    Output,
    ResultShape,
    Scattered,
    Source,
    WorkflowSpec,
)
from pandaflow.data.items import StoredItems
from pandaflow.data.results import ResultStore
from pandaflow.ports import RunState
from pandaflow.restore import restore

#: Bundles kept unpacked while their jobs are picked out.
_KEPT = 8

_GAP = Missing("there is no value", absent=True)


class Gatherer:
    """Reads values of a run.

    Parameters
    ----------
    engine : Engine
        Restored from the store; tells how many items there are and who made them.
    results : ResultStore
    items : StoredItems
    """

    def __init__(self, engine: Engine, results: ResultStore, items: StoredItems) -> None:
        self._engine, self._results, self._items = engine, results, items
        self._bundle = lru_cache(maxsize=_KEPT)(self._load)

    @property
    def spec(self) -> WorkflowSpec:
        """The workflow."""
        return self._engine.spec

    def items(self, dataset: Dataset) -> Sequence[Any]:
        """Return the items of a dataset by number; None stands for those without a value."""
        if isinstance(dataset, Output):
            n = self._engine.tasks[dataset.task].n
            values = [self.value(dataset.task, job) for job in range(n)]
        elif isinstance(dataset, Scattered):
            arrivals = self._engine.tasks[dataset.task].arrivals
            places = (arrivals.locate(item) for item in range(arrivals.n))
            values = [self.value(dataset.task, job)[place] for job, place in places]
        else:
            values = list(self._values(dataset))
        return [None if type(value) is Missing else value for value in values]

    def shaped(self, shape: ResultShape) -> Any:
        """Return the values in the shape that the workflow function gave them."""
        match shape.kind:
            case "value":
                return shape.value
            case "list":
                return [self.shaped(part) for part in shape.parts]
            case "tuple":
                return tuple(self.shaped(part) for part in shape.parts)
            case "dict":
                parts = zip(shape.keys, shape.parts, strict=True)
                return {key: self.shaped(part) for key, part in parts}
        assert shape.dataset is not None
        return self._whole(shape.dataset, single=shape.single)

    def _whole(self, dataset: Dataset, *, single: bool) -> Any:
        decided = resolve(self._engine, dataset)
        if decided is None:
            return None if single else []
        if isinstance(decided, Output) and self._engine.tasks[decided.task].spec.kind == "graph":
            names = self._engine.tasks[decided.task].spec.node_names
            pairs = zip(names, self._values(decided), strict=True)
            return {name: value for name, value in pairs if value is not _GAP}
        values = [value for value in self._values(decided) if type(value) is not Missing]
        if single:
            return values[0] if values else None
        return values

    def value(self, task: int, job: int) -> Any:
        """Return what one job returned, or a :class:`Missing`."""
        table = self._engine.tasks[task].table
        if table.state[job] != FINISHED:
            return _GAP
        bundle = table.bundle[job]
        return self._bundle(bundle)[job]

    def _load(self, bundle: int) -> dict[int, Any]:
        loaded = self._results.load(self._results.place(bundle))
        return dict(zip(loaded.jobs, loaded.values, strict=True))

    def _values(self, dataset: Dataset) -> Sequence[Any]:
        match dataset:
            case Output(task=task):
                return [self.value(task, job) for job in self._order(task)]
            case Scattered(task=task):
                lists = [self.value(task, job) for job in range(self._engine.tasks[task].n)]
                return [item for one in lists if type(one) is not Missing for item in one]
            case Source(id=source):
                return self._source(source)
            case Cross(parts=parts):
                return list(itertools.product(*(self._values(part) for part in parts)))
            case CrossPart(cross=cross, part=part):
                return [item[part] for item in self._values(cross)]
            case Concat(parts=parts):
                return [value for part in parts for value in self._values(part)]
        decided = resolve(self._engine, dataset)
        return [] if decided is None else self._values(decided)

    def _source(self, source: int) -> Sequence[Any]:
        piece = self._items.items(source, 0, size(self._engine, Source(source)).n)
        return [pickle.loads(item) for item in piece.items] if piece.pickled else list(piece.items)

    def _order(self, task: int) -> Sequence[int]:
        """Return a task's jobs in the order of their items, however those arrived."""
        run = self._engine.tasks[task]
        rank = self._ranks(task)
        return range(run.n) if rank is None else sorted(range(run.n), key=rank)

    def _ranks(self, task: int) -> Callable[[int], Any] | None:
        run = self._engine.tasks[task]
        for slot in run.mapped:
            place = resolve(self._engine, slot.dataset)
            chunks = run.chunks
            if chunks is None:
                return None
            if isinstance(place, Scattered):
                arrivals = self._engine.tasks[place.task].arrivals
                return lambda job: arrivals.locate(chunks.items(job)[0])
            if isinstance(place, Output):
                inner = self._ranks(place.task)
                if inner is not None:
                    return lambda job: inner(chunks.items(job)[0])
        return None


def gatherer(state: RunState, results: ResultStore | None = None) -> Gatherer:
    """Return a gatherer for a run as the store has it.

    ``results``: where its values are read; default: where the store says that they are.
    """
    results = results or ResultStore(state.results)
    engine = restore(state)
    items = StoredItems({source.id: source for source in engine.spec.sources}, results)
    return Gatherer(engine, results, items)
