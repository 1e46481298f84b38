"""Records into rows: one method a record, all in the caller's transaction.

Every change of a job says what it expects to find, and is counted: where the database has
something else, the whole commit is refused and the job is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from pandaflow.core.errors import StoreError
from pandaflow.core.model import Jobs
from pandaflow.core.status import (
    JOB_CODE,
    JOB_CODES,
    JOB_LIVE,
    JOB_TERMINAL,
    RUN_TERMINAL,
    JobStatus,
    RunStatus,
)
from pandaflow.store.journal import about, event_row, place, why
from pandaflow.store.measures import Report, insert_attempts
from pandaflow.store.schema import CANCELLED, COUNTS, FAILED, FINISHED
from pandaflow.store.spec import clean, dump_failure, dump_task
from pandaflow.store.statements import Cursor, Statements

_SENT, _RUNNING = JOB_CODE[JobStatus.SENT], JOB_CODE[JobStatus.RUNNING]
_HOLDING = JOB_CODE[JobStatus.HOLDING]


@dataclass(slots=True)
class _Task:
    """A row of ``tasks`` as this transaction has it."""

    name: str
    status: str
    reason: str
    n: int
    closed: bool
    initial: int
    changed: float | None
    counts: list[int]


class Writer:
    """Writes the records of one commit.

    Parameters
    ----------
    cursor : Cursor
        In a transaction that holds the write lock (SQLite) or the run's row (PostgreSQL).
    sql : Statements
    run : int
        ``runs.no``.
    run_id : str
        For messages.
    seq : int
        Number of the last event so far.
    """

    def __init__(self, cursor: Cursor, sql: Statements, run: int, run_id: str, seq: int) -> None:
        self._cursor, self._sql, self._run, self._run_id = cursor, sql, run, run_id
        self._seq = seq
        self._tasks: dict[int, _Task] = {}
        self._events: list[tuple[Any, ...]] = []
        # Failed jobs follow their bundle's record in the same commit and find measures here.
        self._reports: dict[int, Report] = {}

    def write(self, records: Sequence[Record]) -> None:
        """Write ``records``, one event each.

        Raises
        ------
        StoreError
            A record does not fit what the database has; the caller must roll back.
        """
        for record in records:
            _WRITE[type(record)](self, record)
        self._cursor.executemany(self._sql.events, self._events)
        for number, task in self._tasks.items():
            self._save(number, task)

    # --- the run, its tasks and datasets ---------------------------------------------

    def _run_moved(self, record: RunMoved) -> None:
        started = record.at if record.finish is RunStatus.RUNNING else None
        ended = record.at if record.finish in RUN_TERMINAL else None
        self._execute(
            "run_moved",
            start=record.start.value,
            finish=record.finish.value,
            reason=clean(record.reason),
            started=started,
            ended=ended,
        )
        if self._cursor.rowcount != 1:
            raise StoreError(f"run {self._run_id} is not {record.start}; nothing was written")
        self._event(record, start=record.start, finish=record.finish, reason=record.reason)

    def _task_added(self, record: TaskAdded) -> None:
        self._execute(
            "add_task",
            task=record.spec.id,
            name=record.spec.name,
            internal=record.spec.internal,
            spec=json.dumps(dump_task(record.spec)),
            at=record.at,
        )
        self._event(record, task=record.spec.id, detail={"name": record.spec.name})

    def _task_changed(self, record: TaskChanged) -> None:
        spec = json.dumps(dump_task(record.spec))
        self._execute("change_task", task=record.spec.id, spec=spec)
        if self._cursor.rowcount != 1:
            raise self._no_task(record.spec.id)
        self._event(record, task=record.spec.id)

    def _task_moved(self, record: TaskMoved) -> None:
        task = self._task(record.task)
        if task.status != record.start:
            raise StoreError(
                f"run {self._run_id}: task {task.name} is {task.status}, expected {record.start}; "
                "nothing was written"
            )
        task.status, task.reason, task.changed = record.finish.value, record.reason, record.at
        self._event(
            record,
            task=record.task,
            start=record.start,
            finish=record.finish,
            reason=record.reason,
        )

    def _task_grew(self, record: TaskGrew) -> None:
        task, initial = self._task(record.task), JOB_CODE[record.initial]
        if record.n < task.n:
            raise StoreError(
                f"run {self._run_id}: task {task.name} has {task.n} jobs and cannot shrink to "
                f"{record.n}; nothing was written"
            )
        if task.n and initial != task.initial:
            # Jobs without a row stay in the state they were born in: from now on by a row.
            self._over("keep_initial", record.task, range(task.n), initial=task.initial)
        task.counts[initial] += record.n - task.n
        task.n, task.closed, task.initial = record.n, record.closed, initial
        task.changed = record.at
        detail = {"n": record.n, "closed": record.closed}
        self._event(record, task=record.task, finish=record.initial, detail=detail)

    def _items_recorded(self, record: ItemsRecorded) -> None:
        name = self._task(record.task).name
        self._execute("add_item", task=record.task, job=record.job, count=record.count)
        self._execute("scattered_grew", task=record.task, name=name, n=record.count)
        jobs = range(record.job, record.job + 1)
        self._event(record, task=record.task, jobs=jobs, detail={"count": record.count})

    def _stream_grew(self, record: StreamGrew) -> None:
        self._execute("stream_grew", source=record.source, n=record.n, closed=record.closed)
        if self._cursor.rowcount != 1:
            raise StoreError(
                f"run {self._run_id}: source {record.source} does not exist or has more than "
                f"{record.n} items; nothing was written"
            )
        detail = {"source": record.source, "n": record.n, "closed": record.closed}
        self._event(record, detail=detail)

    def _noted(self, record: ExecutorNoted | RequestRefused) -> None:
        self._event(record, reason=record.reason, detail=about(record))

    # --- bundles: the smooth path ----------------------------------------------------

    def _bundle_sent(self, record: BundleSent) -> None:
        task, start = self._task(record.task), JOB_CODE[record.start]
        self._check_bounds(task, record.jobs)
        name = "send_new" if start == task.initial else "send"
        hit = self._over(
            name,
            record.task,
            record.jobs,
            attempt=record.attempt,
            bundle=record.bundle,
            start=start,
        )
        self._counted(hit, record, record.jobs, f"{record.start}, not beyond", _SENT)
        self._count(task, start, _SENT, len(record.jobs))
        self._execute(
            "bundle_sent",
            bundle=record.bundle,
            task=record.task,
            attempt=record.attempt,
            executor=record.executor,
            at=record.at,
            count=len(record.jobs),
            **place(record.jobs),
        )
        self._event(
            record,
            task=record.task,
            jobs=record.jobs,
            start=record.start,
            finish=JobStatus.SENT,
            detail={"executor": record.executor},
        )

    def _bundle_running(self, record: BundleRunning) -> None:
        hit = self._advance(record, record.jobs, _SENT, _RUNNING)
        self._counted(hit, record, record.jobs, f"sent in bundle {record.bundle}", _RUNNING)
        self._count(self._task(record.task), _SENT, _RUNNING, hit)
        detail = {"worker": clean(record.worker)}
        if record.site:
            detail["site"] = clean(record.site)
        self._execute(
            "bundle_running",
            bundle=record.bundle,
            worker=detail["worker"],
            site=detail.get("site"),
            at=record.at,
        )
        self._one_bundle(record.bundle, "sent")
        self._event(
            record,
            task=record.task,
            jobs=record.jobs,
            start=JobStatus.SENT,
            finish=JobStatus.RUNNING,
            detail=detail,
        )

    def _bundle_sited(self, record: BundleSited) -> None:
        site = clean(record.site) or None
        self._execute("bundle_sited", bundle=record.bundle, site=site)
        self._one_bundle(record.bundle, "live")
        self._event(
            record,
            task=record.task,
            jobs=record.jobs,
            reason=record.reason,
            detail={"site": site} if site else None,
        )

    def _bundle_finished(self, record: BundleFinished) -> None:
        report = record.report
        self._reports[record.bundle] = Report(record)
        self._execute(
            "bundle_ended",
            bundle=record.bundle,
            # A job left running keeps its bundle open.
            ended=None if report.detached is not None else record.at,
            location=report.location,
            checksum=report.checksum,
            nbytes=report.nbytes,
            started=report.started or None,
            worker=clean(report.worker),
        )
        self._one_bundle(record.bundle, "live")
        if record.finished:
            self._finish_jobs(record)
        detail = {"jobs": len(record.jobs), "worker": clean(report.worker)}
        self._event(
            record,
            task=record.task,
            jobs=record.finished,
            start=JobStatus.RUNNING,
            finish=JobStatus.FINISHED,
            detail=detail,
        )

    def _finish_jobs(self, record: BundleFinished) -> None:
        task, hit, wanted = self._task(record.task), 0, len(record.finished)
        # Nearly always all are running; a missed start report leaves them sent.
        for start in (_RUNNING, _SENT, _HOLDING):
            moved = self._advance(record, record.finished, start, FINISHED)
            self._count(task, start, FINISHED, moved)
            hit += moved
            if hit >= wanted:
                break
        self._counted(hit, record, record.finished, f"live in bundle {record.bundle}", FINISHED)
        columns = self._reports[record.bundle].columns(record.finished)
        common = {"attempt": record.attempt, "status": FINISHED, "bundle": record.bundle}
        self._attempts(record.task, common, columns)

    # --- jobs off the smooth path ----------------------------------------------------

    def _jobs_moved(self, record: JobsMoved) -> None:
        task, start = self._task(record.task), JOB_CODE[record.start]
        finish = JOB_CODE[record.finish]
        self._check_bounds(task, record.jobs)
        params = {
            "start": start,
            "finish": finish,
            "reason": clean(record.reason) or None,
            "not_before": record.not_before or None,
        }
        if record.attempt:
            params["attempt"] = record.attempt
        hit = self._over(_way(record, start == task.initial), record.task, record.jobs, **params)
        self._counted(hit, record, record.jobs, str(record.start), finish)
        self._count(task, start, finish, hit)
        if record.start in JOB_LIVE and record.finish not in JOB_LIVE:
            self._over("drop_bundles", record.task, record.jobs, at=record.at)
        if record.failure is not None and record.attempt and record.bundle is not None:
            self._failed_attempts(record)
        self._event(
            record,
            task=record.task,
            jobs=record.jobs,
            start=record.start,
            finish=record.finish,
            reason=record.reason,
            detail=why(record),
        )

    def _failed_attempts(self, record: JobsMoved) -> None:
        assert record.failure is not None and record.bundle is not None
        cancelled = record.finish is JobStatus.CANCELLED
        common: dict[str, Any] = {
            "attempt": record.attempt,
            "status": CANCELLED if cancelled else FAILED,
            "bundle": record.bundle,
            "failure": dump_failure(record.failure),
            "charged": int(record.failure.charged),
        }
        report = self._reports.get(record.bundle)
        columns = report.columns(record.jobs) if report else {"idx": record.jobs}
        given = {"wall": record.wall or None, "cpu": record.cpu or None}
        if record.log is not None:
            given["log_offset"], given["log_length"] = record.log
        for name, value in given.items():
            if value is not None:
                columns.pop(name, None)
                common[name] = value
        self._attempts(record.task, common, columns)

    # --- what they share -------------------------------------------------------------

    def _execute(self, name: str, /, **params: Any) -> None:
        self._cursor.execute(self._sql[name], {"run": self._run, **params})

    def _over(self, name: str, task: int, jobs: Jobs, /, **params: Any) -> int:
        """Run a statement over ``jobs``; return how many rows it changed."""
        text, span = self._sql.over(name, jobs)
        self._cursor.execute(text, {"run": self._run, "task": task, **span, **params})
        return self._cursor.rowcount

    def _advance(
        self, record: BundleRunning | BundleFinished, jobs: Jobs, start: int, finish: int
    ) -> int:
        return self._over(
            "advance",
            record.task,
            jobs,
            attempt=record.attempt,
            bundle=record.bundle,
            start=start,
            finish=finish,
        )

    def _attempts(
        self, task: int, common: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]
    ) -> None:
        whole = {"run": self._run, "task": task, **common}
        insert_attempts(self._cursor, self._sql.dialect, whole, columns)

    def _count(self, task: _Task, start: int, finish: int, n: int) -> None:
        task.counts[start] -= n
        task.counts[finish] += n

    def _task(self, number: int) -> _Task:
        task = self._tasks.get(number)
        if task is None:
            self._execute("task", task=number)
            row = self._cursor.fetchone()
            if row is None:
                raise self._no_task(number)
            name, status, reason, n, closed, initial, changed, *counts = row
            task = _Task(name, status, reason, n, bool(closed), initial, changed, counts)
            self._tasks[number] = task
        return task

    def _save(self, number: int, task: _Task) -> None:
        self._execute(
            "save_task",
            task=number,
            status=task.status,
            reason=clean(task.reason),
            n=task.n,
            closed=task.closed,
            initial=task.initial,
            changed=task.changed,
            **dict(zip(COUNTS, task.counts, strict=True)),
        )

    def _event(self, record: Record, **fields: Any) -> None:
        self._seq += 1
        self._events.append(event_row(self._run, self._seq, record, fields))

    # --- refusals --------------------------------------------------------------------

    def _no_task(self, number: int) -> StoreError:
        return StoreError(f"run {self._run_id} has no task {number}; nothing was written")

    def _one_bundle(self, bundle: int, expected: str) -> None:
        if self._cursor.rowcount != 1:
            raise StoreError(
                f"run {self._run_id}: bundle {bundle} is not {expected}; nothing was written"
            )

    def _check_bounds(self, task: _Task, jobs: Jobs) -> None:
        if not jobs or jobs[0] < 0 or jobs[-1] >= task.n:
            raise StoreError(
                f"run {self._run_id}: {task.name} has {task.n} jobs, the record is about "
                f"{_spelled(jobs)}; nothing was written"
            )

    def _counted(
        self,
        hit: int,
        record: BundleSent | BundleRunning | BundleFinished | JobsMoved,
        jobs: Jobs,
        expected: str,
        finish: int,
    ) -> None:
        """Refuse the commit if a fenced change hit fewer jobs than it should, and name one."""
        if hit == len(jobs):
            return
        self._over("look", record.task, jobs)
        found = {idx: (code, attempt) for idx, code, attempt, _ in self._cursor.fetchall()}
        arrived = (finish, record.attempt)
        job = next((job for job in jobs if found.get(job) != arrived), jobs[0])
        task = self._task(record.task)
        code, attempt = found.get(job, (task.initial, 0))
        at = f" at attempt {record.attempt}" if record.attempt else ""
        raise StoreError(
            f"run {self._run_id}: job {job} of {task.name} is {JOB_CODES[code].value} at attempt "
            f"{attempt}, the record expects {expected}{at}; nothing was written"
        )


#: Which method writes which record.
_WRITE: Mapping[type, Callable[[Writer, Any], None]] = {
    RunMoved: Writer._run_moved,
    TaskAdded: Writer._task_added,
    TaskChanged: Writer._task_changed,
    TaskMoved: Writer._task_moved,
    TaskGrew: Writer._task_grew,
    ItemsRecorded: Writer._items_recorded,
    StreamGrew: Writer._stream_grew,
    ExecutorNoted: Writer._noted,
    RequestRefused: Writer._noted,
    BundleSent: Writer._bundle_sent,
    BundleSited: Writer._bundle_sited,
    BundleRunning: Writer._bundle_running,
    BundleFinished: Writer._bundle_finished,
    JobsMoved: Writer._jobs_moved,
}


def _way(record: JobsMoved, rowless: bool) -> str:
    """Name the statement for a move; ``rowless``: some of the jobs may have no row yet."""
    if record.attempt:
        return "move_fenced"
    if record.start in JOB_TERMINAL:
        return "revive"
    return "move_new" if rowless else "move"


def _spelled(jobs: Jobs) -> str:
    if not jobs:
        return "no job"
    return f"job {jobs[0]}" if len(jobs) == 1 else f"jobs {jobs[0]} to {jobs[-1]}"
