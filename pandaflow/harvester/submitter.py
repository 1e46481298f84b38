"""The port behind which pilots are begun: what is ordered, and what a batch system tells of it.

A :class:`Submitter` serves one queue of one harvester. It keeps no account: which pilots there
are is in the harvester's journal, and what became of them is asked of the system each time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Shape:
    """What one pilot asks its node for, and fills.

    Attributes
    ----------
    cores, gpus : int
    memory : int
        Bytes; 0: what the site gives.
    walltime : float
        Seconds; 0: what the site gives.
    """

    cores: int = 1
    gpus: int = 0
    memory: int = 0
    walltime: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Equal pilots for a queue.

    Attributes
    ----------
    server : str
        URL of the pool.
    queue : str
        Its name on the server.
    label : str
        Marks all pilots of this harvester for this queue: at most 40 of ``a-z``, ``0-9`` and
        ``-``, a letter first. It stands in front of the names of pilots too.
    shape : Shape
    tags : tuple of str
    idle : float
        Seconds without work after which a pilot ends by itself.
    program : tuple of str
        Words that start a pilot where it runs.
    options : tuple of str
        More options of the pilot.
    workdir : str
        Where it runs; empty: the temporary folder there.
    token_file, ca : str
        Files on the harvester's machine: the pilots' token, whom they trust. Empty: none. A
        submitter whose pilots do not see that machine's files brings them there as files or as a
        secret of the system, never in a command line or in an environment that others can read.
    env : mapping of str to str
        Variables of the pilot; no secrets.
    """

    server: str
    queue: str
    label: str
    shape: Shape = Shape()
    tags: tuple[str, ...] = ()
    idle: float = 300.0
    program: tuple[str, ...] = ("pandaflow-pilot",)
    options: tuple[str, ...] = ()
    workdir: str = ""
    token_file: str = ""
    ca: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def command(
        self,
        name: str,
        *,
        token_file: str | None = None,
        ca: str | None = None,
        workdir: str | None = None,
    ) -> list[str]:
        """Return the words that start one pilot.

        Parameters
        ----------
        name : str
            Of the pilot.
        token_file, ca, workdir : str, optional
            Where these are for the pilot, if not where the order says.
        """
        shape = self.shape
        options = {
            "--server": self.server,
            "--queue": self.queue,
            "--name": name,
            "--token-file": self.token_file if token_file is None else token_file,
            "--ca": self.ca if ca is None else ca,
            "--workdir": self.workdir if workdir is None else workdir,
            "--cores": str(shape.cores),
            "--memory": str(shape.memory) if shape.memory else "",
            "--gpus": str(shape.gpus) if shape.gpus else "",
            "--walltime": f"{shape.walltime:g}s" if shape.walltime else "",
            "--tags": ",".join(self.tags),
            "--idle": f"{self.idle:g}s",
        }
        said = [word for option, value in options.items() if value for word in (option, value)]
        return [*self.program, *said, *self.options]


Phase = Literal["waiting", "running", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotState:
    """A pilot, as the system that runs it sees it.

    Attributes
    ----------
    phase : {'waiting', 'running', 'gone'}
        ``waiting`` in the system's own queue, held there included.
    code : int or None
        Exit code of a pilot that is gone, where the system tells; negative: a signal.
    reason : str
        The system's own words: why it waits, or how it ended. Of a pilot that the system does
        not know: that it does not.
    """

    phase: Phase
    code: int | None = None
    reason: str = ""


#: Said of ids that a system does not know (any more).
UNKNOWN = PilotState(phase="gone", reason="the system knows no such pilot")


@runtime_checkable
class Submitter(Protocol):
    """Begins pilots of one queue, and tells what became of them.

    Every method may raise :class:`~pandaflow.core.errors.SiteError`, with ``transient=True`` if
    the system does not answer or answers what cannot be understood. Silence is never read as
    "there are none".
    """

    def submit(self, order: Order, names: Sequence[str]) -> Mapping[str, str]:
        """Begin a pilot for each name; return the system's ids by name, of those begun.

        May begin fewer; raises if there was none. What it began can be told by :meth:`found`
        from that moment, so that a harvester that dies here does not begin it twice.
        """

    def states(self, ids: Collection[str]) -> Mapping[str, PilotState]:
        """Return the state of every one of these ids; one question for all of them."""

    def cancel(self, ids: Collection[str]) -> None:
        """End pilots, running or not; those that are gone are no error."""

    def found(self) -> Mapping[str, str]:
        """Return the names, by id, of all pilots of this queue's label that wait or run there."""


class SubmitterSettings(BaseModel):
    """What a queue's table in ``harvester.toml`` says of its submitter, parsed strictly.

    Each kind of submitter has a subclass whose fields are its settings, and an entry in
    :data:`pandaflow.harvester.kinds.KINDS`. Commands and paths come from this file alone, never
    from the server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: What starts a pilot there, unless the file says otherwise.
    program: ClassVar[tuple[str, ...]] = ("pandaflow-pilot",)
    #: Seconds after which a submission whose harvester was killed has come to its end: what
    #: :meth:`Submitter.found` does not tell then was not begun.
    settles: ClassVar[float] = 90.0

    def open(self, label: str, folder: Path) -> Submitter:
        """Return the submitter.

        Parameters
        ----------
        label : str
            As in :class:`Order`.
        folder : Path
            For this queue alone, on the harvester's machine; kept from one harvester to the next.

        Raises
        ------
        SiteError
            It cannot work here: the system's commands or packages are not there.
        """
        raise NotImplementedError

    def preview(self, order: Order, name: str) -> str:
        """Return what would be submitted for one pilot, for people; begins nothing."""
        raise NotImplementedError
