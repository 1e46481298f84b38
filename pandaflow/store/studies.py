"""Studies on SQL: for each a row for lists, and a log with one writer that is only appended to.

An append is one transaction of two statements: an UPDATE of the study's row, which checks the
fence, extends the lease and counts the records, and the INSERT of the records. JSON is kept as
the text that was written, on PostgreSQL too: JSONB would sort keys and round floats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa

from pandaflow.core.errors import RunLocked, StoreError
from pandaflow.ports import LogRecord, StudyState
from pandaflow.store.database import Database
from pandaflow.store.link import Link
from pandaflow.store.schema import studies, study_log
from pandaflow.store.statements import NOW, Cursor

_T = TypeVar("_T")
#: When, kind, trial, body.
Entry: TypeAlias = tuple[float, str, int | None, Mapping[str, Any]]
_Row: TypeAlias = tuple[int, int, float, str, int | None, str]
_Changes: TypeAlias = dict[str, str | None]

#: Records that are read at a time.
PAGE = 2000

#: Kept: ``json.dumps`` with options makes a new encoder at each call.
_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"))

_STATE: tuple[sa.Column[Any], ...] = (
    *(studies.c.name, studies.c.created, studies.c.changed, studies.c.status),
    *(studies.c.head, studies.c.summary, studies.c.run),
)
_RECORD: tuple[sa.Column[Any], ...] = (
    *(study_log.c.seq, study_log.c.at, study_log.c.kind),
    *(study_log.c.trial, study_log.c.body),
)

_TEXTS = {
    "step": """
        UPDATE studies
        SET records = records + :count, changed = {now}, lease_until = {now} + :ttl,
            summary = coalesce(:summary, summary), status = coalesce(:status, status),
            head = coalesce(:head, head), run = coalesce(:run, run)
        WHERE no = :study AND fence = :fence AND records = :records AND owner_token IS NOT NULL""",
    "insert": """
        INSERT INTO study_log (study, seq, at, kind, trial, body)
        VALUES ({mark}, {mark}, {mark}, {mark}, {mark}, {mark})""",
    "position": """
        SELECT fence, records, owner_token, owner_host, owner_pid FROM studies WHERE no = :study""",
    "renew": """
        UPDATE studies SET lease_until = {now} + :ttl
        WHERE no = :study AND fence = :fence AND owner_token IS NOT NULL""",
    "release": """
        UPDATE studies SET owner_host = NULL, owner_pid = NULL, owner_started = NULL,
                           owner_token = NULL, lease_until = NULL
        WHERE no = :study AND fence = :fence""",
    "noted": """
        SELECT 1 FROM study_log WHERE study = :study AND kind = :kind AND trial = :trial""",
}


def _render(text: str, dialect: str) -> str:
    text = text.replace("{now}", NOW[dialect])
    if dialect == "sqlite":
        return text.replace("{mark}", "?")
    return re.sub(r":(\w+)", r"%(\1)s", text).replace("{mark}", "%s")


_SQL = {dialect: {name: _render(text, dialect) for name, text in _TEXTS.items()} for dialect in NOW}


# --- reading ----------------------------------------------------------------------------


class SqlStudies:
    """Studies for those who do not write them; see :class:`pandaflow.ports.StudyStore`.

    Parameters
    ----------
    database : Database
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, head: Mapping[str, Any], created: float) -> None:
        """Record a new study."""
        values = {"name": name, "head": dump_json(head, f"study {name!r}: its definition")}
        times = {"created": created, "changed": created}
        with self._database.write() as connection:
            if find_study(connection, name):
                raise StoreError(f"study {name!r} exists already in {self._database.url!r}")
            connection.execute(sa.insert(studies).values(**values, **times))

    def get(self, name: str) -> StudyState | None:
        """Return the study of that name, if there is one."""
        with self._database.read() as connection:
            query = sa.select(*_STATE).where(studies.c.name == name)
            row = connection.execute(query).one_or_none()
        return None if row is None else _state(row)

    def newest(self, limit: int) -> list[StudyState]:
        """Return the newest studies, newest first."""
        order = studies.c.created.desc(), studies.c.no.desc()
        with self._database.read() as connection:
            rows = connection.execute(sa.select(*_STATE).order_by(*order).limit(limit)).all()
        return [_state(row) for row in rows]

    def log(self, name: str, after: int) -> Iterator[LogRecord]:
        """Return the records after number ``after`` that there are now."""
        with self._database.read() as connection:
            number = self.number(connection, name)
            query = sa.select(studies.c.records).where(studies.c.no == number)
            last = int(connection.execute(query).scalar_one())
        return self._stream(number, name, max(after, 0), last)

    def number(self, connection: sa.Connection, name: str) -> int:
        """Return the key of a study.

        Raises
        ------
        StoreError
            There is none of that name.
        """
        number = find_study(connection, name)
        if number is None:
            raise StoreError(f"there is no study {name!r} in {self._database.url!r}")
        return number

    def _stream(self, number: int, name: str, after: int, last: int) -> Iterator[LogRecord]:
        for start in range(after, last, PAGE):
            end = min(start + PAGE, last)
            # A transaction a page: a slow reader does not keep SQLite's log from being cut.
            with self._database.read() as connection:
                query = (
                    sa.select(*_RECORD)
                    .where(study_log.c.study == number)
                    .where(study_log.c.seq > start, study_log.c.seq <= end)
                    .order_by(study_log.c.seq)
                )
                rows = connection.execute(query).all()
            if len(rows) != end - start:
                raise StoreError(
                    f"study {name!r}: {end - start - len(rows)} record(s) of its log between "
                    f"{start + 1} and {end} are gone: was it deleted meanwhile?"
                )
            # One parse a page is twice as fast as one a record.
            bodies = parse_json(f"[{','.join([row[4] for row in rows])}]", f"study {name!r}")
            for (seq, at, kind, trial, _), body in zip(rows, bodies, strict=True):
                yield LogRecord(seq, at, kind, trial, body)


