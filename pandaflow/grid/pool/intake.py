"""Drivers put bundles into the pool, take them back, and hear what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from pandaflow.core.brokerage import misfit
from pandaflow.core.model import Resources
from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.messages import PAYLOAD_BYTES, Bundle, Leased, Needs, Outcome, Outcomes
from pandaflow.grid.pool import accounts, classes, people, runs
from pandaflow.grid.pool.accounts import Change
from pandaflow.grid.pool.errors import NotThere
from pandaflow.grid.pool.holdings import KEPT, LET_GO, drop_work
from pandaflow.grid.pool.queues import Place, places
from pandaflow.grid.pool.runs import Run
from pandaflow.grid.pool.session import Session, inserting, reading, updating, writing
from pandaflow.store.database import Database
from pandaflow.store.pool_tables import CANCELLED, READY, pool_bundles, pool_work

#: Fields of a bundle that pilots are not told, and those that they are always told.
_OWN = set(Bundle.model_fields) - set(Leased.model_fields) | {"attempt", "needs"}

_ADD = inserting(
    pool_bundles,
    *("run", "bundle", "attempt", "class", "rank"),
    conflict="ON CONFLICT (run, bundle, attempt) DO NOTHING RETURNING bundle, attempt, id",
)
_WORK = inserting(pool_work, "id", "body")
_CANCEL = updating(pool_bundles, "id", "state", "due", "wish", "start")
#: OFFSET 0 makes PostgreSQL look each of them up: else it may read all bundles of the run.
_THERE = {
    "sqlite": "SELECT id FROM pool_bundles WHERE run = :run AND bundle AMONG :numbers[integer]",
    "postgresql": "SELECT b.* FROM unnest(CAST(:numbers AS integer[])) AS n(bundle), LATERAL ("
    "SELECT id FROM pool_bundles WHERE run = :run AND bundle = n.bundle "
    "OFFSET 0) AS b",
}
_LIVE = """
    SELECT id, state, heartbeat FROM pool_bundles
    WHERE id AMONG :ids[bigint] AND state IN (1, 2, 3) ORDER BY id {lock}"""
#: Bundles that are cancelled by a transaction.
PAGE = 1000
_PAGE = """
    SELECT bundle, attempt, id FROM pool_bundles
    WHERE run = :run AND (bundle, attempt) > (:bundle, :attempt) AND state IN (1, 2, 3)
    ORDER BY bundle, attempt LIMIT :n"""
_HEAD = ("seq", "bundle", "attempt", "kind", "at", "queue", "pilot", "host")
_OUTCOMES = f"""
    SELECT {", ".join(_HEAD)}, body FROM pool_outcomes
    WHERE run = :run AND seq > :after ORDER BY seq LIMIT :limit"""


# --- runs and payloads ------------------------------------------------------------------


def open_run(session: Session, actor: Actor, run: str, now: float, owner: str = "") -> None:
    """Make a run known; ``owner``: whose it is, if not the actor's."""
    actor.require("user", "production", "operator")
    if owner not in ("", actor.subject):
        actor.require("production", "operator")
    session.run(
        "INSERT INTO pool_runs (run, vo, owner, name, created) "
        "VALUES (:run, :vo, :owner, :name, :now) ON CONFLICT (run) DO NOTHING",
        run=run,
        vo=actor.vo,
        owner=owner or actor.subject,
        name=actor.name if owner in ("", actor.subject) else owner,
        now=now,
    )
    try:
        runs.own(session, actor, run)
    except NotThere:
        raise Forbidden(f"run {run!r} is not yours: give yours another id") from None


def mark_gone(session: Session, actor: Actor, run: str) -> int:
    """Let nobody find a run any more; return its number."""
    found = runs.own(session, actor, run)
    session.run("UPDATE pool_runs SET gone = true WHERE no = :no", no=found.no)
    return found.no


def check_payload(digest: str, data: bytes) -> None:
    """Refuse a payload that is too large or not the one that was announced."""
    if len(data) > PAYLOAD_BYTES:
        raise ValueError(
            f"a payload of {len(data)} bytes: {PAYLOAD_BYTES} at most, put large data in a file"
        )
    if sha256(data).hexdigest() != digest:
        raise ValueError(f"the payload's SHA-256 is not {digest}: was it damaged on its way?")


