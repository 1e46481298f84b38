"""Queues: what people say of them, and their state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pandaflow.core.brokerage import Site
from pandaflow.core.errors import WorkflowError
from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.places import Queue, QueueBody
from pandaflow.grid.pool import circuits
from pandaflow.grid.pool.circuit import Circuit
from pandaflow.grid.pool.errors import NotThere
from pandaflow.grid.pool.pilots import ALIVE
from pandaflow.grid.pool.session import Later, Session

_COLUMNS = "name, body, state, reason, held_until, holds, ring, probe"
_RUNNING = """
    SELECT queue, count(*) FROM pool_bundles WHERE start IS NOT NULL GROUP BY queue"""


@dataclass(slots=True)
class Place:
    """A queue as the pool uses it; ``probed``: its probe is given out in this transaction."""

    name: str
    body: QueueBody
    circuit: Circuit
    probed: bool = False

    def serves(self, vo: str) -> bool:
        """Tell whether it runs bundles of a VO."""
        return not self.body.vos or vo in self.body.vos

    def site(self) -> Site:
        """Return it as brokerage knows sites."""
        return _site(self.name, self.body)


def places(session: Session, names: Iterable[str] | None = None) -> dict[str, Place]:
    """Return queues by name; None: all."""
    return seen(look(session, names))


def look(session: Session, names: Iterable[str] | None = None) -> Later:
    """Look at queues, for :func:`seen`."""
    if names is None:
        return session.later(f"SELECT {_COLUMNS} FROM pool_queues ORDER BY name")
    return session.later(
        f"SELECT {_COLUMNS} FROM pool_queues WHERE name AMONG :names[text]", names=sorted(names)
    )


def seen(found: Later) -> dict[str, Place]:
    """Return queues by name."""
    return {name: Place(name, _body(body), Circuit(*fields)) for name, body, *fields in found.rows}


@lru_cache(maxsize=1000)
def _body(text: str) -> QueueBody:
    # Each batch of questions reads the same few; a body is never changed.
    return QueueBody.model_validate_json(text)


def _site(name: str, body: QueueBody) -> Site:
    fields: dict[str, Any] = dict(body.site)
    try:
        return Site(name, **fields)
    except TypeError as error:
        known = ", ".join(sorted(set(Site.__slots__) - {"name"}))
        raise WorkflowError(f"queue {name!r}: a site has {known} ({error})") from None


# --- looking ----------------------------------------------------------------------------


def listed(session: Session, actor: Actor, now: float) -> list[Queue]:
    """Return the queues that an actor may see."""
    seen = [place for place in places(session).values() if place.serves(actor.vo)]
    running = dict(session.rows(_RUNNING))
    heard = session.rows("SELECT queue, heard FROM pool_pilots")
    return [_told(place, running, heard, now) for place in seen]


def one(session: Session, actor: Actor, name: str, now: float) -> Queue:
    """Return a queue."""
    for queue in listed(session, actor, now):
        if queue.name == name:
            return queue
    raise _missing(name)


def _told(place: Place, running: dict[str, int], heard: list[tuple[Any, ...]], now: float) -> Queue:
    patience = max(ALIVE, place.body.heartbeat)
    circuit = place.circuit
    return Queue(
        **dict(place.body),
        name=place.name,
        state=circuit.state,
        reason=circuit.reason,
        held_until=circuit.held_until,
        pilots=sum(queue == place.name and now - at <= patience for queue, at in heard),
        running=running.get(place.name, 0),
    )


def _missing(name: str) -> NotThere:
    return NotThere(f"there is no queue {name!r}")


# --- changing ---------------------------------------------------------------------------


def put(session: Session, actor: Actor, name: str, body: QueueBody, now: float) -> None:
    """Make or change a queue."""
    actor.require("operator")
    old = places(session, [name]).get(name)
    if (old and not old.serves(actor.vo)) or (body.vos and actor.vo not in body.vos):
        raise Forbidden(f"queue {name!r} is not one of VO {actor.vo!r}, for which you speak")
    _site(name, body)
    session.run(
        "INSERT INTO pool_queues (name, body, changed) VALUES (:name, :body, :now) "
        "ON CONFLICT (name) DO UPDATE SET body = excluded.body, changed = excluded.changed",
        name=name,
        body=body.model_dump_json(),
        now=now,
    )


def delete(session: Session, actor: Actor, name: str) -> None:
    """Delete a queue."""
    _own(session, actor, name)
    session.run("DELETE FROM pool_queues WHERE name = :name", name=name)


def close(session: Session, actor: Actor, name: str, reason: str, now: float) -> None:
    """Give nothing out there any more."""
    _own(session, actor, name)
    words = reason or f"closed by {actor.name or actor.subject}"
    _set(session, name, Circuit("closed", words), now)


def open_again(session: Session, actor: Actor, name: str, now: float) -> None:
    """Give out bundles there again."""
    _own(session, actor, name)
    _set(session, name, Circuit(), now)


def _own(session: Session, actor: Actor, name: str) -> None:
    place = places(session, [name]).get(name)
    if place is None or not place.serves(actor.vo):
        raise _missing(name)
    actor.require("operator")


def _set(session: Session, name: str, circuit: Circuit, now: float) -> None:
    if circuits.lock(session, [name]):
        circuits.save(session, {name: replace(circuit)})
        session.run("UPDATE pool_queues SET changed = :now WHERE name = :name", now=now, name=name)
