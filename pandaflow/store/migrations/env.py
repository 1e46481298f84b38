"""Alembic's environment: runs the revisions on the connection it is given.

The caller holds the transaction and the lock, so that two processes may open a new database
at once and a revision is applied as a whole or not at all.
"""

from __future__ import annotations

from alembic import context

from pandaflow.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
