"""Wishes from outside: cancel, pause, resume, retry, restart, more items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.errors import WorkflowError
from pandaflow.core.jobtable import (
    CANCELLED,
    CLOSED,
    FAILED,
    FINISHED,
    PENDING,
    QUEUED,
    READY,
    WAITING_CODES,
)
from pandaflow.core.model import Jobs, Resources, TaskSpec, compact
from pandaflow.core.moves import by_state
from pandaflow.core.status import (
    JOB_TERMINAL,
    RUN_TERMINAL,
    JobStatus,
    RunStatus,
    TaskStatus,
)
from pandaflow.core.taskrun import BundleRun, TaskRun
from pandaflow.core.verdicts import Verdicts

_RESOURCES = frozenset(field.name for field in fields(Resources))


def changed(spec: TaskSpec, changes: Mapping[str, Any]) -> TaskSpec:
    """Return a task with changed options, those of its resources among them, one by one.

    Parameters
    ----------
    spec : TaskSpec
    changes : mapping of str to Any
        As in ``RetryRequested``.
    """
    needs = {name: value for name, value in changes.items() if name in _RESOURCES}
    plain = {name: value for name, value in changes.items() if name not in _RESOURCES}
    return spec.changed(resources=replace(spec.resources, **needs), **plain)


class Steering(Verdicts):
    """Carries out what people ask for."""

    def _wish(self, event: ev.Event) -> None:
        match event:
            case ev.ItemsAppended():
                self._items_appended(event)
            case ev.CancelRequested():
                self._cancel(event)
            case ev.PauseRequested():
                self._pause(event)
            case ev.ResumeRequested():
                self._resume(event)
            case ev.RetryRequested():
                self._retry(event)

    def _items_appended(self, event: ev.ItemsAppended) -> None:
        size = self._sources.get(event.source)
        if size is None:
            raise WorkflowError(f"no source {event.source} in this run")
        if not size.closed:
            n = size.n + event.count
            self._sources[event.source] = type(size)(n, event.closed)
            self._out.append(cmd.StreamGrew(event.at, event.source, n, event.closed))

    def _cancel(self, event: ev.CancelRequested) -> None:
        if self.status in RUN_TERMINAL:
            return
        by = f"cancelled by {event.by}" if event.by else "cancelled"
        if event.task is None:
            self._cancelled = by
            chosen = list(self.tasks.values())
        else:
            chosen = [self._known(event.task)]
        only = None if event.job is None else range(event.job, event.job + 1)
        for task in chosen:
            self._cancel_task(task, only, by)
        if event.task is None:
            for task in chosen:
                if not task.terminal:
                    self._move_task(task, TaskStatus.ABORTED, by)

    def _cancel_task(self, task: TaskRun, only: range | None, reason: str) -> None:
        """Stop what runs; what waits is cancelled too (all of it, or the jobs ``only``)."""
        for bundle in [b for b in self._bundles.values() if b.task == task.spec.id]:
            hit = bundle.jobs if only is None else compact([j for j in bundle.jobs if j in only])
            if hit:
                self._recall(bundle)
                self._cancel_jobs(task, hit, reason)
                rest = compact([job for job in bundle.jobs if job not in hit])
                self._hand_back(task, rest, bundle.id, "its bundle was stopped for another job")
        lo, hi = (only.start, only.stop) if only is not None else (0, task.n)
        for piece in task.table.jobs_in(WAITING_CODES, lo, hi):
            self._cancel_jobs(task, piece, reason)
        stopped = set(range(lo, hi)) if only is not None else None
        task.queue = type(task.queue)(
            j for j in task.queue if stopped is not None and j not in stopped
        )
        task.backoff = [e for e in task.backoff if stopped is not None and e[1] not in stopped]
        if only is None and not task.closed and not task.terminal:
            self._move_task(task, TaskStatus.ABORTED, reason)

    def _cancel_jobs(self, task: TaskRun, jobs: Jobs, reason: str) -> None:
        for start, group in by_state(task, jobs):
            if start in JOB_TERMINAL:
                continue  # closed for want of another that was cancelled before
            task.end_attempts(group, start)
            task.table.move(group, CANCELLED)
            self._moved(task, group, start, JobStatus.CANCELLED, reason=reason)
        self._gone(task, jobs)

    def _recall(self, bundle: BundleRun) -> None:
        self._forget(bundle)
        self._held.pop(bundle.id, None)
        self._out.append(cmd.CancelBundle(bundle.id, bundle.executor))

    def _pause(self, event: ev.PauseRequested) -> None:
        if self.status is not RunStatus.RUNNING:
            return
        self._move_run(RunStatus.PAUSED, f"paused by {event.by}" if event.by else "paused")
        # A bundle that joins a job is not new: its job runs already.
        for bundle in [b for b in self._bundles.values() if not (b.started or b.joins)]:
            self._recall(bundle)
            self._hand_back(self.tasks[bundle.task], bundle.jobs, bundle.id, "taken back: paused")
        for task in self._active:
            if task.status is not TaskStatus.PAUSED:
                self._move_task(task, TaskStatus.PAUSED, "the run is paused")

    def _resume(self, event: ev.ResumeRequested) -> None:
        if self.status is not RunStatus.PAUSED:
            return
        self._move_run(RunStatus.RUNNING, f"resumed by {event.by}" if event.by else "resumed")
        for task in list(self._active):
            if task.status is TaskStatus.PAUSED:
                self._move_task(task, self._unpaused(task), "the run goes on")
                self._check_rate(task)

    def _unpaused(self, task: TaskRun) -> TaskStatus:
        if task.chunks is None:
            return TaskStatus.DEFINED
        touched = task.n - task.table.counts[PENDING] - task.table.counts[READY]
        return TaskStatus.RUNNING if touched else TaskStatus.READY

    def _retry(self, event: ev.RetryRequested) -> None:
        chosen = set(self.tasks)
        if event.task is not None:
            chosen = self._downstream(self._known(event.task).spec.id)
        if event.restart:
            self.check_restart(event.task)
        for spec in self.to_change(event):
            self._change(self.tasks[spec.id], event)
        if not any(self._can_retry(self.tasks[number], event) for number in chosen):
            return
        self._cancelled = ""
        if self.status in RUN_TERMINAL:
            self._move_run(RunStatus.RUNNING, "restart" if event.restart else "retry")
        for loop in self._loops.values():
            loop.dead = False
        for number in sorted(chosen, key=lambda k: self.tasks[k].depth):
            if self._can_retry(self.tasks[number], event):
                self._retry_task(self.tasks[number], event)
        self._reorder()

    def _known(self, number: int) -> TaskRun:
        if number not in self.tasks:
            raise WorkflowError(f"no task {number} in this run")
        return self.tasks[number]

    def to_change(self, event: ev.RetryRequested) -> list[TaskSpec]:
        """Return the tasks whose options a retry changes, as they are before."""
        if event.task is not None:
            return [self._known(event.task).spec]
        counts = ((task.spec, task.table.counts) for task in self.tasks.values())
        return [spec for spec, count in counts if count[FAILED] or count[CANCELLED]]

    def _change(self, task: TaskRun, event: ev.RetryRequested) -> None:
        if event.changes:
            task.spec = changed(task.spec, event.changes)
            task.overrides.clear()
            self._out.append(cmd.TaskChanged(event.at, task.spec))

    def check_restart(self, task: int | None) -> None:
        """Refuse to restart where the workflow's growth hangs on what would run again.

        Raises
        ------
        WorkflowError
        """
        for number in sorted(self.tasks if task is None else self._downstream(task)):
            spec = self.tasks[number].spec
            if not self.tasks[number].terminal:
                raise WorkflowError(
                    f"cannot restart here: {spec.name!r} downstream has not ended; wait for it, "
                    "or cancel it"
                )
            if spec.gate or spec.scatters or spec.iteration is not None:
                raise WorkflowError(
                    f"cannot restart here: {spec.name!r} downstream decides how the workflow "
                    "grows (a condition, a loop, scattered items); run it anew with cache=True"
                )

    def _again_jobs(self, task: TaskRun, event: ev.RetryRequested) -> list[range]:
        ended = (FAILED, CANCELLED, CLOSED)
        return task.table.jobs_in((*ended, FINISHED) if event.restart else ended)

    def _can_retry(self, task: TaskRun, event: ev.RetryRequested) -> bool:
        if not task.terminal or self._guarded_out(task):
            return False
        if task.spec.scatters and self.ended(task.spec.id) and not event.restart:
            return False  # its items are complete to those who read them
        return task.chunks is None or not task.closed or bool(self._again_jobs(task, event))

    def _retry_task(self, task: TaskRun, event: ev.RetryRequested) -> None:
        pieces = self._again_jobs(task, event)
        finish = TaskStatus.RUNNING if task.chunks is not None else TaskStatus.DEFINED
        self._move_task(task, finish, "restart" if event.restart else "retry")
        task.charged.clear()
        task.lost.clear()
        task.excused.clear()
        task.cursor, task.waits_on = 0, None
        for piece in pieces:
            for start, group in by_state(task, piece):
                self._reset(task, group, start)

    def _reset(self, task: TaskRun, jobs: Jobs, start: JobStatus) -> None:
        """Make jobs fresh again; those that ran get a new attempt."""
        if start is JobStatus.FINISHED:
            task.end_attempts(jobs, JobStatus.RUNNING)
        ready = start in (JobStatus.FAILED, JobStatus.CANCELLED) and task.initial is JobStatus.READY
        task.table.move(jobs, READY if ready else PENDING)
        finish = JobStatus.READY if ready else JobStatus.PENDING
        self._moved(task, jobs, start, finish, reason="retry")

    def _forget(self, bundle: BundleRun) -> None:
        """Take a bundle out of flight: whatever it still reports is ignored."""
        del self._bundles[bundle.id]
        self.tasks[bundle.task].nodes -= 1
        if not bundle.waiting:
            self._runnable[bundle.executor] -= 1
        for dependent in self._dependents.pop(bundle.id, ()):
            other = self._bundles.get(dependent)
            if other is not None:
                other.waiting -= 1
                if not other.waiting:
                    self._runnable[other.executor] += 1
        for need in bundle.needs:
            self._readers[need] -= 1

    def _hand_back(self, task: TaskRun, jobs: Jobs, bundle: int, reason: str) -> None:
        """Jobs that never began are ready again, at the same attempt."""
        if not jobs:
            return
        for start, group in by_state(task, jobs):
            task.table.move(group, QUEUED)
            self._moved(task, group, start, JobStatus.READY, reason=reason, bundle=bundle)
        task.queue.extend(jobs)