def put_payload(session: Session, actor: Actor, run: str, digest: str, data: bytes) -> None:
    """Keep a payload."""
    found = runs.own(session, actor, run)
    session.run(
        "INSERT INTO pool_payloads (run, digest, data) VALUES (:run, :digest, :data) "
        "ON CONFLICT (run, digest) DO NOTHING",
        run=found.no,
        digest=digest,
        data=data,
    )
    # As with bundles: late, and nothing stays of a run that was forgotten meanwhile.
    runs.own(session, actor, run, lock=True)


def payload(session: Session, actor: Actor, run: str, digest: str) -> bytes:
    """Return a payload."""
    found = runs.find(session, actor, run)
    row = session.one(
        "SELECT data FROM pool_payloads WHERE run = :run AND digest = :digest",
        run=found.no,
        digest=digest,
    )
    if row is None:
        raise NotThere(f"run {run!r} has no payload {digest}")
    return bytes(row[0])


# --- bundles ----------------------------------------------------------------------------


def submit(
    session: Session, actor: Actor, run: str, bundles: Sequence[Bundle], now: float
) -> dict[int, str]:
    """Put bundles into the pool; return why some were refused."""
    found = runs.own(session, actor, run)
    refused = _refused(session, found, bundles)
    fit = {(b.bundle, b.attempt): b for b in bundles if b.bundle not in refused}
    if fit:
        _add(session, actor, found, [fit[key] for key in sorted(fit)], now)
    return refused


def _there(session: Session, no: int, numbers: list[int]) -> list[int]:
    """Return the ids of bundles with these numbers."""
    return [id for (id,) in session.rows(_THERE[session.dialect], run=no, numbers=numbers)]


def _add(session: Session, actor: Actor, run: Run, bundles: Sequence[Bundle], now: float) -> None:
    numbers = classes.enter(session, run.vo, {each.needs for each in bundles}, now)
    rows = [(run.no, b.bundle, b.attempt, numbers[b.needs], -b.priority) for b in bundles]
    by_key = {(b.bundle, b.attempt): b for b in bundles}
    added = [(id, by_key[bundle, attempt]) for bundle, attempt, id in session.returning(_ADD, rows)]
    session.many(_WORK, [(id, _body(each)) for id, each in added])
    # Locked only now, for pilots want it too. Was it forgotten meanwhile, all of this is undone.
    runs.own(session, actor, run.run, lock=True)
    if added:
        session.run(
            "UPDATE pool_runs SET ready = ready + :n, latest = :latest WHERE no = :no",
            n=len(added),
            latest=numbers[added[-1][1].needs],
            no=run.no,
        )


def _body(bundle: Bundle) -> str:
    """Return what pilots get of a bundle, besides the lease, as JSON."""
    text = bundle.model_dump_json(exclude=_OWN, exclude_defaults=True)
    needs = bundle.needs.model_dump_json(exclude_defaults=True)
    return f'{{"attempt":{bundle.attempt},"needs":{needs},{text[1:]}'


def _refused(session: Session, run: Run, bundles: Sequence[Bundle]) -> dict[int, str]:
    there = places(session)
    unfit = {needs: _unfit(needs, run.vo, there) for needs in {each.needs for each in bundles}}
    codes = sorted({each.code for each in bundles if each.code})
    put = session.rows(
        "SELECT digest FROM pool_payloads WHERE run = :run AND digest AMONG :codes[text]",
        run=run.no,
        codes=codes,
    )
    missing = set(codes) - {digest for (digest,) in put}
    checked = {b.bundle: unfit[b.needs] or _lacking(b, missing) for b in bundles}
    return {bundle: why for bundle, why in checked.items() if why}


def _lacking(bundle: Bundle, missing: set[str]) -> str:
    if bundle.code in missing:
        return f"its payload {bundle.code} is not there: put it first"
    if bundle.kind == "function" and bundle.work is None:
        return "a bundle of functions without its work"
    if bundle.kind == "command" and not bundle.commands:
        return "a bundle of commands without any"
    return ""


