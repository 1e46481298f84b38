"""Read access for people: plain dicts with JSON-ready values.

Each call sees one committed state of the database. Counts come from ``tasks``, so that the
status of a million-job run costs one row a task; jobs without a row are made up on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import sqlalchemy as sa

from pandaflow.core.datasets import upstream_of
from pandaflow.core.errors import RunNotFound, StoreError
from pandaflow.core.status import JOB_CODE, JOB_CODES, JOB_LIVE, JobStatus
from pandaflow.store.database import Database
from pandaflow.store.schema import (
    COUNTS,
    OFF_PATH,
    attempts,
    bundles,
    events,
    jobs,
    requests,
    runs,
    tasks,
)
from pandaflow.store.spec import parse_task

Row = dict[str, Any]

_ON_BUNDLE = sa.and_(bundles.c.run == jobs.c.run, bundles.c.id == jobs.c.bundle)
_ON_ATTEMPT = sa.and_(
    attempts.c.run == jobs.c.run,
    attempts.c.task == jobs.c.task,
    attempts.c.idx == jobs.c.idx,
    attempts.c.attempt == jobs.c.attempt,
)
_JOB_COLUMNS = (
    jobs.c.idx,
    jobs.c.status,
    jobs.c.attempt,
    jobs.c.reason,
    attempts.c.failure,
    jobs.c.bundle,
    bundles.c.worker,
    bundles.c.executor,
    bundles.c.site,
    sa.func.coalesce(attempts.c.started, bundles.c.started),
    attempts.c.wall,
    attempts.c.cpu,
    attempts.c.max_pss,
)
_JOB_KEYS = (
    *("index", "status", "attempt", "reason", "failure", "bundle", "worker", "executor"),
    *("site", "started", "wall", "cpu", "max_pss"),
)
_NO_ROW = dict.fromkeys(_JOB_KEYS) | {"attempt": 0, "reason": ""}

#: All columns but the specs, which may be megabytes.
_LIGHT_RUN = [column for column in runs.c if column.name != "spec"]
_LIGHT_TASK = [column for column in tasks.c if column.name != "spec"]

_MEASURES = ("wall", "cpu", "max_pss", "read_bytes", "written_bytes", "disk")


def find_run(connection: sa.Connection, run_id: str) -> tuple[int, str]:
    """Return key and id of the run that ``run_id``, a prefix of it or ``"last"`` names.

    Raises
    ------
    RunNotFound
        None, or several: then the candidates are listed.
    """
    query = sa.select(runs.c.no, runs.c.id)
    newest = query.order_by(runs.c.created.desc(), runs.c.no.desc())
    found = connection.execute(query.where(runs.c.id == run_id)).all()
    if not found and run_id == "last":
        found = connection.execute(newest.limit(1)).all()
    elif not found and run_id:
        matching = newest.where(runs.c.id.startswith(run_id, autoescape=True))
        found = connection.execute(matching.limit(11)).all()
    if not found:
        raise RunNotFound(f"no run {run_id!r} in the store; `pandaflow ls` lists them")
    if len(found) > 1:
        names = ", ".join(row.id for row in found[:10]) + (", ..." if len(found) > 10 else "")
        raise RunNotFound(f"{run_id!r} fits several runs: {names}")
    return found[0].no, found[0].id


class SqlReader:
    """A :class:`pandaflow.ports.StateReader` on SQL, with a little more.

    Parameters
    ----------
    database : Database
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def runs(self, limit: int = 100) -> list[Row]:
        """Newest first: ``id, name, status, created, started, ended, jobs`` (counts by state)."""
        with self._database.read() as connection:
            newest = sa.select(*_LIGHT_RUN).order_by(runs.c.created.desc(), runs.c.no.desc())
            rows = connection.execute(newest.limit(limit)).all()
            counts = _counts(connection, [row.no for row in rows])
            return [{**_run(row), "jobs": counts.get(row.no, {})} for row in rows]

    def run(self, run_id: str) -> Row:
        """One run with its ``tasks``, each with ``jobs`` (counts by state).

        Returns
        -------
        dict
            ``id, name, status, reason, created, started, ended, params, results, owner``
            (host and pid, or None), ``jobs``, and ``tasks``: ``id, name, status, reason, n,
            closed, internal, jobs``. Counts leave out states without jobs; those of the run
            leave out tasks that the compiler made.
        """
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            row = connection.execute(sa.select(*_LIGHT_RUN).where(runs.c.no == number)).one()
            query = sa.select(*_LIGHT_TASK).where(tasks.c.run == number).order_by(tasks.c.id)
            listed = [_task(task) for task in connection.execute(query)]
            counts = _counts(connection, [number]).get(number, {})
        owner = {"host": row.owner_host, "pid": row.owner_pid} if row.owner_token else None
        more = {"params": row.params, "results": row.results, "owner": owner}
        return {**_run(row), **more, "jobs": counts, "tasks": listed}

    def counts(self, run_id: str) -> dict[str, int]:
        """Jobs of the run by state, without those of tasks that the compiler made."""
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            return _counts(connection, [number]).get(number, {})

    def jobs(
        self,
        run_id: str,
        *,
        task: str | None = None,
        status: str | None = None,
        index: int | None = None,
        limit: int | None = None,
    ) -> Iterator[Row]:
        """Jobs by task and index, those without a row of their own included.

        Tasks that the compiler made are left out unless ``task`` names one, but for their failed
        jobs. Measures and failure are those of the job's last attempt, once it has ended.

        Yields
        ------
        dict
            ``task, index, status, attempt, reason, failure, bundle, worker, executor, site,
            started, wall, cpu, max_pss``.

        Raises
        ------
        RunNotFound
        StoreError
            No task or no state of that name.
        """
        if status is not None and status not in list(JobStatus):
            states = ", ".join(JobStatus)
            raise StoreError(f"no job state {status!r}: use one of {states}")
        wanted = None if status is None else JOB_CODE[JobStatus(status)]
        rows = islice(self._jobs(run_id, task, wanted, index), limit)
        # Takes the snapshot now, and refuses now, not when somebody begins to iterate.
        head = list(islice(rows, 1))
        return chain(head, rows)

    def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Row]:
        """The event log from sequence number ``after`` on (exclusive), oldest first.

        Returns
        -------
        list of dict
            ``seq, at, kind, task, first, last, jobs`` (indices where not contiguous),
            ``attempt, bundle, start, finish, reason, detail``.
        """
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            query = _events(number).where(events.c.seq > after).order_by(events.c.seq)
            return [dict(row) for row in connection.execute(query.limit(limit)).mappings()]

    def noted(self, run_id: str, kind: str, after: int = 0) -> tuple[list[Row], int]:
        """Events of one kind, as :meth:`events`, and the number of the newest event of any."""
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            query = _events(number).where(events.c.kind == kind, events.c.seq > after)
            found = connection.execute(query.order_by(events.c.seq)).mappings().all()
            newest = sa.select(sa.func.max(events.c.seq)).where(events.c.run == number)
            return [dict(row) for row in found], connection.execute(newest).scalar() or 0

    def story(self, run_id: str, task: str, index: int) -> list[Row]:
        """Events that touched one job, oldest first; as :meth:`events`."""
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            query = _events(number).where(
                events.c.task == _task_row(connection, number, task).id,
                events.c.first <= index,
                events.c.last >= index,
            )
            found = connection.execute(query.order_by(events.c.seq)).mappings()
            return [dict(row) for row in found if not row["jobs"] or index in row["jobs"]]

    def upstream(self, run_id: str, task: str) -> set[int] | None:
        """Ids of the tasks that a task reads, waits for or is decided by; None: cannot tell.

        It cannot for a task that reads what a loop comes to.
        """
        with self._database.read() as connection:
            number, run = find_run(connection, run_id)
            found = _task_row(connection, number, task).id
            query = sa.select(tasks.c.spec).where(tasks.c.run == number, tasks.c.id == found)
            return upstream_of(parse_task(connection.execute(query).scalar(), run))

    def sites(self, run_id: str) -> list[str]:
        """Names of the sites that jobs of the run were given, by name."""
        b = bundles.c
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            query = sa.select(b.site).where(b.run == number, b.site.is_not(None))
            return list(connection.execute(query.distinct().order_by(b.site)).scalars())

    def attempts(self, run_id: str, task: str, index: int) -> list[Row]:
        """Attempts of one job that have ended, oldest first.

        Returns
        -------
        list of dict
            ``attempt, status, bundle, worker, executor, site, location, started, wall, cpu,
            max_pss, read_bytes, written_bytes, disk, cached, failure, charged, log`` (offset and
            length in the bundle's log, or None).
        """
        a = attempts.c
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            on = sa.and_(bundles.c.run == a.run, bundles.c.id == a.bundle)
            b = bundles.c
            query = (
                sa.select(attempts, b.worker, b.executor, b.site, b.location)
                .outerjoin_from(attempts, bundles, on)
                .where(a.run == number, a.idx == index)
                .where(a.task == _task_row(connection, number, task).id)
                .order_by(a.attempt)
            )
            return [_attempt(row) for row in connection.execute(query)]

    def bundle(self, run_id: str, bundle: int) -> Row:
        """One bundle: ``id, task, jobs`` (indices), ``attempt, executor, worker, status, ...``.

        Raises
        ------
        StoreError
            No such bundle.
        """
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            query = _with_task(sa.select(bundles, tasks.c.name), bundles)
            query = query.where(bundles.c.run == number, bundles.c.id == bundle)
            row = connection.execute(query).mappings().first()
        if row is None:
            raise StoreError(f"run {run_id} has no bundle {bundle}")
        found = {key: value for key, value in row.items() if key not in ("run", "name", "count")}
        listed = row["jobs"] or list(range(row["first"], row["last"] + 1))
        return {**found, "task": row["name"], "jobs": listed}

    def timeline(self, run_id: str, limit: int = 20000) -> list[Row]:
        """Attempts that have ended, for charts; beyond ``limit`` those of the newest bundles.

        Returns
        -------
        list of dict
            ``task, index, worker, started, wall, status, attempt``.
        """
        a, b = attempts.c, bundles.c
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            oldest = _oldest_bundle(connection, number, limit)
            on = sa.and_(
                a.run == b.run, a.task == b.task, a.idx.between(b.first, b.last), a.bundle == b.id
            )
            query = sa.select(
                tasks.c.name.label("task"), a.idx.label("index"), b.worker, a.started, a.wall
            ).add_columns(a.status, a.attempt)
            query = query.select_from(bundles).join(attempts, on)
            query = query.join(tasks, sa.and_(tasks.c.run == b.run, tasks.c.id == b.task))
            query = query.where(b.run == number, b.id >= oldest).order_by(b.id.desc(), a.idx)
            rows = connection.execute(query.limit(limit)).mappings()
            return [{**row, "status": JOB_CODES[row["status"]].value} for row in rows][::-1]

    def open_requests(self, run_id: str) -> list[Row]:
        """Requests not carried out yet, oldest first: ``id, kind, body, created``."""
        r = requests.c
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            query = sa.select(r.id, r.kind, r.body, r.created)
            query = query.where(r.run == number, r.done.is_(None)).order_by(r.id)
            return [dict(row) for row in connection.execute(query).mappings()]

    def _jobs(
        self, run_id: str, task: str | None, status: int | None, index: int | None
    ) -> Iterator[Row]:
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            query = sa.select(*_LIGHT_TASK).where(tasks.c.run == number).order_by(tasks.c.id)
            chosen = connection.execute(query).all()
            if task is not None:
                chosen = [_task_row(connection, number, task)]
            for row in chosen:
                wanted = status
                if row.internal and task is None:
                    wanted = JOB_CODE[JobStatus.FAILED]
                    if status not in (None, wanted):
                        continue
                yield from _JobsOfTask(connection, row, wanted).rows(index)


