"""Files from tape to job over time: how staging keeps ahead of processing, as table and picture."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from pandaflow.core.errors import WorkflowError
from pandaflow.core.quantities import volume_text
from pandaflow.display import units
from pandaflow.display.drawing import Box, Drawing, Label, Line, Picture, Point, Polygon, Shape
from pandaflow.display.style import CANVAS, FAINT, MUTED, PAPER, RED, RULE, tint
from pandaflow.display.timeline import tick_step, tick_text

By: TypeAlias = Literal["bytes", "files"]

#: What has come how far, the least first: each includes those before it.
STEPS = ("processed", "staged", "requested", "wanted")
_COLOUR = {
    "processed": "#16a36f",
    "staged": "#2f7bf0",
    "requested": "#d18a12",
    "wanted": FAINT,
}
_MEANING = {
    "processed": "processed",
    "staged": "on disk, not processed yet",
    "requested": "in flight from tape",
    "wanted": "waiting in the queue",
}
_LEFT, _RIGHT, _TOP, _PLOT, _GAP = 76.0, 20.0, 62.0, 230.0, 44.0
#: Points of a curve at most: more cannot be told apart.
_MOST_POINTS = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """How much had come how far at one time; sums since the beginning.

    Attributes
    ----------
    at : float
        Seconds since the epoch.
    tape : str
        The tape system; empty if rows do not tell any.
    files, size : dict of str to int
        Files and bytes by step (``STEPS``).
    """

    at: float
    tape: str
    files: dict[str, int]
    size: dict[str, int]

    def value(self, step: str, by: By) -> int:
        """Return bytes or files that have come so far."""
        return (self.size if by == "bytes" else self.files)[step]


def parse_samples(rows: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """Read rows of a carousel, sorted by time.

    Parameters
    ----------
    rows : iterable of mapping
        ``at`` (seconds since the epoch) and, by step (``wanted``, ``requested``, ``staged``,
        ``processed``), ``<step>_bytes`` and ``<step>_files``: what has come so far in all. What a
        row does not tell is 0. ``tape``: the tape system.

    Raises
    ------
    WorkflowError
        A row has no time, or a number that is none.
    """
    try:
        samples = [_sample(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise WorkflowError(f"not rows of a carousel: {error!r}") from error
    return sorted(samples, key=attrgetter("at"))


def _sample(row: Mapping[str, Any]) -> Sample:
    at = float(row["at"])
    if not math.isfinite(at):
        raise ValueError(f"at={at}")
    counts = {
        unit: {step: int(row.get(f"{step}_{unit}") or 0) for step in STEPS}
        for unit in ("files", "bytes")
    }
    return Sample(at, str(row.get("tape") or ""), counts["files"], counts["bytes"])


def staging_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of where the files are now, one line a tape system; no trailing blanks.

    Raises
    ------
    WorkflowError
        The rows are not rows of a carousel.
    """
    latest = {sample.tape: sample for sample in parse_samples(rows)}
    head = ("tape system", "wanted", "requested", "staged", "processed", "in flight")
    table = [head, *(_cells(sample) for _, sample in sorted(latest.items()))]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = []
    for row in table:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cells(sample: Sample) -> tuple[str, ...]:
    def said(step: str) -> str:
        return f"{volume_text(sample.size[step])} ({sample.files[step]:,})"

    flying = max(sample.size["requested"] - sample.size["staged"], 0)
    steps = (said(step) for step in reversed(STEPS))
    return (sample.tape or "tape", *steps, volume_text(flying))


def staging_drawing(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str = "",
    width: int = 1000,
    by: By = "bytes",
    downtimes: Iterable[tuple[str, float, float]] = (),
) -> Drawing:
    """Draw staging against processing; the arguments are those of :func:`staging_svg`."""
    return _Chart(parse_samples(rows), title, width, by, list(downtimes)).drawing()


def staging_svg(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str = "",
    width: int = 1000,
    by: By = "bytes",
    downtimes: Iterable[tuple[str, float, float]] = (),
) -> str:
    """Return staging against processing over time as SVG, a panel for each tape system.

    The green area is what jobs have read. Blue above it is on disk and waits for jobs, amber is
    asked of the tape system and under way, and the grey above waits in the queue. Announced
    downtimes are shaded.

    Parameters
    ----------
    rows : iterable of mapping
        See :func:`parse_samples`. Any number: more than a curve can show are thinned out.
    title : str
    width : int
        Pixels.
    by : {'bytes', 'files'}
        What is counted.
    downtimes : iterable of (str, float, float)
        Tape system, begin and end in seconds since the epoch.

    Raises
    ------
    WorkflowError
        The rows are not rows of a carousel.
    """
    return staging_drawing(rows, title=title, width=width, by=by, downtimes=downtimes).svg()


def staging_picture(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str = "",
    width: int = 1000,
    by: By = "bytes",
    downtimes: Iterable[tuple[str, float, float]] = (),
) -> Picture:
    """Return the chart as a :class:`Picture`, which notebooks show and ``save`` writes."""
    return Picture(staging_drawing(rows, title=title, width=width, by=by, downtimes=downtimes))


