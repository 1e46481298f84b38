"""Breakers of queues in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pandaflow.grid.pool.circuit import Circuit, End, after
from pandaflow.grid.pool.session import Later, Session, updating
from pandaflow.store.pool_tables import pool_queues

_FIELDS = ("state", "reason", "held_until", "holds", "ring", "probe")
_LOOK = f"SELECT name, {', '.join(_FIELDS)} FROM pool_queues WHERE name AMONG :names[text]"
_LOOK_OF = f"""
    SELECT name, {", ".join(_FIELDS)} FROM pool_queues WHERE name IN (
        SELECT queue FROM pool_bundles WHERE id AMONG :ids[bigint])"""
_LOCK = f"{_LOOK} ORDER BY name {{lock}}"
_SAVE = updating(pool_queues, "name", *_FIELDS)


def look(session: Session, names: Iterable[str]) -> Later:
    """Look at the breakers of queues, for :func:`seen`."""
    return session.later(_LOOK, names=sorted(set(names)))


def look_of(session: Session, bundles: Iterable[int]) -> Later:
    """Look at the breakers of the queues that have bundles, for :func:`seen`."""
    return session.later(_LOOK_OF, ids=sorted(bundles))


def seen(found: Later) -> dict[str, Circuit]:
    """Return breakers by name of their queues; those that are gone are left out."""
    return {name: Circuit(*fields) for name, *fields in found.rows}


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


def changing(
    breakers: Mapping[str, Circuit], ends: Mapping[str, Sequence[End]], now: float
) -> list[str]:
    """Return the queues whose breakers change by how bundles ended there.

    One where all goes well stays as it is: then nobody waits for its row.
    """
    return [
        name
        for name, circuit in breakers.items()
        if name in ends and after(circuit, ends[name], now) != circuit
    ]


def count(
    session: Session, names: Sequence[str], ends: Mapping[str, Sequence[End]], now: float
) -> None:
    """Count how bundles ended at some queues."""
    locked = lock(session, names)
    save(session, {name: after(each, ends[name], now) for name, each in locked.items()})
