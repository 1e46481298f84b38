"""The ends of payloads' logs."""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest

from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.pool import holdings
from pandaflow.grid.pool.classes import Classes
from pandaflow.grid.pool.errors import NotThere
from pandaflow.grid.pool.holdings import Holding
from pandaflow.grid.pool.leasing import digest
from pandaflow.grid.pool.runs import find
from pandaflow.grid.pool.session import Session, inserting
from pandaflow.store.pool_tables import pool_logs

#: Characters of a log that are kept: its end.
LONGEST = 1_000_000

_KEEP = inserting(
    pool_logs,
    *("run", "bundle", "attempt", "at", "text"),
    conflict="ON CONFLICT (run, bundle, attempt) "
    "DO UPDATE SET at = excluded.at, text = excluded.text",
)


def keep(session: Session, texts: Sequence[tuple[Holding, str]], now: float) -> None:
    """Keep the ends of logs; of several of one bundle the last."""
    # PostgreSQL's text has no zero bytes.
    last = {
        (row.run, row.bundle, row.attempt): text.replace("\0", "\ufffd")[-LONGEST:]
        for row, text in texts
    }
    session.many(_KEEP, [(*key, now, text) for key, text in sorted(last.items())])


def put(
    session: Session, classes: Classes, actor: Actor, sent: tuple[int, str, str], now: float
) -> None:
    """Keep the log that a pilot sends: id, lease, text."""
    actor.require("pilot")
    id, lease, text = sent
    row = holdings.locked(holdings.lock(session, [id])).get(id)
    kind = classes.get(session, [row.kind]).get(row.kind) if row else None
    if row is None or (kind and not actor.may_see(kind.vo)):
        raise NotThere(f"there is no bundle {id} in the pool, or not any more")
    if not row.lease or not compare_digest(row.lease, digest(lease)):
        raise Forbidden(f"this is not the lease of bundle {id}: only who holds it sends its log")
    keep(session, [(row, text)], now)


def ask(session: Session, actor: Actor, run: str, bundle: int) -> bool:
    """Ask the pilot that has a bundle for the end of its log."""
    found = find(session, actor, run)
    changed = session.run(
        "UPDATE pool_bundles SET wish = 'tail' WHERE id IN (SELECT id FROM pool_bundles "
        "WHERE run = :run AND bundle = :bundle AND state IN (2, 3) ORDER BY id {lock})",
        run=found.no,
        bundle=bundle,
    )
    if not changed:
        _known(session, found.no, run, bundle)
    return changed > 0


def text(session: Session, actor: Actor, run: str, bundle: int) -> str:
    """Return the log of a bundle's last attempt that has one."""
    found = find(session, actor, run)
    row = session.one(
        "SELECT text FROM pool_logs WHERE run = :run AND bundle = :bundle "
        "ORDER BY attempt DESC LIMIT 1",
        run=found.no,
        bundle=bundle,
    )
    if row is None:
        _known(session, found.no, run, bundle)
        return ""
    return str(row[0])


def _known(session: Session, no: int, run: str, bundle: int) -> None:
    row = session.one(
        "SELECT 1 FROM pool_bundles WHERE run = :run AND bundle = :bundle LIMIT 1",
        run=no,
        bundle=bundle,
    )
    if row is None:
        raise NotThere(f"there is no bundle {bundle} of run {run!r} in the pool")
