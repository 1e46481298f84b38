"""What is asked of a batch system, and what it answers.

A back-end (:class:`Backend`) turns a :class:`BatchRequest` into the directives of a script and
into command lines, and the text that those commands print into :class:`BatchStatus` values. It
runs nothing, reads no file and asks no clock: whoever calls it does, so every back-end is tested
with recorded output and without its batch system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from signal import Signals
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Failure

#: A job as its system names it, and the element of an array (from 0; None: no array).
JobRef: TypeAlias = tuple[str, int | None]

State = Literal[
    "pending",
    "held",
    "running",
    "completing",
    "done",
    "failed",
    "cancelled",
    "timeout",
    "out_of_memory",
    "node_fail",
    "preempted",
    "unknown",
]

LIVE: frozenset[State] = frozenset({"pending", "held", "running", "completing"})
INFRASTRUCTURE: frozenset[State] = frozenset({"cancelled", "node_fail", "preempted", "unknown"})

_KINDS: Mapping[State, tuple[str, str]] = {
    "timeout": ("walltime", "the batch system stopped it at its walltime"),
    "out_of_memory": ("memory", "the batch system stopped it at its memory limit"),
    "cancelled": ("cancelled", "its batch job was cancelled"),
    "node_fail": ("lost", "its node failed"),
    "preempted": ("lost", "its batch job was preempted"),
    "unknown": ("lost", "its batch system knows no more of it"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """One batch job, or an array of equal ones.

    Attributes
    ----------
    name : str
    queue : str or None
        Partition, queue; None leaves it to the system.
    account : str or None
        Whom to charge: account, project, accounting group.
    walltime : float or None
        Seconds.
    nodes : int
    tasks_per_node : int
    cores : int
        Per task.
    memory : int or None
        Bytes per node.
    gpus : int
        Per node.
    array : int or None
        Number of elements; None: no array. Elements count from 0 everywhere in PandaFlow.
    max_running : int or None
        Elements that may run at the same time.
    stdout, stderr : str or None
        Where the output goes, with ``{id}`` and ``{index}`` for the job and the element as the
        system numbers them. ``stderr=None`` joins it to the output.
    workdir : str or None
    env : mapping
        Variables that the script exports.
    warn : (str, float) or None
        Signal name and seconds: the script's shell gets the signal that long before the end.
    requeue : bool
        Whether the system may start the job again after a fault of a node.
    extra : tuple of str
        Directives as the system writes them, without its prefix.

    Raises
    ------
    WorkflowError
        A number that cannot be, a line break where one line is wanted, an unknown signal.
    """

    name: str
    queue: str | None = None
    account: str | None = None
    walltime: float | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    cores: int = 1
    memory: int | None = None
    gpus: int = 0
    array: int | None = None
    max_running: int | None = None
    stdout: str | None = None
    stderr: str | None = None
    workdir: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    warn: tuple[str, float] | None = None
    requeue: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "cores", "memory", "array", "max_running"):
            _at_least(name, getattr(self, name), 1)
        _at_least("gpus", self.gpus, 0)
        if self.walltime is not None and not 0 < self.walltime < float("inf"):
            raise WorkflowError(f"walltime={self.walltime!r}: give seconds above 0")
        for name in ("name", "queue", "account", "stdout", "stderr", "workdir"):
            _one_line(name, getattr(self, name))
        for directive in self.extra:
            _one_line("extra", directive)
        for variable in self.env:
            _variable(variable)
        if self.warn is not None:
            _warning(*self.warn, self.walltime)

    @property
    def slots(self) -> int:
        """Cores per node."""
        return self.tasks_per_node * self.cores


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and (isinstance(value, bool) or value < least):
        raise WorkflowError(f"{name}={value!r}: give a number of at least {least}")


def _one_line(name: str, value: str | None) -> None:
    # A line break would end the directive and begin something else.
    if value is not None and (not value or not value.isprintable()):
        raise WorkflowError(f"{name}={value!r}: give one line of printable text")


def _variable(name: str) -> None:
    if not (name.isascii() and name.isidentifier()):
        raise WorkflowError(f"env: {name!r} is no name of a variable")


def _warning(name: str, seconds: float, walltime: float | None) -> None:
    if f"SIG{name}" not in Signals.__members__:
        raise WorkflowError(f"warn: no signal {name!r}; give for example ('USR1', 60)")
    if walltime is None or not 0 < seconds < walltime:
        raise WorkflowError(f"warn: {seconds!r} s before the end needs a longer walltime")


def plain_name(name: str, most: int = 200) -> str:
    """Return a name that every system takes: letters, digits, ``_``, ``.``, ``-``; a letter first.

    Names of batch jobs are for people; jobs are found by their ids.
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in name)
    return (plain if plain[0].isalpha() else f"j{plain}")[:most]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """A job, or an element of an array, as its batch system sees it.

    Attributes
    ----------
    id : str
    index : int or None
        Element of the array, from 0.
    state : str
        See :data:`State`. ``held``: will not go on until somebody lets it.
    exit_code, signal : int or None
        How the script ended, where the system tells; a script that a signal ended has no code.
    reason : str
        The system's own words.
    nodes : tuple of str
    started, ended : float or None
        Seconds since the epoch. For a live job ``ended`` is None.
    requeues : int
        How often the system started it again.
    remains : bool
        It will not go on by itself but stays in the queue: cancel it to be rid of it.
    """

    id: str
    index: int | None = None
    state: State
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    nodes: tuple[str, ...] = ()
    started: float | None = None
    ended: float | None = None
    requeues: int = 0
    remains: bool = False

    @property
    def ref(self) -> JobRef:
        """The key of this status in what a poll returns."""
        return self.id, self.index

    @property
    def live(self) -> bool:
        """Whether it is still to run, runs or is just ending."""
        return self.state in LIVE

    @property
    def over(self) -> bool:
        """Whether it has ended; an unknown job has not and is not live either."""
        return not self.live and self.state != "unknown"

    @property
    def infrastructure(self) -> bool:
        """Whether the payload is not to blame: not charged to its retries."""
        return self.state in INFRASTRUCTURE


