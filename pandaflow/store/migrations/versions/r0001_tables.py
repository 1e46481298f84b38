"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_JOB_STATUSES = (
    "pending",
    "ready",
    "sent",
    "running",
    "holding",
    "finished",
    "failed",
    "cancelled",
    "closed",
)
_COUNTS = tuple(f"n_{name}" for name in _JOB_STATUSES)
_TABLES = (
    "runs",
    "tasks",
    "job_statuses",
    "jobs",
    "attempts",
    "bundles",
    "events",
    "datasets",
    "items",
    "sites",
    "requests",
)

# Jobs that have a row, with words in place of numbers: for people with a SQL prompt.
_JOB_STATES = """
CREATE VIEW job_states AS
SELECT r.id AS run, t.name AS task, j.idx, s.name AS status, j.attempt, j.bundle, j.reason,
       b.executor, b.worker, j.site
FROM jobs j
JOIN runs r ON r.no = j.run
JOIN tasks t ON t.run = j.run AND t.id = j.task
JOIN job_statuses s ON s.code = j.status
LEFT JOIN bundles b ON b.run = j.run AND b.id = j.bundle
"""


def upgrade() -> None:
    """Create everything."""
    _runs()
    _tasks()
    _job_statuses()
    _jobs()
    _attempts()
    _bundles()
    _events()
    _datasets()
    _items()
    _sites()
    _requests()
    op.execute(_JOB_STATES)


