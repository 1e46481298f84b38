"""Queues and errors as the server's JSON: what sites give, and what they are wanted for."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from pandaflow.grid.messages import Message, Name, Needs, Tags

#: Ready bundles of a class that are counted at most: no queue needs more pilots than that.
COUNTED = 10_000


class Provision(Message):
    """How many pilots a harvester keeps at a queue.

    Attributes
    ----------
    min_pilots, max_pilots : int
        To have there whatever waits, and to have at most, those on their way included.
    max_waiting : int
        To have in the batch system's own queue at most.
    pilots_a_minute : float
        To submit at most.
    idle : float
        Seconds without work after which a pilot goes.
    """

    min_pilots: int = Field(default=0, ge=0, le=100_000)
    max_pilots: int = Field(default=10, ge=0, le=100_000)
    max_waiting: int = Field(default=10, ge=0, le=100_000)
    pilots_a_minute: float = Field(default=60.0, gt=0, le=100_000)
    idle: float = Field(default=300.0, ge=1, le=7 * 86_400)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_pilots > self.max_pilots:
            raise ValueError(f"min_pilots={self.min_pilots} is above max_pilots={self.max_pilots}")
        return self


class QueueBody(Message):
    """A queue, as people and the provisioner write it.

    Attributes
    ----------
    site : dict
        Fields of :class:`pandaflow.Site` besides its name.
    vos : tuple of str
        Whose bundles it runs; none: everybody's.
    heartbeat : float
        Seconds after which a pilot that was not heard of has lost its bundles.
    start : float
        Seconds after which a bundle that was sent and did not start is taken back.
    tags : tuple of str
    provision : Provision
        For the harvester that serves it, if there is one.
    """

    site: dict[str, str | int | float | list[str] | None] = Field(default_factory=dict)
    vos: Tags = ()
    heartbeat: float = Field(default=300.0, ge=1, le=7 * 86_400)
    start: float = Field(default=600.0, ge=1, le=7 * 86_400)
    tags: Tags = ()
    provision: Provision = Provision()


class Queue(QueueBody):
    """A queue, as the server tells it.

    Attributes
    ----------
    name : str
    state : {'open', 'held', 'probing', 'closed'}
        ``held``: its bundles failed too often; ``closed``: an operator says so.
    reason : str
    held_until : float or None
        Seconds since the epoch.
    pilots, running : int
    """

    name: Name
    state: Literal["open", "held", "probing", "closed"] = "open"
    reason: str = ""
    held_until: float | None = None
    pilots: int = 0
    running: int = 0


class ClassDemand(Message):
    """Bundles of equal needs that a queue may run.

    Attributes
    ----------
    needs : Needs
    ready : int
        That wait, for this queue or for any; counted up to a bound.
    running : int
        That pilots of this queue have.
    """

    needs: Needs
    ready: int = 0
    running: int = 0


class Demand(Message):
    """What a queue is wanted for, by those who ask: their VO's bundles.

    Attributes
    ----------
    queue : Queue
    classes : tuple of ClassDemand
        Those of which some are ready or run there; ordered.
    """

    queue: Queue
    classes: tuple[ClassDemand, ...] = ()


class Problem(BaseModel):
    """An error, as RFC 9457 writes it (``application/problem+json``).

    ``error``: name of the exception that PandaFlow raises for it, where there is one.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    instance: str = ""
    error: str = ""