def failure(status: BatchStatus) -> Failure | None:
    """Say why the payload of an ended batch job failed; None if it did not, or still lives.

    Returns
    -------
    Failure or None
        ``walltime``, ``memory``, ``cancelled``, ``lost``, ``signal`` or ``exit``; faults of the
        infrastructure are not charged.
    """
    if status.live or status.state == "done":
        return None
    kind, message = _KINDS.get(status.state, ("", ""))
    code = status.exit_code if status.signal is None else status.signal
    if not kind:
        kind = "exit" if status.signal is None else "signal"
        message = _how_it_ended(status)
    told = f"{message} ({status.reason})" if status.reason else message
    return Failure(kind=kind, message=told, code=code, charged=not status.infrastructure)


def _how_it_ended(status: BatchStatus) -> str:
    if status.signal is not None:
        return f"its batch job was ended by signal {status.signal}"
    if status.exit_code is not None:
        return f"its batch job ended with exit code {status.exit_code}"
    return "its batch job failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A partition or queue; None or 0 where the system does not tell.

    Attributes
    ----------
    name : str
    open : bool
        Whether it takes and starts jobs now.
    default : bool
    walltime : float or None
        Longest, in seconds; None: no limit, or not told.
    cores, memory, gpus : int or None
        Of its largest node; memory in bytes.
    nodes : int or None
    """

    name: str
    open: bool = True
    default: bool = False
    walltime: float | None = None
    cores: int | None = None
    memory: int | None = None
    gpus: int = 0
    nodes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What a running job can know of itself, as words of a shell script.

    Attributes
    ----------
    id : str
        Expands to the id that ``parse_submit`` returned.
    index : str
        Expands to the element as the system numbers it, and to nothing outside an array.
    first : int
        The number of an array's first element.
    nodes : str
        A command that prints the names of the nodes, one a line.
    """

    id: str
    index: str
    first: int = 0
    nodes: str = "hostname"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What happens to the processes of a job that is cancelled or reaches its walltime.

    Attributes
    ----------
    signals : tuple of str
        In this order.
    grace : float or None
        Seconds between the first and the last; sites configure it, this is the usual value.
    """

    signals: tuple[str, ...]
    grace: float | None = None


@runtime_checkable
class Backend(Protocol):
    """A batch system. ``parse_*`` get stdout, stderr and the exit code of their command.

    A refusal becomes a :class:`~pandaflow.core.errors.SiteError` with the system's own words,
    silence of the system one with ``transient=True``, and so does an answer that cannot be
    understood: an empty result always means that the system knows no such job.
    """

    @property
    def name(self) -> str:
        """Its name, in lower case."""

    @property
    def prefix(self) -> str:
        """What starts a directive in a script; empty: they stand in a description."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables to set for its commands, so that their output can be read."""

    @property
    def inside(self) -> Inside:
        """What a running job can know of itself."""

    @property
    def ending(self) -> Ending:
        """How jobs are ended."""

    def directives(self, request: BatchRequest) -> list[str]:
        """Return the lines that ask for it, without prefix; quoted as the system wants it."""

    def log(self, template: str, request: BatchRequest) -> str | None:
        """Return a path template in the system's words; None if it cannot: the script must."""

    def warns(self, request: BatchRequest) -> bool:
        """Tell whether the system itself sends the warning signal (else the script does)."""

    def submit(self, script_path: str, request: BatchRequest) -> list[str]:
        """Return the command that submits the script (or the description beside it)."""

    def parse_submit(self, stdout: str, stderr: str, code: int) -> str:
        """Return the job's id."""

    def poll(self, ids: Sequence[str] | None, user: str) -> list[str]:
        """Return one command for all jobs in the queue (None: all of the user's)."""

    def parse_poll(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return what the queue knows; it may contain jobs that were not asked for."""

    def history(self, ids: Sequence[str], user: str) -> list[str]:
        """Return one command that tells how jobs ended."""

    def parse_history(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return what the history knows; it may contain jobs that were not asked for."""

    def cancel(self, refs: Sequence[JobRef]) -> list[str]:
        """Return one command that ends jobs (index None: all of it), running or not."""

    def parse_cancel(self, stdout: str, stderr: str, code: int) -> None:
        """Raise unless the jobs will be gone; jobs that are gone already are no error."""

    def queues(self) -> list[str]:
        """Return one command that tells what queues there are."""

    def parse_queues(self, stdout: str, stderr: str, code: int) -> list[Queue]:
        """Return the queues in the system's order."""


@runtime_checkable
class Describing(Backend, Protocol):
    """A batch system whose directives stand in a file beside the script."""

    def describe(self, script_path: str, request: BatchRequest) -> tuple[str, str]:
        """Return path and text of the description that ``submit`` names."""
