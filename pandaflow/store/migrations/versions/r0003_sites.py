"""The view of jobs tells the site of a job's last bundle: jobs' own column was never filled."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_JOB_STATES = """
CREATE VIEW job_states AS
SELECT r.id AS run, t.name AS task, j.idx, s.name AS status, j.attempt, j.bundle, j.reason,
       b.executor, b.worker, {site}.site
FROM jobs j
JOIN runs r ON r.no = j.run
JOIN tasks t ON t.run = j.run AND t.id = j.task
JOIN job_statuses s ON s.code = j.status
LEFT JOIN bundles b ON b.run = j.run AND b.id = j.bundle
"""


def upgrade() -> None:
    """Take the site from the bundle."""
    _make_view("b")


def downgrade() -> None:
    """Take it from the job again."""
    _make_view("j")


def _make_view(site: str) -> None:
    op.execute("DROP VIEW job_states")
    op.execute(_JOB_STATES.format(site=site))
