"""What users say about the grid that they use, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.remote import wire


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSettings:
    """A server, and how to use it.

    Attributes
    ----------
    server : str
        URL of the pool's server.
    queue : str
        The only queue to use; empty: any.
    near : tuple of str
        Queues to prefer: those close to the input.
    tags : tuple of str
        What pilots must have.
    data : str
        Folder or fsspec URL that driver and pilots reach, for what is too large for the server:
        works, replies, inputs and outputs of commands. Empty: there is none, and local paths are
        used as they are.
    requirements : tuple of str
        What pip installs for functions, in an environment of their own.
    slots : int
        Jobs to have ready for pilots while nobody knows how many there are.
    credentials : object or None
        Who asks; None: as ``pandaflow login`` or the environment has it.
    vo : str
        Virtual organisation to act for; empty: the only one.
    ca : str
        File of certificates that the server's is checked with; empty: the system's.
    wait : float
        Seconds that a question for outcomes may take.
    owner : str
        For services: whose a run is in the pool, if it is not theirs; needs the role production
        or operator.
    name : str or None
        For services: what is added to a run's id to name it in the pool, so that the next driver
        finds it again whatever the settings are then; None: what the settings make.
    """

    server: str
    queue: str = ""
    near: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    data: str = ""
    requirements: tuple[str, ...] = ()
    slots: int = 8
    credentials: Any = None
    vo: str = ""
    ca: str = ""
    wait: float = 10.0
    owner: str = ""
    name: str | None = None

    def __post_init__(self) -> None:
        server = str(self.server).rstrip("/")
        if not server.startswith(("https://", "http://")):
            raise WorkflowError(f"server={self.server!r}: give its URL, https://HOST:PORT")
        object.__setattr__(self, "server", server)
        for name in ("near", "tags", "requirements"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        if isinstance(self.slots, bool) or not isinstance(self.slots, int) or self.slots < 1:
            raise WorkflowError(f"slots={self.slots!r}: give a whole number of at least 1")
        if not 0 <= self.wait < math.inf:
            raise WorkflowError(f"wait={self.wait!r}: give a number of seconds")
        data = str(self.data).rstrip("/")
        object.__setattr__(self, "data", wire.local_path(data) or data if data else "")


def _names(name: str, value: object) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]
    if not all(isinstance(each, str) and each for each in given):
        raise WorkflowError(f"{name}={value!r}: give a list of words")
    return given


def make_settings(server: str, given: Mapping[str, Any]) -> GridSettings:
    """Parse what a user gave.

    Raises
    ------
    WorkflowError
        Names the setting.
    """
    known = set(GridSettings.__dataclass_fields__) - {"server"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise WorkflowError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    said = {name: value for name, value in given.items() if value is not None}
    return GridSettings(server=server, **said)
