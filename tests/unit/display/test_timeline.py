from __future__ import annotations

import itertools
import random
import re
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.core.errors import WorkflowError
from pandaflow.display.timeline import (
    Span,
    pack,
    parse_spans,
    tick_step,
    tick_text,
    timeline_png,
    timeline_svg,
)

SVG = "{http://www.w3.org/2000/svg}"
START = 1_700_000_000.0


def row(task="select", index=0, worker="w0", started=0.0, wall=1.0, status="finished", attempt=1):
    return {
        "task": task,
        "index": index,
        "worker": worker,
        "started": START + started,
        "wall": wall,
        "status": status,
        "attempt": attempt,
    }


def titles(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [title.text or "" for title in root.iter(f"{SVG}title")]


def many(n: int, workers: int, wall: float) -> list[dict[str, object]]:
    rng = random.Random(n)
    free, rows = [0.0] * workers, []
    for index in range(n):
        worker = min(range(workers), key=free.__getitem__)
        seconds = wall * rng.uniform(0.5, 1.5)
        status = "failed" if rng.random() < 0.02 else "finished"
        task = rng.choice(["select", "fill"])
        rows.append(row(task, index, f"w{worker}", free[worker], seconds, status))
        free[worker] += seconds
    return rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 100), st.floats(0.001, 20)),
        min_size=1,
        max_size=60,
    )
)
def test_lanes_hold_no_overlaps_and_are_as_few_as_can_be(jobs):
    spans = [Span("t", k, f"w{w}", start, start + wall) for k, (w, start, wall) in enumerate(jobs)]
    packed = pack(spans)
    assert sorted(s.index for _, lanes in packed for lane in lanes for s in lane) == list(
        range(len(spans))
    )
    for worker, lanes in packed:
        for lane in lanes:
            for before, after in itertools.pairwise(lane):
                assert before.end <= after.start
        mine = [span for span in spans if span.worker == worker]
        most = max(sum(o.start <= s.start < o.end for o in mine) for s in mine)
        assert len(lanes) == most


def test_each_job_has_a_bar_with_what_happened():
    rows = [row(index=0), row("fill", 1, "w1", 1.0, 2.0, "failed", 2)]
    found = titles(timeline_svg(rows, title="zmumu"))
    assert any(t.startswith("select[0]: finished\n1.0 s from 0 s on w0") for t in found)
    assert any(t.startswith("fill[1], attempt 2: failed\n2.0 s from 1.0 s on w1") for t in found)


def test_failures_are_hatched_and_only_they():
    assert "pattern" not in timeline_svg([row()])
    assert "pattern" in timeline_svg([row(status="failed")])


def test_twenty_thousand_jobs_stay_small():
    for workers, wall in ((8, 0.02), (400, 60.0)):
        svg = timeline_svg(many(20_000, workers, wall))
        ElementTree.fromstring(svg)
        assert len(svg) < 1_000_000
        assert "20,000 jobs" in svg


def test_failures_thinner_than_a_pixel_are_still_seen():
    rows = [row(index=k, started=k * 0.01, wall=0.01) for k in range(20_000)]
    rows[777]["status"] = "failed"
    svg = timeline_svg(rows)
    assert 'stroke="#dc2626"' in svg
    assert "failed attempt" in svg


def test_thin_jobs_merge_into_one_bar_that_covers_their_time():
    rows = [row(index=k, started=k * 0.001, wall=0.001) for k in range(5000)]
    svg = timeline_svg(rows, width=1000)
    bars = [t for t in titles(svg) if "mostly select" in t]
    assert len(bars) == 1
    assert bars[0].startswith("5,000 jobs")
    root = ElementTree.fromstring(svg)
    widths = [
        float(rect.attrib["width"])
        for rect in root.iter(f"{SVG}rect")
        if rect.find(f"{SVG}title") is not None
    ]
    assert widths == pytest.approx([1000 - 148], abs=2)


def test_of_a_crowded_pixel_the_busiest_task_shows():
    rows = []
    for k in range(4000):
        rows.append(row("long", k, started=k * 0.01, wall=0.008))
        rows.append(row("short", k, started=k * 0.01 + 0.008, wall=0.001))
    bars = [t for t in titles(timeline_svg(rows)) if "mostly" in t]
    assert bars
    assert all("mostly long" in bar for bar in bars)


def test_jobs_that_never_started_are_left_out_and_running_ones_end_now():
    rows = [
        {"task": "a", "index": 0, "started": None, "wall": None, "status": "pending"},
        {"task": "a", "index": 1, "started": START, "wall": None, "status": "running"},
        {"task": "a", "index": 2, "started": START, "wall": 3.0, "status": "finished"},
    ]
    assert [(s.index, s.end - START) for s in parse_spans(rows)] == [(1, 3.0), (2, 3.0)]
    assert parse_spans(rows, now=START + 9)[0].end == START + 9
    assert "no job has started" in timeline_svg(rows[:1])
    assert "no job has started" in timeline_svg([])


def test_rows_without_times_or_tasks_are_refused():
    for bad in ({"started": 1.0}, {"task": "a", "started": "noon"}, {"task": "a", "started": [1]}):
        with pytest.raises(WorkflowError, match="timeline"):
            timeline_svg([bad])


@given(st.floats(1e-4, 1e7), st.integers(2, 12))
def test_ticks_are_round_and_not_too_many(span, most):
    step = tick_step(span, most)
    assert span / step <= most * (1 + 1e-6)
    assert span / step >= most / 13


@pytest.mark.parametrize(
    ("at", "step", "text"),
    [
        (0.0, 5.0, "0"),
        (0.002, 0.001, "2 ms"),
        (0.0002, 0.0001, "0.2 ms"),
        (1.5, 0.5, "1.5 s"),
        (25.0, 5.0, "25 s"),
        (120.0, 60.0, "2 min"),
        (5400.0, 1800.0, "1:30 h"),
        (172800.0, 86400.0, "2 d"),
    ],
)
def test_ticks_are_written_in_a_unit_that_suits_them(at, step, text):
    assert tick_text(at, step) == text


def test_many_tasks_get_different_colours_and_a_legend_that_fits():
    rows = [row(f"task {k}", k, started=k, wall=1) for k in range(40)]
    svg = timeline_svg(rows)
    root = ElementTree.fromstring(svg)
    fills = {
        rect.attrib["fill"]
        for rect in root.iter(f"{SVG}rect")
        if rect.find(f"{SVG}title") is not None
    }
    assert len(fills) == 40
    assert "and 16 more tasks" in svg
    for text in root.iter(f"{SVG}text"):
        assert float(text.attrib["y"]) <= float(root.attrib["height"])


def test_task_names_are_escaped():
    svg = timeline_svg([row("<b>&\x01", worker='w"<i>')], title="<u>")
    ElementTree.fromstring(svg)
    assert not re.search(r"<(b|i|u)>", svg)


def test_png(tmp_path):
    rows = many(300, 4, 1.0)
    path = timeline_png(rows, tmp_path / "timeline.png", title="$100 zmumu")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_png_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pandaflow\[plot\]"):
        timeline_png([row()], tmp_path / "timeline.png")
