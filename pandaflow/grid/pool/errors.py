"""What the pool says when something is not there."""

from __future__ import annotations

from pandaflow.core.errors import PandaflowError


class NotThere(PandaflowError, LookupError):
    """There is no such run, bundle, queue or pilot, or none that the one who asks may see."""
