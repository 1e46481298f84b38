"""Runs, tasks, datasets and workflows as HTML for notebooks.

Inline styles only, no script. Text takes the notebook's own colour and lines are
half-transparent greys, so that all of it is legible on light and on dark backgrounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pandaflow.display import units
from pandaflow.display.drawing import escape
from pandaflow.display.snapshot import RunRow, TaskRow, parse_run, parse_task
from pandaflow.display.style import FONT, STACK, state_colour, status_colour

_MOST_TASKS = 60
#: Opens the frame of a view; ``</div>`` closes it.
CARD = (
    f'<div style="font-family:{escape(FONT)};font-size:13px;line-height:1.45;max-width:920px;'
    'border:1px solid rgba(128,138,150,.35);border-radius:8px;padding:12px 16px;margin:4px 0">'
)
_CELL = "padding:4px 12px 4px 0;border:0;background:none;white-space:nowrap"
NUMBER = f"{_CELL};text-align:right;font-variant-numeric:tabular-nums"
DIM = "opacity:.65"


def pill_html(status: str) -> str:
    """Return a state as a word on its colour."""
    colour = status_colour(status)
    return (
        f'<span style="display:inline-block;padding:0 8px;border-radius:9px;color:{colour};'
        f'background:{colour}24;font-size:12px;font-weight:600">{escape(status)}</span>'
    )


def bar_html(jobs: Mapping[str, int], total: int, title: str = "") -> str:
    """Return jobs by state as one thin stacked bar with a tooltip: counts, or ``title``."""
    whole = max(total, sum(jobs.values()), 1)
    known = [state for state in STACK if jobs.get(state)]
    parts = "".join(
        f'<span style="width:{100 * jobs[state] / whole:.2f}%;'
        # one failed job among a million must be seen
        f"{'min-width:3px;' if state == 'failed' else ''}"
        f'background:{state_colour(state)}"></span>'
        for state in known
        if state != "pending"
    )
    title = escape(title or ", ".join(f"{jobs[state]:,} {state}" for state in known) or "no jobs")
    return (
        f'<div title="{title}" style="display:flex;height:8px;min-width:150px;border-radius:4px;'
        f'overflow:hidden;background:rgba(128,138,150,.22)">{parts}</div>'
    )


def table_html(head: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of ready HTML under a head of (title, style of the column's cells)."""
    titles = "".join(
        f'<th style="{style};{DIM};font-weight:500;font-size:12px">{escape(title)}</th>'
        for title, style in head
    )
    body = "".join(
        '<tr style="background:none;border-top:1px solid rgba(128,138,150,.2)">'
        + "".join(
            f'<td style="{style}">{cell}</td>' for cell, (_, style) in zip(row, head, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        '<table style="border-collapse:collapse;border:0;margin:6px 0 0;width:100%;font-size:13px">'
        f'<thead><tr style="background:none;border:0">{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


TEXT = f"{_CELL};text-align:left"
_TASK_HEAD = (
    ("task", TEXT),
    ("status", TEXT),
    ("", f"{TEXT};width:34%"),
    ("finished", NUMBER),
    ("running", NUMBER),
    ("failed", NUMBER),
)


def _task_cells(task: TaskRow) -> list[str]:
    failed = task.count("failed")
    red = f"color:{status_colour('failed')};font-weight:600"
    name = escape(units.clip(task.name, 48))
    return [
        f'<span title="{escape(task.name)}" style="font-weight:600">{name}</span>',
        pill_html(task.status),
        bar_html(task.jobs, task.n),
        f'{task.count("finished"):,}<span style="{DIM}"> / {task.total_text}</span>',
        f"{task.count('running', 'holding'):,}",
        f'<span style="{red if failed else DIM}">{failed:,}</span>',
    ]


def run_html(
    snapshot: RunRow | Mapping[str, Any],
    now: float | None = None,
    *,
    extra: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return a run as HTML: its state, elapsed time and slots, and one row a task.

    Parameters
    ----------
    snapshot : mapping
        ``id, name, status, tasks: [{name, status, reason, n, closed, jobs}], slots, busy``.
    now : float, optional
        Seconds since the epoch, for the elapsed time of a run that has not ended.
    extra : mapping of str to sequence of str, optional
        Further columns by title, one text for each shown task.

    Raises
    ------
    WorkflowError
        The snapshot is not a run.
    """
    run = parse_run(snapshot)
    shown = run.shown[:_MOST_TASKS]
    columns = dict(extra or {})
    head = [*_TASK_HEAD, *((title, NUMBER) for title in columns)]
    rows = [
        [*_task_cells(task), *(escape(texts[at]) for texts in columns.values())]
        for at, task in enumerate(shown)
    ]
    return "".join(
        [CARD, _run_head(run, now), table_html(head, rows), _more(run, len(shown)), "</div>"]
    )


def _run_head(run: RunRow, now: float | None) -> str:
    parts = [f"run <code>{escape(run.id)}</code>"]
    seconds = run.elapsed(now)
    if seconds is not None:
        parts.append(units.duration(seconds))
    if run.slots is not None and not run.ended:
        busy = f"{run.busy:,} of " if run.busy is not None else ""
        parts.append(f"{busy}{units.plural(run.slots, 'slots')} in use")
    parts.append(f"{run.jobs().get('finished', 0):,} of {units.plural(run.total, 'jobs')}")
    details = f'<span style="{DIM}">{" · ".join(parts)}</span>'
    name = f'<span style="font-size:15px;font-weight:600">{escape(run.name or "run")}</span>'
    return f"<div>{name} &nbsp;{pill_html(run.status)}&nbsp; {details}</div>"


def _more(run: RunRow, shown: int) -> str:
    lines = []
    if len(run.shown) > shown:
        lines.append(f"and {len(run.shown) - shown} more tasks")
    lines += [escape(units.clip(note, 300)) for note in run.notes]
    troubled = [task for task in run.shown if task.reason and task.status not in ("done", "ready")]
    lines += [f"<b>{escape(t.name)}</b>: {escape(units.clip(t.reason, 300))}" for t in troubled[:5]]
    return "".join(f'<div style="{DIM};margin-top:4px">{line}</div>' for line in lines)


def task_html(row: TaskRow | Mapping[str, Any]) -> str:
    """Return one task as HTML.

    Raises
    ------
    WorkflowError
        The row is not a task.
    """
    task = parse_task(row)
    reason = f'<div style="{DIM}">{escape(task.reason)}</div>' if task.reason else ""
    return f"{CARD}{table_html(_TASK_HEAD, [_task_cells(task)])}{reason}</div>"


def dataset_html(name: str, kind: str, n: int | None, sample: Sequence[object]) -> str:
    """Return a dataset as HTML.

    Parameters
    ----------
    name : str
    kind : str
        ``files``, ``items``, ``stream``, ...
    n : int or None
        Items; None: open.
    sample : sequence of object
        The first items; shown by ``str``, at most eight.
    """
    size = "open" if n is None else units.plural(n, "files" if kind == "files" else "items")
    items = "".join(
        f'<li style="margin:0"><code>{escape(units.clip(str(item), 120))}</code></li>'
        for item in sample[:8]
    )
    if n is not None and n > min(len(sample), 8) and sample:
        items += f'<li style="{DIM}">and {n - min(len(sample), 8):,} more</li>'
    body = f'<ol start="0" style="margin:6px 0 0 20px;padding:0">{items}</ol>' if items else ""
    return (
        f'{CARD}<span style="font-size:15px;font-weight:600">{escape(name)}</span> '
        f'<span style="{DIM}">dataset of {escape(kind)} · {size}</span>{body}</div>'
    )


def workflow_html(name: str, svg: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a workflow as HTML: its graph, and a table of its tasks.

    Parameters
    ----------
    name : str
    svg : str
        The graph, as :func:`pandaflow.display.dag.dag_svg` draws it (not escaped).
    rows : sequence of mapping
        One a task; the keys of the first are the titles of the columns.
    """
    titles = list(rows[0]) if rows else []
    head = [(title, TEXT) for title in titles]
    cells = [
        [escape(units.clip(str(row.get(title, "")), 80)) for title in titles]
        for row in rows[:_MOST_TASKS]
    ]
    table = table_html(head, cells) if rows else ""
    return (
        f'<div style="font-family:{escape(FONT)};font-size:13px">'
        f'<div style="font-size:15px;font-weight:600;margin:2px 0 6px">{escape(name)} '
        f'<span style="{DIM};font-weight:400;font-size:13px">workflow of '
        f"{units.plural(len(rows), 'tasks')}</span></div>"
        f'<div style="overflow:auto;max-height:900px">{svg}</div>{table}</div>'
    )


def plan_html(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what a run would do as HTML.

    Parameters
    ----------
    name : str
        The workflow's.
    rows : sequence of mapping
        One a task: ``task, jobs`` (None: open), ``cached, run, why``.
    """
    head = (("task", TEXT), ("jobs", NUMBER), ("cached", NUMBER), ("to run", NUMBER))
    cells = [
        [
            f'<span style="font-weight:600">{escape(str(row["task"]))}</span>',
            "open" if row["jobs"] is None else f"{row['jobs']:,}",
            f"{row['cached']:,}",
            "?" if row.get("run") is None else f"{row['run']:,}",
            f'<span style="{DIM}">{escape(units.clip(str(row.get("why") or ""), 120))}</span>',
        ]
        for row in rows[:_MOST_TASKS]
    ]
    title = f'<span style="font-size:15px;font-weight:600">plan of {escape(name)}</span>'
    return f"{CARD}{title}{table_html([*head, ('why', TEXT)], cells)}</div>"


#: Jobs that a table of jobs shows.
_MOST_JOBS = 50


def jobs_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return jobs as HTML, the first fifty of them.

    Parameters
    ----------
    rows : sequence of mapping
        ``task, index, status, attempt, wall, worker, reason`` each.
    """
    head = (("job", TEXT), ("state", TEXT), ("attempt", NUMBER), ("wall", NUMBER))
    cells = [
        [
            f"{escape(str(row['task']))}[{row['index']}]",
            pill_html(str(row["status"])),
            str(row["attempt"] or "\N{EN DASH}"),
            "\N{EN DASH}" if row.get("wall") is None else units.duration(row["wall"]),
            f'<span style="{DIM}">{escape(units.clip(str(row.get("reason") or ""), 120))}</span>',
        ]
        for row in rows[:_MOST_JOBS]
    ]
    more = f'<div style="{DIM}">and more</div>' if len(rows) > _MOST_JOBS else ""
    return f"{CARD}{table_html((*head, ('', TEXT)), cells)}{more}</div>"
