"""One connection for many small transactions, made again where it is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.pool import PoolProxiedConnection

from pandaflow.store.database import Database
from pandaflow.store.statements import Cursor

_T = TypeVar("_T")


class Link:
    """One connection for many small transactions; where it is cut, another one.

    Attributes
    ----------
    cuts : int
        How often it was cut in a transaction.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: PoolProxiedConnection | None = None
        self.cuts = 0

    def transact(self, work: Callable[[Cursor], _T]) -> _T:
        """Run ``work`` in a transaction; once more if the connection was cut under it."""
        with self._database.explained():
            try:
                return self._once(work)
            except self._database.driver_error:
                if not self._is_cut():
                    raise
                self.cuts += 1
                self.close()
            return self._once(work)

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if getattr(connection.driver_connection, "closed", False):
                connection.invalidate()
            connection.close()

    def _once(self, work: Callable[[Cursor], _T]) -> _T:
        if self._connection is None:
            self._connection = self._database.engine.raw_connection()
        connection = self._connection
        try:
            cursor: Any = connection.cursor()
            if self._database.dialect == "sqlite":
                cursor.execute("BEGIN IMMEDIATE")
            result = work(cursor)
            connection.commit()
            cursor.close()
            return result
        except BaseException:
            # Whatever went wrong, an interrupt included: leave no transaction open.
            if not self._is_cut():
                connection.rollback()
            raise

    def _is_cut(self) -> bool:
        """Whether the server has closed the connection."""
        driver = self._connection.driver_connection if self._connection is not None else None
        return bool(getattr(driver, "closed", False))