@dataclass(frozen=True, slots=True)
class _JobsOfTask:
    """The jobs of one task, in one state (None: in any)."""

    connection: sa.Connection
    task: sa.Row[Any]
    status: int | None

    def rows(self, index: int | None) -> Iterator[Row]:
        """Yield them by index, or the one of ``index``."""
        total = self.task.n if self.status is None else self._count(self.status)
        if index is not None:
            if 0 <= index < self.task.n:
                yield from self._merged(index, index + 1)
        elif self.status is not None and self.status == self.task.initial:
            yield from islice(self._initial(total), total)
        else:
            # Once all that the task counts are found there is no need to look further.
            yield from islice(self._merged(0, self.task.n), total)

    def _count(self, status: int) -> int:
        return int(getattr(self.task, COUNTS[status]))

    def _initial(self, total: int) -> Iterator[Row]:
        """Jobs in their first state: mostly those beyond the last that has a row."""
        j = jobs.c
        last = sa.select(sa.func.max(j.idx)).where(j.run == self.task.run, j.task == self.task.id)
        found = self.connection.execute(last).scalar()
        begin = 0 if found is None else found + 1
        if self.task.n - begin < total:
            yield from self._merged(0, begin)
        yield from self._missing(begin, self.task.n)

    def _merged(self, first: int, end: int) -> Iterator[Row]:
        """Rows and, between them, jobs that have none."""
        gaps = self.status in (None, self.task.initial)
        name, expected = self.task.name, first
        for found in self._query(first, end):
            if gaps:
                yield from self._missing(expected, found[0])
                expected = found[0] + 1
            if self.status in (None, found[1]):
                row = dict(zip(_JOB_KEYS, found, strict=True))
                row["status"], row["reason"] = JOB_CODES[found[1]].value, row["reason"] or ""
                yield {"task": name, **row}
        if gaps:
            yield from self._missing(expected, end)

    def _missing(self, first: int, end: int) -> Iterator[Row]:
        same = {"task": self.task.name, **_NO_ROW, "status": JOB_CODES[self.task.initial].value}
        for index in range(first, end):
            yield {**same, "index": index}

    def _query(self, first: int, end: int) -> Iterator[Sequence[Any]]:
        j = jobs.c
        query = sa.select(*_JOB_COLUMNS).select_from(jobs)
        query = query.outerjoin(attempts, _ON_ATTEMPT).outerjoin(bundles, _ON_BUNDLE)
        query = query.where(j.run == self.task.run, j.task == self.task.id).order_by(j.idx)
        query = query.where(self._places(first, end))
        if self.status is not None and self.status != self.task.initial:
            query = query.where(j.status == self.status)
        # Closed also when the caller has seen enough: PostgreSQL keeps a cursor for it.
        with self.connection.execution_options(yield_per=1000).execute(query) as rows:
            for part in rows.partitions():
                yield from part

    def _places(self, first: int, end: int) -> sa.ColumnElement[bool]:
        """Tell the database where jobs in this state can only be."""
        j, b = jobs.c, bundles.c
        if self.status is None or self.status == self.task.initial:
            return j.idx.between(first, end - 1)
        if self.status > OFF_PATH:
            # Planners take the partial index for its condition word for word, if they need
            # nothing else; so it is asked for the indices alone.
            off = jobs.alias("off")
            found = sa.select(off.c.idx).where(sa.text(f"off.status > {OFF_PATH}"))
            found = found.where(off.c.run == self.task.run, off.c.task == self.task.id)
            found = found.where(off.c.status == self.status, off.c.idx.between(first, end - 1))
            return j.idx.in_(found)
        if JOB_CODES[self.status] in JOB_LIVE:
            ends = sa.select(sa.func.min(b.first), sa.func.max(b.last))
            ends = ends.where(b.run == self.task.run, b.task == self.task.id, b.ended.is_(None))
            low, high = self.connection.execute(ends).one()
            if low is not None:
                first, end = max(first, low), min(end, high + 1)
        return j.idx.between(first, end - 1)


