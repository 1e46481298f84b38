"""Jobs on slots over time: a Gantt chart that stays small with any number of jobs."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.display import units
from pandaflow.display.drawing import Bars, Box, Drawing, Label, Line, Picture
from pandaflow.display.snapshot import family
from pandaflow.display.style import FAINT, INK, MUTED, PAPER, RED, RULE, task_colour, tint

#: Up to so many bars each has a tooltip; more are drawn as one path per colour.
_TOOLTIPS = 800
_LEGEND = 24
_LEFT, _RIGHT, _TOP = 128.0, 20.0, 50.0
_FAILED = frozenset({"failed", "lost", "cancelled"})
#: Tick distances in seconds beyond powers of ten: minutes, hours, days.
_STEPS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


@dataclass(frozen=True, slots=True)
class Span:
    """One attempt of a job on a worker, times in seconds; ``task`` is its family's name."""

    task: str
    index: int
    worker: str
    start: float
    end: float
    status: str = "finished"
    attempt: int = 1
    name: str = ""

    @property
    def failed(self) -> bool:
        """Whether the attempt was in vain."""
        return self.status in _FAILED


def parse_spans(rows: Iterable[Mapping[str, Any]], now: float | None = None) -> list[Span]:
    """Read rows of jobs or attempts; those that never started are left out.

    Parameters
    ----------
    rows : iterable of mapping
        ``task, started`` and, where known, ``index, worker, wall, status, attempt``; ``started``
        in seconds since the epoch, ``wall`` in seconds.
    now : float, optional
        End of what still runs; default: the latest time in the rows.

    Raises
    ------
    WorkflowError
        A row has no task, or a time that is no number.
    """
    started = [row for row in rows if row.get("started")]
    try:
        ends = [float(row["started"]) + float(row.get("wall") or 0.0) for row in started]
        latest = now if now is not None else max(ends, default=0.0)
        return [_span(row, latest) for row in started]
    except (KeyError, TypeError, ValueError) as error:
        raise WorkflowError(f"not rows of jobs for a timeline: {error!r}") from error


def _span(row: Mapping[str, Any], latest: float) -> Span:
    start, wall = float(row["started"]), row.get("wall")
    runs = row.get("status") == "running" and not wall
    end = max(latest, start) if runs else start + max(float(wall or 0.0), 0.0)
    return Span(
        family(str(row["task"])),
        int(row.get("index") or 0),
        str(row.get("worker") or ""),
        start,
        end,
        str(row.get("status") or "finished"),
        int(row.get("attempt") or 1),
        str(row["task"]),
    )


def pack(spans: Iterable[Span], tolerance: float = 0.0) -> list[tuple[str, list[list[Span]]]]:
    """Put the spans of each worker on as few lanes as hold them without overlap.

    Parameters
    ----------
    spans : iterable of Span
    tolerance : float
        Overlap in seconds that is taken for jitter of the clocks.

    Returns
    -------
    list of (str, list of list of Span)
        Workers by name, each with its lanes; greedy by start, which is optimal.
    """
    workers: dict[str, list[list[Span]]] = {}
    busy: dict[str, list[tuple[float, int]]] = {}
    for span in sorted(spans, key=attrgetter("start", "end", "task", "index", "attempt")):
        lanes, queue = workers.setdefault(span.worker, []), busy.setdefault(span.worker, [])
        if queue and queue[0][0] <= span.start + tolerance:
            lane = heapq.heappop(queue)[1]
        else:
            lane = len(lanes)
            lanes.append([])
        lanes[lane].append(span)
        heapq.heappush(queue, (span.end, lane))
    return sorted(workers.items())


def tick_step(span: float, most: int) -> float:
    """Return the distance in seconds of at most ``most`` ticks, a round number of its unit."""
    least = span / max(most, 1)
    if least > _STEPS[-1]:
        return math.ceil(least / 86400) * 86400.0
    if least > 30:
        return float(next(step for step in _STEPS if step >= least))
    power = 10.0 ** math.floor(math.log10(max(least, 1e-6)))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= least * (1 - 1e-9))
    return 60.0 if step > 30 else step


