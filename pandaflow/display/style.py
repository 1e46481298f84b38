"""Colours and fonts that every picture, table and page shares.

States keep one colour everywhere, so that a red bar in the graph, the timeline, the terminal
and the notebook always means the same thing. The colours are mid-tones: legible on white and
on the dark backgrounds of notebooks and terminals.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

INK = "#1f2937"
MUTED = "#64748b"
FAINT = "#94a3b8"
RULE = "#e2e8f0"
EDGE = "#a3b1c6"
PAPER = "#ffffff"
CANVAS = "#f8fafc"
RED = "#dc2626"

FONT = "Inter,'Segoe UI','Helvetica Neue',Helvetica,Arial,'DejaVu Sans',sans-serif"

#: Job states in the order in which stacked bars draw them.
STACK: tuple[str, ...] = (
    "finished",
    "failed",
    "cancelled",
    "closed",
    "holding",
    "running",
    "sent",
    "ready",
    "pending",
)

STATE_COLOURS: Mapping[str, str] = {
    # jobs
    "finished": "#16a36f",
    "failed": RED,
    "cancelled": "#a855f7",
    "closed": "#78716c",
    "holding": "#0ea5b7",
    "running": "#2f7bf0",
    "sent": "#8db8f8",
    "ready": "#c3cfde",
    "pending": "#dfe5ee",
}

STATUS_COLOURS: Mapping[str, str] = {
    # tasks and runs; a finished task lacks part of its jobs, hence not plain green
    "defined": FAINT,
    "ready": FAINT,
    "scouting": "#0ea5b7",
    "running": "#2f7bf0",
    "paused": "#d18a12",
    "done": "#16a36f",
    "finished": "#7a9a1a",
    "failed": RED,
    "exhausted": "#ea6a12",
    "aborted": "#a855f7",
}

#: Tableau's ten, reordered so that neighbours differ most; red is left to failures.
PALETTE: tuple[str, ...] = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#b07aa1",
    "#76b7b2",
    "#edc948",
    "#9c755f",
    "#ff9da7",
    "#6b6ecf",
    "#8a8f98",
)


def state_colour(state: str) -> str:
    """Return the colour of a job state, grey for one that is not known."""
    return STATE_COLOURS.get(state, FAINT)


def status_colour(status: str | None) -> str:
    """Return the colour of a task's or run's state, grey for none."""
    return STATUS_COLOURS.get(status or "", FAINT)


def task_colour(place: int) -> str:
    """Return the colour of the ``place``-th task: a palette, then hues a golden angle apart."""
    if place < len(PALETTE):
        return PALETTE[place]
    hue = (place * 0.61803398875) % 1.0
    # the hues around red are left to failures
    red, green, blue = colorsys.hls_to_rgb(0.06 + 0.86 * hue, 0.55, 0.45)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def tint(colour: str, share: float) -> str:
    """Mix ``colour`` (``#rrggbb``) into white; ``share`` 1 is the colour itself."""
    channels = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    mixed = (round(255 - (255 - channel) * share) for channel in channels)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