def downgrade() -> None:
    """Drop everything."""
    op.execute("DROP VIEW job_states")
    for name in reversed(_TABLES):
        op.drop_table(name)


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("no", sa.Integer(), nullable=False, comment="short key of the other tables"),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("params", _JSON, nullable=False),
        sa.Column("results", sa.Text(), nullable=False),
        sa.Column("owner_host", sa.Text(), nullable=True),
        sa.Column("owner_pid", sa.Integer(), nullable=True),
        sa.Column("owner_started", sa.Double(), nullable=True),
        sa.Column("owner_token", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("commits", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "status IN ('defined', 'running', 'paused', 'done', 'finished', 'failed', 'aborted')",
            name=op.f("ck_runs_status"),
        ),
        sa.CheckConstraint(
            "(owner_token IS NULL) = (lease_until IS NULL)", name=op.f("ck_runs_lease")
        ),
        sa.PrimaryKeyConstraint("no", name=op.f("pk_runs")),
        sa.UniqueConstraint("id", name=op.f("uq_runs_id")),
    )


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("internal", sa.Boolean(), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("status", sa.Text(), server_default="defined", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("n", sa.Integer(), server_default="0", nullable=False),
        sa.Column("closed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("initial", sa.SmallInteger(), server_default="0", nullable=False),
        *(sa.Column(name, sa.Integer(), server_default="0", nullable=False) for name in _COUNTS),
        sa.Column("changed", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "status IN ('defined', 'ready', 'scouting', 'running', 'paused', 'done', 'finished', "
            "'failed', 'exhausted', 'aborted')",
            name=op.f("ck_tasks_status"),
        ),
        sa.CheckConstraint("initial IN (0, 1)", name=op.f("ck_tasks_initial")),
        sa.CheckConstraint(
            f"{' + '.join(_COUNTS)} = n",
            name=op.f("ck_tasks_sum"),
        ),
        sa.CheckConstraint(
            " AND ".join(f"{name} >= 0" for name in _COUNTS),
            name=op.f("ck_tasks_counts"),
        ),
        sa.ForeignKeyConstraint(["run"], ["runs.no"], name=op.f("fk_tasks_runs")),
        sa.PrimaryKeyConstraint("run", "id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("run", "name", name=op.f("uq_tasks_run")),
    )


def _job_statuses() -> None:
    table = op.create_table(
        "job_statuses",
        sa.Column("code", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_job_statuses")),
        sa.UniqueConstraint("name", name=op.f("uq_job_statuses_name")),
    )
    op.bulk_insert(table, [{"code": k, "name": name} for k, name in enumerate(_JOB_STATUSES)])


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("idx", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("bundle", sa.Integer(), nullable=True, comment="of the last attempt"),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "retried",
            sa.Integer(),
            nullable=True,
            comment="a person's retry forgave failures up to here",
        ),
        sa.Column("not_before", sa.Double(), nullable=True),
        sa.Column("site", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "attempt >= 1 OR status NOT IN (2, 3, 4, 5)", name=op.f("ck_jobs_attempt")
        ),
        sa.CheckConstraint("idx >= 0", name=op.f("ck_jobs_idx")),
        sa.CheckConstraint("status BETWEEN 0 AND 8", name=op.f("ck_jobs_status")),
        sa.PrimaryKeyConstraint("run", "task", "idx", name=op.f("pk_jobs")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_jobs_off_path",
        "jobs",
        ["run", "task", "status", "idx"],
        unique=False,
        sqlite_where=sa.text("status > 5"),
        postgresql_where=sa.text("status > 5"),
    )


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("idx", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("bundle", sa.Integer(), nullable=False),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("wall", sa.Double(), nullable=True),
        sa.Column("cpu", sa.Double(), nullable=True),
        sa.Column("max_pss", sa.BigInteger(), nullable=True),
        sa.Column("read_bytes", sa.BigInteger(), nullable=True),
        sa.Column("written_bytes", sa.BigInteger(), nullable=True),
        sa.Column("disk", sa.BigInteger(), nullable=True),
        sa.Column("cached", sa.SmallInteger(), nullable=True),
        sa.Column("failure", _JSON, nullable=True),
        sa.Column("charged", sa.SmallInteger(), nullable=True),
        sa.Column("log_offset", sa.BigInteger(), nullable=True),
        sa.Column("log_length", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(status = 5) = (charged IS NULL)", name=op.f("ck_attempts_charged")),
        sa.CheckConstraint("status BETWEEN 5 AND 7", name=op.f("ck_attempts_status")),
        sa.PrimaryKeyConstraint("run", "task", "idx", "attempt", name=op.f("pk_attempts")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_attempts_failed",
        "attempts",
        ["run", "task", "idx", "charged"],
        unique=False,
        sqlite_where=sa.text("charged IS NOT NULL"),
        postgresql_where=sa.text("charged IS NOT NULL"),
    )


def _bundles() -> None:
    op.create_table(
        "bundles",
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task", sa.Integer(), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column(
            "jobs", _JSON, nullable=True, comment="the indices, where they are not contiguous"
        ),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("executor", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), server_default="", nullable=False),
        sa.Column("site", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="sent", nullable=False),
        sa.Column("sent", sa.Double(), nullable=False),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column(
            "ended", sa.Double(), nullable=True, comment="when none of its jobs was live any more"
        ),
        sa.Column("location", sa.Text(), server_default="", nullable=False),
        sa.Column("checksum", sa.Text(), server_default="", nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "status IN ('sent', 'running', 'ended', 'dropped')", name=op.f("ck_bundles_status")
        ),
        sa.ForeignKeyConstraint(["run"], ["runs.no"], name=op.f("fk_bundles_runs")),
        sa.PrimaryKeyConstraint("run", "id", name=op.f("pk_bundles")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_bundles_live",
        "bundles",
        ["run", "task"],
        unique=False,
        sqlite_where=sa.text("ended IS NULL"),
        postgresql_where=sa.text("ended IS NULL"),
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("task", sa.Integer(), nullable=True),
        sa.Column("first", sa.Integer(), nullable=True),
        sa.Column("last", sa.Integer(), nullable=True),
        sa.Column(
            "jobs", _JSON, nullable=True, comment="the indices, where they are not contiguous"
        ),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("bundle", sa.Integer(), nullable=True),
        sa.Column("start", sa.Text(), nullable=True),
        sa.Column("finish", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("detail", _JSON, nullable=True),
        sa.PrimaryKeyConstraint("run", "seq", name=op.f("pk_events")),
        sqlite_with_rowid=False,
    )


def _datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.CheckConstraint("kind IN ('source', 'scattered')", name=op.f("ck_datasets_kind")),
        sa.CheckConstraint("n >= 0", name=op.f("ck_datasets_n")),
        sa.ForeignKeyConstraint(["run"], ["runs.no"], name=op.f("fk_datasets_runs")),
        sa.PrimaryKeyConstraint("run", "kind", "id", name=op.f("pk_datasets")),
    )


def _items() -> None:
    op.create_table(
        "items",
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("job", sa.Integer(), nullable=True, comment="the job that brought it"),
        sa.Column("count", sa.Integer(), server_default="1", nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=True),
        sa.Column("events", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Text(), server_default="available", nullable=False),
        sa.Column("replicas", _JSON, nullable=True),
        sa.CheckConstraint(
            "status IN ('available', 'staging', 'missing')", name=op.f("ck_items_status")
        ),
        sa.PrimaryKeyConstraint("run", "kind", "dataset", "position", name=op.f("pk_items")),
        sqlite_with_rowid=False,
    )


def _sites() -> None:
    op.create_table(
        "sites",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("executor", sa.Text(), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("status", sa.Text(), server_default="online", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("changed", sa.Double(), nullable=True),
        sa.CheckConstraint("status IN ('online', 'offline', 'test')", name=op.f("ck_sites_status")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sites")),
    )


def _requests() -> None:
    op.create_table(
        "requests",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", _JSON, nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("done", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.no"], name=op.f("fk_requests_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_requests_open",
        "requests",
        ["run"],
        unique=False,
        sqlite_where=sa.text("done IS NULL"),
        postgresql_where=sa.text("done IS NULL"),
    )
