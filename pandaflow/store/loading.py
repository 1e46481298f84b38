"""Read a whole run, so that a driver can go on with it or its results be collected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeAlias

import sqlalchemy as sa

from pandaflow.core.model import Jobs, WorkflowSpec
from pandaflow.core.status import JOB_CODES
from pandaflow.ports import BundleState, RunState, TaskState
from pandaflow.store.database import Database
from pandaflow.store.schema import attempts, bundles, datasets, items, jobs, runs, tasks
from pandaflow.store.spec import parse_task, parse_workflow

#: Index, state, attempt, bundle and earliest time of a job.
_JobRow: TypeAlias = tuple[int, str, int, int | None, float]
_JOBS = sa.select(jobs.c.idx, jobs.c.status, jobs.c.attempt, jobs.c.bundle, jobs.c.not_before)
#: Tasks with at most so many jobs have them read together with those of other tasks.
_FEW = 100


class RunLoader:
    """Reads one run as last committed.

    Parameters
    ----------
    database : Database
    run : int
        ``runs.no``.
    run_id : str
    """

    def __init__(self, database: Database, run: int, run_id: str) -> None:
        self._database, self._run, self._run_id = database, run, run_id

    def load(self) -> RunState:
        """Return the run as last committed; jobs of large tasks are read when iterated."""
        with self._database.read() as connection:
            run = connection.execute(sa.select(runs).where(runs.c.no == self._run)).one()
            spec = parse_workflow(run.spec, self._run_id)
            return RunState(
                id=self._run_id,
                spec=spec,
                status=run.status,
                results=run.results,
                tasks=self._load_tasks(connection),
                bundles=self._load_bundles(connection),
                next_bundle=self._next_bundle(connection),
                streams=self._load_streams(connection, spec),
            )

    def _load_tasks(self, connection: sa.Connection) -> list[TaskState]:
        arrivals: dict[int, list[tuple[int, int]]] = {}
        query = sa.select(items.c.dataset, items.c.job, items.c.count)
        query = query.where(items.c.run == self._run, items.c.kind == "scattered")
        for task, job, count in connection.execute(
            query.order_by(items.c.dataset, items.c.position)
        ):
            arrivals.setdefault(task, []).append((job, count))
        few = self._few_jobs(connection)
        failures, losses = self._failures(connection, 1), self._failures(connection, 0)
        rows = connection.execute(
            sa.select(tasks).where(tasks.c.run == self._run).order_by(tasks.c.id)
        )
        return [
            TaskState(
                id=row.id,
                spec=parse_task(row.spec, self._run_id),
                status=row.status,
                n=row.n,
                closed=row.closed,
                initial=JOB_CODES[row.initial].value,
                jobs=few.get(row.id, ())
                if row.n <= _FEW
                else _JobRows(self._database, self._run, row.id),
                failures=failures.get(row.id, {}),
                losses=losses.get(row.id, {}),
                arrivals=arrivals.get(row.id, ()),
                reason=row.reason,
            )
            for row in rows
        ]

    def _few_jobs(self, connection: sa.Connection) -> dict[int, list[_JobRow]]:
        """Read the jobs of all small tasks at once: there may be thousands of such tasks."""
        query = (
            _JOBS.add_columns(jobs.c.task)
            .join(tasks, sa.and_(tasks.c.run == jobs.c.run, tasks.c.id == jobs.c.task))
            .where(jobs.c.run == self._run, tasks.c.n <= _FEW)
            .order_by(jobs.c.task, jobs.c.idx)
        )
        out: dict[int, list[_JobRow]] = {}
        for *row, task in connection.execute(query):
            out.setdefault(task, []).append(_job_row(*row))
        return out

    def _failures(self, connection: sa.Connection, charged: int) -> dict[int, dict[int, int]]:
        """Count failures by task and job, since a person last asked to try again."""
        a, j = attempts.c, jobs.c
        query = (
            sa.select(a.task, a.idx, sa.func.count())
            .join_from(attempts, jobs, sa.and_(j.run == a.run, j.task == a.task, j.idx == a.idx))
            .where(a.run == self._run, a.charged == charged, a.charged.is_not(None))
            .where(a.attempt > sa.func.coalesce(j.retried, 0))
            .group_by(a.task, a.idx)
        )
        out: dict[int, dict[int, int]] = {}
        for task, idx, count in connection.execute(query):
            out.setdefault(task, {})[idx] = count
        return out

    def _load_bundles(self, connection: sa.Connection) -> list[BundleState]:
        b = bundles.c
        query = sa.select(
            b.id, b.task, b.first, b.last, b.jobs, b.attempt, b.executor, b.location
        ).where(b.run == self._run, b.status != "dropped")
        return [
            BundleState(no, task, _jobs(first, last, listed), attempt, executor, location)
            for no, task, first, last, listed, attempt, executor, location in connection.execute(
                query.order_by(b.id)
            )
        ]

    def _next_bundle(self, connection: sa.Connection) -> int:
        last = sa.select(sa.func.max(bundles.c.id)).where(bundles.c.run == self._run)
        found = connection.execute(last).scalar()
        return 1 if found is None else found + 1

    def _load_streams(
        self, connection: sa.Connection, spec: WorkflowSpec
    ) -> dict[int, tuple[int, bool]]:
        streams = [source.id for source in spec.sources if source.kind == "stream"]
        d = datasets.c
        query = sa.select(d.id, d.n, d.closed).where(d.run == self._run, d.kind == "source")
        rows = connection.execute(query.where(d.id.in_(streams)))
        return {no: (n, closed) for no, n, closed in rows}


class _JobRows:
    """Rows of a task's jobs, read afresh whenever they are iterated."""

    def __init__(self, database: Database, run: int, task: int) -> None:
        self._database, self._run, self._task = database, run, task

    def __iter__(self) -> Iterator[_JobRow]:
        j = jobs.c
        query = _JOBS.where(j.run == self._run, j.task == self._task).order_by(j.idx)
        with self._database.read() as connection:
            with connection.execution_options(yield_per=5000).execute(query) as rows:
                for row in chain.from_iterable(rows.partitions()):
                    yield _job_row(*row)


def _job_row(
    idx: int, status: int, attempt: int, bundle: int | None, not_before: float | None
) -> _JobRow:
    return idx, JOB_CODES[status], attempt, bundle, not_before or 0.0


def _jobs(first: int, last: int, listed: Sequence[int] | None) -> Jobs:
    return tuple(listed) if listed else range(first, last + 1)
