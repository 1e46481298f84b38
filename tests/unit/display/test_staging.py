from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.errors import WorkflowError
from pandaflow.display.staging import (
    STEPS,
    axis_step,
    parse_samples,
    staging_picture,
    staging_svg,
    staging_text,
    thin,
)

SVG = "{http://www.w3.org/2000/svg}"
START = 1_700_000_000.0
TB = 10**12


def row(at: float = 0.0, tape: str = "T", **counts: int) -> dict[str, Any]:
    steps = {step: counts.get(step, 0) for step in STEPS}
    sizes = {f"{step}_bytes": n * TB for step, n in steps.items()}
    return {"at": START + at, "tape": tape, **sizes, **{f"{s}_files": n for s, n in steps.items()}}


def campaign(n: int = 10, tape: str = "T") -> list[dict[str, Any]]:
    """Files requested two, staged four and processed six hours after they are wanted."""
    return [
        row(
            k * 3600.0,
            tape,
            wanted=n,
            requested=min(k, n),
            staged=max(min(k - 2, n), 0),
            processed=max(min(k - 4, n), 0),
        )
        for k in range(n + 5)
    ]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def shapes(svg: str, kind: str) -> list[dict[str, str]]:
    return [element.attrib for element in ElementTree.fromstring(svg).iter(SVG + kind)]


def corners(polygon: dict[str, str]) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in polygon["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_the_table_tells_the_latest_of_each_tape_system() -> None:
    rows = [*campaign(10, "CERN"), row(7200.0, "KIT", wanted=4, requested=3, staged=1)]
    assert staging_text(rows).splitlines() == [
        "tape system      wanted   requested      staged   processed  in flight",
        "CERN         10 TB (10)  10 TB (10)  10 TB (10)  10 TB (10)        0 B",
        "KIT            4 TB (4)    3 TB (3)    1 TB (1)     0 B (0)       2 TB",
    ]


def test_areas_lie_within_each_other_and_end_where_they_should() -> None:
    svg = staging_svg(campaign())
    wanted, requested, staged, processed = (corners(p) for p in shapes(svg, "polygon"))
    # The axis goes to 10 TB, so that what is complete reaches the top of the panel.
    tops = [min(y for _, y in area) for area in (wanted, requested, staged, processed)]
    grounds = {max(y for _, y in area) for area in (wanted, requested, staged, processed)}
    assert len(set(tops)) == len(grounds) == 1
    at = wanted[0][0] + (max(x for x, _ in wanted) - wanted[0][0]) / 2
    heights = [height(area, at) for area in (wanted, requested, staged, processed)]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4


def height(area: list[tuple[float, float]], at: float) -> float:
    """The curve's y at some x: that of the last point before it."""
    return [y for x, y in area[:-2] if x <= at][-1]


def test_counts_change_at_once() -> None:
    """A curve has only level and upright pieces: nothing is there before it was told."""
    for area in shapes(staging_svg(campaign()), "polygon"):
        points = corners(area)
        for (x0, y0), (x1, y1) in pairwise(points[:-1]):
            assert x0 == x1 or y0 == y1


def test_each_tape_system_has_a_panel_and_a_sentence() -> None:
    found = texts(staging_svg([*campaign(10, "CERN"), row(3600.0, "KIT", wanted=9, requested=4)]))
    assert {"CERN", "KIT"} <= set(found)
    assert "now 0 B in flight, 0 B on disk for jobs" in found
    assert "now 4 TB in flight, 0 B on disk for jobs" in found
    assert any(text.startswith("19 TB wanted  ·  53 % staged") for text in found)


def test_files_may_be_counted_instead() -> None:
    found = texts(staging_svg([row(0.0), row(60.0, wanted=1200, requested=900)], by="files"))
    assert "now 900 files in flight, 0 files on disk for jobs" in found
    assert any(text.startswith("1,200 files wanted") for text in found)


def test_downtimes_are_shaded_where_they_are() -> None:
    down = [("T", START + 3600.0, START + 3 * 3600.0), ("T", 0.0, 5.0), ("other", START, START + 9)]
    svg = staging_svg(campaign(), downtimes=down)
    titles = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert titles == ["T: announced downtime of 2 h 00 m"]
    assert "down 2 h 00 m" in texts(svg)
    plot = corners(shapes(svg, "polygon")[0])
    left, right = plot[0][0], max(x for x, _ in plot)
    (box,) = (r for r in ElementTree.fromstring(svg).iter(f"{SVG}rect") if list(r))
    hour = (right - left) / 14
    assert float(box.attrib["x"]) == pytest.approx(left + hour, abs=0.2)
    assert float(box.attrib["width"]) == pytest.approx(2 * hour, abs=0.2)
    assert "pattern" not in staging_svg(campaign())


def test_a_downtime_too_short_for_words_is_marked_without() -> None:
    svg = staging_svg(campaign(), downtimes=[("T", START + 60.0, START + 120.0)])
    assert not [text for text in texts(svg) if text.startswith("down")]
    assert svg.count("stroke-dasharray") == 2


def test_nothing_and_a_single_moment_have_pictures_too() -> None:
    assert "nothing is wanted from tape" in texts(staging_svg([]))
    ElementTree.fromstring(staging_svg([row(wanted=3)]))
    ElementTree.fromstring(staging_svg([row()], title="a < b & c"))


def test_a_hundred_thousand_rows_stay_small() -> None:
    rows = [row(float(k), wanted=10**5, requested=k) for k in range(100_000)]
    svg = staging_svg(rows)
    assert len(svg) < 200_000
    assert "100,000 TB" not in svg and "100 PB" in svg


@pytest.mark.parametrize(
    "bad", [{}, {"at": "soon"}, {"at": float("nan")}, {"at": 1, "wanted_bytes": "x"}]
)
def test_what_are_no_rows_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(WorkflowError, match="not rows of a carousel"):
        parse_samples([bad])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.integers(2, 20))
def test_thinning_keeps_order_and_ends(times: list[float], most: int) -> None:
    samples = parse_samples([row(at) for at in times])
    kept = thin(samples, most)
    assert len(kept) <= max(most, 2)
    assert (kept[0].at, kept[-1].at) == (samples[0].at, samples[-1].at)
    assert [each.at for each in kept] == sorted(each.at for each in kept)
    assert len(samples) > most or kept == samples


@given(st.floats(1, 1e18), st.integers(1, 10))
def test_ticks_are_round_and_few(most: float, ticks: int) -> None:
    step = axis_step(most, ticks)
    assert re.fullmatch("[125]0*", f"{step:.0f}")
    assert most / step <= ticks * (1 + 1e-6)


def test_it_is_saved_as_svg_and_png(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    down = [("T", START + 3600.0, START + 7200.0)]
    picture = staging_picture(campaign(), title="mc23", downtimes=down)
    assert picture.save(tmp_path / "s.svg").read_text().startswith("<svg")
    assert picture.save(tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
