"""Connections to the database, and its schema brought up to date."""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry

from pandaflow.core.errors import StoreError
from pandaflow.store.faults import store_error
from pandaflow.store.schema import HEAD, VERSION_TABLE

#: Held while the schema is created or upgraded on PostgreSQL ("pandaflow" in hexadecimal).
_SCHEMA_LOCK = 0x70616E6461666C6F

#: Seconds for which a connection that was used is taken to be alive; when that was.
_FRESH, _USED = 1.0, "pandaflow.used"

#: synchronous=FULL: a commit survives a power cut, not only the death of the process. Measured
#: at 0.4 ms a commit more than NORMAL (local SSD), under 1 % of the time at 20 commits a second.
_PRAGMAS = ("foreign_keys = ON", "synchronous = FULL", "cache_size = -32768")


def parse_url(text: str) -> sa.URL:
    """Parse an SQLAlchemy URL, or the plain path of an SQLite file.

    Raises
    ------
    StoreError
        It is no URL, or of a database that is not supported.
    """
    try:
        url = sa.make_url(text if "://" in text else f"sqlite:///{Path(text).expanduser()}")
    except sa.exc.ArgumentError as error:
        raise StoreError(f"store {text!r}: not a path and not an SQLAlchemy URL") from error
    backend = url.drivername.split("+")[0]
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StoreError(
            f"store {text!r}: use sqlite:///PATH or postgresql://USER@HOST/DATABASE, "
            f"{backend} is not supported"
        )
    if url.database in (None, "", ":memory:"):
        raise StoreError(f"store {text!r} would forget its runs: give the path of a file")
    return url


class Database:
    """An engine with our habits: explicit transactions, errors in words, a current schema.

    Parameters
    ----------
    url : str
    timeout : float
        Seconds to wait for somebody else's lock.

    Attributes
    ----------
    url : sqlalchemy.URL
    engine : sqlalchemy.Engine
    dialect : {'sqlite', 'postgresql'}
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url = parse_url(url)
        self.dialect = self.url.get_backend_name()
        self._timeout = timeout
        self._make_folder()
        self.engine = self._make_engine()
        #: The driver's own errors, which raw cursors raise.
        self.driver_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        # A store that nobody holds any more closes its connections; not in a forked child.
        weakref.finalize(self, self.engine.dispose).atexit = False
        with self.explained():
            self._ensure_schema()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Give a connection that sees one committed state of the database throughout."""
        options = {"isolation_level": "REPEATABLE READ"} if self.dialect != "sqlite" else {}
        with self.explained(), self.engine.connect() as connection:
            yield connection.execution_options(**options)

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Give a connection in a transaction that may write; commits at the end."""
        with self.explained(), self.engine.connect() as connection:
            with connection.execution_options(immediate=True).begin():
                yield connection

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of the database into :class:`StoreError`."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, self.driver_error) as error:
            raise store_error(error, self.url) from error

    def dispose(self) -> None:
        """Close all idle connections."""
        self.engine.dispose()

    def _make_folder(self) -> None:
        if self.dialect != "sqlite" or "uri" in self.url.query:
            return
        folder = Path(str(self.url.database)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the store's folder {folder} cannot be made: {error.strerror}; "
                "give another place with store= or PANDAFLOW_STORE"
            ) from error

    def _make_engine(self) -> sa.Engine:
        if self.dialect == "sqlite":
            engine = sa.create_engine(self.url, connect_args={"timeout": self._timeout})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        milliseconds = int(self._timeout * 1000)
        arguments = {"connect_timeout": 10, "options": f"-c lock_timeout={milliseconds}"}
        try:
            engine = sa.create_engine(self.url, connect_args=arguments)
        except ModuleNotFoundError as error:
            raise StoreError(
                f"PostgreSQL needs {error.name}: pip install 'pandaflow[postgres]'"
            ) from error
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", _check_alive)
        return engine

    def _ensure_schema(self) -> None:
        with self.engine.connect() as connection:
            if self._revision(connection) == HEAD:
                return
        if self.dialect == "sqlite":
            self._use_wal()
        with self.engine.connect().execution_options(immediate=True) as connection:
            with connection.begin():
                self._upgrade(connection)

    def _revision(self, connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        table = sa.table(VERSION_TABLE, sa.column("version_num", sa.Text))
        revision = connection.execute(sa.select(table.c.version_num)).scalar()
        return None if revision is None else str(revision)

    def _use_wal(self) -> None:
        """Readers and the writer do not wait for each other; kept in the file for good."""
        deadline = time.monotonic() + self._timeout
        while True:
            connection = self.engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                # SQLite does not wait by itself here when two processes switch at once.
                busy = error.sqlite_errorname.startswith("SQLITE_BUSY")
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            finally:
                connection.close()

    def _upgrade(self, connection: sa.Connection) -> None:
        """Run Alembic under a lock; a process that waited for it finds nothing left to do."""
        # Alembic costs a fifth of a second to import: only when there is something to do.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        if self.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
        config = Config()
        folder = Path(__file__).with_name("migrations")
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        found = self._revision(connection)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if found is not None and found not in known:
            raise StoreError(
                f"the store {self.url.render_as_string()} was written by a newer PandaFlow "
                f"(schema {found}, this one knows up to {HEAD}): upgrade PandaFlow"
            )
        command.upgrade(config, "head")


def _note_use(_: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED] = time.monotonic()


def _check_alive(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
    """Have a connection replaced that was lost; one that was used just now is not asked.

    A question each time would cost the pool of bundles a tenth of its speed.
    """
    lost = connection.closed
    if not lost and time.monotonic() - record.info.get(_USED, 0.0) > _FRESH:
        try:
            connection.execute("SELECT 1")
            connection.rollback()
        except connection.OperationalError:
            lost = True
    if lost:
        raise sa.exc.DisconnectionError


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # Autocommit: transactions begin where we say so, DDL included.
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    options: dict[str, Any] = dict(connection.get_execution_options())
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("immediate") else "BEGIN")
