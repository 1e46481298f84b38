"""The pool: bundles wait in a database until pilots pull them (docs/adr/0015)."""

from __future__ import annotations

from pandaflow.grid.pool.errors import NotThere
from pandaflow.grid.pool.facade import Pool

__all__ = ["NotThere", "Pool"]
