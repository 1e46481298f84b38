"""Runs that were left with a server and wait for somebody to drive them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pandaflow.core.status import RUN_TERMINAL, RunStatus
from pandaflow.store.schema import requests, runs
from pandaflow.store.statements import NOW

_LIVE = [status.value for status in RunStatus if status not in RUN_TERMINAL]


@dataclass(frozen=True, slots=True)
class ServedRun:
    """A run that anybody with a runner may drive.

    Attributes
    ----------
    id : str
    vo, submitter : str
        Whose it is; both are empty where everybody is trusted.
    ended : bool
        It has ended, and somebody has a wish: to run some of it again, most likely.
    """

    id: str
    vo: str
    submitter: str
    ended: bool


def waiting_runs(
    connection: sa.Connection, vos: Sequence[str] | None, limit: int
) -> list[ServedRun]:
    """Return runs that nobody drives now, whose turn it is first.

    Each submitter has turns of their own: with one run driven, their next comes after the first
    runs of all others. Among those of equal rank the oldest goes first.

    Parameters
    ----------
    connection : sqlalchemy.Connection
    vos : sequence of str, optional
        Only of these VOs.
    limit : int
    """
    found = _with_wishes(connection, vos, limit)
    driven = _driven(connection)
    turn = sa.func.row_number().over(
        partition_by=(runs.c.vo, runs.c.submitter),
        order_by=(sa.case((driven, 0), else_=1), runs.c.no),
    )
    columns = (*_OWN, runs.c.no, driven.label("driven"), turn.label("turn"))
    live = sa.select(*columns).where(runs.c.status.in_(_LIVE), *_served(vos)).subquery()
    query = sa.select(live).where(~live.c.driven).order_by(live.c.turn, live.c.no).limit(limit)
    return [*found, *_runs(connection, query, ended=False)][:limit]


_OWN = (runs.c.id, runs.c.vo, runs.c.submitter)


def _with_wishes(
    connection: sa.Connection, vos: Sequence[str] | None, limit: int
) -> list[ServedRun]:
    """Return runs that have ended and have requests that nobody has answered."""
    asked = sa.select(requests.c.run).where(requests.c.done.is_(None))
    ended = (runs.c.no.in_(asked), runs.c.status.not_in(_LIVE), ~_driven(connection))
    query = sa.select(*_OWN).where(*ended, *_served(vos)).order_by(runs.c.no).limit(limit)
    return _runs(connection, query, ended=True)


def _runs(connection: sa.Connection, query: sa.Select[Any], *, ended: bool) -> list[ServedRun]:
    rows = connection.execute(query)
    return [ServedRun(row.id, row.vo, row.submitter, ended) for row in rows]


def _served(vos: Sequence[str] | None) -> list[sa.ColumnElement[bool] | sa.TextClause]:
    # As the partial index says it: SQLite does not see that "served IS 1" means the same.
    served = sa.text("runs.served")
    return [served] if vos is None else [served, runs.c.vo.in_(vos)]


def _driven(connection: sa.Connection) -> sa.ColumnElement[bool]:
    """Whether somebody holds the lease of a run."""
    now = sa.literal_column(NOW[connection.dialect.name], sa.Double)
    return sa.and_(runs.c.owner_token.is_not(None), runs.c.lease_until > now)
