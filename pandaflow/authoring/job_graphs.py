"""Arbitrary graphs of jobs, as Rubin's quanta."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import cloudpickle

from pandaflow.authoring.arguments import common_fields
from pandaflow.authoring.collections import Collection, Placed, Whole
from pandaflow.authoring.tasks import Task
from pandaflow.authoring.trace import active_trace, serialize
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Output, TaskSpec
from pandaflow.core.template import NodeRef
from pandaflow.options import Options, change


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
    frames = [serialize(parsed[node], f"{name}, node {node!r}", parsed[node]) for node in order]
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
            **common_fields(task._options),
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
                raise WorkflowError(
                    f"pf.job_graph: node {name!r} needs {other!r}, which is no node"
                )
    return upstream


def _topological(upstream: Mapping[str, set[str]]) -> list[str]:
    """Order nodes so that each comes after those it needs, longest way to the end first.

    Sent in this order, jobs make a list schedule by critical path, which keeps the makespan near
    its lower bound (Graham 1969; Hu 1961).
    """
    try:
        order = list(TopologicalSorter(upstream).static_order())
    except CycleError as error:
        path = " -> ".join(error.args[1])
        raise WorkflowError(f"pf.job_graph: the nodes form a cycle: {path}") from None
    level = dict.fromkeys(order, 0)
    downstream: dict[str, list[str]] = {name: [] for name in order}
    for name in reversed(order):
        for before in upstream[name]:
            level[before] = max(level[before], level[name] + 1)
            downstream[before].append(name)
    missing = {name: len(upstream[name]) for name in order}
    heap = [(-level[name], name) for name in order if not missing[name]]
    heapq.heapify(heap)
    out: list[str] = []
    while heap:
        name = heapq.heappop(heap)[1]
        out.append(name)
        for behind in downstream[name]:
            missing[behind] -= 1
            if not missing[behind]:
                heapq.heappush(heap, (-level[behind], behind))
    return out
