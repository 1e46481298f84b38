"""The tasks of a workflow as a graph, to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pandaflow.core.datasets import makers
from pandaflow.core.model import Dataset, LoopEnd, Source, WorkflowSpec

if TYPE_CHECKING:
    import networkx


def task_graph(spec: WorkflowSpec, sizes: Mapping[int, int | None]) -> networkx.DiGraph[str]:
    """Return the tasks as a read-only graph; see :attr:`pandaflow.workflows.Workflow.graph`.

    Parameters
    ----------
    spec : WorkflowSpec
    sizes : mapping of int to int or None
        Jobs of each task; None: not known before the run.
    """
    import networkx

    graph: networkx.DiGraph[str] = networkx.DiGraph(name=spec.name)
    _add_sources(graph, spec)
    names = {task.id: task.name for task in spec.tasks}
    for task in spec.tasks:
        graph.add_node(task.name, jobs=sizes[task.id], kind=task.kind, token=task.token)
        for dataset in [slot.dataset for slot in task.inputs] + list(task.after):
            for number in makers(dataset):
                if number in names:
                    graph.add_edge(names[number], task.name)
            for source_id in _sources_in(dataset):
                if source_id >= 0:
                    graph.add_edge(_source_name(spec, source_id), task.name)
        for gate, _ in task.guards:
            graph.add_edge(names[gate], task.name)
    _add_loops(graph, spec, names)
    edges = [edge for steerer in spec.steerers for edge in steerer.edges]
    graph.add_edges_from(edge for edge in edges if edge[0] in graph and edge[1] in graph)
    frozen: networkx.DiGraph[str] = networkx.freeze(graph)
    return frozen


def _add_sources(graph: Any, spec: WorkflowSpec) -> None:
    datasets = [slot.dataset for task in spec.tasks for slot in task.inputs]
    used = {source for dataset in datasets for source in _sources_in(dataset)}
    for source in spec.sources:
        if source.id in used:
            n = None if source.kind == "stream" else source.n
            unit = "files" if source.kind == "files" else ""
            graph.add_node(_source_name(spec, source.id), jobs=n, kind="source", unit=unit)


def _add_loops(graph: Any, spec: WorkflowSpec, names: Mapping[int, str]) -> None:
    for loop in spec.loops:
        graph.add_node(loop.name, jobs=None, kind="loop")
        for number in makers(loop.state):
            graph.add_edge(names[number], loop.name)
        for task in spec.tasks:
            if any(_loops_in(slot.dataset, loop.id) for slot in task.inputs):
                graph.add_edge(loop.name, task.name)


def _source_name(spec: WorkflowSpec, source: int) -> str:
    label = spec.sources[source].name
    same = [s.id for s in spec.sources if s.name == label]
    return label if len(same) == 1 else f"{label} ({same.index(source) + 1})"


def _leaves(dataset: Dataset) -> Iterator[Dataset]:
    """Yield what a dataset is made of: sources, outputs, loops."""
    inner: list[Dataset] = []
    for name in ("parts", "then", "otherwise", "cross"):
        value = getattr(dataset, name, ())
        inner += value if isinstance(value, tuple) else (value,)
    if not inner:
        yield dataset
    for part in inner:
        yield from _leaves(part)


def _sources_in(dataset: Dataset) -> set[int]:
    return {leaf.id for leaf in _leaves(dataset) if isinstance(leaf, Source)}


def _loops_in(dataset: Dataset, loop: int) -> bool:
    return any(isinstance(leaf, LoopEnd) and leaf.loop == loop for leaf in _leaves(dataset))
