"""The tables of the grid's pool: what waits for pilots, who has it, and what became of it.

* A bundle is in the pool once by (run, number, attempt), and held by one pilot or by none.
* Bundles of equal needs share a row of ``pool_classes``. Their work is in a table of its own, so
  that a change of state, or a heartbeat, does not copy it.
* A run counts its bundles that are ready and held, and numbers its outcomes.
* Of a lease only the digest is kept.

States are small numbers, as in the other tables (``pandaflow.store.schema``): 1 ready, 2 sent,
3 running, 4 ended, 5 lost, 6 cancelled. ``due`` of a bundle that is not ready is when the pool's
care looks at it: one that is sent or running is lost then, if it was ``heard`` of too long ago;
the row of one that is over goes. Nothing that a heartbeat or a start changes is indexed, nor named
by an index's condition, so that PostgreSQL writes no index for them. No foreign keys, as there:
only the pool writes these tables.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pandaflow.store.schema import metadata

READY, SENT, RUNNING, ENDED, LOST, CANCELLED = 1, 2, 3, 4, 5, 6

#: 64 bits, and on SQLite still the row's own number.
_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
#: Rows that change often leave room for their next version on the page.
_ROOM = {"fillfactor": "80"}
#: Rows that come and go are cleaned away before there are many dead ones.
_FLEETING = {"autovacuum_vacuum_scale_factor": "0.05"}


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


pool_runs = sa.Table(
    "pool_runs",
    metadata,
    sa.Column("no", _BIG, primary_key=True, comment="short key of the other tables"),
    sa.Column("run", sa.Text, nullable=False, unique=True),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    _text("name"),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("gone", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("seq", _BIG, nullable=False, server_default="0", comment="of its last outcome"),
    sa.Column("acked", _BIG, nullable=False, server_default="0", comment="its driver has these"),
    _counter("ready"),
    _counter("held"),
    sa.Column("latest", _BIG, comment="class of the bundle that came last"),
    sa.CheckConstraint("ready >= 0 AND held >= 0", name="counts"),
    sa.CheckConstraint("acked BETWEEN 0 AND seq", name="acked"),
    sqlite_autoincrement=True,
    postgresql_with=_ROOM,
)

pool_payloads = sa.Table(
    "pool_payloads",
    metadata,
    sa.Column("run", _BIG, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

pool_classes = sa.Table(
    "pool_classes",
    metadata,
    sa.Column("no", _BIG, primary_key=True),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("needs", sa.Text, nullable=False, comment="as JSON"),
    sa.Column("used", sa.Double, nullable=False),
    sqlite_autoincrement=True,
)

pool_bundles = sa.Table(
    "pool_bundles",
    metadata,
    sa.Column("id", _BIG, primary_key=True),
    sa.Column("run", _BIG, nullable=False),
    sa.Column("bundle", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("class", _BIG, nullable=False),
    sa.Column("rank", _BIG, nullable=False, comment="priority with its sign changed"),
    sa.Column("state", sa.SmallInteger, nullable=False, server_default="1"),
    sa.Column("queue", sa.Text),
    sa.Column("pilot", sa.Text),
    sa.Column("host", sa.Text),
    sa.Column("lease", sa.Text, comment="digest"),
    sa.Column("seq", sa.Integer, nullable=False, server_default="0", comment="last report"),
    sa.Column("heartbeat", sa.Double),
    sa.Column("due", sa.Double),
    sa.Column("heard", sa.Double),
    sa.Column("outcome", _BIG, comment="number of its last one"),
    sa.Column("wish", sa.Text, nullable=False, server_default="", comment="for its pilot"),
    _text("why"),
    sa.Column("start", sa.Double, comment="seconds in which it is to start; while it is held"),
    sa.CheckConstraint("state BETWEEN 1 AND 6", name="state"),
    sa.CheckConstraint("seq >= 0", name="seq"),
    sa.CheckConstraint(
        "state NOT IN (2, 3, 4, 5) OR (lease IS NOT NULL AND pilot IS NOT NULL "
        "AND queue IS NOT NULL AND heartbeat IS NOT NULL)",
        name="held",
    ),
    sa.CheckConstraint("(state = 1) = (due IS NULL)", name="due"),
    sa.CheckConstraint("state <> 1 OR lease IS NULL", name="free"),
    sa.CheckConstraint("wish IN ('', 'tail', 'let go')", name="wish"),
    sa.UniqueConstraint("run", "bundle", "attempt"),
    sa.Index("ix_pool_bundles_ready", "class", "rank", "id", **_where("due IS NULL")),
    sa.Index("ix_pool_bundles_due", "due", **_where("due IS NOT NULL")),
    sa.Index("ix_pool_bundles_held", "queue", "pilot", **_where("start IS NOT NULL")),
    # An id is never given twice: a late report must not meet another bundle.
    sqlite_autoincrement=True,
    postgresql_with={
        # Most bundles start and beat on the page where they were given out.
        "fillfactor": "60",
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_analyze_scale_factor": "0.05",
    },
)

pool_work = sa.Table(
    "pool_work",
    metadata,
    sa.Column("id", _BIG, primary_key=True, autoincrement=False, comment="of the bundle"),
    sa.Column("body", sa.Text, nullable=False, comment="as JSON"),
    postgresql_with=_FLEETING,
)

pool_outcomes = sa.Table(
    "pool_outcomes",
    metadata,
    sa.Column("run", _BIG, primary_key=True, autoincrement=False),
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("bundle", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("pilot", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False, comment="reply, results and so on, as JSON"),
    sa.CheckConstraint("kind IN ('started', 'ended', 'lost')", name="kind"),
    # A bundle is over once.
    sa.Index(
        "ix_pool_outcomes_over",
        *("run", "bundle", "attempt"),
        unique=True,
        **_where("kind <> 'started'"),
    ),
    postgresql_with=_FLEETING,
)

pool_logs = sa.Table(
    "pool_logs",
    metadata,
    sa.Column("run", _BIG, primary_key=True, autoincrement=False),
    sa.Column("bundle", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

pool_queues = sa.Table(
    "pool_queues",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False, comment="as JSON"),
    sa.Column("state", sa.Text, nullable=False, server_default="open"),
    _text("reason"),
    sa.Column("held_until", sa.Double),
    sa.Column("holds", sa.Integer, nullable=False, server_default="0", comment="in a row"),
    sa.Column("ring", sa.Text, nullable=False, server_default="", comment="last ends, 1: spoiled"),
    sa.Column("probe", _BIG, comment="the bundle that tries it"),
    sa.Column("changed", sa.Double, nullable=False),
    sa.CheckConstraint("state IN ('open', 'held', 'probing', 'closed')", name="state"),
    sa.CheckConstraint("(state = 'held') = (held_until IS NOT NULL)", name="held"),
    sa.CheckConstraint("probe IS NULL OR state = 'probing'", name="probe"),
    postgresql_with=_ROOM,
)

pool_pilots = sa.Table(
    "pool_pilots",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("vo", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("free", sa.Integer, nullable=False, comment="cores after its last question"),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("heard", sa.Double, nullable=False),
    _text("command"),
    sa.CheckConstraint("command IN ('', 'drain', 'stop')", name="command"),
    postgresql_with=_ROOM,
)
