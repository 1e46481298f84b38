"""Tokens of pilots: what a long-lived secret is changed for once, so that it need not lie on nodes.

A token is a random word. The store has only its SHA-256, so that whoever reads the store can use
none; a word of 256 random bits needs no salt. It is good for one pilot at one queue, and for what
pilots ask only. Renewed it may be for some days, counted from the proof on which the first was
made. Goodbyes, the policy's deny list and time end it.
"""

from __future__ import annotations

from hashlib import sha256
from secrets import token_urlsafe

from pandaflow.grid.identity import Actor, Bound, Forbidden
from pandaflow.grid.messages import PilotToken
from pandaflow.grid.pool import pilots
from pandaflow.grid.pool.queues import missing, places
from pandaflow.grid.pool.session import Session

#: What tokens begin with: they are known from afar, also by those who look for leaked ones.
PREFIX = "pfpilot_"
#: Seconds for which a token is good, and for which it may be renewed.
LIFE, RENEWED = 6 * 3_600.0, 7 * 86_400.0
#: Seconds for which an older one is still good: the answer with the new one may have been lost.
OVERLAP = 600.0
#: Tokens of a pilot at once.
_MOST = 10

_ADD = """
    INSERT INTO pool_tokens (digest, pilot, queue, vo, subject, name, expires, until)
    VALUES (:digest, :pilot, :queue, :vo, :subject, :name, :expires, :until)"""
_OLDER = """
    UPDATE pool_tokens SET expires = :soon
    WHERE pilot = :pilot AND vo = :vo AND subject = :subject AND expires > :soon"""
_SURPLUS = """
    DELETE FROM pool_tokens WHERE pilot = :pilot AND vo = :vo AND subject = :subject
    AND digest NOT IN (SELECT digest FROM pool_tokens WHERE pilot = :pilot
        AND vo = :vo AND subject = :subject ORDER BY expires DESC, digest LIMIT :most)"""


def digest(token: str) -> str:
    """Return what is kept of a token."""
    return sha256(token.encode()).hexdigest()


def issue(session: Session, actor: Actor, pilot: str, queue: str, now: float) -> PilotToken:
    """Make a token for a pilot; see :meth:`pandaflow.grid.pool.Pool.issue_token`."""
    until = _until(session, actor, pilot, queue, now)
    whose = {"pilot": pilot, "vo": actor.vo, "subject": actor.subject}
    session.run(_OLDER, soon=now + OVERLAP, **whose)
    session.run(_SURPLUS, most=_MOST - 1, **whose)
    token, expires = PREFIX + token_urlsafe(32), min(now + LIFE, until)
    session.run(
        _ADD,
        digest=digest(token),
        queue=queue,
        name=actor.name,
        expires=expires,
        until=until,
        **whose,
    )
    return PilotToken(token=token, seconds=expires - now)


def _until(session: Session, actor: Actor, pilot: str, queue: str, now: float) -> float:
    """Return when the last of a pilot's tokens ends; refuse who may have none.

    Raises
    ------
    Forbidden, NotThere
    """
    actor.require("pilot")
    actor.check_bound(pilot, queue)
    place = places(session, [queue]).get(queue)
    if place is None or not place.serves(actor.vo):
        raise missing(session, actor.vo, queue)
    known = pilots.seen(pilots.look(session, [pilot])).get(pilot)
    if known and (known.vo, known.subject) != (actor.vo, actor.subject):
        raise Forbidden(f"the name {pilot!r} is another pilot's: each has its own")
    if known and known.gone:
        raise Forbidden(f"pilot {pilot!r} has said goodbye: a new one takes a name of its own")
    return actor.bound.until if actor.bound else now + RENEWED


def holder(session: Session, digest: str, now: float) -> tuple[Actor, float] | None:
    """Return whose token this is, and when it expires."""
    row = session.one(
        "SELECT subject, name, vo, pilot, queue, until, expires FROM pool_tokens "
        "WHERE digest = :digest AND expires > :now",
        digest=digest,
        now=now,
    )
    if row is None:
        return None
    subject, name, vo, pilot, queue, until, expires = row
    bound = Bound(pilot, queue, until)
    return Actor(subject, name, vo, frozenset({"pilot"}), bound), expires


def purge(session: Session, now: float) -> None:
    """Remove tokens that have expired."""
    session.run("DELETE FROM pool_tokens WHERE expires <= :now", now=now)