def tick_text(at: float, step: float) -> str:
    """Write a time on the axis, in the unit that suits the distance of the ticks."""
    if at == 0:
        return "0"
    if step >= 86400:
        return f"{at / 86400:.0f} d"
    if step >= 60:
        minutes = round(at / 60)
        return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"
    if step >= 1:
        return f"{at:.0f} s"
    if step >= 1e-3:
        return f"{at * 1e3:.0f} ms" if at < 1 else f"{at:.{_digits(step)}f} s"
    return f"{at * 1e3:.{_digits(step * 1e3)}f} ms"


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


@dataclass(frozen=True, slots=True)
class _Bar:
    """Pixels ``[left, right)`` of a lane; ``spans`` are those that it stands for."""

    left: float
    right: float
    task: str
    failed: bool
    spans: Sequence[Span]


def _bars(lane: Sequence[Span], origin: float, scale: float) -> Iterator[_Bar]:
    """Merge what is thinner than a pixel: of each pixel, who used it most (failures first)."""
    thin: list[Span] = []
    for span in lane:
        if (span.end - span.start) * scale >= 1.0:
            yield from _thin_bars(thin, origin, scale)
            thin = []
            left, right = (span.start - origin) * scale, (span.end - origin) * scale
            yield _Bar(left, right, span.task, span.failed, (span,))
        else:
            thin.append(span)
    yield from _thin_bars(thin, origin, scale)


def _thin_bars(spans: Sequence[Span], origin: float, scale: float) -> Iterator[_Bar]:
    pixels: dict[int, list[Span]] = {}
    for span in spans:
        pixels.setdefault(math.floor((span.start - origin) * scale), []).append(span)
    open_bar: _Bar | None = None
    for pixel in sorted(pixels):
        inside = pixels[pixel]
        task, failed = _winner(inside)
        if open_bar and (open_bar.task, open_bar.failed, open_bar.right) == (task, failed, pixel):
            inside = [*open_bar.spans, *inside]
            open_bar = _Bar(open_bar.left, pixel + 1, task, failed, inside)
            continue
        if open_bar:
            yield open_bar
        open_bar = _Bar(pixel, pixel + 1, task, failed, inside)
    if open_bar:
        yield open_bar


def _winner(spans: Sequence[Span]) -> tuple[str, bool]:
    failed = [span for span in spans if span.failed]
    seconds: dict[str, float] = {}
    for span in failed or spans:
        seconds[span.task] = seconds.get(span.task, 0.0) + span.end - span.start
    return max(seconds, key=seconds.__getitem__), bool(failed)


def timeline_drawing(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str = "",
    width: int = 1000,
    tasks: Sequence[str] = (),
    now: float | None = None,
) -> Drawing:
    """Draw jobs on slots; the arguments are those of :func:`timeline_svg`."""
    spans = parse_spans(rows, now)
    return _Chart(spans, title, width, tasks).drawing()


def timeline_svg(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str = "",
    width: int = 1000,
    tasks: Sequence[str] = (),
    now: float | None = None,
) -> str:
    """Return jobs on slots over time as SVG, coloured by task, failed attempts hatched in red.

    Parameters
    ----------
    rows : iterable of mapping
        See :func:`parse_spans`. Any number: bars thinner than a pixel are merged.
    title : str
    width : int
        Pixels.
    tasks : sequence of str
        Order of the tasks in the legend; those not named follow by their first start.
    now : float, optional
        The time at which running jobs are cut, seconds since the epoch.

    Raises
    ------
    WorkflowError
        The rows are not rows of jobs.
    """
    return timeline_drawing(rows, title=title, width=width, tasks=tasks, now=now).svg()


def timeline_picture(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str = "",
    width: int = 1000,
    tasks: Sequence[str] = (),
    now: float | None = None,
) -> Picture:
    """Return the chart as a :class:`Picture`, which notebooks show and ``save`` writes."""
    return Picture(timeline_drawing(rows, title=title, width=width, tasks=tasks, now=now))


