"""The jobs of a task, as people see them: those without a row are made up on the way out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa

from pandaflow.core.status import JOB_CODES, JOB_LIVE
from pandaflow.store.schema import COUNTS, OFF_PATH, attempts, bundles, jobs

Row = dict[str, Any]

_ON_BUNDLE = sa.and_(bundles.c.run == jobs.c.run, bundles.c.id == jobs.c.bundle)
_ON_ATTEMPT = sa.and_(
    attempts.c.run == jobs.c.run,
    attempts.c.task == jobs.c.task,
    attempts.c.idx == jobs.c.idx,
    attempts.c.attempt == jobs.c.attempt,
)
_JOB_COLUMNS = (
    jobs.c.idx,
    jobs.c.status,
    jobs.c.attempt,
    jobs.c.reason,
    attempts.c.failure,
    jobs.c.bundle,
    bundles.c.worker,
    bundles.c.executor,
    bundles.c.site,
    sa.func.coalesce(attempts.c.started, bundles.c.started),
    attempts.c.wall,
    attempts.c.cpu,
    attempts.c.max_pss,
)
_JOB_KEYS = (
    *("index", "status", "attempt", "reason", "failure", "bundle", "worker", "executor"),
    *("site", "started", "wall", "cpu", "max_pss"),
)
_NO_ROW = dict.fromkeys(_JOB_KEYS) | {"attempt": 0, "reason": ""}


@dataclass(frozen=True, slots=True)
class JobsOfTask:
    """The jobs of one task, in one state (None: in any)."""

    connection: sa.Connection
    task: sa.Row[Any]
    status: int | None

    def rows(self, index: int | None, begin: int = 0) -> Iterator[Row]:
        """Yield them by index, from ``begin`` on, or the one of ``index``."""
        total = self.task.n if self.status is None else self._count(self.status)
        if index is not None:
            if 0 <= index < self.task.n:
                yield from self._merged(index, index + 1)
        elif self.status is not None and self.status == self.task.initial and not begin:
            yield from islice(self._initial(total), total)
        else:
            # Once all that the task counts are found there is no need to look further.
            yield from islice(self._merged(begin, self.task.n), total)

    def _count(self, status: int) -> int:
        return int(getattr(self.task, COUNTS[status]))

    def _initial(self, total: int) -> Iterator[Row]:
        """Jobs in their first state: mostly those beyond the last that has a row."""
        j = jobs.c
        last = sa.select(sa.func.max(j.idx)).where(j.run == self.task.run, j.task == self.task.id)
        found = self.connection.execute(last).scalar()
        begin = 0 if found is None else found + 1
        if self.task.n - begin < total:
            yield from self._merged(0, begin)
        yield from self._missing(begin, self.task.n)

    def _merged(self, first: int, end: int) -> Iterator[Row]:
        """Rows and, between them, jobs that have none."""
        gaps = self.status in (None, self.task.initial)
        name, expected = self.task.name, first
        for found in self._query(first, end):
            if gaps:
                yield from self._missing(expected, found[0])
                expected = found[0] + 1
            if self.status in (None, found[1]):
                row = dict(zip(_JOB_KEYS, found, strict=True))
                row["status"], row["reason"] = JOB_CODES[found[1]].value, row["reason"] or ""
                yield {"task": name, **row}
        if gaps:
            yield from self._missing(expected, end)

    def _missing(self, first: int, end: int) -> Iterator[Row]:
        same = {"task": self.task.name, **_NO_ROW, "status": JOB_CODES[self.task.initial].value}
        for index in range(first, end):
            yield {**same, "index": index}

    def _query(self, first: int, end: int) -> Iterator[Sequence[Any]]:
        j = jobs.c
        query = sa.select(*_JOB_COLUMNS).select_from(jobs)
        query = query.outerjoin(attempts, _ON_ATTEMPT).outerjoin(bundles, _ON_BUNDLE)
        query = query.where(j.run == self.task.run, j.task == self.task.id).order_by(j.idx)
        query = query.where(self._places(first, end))
        if self.status is not None and self.status != self.task.initial:
            query = query.where(j.status == self.status)
        # Closed also when the caller has seen enough: PostgreSQL keeps a cursor for it.
        with self.connection.execution_options(yield_per=1000).execute(query) as rows:
            for part in rows.partitions():
                yield from part

    def _places(self, first: int, end: int) -> sa.ColumnElement[bool]:
        """Tell the database where jobs in this state can only be."""
        j, b = jobs.c, bundles.c
        if self.status is None or self.status == self.task.initial:
            return j.idx.between(first, end - 1)
        if self.status > OFF_PATH:
            # Planners take the partial index for its condition word for word, if they need
            # nothing else; so it is asked for the indices alone.
            off = jobs.alias("off")
            found = sa.select(off.c.idx).where(sa.text(f"off.status > {OFF_PATH}"))
            found = found.where(off.c.run == self.task.run, off.c.task == self.task.id)
            found = found.where(off.c.status == self.status, off.c.idx.between(first, end - 1))
            return j.idx.in_(found)
        if JOB_CODES[self.status] in JOB_LIVE:
            ends = sa.select(sa.func.min(b.first), sa.func.max(b.last))
            ends = ends.where(b.run == self.task.run, b.task == self.task.id, b.ended.is_(None))
            low, high = self.connection.execute(ends).one()
            if low is not None:
                first, end = max(first, low), min(end, high + 1)
        return j.idx.between(first, end - 1)
