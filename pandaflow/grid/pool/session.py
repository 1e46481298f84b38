"""Transactions of the pool: SQL by sets, on both databases.

A batch costs a handful of statements however many bundles it has: PostgreSQL gets the columns as
arrays (``unnest``), SQLite ``executemany``, which costs it nothing. Statements that do not need
each other's rows travel together, the commit with the last of them: what costs most is waiting.

Rows are locked in one order everywhere, so that nobody waits in a circle: bundles by id, pilots by
name, runs by number, queues by name. A run's row is what all its pilots and its driver wait for:
it is locked late, just before the commit. Who looks for ready bundles skips locked ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from pandaflow.store.database import Database
from pandaflow.store.statements import Cursor

_LOCKS = {"{lock}": "FOR UPDATE", "{skip}": "FOR UPDATE SKIP LOCKED"}
_POSTGRESQL: sa.Dialect = sa.make_url("postgresql+psycopg://").get_dialect()()
_AMONG = re.compile(r"AMONG :(\w+)\[(\w+)\]")
#: Each statement finds its rows by an index. The planner, whose statistics lag behind a table that
#: fills and empties, would now and then read all of it instead.
_BY_INDEX = "SET LOCAL enable_seqscan = off"


@dataclass(frozen=True, slots=True)
class Many:
    """A statement for many rows.

    Attributes
    ----------
    sqlite, postgresql : str
    columns : tuple of str
        What a row has.
    """

    sqlite: str
    postgresql: str
    columns: tuple[str, ...]


def inserting(table: sa.Table, *columns: str, conflict: str = "") -> Many:
    """Return the INSERT of many rows into a table."""
    head = f"INSERT INTO {table.name} ({', '.join(columns)})"
    marks = ", ".join("?" * len(columns))
    return Many(
        f"{head} VALUES ({marks}) {conflict}",
        f"{head} SELECT * FROM {unnest(table, columns)} {conflict}",
        columns,
    )


def updating(table: sa.Table, key: str, *columns: str) -> Many:
    """Return the UPDATE of many rows; each gives the new values, and the key last."""
    own = ", ".join(f"{column} = ?" for column in columns)
    new = ", ".join(f"{column} = new.{column}" for column in columns)
    named = (*columns, key)
    return Many(
        f"UPDATE {table.name} SET {own} WHERE {key} = ?",
        # The keys again: without, PostgreSQL may read the whole table to join it.
        f"UPDATE {table.name} AS old SET {new} FROM {unnest(table, named)} "
        f"WHERE old.{key} = new.{key} AND old.{key} = ANY({array_of(table, key)})",
        named,
    )


def adding(table: sa.Table, key: str, *columns: str) -> Many:
    """Return the UPDATE that adds to columns of many rows; each gives what, and the key last."""
    own = ", ".join(f"{column} = {column} + ?" for column in columns)
    new = ", ".join(f"{column} = old.{column} + new.{column}" for column in columns)
    named = (*columns, key)
    return Many(
        f"UPDATE {table.name} SET {own} WHERE {key} = ?",
        f"UPDATE {table.name} AS old SET {new} FROM {unnest(table, named)} "
        f"WHERE old.{key} = new.{key} AND old.{key} = ANY({array_of(table, key)})",
        named,
    )


def unnest(table: sa.Table, columns: Sequence[str]) -> str:
    """Return rows for FROM on PostgreSQL, ``new``, out of an array for each column of a table."""
    arrays = [array_of(table, name) for name in columns]
    return f"unnest({', '.join(arrays)}) AS new({', '.join(columns)})"


def array_of(table: sa.Table, column: str) -> str:
    """Return a parameter as PostgreSQL reads it: an array of values of a column."""
    return f"CAST(%({column})s AS {table.c[column].type.compile(dialect=_POSTGRESQL)}[])"


@lru_cache(maxsize=500)
def _render(sql: str, dialect: str) -> str:
    """Write a statement for a database; see :meth:`Session.rows`."""
    lite = dialect == "sqlite"
    for word, lock in _LOCKS.items():
        sql = sql.replace(word, "" if lite else lock)
    if lite:
        return _AMONG.sub(r"IN (SELECT value FROM json_each(:\1))", sql)
    sql = _AMONG.sub(r"= ANY(CAST(:\1 AS \2[]))", sql)
    return re.sub(r":(\w+)", r"%(\1)s", sql)


class Later:
    """A statement that travels with others; its rows are there when all are answered."""

    def __init__(self, cursor: Any, *, lazy: bool) -> None:
        self._cursor = cursor
        # SQLite has run it already: what comes after it must not change what it has found.
        self._rows = None if lazy else _fetched(cursor)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """What it has found."""
        if self._rows is None:
            self._rows = _fetched(self._cursor)
        return self._rows


def _fetched(cursor: Any) -> list[tuple[Any, ...]]:
    return list(cursor.fetchall()) if cursor.description else []


class Session:
    """A transaction.

    Parameters
    ----------
    connection : sqlalchemy.Connection
    opening : str
        Runs before the first statement, on PostgreSQL.

    Attributes
    ----------
    dialect : {'sqlite', 'postgresql'}
    """

    def __init__(self, connection: sa.Connection, opening: str = "") -> None:
        self.dialect = connection.dialect.name
        driver: Any = connection.connection.driver_connection
        self._driver = driver
        self._cursor: Cursor = driver.cursor()
        self._opening = "" if self.dialect == "sqlite" else opening
        self._piped = False

    @contextmanager
    def together(self, *, last: bool = False) -> Iterator[None]:
        """Send the statements within at once, and wait once, at the end, until all are answered.

        Only :meth:`later` and :meth:`many` within. ``last``: the transaction commits with them, and
        nothing may come after.
        """
        if self.dialect == "sqlite":
            yield
            return
        with self._driver.pipeline():
            self._piped = True
            try:
                yield
                if last:
                    self._driver.commit()
            finally:
                self._piped = False

    def later(self, sql: str, **params: Any) -> Later:
        """Run a statement :meth:`together` with others; as :meth:`rows` otherwise."""
        cursor = self._driver.cursor()
        self._execute(sql, params, cursor)
        return Later(cursor, lazy=self._piped)

    def rows(self, sql: str, **params: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows.

        ``:name`` is a parameter, ``x AMONG :name[type]`` compares with a list of them, ``{lock}``
        and ``{skip}`` lock the rows, waiting for others or leaving out what they have.
        """
        self._execute(sql, params, self._cursor)
        return list(self._cursor.fetchall())

    def one(self, sql: str, **params: Any) -> tuple[Any, ...] | None:
        """Run a statement and return its first row, if there is one."""
        rows = self.rows(sql, **params)
        return rows[0] if rows else None

    def run(self, sql: str, **params: Any) -> int:
        """Run a statement and return how many rows it changed."""
        self._execute(sql, params, self._cursor)
        return self._cursor.rowcount

    def many(self, statement: Many, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement for many rows."""
        if not rows:
            return
        if self.dialect == "sqlite":
            self._cursor.executemany(statement.sqlite, rows)
            return
        self._open()
        self._driver.cursor().execute(statement.postgresql, _arrays(statement, rows))

    def returning(self, statement: Many, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Run a statement for many rows, and return what its RETURNING says."""
        if self.dialect == "sqlite":
            return [
                found
                for row in rows
                for found in self._cursor.execute(statement.sqlite, row).fetchall()
            ]
        if not rows:
            return []
        self._open()
        self._cursor.execute(statement.postgresql, _arrays(statement, rows))
        return self._cursor.fetchall()

    def _open(self) -> None:
        if self._opening:
            opening, self._opening = self._opening, ""
            self._driver.cursor().execute(opening)

    def _execute(self, sql: str, params: dict[str, Any], cursor: Cursor) -> None:
        self._open()
        write = json.dumps if self.dialect == "sqlite" else _array
        lists = {k: write(v) for k, v in params.items() if isinstance(v, list)}
        if any(isinstance(value, str) and "\0" in value for value in params.values()):
            raise ValueError("a text with a zero byte: PostgreSQL takes none")
        cursor.execute(_render(sql, self.dialect), {**params, **lists})


def _arrays(statement: Many, rows: Sequence[tuple[Any, ...]]) -> dict[str, str]:
    """Return the columns of rows as parameters."""
    columns = map(_array, zip(*rows, strict=True))
    return dict(zip(statement.columns, columns, strict=True))


def _array(values: Sequence[Any]) -> str:
    """Write an array as PostgreSQL reads it; psycopg's own way takes five times as long."""
    kinds = set(map(type, values))
    if kinds <= {int, float}:
        return f"{{{','.join(map(repr, values))}}}"
    few = set(values) if kinds == {str} else ()
    if len(few) == 1:  # as the queue of all
        return f"{{{','.join([_element(values[0])] * len(values))}}}"
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: Any) -> str:
    if isinstance(value, str):
        # Quoted whatever it is: so neither a brace, a comma nor the word NULL means anything.
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "NULL" if value is None else repr(value)


@contextmanager
def writing(database: Database) -> Iterator[Session]:
    """Give a transaction that may write; it commits at the end."""
    with database.write() as connection:
        yield Session(connection, _BY_INDEX)


@contextmanager
def reading(database: Database) -> Iterator[Session]:
    """Give a transaction that sees one state of the database."""
    with database.read() as connection, connection.begin():
        yield Session(connection)
