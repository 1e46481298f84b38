"""The state store on SQL: SQLite on one machine, PostgreSQL for many drivers and readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pandaflow.config import read_settings
from pandaflow.core.errors import RunLocked, StoreError
from pandaflow.core.model import SourceSpec, TaskSpec, WorkflowSpec
from pandaflow.ports import LogRecord, Owner, RunState, StudyState, Submitter
from pandaflow.store.database import Database
from pandaflow.store.driver import SqlDriver
from pandaflow.store.loading import RunLoader
from pandaflow.store.owner import hold, is_gone, let_go, this_process
from pandaflow.store.reader import SqlReader, find_run
from pandaflow.store.schema import datasets, requests, runs, studies, tasks
from pandaflow.store.serving import ServedRun, waiting_runs
from pandaflow.store.spec import dump_task, dump_workflow
from pandaflow.store.statements import NOW, Statements
from pandaflow.store.studies import SqlStudies, SqlStudyWriter, delete_study

__all__ = ["SqlStore", "open_store", "this_process"]


def open_store(url: str | Path | None = None) -> SqlStore:
    """Open the state store, creating or upgrading it where needed.

    Parameters
    ----------
    url : str or Path, optional
        SQLAlchemy URL, or the path of an SQLite file. Default: ``PANDAFLOW_STORE``, else
        ``sqlite:///.pandaflow/pandaflow.db``.

    Raises
    ------
    StoreError
        With the remedy: not reachable, not writable, not a store, of a newer PandaFlow.
    """
    return SqlStore(str(url) if url is not None else read_settings().store)


class SqlStore:
    """A :class:`pandaflow.ports.StateStore` and ``StudyStore`` on SQLite or PostgreSQL.

    Safe to use from several threads and processes; a process that forks opens its own.

    Parameters
    ----------
    url : str
    timeout : float
        Seconds to wait for somebody else's lock.
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        self._database = Database(url, timeout)
        self._sql = Statements(self._database.dialect)
        self._studies = SqlStudies(self._database)
        self._timeout = timeout

    def __reduce__(self) -> tuple[Any, ...]:
        return (SqlStore, (self.url,))

    @property
    def url(self) -> str:
        """The store's SQLAlchemy URL, password included."""
        return self._database.url.render_as_string(hide_password=False)

    def create_run(
        self,
        spec: WorkflowSpec,
        *,
        run_id: str,
        created: float,
        results: str,
        served: Submitter | None = None,
    ) -> None:
        """Record a new run with all its tasks, status ``defined``.

        ``served``: who leaves it to runners; None: whoever creates it also drives it.

        Raises
        ------
        StoreError
            There is a run of that id, or the database refused.
        """
        values = {
            "id": run_id,
            "name": spec.name,
            "status": "defined",
            "created": created,
            "spec": dump_workflow(spec),
            "params": dict(spec.params),
            "results": results,
        }
        if served is not None:
            values |= {"served": True, "vo": served.vo, "submitter": served.subject}
        with self._database.write() as connection:
            if connection.execute(sa.select(runs.c.no).where(runs.c.id == run_id)).first():
                raise StoreError(f"run {run_id} exists already in {self._database.url!r}")
            run = connection.execute(sa.insert(runs).values(values)).inserted_primary_key
            assert run is not None
            _insert(connection, tasks, [_task_row(run[0], task, created) for task in spec.tasks])
            _insert(connection, datasets, [_source_row(run[0], source) for source in spec.sources])

    def drive(self, run_id: str, owner: Owner, ttl: float) -> SqlDriver:
        """Take the lease of a run.

        Parameters
        ----------
        run_id : str
        owner : Owner
            Usually :func:`this_process`.
        ttl : float
            Seconds for which the lease holds without a sign of life.

        Raises
        ------
        RunLocked
            Another live owner has it; names it.
        RunNotFound
        """
        with self._database.write() as connection:
            number, full = find_run(connection, run_id)
            row = _lease_row(connection, runs, number)
            if holder := _holder(row, owner):
                raise RunLocked(
                    f"run {full} is driven by {holder}; attach to it instead, or stop that process"
                )
            fence = _take_lease(connection, runs, row, owner, ttl)
            # Before others see the lease: another thread must not take its holder for gone.
            hold(owner)
        driver = SqlDriver(self._database, self._sql, number, full, fence=fence, ttl=ttl)
        driver.on_release = lambda: let_go(owner)
        return driver

    def request(self, run_id: str, kind: str, body: Mapping[str, Any]) -> int:
        """Leave a wish for whoever drives the run; return its id."""
        with self._database.write() as connection:
            number, _ = find_run(connection, run_id)
            values = {
                "run": number,
                "kind": kind,
                "body": dict(body),
                "created": _now(connection),
            }
            key = connection.execute(sa.insert(requests).values(values)).inserted_primary_key
            assert key is not None
            return int(key[0])

    def reader(self, vo: str | None = None) -> SqlReader:
        """Return read access, to runs of one virtual organisation where one is named."""
        return SqlReader(self._database, vo)

    def state(self, run_id: str) -> RunState:
        """Return a run as last committed, without taking its lease.

        Raises
        ------
        RunNotFound
        """
        with self._database.read() as connection:
            number, full = find_run(connection, run_id)
        return RunLoader(self._database, number, full).load()

    def driven(self, run_id: str) -> bool:
        """Tell whether a live process holds the run's lease."""
        with self._database.read() as connection:
            number, _ = find_run(connection, run_id)
            row = connection.execute(
                sa.select(runs, _now(connection).label("now")).where(runs.c.no == number)
            ).one()
        if not row.owner_token or (row.lease_until or 0.0) < row.now:
            return False
        owner = Owner(row.owner_host, row.owner_pid, row.owner_started, row.owner_token)
        return not is_gone(owner, this_process().host)

    def waiting_runs(self, vos: Sequence[str] | None = None, limit: int = 100) -> list[ServedRun]:
        """Return runs left with a server that nobody drives now, whose turn it is first.

        Parameters
        ----------
        vos : sequence of str, optional
            Only of these VOs.
        limit : int
        """
        with self._database.read() as connection:
            return waiting_runs(connection, vos, limit)

    def create_study(self, name: str, head: Mapping[str, Any], created: float) -> None:
        """Record a new study, status ``running``, with an empty log.

        Raises
        ------
        StoreError
            There is a study of that name, ``head`` is not JSON, or the database refused.
        """
        self._studies.create(name, head, created)

    def study(self, name: str) -> StudyState | None:
        """Return a study without its log; None if there is none of that name."""
        return self._studies.get(name)

    def studies(self, limit: int = 100) -> list[StudyState]:
        """Return the newest studies, newest first."""
        return self._studies.newest(limit)

    def study_log(self, name: str, after: int = 0) -> Iterator[LogRecord]:
        """Return a study's records after number ``after`` that were there at the call.

        Reads them in pages: may go on while the study is written.

        Raises
        ------
        StoreError
            There is no such study.
        """
        return self._studies.log(name, after)

    def write_study(self, name: str, owner: Owner, ttl: float) -> SqlStudyWriter:
        """Take the lease of a study, by the rules of :meth:`drive`.

        Raises
        ------
        RunLocked
            Another live owner has it; names it.
        StoreError
            There is no such study.
        """
        with self._database.write() as connection:
            number = self._studies.number(connection, name)
            row = _lease_row(connection, studies, number)
            _check_free(row, owner)
            fence = _take_lease(connection, studies, row, owner, ttl)
            # Before others see the lease: another thread must not take its holder for gone.
            hold(owner)
        writer = SqlStudyWriter(
            self._database, number, name, fence=fence, records=row.records, ttl=ttl
        )
        writer.on_release = lambda: let_go(owner)
        return writer

    def delete_study(self, name: str) -> None:
        """Forget a study and its log.

        Raises
        ------
        RunLocked
            A live process writes it; names it.
        StoreError
            There is no such study.
        """
        with self._database.write() as connection:
            number = self._studies.number(connection, name)
            _check_free(_lease_row(connection, studies, number), this_process())
            delete_study(connection, number)

    @property
    def path(self) -> Path | None:
        """The database file; None where there is none."""
        name = self._database.url.database
        return Path(name).absolute() if self._database.dialect == "sqlite" and name else None

    def close(self) -> None:
        """Close idle connections; the store may be used again."""
        self._database.dispose()