def _counts(connection: sa.Connection, numbers: Sequence[int]) -> dict[int, dict[str, int]]:
    sums = [sa.func.sum(tasks.c[name]) for name in COUNTS]
    query = sa.select(tasks.c.run, *sums).where(tasks.c.run.in_(numbers), ~tasks.c.internal)
    rows = connection.execute(query.group_by(tasks.c.run))
    return {row[0]: _by_state(row[1:]) for row in rows}


def _by_state(counts: Sequence[int]) -> dict[str, int]:
    return {state.value: int(n) for state, n in zip(JOB_CODES, counts, strict=True) if n}


def _run(row: sa.Row[Any]) -> Row:
    keys = ("id", "name", "status", "reason", "created", "started", "ended")
    return {key: getattr(row, key) for key in keys}


def _task(row: sa.Row[Any]) -> Row:
    keys = ("id", "name", "status", "reason", "n", "closed", "internal")
    counts = [getattr(row, name) for name in COUNTS]
    return {**{key: getattr(row, key) for key in keys}, "jobs": _by_state(counts)}


def _task_row(connection: sa.Connection, number: int, name: str) -> sa.Row[Any]:
    query = sa.select(*_LIGHT_TASK).where(tasks.c.run == number)
    row = connection.execute(query.where(tasks.c.name == name)).first()
    if row is None:
        listed = connection.execute(query.order_by(tasks.c.id)).all()
        names = ", ".join(task.name for task in listed if not task.internal)
        raise StoreError(f"the run has no task {name!r}; it has {names}")
    return row


