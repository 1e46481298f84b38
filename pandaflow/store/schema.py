"""The tables. They guard what must never be broken; the code above only asks.

* One row a job, keyed by (run, task, index): a job cannot have two live attempts.
* A job has no row before something happens to it: it is in its task's ``initial`` state. A
  million-job task starts as one row.
* A live or finished job has an attempt; counts are never negative and add up to ``n``.
* ``attempts``, ``events`` and ``study_log`` are only ever appended to.
* A trial of a study is asked once and told once.

A run that is ``served`` was left with a server: whichever runner is free drives it. ``vo`` and
``submitter`` say whose it is; both are empty where everybody is trusted.

Job states are small numbers here (``job_statuses`` and the view ``job_states`` name them):
CHECKs and partial indexes on text made each change of state four times dearer (measured on
SQLite: 2.2 against 8.1 us of CPU for sent, running and finished together). For the same reason
``jobs``, ``attempts``, ``events`` and ``study_log`` have no foreign keys; only a fenced driver
or writer writes them.

``migrations/`` creates and upgrades this; a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from pandaflow.core.status import JOB_CODES, JobStatus, RunStatus, TaskStatus

#: Newest revision of the schema, as in ``migrations/versions``.
HEAD = "0006"
#: Where Alembic keeps the revision; its own name, so that a database can be shared.
VERSION_TABLE = "pandaflow_version"

#: Attempt outcomes and job states share their codes (``pandaflow.core.status.JOB_CODE``).
FINISHED, FAILED, CANCELLED, CLOSED = 5, 6, 7, 8
#: Job codes above this ended off the smooth path; a partial index finds them.
OFF_PATH = FINISHED

metadata = sa.MetaData(
    naming_convention={
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def count_column(status: JobStatus) -> str:
    """Return the name of the column of ``tasks`` that counts jobs in ``status``."""
    return f"n_{status.value}"


#: The count columns, in the order of the job codes.
COUNTS: tuple[str, ...] = tuple(count_column(status) for status in JOB_CODES)


def _one_of(column: str, states: type[StrEnum]) -> sa.CheckConstraint:
    words = ", ".join(f"'{state.value}'" for state in states)
    return sa.CheckConstraint(f"{column} IN ({words})", name=column)


def _key(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, primary_key=True, autoincrement=False)


runs = sa.Table(
    "runs",
    metadata,
    sa.Column("no", sa.Integer, primary_key=True, comment="short key of the other tables"),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("ended", sa.Double),
    sa.Column("spec", _JSON, nullable=False),
    sa.Column("params", _JSON, nullable=False),
    sa.Column("results", sa.Text, nullable=False),
    sa.Column("vo", sa.Text, nullable=False, server_default=""),
    sa.Column("submitter", sa.Text, nullable=False, server_default=""),
    sa.Column("served", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("owner_host", sa.Text),
    sa.Column("owner_pid", sa.Integer),
    sa.Column("owner_started", sa.Double),
    sa.Column("owner_token", sa.Text),
    sa.Column("lease_until", sa.Double),
    sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
    sa.Column("commits", sa.Integer, nullable=False, server_default="0"),
    _one_of("status", RunStatus),
    sa.CheckConstraint("(owner_token IS NULL) = (lease_until IS NULL)", name="lease"),
    sa.Index(
        "ix_runs_served",
        "status",
        sqlite_where=sa.text("served"),
        postgresql_where=sa.text("served"),
    ),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("run", sa.ForeignKey(runs.c.no), primary_key=True, autoincrement=False),
    _key("id"),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("internal", sa.Boolean, nullable=False),
    sa.Column("spec", _JSON, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="defined"),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("n", sa.Integer, nullable=False, server_default="0"),
    sa.Column("closed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("initial", sa.SmallInteger, nullable=False, server_default="0"),
    *(sa.Column(name, sa.Integer, nullable=False, server_default="0") for name in COUNTS),
    sa.Column("changed", sa.Double),
    _one_of("status", TaskStatus),
    sa.CheckConstraint("initial IN (0, 1)", name="initial"),
    sa.CheckConstraint(" AND ".join(f"{name} >= 0" for name in COUNTS), name="counts"),
    sa.CheckConstraint(f"{' + '.join(COUNTS)} = n", name="sum"),
    sa.UniqueConstraint("run", "name"),
)

job_statuses = sa.Table(
    "job_statuses",
    metadata,
    sa.Column("code", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False, unique=True),
)

jobs = sa.Table(
    "jobs",
    metadata,
    _key("run"),
    _key("task"),
    _key("idx"),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("bundle", sa.Integer, comment="of the last attempt"),
    sa.Column("reason", sa.Text),
    sa.Column("retried", sa.Integer, comment="a person's retry forgave failures up to here"),
    sa.Column("not_before", sa.Double),
    sa.Column("site", sa.Text),
    sa.Column("lease_until", sa.Double),
    sa.Column("lease_owner", sa.Text),
    sa.CheckConstraint("status BETWEEN 0 AND 8", name="status"),
    sa.CheckConstraint("idx >= 0", name="idx"),
    sa.CheckConstraint("attempt >= 1 OR status NOT IN (2, 3, 4, 5)", name="attempt"),
    sa.Index(
        "ix_jobs_off_path",
        "run",
        "task",
        "status",
        "idx",
        sqlite_where=sa.text(f"status > {OFF_PATH}"),
        postgresql_where=sa.text(f"status > {OFF_PATH}"),
    ),
    sqlite_with_rowid=False,
)

attempts = sa.Table(
    "attempts",
    metadata,
    _key("run"),
    _key("task"),
    _key("idx"),
    _key("attempt"),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("bundle", sa.Integer, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("wall", sa.Double),
    sa.Column("cpu", sa.Double),
    sa.Column("max_pss", sa.BigInteger),
    sa.Column("read_bytes", sa.BigInteger),
    sa.Column("written_bytes", sa.BigInteger),
    sa.Column("disk", sa.BigInteger),
    sa.Column("cached", sa.SmallInteger),
    sa.Column("failure", _JSON),
    sa.Column("charged", sa.SmallInteger),
    sa.Column("log_offset", sa.BigInteger),
    sa.Column("log_length", sa.BigInteger),
    sa.CheckConstraint("status BETWEEN 5 AND 7", name="status"),
    sa.CheckConstraint("(status = 5) = (charged IS NULL)", name="charged"),
    sa.Index(
        "ix_attempts_failed",
        "run",
        "task",
        "idx",
        "charged",
        sqlite_where=sa.text("charged IS NOT NULL"),
        postgresql_where=sa.text("charged IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
)

bundles = sa.Table(
    "bundles",
    metadata,
    sa.Column("run", sa.ForeignKey(runs.c.no), primary_key=True, autoincrement=False),
    _key("id"),
    sa.Column("task", sa.Integer, nullable=False),
    sa.Column("first", sa.Integer, nullable=False),
    sa.Column("last", sa.Integer, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("jobs", _JSON, comment="the indices, where they are not contiguous"),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("executor", sa.Text, nullable=False),
    sa.Column("worker", sa.Text, nullable=False, server_default=""),
    sa.Column("site", sa.Text),
    sa.Column("status", sa.Text, nullable=False, server_default="sent"),
    sa.Column("sent", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("ended", sa.Double, comment="when none of its jobs was live any more"),
    sa.Column("location", sa.Text, nullable=False, server_default=""),
    sa.Column("checksum", sa.Text, nullable=False, server_default=""),
    sa.Column("nbytes", sa.BigInteger),
    sa.CheckConstraint("status IN ('sent', 'running', 'ended', 'dropped')", name="status"),
    sa.Index(
        "ix_bundles_live",
        "run",
        "task",
        sqlite_where=sa.text("ended IS NULL"),
        postgresql_where=sa.text("ended IS NULL"),
    ),
    sqlite_with_rowid=False,
)

events = sa.Table(
    "events",
    metadata,
    _key("run"),
    _key("seq"),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("task", sa.Integer),
    sa.Column("first", sa.Integer),
    sa.Column("last", sa.Integer),
    sa.Column("jobs", _JSON, comment="the indices, where they are not contiguous"),
    sa.Column("attempt", sa.Integer),
    sa.Column("bundle", sa.Integer),
    sa.Column("start", sa.Text),
    sa.Column("finish", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("detail", _JSON),
    sqlite_with_rowid=False,
)

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("run", sa.ForeignKey(runs.c.no), primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, primary_key=True),
    _key("id"),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("closed", sa.Boolean, nullable=False),
    sa.CheckConstraint("kind IN ('source', 'scattered')", name="kind"),
    sa.CheckConstraint("n >= 0", name="n"),
)

items = sa.Table(
    "items",
    metadata,
    _key("run"),
    sa.Column("kind", sa.Text, primary_key=True),
    _key("dataset"),
    _key("position"),
    sa.Column("job", sa.Integer, comment="the job that brought it"),
    sa.Column("count", sa.Integer, nullable=False, server_default="1"),
    sa.Column("name", sa.Text),
    sa.Column("size", sa.BigInteger),
    sa.Column("checksum", sa.Text),
    sa.Column("events", sa.BigInteger),
    sa.Column("status", sa.Text, nullable=False, server_default="available"),
    sa.Column("replicas", _JSON),
    sa.CheckConstraint("status IN ('available', 'staging', 'missing')", name="status"),
    sqlite_with_rowid=False,
)

sites = sa.Table(
    "sites",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("executor", sa.Text, nullable=False),
    sa.Column("spec", _JSON, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="online"),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("changed", sa.Double),
    sa.CheckConstraint("status IN ('online', 'offline', 'test')", name="status"),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.ForeignKey(runs.c.no), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", _JSON, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("done", sa.Double),
    sa.Index(
        "ix_requests_open",
        "run",
        sqlite_where=sa.text("done IS NULL"),
        postgresql_where=sa.text("done IS NULL"),
    ),
    # Ids are never given twice, also when rows were removed by hand.
    sqlite_autoincrement=True,
)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("no", sa.Integer, primary_key=True, comment="short key of the log"),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("status", sa.Text, nullable=False, server_default="running"),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("changed", sa.Double, nullable=False),
    # Text, no JSONB: that would sort the keys and make 0.0 of -0.0.
    sa.Column("head", sa.Text, nullable=False, comment="the definition, as JSON"),
    sa.Column("summary", sa.Text, nullable=False, server_default="{}", comment="as JSON"),
    sa.Column("run", sa.Text, comment="id of the run that carries its trials"),
    sa.Column("records", sa.Integer, nullable=False, server_default="0", comment="of its log"),
    sa.Column("owner_host", sa.Text),
    sa.Column("owner_pid", sa.Integer),
    sa.Column("owner_started", sa.Double),
    sa.Column("owner_token", sa.Text),
    sa.Column("lease_until", sa.Double),
    sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
    sa.CheckConstraint("status IN ('running', 'stopped', 'done', 'failed')", name="status"),
    sa.CheckConstraint("(owner_token IS NULL) = (lease_until IS NULL)", name="lease"),
    # A deleted study's number is not given again: a late reader or writer must not meet another.
    sqlite_autoincrement=True,
)

study_log = sa.Table(
    "study_log",
    metadata,
    _key("study"),
    _key("seq"),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("trial", sa.Integer),
    sa.Column("body", sa.Text, nullable=False, comment="JSON; text keeps floats as written"),
    sa.CheckConstraint("trial IS NOT NULL OR kind NOT IN ('ask', 'tell')", name="trial"),
    *(
        sa.Index(
            f"ix_study_log_{kind}",
            "study",
            "trial",
            unique=True,
            sqlite_where=sa.text(f"kind = '{kind}'"),
            postgresql_where=sa.text(f"kind = '{kind}'"),
        )
        for kind in ("ask", "tell")
    ),
    sqlite_with_rowid=False,
)

# Last, since they are made in the metadata above: whoever knows it, knows the pool's tables too.
from pandaflow.store import pool_tables  # noqa: E402, F401
