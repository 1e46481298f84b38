"""Bundles that pilots hold, and writing down what happens to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field

from pandaflow.grid.messages import JobResult, Message, Trouble
from pandaflow.grid.pool import accounts, circuits
from pandaflow.grid.pool.accounts import Account
from pandaflow.grid.pool.circuit import End
from pandaflow.grid.pool.session import Session, inserting, updating
from pandaflow.store.pool_tables import (
    CANCELLED,
    ENDED,
    LOST,
    READY,
    RUNNING,
    SENT,
    pool_bundles,
    pool_outcomes,
)

#: Names of the states.
STATES = {
    READY: "ready",
    SENT: "sent",
    RUNNING: "running",
    ENDED: "ended",
    LOST: "lost",
    CANCELLED: "cancelled",
}
#: Seconds for which a bundle's row stays when it is over: a pilot whose report was taken but did
#: not get the answer sends it again, and is to hear that all is well.
KEPT = 600.0
#: The wish for a bundle that was cancelled while a pilot has it: still counted as held.
LET_GO = "let go"

_FIELDS = (
    *("id", "run", "bundle", "attempt", "class", "state", "queue", "pilot", "host", "lease"),
    *("seq", "heartbeat", "due", "heard", "outcome", "wish", "why", "soft"),
)
#: Columns of :class:`Holding`, for a SELECT.
COLUMNS = ", ".join(_FIELDS)
_SAVE = updating(pool_bundles, "id", *("state", "seq", "due", "heard", "outcome", "wish", "why"))
_TELL = inserting(
    pool_outcomes,
    *("run", "seq", "bundle", "attempt", "kind", "at", "queue", "pilot", "host", "body"),
)


class Body(Message):
    """What an outcome carries besides its columns, as it is kept."""

    reply: bytes | None = None
    results: tuple[JobResult, ...] = ()
    error: Trouble | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


@dataclass(slots=True)
class Holding:
    """A bundle's row, locked until the end of the transaction."""

    id: int
    run: int
    bundle: int
    attempt: int
    kind: int
    state: int
    queue: str
    pilot: str
    host: str
    lease: str | None
    seq: int
    heartbeat: float
    due: float
    heard: float
    outcome: int | None
    wish: str
    why: str
    soft: bool

    @property
    def held(self) -> bool:
        """Whether a pilot has it."""
        return self.state in (SENT, RUNNING)

    @property
    def let_go(self) -> bool:
        """Whether it was cancelled, and its pilot may still run it."""
        return self.state == CANCELLED and self.wish == LET_GO


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that its run's driver is to hear of a bundle.

    Attributes
    ----------
    holding : Holding
    kind : {'started', 'ended', 'lost'}
    body : str
        A :class:`Body` as JSON.
    spoiled : str
        How the site spoiled it; empty: it did not.
    """

    holding: Holding
    kind: str
    body: str = "{}"
    spoiled: str = ""


def lock(session: Session, ids: Iterable[int]) -> dict[int, Holding]:
    """Lock bundles by id; those that are gone are left out."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    rows = session.rows(
        f"SELECT {COLUMNS} FROM pool_bundles WHERE id AMONG :ids[bigint] ORDER BY id {{lock}}",
        ids=wanted,
    )
    return {row[0]: Holding(*row) for row in rows}


def record(
    session: Session,
    changed: Sequence[Holding],
    happened: Sequence[Happening],
    now: float,
    let_go: Sequence[int] = (),
) -> None:
    """Write down bundles that have changed, and what drivers are to hear of them, in order.

    ``let_go``: the runs of bundles that were cancelled, and that a pilot has let go of.
    """
    runs = accounts.lock(session, [*(each.holding.run for each in happened), *let_go])
    for run in let_go:
        if run in runs:
            runs[run].held -= 1
    told = [_number(each, runs[each.holding.run], now) for each in happened]
    session.many(
        _SAVE, [(h.state, h.seq, h.due, h.heard, h.outcome, h.wish, h.why, h.id) for h in changed]
    )
    session.many(_TELL, told)
    accounts.save(session, runs.values())
    over = [each for each in happened if each.kind != "started"]
    if over:
        drop_work(session, [each.holding.id for each in over])
        _count(session, over, now)


def drop_work(session: Session, ids: list[int]) -> None:
    """Forget the work of bundles that nobody will run any more."""
    session.run("DELETE FROM pool_work WHERE id AMONG :ids[bigint]", ids=ids)


def _number(happening: Happening, run: Account, now: float) -> tuple[object, ...]:
    """Give something that happened its number in the run; return its row."""
    each = happening.holding
    run.seq += 1
    each.outcome = run.seq
    if happening.kind != "started":
        run.held -= 1
    head = (each.run, run.seq, each.bundle, each.attempt, happening.kind, now)
    return (*head, each.queue, each.pilot, each.host, happening.body)


def _count(session: Session, over: Iterable[Happening], now: float) -> None:
    ends = dict[str, list[End]]()
    for each in over:
        ends.setdefault(each.holding.queue, []).append(End(each.holding.id, each.spoiled))
    circuits.count(session, ends, now)
