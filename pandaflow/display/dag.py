"""The graph of a workflow's tasks as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from pandaflow.core.errors import WorkflowError
from pandaflow.display import units
from pandaflow.display.drawing import Box, Drawing, Label, Line, Picture, Point, Polygon
from pandaflow.display.layout import Layout, layered
from pandaflow.display.style import (
    EDGE,
    INK,
    MUTED,
    PAPER,
    RED,
    RULE,
    STACK,
    state_colour,
    status_colour,
    tint,
)

Kind = Literal["task", "function", "command", "graph", "gate", "loop", "source"]

_ACCENT: Mapping[str, str] = {
    "task": "#5468d4",
    "function": "#5468d4",
    "command": "#0f9488",
    "graph": "#8b5cf6",
    "gate": "#d18a12",
    "loop": "#d18a12",
    "source": "#8a7a4f",
}

_MARGIN, _COLUMN_GAP, _ROW_GAP = 20.0, 56.0, 18.0
_LEAST, _MOST = 118.0, 236.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A task or a source as the picture shows it.

    Attributes
    ----------
    id : str or int
        What edges refer to.
    label : str
        Its name.
    jobs : int or None
        Jobs of a task, items of a source; None: not known yet ("open").
    status : str or None
        A task's state; None before the workflow has run.
    counts : mapping of str to int
        Jobs by state.
    kind : {'task', 'function', 'command', 'graph', 'gate', 'loop', 'source'}
    unit : str
        What ``jobs`` counts, in the plural; "" means jobs of a task, items of a source.
    """

    id: str | int
    label: str
    jobs: int | None = None
    status: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = "task"
    unit: str = ""

    @property
    def _noun(self) -> str:
        return self.unit or ("items" if self.kind == "source" else "jobs")

    @property
    def size_text(self) -> str:
        """``"120 jobs"``, or ``"open"`` when the number is not known."""
        return "open" if self.jobs is None else units.plural(self.jobs, self._noun)


Edge: TypeAlias = tuple[str | int, str | int] | tuple[str | int, str | int, str]


def parse_node(node: Node | Mapping[str, Any]) -> Node:
    """Return ``node`` as a :class:`Node`.

    Raises
    ------
    WorkflowError
        A dict lacks ``id`` or has keys that a node does not have.
    """
    if isinstance(node, Node):
        return node
    try:
        return Node(**{"label": str(node.get("id")), **node})
    except TypeError as error:
        raise WorkflowError(f"{dict(node)!r} is not a node of a graph: {error}") from error


def dag_drawing(
    nodes: Iterable[Node | Mapping[str, Any]], edges: Iterable[Edge], *, title: str = ""
) -> Drawing:
    """Draw a graph of tasks; the arguments are those of :func:`dag_svg`."""
    parsed = [parse_node(node) for node in nodes]
    place = {node.id: at for at, node in enumerate(parsed)}
    if len(place) < len(parsed):
        raise WorkflowError("two nodes of the graph have the same id")
    pairs = {}
    for edge in edges:
        if edge[0] not in place or edge[1] not in place:
            raise WorkflowError(f"edge {edge!r} refers to a node that is not there")
        pairs[place[edge[0]], place[edge[1]]] = len(edge) > 2 and edge[2] == "after"
    layout = layered([_height(node) for node in parsed], list(pairs), _ROW_GAP)
    return _Painter(parsed, layout, list(pairs.values()), title).drawing()


def dag_svg(
    nodes: Iterable[Node | Mapping[str, Any]], edges: Iterable[Edge], *, title: str = ""
) -> str:
    """Return the graph of tasks as SVG, left to right, one box a task.

    Parameters
    ----------
    nodes : iterable of Node or dict
        Dicts have the fields of :class:`Node`; ``id`` is enough.
    edges : iterable of (id, id) or (id, id, kind)
        From producer to consumer. Kind ``"after"`` (a barrier without data) is dashed.
    title : str
        Written above the graph.

    Raises
    ------
    WorkflowError
        The graph has a cycle, an id twice, or an edge to nowhere.
    """
    return dag_drawing(nodes, edges, title=title).svg()


