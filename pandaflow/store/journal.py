"""Records as rows of the event log: one row a record, however many jobs it is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pandaflow.core.commands import (
    BundleFinished,
    BundleRunning,
    BundleSent,
    BundleSited,
    ExecutorNoted,
    ItemsRecorded,
    JobsMoved,
    Record,
    RequestRefused,
    RunMoved,
    StreamGrew,
    TaskAdded,
    TaskChanged,
    TaskGrew,
    TaskMoved,
)
from pandaflow.core.model import Jobs
from pandaflow.store.spec import clean

_KINDS: Mapping[type, str] = {
    RunMoved: "run_moved",
    TaskAdded: "task_added",
    TaskChanged: "task_changed",
    TaskMoved: "task_moved",
    TaskGrew: "task_grew",
    ItemsRecorded: "items_recorded",
    StreamGrew: "stream_grew",
    ExecutorNoted: "executor_noted",
    RequestRefused: "request_refused",
    BundleSent: "bundle_sent",
    BundleSited: "bundle_placed",
    BundleRunning: "bundle_running",
    BundleFinished: "bundle_finished",
    JobsMoved: "jobs_moved",
}


def event_row(run: int, seq: int, record: Record, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the row of ``record``, in the order of ``statements.EVENT_COLUMNS``.

    Parameters
    ----------
    run : int
        ``runs.no``.
    seq : int
    record : Record
    fields : mapping
        ``task, jobs, start, finish, reason, detail``, where the record has them.
    """
    where = place(fields["jobs"]) if fields.get("jobs") else {}
    detail = fields.get("detail")
    return (
        run,
        seq,
        record.at,
        _KINDS[type(record)],
        fields.get("task"),
        where.get("first"),
        where.get("last"),
        where.get("jobs"),
        getattr(record, "attempt", None),
        getattr(record, "bundle", None),
        fields.get("start"),
        fields.get("finish"),
        clean(fields.get("reason", "")) or None,
        json.dumps(detail) if detail else None,
    )


def place(jobs: Jobs) -> dict[str, Any]:
    """Return how ``jobs`` are kept: both ends, and the indices where there are gaps."""
    listed = None if isinstance(jobs, range) else json.dumps(jobs)
    return {"first": jobs[0], "last": jobs[-1], "jobs": listed}


def why(record: JobsMoved) -> dict[str, Any] | None:
    """Return what the log says of a move beyond its reason: the failure, the back-off."""
    detail: dict[str, Any] = {}
    if record.failure is not None:
        detail = {"kind": clean(record.failure.kind), "message": clean(record.failure.message)}
    if record.not_before:
        detail["not_before"] = record.not_before
    return detail or None


def about(record: ExecutorNoted | RequestRefused) -> dict[str, Any]:
    """Return whom or what a note is about."""
    if isinstance(record, ExecutorNoted):
        return {"executor": clean(record.executor), "slots": record.slots}
    kind, by = clean(record.kind), clean(record.by)
    return {"request": record.request, "kind": kind, "by": by}
