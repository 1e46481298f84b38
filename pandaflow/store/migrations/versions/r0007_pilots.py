"""Pilots: their tokens and goodbyes, and payloads that are asked to end before they are killed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    for table, name, comment in (
        ("pool_pilots", "gone", "it said so"),
        ("pool_bundles", "soft", "may end"),
    ):
        flag: sa.Column[bool] = sa.Column(
            name, sa.Boolean(), server_default=sa.false(), nullable=False, comment=comment
        )
        op.add_column(table, flag)
    _tokens()


def downgrade() -> None:
    """Forget them; what was asked to end is killed."""
    op.drop_table("pool_tokens")
    op.drop_column("pool_bundles", "soft")
    op.drop_column("pool_pilots", "gone")


def _tokens() -> None:
    op.create_table(
        "pool_tokens",
        sa.Column("digest", sa.Text(), nullable=False, comment="SHA-256: the token is the pilot's"),
        sa.Column("pilot", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("vo", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False, comment="whose proof it was made on"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column(
            "until", sa.Double(), nullable=False, comment="end of all that are renewed from it"
        ),
        sa.CheckConstraint("expires <= until", name=op.f("ck_pool_tokens_until")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_pool_tokens")),
    )
    op.create_index("ix_pool_tokens_pilot", "pool_tokens", ["pilot"])
    op.create_index("ix_pool_tokens_expires", "pool_tokens", ["expires"])
