"""What a queue is wanted for: bundles by class, for those who provision pilots."""

from __future__ import annotations

from pandaflow.grid.identity import Actor
from pandaflow.grid.places import COUNTED, ClassDemand, Demand
from pandaflow.grid.pool import queues
from pandaflow.grid.pool.classes import Classes
from pandaflow.grid.pool.people import fits
from pandaflow.grid.pool.queues import places
from pandaflow.grid.pool.session import Session

#: Those with something ready; each count reads an index, and no more of it than is asked for.
_READY = """
    SELECT no, (SELECT count(*) FROM (
        SELECT 1 FROM pool_bundles AS b WHERE b.class = c.no AND b.state = 1 LIMIT :most) AS x)
    FROM pool_classes AS c WHERE vo = :vo AND EXISTS (
        SELECT 1 FROM pool_bundles AS b WHERE b.class = c.no AND b.state = 1)"""
_RUNNING = """
    SELECT class, count(*) FROM pool_bundles
    WHERE state > 1 AND state IN (2, 3) AND due IS NOT NULL AND queue = :queue GROUP BY class"""


def demand(session: Session, classes: Classes, actor: Actor, name: str, now: float) -> Demand:
    """Return the classes of an actor's VO that a queue may run, with counts."""
    actor.require("operator", "production")
    queue = queues.one(session, actor, name, now)
    place = places(session, [name])[name]
    ready = dict(session.rows(_READY, vo=actor.vo, most=COUNTED))
    running = dict(session.rows(_RUNNING, queue=name))
    kinds = classes.get(session, {*ready, *running})
    wanted = [
        ClassDemand(needs=kind.needs, ready=ready.get(no, 0), running=running.get(no, 0))
        for no, kind in sorted(kinds.items())
        if kind.vo == actor.vo and (no in running or fits(place, kind.needs))
    ]
    return Demand(queue=queue, classes=tuple(wanted))