def timeline_png(
    rows: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    width: int = 1000,
    tasks: Sequence[str] = (),
    now: float | None = None,
) -> Path:
    """Write the chart as PNG; see :func:`timeline_svg`.

    Raises
    ------
    ImportError
        matplotlib is missing, which ``pandaflow[plot]`` brings.
    """
    target = Path(path).with_suffix(".png")
    picture = timeline_picture(rows, title=title, width=width, tasks=tasks, now=now)
    return picture.save(target)


class _Chart:
    """Geometry and painting of one chart."""

    def __init__(self, spans: list[Span], title: str, width: int, tasks: Sequence[str]) -> None:
        self._spans, self._title, self._width = spans, title, float(max(width, 320))
        self._plot = self._width - _LEFT - _RIGHT
        self._origin = min((span.start for span in spans), default=0.0)
        last = max((span.end for span in spans), default=0.0)
        self._seconds = max(last - self._origin, 1e-6)
        self._scale = self._plot / self._seconds
        self._workers = pack(spans, tolerance=0.5 / self._scale)
        self._n_lanes = sum(len(lanes) for _, lanes in self._workers)
        self._lane = min(max(520.0 / max(self._n_lanes, 1), 1.5), 20.0)
        ranked = sorted(spans, key=attrgetter("start", "task"))
        used = {span.task for span in spans}
        order = [task for task in map(family, tasks) if task in used] + [
            span.task for span in ranked
        ]
        self._colour = {task: task_colour(k) for k, task in enumerate(dict.fromkeys(order))}

    def drawing(self) -> Drawing:
        bottom = _TOP + max(self._n_lanes, 1) * self._lane + 5.0 * (len(self._workers) - 1)
        legend = self._legend_places(bottom + 46)
        height = legend[-1][2] + 14 if legend else bottom + 36
        drawing = Drawing(self._width, height, self._title or "timeline of jobs")
        self._head(drawing)
        if not self._spans:
            text = Label(x=self._width / 2, y=_TOP + 14, text="no job has started", anchor="middle")
            drawing.add(text)
            return drawing
        drawing.add(
            Box(x=_LEFT, y=_TOP - 4, width=self._plot, height=bottom - _TOP + 8, fill=PAPER)
        )
        self._axis(drawing, bottom + 4)
        self._lanes(drawing)
        self._legend(drawing, legend)
        return drawing

    def _head(self, drawing: Drawing) -> None:
        jobs = len({(span.task, span.index) for span in self._spans})
        busy = sum(span.end - span.start for span in self._spans)
        parts = [units.plural(jobs, "jobs"), units.plural(self._n_lanes, "slots")]
        if self._spans:
            used = min(busy / (self._n_lanes * self._seconds), 1.0)
            parts += [units.duration(self._seconds), f"slots busy {100 * used:.0f} %"]
        title = units.fit_text(self._title or "timeline", 14, self._width - 360, bold=True)
        drawing.add(
            Label(x=16, y=28, text=title, size=14, bold=True),
            Label(
                x=self._width - _RIGHT,
                y=28,
                text="  ·  ".join(parts),
                size=11.5,
                fill=MUTED,
                anchor="end",
            ),
        )

    def _axis(self, drawing: Drawing, y: float) -> None:
        step = tick_step(self._seconds, max(int(self._plot // 95), 2))
        for k in range(int(self._seconds / step * (1 + 1e-9)) + 1):
            x = _LEFT + k * step * self._scale
            drawing.add(
                Line(points=((x, _TOP - 4), (x, y)), stroke=RULE),
                Label(
                    x=x,
                    y=y + 16,
                    text=tick_text(k * step, step),
                    size=11,
                    fill=MUTED,
                    anchor="middle",
                ),
            )
        drawing.add(Line(points=((_LEFT, y), (_LEFT + self._plot, y)), stroke=FAINT))

    def _lanes(self, drawing: Drawing) -> None:
        y = _TOP
        placed: list[tuple[_Bar, float]] = []
        free = y
        for worker, lanes in self._workers:
            height = len(lanes) * self._lane
            middle = y + height / 2 + 3.5
            if middle >= free:
                drawing.add(self._worker_label(worker, middle))
                free = middle + 13
            for lane in lanes:
                bars = _bars(lane, self._origin, self._scale)
                placed.extend((bar, y) for bar in bars)
                y += self._lane
            y += 5.0
        if len(placed) <= _TOOLTIPS:
            for bar, top in placed:
                drawing.add(self._box(bar, top))
        else:
            self._paths(drawing, placed)

    def _worker_label(self, worker: str, y: float) -> Label:
        text = units.clip_middle(worker.removeprefix("tcp://") or "worker", 19)
        return Label(x=_LEFT - 10, y=y, text=text, size=11, fill=INK, anchor="end", title=worker)

    def _place(self, bar: _Bar, top: float) -> tuple[float, float, float, float]:
        gap = 1.5 if self._lane > 8 else 0.4
        # neighbours keep a hair's breadth apart where there is room for it
        width = bar.right - bar.left
        width = max(width - (0.6 if width > 4 else 0.0), 1.0)
        return (_LEFT + bar.left, top + gap / 2, width, self._lane - gap)

    def _box(self, bar: _Bar, top: float) -> Box:
        x, y, width, height = self._place(bar, top)
        colour = self._colour[bar.task]
        return Box(
            x=x,
            y=y,
            width=width,
            height=height,
            fill=tint(colour, 0.35) if bar.failed else colour,
            stroke=RED if bar.failed else "",
            radius=2.0 if width > 6 and height > 6 else 0.0,
            hatched=bar.failed and width > 3,
            title=self._tooltip(bar),
        )

    def _tooltip(self, bar: _Bar) -> str:
        first = bar.spans[0]
        if len(bar.spans) > 1:
            return f"{units.plural(len(bar.spans), 'jobs')}, mostly {bar.task}\non {first.worker}"
        attempt = f", attempt {first.attempt}" if first.attempt > 1 else ""
        return (
            f"{first.name or first.task}[{first.index}]{attempt}: {first.status}\n"
            f"{units.duration(first.end - first.start)} from "
            f"{units.duration(first.start - self._origin)} on {first.worker or 'a worker'}"
        )

    def _paths(self, drawing: Drawing, placed: Sequence[tuple[_Bar, float]]) -> None:
        groups: dict[tuple[str, bool], list[tuple[float, float, float, float]]] = {}
        for bar, top in placed:
            groups.setdefault((bar.task, bar.failed), []).append(self._place(bar, top))
        # failures last, on top of everything
        for (task, failed), boxes in sorted(groups.items(), key=lambda group: group[0][1]):
            colour = self._colour[task]
            fill, stroke = (tint(colour, 0.35), RED) if failed else (colour, "")
            drawing.add(Bars(boxes=boxes, fill=fill, stroke=stroke, hatched=failed))

    def _legend_places(self, y: float) -> list[tuple[str, float, float]]:
        jobs: dict[str, set[tuple[str, int]]] = {task: set() for task in self._colour}
        for span in self._spans:
            jobs[span.task].add((span.name, span.index))
        texts = [f"{units.clip(task, 32)} ({len(jobs[task]):,})" for task in self._colour]
        if len(texts) > _LEGEND:
            texts = [*texts[:_LEGEND], f"and {len(texts) - _LEGEND} more tasks"]
        if any(span.failed for span in self._spans):
            texts.append("failed attempt")
        places, x = [], _LEFT
        for text in texts:
            wide = units.text_width(text, 11.5) + 32
            if x + wide > self._width - _RIGHT and x > _LEFT:
                x, y = _LEFT, y + 20
            places.append((text, x, y))
            x += wide
        return places

    def _legend(self, drawing: Drawing, places: Sequence[tuple[str, float, float]]) -> None:
        colours = list(self._colour.values())[:_LEGEND]
        for at, (text, x, y) in enumerate(places):
            fill = colours[at] if at < len(colours) else PAPER
            failed = text == "failed attempt" and at >= len(colours)
            if at < len(colours) or failed:
                stroke = RED if failed else ""
                drawing.add(
                    Box(
                        x=x,
                        y=y - 9,
                        width=11,
                        height=11,
                        fill=fill,
                        stroke=stroke,
                        radius=2,
                        hatched=failed,
                    )
                )
            drawing.add(Label(x=x + 17, y=y, text=text, size=11.5, fill=INK))
