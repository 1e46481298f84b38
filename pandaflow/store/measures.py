"""How attempts ended and what they used: the one table with a row of its own for each job.

Values that differ from job to job go by ``executemany`` with 50 rows a statement: measured on
SQLite at 1.2 us of CPU a row, against 3.3 us with one row a statement. PostgreSQL takes arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate, chain, islice
from typing import Any

from pandaflow.core.commands import BundleFinished
from pandaflow.core.model import Jobs
from pandaflow.store.statements import Cursor

#: Fields of a bundle's report that become columns of ``attempts``, by position in the bundle.
_MEASURES = ("wall", "cpu", "max_pss", "read_bytes", "written_bytes", "disk")


#: Rows in one statement when attempts are written on SQLite.
_ROWS = 50

#: Types of the columns of ``attempts`` whose values differ from job to job, on PostgreSQL.
_ARRAYS = {"idx": "integer", "started": "float8", "wall": "float8", "cpu": "float8"}
_ARRAYS |= {"cached": "smallint"}


class Report:
    """A bundle's measures as columns of ``attempts``, for any of its jobs.

    A bundle runs its jobs one after the other: a job starts when those before it have ended.
    """

    def __init__(self, record: BundleFinished) -> None:
        self._jobs, report, n = record.jobs, record.report, len(record.jobs)
        self._columns: dict[str, Sequence[Any]] = {
            name: values for name in _MEASURES if len(values := getattr(report, name))
        }
        if report.started and len(report.wall):
            self._columns["started"] = list(accumulate(report.wall, initial=report.started))[:n]
        if report.cached:
            cached = set(report.cached)
            self._columns["cached"] = [int(position in cached) for position in range(n)]
        if report.logs:
            logs = [report.logs.get(position, (None, None)) for position in range(n)]
            self._columns["log_offset"] = [log[0] for log in logs]
            self._columns["log_length"] = [log[1] for log in logs]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {job: position for position, job in enumerate(self._jobs)}

    def columns(self, wanted: Jobs) -> dict[str, Sequence[Any]]:
        """Return the columns, cut down to ``wanted``; jobs of other bundles have none."""
        if wanted == self._jobs:
            return {"idx": wanted, **self._columns}
        known = self._places
        if not all(job in known for job in wanted):
            return {"idx": wanted}
        places = [known[job] for job in wanted]
        cut = {name: [values[p] for p in places] for name, values in self._columns.items()}
        return {"idx": wanted, **cut}


def insert_attempts(
    cursor: Cursor,
    dialect: str,
    common: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any]],
) -> None:
    """Append rows to ``attempts``.

    Parameters
    ----------
    cursor : Cursor
    dialect : {'sqlite', 'postgresql'}
    common : mapping of str to value
        Columns that are the same in all rows.
    columns : mapping of str to sequence
        Columns that differ, all of one length; ``idx`` among them.
    """
    if dialect == "postgresql":
        arrays = {f"_{name}": list(values) for name, values in columns.items()}
        cursor.execute(_unnest(tuple(common), tuple(columns)), {**common, **arrays})
        return
    head = tuple(common.values())
    n, names = len(columns["idx"]), (tuple(common), tuple(columns))
    rows = zip(*columns.values(), strict=True)
    flat = chain.from_iterable(rows)
    whole = n // _ROWS
    if whole:
        # Many rows a statement, at C speed: cut the flat stream of values into equal tuples.
        cuts = islice(zip(*[flat] * (len(columns) * _ROWS), strict=False), whole)
        cursor.executemany(_values(*names, _ROWS), map(head.__add__, cuts))
    rest = n - whole * _ROWS
    if rest:
        cursor.execute(_values(*names, rest), (*head, *flat))


@cache
def _values(common: tuple[str, ...], columns: tuple[str, ...], rows: int) -> str:
    """INSERT with numbered marks: the common ones are bound once for all rows."""
    shared = ", ".join(f"?{k + 1}" for k in range(len(common)))
    marks = [f"?{k + 1}" for k in range(len(common), len(common) + rows * len(columns))]
    cuts = [marks[k : k + len(columns)] for k in range(0, len(marks), len(columns))]
    values = ", ".join(f"({shared}, {', '.join(cut)})" for cut in cuts)
    return f"INSERT INTO attempts ({', '.join((*common, *columns))}) VALUES {values}"


@cache
def _unnest(common: tuple[str, ...], columns: tuple[str, ...]) -> str:
    shared = ", ".join(f"%({name})s" for name in common)
    arrays = ", ".join(f"CAST(%(_{name})s AS {_ARRAYS.get(name, 'bigint')}[])" for name in columns)
    names = ", ".join((*common, *columns))
    return f"INSERT INTO attempts ({names}) SELECT {shared}, u.* FROM unnest({arrays}) AS u"
