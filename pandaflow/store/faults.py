"""What the database says, in the operator's words, with the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from pandaflow.core.errors import StoreError, StoreUnavailable

#: Byte of SQLite's wal-index file that the one writer locks.
_WAL_WRITE_LOCK = "120"

#: SQLite error name (or the start of one) -> remedy. The first that fits counts.
_SQLITE = {
    "SQLITE_READONLY": "is read-only: check the permissions of the file and of its folder, and "
    "that the file system is not mounted read-only",
    "SQLITE_FULL": "cannot grow, the disk (or a quota) is full: free some space, then resume the "
    "run; nothing that was committed is lost",
    "SQLITE_IOERR_WRITE": "cannot be written, the disk or a quota is full or failing: check it, "
    "then resume the run; nothing that was committed is lost",
    "SQLITE_CANTOPEN": "cannot be opened: check that its folder exists and that you may write "
    "there",
    "SQLITE_NOTADB": "is no SQLite database: move the file away or give another store",
    "SQLITE_CORRUPT": "is damaged: copy what can be read with `sqlite3 FILE .recover`, or restore "
    "a backup",
    "SQLITE_IOERR": "cannot be read or written: check the disk; SQLite needs a local file "
    "system (on a network file system use PostgreSQL)",
    "SQLITE_PROTOCOL": "cannot be locked: SQLite needs a local file system; on a network file "
    "system use PostgreSQL",
    "SQLITE_CONSTRAINT": "refused a record that breaks one of its rules; please report this",
}

#: The start of an SQLSTATE of PostgreSQL -> remedy. The first that fits counts.
_POSTGRES = {
    "53100": "has no disk space left: free some, then resume the run",
    "53300": "takes no more connections: raise max_connections or stop other clients",
    "25006": "is read-only (a standby?): give the address of the primary",
    "3D000": "does not exist on that server: create it with createdb",
    "28": "refuses the user or the password: check the store's URL",
    "42501": "does not allow it: grant the user the right to create and write tables",
    "55P03": "is locked by another session for too long: see pg_stat_activity",
    "40": "gave up this transaction because of another one: try again",
    "57P": "was shut down: start the server again, then resume the run",
    "08": "cannot be reached: check that the server runs and that the store's URL is right",
    "23": "refused a record that breaks one of its rules; please report this",
}


def store_error(error: BaseException, url: sa.URL) -> StoreError:
    """Return the :class:`StoreError` that says what ``error`` means for whoever runs the store.

    Parameters
    ----------
    error : BaseException
        From SQLAlchemy or from the driver below it.
    url : sqlalchemy.URL
    """
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
    place = f"the store {url.render_as_string(hide_password=True)}"
    detail = " ".join(str(cause).split())
    kind = StoreUnavailable if _may_pass(cause, url) else StoreError
    return kind(f"{place} {_remedy(cause, url)} ({detail})")


def _may_pass(cause: BaseException, url: sa.URL) -> bool:
    """Whether the same request may succeed in a moment."""
    name, state = getattr(cause, "sqlite_errorname", ""), getattr(cause, "sqlstate", None)
    if str(name).startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return True
    if state:
        return str(state).startswith(("53300", "55P03", "40", "57P", "08"))
    refused = "password" in str(cause) or "does not exist" in str(cause)
    return url.get_backend_name() == "postgresql" and not refused


def _remedy(cause: BaseException, url: sa.URL) -> str:
    name = str(getattr(cause, "sqlite_errorname", ""))
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return _busy(url)
    state = str(getattr(cause, "sqlstate", None) or "")
    for start, remedy in _SQLITE.items():
        if name.startswith(start):
            return remedy
    for start, remedy in _POSTGRES.items():
        if state.startswith(start):
            return remedy
    if url.get_backend_name() == "postgresql" and not state:
        return _POSTGRES["08"]
    return "failed"


def _busy(url: sa.URL) -> str:
    pid = writer_of(Path(url.database or ""))
    who = f"process {pid}" if pid else "another process"
    return f"is locked by {who} for too long: stop it, or wait until it is done, and try again"


def writer_of(path: Path, locks: Callable[[], str] | None = None) -> int | None:
    """Return the process that holds SQLite's write lock on ``path``, where Linux tells.

    Parameters
    ----------
    path : Path
        A database in WAL mode.
    locks : callable, optional
        Returns the text of ``/proc/locks``; default: reads it.
    """
    try:
        inode = os.stat(f"{path}-shm").st_ino
        text = locks() if locks else Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 8 and words[3] == "WRITE" and words[6] == _WAL_WRITE_LOCK:
            if words[5].rsplit(":", 1)[-1] == str(inode) and int(words[4]) > 0:
                return int(words[4])
    return None
