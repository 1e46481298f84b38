"""Runs and tasks as plain text: what ``repr`` and pipes show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pandaflow.display import units
from pandaflow.display.snapshot import RunRow, TaskRow, parse_run
from pandaflow.display.style import STACK

_MOST_TASKS = 40


def counts_text(jobs: Mapping[str, int]) -> str:
    """Write counts by state, most advanced first: ``"7 finished, 1 running"``."""
    known = [state for state in STACK if jobs.get(state)]
    return ", ".join(f"{jobs[state]:,} {state}" for state in known) or "no jobs"


def run_line(snapshot: RunRow | Mapping[str, Any], now: float | None = None) -> str:
    """Write a run as one line: id, name, state, elapsed time, jobs by state."""
    run = parse_run(snapshot)
    name = f" ({run.name})" if run.name else ""
    seconds = run.elapsed(now)
    elapsed = f" after {units.duration(seconds)}" if seconds is not None else ""
    return f"run {run.id}{name} {run.status}{elapsed}: {counts_text(run.jobs())}"


def run_text(snapshot: RunRow | Mapping[str, Any], now: float | None = None) -> str:
    """Write a run as a line and a table of its tasks; no colours, no trailing blanks.

    Parameters
    ----------
    snapshot : mapping
        ``id, name, status, tasks: [{name, status, reason, n, closed, jobs}], slots, busy``.
    now : float, optional
        Seconds since the epoch, for the elapsed time of a run that has not ended.

    Raises
    ------
    WorkflowError
        The snapshot is not a run.
    """
    run = parse_run(snapshot)
    rows = [_cells(task) for task in run.shown[:_MOST_TASKS]]
    lines = [run_line(run, now), *_table(("task", "status", "finished", "failed", "running"), rows)]
    more = len(run.shown) - _MOST_TASKS
    if more > 0:
        lines.append(f"  ... and {more} more tasks")
    lines += [f"  {note}" for note in run.notes]
    troubled = [task for task in run.shown if task.reason and task.status not in ("done", "ready")]
    lines += [f"  {task.name}: {task.reason}" for task in troubled[:5]]
    return "\n".join(lines)


def _cells(task: TaskRow) -> tuple[str, ...]:
    done = f"{task.count('finished'):,}/{task.total_text}"
    failed, running = task.count("failed"), task.count("running", "holding")
    return (task.name, task.status, done, f"{failed:,}", f"{running:,}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = []
    for row in [head, *rows]:
        # the first two columns are words, the others numbers
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def task_text(row: TaskRow) -> str:
    """Write a task as one line."""
    reason = f" ({row.reason})" if row.reason else ""
    return f"task {row.name} {row.status}{reason}: {counts_text(row.jobs)}"
