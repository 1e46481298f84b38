"""The harvester's own notes: a small SQLite file that survives it, and the lock on its folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pandaflow.core.errors import SiteError, StoreError
from pandaflow.harvester.account import Record
from pandaflow.harvester.submitter import Shape

#: Seconds for which pilots that are gone are remembered.
KEPT = 86_400.0
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS pilots (
        name TEXT PRIMARY KEY, queue TEXT NOT NULL, gone INTEGER NOT NULL, ordered REAL NOT NULL,
        body TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS pilots_queue ON pilots (queue, gone, ordered);
    CREATE TABLE IF NOT EXISTS queues (name TEXT PRIMARY KEY, body TEXT NOT NULL);
"""


class Journal:
    """What a harvester has submitted, and how its queues are. May be used by several threads.

    Parameters
    ----------
    folder : Path
        Made if it is not there.

    Raises
    ------
    StoreError
        The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.db"
        self._lock = threading.Lock()
        with self._explained():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=30, check_same_thread=False)
            self._database.executescript(_SCHEMA)
            # A pilot that was submitted must be known after a loss of power, too.
            self._database.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._database.close()

    def live(self, queue: str) -> list[Record]:
        """Return the pilots of a queue that are not gone."""
        rows = self._rows("SELECT body FROM pilots WHERE queue = ? AND NOT gone", queue)
        return [_parsed(body) for (body,) in rows]

    def gone(self, queue: str, most: int = 20) -> list[Record]:
        """Return pilots of a queue that are gone, the latest first."""
        rows = self._rows(
            "SELECT body FROM pilots WHERE queue = ? AND gone ORDER BY ordered DESC LIMIT ?",
            *(queue, most),
        )
        return [_parsed(body) for (body,) in rows]

    def submitted(self, queue: str, since: float) -> int:
        """Return how many pilots of a queue were ordered since a time."""
        ((count,),) = self._rows(
            "SELECT count(*) FROM pilots WHERE queue = ? AND ordered > ?", queue, since
        )
        return int(count)

    def save(self, queue: str, records: Iterable[Record]) -> None:
        """Write pilots down; they are on disk when this returns."""
        rows = [
            (each.name, queue, each.phase == "gone", each.ordered, json.dumps(asdict(each)))
            for each in records
        ]
        if rows:
            with self._writing() as database:
                database.executemany("INSERT OR REPLACE INTO pilots VALUES (?, ?, ?, ?, ?)", rows)

    def queue(self, name: str) -> dict[str, Any]:
        """Return what was noted of a queue; nothing, if nothing was."""
        rows = self._rows("SELECT body FROM queues WHERE name = ?", name)
        return dict(json.loads(rows[0][0])) if rows else {}

    def note(self, name: str, body: Mapping[str, Any]) -> None:
        """Note how a queue is."""
        with self._writing() as database:
            row = (name, json.dumps(dict(body)))
            database.execute("INSERT OR REPLACE INTO queues VALUES (?, ?)", row)

    def forget(self, before: float) -> None:
        """Remove pilots that are gone and were ordered before a time."""
        with self._writing() as database:
            database.execute("DELETE FROM pilots WHERE gone AND ordered < ?", (before,))

    def _rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._explained():
            return self._database.execute(sql, params).fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained(), self._database:
            yield self._database

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the journal {self._path} cannot be used: {error}") from error


def _parsed(text: str) -> Record:
    body = json.loads(text)
    return Record(**{**body, "shape": Shape(**body["shape"])})


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a state folder.

    Raises
    ------
    SiteError
        Another harvester has it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise SiteError(
                f"another harvester uses {folder} ({who or 'it does not say who'}): stop it, or "
                "give this one a name and a state folder of its own"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
