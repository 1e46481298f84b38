"""Bundles that pilots hold, and writing down what happens to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import Field

from pandaflow.grid.messages import JobResult, Message, Trouble
from pandaflow.grid.pool import accounts
from pandaflow.grid.pool.accounts import Change
from pandaflow.grid.pool.circuit import End
from pandaflow.grid.pool.session import Later, Many, Session, array_of, unnest, updating
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
    *("seq", "heartbeat", "due", "heard", "wish", "why", "start"),
)
#: Columns of :class:`Holding`, for a SELECT.
COLUMNS = ", ".join(_FIELDS)
_STATE = ("state", "seq", "due", "heard", "wish", "why", "start")
_BEAT = updating(pool_bundles, "id", "seq", "heard")
_SAVE = updating(pool_bundles, "id", *_STATE)
# A run's row is locked: its last number stays what it is until all are told.
_TURN = Many(
    f"UPDATE pool_bundles SET {', '.join(f'{name} = ?' for name in _STATE)}, "
    "outcome = ? + (SELECT seq FROM pool_runs WHERE no = pool_bundles.run) WHERE id = ?",
    f"UPDATE pool_bundles AS old SET {', '.join(f'{name} = new.{name}' for name in _STATE)}, "
    f"outcome = new.outcome + r.seq FROM {unnest(pool_bundles, (*_STATE, 'outcome', 'id'))}, "
    f"pool_runs AS r WHERE old.id = new.id AND old.id = ANY({array_of(pool_bundles, 'id')}) "
    "AND r.no = old.run",
    (*_STATE, "outcome", "id"),
)
_TOLD = ("seq", "bundle", "attempt", "kind", "at", "queue", "pilot", "host", "body", "run")
_TELL = Many(
    f"INSERT INTO pool_outcomes ({', '.join(_TOLD)}) "
    f"SELECT seq + {', '.join('?' * 9)}, no FROM pool_runs WHERE no = ?",
    f"INSERT INTO pool_outcomes ({', '.join(_TOLD)}) "
    f"SELECT r.seq + {', '.join(f'new.{name}' for name in _TOLD)} "
    f"FROM {unnest(pool_outcomes, _TOLD)} JOIN pool_runs AS r ON r.no = new.run",
    _TOLD,
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
    wish: str
    why: str
    start: float | None

    @property
    def deadline(self) -> float:
        """When it is lost if nothing is heard; ``due`` may be before, and is not after."""
        patience = self.heartbeat if self.state == RUNNING else self.start
        return self.due if patience is None else self.heard + patience

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


@dataclass(slots=True)
class News:
    """What is to be written down of bundles, which are locked.

    Attributes
    ----------
    beats, changed : dict of int to Holding
        Those of which only was heard, and the others.
    happened : list of Happening
        In order.
    let_go : list of int
        Runs of bundles that were cancelled, and that a pilot has let go of.
    """

    beats: dict[int, Holding] = field(default_factory=dict)
    changed: dict[int, Holding] = field(default_factory=dict)
    happened: list[Happening] = field(default_factory=list)
    let_go: list[int] = field(default_factory=list)

    def ends(self) -> dict[str, list[End]]:
        """Return how bundles ended, by queue."""
        found = dict[str, list[End]]()
        for each in self.happened:
            if each.kind != "started":
                ends = found.setdefault(each.holding.queue, [])
                ends.append(End(each.holding.id, each.spoiled))
        return found


def lock(session: Session, ids: Iterable[int]) -> Later:
    """Lock bundles by id, for :func:`locked`; those that are gone are left out."""
    return session.later(
        f"SELECT {COLUMNS} FROM pool_bundles WHERE id AMONG :ids[bigint] ORDER BY id {{lock}}",
        ids=sorted(set(ids)),
    )


def locked(found: Later) -> dict[int, Holding]:
    """Return what was locked, by id."""
    return {row[0]: Holding(*row) for row in found.rows}


def record(session: Session, news: News, now: float) -> None:
    """Write down bundles that have changed, and what drivers are to hear of them."""
    changes = dict[int, Change]()
    told = [_told(each, changes, now) for each in news.happened]
    for run in news.let_go:
        changes.setdefault(run, Change()).held -= 1
    # Of several outcomes of a bundle its row keeps the last one's number.
    last = {each.holding.id: seq for each, (_, seq) in zip(news.happened, told, strict=True)}
    session.many(_SAVE, [(*_state(h), id) for id, h in news.changed.items() if id not in last])
    beats = news.beats.keys() - news.changed.keys()
    session.many(_BEAT, [(news.beats[id].seq, news.beats[id].heard, id) for id in sorted(beats)])
    if over := [each.holding.id for each in news.happened if each.kind != "started"]:
        drop_work(session, over)
    if changes:
        accounts.lock(session, changes)
        session.many(_TELL, [row for row, _ in told])
        session.many(_TURN, [(*_state(news.changed[id]), seq, id) for id, seq in last.items()])
        accounts.add(session, changes)


def _state(row: Holding) -> tuple[object, ...]:
    start = row.start if row.held else None
    return (row.state, row.seq, row.due, row.heard, row.wish, row.why, start)


def drop_work(session: Session, ids: list[int]) -> None:
    """Forget the work of bundles that nobody will run any more."""
    session.later("DELETE FROM pool_work WHERE id AMONG :ids[bigint]", ids=ids)


def _told(
    happening: Happening, changes: dict[int, Change], now: float
) -> tuple[tuple[object, ...], int]:
    """Return an outcome's row, and its number after those that the run has."""
    each = happening.holding
    change = changes.setdefault(each.run, Change())
    change.seq += 1
    if happening.kind != "started":
        change.held -= 1
    head = (change.seq, each.bundle, each.attempt, happening.kind, now)
    row = (*head, each.queue, each.pilot, each.host, happening.body, each.run)
    return row, change.seq
