"""The pool's own care: what pilots have lost, queues on hold, and what nobody needs any more.

Each step is a transaction of its own, of a bounded number of rows, and leaves out what somebody
else has locked: any number of servers may do this at once.
"""

from __future__ import annotations

from collections.abc import Callable

from pandaflow.grid.messages import Trouble
from pandaflow.grid.pool import circuits, holdings
from pandaflow.grid.pool.circuit import Circuit
from pandaflow.grid.pool.holdings import COLUMNS, KEPT, LET_GO, Body, Happening, Holding, News
from pandaflow.grid.pool.session import Session, updating, writing
from pandaflow.store.database import Database
from pandaflow.store.pool_tables import LOST, SENT, pool_bundles

#: Rows of a step.
PAGE = 1000
#: Seconds after which pilots that were not heard of, and classes that were not used, are forgotten.
DAY = 86_400.0
#: What the server calls a heartbeat that stayed out, and a bundle that never started.
SILENT, NEVER_STARTED = 100, 102

_DUE = f"""
    SELECT {COLUMNS} FROM pool_bundles
    WHERE due < :now AND state IN (2, 3) ORDER BY due LIMIT :page {{skip}}"""
_OVER = """
    SELECT b.id, b.run, b.wish, b.outcome IS NULL OR b.state = 6 OR b.outcome <= r.acked
    FROM pool_bundles AS b JOIN pool_runs AS r ON r.no = b.run
    WHERE b.id AMONG :ids[bigint]"""
_OLD = """
    SELECT id FROM pool_bundles
    WHERE due < :now AND state IN (4, 5, 6) ORDER BY due LIMIT :page {skip}"""
_LATER = updating(pool_bundles, "id", "due")
_AWAY = """
    DELETE FROM pool_pilots WHERE name IN (
        SELECT name FROM pool_pilots WHERE heard < :since ORDER BY name {skip})"""
_IDLE = """
    DELETE FROM pool_classes WHERE used < :since AND NOT EXISTS (
        SELECT 1 FROM pool_bundles AS b WHERE b.class = pool_classes.no AND b.due IS NULL)"""


def care(database: Database, now: float) -> dict[str, int]:
    """Do what is due; see :meth:`pandaflow.grid.pool.Pool.care`."""
    counts = {
        "lost": _pages(database, lambda session: _lose(session, now)),
        "purged": _pages(database, lambda session: _purge(session, now)),
    }
    with writing(database) as session:
        counts["probing"] = _probe(session, now)
    with writing(database) as session:
        counts["pilots"] = session.run(_AWAY, since=now - DAY)
    with writing(database) as session:
        counts["classes"] = session.run(_IDLE, since=now - DAY)
        gone = [no for (no,) in session.rows("SELECT no FROM pool_runs WHERE gone")]
    for no in gone:
        forget(database, no)
    return {**counts, "runs": len(gone)}


def _pages(database: Database, step: Callable[[Session], tuple[int, int]]) -> int:
    """Repeat a step, which tells what it has looked at and done, until there is less than a page.

    Return what was done.
    """
    total = 0
    while True:
        with writing(database) as session:
            looked, done = step(session)
        total += done
        if looked < PAGE:
            return total


# --- bundles ----------------------------------------------------------------------------


def _lose(session: Session, now: float) -> tuple[int, int]:
    """Take back bundles whose pilots are silent; look at the others when they may be."""
    due = [Holding(*row) for row in session.rows(_DUE, now=now, page=PAGE)]
    # By id, as everybody writes.
    due.sort(key=lambda row: row.id)
    silent = [row for row in due if row.deadline < now]
    session.many(_LATER, [(row.deadline, row.id) for row in due if row.deadline >= now])
    if silent:
        news = News(changed={row.id: row for row in silent})
        news.happened = [_lost(row, now) for row in silent]
        holdings.record(session, news, now)
        circuits.count(session, sorted(news.ends()), news.ends(), now)
    return len(due), len(silent)


