from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.core.errors import WorkflowError
from pandaflow.display.layout import layered

GAP = 10.0


@st.composite
def graphs(draw):
    n = draw(st.integers(1, 25))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    edges = draw(st.lists(pairs, max_size=40))
    heights = draw(st.lists(st.sampled_from([30.0, 50.0]), min_size=n, max_size=n))
    return heights, sorted({(min(e), max(e)) for e in edges if e[0] != e[1]})


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_edges_point_right_and_boxes_do_not_overlap(graph):
    heights, edges = graph
    layout = layered(heights, edges, GAP)
    for tail, head in edges:
        assert layout.layer[tail] < layout.layer[head]
    sizes = [*heights, *([2.0] * (len(layout.y) - len(heights)))]
    for level in range(layout.n_layers):
        column = sorted(
            (layout.y[v], layout.y[v] + sizes[v])
            for v in range(len(sizes))
            if layout.layer[v] == level
        )
        for (_, bottom), (top, _) in itertools.pairwise(column):
            assert top - bottom >= GAP - 1e-6
    assert min(layout.y) == pytest.approx(0)
    assert layout.height == pytest.approx(max(y + s for y, s in zip(layout.y, sizes, strict=True)))


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_routes_pass_every_layer_between_their_ends(graph):
    heights, edges = graph
    layout = layered(heights, edges, GAP)
    for (tail, head), route in zip(edges, layout.routes, strict=True):
        assert (route[0], route[-1]) == (tail, head)
        levels = [layout.layer[v] for v in route]
        assert levels == list(range(layout.layer[tail], layout.layer[head] + 1))
        assert all(v >= len(heights) for v in route[1:-1])


def test_crossings_that_can_be_avoided_are():
    # 0-3, 1-2 as given would cross; so would every order but one that pairs them up
    layout = layered([40.0] * 6, [(0, 5), (1, 4), (2, 3)], GAP)
    order_left = sorted(range(3), key=layout.y.__getitem__)
    order_right = sorted(range(3, 6), key=layout.y.__getitem__)
    assert [5 - v for v in order_left] == order_right


def test_a_chain_is_level():
    layout = layered([40.0] * 5, [(k, k + 1) for k in range(4)], GAP)
    assert layout.y == pytest.approx([0.0] * 5)


def test_a_root_stands_next_to_its_first_reader():
    layout = layered([40.0] * 4, [(0, 1), (1, 2), (3, 2)], GAP)
    assert layout.layer[3] == 1


def test_cycles_are_refused():
    with pytest.raises(WorkflowError, match="cycle"):
        layered([40.0] * 3, [(0, 1), (1, 2), (2, 1)], GAP)


def test_nothing_to_lay_out():
    assert layered([], [], GAP).n_layers == 0


def test_a_dense_graph_stays_small_because_fan_outs_share_their_bends():
    n = 120
    layout = layered([40.0] * n, [(a, b) for a in range(n) for b in range(a + 1, n)], GAP)
    assert layout.n_layers == n
    assert len(layout.y) < n * n
