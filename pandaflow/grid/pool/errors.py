"""What the pool says when something is not there."""

from __future__ import annotations

from typing import TypeAlias

from pandaflow.core.errors import PandaflowError
from pandaflow.grid.identity import Forbidden


class NotThere(PandaflowError, LookupError):
    """There is no such run, bundle, queue or pilot, or none that the one who asks may see."""


#: Why a pilot gets nothing.
Refused: TypeAlias = Forbidden | NotThere
