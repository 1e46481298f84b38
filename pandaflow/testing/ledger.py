"""The engine's records kept in memory, as a state store keeps them, and what restoring must give.

:class:`Ledger` refuses a record that does not fit, as a store does: a job must be in the state,
and at the attempt, that the record says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import singledispatchmethod
from typing import Any

from pandaflow.core import commands as cmd
from pandaflow.core.engine import Engine
from pandaflow.core.model import Jobs, TaskSpec, WorkflowSpec
from pandaflow.core.status import JOB_LIVE, JOB_TERMINAL, TASK_TERMINAL, JobStatus, RunStatus
from pandaflow.core.taskrun import TaskRun
from pandaflow.ports import BundleState, RunState, TaskState

__all__ = ["Ledger", "differences"]

_J = JobStatus
_IDLE = (_J.READY, _J.PENDING)


@dataclass(slots=True)
class JobRow:
    """A job to which something happened; ``attempt``: those that ended, and the live one."""

    status: JobStatus
    attempt: int = 0
    bundle: int | None = None
    not_before: float = 0.0
    retried: int = 0
    failures: list[tuple[int, bool]] = field(default_factory=list)


@dataclass(slots=True)
class TaskRow:
    """A task with the jobs to which something happened."""

    spec: TaskSpec
    status: str = "defined"
    reason: str = ""
    n: int = 0
    closed: bool = False
    initial: JobStatus = _J.PENDING
    jobs: dict[int, JobRow] = field(default_factory=dict)
    arrivals: list[tuple[int, int]] = field(default_factory=list)

    def row(self, job: int) -> JobRow:
        """Return the row of a job, made where it has none."""
        assert 0 <= job < self.n, f"{self.spec.name} has {self.n} jobs, the record is about {job}"
        return self.jobs.setdefault(job, JobRow(self.initial))

    def status_of(self, job: int) -> JobStatus:
        """Return the state of a job."""
        return self.jobs[job].status if job in self.jobs else self.initial

    def state(self) -> TaskState:
        """Return the task as a driver loads it."""
        rows = sorted(self.jobs.items())
        return TaskState(
            id=self.spec.id,
            spec=self.spec,
            status=self.status,
            n=self.n,
            closed=self.closed,
            initial=self.initial.value,
            jobs=[(job, r.status.value, r.attempt, r.bundle, r.not_before) for job, r in rows],
            failures=dict(self._failures(charged=True)),
            losses=dict(self._failures(charged=False)),
            arrivals=tuple(self.arrivals),
            reason=self.reason,
        )

    def _failures(self, *, charged: bool) -> Iterator[tuple[int, int]]:
        for job, row in sorted(self.jobs.items()):
            count = sum(1 for at, kind in row.failures if at > row.retried and kind is charged)
            if count:
                yield job, count


class Ledger:
    """Keeps records.

    Parameters
    ----------
    spec : WorkflowSpec

    Attributes
    ----------
    tasks : dict of int to TaskRow
    records : list of Record
        All so far.
    """

    def __init__(self, spec: WorkflowSpec) -> None:
        self.spec = spec
        self.status: str = RunStatus.DEFINED
        self.tasks = {task.id: TaskRow(task) for task in spec.tasks}
        self.records: list[cmd.Record] = []
        self._bundles: dict[int, BundleState] = {}
        self._dropped: set[int] = set()
        self._streams = {s.id: (s.n, False) for s in spec.sources if s.kind == "stream"}
        self._revive = False

    def take(self, records: Iterable[cmd.Record], *, revive: bool = False) -> None:
        """Keep the records of a step.

        Parameters
        ----------
        records : iterable of Record
        revive : bool
            Whether a person asked to try again: only then may ended jobs and tasks be left.
        """
        self._revive = revive
        for record in records:
            self._keep(record)
            self.records.append(record)

    def state(self) -> RunState:
        """Return the run as a driver loads it."""
        return RunState(
            id="run",
            spec=self.spec,
            status=self.status,
            results="memory://run",
            tasks=[self.tasks[number].state() for number in sorted(self.tasks)],
            bundles=[b for n, b in sorted(self._bundles.items()) if n not in self._dropped],
            next_bundle=max(self._bundles, default=0) + 1,
            streams=dict(self._streams),
        )

    # --- records ----------------------------------------------------------------------------

    @singledispatchmethod
    def _keep(self, record: Any) -> None:
        raise TypeError(f"no record: {record!r}")

    @_keep.register
    def _(self, record: cmd.RunMoved) -> None:
        assert self.status == record.start, f"the run is {self.status}: {record}"
        self.status = record.finish

    @_keep.register
    def _(self, record: cmd.TaskAdded) -> None:
        assert record.spec.id == len(self.tasks), "tasks are numbered in order"
        self.tasks[record.spec.id] = TaskRow(record.spec)

    @_keep.register
    def _(self, record: cmd.TaskChanged) -> None:
        self.tasks[record.spec.id].spec = record.spec

    @_keep.register
    def _(self, record: cmd.TaskMoved) -> None:
        task = self.tasks[record.task]
        assert task.status == record.start, f"{task.spec.name} is {task.status}: {record}"
        assert self._revive or record.start not in TASK_TERMINAL, f"nobody asked: {record}"
        task.status, task.reason = record.finish, record.reason

    @_keep.register
    def _(self, record: cmd.TaskGrew) -> None:
        task = self.tasks[record.task]
        assert record.n >= task.n and not task.closed, f"{task.spec.name} is closed: {record}"
        if task.n and task.initial != record.initial:
            for job in range(task.n):
                task.row(job)
        task.n, task.closed, task.initial = record.n, record.closed, record.initial

    @_keep.register
    def _(self, record: cmd.ItemsRecorded) -> None:
        self.tasks[record.task].arrivals.append((record.job, record.count))

    @_keep.register
    def _(self, record: cmd.StreamGrew) -> None:
        assert record.n >= self._streams[record.source][0]
        self._streams[record.source] = (record.n, record.closed)

    @_keep.register
    def _(self, record: cmd.BundleSent) -> None:
        assert record.bundle not in self._bundles, f"used twice: {record}"
        for row in self._rows(record.task, record.jobs):
            assert row.status is record.start, f"a job is {row.status}: {record}"
            assert row.attempt <= record.attempt, f"a job is at attempt {row.attempt}: {record}"
            row.status, row.attempt, row.bundle = _J.SENT, record.attempt, record.bundle
            row.not_before = 0.0
        self._bundles[record.bundle] = BundleState(
            record.bundle, record.task, record.jobs, record.attempt, record.executor
        )

    @_keep.register
    def _(self, record: cmd.ExecutorNoted) -> None:
        """It changes nothing."""

    @_keep.register
    def _(self, record: cmd.BundleSited) -> None:
        for row in self._rows(record.task, record.jobs):
            self._fence(record, row, {_J.SENT, _J.RUNNING})

    @_keep.register
    def _(self, record: cmd.BundleRunning) -> None:
        for row in self._rows(record.task, record.jobs):
            self._fence(record, row, {_J.SENT})
            row.status = _J.RUNNING

    @_keep.register
    def _(self, record: cmd.BundleFinished) -> None:
        for row in self._rows(record.task, record.finished):
            self._fence(record, row, {_J.RUNNING})
            row.status = _J.FINISHED
        known = self._bundles[record.bundle]
        assert not known.location and record.bundle not in self._dropped, f"over: {record}"
        self._bundles[record.bundle] = replace(known, location=record.report.location)

    @_keep.register
    def _(self, record: cmd.JobsMoved) -> None:
        assert record.jobs, f"about nobody: {record}"
        assert self._revive or record.start not in JOB_TERMINAL, f"nobody asked: {record}"
        for job, row in zip(record.jobs, self._rows(record.task, record.jobs), strict=True):
            name = f"{self.tasks[record.task].spec.name}[{job}]"
            assert row.status is record.start, f"{name} is {row.status}: {record}"
            assert record.attempt in (0, row.attempt), f"{name} is at {row.attempt}: {record}"
            self._move(record, row)
        for bundle in {row.bundle for row in self._rows(record.task, record.jobs)}:
            if bundle is not None and record.start in JOB_LIVE:
                self._drop(bundle)

    def _move(self, record: cmd.JobsMoved, row: JobRow) -> None:
        row.status, row.not_before = record.finish, record.not_before
        if record.start in JOB_TERMINAL:
            row.retried = row.attempt
        if record.start in JOB_LIVE and record.finish in _IDLE and not record.attempt:
            row.attempt -= 1  # handed back: the number is used again
        if record.failure is not None and record.attempt:
            row.failures.append((record.attempt, record.failure.charged))

    def _drop(self, bundle: int) -> None:
        known = self._bundles[bundle]
        rows = self._rows(known.task, known.jobs)
        live = any(row.bundle == bundle and row.status in JOB_LIVE for row in rows)
        if not live and not known.location:
            self._dropped.add(bundle)

    def _rows(self, task: int, jobs: Jobs) -> list[JobRow]:
        return [self.tasks[task].row(job) for job in jobs]

    def _fence(self, record: Any, row: JobRow, states: set[JobStatus]) -> None:
        here = (row.bundle, row.attempt) == (record.bundle, record.attempt)
        assert here and row.status in states, f"a job is {row}: {record}"


# --- restoring ------------------------------------------------------------------------------


def differences(live: Engine, restored: Engine) -> list[str]:
    """Tell in what a restored engine differs from the one that wrote the ledger.

    What is learnt again by itself (measured durations, bundle limits, what is worth keeping in
    memory) is not compared.
    """
    found = list(_compare("the run", _of_run(live), _of_run(restored)))
    if live.tasks.keys() != restored.tasks.keys():
        return [*found, f"tasks: {sorted(live.tasks)} / {sorted(restored.tasks)}"]
    for number, task in live.tasks.items():
        found += _compare(task.spec.name, _of_task(task), _of_task(restored.tasks[number]))
    return found


def _compare(name: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for key, value in one.items():
        if value != other[key]:
            yield f"{name}: {key} is {value!r}, restored {other[key]!r}"


def _of_run(engine: Engine) -> dict[str, Any]:
    flying = sorted(engine.bundles_in_flight(), key=lambda bundle: bundle.id)
    loops = engine._loops.items()
    return {
        "status": engine.status,
        "next bundle": engine.next_bundle,
        "bundles": [(b.id, b.task, b.jobs, b.attempt, b.executor, b.started) for b in flying],
        "loops": [(n, run.iteration, run.tasks, run.current, run.result) for n, run in loops],
        "sources": engine._sources,
        "consumers": {n: sorted(task.consumers) for n, task in engine.tasks.items()},
    }


def _of_task(task: TaskRun) -> dict[str, Any]:
    table, jobs = task.table, range(task.n)
    open_jobs = [job for job in jobs if table.status(job) not in JOB_TERMINAL]
    holds = [job for job in jobs if table.status(job) in JOB_LIVE | {_J.FINISHED}]
    return {
        "spec": task.spec,
        "status": task.status,
        "jobs": task.n,
        "closed": task.closed,
        # A task that ended open and empty may come back as if it had never been bound.
        "bound": task.chunks is not None or (task.terminal and not task.closed),
        "truth": task.truth,
        "items": [task.chunks.items(job) for job in jobs] if task.chunks is not None else [],
        "states": [table.status(job) for job in jobs],
        "attempts": list(table.ended),
        "bundle": {job: table.bundle[job] for job in holds},
        "failures": {job: task.charged[job] for job in open_jobs if task.charged.get(job)},
        "losses": {job: task.lost[job] for job in open_jobs if task.lost.get(job)},
        "excused": set(task.excused),
        "arrivals": (task.arrivals.jobs, task.arrivals.starts),
    }