def dag_picture(
    nodes: Iterable[Node | Mapping[str, Any]], edges: Iterable[Edge], *, title: str = ""
) -> Picture:
    """Return the graph as a :class:`Picture`, which notebooks show and ``save`` writes."""
    return Picture(dag_drawing(nodes, edges, title=title))


def _height(node: Node) -> float:
    if node.kind == "source":
        return 42.0
    return 58.0 if node.counts else 48.0


def _width(node: Node) -> float:
    label = units.text_width(node.label, 13, bold=True)
    below = units.text_width(f"{node.size_text}   {_right_text(node)[0]}", 11)
    return min(max(max(label, below) + 34, _LEAST), _MOST)


def _right_text(node: Node) -> tuple[str, str]:
    """Return what stands at the right of a box's second line, and its colour."""
    failed = node.counts.get("failed", 0)
    if failed:
        return f"{units.count(failed)} failed", RED
    if node.status in (None, "defined", "ready"):
        return "", MUTED
    text = str(node.status)
    if node.status in ("running", "scouting") and node.jobs:
        text = units.percent(node.counts.get("finished", 0), node.jobs)
    return text, status_colour(node.status)


class _Painter:
    """Turns a layout into shapes."""

    def __init__(
        self, nodes: Sequence[Node], layout: Layout, dashed: Sequence[bool], title: str
    ) -> None:
        self._nodes, self._layout, self._dashed, self._title = nodes, layout, dashed, title
        self._widths = [0.0] * layout.n_layers
        for at, node in enumerate(nodes):
            level = layout.layer[at]
            self._widths[level] = max(self._widths[level], _width(node))
        self._left = [_MARGIN]
        for width in self._widths:
            self._left.append(self._left[-1] + max(width, 40.0) + _COLUMN_GAP)
        self._top = _MARGIN + (24.0 if title else 0.0)

    def drawing(self) -> Drawing:
        states = [s for s in STACK if any(node.counts.get(s) for node in self._nodes)]
        bottom = self._top + self._layout.height + _MARGIN
        width = max(self._left[-1] - _COLUMN_GAP + _MARGIN, _legend_width(states), 160.0)
        width = max(width, units.text_width(self._title, 14, bold=True) + 2 * _MARGIN)
        height = bottom + (16.0 if states else 0.0)
        drawing = Drawing(width, max(height, 60.0), self._title or "workflow graph")
        if self._title:
            label = Label(x=_MARGIN, y=_MARGIN + 8, text=self._title, size=14, bold=True)
            drawing.add(label)
        for route, dashed in zip(self._layout.routes, self._dashed, strict=True):
            self._edge(drawing, route, dashed)
        for at, node in enumerate(self._nodes):
            self._node(drawing, at, node)
        _legend(drawing, states, bottom + 1)
        return drawing

    def _middle(self, vertex: int) -> float:
        size = _height(self._nodes[vertex]) if vertex < len(self._nodes) else 2.0
        return self._top + self._layout.y[vertex] + size / 2

    def _edge(self, drawing: Drawing, route: Sequence[int], dashed: bool) -> None:
        level = self._layout.layer
        start = self._left[level[route[0]]] + self._node_width(route[0])
        points: list[Point] = [(start, self._middle(route[0]))]
        for vertex, following in pairwise(route):
            last = following == route[-1]
            x, y = points[-1]
            end = self._left[level[following]] - (6.0 if last else 0.0)
            # leave a short layer's box level up to the edge of its column
            to = self._middle(following)
            bend = (end - max(x, self._right(level[vertex]))) * 0.55
            points += [(end - bend, y), (max(x, self._right(level[vertex])) + bend, to), (end, to)]
            if not last:  # straight through the column, between its boxes
                right = self._right(level[following])
                points += [(end, to), (right, to), (right, to)]
        tip_x, tip_y = points[-1]
        line = Line(points=tuple(points), stroke=EDGE, line=1.5, curved=True, dashed=dashed)
        drawing.add(line, _arrow(tip_x + 5, tip_y))

    def _right(self, level: int) -> float:
        return self._left[level + 1] - _COLUMN_GAP

    def _node_width(self, vertex: int) -> float:
        return self._widths[self._layout.layer[vertex]]

    def _node(self, drawing: Drawing, at: int, node: Node) -> None:
        x, y = self._left[self._layout.layer[at]], self._top + self._layout.y[at]
        if node.kind == "source":
            _source(drawing, node, x, y, self._node_width(at))
        else:
            _task(drawing, node, x, y, self._node_width(at))


