"""Why a job is where it is: its story of transitions, in words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import WorkflowError
from pandaflow.core.status import JOB_LIVE, JOB_MEANING, JOB_TERMINAL, TASK_TERMINAL, JobStatus
from pandaflow.display.snapshot import WAITS, note

if TYPE_CHECKING:
    from pandaflow.store.port import RunReader

#: Tasks that are named at most; a run can have thousands.
_NAMES = 5


def explain(reader: RunReader, run_id: str, task: str, index: int) -> str:
    """Return the state of a job, what it means, what it waits for, and how it came there.

    Raises
    ------
    WorkflowError
        There is no such job.
    """
    row = next(iter(reader.jobs(run_id, task=task, index=index)), None)
    run = reader.run(run_id)
    about = next(t for t in run["tasks"] if t["name"] == task)
    if row is None:
        size = f"{about['n']} job(s)" + ("" if about["closed"] else " so far")
        raise WorkflowError(f"task {task!r} has no job {index}; it has {size}")
    status = JobStatus(row["status"])
    lines = [f"{task}[{index}] is {status}: {JOB_MEANING[status]}"]
    if row["reason"]:
        lines.append(f"  because: {row['reason']}")
    story = reader.story(run_id, task, index)
    if status in JOB_LIVE:
        lines += _site(row, story)
    lines += [f"  {line}" for line in _held_up(reader, run_id, status, row["executor"])]
    upstream = reader.upstream(run_id, task) if status is JobStatus.PENDING else None
    lines += [f"  {line}" for line in _waiting(run, about, status, upstream)]
    lines += _attempts(reader.attempts(run_id, task, index))
    lines += _story(story)
    return "\n".join(lines)


def _site(job: dict[str, Any], story: list[dict[str, Any]]) -> list[str]:
    """Say where a live job runs, or may run, and why not elsewhere."""
    said = [event for event in story if _is_placement(event) and event["bundle"] == job["bundle"]]
    why = said[-1]["reason"] if said else ""
    if not (said or job["site"]):
        return []
    return ["  site: " + "; ".join(part for part in (job["site"] or "not chosen yet", why) if part)]


def _held_up(reader: RunReader, run_id: str, status: JobStatus, executor: str | None) -> list[str]:
    """Return what the job's executor says last; before a job is sent, what any of them says."""
    if status is not JobStatus.READY and status not in JOB_LIVE:
        return []
    events, _ = reader.noted(run_id, "executor_noted")
    last = {event["detail"]["executor"]: event["reason"] for event in events}
    told = last if status is JobStatus.READY else {executor: last.get(executor)}
    return [note(str(name), reason) for name, reason in told.items() if reason]


def _is_placement(event: dict[str, Any]) -> bool:
    return bool(event["kind"] == "bundle_placed")


def _waiting(
    run: dict[str, Any], task: dict[str, Any], status: JobStatus, upstream: set[int] | None
) -> list[str]:
    if status in JOB_TERMINAL:
        return []
    said = [
        f"task {task['name']} is {task['status']}"
        + (f" ({task['reason']})" if task["reason"] else "")
    ]
    if status is JobStatus.PENDING:
        unfinished = [
            f"{t['name']} ({t['jobs'].get('finished', 0)} of {t['n']} finished)"
            for t in run["tasks"]
            if (t["id"] < task["id"] if upstream is None else t["id"] in upstream)
            and t["status"] not in TASK_TERMINAL
        ]
        if unfinished:
            said.append("tasks before it still work: " + _some(unfinished))
    if status is JobStatus.READY:
        running = task["jobs"].get("running", 0)
        said.append(f"{running} job(s) of the task run now; it is sent when a slot is near")
    alone = f", and {WAITS}" if run["unattended"] else ""
    said.append(f"run {run['id']} is {run['status']}{alone}")
    return said


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return f"{shown} and {len(names) - _NAMES} more" if len(names) > _NAMES else shown


def _attempts(attempts: list[dict[str, Any]]) -> list[str]:
    lines = []
    for attempt in attempts:
        wall = f"{attempt['wall']:.3g} s" if attempt["wall"] is not None else "?"
        where = attempt["worker"] or attempt["executor"] or "?"
        where += f" at {attempt['site']}" if attempt["site"] else ""
        line = f"  attempt {attempt['attempt']}: {attempt['status']} after {wall} on {where}"
        failure = attempt["failure"]
        if failure:
            line += f"\n    {failure['kind']}: {failure['message']}"
            if not failure.get("charged", True):
                line += " (not charged to its retries)"
        if attempt["cached"]:
            line += " (found in the cache)"
        lines.append(line)
    return lines


def _story(events: list[dict[str, Any]]) -> list[str]:
    lines = ["  story:"] if events else ["  nothing has happened to it yet"]
    for event in events:
        at = time.strftime("%H:%M:%S", time.localtime(event["at"])) + f"{event['at'] % 1:.3f}"[1:]
        bundle = f" (bundle {event['bundle']})" if event["bundle"] else ""
        why = f": {event['reason']}" if event["reason"] else ""
        lines.append(f"    {at}  {_move(event)}{bundle}{why}")
    return lines


def _move(event: dict[str, Any]) -> str:
    site = (event["detail"] or {}).get("site")
    where = f" at {site}" if site else ""
    if event["finish"]:
        return f"{event['start'] or ''} -> {event['finish']}{where}"
    if _is_placement(event):
        return f"placed{where}" if where else "may be placed"
    return str(event["kind"])
