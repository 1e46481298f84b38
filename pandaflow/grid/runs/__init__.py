"""Runs that are left with a server: a state store seen over HTTP.

Nothing is imported here: :mod:`pandaflow.grid.runs.store` needs httpx, the messages do not.
"""
