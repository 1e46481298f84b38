"""Runs that were left with a server: whose they are, and that any runner may drive them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; runs that are there belong to whoever drives them."""
    for name in ("vo", "submitter"):
        op.add_column("runs", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    served: sa.Column[bool] = sa.Column(
        "served", sa.Boolean(), nullable=False, server_default=sa.false()
    )
    op.add_column("runs", served)
    op.create_index(
        "ix_runs_served",
        "runs",
        ["status"],
        sqlite_where=sa.text("served"),
        postgresql_where=sa.text("served"),
    )


def downgrade() -> None:
    """Forget whose runs are."""
    op.drop_index("ix_runs_served", "runs")
    for name in ("served", "submitter", "vo"):
        op.drop_column("runs", name)
