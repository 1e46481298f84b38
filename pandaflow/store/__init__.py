"""Where runs live: the state store on SQLite or PostgreSQL.

Nothing is imported here, so that ``import pandaflow`` stays light; the store is in
:mod:`pandaflow.store.sql`.
"""