def thin(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Keep at most so many of the samples, evenly in time, with the first and the last."""
    if len(samples) <= most:
        return list(samples)
    times = [sample.at for sample in samples]
    first, span = times[0], times[-1] - times[0]
    wanted = (first + span * k / (most - 1) for k in range(most - 1))
    kept = {bisect_right(times, time) - 1: None for time in wanted}
    return [samples[k] for k in (*kept, len(samples) - 1)]


def axis_step(most: float, ticks: int) -> float:
    """Return the distance of at most so many ticks up to ``most``: 1, 2 or 5 times 10 to the n."""
    least = max(most, 1.0) / max(ticks, 1)
    power = 10.0 ** math.floor(math.log10(least))
    return max(next(power * k for k in (1, 2, 5, 10) if power * k >= least * (1 - 1e-9)), 1.0)


class _Chart:
    """Geometry and painting: panels below each other on one axis of time."""

    def __init__(
        self,
        samples: list[Sample],
        title: str,
        width: int,
        by: By,
        downtimes: list[tuple[str, float, float]],
    ) -> None:
        self._title, self._by = title, by
        self._width = float(max(width, 420))
        self._downtimes = downtimes
        self._panels = {
            tape: thin([sample for sample in samples if sample.tape == tape], _MOST_POINTS)
            for tape in sorted({sample.tape for sample in samples})
        }
        self._origin = samples[0].at if samples else 0.0
        self._seconds = max(samples[-1].at - self._origin, 1e-6) if samples else 1.0
        self._scale = (self._width - _LEFT - _RIGHT) / self._seconds
        self._height = _PLOT if len(self._panels) < 3 else 0.6 * _PLOT

    def drawing(self) -> Drawing:
        count = max(len(self._panels), 1)
        bottom = _TOP + count * self._height + (count - 1) * _GAP
        drawing = Drawing(self._width, bottom + 62, self._title or "staging from tape")
        self._head(drawing)
        if not self._panels:
            middle = Label(
                x=self._width / 2, y=_TOP + 24, text="nothing is wanted from tape", anchor="middle"
            )
            drawing.add(middle)
            return drawing
        top = _TOP
        for tape, samples in self._panels.items():
            _Panel(self, tape, samples, top).paint(drawing)
            top += self._height + _GAP
        self._axis(drawing, bottom)
        self._legend(drawing, bottom + 46)
        return drawing

    # --- what panels ask ----------------------------------------------------------------

    @property
    def by(self) -> By:
        return self._by

    @property
    def right(self) -> float:
        return self._width - _RIGHT

    @property
    def height(self) -> float:
        return self._height

    def x(self, at: float) -> float:
        return _LEFT + min(max(at - self._origin, 0.0), self._seconds) * self._scale

    def ticks(self) -> list[tuple[float, str]]:
        step = tick_step(self._seconds, max(int((self.right - _LEFT) // 95), 2))
        count = int(self._seconds / step * (1 + 1e-9)) + 1
        return [(_LEFT + k * step * self._scale, tick_text(k * step, step)) for k in range(count)]

    def shaded(self, tape: str) -> list[tuple[float, float, float, float]]:
        """Return begin and end of the downtimes that are in the picture, pixels and times."""
        last = self._origin + self._seconds
        return [
            (self.x(start), self.x(end), start, end)
            for name, start, end in self._downtimes
            if name == tape and end > self._origin and start < last
        ]

    # --- frame --------------------------------------------------------------------------

    def _head(self, drawing: Drawing) -> None:
        title = units.fit_text(self._title or "staging", 14, self._width - 460, bold=True)
        drawing.add(Label(x=16, y=28, text=title, size=14, bold=True))
        last = [samples[-1] for samples in self._panels.values()]
        if last:
            sums = {step: sum(sample.value(step, self._by) for sample in last) for step in STEPS}
            parts = [f"{amount(sums['wanted'], self._by)} wanted"]
            parts += [
                f"{units.percent(sums[s], sums['wanted'])} {s}" for s in ("staged", "processed")
            ]
            parts.append(units.duration(self._seconds))
            text = "  ·  ".join(parts)
            drawing.add(Label(x=self.right, y=28, text=text, size=11.5, fill=MUTED, anchor="end"))

    def _axis(self, drawing: Drawing, y: float) -> None:
        for x, text in self.ticks():
            drawing.add(Label(x=x, y=y + 18, text=text, size=11, fill=MUTED, anchor="middle"))

    def _legend(self, drawing: Drawing, y: float) -> None:
        x = _LEFT
        for step in STEPS:
            drawing.add(
                Box(x=x, y=y - 9, width=11, height=11, fill=_fill(step), stroke=_COLOUR[step]),
                Label(x=x + 17, y=y, text=_MEANING[step], size=11.5),
            )
            x += units.text_width(_MEANING[step], 11.5) + 36
        if self._downtimes:
            drawing.add(
                Box(x=x, y=y - 9, width=11, height=11, fill=tint(RED, 0.08), hatched=True),
                Label(x=x + 17, y=y, text="announced downtime", size=11.5),
            )


def amount(value: float, by: By) -> str:
    """Write bytes or a number of files for people."""
    return volume_text(value) if by == "bytes" else units.plural(round(value), "files")


def _fill(step: str) -> str:
    return tint(_COLOUR[step], {"processed": 0.85, "wanted": 0.22}.get(step, 0.5))


class _Panel:
    """One tape system: stacked areas, downtimes behind them, the present values beside."""

    def __init__(self, chart: _Chart, tape: str, samples: Sequence[Sample], top: float) -> None:
        self._chart, self._tape, self._samples, self._top = chart, tape, samples, top
        most = max((s.value(step, chart.by) for s in samples for step in STEPS), default=0)
        self._step = axis_step(most, 4)
        self._most = max(self._step * math.ceil(most / self._step), 1)

    def _y(self, value: float) -> float:
        return self._top + self._chart.height * (1 - value / self._most)

    def paint(self, drawing: Drawing) -> None:
        chart = self._chart
        frame = (_LEFT, self._top, chart.right - _LEFT, chart.height)
        drawing.add(Box(x=frame[0], y=frame[1], width=frame[2], height=frame[3], fill=PAPER))
        self._shade(drawing)
        self._grid(drawing)
        for step in reversed(STEPS):
            drawing.add(*self._area(step))
        self._mark(drawing)
        drawing.add(
            Line(points=((_LEFT, self._y(0)), (chart.right, self._y(0))), stroke=FAINT),
            Label(x=_LEFT, y=self._top - 8, text=self._tape or "tape", size=12, bold=True),
            Label(
                x=chart.right, y=self._top - 8, text=self._now(), size=11, fill=MUTED, anchor="end"
            ),
        )

    def _grid(self, drawing: Drawing) -> None:
        chart = self._chart
        for x, _ in chart.ticks():
            drawing.add(Line(points=((x, self._top), (x, self._y(0))), stroke=RULE))
        for k in range(round(self._most / self._step) + 1):
            value, y = k * self._step, self._y(k * self._step)
            text = volume_text(value) if chart.by == "bytes" else f"{value:,.0f}"
            drawing.add(
                Line(points=((_LEFT, y), (chart.right, y)), stroke=RULE),
                Label(x=_LEFT - 10, y=y + 4, text=text, size=11, fill=MUTED, anchor="end"),
            )

    def _area(self, step: str) -> list[Shape]:
        """Return the area below a curve of steps, and the curve: counts change at once."""
        points: list[Point] = []
        for sample in self._samples:
            x, y = self._chart.x(sample.at), self._y(sample.value(step, self._chart.by))
            if points and points[-1][1] != y:
                points.append((x, points[-1][1]))
            points.append((x, y))
        ground = ((points[-1][0], self._y(0)), (points[0][0], self._y(0)))
        area = Polygon(points=(*points, *ground), fill=_fill(step))
        curve = Line(points=tuple(points), stroke=_COLOUR[step], line=1.6)
        return [area, curve] if len(points) > 1 else [area]

    def _shade(self, drawing: Drawing) -> None:
        """Hatch downtimes behind the areas, which would be hard to read below them."""
        for left, right, start, end in self._chart.shaded(self._tape):
            box = Box(
                x=left,
                y=self._top,
                width=max(right - left, 1.0),
                height=self._chart.height,
                fill=tint(RED, 0.06),
                hatched=True,
                title=f"{self._tape}: announced downtime of {units.duration(end - start)}",
            )
            drawing.add(box)

    def _mark(self, drawing: Drawing) -> None:
        """Mark begin, end and length of downtimes on top of the areas."""
        for left, right, start, end in self._chart.shaded(self._tape):
            for x in (left, right):
                ends = ((x, self._top), (x, self._y(0)))
                drawing.add(Line(points=ends, stroke=RED, dashed=True))
            room = right - left - 12
            for text in (f"down {units.duration(end - start)}", "down"):
                wide = units.text_width(text, 11)
                if wide < room:
                    drawing.add(*self._tag((left + right) / 2, text, wide + 10))
                    break

    def _tag(self, x: float, text: str, wide: float) -> tuple[Box, Label]:
        y = self._top + 6
        box = Box(x=x - wide / 2, y=y, width=wide, height=18, fill=CANVAS, radius=4, stroke=RED)
        return box, Label(x=x, y=y + 13, text=text, size=11, anchor="middle")

    def _now(self) -> str:
        last, by = self._samples[-1], self._chart.by
        flying = max(last.value("requested", by) - last.value("staged", by), 0)
        ready = max(last.value("staged", by) - last.value("processed", by), 0)
        return f"now {amount(flying, by)} in flight, {amount(ready, by)} on disk for jobs"
