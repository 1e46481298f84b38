"""The state store on SQL: SQLite on one machine, PostgreSQL for many drivers and readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pandaflow.config import read_settings
from pandaflow.core.errors import RunLocked, StoreError
from pandaflow.core.model import SourceSpec, TaskSpec, WorkflowSpec
from pandaflow.ports import Owner, RunState
from pandaflow.store.database import Database
from pandaflow.store.driver import SqlDriver
from pandaflow.store.loading import RunLoader
from pandaflow.store.owner import hold, is_gone, let_go, this_process
from pandaflow.store.reader import SqlReader, find_run
from pandaflow.store.schema import datasets, requests, runs, tasks
from pandaflow.store.spec import dump_task, dump_workflow
from pandaflow.store.statements import NOW, Statements

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
    """A :class:`pandaflow.ports.StateStore` on SQLite or PostgreSQL.

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
        self._timeout = timeout

    def __reduce__(self) -> tuple[Any, ...]:
        return (SqlStore, (self.url,))

    @property
    def url(self) -> str:
        """The store's SQLAlchemy URL, password included."""
        return self._database.url.render_as_string(hide_password=False)

    def create_run(self, spec: WorkflowSpec, *, run_id: str, created: float, results: str) -> None:
        """Record a new run with all its tasks, status ``defined``.

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
            number, _ = find_run(connection, run_id)
            # Waits for a commit of the present driver on PostgreSQL; SQLite is locked already.
            query = sa.select(runs, (runs.c.lease_until - _now(connection)).label("left"))
            row = connection.execute(query.where(runs.c.no == number).with_for_update()).one()
            _check_lease(row, owner)
            taken = sa.update(runs).where(runs.c.no == number)
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
        hold(owner)
        driver = SqlDriver(self._database, self._sql, number, row.id, fence=row.fence + 1, ttl=ttl)
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

    def reader(self) -> SqlReader:
        """Return read access."""
        return SqlReader(self._database)

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


def _check_lease(row: sa.Row[Any], owner: Owner) -> None:
    """Refuse if somebody else holds a lease that is neither over nor of a dead process."""
    if row.owner_token in (None, owner.token) or row.left <= 0:
        return
    holder = Owner(row.owner_host, row.owner_pid, row.owner_started, row.owner_token)
    if is_gone(holder, owner.host):
        return
    raise RunLocked(
        f"run {row.id} is driven by process {holder.pid} on {holder.host} (its lease lasts "
        f"{row.left:.0f} s more); attach to it instead, or stop that process"
    )
