from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.display import units
from pandaflow.display.style import task_colour, tint


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (math.inf, "–"),
        (-1.0, "0 s"),
        (0.0, "0 s"),
        (0.34, "340 ms"),
        (0.9999, "1.0 s"),
        (12.44, "12.4 s"),
        (59.96, "1 m 00 s"),
        (185, "3 m 05 s"),
        (3599.7, "1 h 00 m"),
        (7620, "2 h 07 m"),
        (86399, "1 d 00 h"),
        (357000, "4 d 03 h"),
    ],
)
def test_durations(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (None, "–"),
        (0, "–"),
        (12.34, "12.3/s"),
        (1234.5, "1,234/s"),
        (0.05, "3.0/min"),
        (1e-3, "3.6/h"),
    ],
)
def test_rates(per_second, text):
    assert units.rate(per_second) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "–"),
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (999, 1000, "99 %"),
        (1, 1000, "1 %"),
        (1, 2, "50 %"),
    ],
)
def test_percent_is_whole_only_when_nothing_is_missing(part, whole, text):
    assert units.percent(part, whole) == text


def test_plurals():
    assert [units.plural(n, "jobs") for n in (0, 1, 1200)] == ["0 jobs", "1 job", "1,200 jobs"]


@given(st.text(max_size=40), st.integers(1, 30))
def test_clipping_keeps_to_the_width(text, width):
    assert len(units.clip(text, width)) <= width
    assert len(units.clip_middle(text, width)) <= width
    if len(text) <= width:
        assert units.clip(text, width) == units.clip_middle(text, width) == text


@given(st.text(min_size=1, max_size=40), st.floats(30, 300))
def test_fitted_texts_fit(text, width):
    fitted = units.fit_text(text, 12, width)
    assert units.text_width(fitted, 12) <= width or len(fitted) <= 2


def test_task_colours_differ_and_are_colours():
    colours = [task_colour(k) for k in range(60)]
    assert len(set(colours)) == 60
    assert all(len(c) == 7 and int(c[1:], 16) >= 0 for c in colours)


def test_tints():
    assert tint("#102030", 1.0) == "#102030"
    assert tint("#102030", 0.0) == "#ffffff"
