"""Pilots ask for work: each bundle is given to one of them, with a word that only it knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import ceil
from secrets import token_urlsafe

from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.messages import INLINE_BYTES, Acquire, Acquired, Leased, PilotCommand
from pandaflow.grid.pool import accounts, pilots, queues
from pandaflow.grid.pool.accounts import Change
from pandaflow.grid.pool.classes import Classes
from pandaflow.grid.pool.matching import Kind, More, Ready, Shelf, serve, suits
from pandaflow.grid.pool.pilots import Pilot
from pandaflow.grid.pool.queues import Place
from pandaflow.grid.pool.session import Session, updating
from pandaflow.store.pool_tables import SENT, pool_bundles

#: Seconds after which to ask again where there was nothing, and where nothing is given out.
RETRY, RETRY_HELD = 5.0, 30.0
#: Bundles of a class that are looked at beyond its share of what is asked for.
_SPARE = 4

_CLASSES = """
    SELECT no FROM pool_classes AS c WHERE vo AMONG :vos[text] AND EXISTS (
        SELECT 1 FROM pool_bundles AS b WHERE b.class = c.no AND b.due IS NULL)"""
_MORE = """
    SELECT rank, id, run FROM pool_bundles
    WHERE class = :kind AND due IS NULL AND (rank, id) > (:rank, :id)
    ORDER BY rank, id LIMIT :size {skip}"""
_FIRST = """
    SELECT rank, id, run FROM pool_bundles WHERE class = :kind AND due IS NULL
    ORDER BY rank, id LIMIT :size {skip}"""
_FIRST_OF_ALL = """
    SELECT k.no, b.* FROM unnest(CAST(:nos AS bigint[]), CAST(:sizes AS integer[])) AS k(no, size),
    LATERAL (
        SELECT rank, id, run FROM pool_bundles WHERE class = k.no AND due IS NULL
        ORDER BY rank, id LIMIT k.size {skip}) AS b"""
_GIVE = updating(
    pool_bundles,
    "id",
    *("state", "queue", "pilot", "host", "lease", "seq", "heartbeat", "due", "heard", "start"),
)
_WORK = "SELECT id, body FROM pool_work WHERE id AMONG :ids[bigint]"


@dataclass(slots=True)
class _Question:
    """A pilot's question on its way; ``refused`` ends it."""

    actor: Actor
    ask: Acquire
    place: Place | None = None
    pilot: Pilot | None = None
    refused: Forbidden | None = None
    given: list[Ready] = field(default_factory=list)
    free: int = 0

    @property
    def count(self) -> int:
        """How many it may have."""
        if self.refused or self.place is None or (self.pilot and self.pilot.command):
            return 0
        if self.place.circuit.state == "probing":
            return 1 if self.place.circuit.probe is None else 0
        return self.ask.count if self.place.circuit.state == "open" else 0


def digest(lease: str) -> str:
    """Return what is kept of a lease: the word itself is the pilot's only."""
    return blake2b(lease.encode(), digest_size=16).hexdigest()


def acquire(
    session: Session, classes: Classes, asked: Sequence[tuple[Actor, Acquire]], now: float
) -> list[Acquired | Forbidden]:
    """Answer questions for work; see :meth:`pandaflow.grid.pool.Pool.acquire`."""
    questions = [_Question(actor, ask, free=ask.cores) for actor, ask in asked]
    with session.together():
        looked = pilots.look(session, [each.ask.pilot for each in questions])
        found = queues.look(session, {each.ask.queue for each in questions})
        stocked = session.later(_CLASSES, vos=sorted({each.actor.vo for each in questions}))
    known, there = pilots.seen(looked), queues.seen(found)
    for each in questions:
        each.pilot, each.place = known.get(each.ask.pilot), there.get(each.ask.queue)
        each.refused = _refusal(each)
    kinds = classes.get(session, [no for (no,) in stocked.rows])
    _match(session, kinds, [each for each in questions if each.count])
    news = _news(questions, now)
    _claim_probes(session, [each for each in questions if each.given], news)
    return _give(session, questions, news, now)


