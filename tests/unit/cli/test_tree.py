"""The text of a graph names each task once, below something that it reads from."""

from __future__ import annotations

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.cli.tree import graph_rows, tree_lines


def _diamond() -> nx.DiGraph:
    graph = nx.DiGraph([("select", "fill"), ("select", "count"), ("fill", "merge")])
    graph.add_edge("count", "merge")
    nx.set_node_attributes(graph, {"select": 3, "fill": 3, "count": 1, "merge": None}, "jobs")
    return graph


def test_a_tree_on_a_terminal() -> None:
    assert list(tree_lines(_diamond(), pretty=True)) == [
        "select  3 jobs",
        "├─ count  1 job",
        "└─ fill  3 jobs",
        "   └─ merge  ? jobs  (and from count)",
    ]


def test_a_tree_in_a_pipe_is_only_indented() -> None:
    assert list(tree_lines(_diamond(), pretty=False)) == [
        "select  3 jobs",
        "  count  1 job",
        "  fill  3 jobs",
        "    merge  ? jobs  (and from count)",
    ]


def test_sources_have_items() -> None:
    graph = nx.DiGraph()
    graph.add_node("data/*.root", kind="source", jobs=12)
    assert list(tree_lines(graph, pretty=False)) == ["data/*.root  12 items"]


def test_rows_come_upstream_first() -> None:
    rows = graph_rows(_diamond())
    assert [row["task"] for row in rows] == ["select", "count", "fill", "merge"]
    assert rows[-1]["after"] == ["count", "fill"]


edges = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda e: e[0] < e[1]))


@given(edges)
def test_each_task_once_and_each_edge_told(pairs: list[tuple[int, int]]) -> None:
    graph = nx.DiGraph()
    graph.add_nodes_from(f"t{k}" for k in range(10))
    graph.add_edges_from((f"t{a}", f"t{b}") for a, b in pairs)
    told, path = set(), list[str]()
    names = []
    for line in tree_lines(graph, pretty=False):
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, others = line.strip().partition("  ? jobs")
        names.append(name)
        path[depth:] = [name]
        told |= {(path[depth - 1], name)} if depth else set()
        inner = others.strip().removeprefix("(and from ").removesuffix(")")
        told |= {(other, name) for other in inner.split(", ") if other}
    assert sorted(names) == sorted(graph)
    assert told == set(graph.edges)


def test_a_long_chain_is_no_recursion() -> None:
    assert sum(1 for _ in tree_lines(nx.path_graph(2000, nx.DiGraph), pretty=False)) == 2000
