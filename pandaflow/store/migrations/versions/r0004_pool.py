"""The grid's pool: runs, bundles, what became of them, queues and pilots."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_ROOM = {"fillfactor": "80"}


def upgrade() -> None:
    """Create the tables."""
    _runs()
    _payloads()
    _classes()
    _bundles()
    _work()
    _outcomes()
    _logs()
    _queues()
    _pilots()


def downgrade() -> None:
    """Drop them."""
    op.drop_table("pool_pilots")
    op.drop_table("pool_queues")
    op.drop_table("pool_logs")
    op.drop_table("pool_outcomes")
    op.drop_table("pool_work")
    op.drop_table("pool_bundles")
    op.drop_table("pool_classes")
    op.drop_table("pool_payloads")
    op.drop_table("pool_runs")


def _runs() -> None:
    op.create_table(
        "pool_runs",
        sa.Column("no", _BIG, nullable=False, comment="short key of the other tables"),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("vo", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("gone", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("seq", _BIG, server_default="0", nullable=False, comment="of its last outcome"),
        sa.Column(
            "acked", _BIG, server_default="0", nullable=False, comment="its driver has these"
        ),
        sa.Column("ready", sa.Integer(), server_default="0", nullable=False),
        sa.Column("held", sa.Integer(), server_default="0", nullable=False),
        sa.Column("latest", _BIG, nullable=True, comment="class of the bundle that came last"),
        sa.CheckConstraint("acked BETWEEN 0 AND seq", name=op.f("ck_pool_runs_acked")),
        sa.CheckConstraint("ready >= 0 AND held >= 0", name=op.f("ck_pool_runs_counts")),
        sa.PrimaryKeyConstraint("no", name=op.f("pk_pool_runs")),
        sa.UniqueConstraint("run", name=op.f("uq_pool_runs_run")),
        postgresql_with=_ROOM,
        sqlite_autoincrement=True,
    )


def _payloads() -> None:
    op.create_table(
        "pool_payloads",
        sa.Column("run", _BIG, autoincrement=False, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run", "digest", name=op.f("pk_pool_payloads")),
    )


def _classes() -> None:
    op.create_table(
        "pool_classes",
        sa.Column("no", _BIG, nullable=False),
        sa.Column("vo", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("needs", sa.Text(), nullable=False, comment="as JSON"),
        sa.Column("used", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("no", name=op.f("pk_pool_classes")),
        sa.UniqueConstraint("digest", name=op.f("uq_pool_classes_digest")),
        sqlite_autoincrement=True,
    )


def _bundles() -> None:
    op.create_table(
        "pool_bundles",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("run", _BIG, nullable=False),
        sa.Column("bundle", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("class", _BIG, nullable=False),
        sa.Column("rank", _BIG, nullable=False, comment="priority with its sign changed"),
        sa.Column("state", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("pilot", sa.Text(), nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("lease", sa.Text(), nullable=True, comment="digest"),
        sa.Column("seq", sa.Integer(), server_default="0", nullable=False, comment="last report"),
        sa.Column("heartbeat", sa.Double(), nullable=True),
        sa.Column("due", sa.Double(), nullable=True),
        sa.Column("heard", sa.Double(), nullable=True),
        sa.Column("outcome", _BIG, nullable=True, comment="number of its last one"),
        sa.Column("wish", sa.Text(), server_default="", nullable=False, comment="for its pilot"),
        sa.Column("why", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("wish IN ('', 'tail', 'let go')", name=op.f("ck_pool_bundles_wish")),
        sa.CheckConstraint("(state = 1) = (due IS NULL)", name=op.f("ck_pool_bundles_due")),
        sa.CheckConstraint("seq >= 0", name=op.f("ck_pool_bundles_seq")),
        sa.CheckConstraint("state <> 1 OR lease IS NULL", name=op.f("ck_pool_bundles_free")),
        sa.CheckConstraint("state BETWEEN 1 AND 6", name=op.f("ck_pool_bundles_state")),
        sa.CheckConstraint(
            "state NOT IN (2, 3, 4, 5) OR (lease IS NOT NULL AND pilot IS NOT NULL "
            "AND queue IS NOT NULL AND heartbeat IS NOT NULL)",
            name=op.f("ck_pool_bundles_held"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool_bundles")),
        sa.UniqueConstraint("run", "bundle", "attempt", name=op.f("uq_pool_bundles_run")),
        postgresql_with=_ROOM,
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_pool_bundles_due",
        "pool_bundles",
        ["due"],
        unique=False,
        sqlite_where=sa.text("state > 1"),
        postgresql_where=sa.text("state > 1"),
    )
    op.create_index(
        "ix_pool_bundles_ready",
        "pool_bundles",
        ["class", "rank", "id"],
        unique=False,
        sqlite_where=sa.text("state = 1"),
        postgresql_where=sa.text("state = 1"),
    )


def _work() -> None:
    op.create_table(
        "pool_work",
        sa.Column("id", _BIG, autoincrement=False, nullable=False, comment="of the bundle"),
        sa.Column("body", sa.Text(), nullable=False, comment="as JSON"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool_work")),
    )


def _outcomes() -> None:
    op.create_table(
        "pool_outcomes",
        sa.Column("run", _BIG, autoincrement=False, nullable=False),
        sa.Column("seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("pilot", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="reply, results and so on, as JSON"),
        sa.CheckConstraint(
            "kind IN ('started', 'ended', 'lost')", name=op.f("ck_pool_outcomes_kind")
        ),
        sa.PrimaryKeyConstraint("run", "seq", name=op.f("pk_pool_outcomes")),
    )
    op.create_index(
        "ix_pool_outcomes_over",
        "pool_outcomes",
        ["run", "bundle", "attempt"],
        unique=True,
        sqlite_where=sa.text("kind <> 'started'"),
        postgresql_where=sa.text("kind <> 'started'"),
    )


def _logs() -> None:
    op.create_table(
        "pool_logs",
        sa.Column("run", _BIG, autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run", "bundle", "attempt", name=op.f("pk_pool_logs")),
    )


def _queues() -> None:
    op.create_table(
        "pool_queues",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="as JSON"),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("held_until", sa.Double(), nullable=True),
        sa.Column("holds", sa.Integer(), server_default="0", nullable=False, comment="in a row"),
        sa.Column(
            "ring", sa.Text(), server_default="", nullable=False, comment="last ends, 1: spoiled"
        ),
        sa.Column("probe", _BIG, nullable=True, comment="the bundle that tries it"),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "(state = 'held') = (held_until IS NOT NULL)", name=op.f("ck_pool_queues_held")
        ),
        sa.CheckConstraint("probe IS NULL OR state = 'probing'", name=op.f("ck_pool_queues_probe")),
        sa.CheckConstraint(
            "state IN ('open', 'held', 'probing', 'closed')", name=op.f("ck_pool_queues_state")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pool_queues")),
        postgresql_with=_ROOM,
    )


def _pilots() -> None:
    op.create_table(
        "pool_pilots",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("vo", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("free", sa.Integer(), nullable=False, comment="cores after its last question"),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("heard", sa.Double(), nullable=False),
        sa.Column("command", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("command IN ('', 'drain', 'stop')", name=op.f("ck_pool_pilots_command")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pool_pilots")),
        postgresql_with=_ROOM,
    )