def _refusal(question: _Question) -> Forbidden | None:
    actor, ask, place = question.actor, question.ask, question.place
    try:
        actor.require("pilot")
    except Forbidden as refused:
        return refused
    if place is None:
        return Forbidden(f"there is no queue {ask.queue!r}: an operator makes them")
    if not place.serves(actor.vo):
        return Forbidden(f"queue {ask.queue!r} runs nothing of VO {actor.vo!r}")
    if question.pilot and (question.pilot.vo, question.pilot.subject) != (actor.vo, actor.subject):
        return Forbidden(f"the name {ask.pilot!r} is another pilot's: each has its own")
    return None


# --- matching ---------------------------------------------------------------------------


def _match(session: Session, found: dict[int, Kind], questions: Sequence[_Question]) -> None:
    """Decide who gets what; the rows are locked."""
    if not questions or not found:
        return
    suiting = [_suiting(each, found.values()) for each in questions]
    shelves = _shelves(session, found, questions, suiting)
    for each, numbers in zip(questions, suiting, strict=True):
        assert each.place is not None
        # Another pilot of this queue may have got its probe just now.
        count = 0 if each.place.probed else each.count
        each.given, each.free = serve(each.ask, [shelves[no] for no in numbers], count)
        each.place.probed |= each.place.circuit.state == "probing" and bool(each.given)


def _suiting(question: _Question, kinds: Iterable[Kind]) -> list[int]:
    assert question.place is not None
    tags = frozenset(question.ask.tags) | frozenset(question.place.body.tags)
    return [kind.no for kind in kinds if suits(kind, question.actor.vo, question.ask, tags)]