def find_study(connection: sa.Connection, name: str) -> int | None:
    """Return the key of the study of that name, if there is one."""
    return connection.execute(sa.select(studies.c.no).where(studies.c.name == name)).scalar()


def delete_study(connection: sa.Connection, number: int) -> None:
    """Delete a study and its log."""
    connection.execute(sa.delete(study_log).where(study_log.c.study == number))
    connection.execute(sa.delete(studies).where(studies.c.no == number))


def dump_json(value: Mapping[str, Any], what: str) -> str:
    """Return ``value`` as JSON text.

    Raises
    ------
    StoreError
        It is no JSON: NaN and infinity, objects of any other kind.
    """
    try:
        return _encoder.encode(dict(value))
    except (TypeError, ValueError) as error:
        raise StoreError(f"{what} cannot be stored as JSON: {error}") from error


def parse_json(text: str, what: str) -> Any:
    """Return what :func:`dump_json` was given.

    Raises
    ------
    StoreError
        The text is damaged.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(f"{what} is damaged in the store: {error}") from error


def _state(row: sa.Row[Any]) -> StudyState:
    what = f"study {row.name!r}"
    return StudyState(
        name=row.name,
        created=row.created,
        changed=row.changed,
        status=row.status,
        head=parse_json(row.head, what),
        summary=parse_json(row.summary, what),
        run=row.run,
    )


# --- writing ----------------------------------------------------------------------------


class SqlStudyWriter:
    """A :class:`pandaflow.ports.StudyWriter` on SQL.

    Every append checks the fence, a number that each take-over of the lease raises, and the
    count of the log's records: an append whose answer was lost with the connection is
    recognised and not made twice.

    Parameters
    ----------
    database : Database
    study : int
        ``studies.no``.
    name : str
    fence : int
        As raised by this writer.
    records : int
        Records in the log when the lease was taken.
    ttl : float
        Seconds that the lease lasts.
    """

    def __init__(
        self, database: Database, study: int, name: str, *, fence: int, records: int, ttl: float
    ) -> None:
        self._link = Link(database)
        self._sql = _SQL[database.dialect]
        self._name, self._records = name, records
        self._key = {"study": study, "fence": fence, "ttl": ttl}
        self._doubtful: tuple[list[_Row], _Changes] | None = None
        self._broken_rule: type[Exception] = database.engine.dialect.loaded_dbapi.IntegrityError
        self._released = False
        self.on_release: Callable[[], None] = lambda: None

    @property
    def next_seq(self) -> int:
        """The number that the next record gets."""
        return self._records + 1

    def append(
        self,
        records: Sequence[Entry],
        *,
        summary: Mapping[str, Any] | None = None,
        status: str | None = None,
        head: Mapping[str, Any] | None = None,
        run: str | None = None,
    ) -> int:
        """Append ``records`` in one transaction; extend the lease.

        Where the connection is cut and does not come back, nobody knows whether the append was
        kept: the same one may be made again, others are refused.

        Parameters
        ----------
        records : sequence of (at, kind, trial, body)
            May be empty. Keys in ``body`` are strings.
        summary, status, head, run : optional
            Replace those of the study.

        Returns
        -------
        int
            Number of the log's last record.

        Raises
        ------
        RunLocked
            The lease was lost; nothing was written.
        StoreError
            A trial is asked or told twice, something is not JSON, or the database refused;
            nothing was written.
        """
        changes: _Changes = {
            "summary": self._dump(summary, "its summary"),
            "status": status,
            "head": self._dump(head, "its definition"),
            "run": run,
        }
        rows = self._rows(records)
        try:
            self._write(rows, changes)
        except StoreError as error:
            again = self._noted(rows) if isinstance(error.__cause__, self._broken_rule) else None
            if again is None:
                raise
            raise StoreError(again) from error
        self._records += len(rows)
        return self._records

    def renew(self) -> None:
        """Extend the lease.

        Raises
        ------
        RunLocked
            The lease was lost.
        """

        def work(cursor: Cursor) -> None:
            cursor.execute(self._sql["renew"], self._key)
            if cursor.rowcount != 1:
                raise self._lost(cursor)

        self._transact(work)

    def release(self) -> None:
        """Give the lease back and close the connection. May be called twice."""
        if self._released:
            return
        try:
            self._transact(lambda cursor: cursor.execute(self._sql["release"], self._key))
        finally:
            self._released = True
            self._link.close()
            self.on_release()

    def _transact(self, work: Callable[[Cursor], _T]) -> _T:
        if self._released:
            raise RunLocked(f"study {self._name!r}: this writer has given its lease back")
        return self._link.transact(work)

    def _write(self, rows: list[_Row], changes: _Changes) -> None:
        """Write one append, unless it is there already and only its answer was lost."""
        again = self._doubtful is not None
        if again and self._doubtful != (rows, changes):
            raise StoreError(
                f"study {self._name!r}: the connection was cut during an append and nobody knows "
                "whether it was kept: append the same again, or open the study again"
            )
        cuts = self._link.cuts

        def work(cursor: Cursor) -> None:
            if self._step(cursor, len(rows), changes, again or self._link.cuts > cuts) and rows:
                cursor.executemany(self._sql["insert"], rows)

        try:
            self._transact(work)
        except BaseException:
            # Also when interrupted: the append stays in doubt.
            self._doubtful = (rows, changes) if again or self._link.cuts > cuts else None
            raise
        self._doubtful = None

    def _step(self, cursor: Cursor, count: int, changes: _Changes, again: bool) -> bool:
        """Take the study's row for this append; false if it was made already."""
        params = {**self._key, **changes, "count": count, "records": self._records}
        cursor.execute(self._sql["step"], params)
        if cursor.rowcount == 1:
            return True
        cursor.execute(self._sql["position"], self._key)
        found = cursor.fetchone()
        if again and found and found[:2] == (self._key["fence"], self._records + count):
            # The first answer was lost with the connection, the append was not.
            return False
        raise self._lost(cursor)

    def _lost(self, cursor: Cursor) -> RunLocked:
        cursor.execute(self._sql["position"], self._key)
        fence, records, token, host, pid = cursor.fetchone() or (None,) * 5
        if fence is None:
            why = "it was deleted"
        elif not token:
            why = "its lease was given back"
        elif fence == self._key["fence"]:
            why = f"its log has {records} records and not {self._records}: open it again"
        else:
            why = f"process {pid} on {host} writes it now"
        return RunLocked(f"study {self._name!r}: this writer has lost the study, {why}")

    def _rows(self, records: Sequence[Entry]) -> list[_Row]:
        study, first = int(self._key["study"]), self._records + 1
        return [
            (study, seq, at, kind, trial, self._body(kind, trial, body))
            for seq, (at, kind, trial, body) in enumerate(records, first)
        ]

    def _body(self, kind: str, trial: int | None, body: Mapping[str, Any]) -> str:
        try:
            return _encoder.encode(dict(body))
        except (TypeError, ValueError) as error:
            what = f"study {self._name!r}: the {kind} of trial {trial}"
            raise StoreError(f"{what} cannot be stored as JSON: {error}") from error

    def _dump(self, value: Mapping[str, Any] | None, what: str) -> str | None:
        return None if value is None else dump_json(value, f"study {self._name!r}: {what}")

    def _noted(self, rows: list[_Row]) -> str | None:
        """Say which of the refused ``rows`` tells or asks a trial again."""
        seen = set()
        for study, _, _, kind, trial, _ in rows:
            if kind not in ("ask", "tell"):
                continue
            if (kind, trial) in seen or self._has(study, kind, trial):
                return (
                    f"study {self._name!r}: {kind} of trial {trial} is in the log already; "
                    f"nothing of this append was kept ({len(rows)} record(s))"
                )
            seen.add((kind, trial))
        return None

    def _has(self, study: int, kind: str, trial: int | None) -> bool:
        def work(cursor: Cursor) -> bool:
            cursor.execute(self._sql["noted"], {"study": study, "kind": kind, "trial": trial})
            return cursor.fetchone() is not None

        return self._transact(work)