def _unfit(needs: Needs, vo: str, there: Mapping[str, Place]) -> str:
    """Say why no queue can ever run bundles of these needs; empty: one could."""
    mine = {name: place for name, place in there.items() if place.serves(vo)}
    if not mine:
        return f"there is no queue for VO {vo!r}" if vo else "there is no queue"
    if needs.queue and needs.queue not in mine:
        return f"there is no queue {needs.queue!r}; there are {_names(mine)}"
    asked = Resources(
        cores=needs.cores,
        memory=needs.memory,
        walltime=needs.walltime,
        disk=needs.disk,
        gpus=needs.gpus,
    )
    chosen = [mine[needs.queue]] if needs.queue else list(mine.values())
    words = {place.name: misfit(asked, place.site()) for place in chosen}
    if not all(words.values()):
        return ""
    return "no queue can run it: " + "; ".join(f"{name} {why}" for name, why in words.items())


def _names(names: Iterable[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    return ", ".join(shown[:10]) + more


def cancel(
    database: Database, actor: Actor, run: str, bundles: Sequence[int] | None, now: float
) -> int:
    """Cancel bundles; return how many were not over.

    A page of them at a time: pilots that report wait for none of it long.
    """
    with reading(database) as session:
        found = runs.own(session, actor, run)
    total, after = 0, (-1, -1)
    numbers = None if bundles is None else sorted(set(bundles))
    while numbers is None or numbers:
        with writing(database) as session:
            if numbers is None:
                page = session.rows(_PAGE, run=found.no, bundle=after[0], attempt=after[1], n=PAGE)
                ids, after = [id for *_, id in page], page[-1][:2] if page else after
            else:
                some, numbers = numbers[:PAGE], numbers[PAGE:]
                ids = _there(session, found.no, some)
            rows = session.rows(_LIVE, ids=sorted(ids)) if ids else []
            if rows:
                _cancel(session, found.no, rows, now)
        total += len(rows)
        if numbers is None and len(ids) < PAGE:
            break
    return total


def _cancel(session: Session, no: int, rows: list[tuple[int, int, float]], now: float) -> None:
    """Cancel; those that a pilot has count as held until it has let go, or is silent."""
    session.many(
        _CANCEL,
        [
            (CANCELLED, now + KEPT, "", None, id)
            if state == READY
            else (CANCELLED, now + heartbeat, LET_GO, None, id)
            for id, state, heartbeat in rows
        ],
    )
    drop_work(session, [id for id, *_ in rows])
    accounts.lock(session, [no])
    accounts.add(session, {no: Change(ready=-sum(state == READY for _, state, _ in rows))})


# --- outcomes ---------------------------------------------------------------------------


def outcomes(
    database: Database, actor: Actor, run: str, after: int, limit: int, now: float
) -> Outcomes:
    """Return outcomes after a number and forget those up to it."""
    with reading(database) as session:
        found = runs.own(session, actor, run)
        rows = session.rows(_OUTCOMES, run=found.no, after=max(after, found.acked), limit=limit)
        answer = Outcomes(
            outcomes=tuple(map(_outcome, rows)),
            ready=found.ready,
            running=found.held,
            slots=found.held + people.free_cores(session, found.vo, now),
            waiting=people.waiting(session, found, now),
        )
    if after > found.acked:
        with writing(database) as session:
            _acknowledge(session, found.no, min(after, found.seq))
    return answer


def _acknowledge(session: Session, no: int, after: int) -> None:
    with session.together(last=True):
        session.later(
            "DELETE FROM pool_outcomes WHERE run = :no AND seq <= :after", no=no, after=after
        )
        session.later(
            "UPDATE pool_runs SET acked = :after WHERE no = :no AND acked < :after",
            no=no,
            after=after,
        )


def _outcome(row: Sequence[object]) -> Outcome:
    head = json.dumps(dict(zip(_HEAD, row, strict=False)))
    body = str(row[-1])
    # Both are objects: joined as text they are parsed once.
    text = head if body == "{}" else f"{head[:-1]},{body[1:]}"
    return Outcome.model_validate_json(text)