def _shelves(
    session: Session,
    kinds: dict[int, Kind],
    questions: Sequence[_Question],
    suiting: Sequence[list[int]],
) -> dict[int, Shelf]:
    """Fetch the first bundles of the classes that somebody could run."""
    wanted = dict[int, int]()
    for each, numbers in zip(questions, suiting, strict=True):
        for no in numbers:
            most = min(each.count, each.ask.cores // kinds[no].needs.cores)
            # Of several classes each is likely to give its share.
            share = most if len(numbers) == 1 else ceil(most / len(numbers)) + _SPARE
            wanted[no] = wanted.get(no, 0) + min(most, share)
    rows = _first(session, wanted)
    return {
        no: Shelf(kinds[no], rows.get(no, ()), size, _fetching(session, kinds[no]))
        for no, size in wanted.items()
    }


def _first(session: Session, sizes: Mapping[int, int]) -> dict[int, list[Ready]]:
    """Lock and return the first bundles of classes."""
    if not sizes:
        return {}
    if session.dialect == "postgresql":
        found = session.rows(_FIRST_OF_ALL, nos=list(sizes), sizes=list(sizes.values()))
    else:
        found = [
            (no, *row)
            for no, size in sizes.items()
            for row in session.rows(_FIRST, kind=no, size=size)
        ]
    rows = dict[int, list[Ready]]()
    for no, *row in found:
        rows.setdefault(no, []).append(Ready(*row))
    return rows


def _fetching(session: Session, kind: Kind) -> More:
    def more(size: int, last: Ready) -> list[Ready]:
        place = {"rank": last.rank, "id": last.id}
        return [Ready(*row) for row in session.rows(_MORE, kind=kind.no, size=size, **place)]

    return more


def _claim_probes(session: Session, questions: Sequence[_Question], news: Sequence[Pilot]) -> None:
    """Note the bundles that try queues; another server may have been faster."""
    probing = {
        each.ask.queue: each
        for each in questions
        if each.place is not None and each.place.circuit.state == "probing"
    }
    if probing:
        # Pilots and runs before queues, as everybody locks.
        pilots.save(session, news)
        accounts.lock(session, [ready.run for each in questions for ready in each.given])
    for name, question in sorted(probing.items()):
        claimed = session.run(
            "UPDATE pool_queues SET probe = :id "
            "WHERE name = :name AND state = 'probing' AND probe IS NULL",
            id=question.given[0].id,
            name=name,
        )
        if not claimed:
            question.given = []


# --- giving -----------------------------------------------------------------------------


def _give(
    session: Session, questions: Sequence[_Question], news: Sequence[Pilot], now: float
) -> list[Acquired | Forbidden]:
    leases = {ready.id: token_urlsafe(16) for each in questions for ready in each.given}
    rows = [
        _lease_row(each, ready.id, digest(leases[ready.id]), now)
        for each in questions
        for ready in each.given
    ]
    changes = _changes(questions)
    with session.together(last=True):
        work = session.later(_WORK, ids=list(leases))
        session.many(_GIVE, rows)
        pilots.save(session, news)
        names = accounts.lock(session, changes)
        accounts.add(session, changes)
    bodies, runs = dict(work.rows), dict(names.rows)
    return [_answer(each, leases, bodies, runs, now) for each in questions]


def _changes(questions: Sequence[_Question]) -> dict[int, Change]:
    """Return what is added to the numbers of runs."""
    changes = dict[int, Change]()
    for each in questions:
        for ready in each.given:
            change = changes.setdefault(ready.run, Change())
            change.ready -= 1
            change.held += 1
    return changes


def _lease_row(question: _Question, id: int, lease: str, now: float) -> tuple[object, ...]:
    assert question.place is not None
    ask, body = question.ask, question.place.body
    # Its first heartbeat need not move this, in an index.
    due = now + min(body.start, body.heartbeat)
    head = (SENT, ask.queue, ask.pilot, _shown(ask.host), lease, 0, body.heartbeat)
    return (*head, due, now, body.start, id)


def _shown(host: str) -> str:
    """Return what a pilot says of itself as text that every database takes."""
    return host.replace("\0", "")


def _answer(
    question: _Question,
    leases: dict[int, str],
    work: dict[int, str],
    runs: dict[int, str],
    now: float,
) -> Acquired | Forbidden:
    if question.refused:
        return question.refused
    assert question.place is not None
    heartbeat = question.place.body.heartbeat
    bundles = tuple(
        _leased(ready, leases[ready.id], runs[ready.run], heartbeat, work[ready.id])
        for ready in question.given
    )
    commands: tuple[PilotCommand, ...] = ()
    if question.pilot and question.pilot.command:
        commands = (question.pilot.command,)
    return Acquired(bundles=bundles, commands=commands, retry=_retry(question, now))


def _leased(ready: Ready, lease: str, run: str, heartbeat: float, body: str) -> Leased:
    # The body is an object of the other fields: joined as text it is parsed once.
    head = {
        "id": ready.id,
        "lease": lease,
        "run": run,
        "heartbeat": heartbeat,
        "inline": INLINE_BYTES,
    }
    return Leased.model_validate_json(f"{json.dumps(head)[:-1]},{body[1:]}")


def _retry(question: _Question, now: float) -> float:
    assert question.place is not None
    circuit = question.place.circuit
    if question.given:
        return 0.0
    if circuit.state == "open":
        return RETRY
    wait = (circuit.held_until or now) - now
    return min(RETRY_HELD, max(RETRY, wait))


def _news(questions: Sequence[_Question], now: float) -> list[Pilot]:
    """Return the pilots that are worth a write: those that wait ask again and again."""
    seen = {
        each.ask.pilot: Pilot(
            name=each.ask.pilot,
            vo=each.actor.vo,
            subject=each.actor.subject,
            queue=each.ask.queue,
            host=_shown(each.ask.host),
            free=each.free,
            heard=now,
        )
        for each in questions
        if not each.refused
    }
    before = {each.ask.pilot: each.pilot for each in questions}
    return [pilot for name, pilot in seen.items() if pilots.is_news(before[name], pilot)]
