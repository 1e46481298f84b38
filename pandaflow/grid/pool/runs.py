"""Runs: whose they are, and who may see and change them."""

from __future__ import annotations

from dataclasses import dataclass

from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.pool.errors import NotThere
from pandaflow.grid.pool.session import Session

_FIND = """
    SELECT no, run, vo, owner, seq, acked, ready, held, latest FROM pool_runs
    WHERE run = :run AND NOT gone"""


@dataclass(frozen=True, slots=True)
class Run:
    """A run's row."""

    no: int
    run: str
    vo: str
    owner: str
    seq: int
    acked: int
    ready: int
    held: int
    latest: int | None


def find(session: Session, actor: Actor, run: str, *, lock: bool = False) -> Run:
    """Return a run that an actor may see.

    Raises
    ------
    NotThere
        There is none, or it is not theirs to see: both look alike.
    """
    row = session.one(f"{_FIND} {{lock}}" if lock else _FIND, run=run)
    found = Run(*row) if row else None
    if found is None or not actor.may_see(found.vo):
        raise NotThere(f"there is no run {run!r} in the pool")
    return found


def own(session: Session, actor: Actor, run: str, *, lock: bool = False) -> Run:
    """Return a run that an actor may change.

    Raises
    ------
    NotThere, Forbidden
    """
    found = find(session, actor, run, lock=lock)
    if not actor.may_change(found.vo, found.owner):
        raise Forbidden(
            f"run {run!r} is another user's: {actor.name or actor.subject} needs the role "
            "production or operator"
        )
    return found
