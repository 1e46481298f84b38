"""Rows of pilots: who they are, when they were heard of, what they were told to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pandaflow.grid.pool.session import Later, Session, inserting, updating
from pandaflow.store.pool_tables import pool_pilots

#: Seconds after which it is worth a write that a pilot was heard of again.
FRESH = 10.0
#: Seconds after which one that was not heard of is taken to be gone, at queues of short beats.
ALIVE = 60.0

_LOOK = """
    SELECT name, vo, subject, queue, host, free, heard, command FROM pool_pilots
    WHERE name AMONG :names[text]"""
_LOCK = "SELECT name FROM pool_pilots WHERE name AMONG :names[text] ORDER BY name {lock}"
_SAVE = inserting(
    pool_pilots,
    *("name", "vo", "subject", "queue", "host", "free", "since", "heard"),
    conflict="ON CONFLICT (name) DO UPDATE SET queue = excluded.queue, host = excluded.host, "
    "free = excluded.free, heard = excluded.heard "
    "WHERE pool_pilots.vo = excluded.vo AND pool_pilots.subject = excluded.subject",
)
_HEARD = updating(pool_pilots, "name", "heard")


@dataclass(frozen=True, slots=True)
class Pilot:
    """A pilot's row; ``free``: cores after its last question."""

    name: str
    vo: str
    subject: str
    queue: str
    host: str
    free: int
    heard: float
    command: Literal["", "drain", "stop"] = ""


def look(session: Session, names: Iterable[str]) -> Later:
    """Look at the rows of pilots, for :func:`seen`."""
    return session.later(_LOOK, names=sorted(set(names)))


def seen(found: Later) -> dict[str, Pilot]:
    """Return pilots by name; of new ones there is no row."""
    return {row[0]: Pilot(*row) for row in found.rows}


def is_news(pilot: Pilot | None, now: Pilot) -> bool:
    """Tell whether what a pilot says of itself now is worth a write."""
    if pilot is None or now.heard - pilot.heard >= FRESH:
        return True
    return (pilot.free, pilot.queue, pilot.host) != (now.free, now.queue, now.host)


def save(session: Session, asking: Iterable[Pilot]) -> None:
    """Write down pilots that have asked for work."""
    rows = [(p.name, p.vo, p.subject, p.queue, p.host, p.free, p.heard, p.heard) for p in asking]
    session.many(_SAVE, sorted(rows))


def hear(session: Session, telling: Iterable[Pilot], now: float) -> None:
    """Note that pilots were heard of."""
    late = sorted({pilot.name for pilot in telling if now - pilot.heard >= FRESH})
    if late:
        session.later(_LOCK, names=late)
        session.many(_HEARD, [(now, name) for name in late])