def _attempt(row: sa.Row[Any]) -> Row:
    keys = ("attempt", "bundle", "worker", "executor", "site", "location", "started", *_MEASURES)
    return {
        **{key: getattr(row, key) for key in keys},
        "status": JOB_CODES[row.status].value,
        "cached": bool(row.cached),
        "failure": row.failure,
        "charged": None if row.charged is None else bool(row.charged),
        "log": None if row.log_length is None else [row.log_offset, row.log_length],
    }


def _events(number: int) -> sa.Select[Any]:
    e = events.c
    query = sa.select(
        *(e.seq, e.at, e.kind, tasks.c.name.label("task"), e.first, e.last, e.jobs),
        *(e.attempt, e.bundle, e.start, e.finish),
        *(sa.func.coalesce(e.reason, "").label("reason"), e.detail),
    )
    on = sa.and_(tasks.c.run == e.run, tasks.c.id == e.task)
    return query.select_from(events.outerjoin(tasks, on)).where(e.run == number)


def _with_task(query: sa.Select[Any], table: sa.Table) -> sa.Select[Any]:
    on = sa.and_(tasks.c.run == table.c.run, tasks.c.id == table.c.task)
    return query.select_from(table.outerjoin(tasks, on))


def _oldest_bundle(connection: sa.Connection, number: int, limit: int) -> int:
    """Return the oldest of the newest bundles that have ``limit`` jobs together."""
    b, total, oldest = bundles.c, 0, 0
    query = sa.select(b.id, b.count).where(b.run == number).order_by(b.id.desc())
    for bundle, count in connection.execute(query.limit(limit)):
        oldest, total = bundle, total + count
        if total >= limit:
            break
    return oldest