def _lost(row: Holding, now: float) -> Happening:
    silent = f"pilot {row.pilot!r} at queue {row.queue!r}"
    never = row.state == SENT
    if never:
        row.why = f"{silent} did not start it within {now - row.heard:.0f} s"
    else:
        row.why = f"{silent} was not heard of for {now - row.heard:.0f} s"
    code = NEVER_STARTED if never else SILENT
    error = Trouble(source="server", code=code, kind="site", message=row.why)
    row.state, row.due, row.wish = LOST, now + KEPT, ""
    body = Body(error=error).model_dump_json(exclude_defaults=True)
    return Happening(row, "lost", body, f"site: {row.why}")


def _purge(session: Session, now: float) -> tuple[int, int]:
    """Remove bundles that are over and acknowledged; look at the others again later."""
    ids = [id for (id,) in session.rows(_OLD, now=now, page=PAGE)]
    if not ids:
        return 0, 0
    rows = session.rows(_OVER, ids=ids)
    known = {row[0]: row[3] for row in rows}
    # Pilots that have not let go in time are gone themselves.
    let_go = [run for _, run, wish, _ in rows if wish == LET_GO]
    done = [id for id in ids if known.get(id, True)]
    kept = sorted(set(ids) - set(done))
    if done:
        session.run("DELETE FROM pool_bundles WHERE id AMONG :ids[bigint]", ids=done)
    holdings.record(session, News(let_go=let_go), now)
    if kept:
        session.run(
            "UPDATE pool_bundles SET due = :due WHERE id AMONG :ids[bigint]",
            due=now + KEPT,
            ids=kept,
        )
    return len(ids), len(ids)


# --- queues -----------------------------------------------------------------------------


def _probe(session: Session, now: float) -> int:
    """Try held queues whose time is over; give another probe to those that have lost theirs."""
    rows = session.rows(
        # A join: PostgreSQL would read all bundles for a NOT EXISTS beside the OR.
        "SELECT name FROM pool_queues AS q LEFT JOIN pool_bundles AS b "
        "ON b.id = q.probe AND b.state IN (2, 3) WHERE (q.state = 'held' AND held_until <= :now) "
        "OR (probe IS NOT NULL AND b.id IS NULL)",
        now=now,
    )
    if not rows:
        return 0
    locked = circuits.lock(session, [name for (name,) in rows])
    tried = {name: each for name, each in locked.items() if _is_due(session, each, now)}
    circuits.save(
        session,
        {name: Circuit("probing", each.reason, None, each.holds) for name, each in tried.items()},
    )
    return len(tried)


def _is_due(session: Session, circuit: Circuit, now: float) -> bool:
    """Tell the same of a queue that is locked: somebody may have been faster."""
    if circuit.state == "held":
        return circuit.held_until is not None and circuit.held_until <= now
    held = session.one(
        "SELECT 1 FROM pool_bundles WHERE id = :id AND state IN (2, 3)", id=circuit.probe
    )
    return circuit.state == "probing" and circuit.probe is not None and held is None


# --- runs -------------------------------------------------------------------------------


def forget(database: Database, no: int) -> None:
    """Remove a run that nobody finds any more, with all that it has in the pool."""
    while True:
        with writing(database) as session:
            # Waits for those who hold them, in order.
            rows = session.rows(
                "SELECT id FROM pool_bundles WHERE run = :no ORDER BY id LIMIT :page {lock}",
                no=no,
                page=PAGE,
            )
            ids = [id for (id,) in rows]
            if ids:
                holdings.drop_work(session, ids)
                session.run("DELETE FROM pool_bundles WHERE id AMONG :ids[bigint]", ids=ids)
        if len(rows) < PAGE:
            break
    with writing(database) as session:
        for table in ("pool_outcomes", "pool_payloads", "pool_logs"):
            session.run(f"DELETE FROM {table} WHERE run = :no", no=no)
        session.run("DELETE FROM pool_runs WHERE no = :no", no=no)
