"""A run's progress as rich renders it: a header and one line a task, with rates and ETAs.

The lines are put together by hand instead of with ``rich.table``, which measures every cell
twice: a refresh must cost next to nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pandaflow.display import units
from pandaflow.display.html import run_html
from pandaflow.display.snapshot import RunRow, TaskRow, parse_run
from pandaflow.display.style import STACK, state_colour, status_colour
from pandaflow.display.text import run_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.segment import Segment
    from rich.style import Style

#: Seconds over which rates are taken.
WINDOW = 15.0
_BAR = 26


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a task goes: finished jobs per second, and seconds to go; None: not known."""

    rate: float | None = None
    eta: float | None = None


class ProgressView:
    """Keeps what a moving rate needs and shows the newest snapshot; a rich renderable.

    Parameters
    ----------
    window : float
        Seconds over which rates are taken.
    """

    #: Lines that are shown below the table.
    below = 0

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._history: dict[str, deque[tuple[float, int]]] = {}
        self.now = 0.0
        self.run: RunRow | None = None

    def update(self, snapshot: RunRow | Mapping[str, Any], now: float) -> None:
        """Take a snapshot made at ``now`` (seconds since the epoch).

        Raises
        ------
        WorkflowError
            The snapshot is not a run.
        """
        self.run, self.now = parse_run(snapshot), now
        for task in self.run.tasks:
            points = self._history.setdefault(task.name, deque())
            points.append((now, task.count("finished")))
            # one point older than the window stays, so that the window is always covered
            while len(points) > 2 and points[1][0] < now - self._window:
                points.popleft()

    def pace(self, task: TaskRow) -> Pace:
        """Return the moving rate of ``task`` and the time that its other jobs will take."""
        if task.ended:
            return Pace()
        points = self._history.get(task.name)
        if not points or len(points) < 2:
            return Pace()
        (start, before), (end, after) = points[0], points[-1]
        if end <= start or after <= before:
            return Pace()
        rate = (after - before) / (end - start)
        left = task.n - task.count("finished", "failed", "cancelled", "closed")
        return Pace(rate, left / rate if task.closed else None)

    def html(self) -> str:
        """Return the newest snapshot as HTML."""
        if self.run is None:
            return ""
        paces = [self.pace(task) for task in self.run.shown]
        extra = {
            "rate": [units.rate(pace.rate) for pace in paces],
            "ETA": [units.duration(pace.eta) for pace in paces],
        }
        return run_html(self.run, self.now, extra={} if self.run.ended else extra)

    def first_line(self) -> str:
        """Return what a log says when the run starts; empty while nothing is known of it."""
        run = self.run
        if run is None:
            return ""
        name = f" ({run.name})" if run.name else ""
        parts = [units.plural(len(run.shown), "tasks")]
        if run.total:  # jobs are known once the run is driven
            parts.append(units.plural(run.total, "jobs"))
        if run.slots is not None:
            parts.append(units.plural(run.slots, "slots"))
        return f"run {run.id}{name} started: {', '.join(parts)}"

    def last_line(self) -> str:
        """Return what a log says when the run has ended."""
        return "" if self.run is None else run_line(self.run, self.now)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the header line and one line a task."""
        from rich.segment import Segment

        if self.run is None:
            return
        most = max((options.height or console.height) - 4 - self.below, 3)
        for line in self._lines(self.run, options.max_width, most):
            yield from line
            yield Segment.line()

    def _lines(self, run: RunRow, width: int, most: int) -> Iterator[list[Segment]]:
        yield _header(run, self.now)
        tasks = _most_interesting(run.shown, max(most - len(run.notes), 3))
        columns = _columns(tasks, width)
        yield _titles(columns)
        for task in tasks:
            yield _task_line(task, self.pace(task), columns)
        hidden = len(run.shown) - len(tasks)
        if hidden:
            yield [_segment(f"  … and {units.plural(hidden, 'tasks')} more", "dim")]
        for note in run.notes:
            yield [_segment(f"  {units.clip(note, max(width - 2, 8))}", "dim")]


def _most_interesting(tasks: tuple[TaskRow, ...], most: int) -> list[TaskRow]:
    """Choose what fits the screen: what runs or failed before what waits or is done."""
    if len(tasks) <= most:
        return list(tasks)
    rank = {"failed": 0, "exhausted": 0, "running": 1, "scouting": 1, "paused": 1}
    order = sorted(range(len(tasks)), key=lambda at: (rank.get(tasks[at].status, 2), at))
    return [tasks[at] for at in sorted(order[:most])]


def _segment(text: str, style: str = "") -> Segment:
    from rich.segment import Segment

    return Segment(text, _style(style))


@lru_cache(maxsize=64)
def _style(text: str) -> Style | None:
    from rich.style import Style

    return Style.parse(text) if text else None


def _header(run: RunRow, now: float) -> list[Segment]:
    parts = [f"run {run.id}"]
    seconds = run.elapsed(now)
    if seconds is not None:
        parts.append(units.duration(seconds))
    if run.slots is not None and not run.ended:
        busy = "–" if run.busy is None else units.count(run.busy)
        parts.append(f"slots {busy}/{units.count(run.slots)}")
    parts.append(f"{run.jobs().get('finished', 0):,}/{units.plural(run.total, 'jobs')}")
    return [
        _segment(f"● {run.name or 'run'} ", f"bold {status_colour(run.status)}"),
        _segment(f"{run.status}  ", status_colour(run.status)),
        _segment(" · ".join(parts), "dim"),
    ]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Widths of the columns that give way on narrow screens, characters."""

    name: int
    bar: int
    done: int


