"""Studies and their logs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    _studies()
    _study_log()


def downgrade() -> None:
    """Drop them."""
    op.drop_table("study_log")
    op.drop_table("studies")


def _studies() -> None:
    op.create_table(
        "studies",
        sa.Column("no", sa.Integer(), nullable=False, comment="short key of the log"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="running", nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.Column("head", sa.Text(), nullable=False, comment="the definition, as JSON"),
        sa.Column("summary", sa.Text(), server_default="{}", nullable=False, comment="as JSON"),
        sa.Column("run", sa.Text(), nullable=True, comment="id of the run that carries its trials"),
        sa.Column(
            "records", sa.Integer(), server_default="0", nullable=False, comment="of its log"
        ),
        sa.Column("owner_host", sa.Text(), nullable=True),
        sa.Column("owner_pid", sa.Integer(), nullable=True),
        sa.Column("owner_started", sa.Double(), nullable=True),
        sa.Column("owner_token", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "status IN ('running', 'stopped', 'done', 'failed')", name=op.f("ck_studies_status")
        ),
        sa.CheckConstraint(
            "(owner_token IS NULL) = (lease_until IS NULL)", name=op.f("ck_studies_lease")
        ),
        sa.PrimaryKeyConstraint("no", name=op.f("pk_studies")),
        sa.UniqueConstraint("name", name=op.f("uq_studies_name")),
        sqlite_autoincrement=True,
    )


def _study_log() -> None:
    op.create_table(
        "study_log",
        sa.Column("study", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False, comment="JSON; text keeps floats as written"),
        sa.CheckConstraint(
            "trial IS NOT NULL OR kind NOT IN ('ask', 'tell')", name=op.f("ck_study_log_trial")
        ),
        sa.PrimaryKeyConstraint("study", "seq", name=op.f("pk_study_log")),
        sqlite_with_rowid=False,
    )
    for kind in ("ask", "tell"):
        op.create_index(
            f"ix_study_log_{kind}",
            "study_log",
            ["study", "trial"],
            unique=True,
            sqlite_where=sa.text(f"kind = '{kind}'"),
            postgresql_where=sa.text(f"kind = '{kind}'"),
        )
