"""A graph of tasks as lines of text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

#: (branch, last branch, continuation, blank): pretty on a terminal, bare in a pipe.
_PRETTY, _BARE = ("├─ ", "└─ ", "│  ", "   "), ("  ", "  ", "  ", "  ")


def graph_rows(graph: Any) -> list[dict[str, Any]]:
    """Return one row a task, upstream first, with the names of the tasks it reads from.

    Parameters
    ----------
    graph : networkx.DiGraph
        Nodes are names of tasks.
    """
    import networkx

    order = networkx.lexicographical_topological_sort(graph)
    return [{"task": n, **graph.nodes[n], "after": sorted(graph.predecessors(n))} for n in order]


def tree_lines(graph: Any, pretty: bool | None = None) -> Iterator[str]:
    """Draw the graph as a tree, each task once: below the last of the tasks it reads from.

    Parameters
    ----------
    graph : networkx.DiGraph
    pretty : bool, optional
        Draw branches; default: on a terminal only.
    """
    rows = graph_rows(graph)
    place = {row["task"]: at for at, row in enumerate(rows)}
    children: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        parent = max(row["after"], key=place.__getitem__, default=None)
        children.setdefault(parent, []).append(row)
    marks = _PRETTY if (sys.stdout.isatty() if pretty is None else pretty) else _BARE
    # A stack and no recursion: a loop of thousands of iterations is one long branch.
    stack = [(row, None, "", "") for row in reversed(children.get(None, []))]
    while stack:
        row, parent, mark, indent = stack.pop()
        yield f"{mark}{_label(row, parent)}"
        below = children.get(row["task"], [])
        for at, child in reversed(list(enumerate(below))):
            last = at == len(below) - 1
            stack.append((child, row["task"], indent + marks[last], indent + marks[2 + last]))


def _label(row: dict[str, Any], parent: str | None) -> str:
    what = "item" if row.get("kind") == "source" else "job"
    n = row.get("jobs")
    count = f"{'?' if n is None else n} {what}{'' if n == 1 else 's'}"
    others = [name for name in row["after"] if name != parent]
    return f"{row['task']}  {count}" + (f"  (and from {', '.join(others)})" if others else "")
