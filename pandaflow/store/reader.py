"""Read access for people: plain dicts with JSON-ready values.

Each call sees one committed state of the database. Counts come from ``tasks``, so that the
status of a million-job run costs one row a task; jobs without a row are made up on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import sqlalchemy as sa

from pandaflow.core.datasets import upstream_of
from pandaflow.core.errors import NotInRun, RunNotFound
from pandaflow.core.status import JOB_CODE, JOB_CODES, RUN_TERMINAL, JobStatus
from pandaflow.store.database import Database
from pandaflow.store.jobs import JobsOfTask
from pandaflow.store.schema import (
    COUNTS,
    attempts,
    bundles,
    events,
    requests,
    runs,
    tasks,
)
from pandaflow.store.spec import parse_task
from pandaflow.store.statements import NOW

Row = dict[str, Any]

#: Seconds within which runners usually take a run up.
_PROMPT_S = 3.0
#: All columns but the specs, which may be megabytes.
_LIGHT_RUN = [column for column in runs.c if column.name != "spec"]
_LIGHT_TASK = [column for column in tasks.c if column.name != "spec"]

_MEASURES = ("wall", "cpu", "max_pss", "read_bytes", "written_bytes", "disk")


def find_run(connection: sa.Connection, run_id: str, vo: str | None = None) -> tuple[int, str]:
    """Return key and id of the run that ``run_id``, a prefix of it or ``"last"`` names.

    ``vo``: only runs of this virtual organisation count; None: all of the store.

    Raises
    ------
    RunNotFound
        None, or several: then the candidates are listed.
    """
    query = _of_vo(sa.select(runs.c.no, runs.c.id), vo)
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


def _of_vo(query: sa.Select[Any], vo: str | None) -> sa.Select[Any]:
    return query if vo is None else query.where(runs.c.vo == vo)


class SqlReader:
    """A :class:`pandaflow.store.port.RunReader` on SQL.

    Parameters
    ----------
    database : Database
    vo : str, optional
        See only runs of this virtual organisation.
    """

    def __init__(self, database: Database, vo: str | None = None) -> None:
        self._database, self._vo = database, vo

    def runs(self, limit: int = 100) -> list[Row]:
        """Newest first: rows as of :meth:`run`, without params, results, owner and tasks."""
        with self._database.read() as connection:
            newest = _of_vo(sa.select(*_LIGHT_RUN), self._vo).order_by(
                runs.c.created.desc(), runs.c.no.desc()
            )
            rows = connection.execute(newest.limit(limit)).all()
            counts = _counts(connection, [row.no for row in rows])
            return [{**_run(row), "jobs": counts.get(row.no, {})} for row in rows]

    def run(self, run_id: str) -> Row:
        """One run with its ``tasks``, each with ``jobs`` (counts by state).

        Returns
        -------
        dict
            ``id, name, status, reason, created, started, ended, vo, submitter, served, params,
            results, owner`` (host and pid, or None), ``unattended`` (left with a server, and no
            runner drives it now), ``jobs``, and ``tasks``: ``id, name, status, reason, n,
            closed, internal, jobs``. Counts leave out states without jobs; those of the run
            leave out tasks that the compiler made.
        """
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id, self._vo)
            alone = _unattended(connection).label("unattended")
            light: sa.Select[Any] = sa.select(*_LIGHT_RUN, alone)
            row = connection.execute(light.where(runs.c.no == number)).one()
            query = sa.select(*_LIGHT_TASK).where(tasks.c.run == number).order_by(tasks.c.id)
            listed = [_task(task) for task in connection.execute(query)]
            counts = _counts(connection, [number]).get(number, {})
        owner = {"host": row.owner_host, "pid": row.owner_pid} if row.owner_token else None
        more = {"params": row.params, "results": row.results, "owner": owner}
        more["unattended"] = bool(row.unattended)
        return {**_run(row), **more, "jobs": counts, "tasks": listed}

    def whose(self, run_id: str) -> Row:
        """Whose a run is: ``id, vo, submitter, served, status, results``."""
        r = runs.c
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id, self._vo)
            query = sa.select(r.id, r.vo, r.submitter, r.served, r.status, r.results)
            row = connection.execute(query.where(r.no == number)).mappings().one()
            return {**row, "served": bool(row["served"])}

    def counts(self, run_id: str) -> dict[str, int]:
        """Jobs of the run by state, without those of tasks that the compiler made."""
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id, self._vo)
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
        wanted = _code_of(status)
        rows = islice((row for _, row in self._jobs(run_id, (task, wanted, index))), limit)
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
            number, _ = find_run(connection, run_id, self._vo)
            query = _events(number).where(events.c.seq > after).order_by(events.c.seq)
            return [dict(row) for row in connection.execute(query.limit(limit)).mappings()]

    def noted(self, run_id: str, kind: str, after: int = 0) -> tuple[list[Row], int]:
        """Events of one kind, as :meth:`events`, and the number of the newest event of any."""
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id, self._vo)
            query = _events(number).where(events.c.kind == kind, events.c.seq > after)
            found = connection.execute(query.order_by(events.c.seq)).mappings().all()
            newest = sa.select(sa.func.max(events.c.seq)).where(events.c.run == number)
            return [dict(row) for row in found], connection.execute(newest).scalar() or 0

    def story(self, run_id: str, task: str, index: int) -> list[Row]:
        """Events that touched one job, oldest first; as :meth:`events`."""
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id, self._vo)
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
            number, run = find_run(connection, run_id, self._vo)
            found = _task_row(connection, number, task).id
            query = sa.select(tasks.c.spec).where(tasks.c.run == number, tasks.c.id == found)
            return upstream_of(parse_task(connection.execute(query).scalar(), run))

    def sites(self, run_id: str) -> list[str]:
        """Names of the sites that jobs of the run were given, by name."""
        b = bundles.c
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id, self._vo)
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
            number, _ = find_run(connection, run_id, self._vo)
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
            number, _ = find_run(connection, run_id, self._vo)
            query = _with_task(sa.select(bundles, tasks.c.name), bundles)
            query = query.where(bundles.c.run == number, bundles.c.id == bundle)
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotInRun(f"run {run_id} has no bundle {bundle}")
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
            number, _ = find_run(connection, run_id, self._vo)
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
            number, _ = find_run(connection, run_id, self._vo)
            query = sa.select(r.id, r.kind, r.body, r.created)
            query = query.where(r.run == number, r.done.is_(None)).order_by(r.id)
            return [dict(row) for row in connection.execute(query).mappings()]

    def request(self, run_id: str, request: int) -> Row:
        """One request: ``id, kind, status`` (``open``, ``done`` or ``refused``) and ``reason``.

        Raises
        ------
        RunNotFound, NotInRun
        """
        r = requests.c
        with self._database.read() as connection:
            number, full = find_run(connection, run_id, self._vo)
            query = sa.select(r.id, r.kind, r.done).where(r.run == number, r.id == request)
            row = connection.execute(query).first()
        if row is None:
            raise NotInRun(f"run {full} has no request {request}")
        told = {"id": row.id, "kind": row.kind, "status": "open", "reason": ""}
        return told if row.done is None else {**told, **self._answer(full, request)}

    def _answer(self, run_id: str, request: int) -> Row:
        rows, _ = self.noted(run_id, "request_refused")
        for row in rows:
            if row["detail"]["request"] == request:
                return {"status": "refused", "reason": row["reason"]}
        return {"status": "done"}

    def jobs_page(
        self,
        run_id: str,
        only: tuple[str | None, str | None, int | None],
        after: tuple[int, int],
        limit: int,
    ) -> tuple[list[Row], tuple[int, int] | None]:
        """Return some jobs, and where the next page begins; None: there is none.

        Parameters
        ----------
        run_id : str
        only : (str, str, int)
            Task, state and index, each None: any; as of :meth:`jobs`.
        after : (int, int)
            Id of a task, and index: the last job of the page before.
        limit : int
        """
        task, status, index = only
        wanted = _code_of(status)
        found = list(islice(self._jobs(run_id, (task, wanted, index), after), limit + 1))
        page = [row for _, row in found[:limit]]
        last = None if len(found) <= limit else (found[limit - 1][0], page[-1]["index"])
        return page, last

    def _jobs(
        self,
        run_id: str,
        only: tuple[str | None, int | None, int | None],
        after: tuple[int, int] = (-1, -1),
    ) -> Iterator[tuple[int, Row]]:
        """Yield jobs with the ids of their tasks."""
        task, status, index = only
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id, self._vo)
            query = sa.select(*_LIGHT_TASK).where(tasks.c.run == number).order_by(tasks.c.id)
            chosen = connection.execute(query).all()
            if task is not None:
                chosen = [_task_row(connection, number, task)]
            for row in chosen:
                if row.id < after[0]:
                    continue
                wanted = status
                if row.internal and task is None:
                    wanted = JOB_CODE[JobStatus.FAILED]
                    if status not in (None, wanted):
                        continue
                begin = after[1] + 1 if row.id == after[0] else 0
                for found in JobsOfTask(connection, row, wanted).rows(index, begin):
                    yield row.id, found


def _code_of(status: str | None) -> int | None:
    if status is not None and status not in list(JobStatus):
        states = ", ".join(JobStatus)
        raise NotInRun(f"no job state {status!r}: use one of {states}")
    return None if status is None else JOB_CODE[JobStatus(status)]


def _counts(connection: sa.Connection, numbers: Sequence[int]) -> dict[int, dict[str, int]]:
    sums = [sa.func.sum(tasks.c[name]) for name in COUNTS]
    query = sa.select(tasks.c.run, *sums).where(tasks.c.run.in_(numbers), ~tasks.c.internal)
    rows = connection.execute(query.group_by(tasks.c.run))
    return {row[0]: _by_state(row[1:]) for row in rows}


def _by_state(counts: Sequence[int]) -> dict[str, int]:
    return {state.value: int(n) for state, n in zip(JOB_CODES, counts, strict=True) if n}


def _run(row: sa.Row[Any]) -> Row:
    keys = ("id", "name", "status", "reason", "created", "started", "ended", "vo", "submitter")
    return {**{key: getattr(row, key) for key in keys}, "served": bool(row.served)}


def _unattended(connection: sa.Connection) -> sa.ColumnElement[bool]:
    """Whether a run that was left with a server has waited for a runner for some seconds."""
    now: sa.ColumnElement[float] = sa.literal_column(NOW[connection.dialect.name], sa.Double)
    free = sa.or_(runs.c.lease_until.is_(None), runs.c.lease_until < now)
    ended = runs.c.status.in_([str(status) for status in RUN_TERMINAL])
    return sa.and_(runs.c.served, ~ended, free, runs.c.created < now - _PROMPT_S)


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
        raise NotInRun(f"the run has no task {name!r}; it has {names}")
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
