"""What a run counts in its row: its bundles that are ready and held, and its outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pandaflow.grid.pool.session import Later, Session, adding
from pandaflow.store.pool_tables import pool_runs

_LOCK = "SELECT no, run FROM pool_runs WHERE no AMONG :nos[bigint] ORDER BY no {lock}"
_ADD = adding(pool_runs, "no", "seq", "ready", "held")


@dataclass(slots=True)
class Change:
    """What is added to a run's numbers; ``seq``: outcomes."""

    seq: int = 0
    ready: int = 0
    held: int = 0


def lock(session: Session, numbers: Iterable[int]) -> Later:
    """Lock the rows of runs until the end of the transaction; gives numbers and names."""
    return session.later(_LOCK, nos=sorted(set(numbers)))


def add(session: Session, changes: Mapping[int, Change]) -> None:
    """Add to the numbers of runs, whose rows are locked."""
    session.many(_ADD, [(c.seq, c.ready, c.held, no) for no, c in sorted(changes.items())])