def _now(connection: sa.Connection) -> sa.ColumnElement[float]:
    return sa.literal_column(NOW[connection.dialect.name], sa.Double)


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(sa.insert(table), rows)


def _task_row(run: int, task: TaskSpec, created: float) -> dict[str, Any]:
    return {
        "run": run,
        "id": task.id,
        "name": task.name,
        "internal": task.internal,
        "spec": dump_task(task),
        "changed": created,
    }


def _source_row(run: int, source: SourceSpec) -> dict[str, Any]:
    return {
        "run": run,
        "kind": "source",
        "id": source.id,
        "name": source.name,
        "n": source.n,
        "closed": source.kind != "stream",
    }


def _lease_row(connection: sa.Connection, table: sa.Table, number: int) -> sa.Row[Any]:
    """Lock and return a row of ``runs`` or ``studies``; ``left``: seconds left of its lease."""
    # Waits for a commit of the present driver on PostgreSQL; SQLite is locked already.
    query = sa.select(table, (table.c.lease_until - _now(connection)).label("left"))
    return connection.execute(query.where(table.c.no == number).with_for_update()).one()


def _take_lease(
    connection: sa.Connection, table: sa.Table, row: sa.Row[Any], owner: Owner, ttl: float
) -> int:
    """Write down the new owner; return the new fence."""
    taken = sa.update(table).where(table.c.no == row.no)
    connection.execute(
        taken.values(
            owner_host=owner.host,
            owner_pid=owner.pid,
            owner_started=owner.started,
            owner_token=owner.token,
            lease_until=_now(connection) + ttl,
            fence=row.fence + 1,
        )
    )
    return int(row.fence) + 1


def _holder(row: sa.Row[Any], owner: Owner) -> str:
    """Name who else holds a lease that is neither over nor of a dead process; "" if nobody."""
    if row.owner_token in (None, owner.token) or row.left <= 0:
        return ""
    holder = Owner(row.owner_host, row.owner_pid, row.owner_started, row.owner_token)
    if is_gone(holder, owner.host):
        return ""
    return f"process {holder.pid} on {holder.host} (its lease lasts {row.left:.0f} s more)"


def _check_free(row: sa.Row[Any], owner: Owner) -> None:
    """Refuse if somebody else writes the study."""
    if holder := _holder(row, owner):
        raise RunLocked(
            f"study {row.name!r} is written by {holder}; read it meanwhile, or stop that process"
        )
