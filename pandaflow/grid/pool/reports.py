"""Pilots report: what they say of a bundle counts if they hold it, and not if it comes late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest

from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.messages import (
    BundleCommand,
    PilotCommand,
    PilotUpdate,
    Report,
    Trouble,
    Updated,
    Verdict,
)
from pandaflow.grid.pool import circuits, holdings, logs, pilots
from pandaflow.grid.pool.circuit import Circuit, spoiled
from pandaflow.grid.pool.classes import Classes
from pandaflow.grid.pool.holdings import KEPT, STATES, Body, Happening, Holding, News
from pandaflow.grid.pool.leasing import digest
from pandaflow.grid.pool.matching import Kind
from pandaflow.grid.pool.pilots import Pilot
from pandaflow.grid.pool.session import Session
from pandaflow.store.pool_tables import CANCELLED, ENDED, LOST, RUNNING, SENT

_OVER = {"ended": ENDED, "lost": LOST}
_BODY = set(Body.model_fields)


@dataclass(slots=True)
class _Desk:
    """What a batch of reports is judged by, and what comes of it."""

    rows: Mapping[int, Holding]
    kinds: Mapping[int, Kind]
    now: float
    news: News = field(default_factory=News)
    tails: list[tuple[Holding, str]] = field(default_factory=list)


def update(
    session: Session, classes: Classes, told: Sequence[tuple[Actor, PilotUpdate]], now: float
) -> list[Updated]:
    """Take the reports of pilots; see :meth:`pandaflow.grid.pool.Pool.update`."""
    final = [each.id for _, update in told for each in update.reports if each.state != "running"]
    with session.together():
        looked = pilots.look(session, [each.pilot for _, each in told])
        held = holdings.lock(session, [one.id for _, each in told for one in each.reports])
        breakers = circuits.look_of(session, final) if final else None
    known, rows = pilots.seen(looked), holdings.locked(held)
    desk = _Desk(rows, classes.get(session, [row.kind for row in rows.values()]), now)
    answers = [_answer(desk, actor, each, known.get(each.pilot)) for actor, each in told]
    own = [known[each.pilot] for actor, each in told if _is_own(actor, known.get(each.pilot))]
    _write(session, desk, own, circuits.seen(breakers) if breakers else {})
    return answers


def _write(
    session: Session, desk: _Desk, own: Sequence[Pilot], breakers: Mapping[str, Circuit]
) -> None:
    """Write down what comes of a batch: bundles, pilots, runs and queues, in this order."""
    ends = desk.news.ends()
    changing = circuits.changing(breakers, ends, desk.now)
    with session.together(last=not changing):
        logs.keep(session, desk.tails, desk.now)
        pilots.hear(session, own, desk.now)
        holdings.record(session, desk.news, desk.now)
    if changing:
        circuits.count(session, changing, ends, desk.now)


def _is_own(actor: Actor, pilot: Pilot | None) -> bool:
    who = pilot and (pilot.vo, pilot.subject)
    return "pilot" in actor.roles and who == (actor.vo, actor.subject)


def _answer(desk: _Desk, actor: Actor, update: PilotUpdate, pilot: Pilot | None) -> Updated:
    try:
        actor.require("pilot")
    except Forbidden as refused:
        return Updated(verdicts=tuple(_no(each, str(refused)) for each in update.reports))
    verdicts = tuple(_judge(desk, actor, update.pilot, report) for report in update.reports)
    commands: tuple[PilotCommand, ...] = ()
    if pilot and pilot.command and _is_own(actor, pilot):
        commands = (pilot.command,)
    return Updated(verdicts=verdicts, commands=commands)


def _no(report: Report, why: str, *commands: BundleCommand) -> Verdict:
    return Verdict(id=report.id, accepted=False, why=why, commands=commands)


# --- judging ----------------------------------------------------------------------------


def _judge(desk: _Desk, actor: Actor, pilot: str, report: Report) -> Verdict:
    row = desk.rows.get(report.id)
    kind = desk.kinds.get(row.kind) if row else None
    if row is None or (kind and not actor.may_see(kind.vo)):
        words = f"there is no bundle {report.id} in the pool, or not any more"
        return _no(report, words, "kill")
    if not row.lease or not compare_digest(row.lease, digest(report.lease)) or row.pilot != pilot:
        return _no(report, _foreign(row, pilot), "kill")
    if row.let_go and report.state != "running":
        return _lets_go(desk, row, report)
    if not row.held:
        return _after_its_end(row, report)
    if report.seq <= row.seq:
        return _no(report, f"report {report.seq} is late: report {row.seq} was here before")
    return _accept(desk, row, report)


def _foreign(row: Holding, pilot: str) -> str:
    if row.state == CANCELLED:
        return f"bundle {row.id} was cancelled by its run"
    if not row.lease:
        return f"bundle {row.id} is held by nobody: it is {STATES[row.state]}"
    who = f"pilot {row.pilot!r} at queue {row.queue!r}"
    if row.pilot == pilot:
        return f"this is not the lease under which {who} has bundle {row.id}"
    if row.held:
        return f"bundle {row.id} is held by {who}, and not by {pilot!r}"
    return f"bundle {row.id} was held by {who}, and is {STATES[row.state]}"


def _after_its_end(row: Holding, report: Report) -> Verdict:
    """Answer a report of a bundle that is over; the one that ended it may come again."""
    again = report.seq == row.seq and _OVER.get(report.state) == row.state and not row.why
    if again:
        return Verdict(id=report.id, accepted=True, why="it was taken before")
    if row.state == CANCELLED:
        return _no(report, f"bundle {row.id} was cancelled by its run", "kill")
    if row.state == LOST and row.why:
        return _no(report, f"bundle {row.id} was taken back: {row.why}", "kill")
    words = f"bundle {row.id} is {STATES[row.state]} since report {row.seq}"
    return _no(report, words, "kill")


def _lets_go(desk: _Desk, row: Holding, report: Report) -> Verdict:
    row.seq, row.wish, row.due = report.seq, "", desk.now + KEPT
    desk.news.changed[row.id] = row
    desk.news.let_go.append(row.run)
    return Verdict(id=report.id, accepted=True)


def _accept(desk: _Desk, row: Holding, report: Report) -> Verdict:
    row.seq, row.heard = report.seq, desk.now
    if report.tail:
        desk.tails.append((row, report.tail))
    if report.state == "running":
        return _runs(desk, row, report)
    row.state, row.due, row.wish = _OVER[report.state], desk.now + KEPT, ""
    desk.news.changed[row.id] = row
    desk.news.happened.append(_end(row, report))
    return Verdict(id=report.id, accepted=True)


def _runs(desk: _Desk, row: Holding, report: Report) -> Verdict:
    starts, commands = row.state == SENT, _wishes(row)
    if starts:
        row.state = RUNNING
        desk.news.happened.append(Happening(row, "started"))
    # Care may look too early, but not too late.
    row.due = min(row.due, row.deadline)
    (desk.news.changed if starts or commands else desk.news.beats)[row.id] = row
    return Verdict(id=report.id, accepted=True, commands=commands)


def _wishes(row: Holding) -> tuple[BundleCommand, ...]:
    """Return what its pilot is to hear, once."""
    commands: tuple[BundleCommand, ...] = ("tail",) if row.wish == "tail" else ()
    row.wish = ""
    return commands


def _end(row: Holding, report: Report) -> Happening:
    if report.state == "ended":
        body = report.model_dump_json(include=_BODY, exclude_defaults=True)
        return Happening(row, "ended", body, spoiled(report.error, report.results))
    why = report.error or Trouble(
        source="pilot", code=0, kind="site", message=f"pilot {row.pilot!r} could not go on with it"
    )
    lost = Body(error=why, metrics=report.metrics)
    words = spoiled(why) or f"{why.kind}: {why.message}"
    return Happening(row, "lost", lost.model_dump_json(exclude_defaults=True), words)
