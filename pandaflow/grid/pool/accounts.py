"""What a run counts in its row: its bundles that are ready and held, and its outcomes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pandaflow.grid.pool.session import Session, updating
from pandaflow.store.pool_tables import pool_runs

_LOCK = (
    "SELECT no, run, seq, ready, held FROM pool_runs WHERE no AMONG :nos[bigint] ORDER BY no {lock}"
)
_SAVE = updating(pool_runs, "no", "seq", "ready", "held")


@dataclass(slots=True)
class Account:
    """A run's numbers, locked until the end of the transaction; ``seq``: of its last outcome."""

    no: int
    run: str
    seq: int
    ready: int
    held: int


def lock(session: Session, numbers: Iterable[int]) -> dict[int, Account]:
    """Lock the rows of runs."""
    nos = sorted(set(numbers))
    return {row[0]: Account(*row) for row in session.rows(_LOCK, nos=nos)} if nos else {}


def save(session: Session, accounts: Iterable[Account]) -> None:
    """Write them down."""
    session.many(_SAVE, [(each.seq, each.ready, each.held, each.no) for each in accounts])
