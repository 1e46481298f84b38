"""Alembic's scripts, one file a revision in ``versions``; run by ``pandaflow.store.database``."""
