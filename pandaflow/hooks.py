"""What callbacks are told: states changed, and that is committed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pandaflow.core import commands as cmd


@dataclass(frozen=True, slots=True)
class Transition:
    """What callbacks are told: something changed its state, and that is committed.

    Attributes
    ----------
    kind : {'run', 'task', 'job'}
    at : float
        Seconds since the epoch.
    run : str
    task : str
    jobs : range or tuple of int
        All the jobs that moved together; empty for runs and tasks.
    start, finish : str
    attempt : int
    reason : str
    """

    kind: str
    at: float
    run: str
    task: str
    jobs: range | tuple[int, ...]
    start: str
    finish: str
    attempt: int = 0
    reason: str = ""


def transitions(record: cmd.Record, run: str, names: Mapping[int, str]) -> Iterator[Transition]:
    """Yield what a record says, if it is a change of state; ``names`` are those of tasks."""
    match record:
        case cmd.RunMoved():
            yield Transition(
                "run", record.at, run, "", (), record.start, record.finish, 0, record.reason
            )
        case cmd.TaskMoved():
            name = names.get(record.task, str(record.task))
            yield Transition(
                "task", record.at, run, name, (), record.start, record.finish, 0, record.reason
            )
        case cmd.JobsMoved() | cmd.BundleSent() | cmd.BundleRunning() | cmd.BundleFinished():
            yield _job_transition(record, run, names.get(record.task, str(record.task)))


def _job_transition(record: Any, run: str, name: str) -> Transition:
    start, finish, jobs = "sent", "running", record.jobs
    match record:
        case cmd.BundleSent():
            start, finish = record.start, "sent"
        case cmd.BundleFinished():
            start, finish, jobs = "running", "finished", record.finished
        case cmd.JobsMoved():
            start, finish = record.start, record.finish
    reason = getattr(record, "reason", "")
    return Transition("job", record.at, run, name, jobs, start, finish, record.attempt, reason)
