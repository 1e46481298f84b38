"""What people and metrics ask: runs, bundles, pilots, counts, and why bundles wait."""

from __future__ import annotations

from typing import Any

from pandaflow.core.brokerage import misfit
from pandaflow.core.model import Resources
from pandaflow.grid.identity import Actor
from pandaflow.grid.messages import Needs, PilotCommand
from pandaflow.grid.pool import runs as rows_of_runs
from pandaflow.grid.pool.errors import NotThere
from pandaflow.grid.pool.holdings import STATES
from pandaflow.grid.pool.pilots import ALIVE
from pandaflow.grid.pool.queues import Place, places
from pandaflow.grid.pool.runs import Run
from pandaflow.grid.pool.session import Session

_CODES = {name: code for code, name in STATES.items()}
_RUNS = """
    SELECT run, owner, name, created, ready, held, seq - acked FROM pool_runs
    WHERE vo = :vo AND NOT gone ORDER BY no DESC"""
_BUNDLES = """
    SELECT id, bundle, attempt, state, -rank, queue, pilot, host, heard, why,
        outcome IS NOT NULL AND outcome > :acked
    FROM pool_bundles
    WHERE run = :run AND state AMONG :states[smallint]{} ORDER BY bundle, attempt LIMIT :limit"""
#: Of those that pilots hold: by an index of their own.
_HELD_ONES, _ANY_ONES = _BUNDLES.format(" AND start IS NOT NULL"), _BUNDLES.format("")
_PILOTS = """
    SELECT name, queue, host, since, heard, free, command FROM pool_pilots
    WHERE vo = :vo AND (queue = :queue OR :queue = '') ORDER BY heard DESC, name"""
_HELD = """
    SELECT pilot, count(*) FROM pool_bundles WHERE start IS NOT NULL GROUP BY pilot"""


def runs(session: Session, actor: Actor) -> list[dict[str, Any]]:
    """Return the runs of an actor's VO."""
    names = ("run", "owner", "name", "created", "ready", "held", "unread")
    return [dict(zip(names, row, strict=True)) for row in session.rows(_RUNS, vo=actor.vo)]


def bundles(
    session: Session, actor: Actor, run: str, state: str | None, limit: int
) -> list[dict[str, Any]]:
    """Return bundles of a run."""
    whose = rows_of_runs.find(session, actor, run)
    states = [_CODES[state]] if state else list(STATES)
    names = (
        *("id", "bundle", "attempt", "state", "priority"),
        *("queue", "pilot", "host", "heard", "why", "unread"),
    )
    query = _HELD_ONES if state in ("sent", "running") else _ANY_ONES
    about = {"run": whose.no, "acked": whose.acked, "states": states, "limit": limit}
    told = [dict(zip(names, row, strict=True)) for row in session.rows(query, **about)]
    return [
        {**each, "state": STATES[each["state"]], "unread": bool(each["unread"])} for each in told
    ]


def pilots(session: Session, actor: Actor, now: float, queue: str = "") -> list[dict[str, Any]]:
    """Return the pilots of an actor's VO, of one queue or of all."""
    names = ("pilot", "queue", "host", "since", "heard", "free", "command")
    patience = {name: place.body.heartbeat for name, place in places(session).items()}
    held = dict(session.rows(_HELD))
    told = []
    for row in session.rows(_PILOTS, vo=actor.vo, queue=queue):
        each = dict(zip(names, row, strict=True))
        ago = max(0.0, now - each["heard"])
        alive = ago <= max(ALIVE, patience.get(each["queue"], ALIVE))
        told.append({**each, "ago": ago, "running": held.get(each["pilot"], 0), "alive": alive})
    return told


def command(session: Session, actor: Actor, name: str, command: PilotCommand) -> None:
    """Tell a pilot to drain or to stop."""
    row = session.one("SELECT vo FROM pool_pilots WHERE name = :name", name=name)
    if row is None or not actor.may_see(row[0]):
        raise NotThere(f"there is no pilot {name!r}")
    actor.require("operator")
    session.run(
        "UPDATE pool_pilots SET command = :command WHERE name = :name", command=command, name=name
    )


