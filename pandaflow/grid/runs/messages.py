"""What people send to a server about their runs, and what it answers: JSON bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, RootModel, StringConstraints

from pandaflow.grid.messages import Message

#: Items of a source, and jobs of a task without inputs, that a server takes.
MOST_ITEMS = 10_000_000
#: Ids of runs that a server takes: words that are names of folders anywhere.
RUN_ID = r"^[\w-]{1,100}$"
#: Names of what a run brings along: no folders, nothing hidden.
BLOB = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"

#: The place of a job: id of its task, and index.
PLACE = r"^[0-9]{1,9}:[0-9]{1,9}$"

TaskName = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]


class Left(Message):
    """A workflow that is left with a server; what it refers to has been uploaded before.

    Attributes
    ----------
    spec : dict
        As state stores keep it: ``{"version": 1, "workflow": {...}}``.
    """

    spec: dict[str, Any]


class Cancel(Message):
    """Stop a run, a task or a job."""

    kind: Literal["cancel"]
    task: TaskName | None = None
    job: int | None = Field(default=None, ge=0, lt=2**31)


class Pause(Message):
    """Start nothing new."""

    kind: Literal["pause"]


class Resume(Message):
    """Go on after a pause."""

    kind: Literal["resume"]


class Retry(Message):
    """Run again what failed; ``restart``: also what finished. ``options`` are changed first."""

    kind: Literal["retry"]
    task: TaskName | None = None
    restart: bool = False
    options: dict[str, int | float | str | None] = Field(default_factory=dict, max_length=20)


class Append(Message):
    """Tell of items of a stream that were uploaded; ``closed``: no more will come."""

    kind: Literal["append"]
    source: int = Field(ge=0, lt=2**31)
    count: int = Field(ge=0, le=MOST_ITEMS)
    closed: bool = False


AnyWish: TypeAlias = Annotated[
    Cancel | Pause | Resume | Retry | Append, Field(discriminator="kind")
]


class Wish(RootModel[AnyWish]):
    """A wish for whoever drives the run: one of ``cancel, pause, resume, retry, append``."""


class Wished(Message):
    """The number of a wish."""

    id: int


class WishState(Message):
    """What became of a wish.

    Attributes
    ----------
    id : int
    kind : str
    status : {'open', 'done', 'refused'}
    reason : str
        Why it was refused.
    """

    id: int
    kind: str
    status: Literal["open", "done", "refused"]
    reason: str = ""


class Driven(Message):
    """Whether a runner drives a run now."""

    driven: bool


class Noted(Message):
    """Events of one kind, and the number of the newest event of any."""

    events: list[dict[str, Any]]
    newest: int


class JobPage(Message):
    """Jobs of a run, some at a time.

    Attributes
    ----------
    jobs : list of dict
    after : str or None
        What to ask for next, ``task id:index``; None: these were the last.
    """

    jobs: list[dict[str, Any]]
    after: str | None = None