def _arrow(x: float, y: float) -> Polygon:
    return Polygon(points=((x, y), (x - 7, y - 3.6), (x - 7, y + 3.6)), fill=EDGE)


def _tooltip(node: Node) -> str:
    states = [f"{state}: {node.counts[state]:,}" for state in STACK if node.counts.get(state)]
    head = f"{node.label} ({node.kind}), {node.size_text}"
    return "\n".join([head + (f", {node.status}" if node.status else ""), *states])


def _source(drawing: Drawing, node: Node, x: float, y: float, width: float) -> None:
    accent = _ACCENT["source"]
    fill, height = tint(accent, 0.16), _height(node)
    # a stack of sheets: an ordered collection of items
    for k in (2, 1):
        drawing.add(_sheet(x + 3 * k, y - 3 * k, width - 6, height, tint(accent, 0.05 * (3 - k))))
    drawing.add(_sheet(x, y, width - 6, height, fill, _tooltip(node)))
    label = units.fit_text(node.label, 12.5, width - 28, bold=True)
    drawing.add(
        Label(x=x + 11, y=y + 18, text=label, size=12.5, bold=True, title=node.label),
        Label(x=x + 11, y=y + 33, text=node.size_text, size=11, fill=MUTED),
    )


def _sheet(x: float, y: float, width: float, height: float, fill: str, title: str = "") -> Box:
    stroke = tint(_ACCENT["source"], 0.55)
    return Box(
        x=x, y=y, width=width, height=height, fill=fill, stroke=stroke, radius=3, title=title
    )


def _task(drawing: Drawing, node: Node, x: float, y: float, width: float) -> None:
    height = _height(node)
    accent = status_colour(node.status) if node.status else _ACCENT.get(node.kind, _ACCENT["task"])
    drawing.add(
        Box(
            x=x,
            y=y,
            width=width,
            height=height,
            fill=PAPER,
            stroke=tint(accent, 0.65),
            line=1.2,
            radius=8,
            dashed=node.kind in ("gate", "loop") or node.jobs is None,
            title=_tooltip(node),
        ),
        Box(x=x + 7, y=y + 9, width=3.5, height=height - 18, fill=accent, radius=1.7),
    )
    label = units.fit_text(node.label, 13, width - 32, bold=True)
    drawing.add(
        Label(x=x + 18, y=y + 21, text=label, size=13, bold=True, fill=INK, title=node.label),
        Label(x=x + 18, y=y + 37, text=node.size_text, size=11, fill=MUTED),
    )
    right, colour = _right_text(node)
    if right:
        x_right = x + width - 11
        drawing.add(Label(x=x_right, y=y + 37, text=right, size=11, fill=colour, anchor="end"))
    if node.counts:
        _stack(drawing, node, x + 18, y + height - 13, width - 29)


def _stack(drawing: Drawing, node: Node, x: float, y: float, width: float) -> None:
    """Draw jobs by state as one thin bar."""
    total = max(sum(node.counts.values()), node.jobs or 0, 1)
    drawing.add(Box(x=x, y=y, width=width, height=5, fill=RULE, radius=2.5))
    for state in STACK:
        jobs = node.counts.get(state, 0)
        share = width * jobs / total
        # one failed job among a million must be seen
        shown = min(max(share, 2.0), width) if jobs and state == "failed" else share
        radius = 2.5 if shown > 5 else 0.0
        if jobs:
            fill = state_colour(state)
            drawing.add(Box(x=x, y=y, width=shown, height=5, fill=fill, radius=radius))
        x += share


def _legend_width(states: Sequence[str]) -> float:
    return 2 * _MARGIN + sum(24 + units.text_width(state, 10.5) for state in states)


def _legend(drawing: Drawing, states: Sequence[str], y: float) -> None:
    x = _MARGIN
    for state in states:
        drawing.add(
            Box(x=x, y=y - 7, width=9, height=9, fill=state_colour(state), radius=2),
            Label(x=x + 13, y=y + 1, text=state, size=10.5, fill=MUTED),
        )
        x += 24 + units.text_width(state, 10.5)
