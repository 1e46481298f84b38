"""Layered layout of a directed acyclic graph, left to right.

Sugiyama's steps: layers by longest path, bends where an edge passes a layer, order within
layers by barycenters (fewest crossings kept), then heights that pull neighbours level, solved
per layer as an isotonic regression. Deterministic, pure, no dependencies. Edges that leave the
same vertex share their bends, so that a fan-out is drawn as one trunk that branches.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pandaflow.core.errors import WorkflowError

#: Above so many vertices and bends, fewer sweeps are made.
_LARGE = 4000


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is.

    Attributes
    ----------
    layer : list of int
        Layer of each vertex, bends after the vertices.
    y : list of float
        Upper edge of each vertex and bend, pixels.
    routes : list of tuple of int
        For each edge the vertices and bends that it passes, ends included.
    n_layers : int
    height : float
        Pixels.
    """

    layer: list[int]
    y: list[float]
    routes: list[tuple[int, ...]]
    n_layers: int
    height: float


def layered(heights: Sequence[float], edges: Sequence[tuple[int, int]], gap: float) -> Layout:
    """Lay out a graph.

    Parameters
    ----------
    heights : sequence of float
        Height of each vertex, pixels.
    edges : sequence of (int, int)
        Tail and head.
    gap : float
        Least vertical space between vertices, pixels.

    Raises
    ------
    WorkflowError
        The graph has a cycle.
    """
    layer = _layers(len(heights), edges)
    routes, links = _bend(layer, edges)
    sizes = [*heights, *([2.0] * (len(layer) - len(heights)))]
    rows = _order(layer, links)
    y = _place(rows, links, sizes, gap, len(heights))
    height = max((y[v] + sizes[v] for v in range(len(sizes))), default=0.0)
    return Layout(layer, y, routes, len(rows), height)


def _layers(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    after: list[list[int]] = [[] for _ in range(n)]
    waits = [0] * n
    for tail, head in edges:
        after[tail].append(head)
        waits[head] += 1
    roots = [v for v in range(n) if not waits[v]]
    layer, seen = [0] * n, 0
    queue = deque(roots)
    while queue:
        tail = queue.popleft()
        seen += 1
        for head in after[tail]:
            layer[head] = max(layer[head], layer[tail] + 1)
            waits[head] -= 1
            if not waits[head]:
                queue.append(head)
    if seen < n:
        raise WorkflowError("the graph has a cycle; only directed acyclic graphs can be drawn")
    for root in roots:  # what starts a branch stands next to what reads it first
        if after[root]:
            layer[root] = min(layer[head] for head in after[root]) - 1
    return layer


def _bend(
    layer: list[int], edges: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
    """Extend ``layer`` by bends; return the routes and the links between adjacent layers."""
    bends: dict[tuple[int, int], int] = {}
    links: dict[tuple[int, int], None] = {}
    routes = []
    for tail, head in edges:
        route = [tail]
        for level in range(layer[tail] + 1, layer[head]):
            if (tail, level) not in bends:
                bends[tail, level] = len(layer)
                layer.append(level)
            route.append(bends[tail, level])
        route.append(head)
        links.update(dict.fromkeys(itertools.pairwise(route)))
        routes.append(tuple(route))
    return routes, list(links)


def _neighbours(n: int, links: Sequence[tuple[int, int]]) -> tuple[list[list[int]], ...]:
    before: list[list[int]] = [[] for _ in range(n)]
    after: list[list[int]] = [[] for _ in range(n)]
    for tail, head in links:
        after[tail].append(head)
        before[head].append(tail)
    return before, after


def _order(layer: list[int], links: Sequence[tuple[int, int]]) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for vertex, level in enumerate(layer):
        rows[level].append(vertex)
    before, after = _neighbours(len(layer), links)
    best, fewest = [row[:] for row in rows], _crossings(rows, after)
    for sweep in range(12 if len(layer) < _LARGE else 3):
        if not fewest:
            break
        forward = sweep % 2 == 0
        _sweep(rows, before if forward else after, forward)
        crossings = _crossings(rows, after)
        if crossings < fewest:
            best, fewest = [row[:] for row in rows], crossings
    return best


def _sweep(rows: list[list[int]], neighbours: list[list[int]], forward: bool) -> None:
    """Sort each layer by the mean place of its neighbours in the layer just sorted."""
    levels = range(1, len(rows)) if forward else range(len(rows) - 2, -1, -1)
    place = {vertex: at for row in rows for at, vertex in enumerate(row)}
    for level in levels:
        weight = {}
        for vertex in rows[level]:
            near = [place[other] for other in neighbours[vertex]]
            weight[vertex] = sum(near) / len(near) if near else place[vertex]
        rows[level].sort(key=weight.__getitem__)
        place.update((vertex, at) for at, vertex in enumerate(rows[level]))


def _crossings(rows: list[list[int]], after: list[list[int]]) -> int:
    total = 0
    for row, following in itertools.pairwise(rows):
        place = {vertex: at for at, vertex in enumerate(following)}
        passed: list[int] = []
        for vertex in row:
            ends = sorted(place[head] for head in after[vertex])
            total += sum(len(passed) - bisect_right(passed, end) for end in ends)
            for end in ends:
                insort(passed, end)
    return total


def _place(
    rows: list[list[int]],
    links: Sequence[tuple[int, int]],
    sizes: Sequence[float],
    gap: float,
    n_real: int,
) -> list[float]:
    """Return the upper edge of each vertex; those from ``n_real`` on are bends."""
    n = len(sizes)
    before, after = _neighbours(n, links)
    centre = [0.0] * n
    for row in rows:
        _spread(row, [0.0] * len(row), [1.0] * len(row), sizes, gap, centre)
    for sweep in range(10 if n < _LARGE else 3):
        forward = sweep % 2 == 0
        near = before if forward else after
        for row in rows if forward else reversed(rows):
            wish = [_mean(near[v] or after[v] or before[v], centre, centre[v]) for v in row]
            # straight trunks matter more than exactly centred boxes
            weight = [1.0 if v < n_real else 3.0 for v in row]
            _spread(row, wish, weight, sizes, gap, centre)
    top = min((centre[v] - sizes[v] / 2 for v in range(n)), default=0.0)
    return [centre[v] - sizes[v] / 2 - top for v in range(n)]


def _mean(vertices: Sequence[int], centre: Sequence[float], default: float) -> float:
    return sum(centre[v] for v in vertices) / len(vertices) if vertices else default


def _spread(
    row: Sequence[int],
    wish: Sequence[float],
    weight: Sequence[float],
    sizes: Sequence[float],
    gap: float,
    centre: list[float],
) -> None:
    """Set the centres of ``row`` as near to ``wish`` as their sizes allow, order kept.

    Least squares under ``c[k + 1] - c[k] >= room``: with the rooms taken off it is isotonic
    regression, solved by pooling adjacent violators.
    """
    offsets = [0.0]
    for upper, lower in itertools.pairwise(row):
        offsets.append(offsets[-1] + (sizes[upper] + sizes[lower]) / 2 + gap)
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for want, heavy, offset in zip(wish, weight, offsets, strict=True):
        mean, total, members = want - offset, heavy, 1
        while pools and pools[-1][0] > mean:
            other, other_total, other_members = pools.pop()
            mean = (mean * total + other * other_total) / (total + other_total)
            total, members = total + other_total, members + other_members
        pools.append((mean, total, members))
    at = 0
    for mean, _, members in pools:
        for _ in range(members):
            centre[row[at]] = mean + offsets[at]
            at += 1
