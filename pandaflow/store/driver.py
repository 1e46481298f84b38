"""Write access to one run, under a lease."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pandaflow.core.commands import Record
from pandaflow.core.errors import RunLocked, StoreError
from pandaflow.ports import Request, RunState
from pandaflow.store.database import Database
from pandaflow.store.link import Link
from pandaflow.store.loading import RunLoader
from pandaflow.store.statements import Cursor, Statements
from pandaflow.store.writer import Writer

_T = TypeVar("_T")


class SqlDriver:
    """A :class:`pandaflow.ports.RunDriver` on SQL.

    The lease is guarded by a fence, a number that each take-over raises: every commit checks it
    in its own transaction. ``commits`` counts the commits of the run, so that one whose answer
    was lost with the connection is recognised and not applied twice.

    Parameters
    ----------
    database : Database
    sql : Statements
    run : int
        ``runs.no``.
    run_id : str
    fence : int
        As raised by this driver.
    ttl : float
        Seconds that the lease lasts.
    """

    def __init__(
        self,
        database: Database,
        sql: Statements,
        run: int,
        run_id: str,
        *,
        fence: int,
        ttl: float,
    ) -> None:
        self._database, self._sql = database, sql
        self._run, self._run_id, self._fence, self._ttl = run, run_id, fence, ttl
        self._link = Link(database)
        self._released = False
        self.on_release: Callable[[], None] = lambda: None
        self._doubtful: Sequence[Record] | None = None
        self._commits, self._seq = self._transact(self._position)

    def load(self) -> RunState:
        """Return the run as last committed; jobs are read while they are iterated."""
        return RunLoader(self._database, self._run, self._run_id).load()

    def commit(self, records: Sequence[Record], done: Sequence[int] = ()) -> None:
        """Append ``records`` and close the requests ``done``, in one transaction.

        Where the connection is cut and does not come back, nobody knows whether the commit was
        kept: the same ``records`` may be committed again, others are refused.

        Raises
        ------
        RunLocked
            The lease was lost; nothing was written.
        StoreError
            The database refused, or a record does not fit; nothing was written.
        """
        again = self._doubtful is not None
        if again and self._doubtful is not records:
            raise StoreError(
                f"run {self._run_id}: the connection was cut during a commit and nobody knows "
                "whether it was kept: commit the same records again, or resume the run"
            )
        cuts = self._link.cuts

        def work(cursor: Cursor) -> None:
            if self._step(cursor, again or self._link.cuts > cuts):
                writer = Writer(cursor, self._sql, self._run, self._run_id, self._seq)
                writer.write(records)
                for request in done:
                    cursor.execute(self._sql["close_request"], {"run": self._run, "id": request})

        try:
            self._transact(work)
        except BaseException:
            # Also when interrupted: the records stay in doubt.
            self._doubtful = records if again or self._link.cuts > cuts else None
            raise
        self._doubtful = None
        self._commits += 1
        self._seq += len(records)

    def renew(self) -> Sequence[Request]:
        """Extend the lease; return the requests not carried out yet, oldest first.

        Raises
        ------
        RunLocked
            The lease was lost.
        """

        def work(cursor: Cursor) -> list[Request]:
            params = {"run": self._run, "fence": self._fence, "ttl": self._ttl}
            cursor.execute(self._sql["renew"], params)
            if cursor.rowcount != 1:
                raise self._lost(cursor)
            cursor.execute(self._sql["open_requests"], {"run": self._run})
            return [Request(no, kind, _json(body)) for no, kind, body in cursor.fetchall()]

        return self._transact(work)

    def release(self) -> None:
        """Give the lease back and close the connection. May be called twice."""
        if self._released:
            return

        def work(cursor: Cursor) -> None:
            cursor.execute(self._sql["release"], {"run": self._run, "fence": self._fence})

        try:
            self._transact(work)
        finally:
            self._released = True
            self._link.close()
            self.on_release()

    # --- transactions ------------------------------------------------------------------

    def _transact(self, work: Callable[[Cursor], _T]) -> _T:
        """Run ``work`` in a transaction; once more if the connection was cut under it."""
        if self._released:
            raise RunLocked(f"run {self._run_id}: this driver has given its lease back")
        return self._link.transact(work)

    def _position(self, cursor: Cursor) -> tuple[int, int]:
        """Commits and events of the run so far."""
        cursor.execute(self._sql["lease"], {"run": self._run})
        _, commits, *_ = cursor.fetchone()
        cursor.execute(self._sql["last_event"], {"run": self._run})
        return int(commits), int(cursor.fetchone()[0])

    def _step(self, cursor: Cursor, again: bool) -> bool:
        """Take the run's row for this commit; false if it was applied already."""
        params = {"run": self._run, "fence": self._fence, "ttl": self._ttl}
        cursor.execute(self._sql["step"], {**params, "commits": self._commits})
        if cursor.rowcount == 1:
            return True
        cursor.execute(self._sql["lease"], {"run": self._run})
        fence, commits, *_ = cursor.fetchone()
        if again and fence == self._fence and commits == self._commits + 1:
            # The first answer was lost with the connection, the commit was not.
            return False
        raise self._lost(cursor)

    def _lost(self, cursor: Cursor) -> RunLocked:
        cursor.execute(self._sql["lease"], {"run": self._run})
        _, _, token, host, pid = cursor.fetchone()
        who = f"process {pid} on {host} drives it now" if token else "its lease was given back"
        return RunLocked(f"run {self._run_id}: this driver has lost the run, {who}")


def _json(value: Any) -> Any:
    """SQLite hands JSON over as text, PostgreSQL as what it says."""
    return json.loads(value) if isinstance(value, str) else value