def _columns(tasks: Sequence[TaskRow], width: int) -> _Columns:
    name = max((len(task.name) for task in tasks), default=4)
    done = max([8, *(len(_done_text(task)) for task in tasks)])
    rest = width - 52 - done  # what the other columns leave
    name = max(min(name, 40, rest - 8), 8)
    return _Columns(name, max(min(rest - name, _BAR), 4), done)


def _done_text(task: TaskRow) -> str:
    return f"{task.count('finished'):,}/{task.total_text}"


def _titles(at: _Columns) -> list[Segment]:
    line = f"  {'task':<{at.name}}  {'state':<9}  {'':<{at.bar}}  {'finished':>{at.done}}"
    return [_segment(f"{line} {'run':>6} {'fail':>6} {'rate':>9} {'ETA':>9}", "dim")]


def _task_line(task: TaskRow, pace: Pace, at: _Columns) -> list[Segment]:
    failed, running = task.count("failed"), task.count("running", "holding")
    red = f"bold {state_colour('failed')}" if failed else "dim"
    return [
        _segment(f"  {units.clip_name(task.name, at.name):<{at.name}}  ", "bold"),
        _segment(f"{units.clip(task.status, 9):<9}  ", status_colour(task.status)),
        *_bar(task, at.bar),
        _segment(f"  {_done_text(task):>{at.done}} {running or '–':>6} "),
        _segment(f"{failed or '–':>6} ", red),
        _segment(f"{units.rate(pace.rate):>9} {units.duration(pace.eta):>9}", "dim"),
    ]


def _bar(task: TaskRow, width: int) -> Iterator[Segment]:
    """Draw jobs by state as one bar of ``width`` cells; any failed job gets a cell."""
    total = max(task.n, sum(task.jobs.values()), 1)
    used, passed = 0, 0
    for state in STACK:
        number = task.jobs.get(state, 0)
        if not number or state in ("pending", "ready"):
            continue
        passed += number
        cells = int(width * passed / total + 0.5) - used
        if state == "failed":
            cells = max(cells, 1)
        cells = min(max(cells, 0), width - used)
        if cells:
            yield _segment("━" * cells, state_colour(state))
        used += cells
    if used < width:
        # a thinner stroke: the bar is legible without colours too
        yield _segment("─" * (width - used), "dim")
