"""Heartbeats and starts of the pool's bundles touch no index; their table is cleaned often."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_OLD = {"due": "state > 1", "ready": "state = 1"}
_NEW = {"due": "due IS NOT NULL", "ready": "due IS NULL"}
_COLUMNS = {"due": ["due"], "ready": ["class", "rank", "id"]}
#: Of tables on PostgreSQL: before and now.
_SETTINGS: dict[str, dict[str, tuple[str | None, str]]] = {
    "pool_bundles": {
        "fillfactor": ("80", "60"),
        "autovacuum_vacuum_scale_factor": (None, "0.02"),
        "autovacuum_analyze_scale_factor": (None, "0.05"),
    },
    "pool_outcomes": {"autovacuum_vacuum_scale_factor": (None, "0.05")},
    "pool_work": {"autovacuum_vacuum_scale_factor": (None, "0.05")},
}


def upgrade() -> None:
    """Index what heartbeats leave alone; remember the seconds that a bundle may take to start."""
    start: sa.Column[float] = sa.Column("start", sa.Double(), nullable=True)
    start.comment = "seconds in which it is to start; while it is held"
    op.add_column("pool_bundles", start)
    op.execute("UPDATE pool_bundles SET start = due - heard WHERE state IN (2, 3)")
    _index(_NEW)
    op.create_index(
        "ix_pool_bundles_held",
        "pool_bundles",
        ["queue", "pilot"],
        sqlite_where=sa.text("start IS NOT NULL"),
        postgresql_where=sa.text("start IS NOT NULL"),
    )
    _set(1)


def downgrade() -> None:
    """Index by state again."""
    _set(0)
    op.drop_index("ix_pool_bundles_held", "pool_bundles")
    _index(_OLD)
    op.drop_column("pool_bundles", "start")


def _index(conditions: dict[str, str]) -> None:
    for name, condition in conditions.items():
        op.drop_index(f"ix_pool_bundles_{name}", "pool_bundles")
        op.create_index(
            f"ix_pool_bundles_{name}",
            "pool_bundles",
            _COLUMNS[name],
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )


def _set(which: int) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, settings in _SETTINGS.items():
        for name, values in settings.items():
            value = values[which]
            change = f"RESET ({name})" if value is None else f"SET ({name} = {value})"
            op.execute(f"ALTER TABLE {table} {change}")
