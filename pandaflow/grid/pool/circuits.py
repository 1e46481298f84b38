"""Breakers of queues in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pandaflow.grid.pool.circuit import Circuit, End, after
from pandaflow.grid.pool.session import Session, updating
from pandaflow.store.pool_tables import pool_queues

_FIELDS = ("state", "reason", "held_until", "holds", "ring", "probe")
_LOOK = f"SELECT name, {', '.join(_FIELDS)} FROM pool_queues WHERE name AMONG :names[text]"
_LOCK = f"{_LOOK} ORDER BY name {{lock}}"
_SAVE = updating(pool_queues, "name", *_FIELDS)


def look(session: Session, names: Iterable[str]) -> dict[str, Circuit]:
    """Return the breakers of queues; those that are gone are left out."""
    rows = session.rows(_LOOK, names=sorted(set(names)))
    return {name: Circuit(*fields) for name, *fields in rows}


def lock(session: Session, names: Iterable[str]) -> dict[str, Circuit]:
    """Return the same, locked until the end of the transaction."""
    rows = session.rows(_LOCK, names=sorted(set(names)))
    return {name: Circuit(*fields) for name, *fields in rows}


def save(session: Session, circuits: Mapping[str, Circuit]) -> None:
    """Write breakers down, which are locked."""
    rows = [
        (c.state, c.reason, c.held_until, c.holds, c.ring, c.probe, name)
        for name, c in circuits.items()
    ]
    session.many(_SAVE, rows)


def count(session: Session, ends: Mapping[str, Sequence[End]], now: float) -> None:
    """Count how bundles ended at queues."""
    # A queue where all goes well stays as it is: then nobody waits for its row.
    changing = [
        name
        for name, circuit in look(session, ends).items()
        if after(circuit, ends[name], now) != circuit
    ]
    if changing:
        locked = lock(session, changing)
        save(session, {name: after(each, ends[name], now) for name, each in locked.items()})