def load(session: Session) -> dict[str, int]:
    """Return counts over all VOs."""
    names = ("runs", "ready", "held", "unread")
    sums = session.rows(
        "SELECT count(*), coalesce(sum(ready), 0), coalesce(sum(held), 0), "
        "coalesce(sum(seq - acked), 0) FROM pool_runs WHERE NOT gone"
    )
    counts = {name: int(value) for name, value in zip(names, sums[0], strict=True)}
    counts["pilots"] = int(session.rows("SELECT count(*) FROM pool_pilots")[0][0])
    states = dict(session.rows("SELECT state, count(*) FROM pool_queues GROUP BY state"))
    queues = {f"queues_{s}": states.get(s, 0) for s in ("open", "held", "probing", "closed")}
    return counts | queues


def free_cores(session: Session, vo: str, now: float) -> int:
    """Return the cores that pilots of a VO, heard of lately, have free."""
    row = session.one(
        "SELECT coalesce(sum(free), 0) FROM pool_pilots "
        "WHERE vo = :vo AND heard >= :since AND command = ''",
        vo=vo,
        since=now - ALIVE,
    )
    return int(row[0]) if row else 0


# --- why bundles wait -------------------------------------------------------------------


def waiting(session: Session, run: Run, now: float) -> str:
    """Say why the bundles of a run wait, none of which a pilot has; empty: they do not."""
    if not run.ready or run.held:
        return ""
    # One stands for all: the latest, which is the likeliest to wait.
    row = session.one("SELECT needs FROM pool_classes WHERE no = :no", no=run.latest)
    if row is None:
        return ""
    needs = Needs.model_validate_json(row[0])
    fit = [each for each in places(session).values() if each.serves(run.vo) and fits(each, needs)]
    if not fit:
        return "no queue is left that could run them"
    shut = [each for each in fit if each.circuit.state != "open"]
    if len(shut) == len(fit):
        said = [f"queue {p.name} is {p.circuit.state}: {p.circuit.reason}" for p in shut]
        return "; ".join(said[:10])
    return _no_pilot(session, run.vo, [each.name for each in fit if each not in shut], needs, now)


def fits(place: Place, needs: Needs) -> bool:
    """Tell whether the nodes of a queue could run bundles of a class."""
    asked = Resources(
        cores=needs.cores,
        memory=needs.memory,
        walltime=needs.walltime,
        disk=needs.disk,
        gpus=needs.gpus,
    )
    return needs.queue in ("", place.name) and not misfit(asked, place.site())


def _no_pilot(session: Session, vo: str, names: list[str], needs: Needs, now: float) -> str:
    row = session.one(
        "SELECT count(*) FROM pool_pilots "
        "WHERE vo = :vo AND heard >= :since AND queue AMONG :names[text]",
        vo=vo,
        since=now - ALIVE,
        names=names,
    )
    said = f"queue{'s' if len(names) > 1 else ''} {', '.join(names[:10])}"
    if not row or not row[0]:
        return f"no pilot has asked for work lately at {said}"
    asked = _asked(needs)
    return (
        f"{row[0]} pilot(s) at {said}: they are busy, or have not what the bundles need"
        f"{': ' if asked else ''}{asked}"
    )


def _asked(needs: Needs) -> str:
    """Return what a pilot must have, besides room, to run bundles of a class."""
    code = f" with PandaFlow {needs.pandaflow}" if needs.pandaflow else ""
    words = [
        f"Python {needs.python}{code}" if needs.python else "",
        f"a container runtime for {needs.container}" if needs.container else "",
        f"the tags {', '.join(needs.tags)}" if needs.tags else "",
    ]
    return ", ".join(word for word in words if word)
