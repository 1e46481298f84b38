"""Rows of pilots: who they are, when they were heard of, what they were told to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pandaflow.grid.pool.session import Session, inserting, updating
from pandaflow.store.pool_tables import pool_pilots

#: Seconds after which it is worth a write that a pilot was heard of again.
FRESH = 10.0
#: Seconds after which one that was not heard of is taken to be gone, at queues of short beats.
ALIVE = 60.0

_LOOK = """
    SELECT name, vo, subject, queue, host, free, heard, command, gone FROM pool_pilots
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
_LEAVE = updating(pool_pilots, "name", "heard", "free", "gone")


@dataclass(frozen=True, slots=True)
class Pilot:
    """A pilot's row; ``free``: cores after its last question, ``gone``: it said goodbye."""

    name: str
    vo: str
    subject: str
    queue: str
    host: str
    free: int
    heard: float
    command: Literal["", "drain", "stop"] = ""
    gone: bool = False


def look(session: Session, names: Iterable[str]) -> dict[str, Pilot]:
    """Return the rows of pilots; of new ones there is none."""
    found = session.rows(_LOOK, names=sorted(set(names)))
    return {row[0]: Pilot(*row) for row in found}


def is_news(pilot: Pilot | None, now: float, free: int) -> bool:
    """Tell whether a question is worth a write."""
    return pilot is None or pilot.free != free or now - pilot.heard >= FRESH


def save(session: Session, seen: Iterable[Pilot], now: float) -> None:
    """Write down pilots that have asked for work."""
    rows = [(p.name, p.vo, p.subject, p.queue, p.host, p.free, now, p.heard) for p in seen]
    session.many(_SAVE, sorted(rows))


def hear(session: Session, seen: Iterable[Pilot], now: float) -> None:
    """Note that pilots were heard of."""
    late = [pilot.name for pilot in seen if now - pilot.heard >= FRESH]
    if late:
        locked = session.rows(_LOCK, names=sorted(late))
        session.many(_HEARD, [(now, name) for (name,) in locked])


def leave(session: Session, seen: Iterable[Pilot], now: float) -> None:
    """Note that pilots have said goodbye; their tokens are worth nothing any more."""
    names = sorted({pilot.name for pilot in seen})
    if names:
        locked = session.rows(_LOCK, names=names)
        session.many(_LEAVE, [(now, 0, True, name) for (name,) in locked])
        session.run("DELETE FROM pool_tokens WHERE pilot AMONG :names[text]", names=names)
