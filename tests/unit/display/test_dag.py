from __future__ import annotations

import random
from xml.etree import ElementTree

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.display.dag import Node, dag_picture, dag_svg
from pandaflow.display.style import state_colour

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """Visible texts of a picture that parses as XML."""
    root = ElementTree.fromstring(svg)
    return ["".join(t for t in label.itertext()) for label in root.iter(f"{SVG}text")]


def rects(svg: str) -> list[dict[str, str]]:
    return [rect.attrib for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect")]


def test_names_and_sizes_are_shown():
    svg = dag_svg(
        [
            {"id": "s", "label": "data/*.root", "jobs": 120, "kind": "source", "unit": "files"},
            Node(id="a", label="select", jobs=120),
            Node(id="b", label="merge", jobs=1),
            Node(id="c", label="tune"),
        ],
        [("s", "a"), ("a", "b"), ("b", "c")],
        title="zmumu",
    )
    shown = " ".join(texts(svg))
    for text in ("data/*.root", "120 files", "select", "120 jobs", "1 job", "tune", "open"):
        assert text in shown
    assert "zmumu" in shown


def test_counts_by_state_fill_the_bar_in_proportion():
    counts = {"finished": 60, "failed": 0, "running": 30, "pending": 30}
    svg = dag_svg([Node(id=1, label="fill", jobs=120, status="running", counts=counts)], [])
    widths = {r["fill"]: float(r["width"]) for r in rects(svg) if r.get("height") == "5"}
    assert widths[state_colour("finished")] == pytest.approx(
        2 * widths[state_colour("running")], abs=0.2
    )
    assert state_colour("failed") not in widths
    assert "50 %" in " ".join(texts(svg))


def test_one_failure_among_a_million_is_seen():
    counts = {"finished": 999_999, "failed": 1}
    svg = dag_svg([Node(id=1, label="fill", jobs=10**6, status="running", counts=counts)], [])
    red = [r for r in rects(svg) if r["fill"] == state_colour("failed") and r.get("height") == "5"]
    assert float(red[0]["width"]) >= 2
    assert "1 failed" in " ".join(texts(svg))


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", 'a"b&c', "nul\x00bell\x07", "\ud800"]
)
def test_hostile_names_are_text(name):
    svg = dag_svg([Node(id=1, label=name, jobs=1)], [], title=name)
    root = ElementTree.fromstring(svg.encode())
    assert not list(root.iter(f"{SVG}script"))


def test_the_same_graph_gives_the_same_picture():
    rng = random.Random(7)
    nodes = [Node(id=k, label=f"task {k}", jobs=k) for k in range(40)]
    edges = [(rng.randrange(k), k) for k in range(1, 40)]
    assert dag_svg(nodes, edges) == dag_svg(nodes, edges)


@pytest.mark.parametrize("n", [0, 1, 200])
def test_any_number_of_tasks(n):
    rng = random.Random(n)
    nodes = [Node(id=k, label=f"task_{k}", jobs=1) for k in range(n)]
    edges = [(rng.randrange(max(0, k - 9), k), k) for k in range(1, n) for _ in range(2)]
    svg = dag_svg(nodes, edges)
    assert sum(text.startswith("task_") for text in texts(svg)) == n
    assert len(svg) < 1_000_000


def test_boxes_lie_inside_the_picture():
    nodes = [Node(id=k, label="x" * (10 * k), jobs=1, counts={"finished": 1}) for k in range(9)]
    svg = dag_svg(nodes, [(k, k + 1) for k in range(8)])
    root = ElementTree.fromstring(svg)
    for rect in rects(svg)[1:]:
        assert float(rect["x"]) + float(rect["width"]) <= float(root.attrib["width"])
        assert float(rect["y"]) + float(rect["height"]) <= float(root.attrib["height"])


def test_barriers_are_dashed():
    nodes = [Node(id=k, label=str(k), jobs=1) for k in range(3)]
    plain = dag_svg(nodes, [(0, 1), (1, 2)])
    dashed = dag_svg(nodes, [(0, 1), (1, 2, "after")])
    assert "stroke-dasharray" not in plain
    assert dashed.count("stroke-dasharray") == 1


@pytest.mark.parametrize(
    ("nodes", "edges", "match"),
    [
        ([{"id": 1}], [(1, 2)], "not there"),
        ([{"id": 1}, {"id": 1}], [], "same id"),
        ([{"id": 1}, {"id": 2}], [(1, 2), (2, 1)], "cycle"),
        ([{"label": "x"}], [], "not a node"),
        ([{"id": 1, "colour": "red"}], [], "not a node"),
    ],
)
def test_wrong_graphs_are_refused(nodes, edges, match):
    with pytest.raises(WorkflowError, match=match):
        dag_svg(nodes, edges)


def test_the_picture_saves_itself(tmp_path):
    picture = dag_picture([Node(id=1, label="select", jobs=3, kind="gate")], [])
    svg = picture.save(tmp_path / "new" / "graph.svg")
    assert svg.read_text() == picture.svg == picture._repr_svg_()
    assert picture.svg in picture._repr_html_()
    png = picture.save(tmp_path / "graph.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(WorkflowError, match=r"\.svg or \.png"):
        picture.save(tmp_path / "graph.pdf")
