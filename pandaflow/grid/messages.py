"""What executors, pilots and people send to the pool's server, and what it answers: JSON bodies.

Bodies are parsed here, at the edge, and nowhere else. Bytes are base64 of the URL-safe alphabet. A
pilot has no PandaFlow: it reads the fields of :class:`Leased` and writes those of :class:`Acquire`
and :class:`PilotUpdate` as plain JSON. What the server may add to its answers later, pilots leave
alone, so that older ones serve a newer server.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

#: Bytes of a work or a reply that travel through the server; more goes by an object store.
INLINE_BYTES = 1_000_000
#: Bytes of a pickled payload that the server keeps for a run.
PAYLOAD_BYTES = 16_000_000
#: Bundles in one call at most.
BATCH = 1_000

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Words = Annotated[str, StringConstraints(max_length=10_000)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: ``adler32:0a1b2c3d``, ``md5:...`` or ``sha256:...``, in hexadecimal.
Checksum = Annotated[
    str, StringConstraints(pattern=r"^(adler32:[0-9a-f]{8}|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")
]
#: A path below a job's work directory: no way out of it.
Tags = Annotated[tuple[Name, ...], Field(max_length=50)]


def _inside(path: str) -> str:
    """Refuse what leads out of a work directory."""
    parts = path.split("/")
    if path.startswith(("/", "~")) or ".." in parts or "\\" in path or not path.isprintable():
        raise ValueError("give a path inside the work directory")
    return path


#: A path below a job's work directory.
Inside = Annotated[str, StringConstraints(min_length=1, max_length=1_000), AfterValidator(_inside)]


class Message(BaseModel):
    """A body; unknown fields are refused, so that a typing error does not go unnoticed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )


class Needs(Message):
    """What a bundle needs of the slot that runs it: bundles with equal needs are matched alike.

    Attributes
    ----------
    queue : str
        The only queue that may run it; empty: any.
    cores, gpus : int
    memory, disk : int or None
        Bytes.
    walltime : float or None
        Seconds, of the whole bundle.
    python, pandaflow : str
        Minor version of Python, and version of PandaFlow, of functions; empty for commands.
    container : str
        Image to run in; empty: none.
    tags : tuple of str
        What the pilot must have, all of them.
    near : tuple of str
        Queues close to its input: they are served first.
    """

    queue: str = Field(default="", max_length=200)
    cores: int = Field(default=1, ge=1, le=100_000)
    gpus: int = Field(default=0, ge=0, le=10_000)
    memory: int | None = Field(default=None, ge=0)
    disk: int | None = Field(default=None, ge=0)
    walltime: float | None = Field(default=None, gt=0)
    python: str = Field(default="", max_length=20)
    pandaflow: str = Field(default="", max_length=100)
    container: str = Field(default="", max_length=1_000)
    tags: Tags = ()
    near: Tags = ()


class InputFile(Message):
    """A file that the pilot brings into the work directory before the payload begins.

    Attributes
    ----------
    name : str
        Its path in the work directory.
    replicas : tuple of str
        Where it may be had, nearest first: paths and URLs.
    size : int or None
        Bytes.
    checksum : str
        Empty: it is not checked.
    """

    name: Inside
    replicas: Annotated[tuple[Words, ...], Field(min_length=1, max_length=100)]
    size: int | None = Field(default=None, ge=0)
    checksum: Checksum | Literal[""] = ""


class CommandJob(Message):
    """A job whose payload is a command line.

    Attributes
    ----------
    position : int
        Of the job in its bundle.
    line : str
        What to run.
    shell : bool
        By ``/bin/sh -c``; else it is split into words.
    env : dict of str to str
        Besides what the pilot gives every payload.
    inputs : tuple of InputFile
    outputs : tuple of str
        Files that it must leave in its work directory.
    """

    position: int = Field(ge=0)
    line: Annotated[str, StringConstraints(min_length=1, max_length=200_000)]
    shell: bool = False
    env: dict[str, str] = Field(default_factory=dict)
    inputs: Annotated[tuple[InputFile, ...], Field(max_length=10_000)] = ()
    outputs: Annotated[tuple[Inside, ...], Field(max_length=10_000)] = ()


class Bundle(Message):
    """A bundle for the pool.

    Attributes
    ----------
    bundle : int
        Its number in the run.
    task : str
    jobs : tuple of int
        Indices of its jobs.
    attempt : int
    priority : int
        Higher first.
    needs : Needs
    kind : {'function', 'command'}
        Work that PandaFlow unpacks on the worker, or commands that the pilot runs by itself.
    work : bytes or None
        Of functions, packed; the server never looks into it.
    code : str
        Digest of the payload that goes with the work, put before; empty: the work has it.
    commands : tuple of CommandJob
    requirements : tuple of str
        What pip installs besides, for functions.
    walltime : float or None
        Seconds that one job may take.
    data : str
        URL under which the worker leaves what is too large for a reply; empty: there is none.
    """

    bundle: int = Field(ge=0)
    task: Name
    jobs: Annotated[tuple[int, ...], Field(min_length=1, max_length=100_000)]
    attempt: int = Field(default=1, ge=0)
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    needs: Needs = Needs()
    kind: Literal["function", "command"]
    work: bytes | None = Field(default=None, max_length=2 * INLINE_BYTES)
    code: Digest | Literal[""] = ""
    commands: Annotated[tuple[CommandJob, ...], Field(max_length=10_000)] = ()
    requirements: Annotated[tuple[Name, ...], Field(max_length=200)] = ()
    walltime: float | None = Field(default=None, gt=0)
    data: Words = ""


class Submission(Message):
    """Bundles of one run for the pool; those that are there already are left as they are."""

    bundles: Annotated[tuple[Bundle, ...], Field(max_length=BATCH)]


class Cancellation(Message):
    """Bundles of a run that are no more wanted; None: all of them."""

    bundles: Annotated[tuple[int, ...], Field(max_length=100_000)] | None = None


class Outcome(Message):
    """Something that happened to a bundle, for its run's driver.

    Attributes
    ----------
    seq : int
        1, 2, ... within the run.
    bundle : int
    attempt : int
        As submitted.
    kind : {'started', 'ended', 'lost'}
        ``lost``: the site spoiled it; nothing is charged to its jobs.
    at : float
        Seconds since the epoch, by the server's clock.
    queue, pilot, host : str
    reply : bytes or None
        Of functions.
    results : list of JobResult
        Of commands.
    error : Trouble or None
        Why it was lost, or why the payload as a whole failed.
    metrics : dict of str to float
        ``cpu`` and ``wall`` in seconds, ``max_pss``, ``disk``, ``read``, ``written`` in bytes.
    """

    seq: int
    bundle: int
    attempt: int
    kind: Literal["started", "ended", "lost"]
    at: float
    queue: str = ""
    pilot: str = ""
    host: str = ""
    reply: bytes | None = None
    results: tuple[JobResult, ...] = ()
    error: Trouble | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Outcomes(Message):
    """What happened since; ``waiting`` says why bundles wait, for people."""

    outcomes: tuple[Outcome, ...]
    ready: int = 0
    running: int = 0
    slots: int = 0
    waiting: str = ""


class Trouble(Message):
    """What went wrong, who says so, and by which code of theirs.

    Attributes
    ----------
    source : {'pilot', 'payload', 'server', 'site'}
    code : int
        The pilot's code (docs/reference/pilot.md), or the payload's exit code.
    kind : str
        Kind of failure as :mod:`pandaflow.core.retry` knows them: ``memory``, ``walltime``,
        ``disk``, ``input``, ``output``, ``exit``, ``site``, ``looping``, ``cancelled``.
    message : str
    """

    source: Literal["pilot", "payload", "server", "site"]
    code: int
    kind: Name
    message: Words


# --- pilots -----------------------------------------------------------------------------


class Acquire(Message):
    """A pilot's question for work.

    Attributes
    ----------
    pilot : str
        Its name, unique for ever.
    queue : str
    host : str
    cores, gpus : int
        That are free now.
    memory, disk : int or None
        Bytes that are free now.
    walltime : float or None
        Seconds that are left.
    python, pandaflow : str
        Of the environment in which it runs functions; empty: it runs commands only.
    containers : tuple of str
        Runtimes that it has.
    tags : tuple of str
    count : int
        Bundles that it wants at most.
    wait : float
        Seconds that the server may hold the call until there is something.
    """

    pilot: Name
    queue: Name
    host: str = Field(default="", max_length=500)
    cores: int = Field(default=1, ge=0, le=100_000)
    gpus: int = Field(default=0, ge=0, le=10_000)
    memory: int | None = Field(default=None, ge=0)
    disk: int | None = Field(default=None, ge=0)
    walltime: float | None = Field(default=None, ge=0)
    python: str = Field(default="", max_length=20)
    pandaflow: str = Field(default="", max_length=100)
    containers: Tags = ()
    tags: Tags = ()
    count: int = Field(default=1, ge=1, le=BATCH)
    wait: float = Field(default=0.0, ge=0, le=60.0)


class Leased(Message):
    """A bundle that a pilot has got.

    Attributes
    ----------
    id : int
        In the pool.
    lease : str
        Goes with every report about it; nobody else knows it.
    run : str
    heartbeat : float
        Seconds after which a pilot that was not heard of has lost it.
    inline : int
        Bytes of a reply, or of a command's outputs, that may travel in a report.
    bundle, task, jobs, attempt, needs, kind, work, code, commands, requirements, walltime, data
        As in :class:`Bundle`.
    """

    id: int
    lease: str
    run: str
    heartbeat: float
    inline: int
    bundle: int
    task: str
    jobs: tuple[int, ...]
    attempt: int
    needs: Needs
    kind: Literal["function", "command"]
    work: bytes | None = None
    code: str = ""
    commands: tuple[CommandJob, ...] = ()
    requirements: tuple[str, ...] = ()
    walltime: float | None = None
    data: str = ""


#: ``drain``: take no more and end when what runs has ended; ``stop``: end now.
PilotCommand = Literal["drain", "stop"]


class Acquired(Message):
    """The server's answer to a question for work.

    Attributes
    ----------
    bundles : tuple of Leased
    commands : tuple of str
    retry : float
        Seconds after which to ask again, if there was nothing.
    """

    bundles: tuple[Leased, ...] = ()
    commands: tuple[PilotCommand, ...] = ()
    retry: float = 0.0


class OutputFile(Message):
    """A file that a command has left.

    Attributes
    ----------
    name : str
    size : int
    checksum : str
        ``adler32:...``.
    data : bytes or None
        Itself, if it is small.
    url : str
        Where it was put, if it is not.
    """

    name: Inside
    size: int = Field(ge=0)
    checksum: Checksum
    data: bytes | None = None
    url: Words = ""


class JobResult(Message):
    """What became of a command.

    Attributes
    ----------
    position : int
        Of the job in its bundle.
    code : int
        Exit code; negative: the signal that ended it.
    began, ended : float
        Seconds since the epoch, by the pilot's clock.
    out, err : bytes
        The ends of what it printed.
    printed : int
        Bytes of standard output that there were.
    files : tuple of OutputFile
    error : Trouble or None
        Why it failed; None: it did well.
    metrics : dict of str to float
        As in :class:`Outcome`.
    """

    position: int = Field(ge=0)
    code: int
    began: float
    ended: float
    out: bytes = b""
    err: bytes = b""
    printed: int = 0
    files: Annotated[tuple[OutputFile, ...], Field(max_length=10_000)] = ()
    error: Trouble | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Report(Message):
    """What a pilot says of a bundle that it holds.

    Attributes
    ----------
    id, lease
        As leased.
    seq : int
        1, 2, ...: a report with a number that was seen is late, and refused.
    state : {'running', 'ended', 'lost'}
        ``running`` is also the heartbeat. ``lost``: the pilot cannot bring it to an end.
    phase : {'stagein', 'payload', 'stageout'}
    reply : bytes or None
        Of functions, with ``ended``.
    results : tuple of JobResult
        Of commands, with ``ended``.
    error : Trouble or None
    metrics : dict of str to float
    tail : str
        The end of the payload's log, where it was asked for.
    """

    id: int
    lease: Name
    seq: int = Field(ge=1)
    state: Literal["running", "ended", "lost"]
    phase: Literal["stagein", "payload", "stageout"] = "payload"
    reply: bytes | None = Field(default=None, max_length=2 * INLINE_BYTES)
    results: Annotated[tuple[JobResult, ...], Field(max_length=10_000)] = ()
    error: Trouble | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    tail: Annotated[str, StringConstraints(max_length=100_000)] = ""


class PilotUpdate(Message):
    """A pilot's reports; none of them: only its own heartbeat."""

    pilot: Name
    reports: Annotated[tuple[Report, ...], Field(max_length=BATCH)] = ()


#: ``kill``: end the payload now, and report it lost when nothing of it runs any more.
#: ``soft_kill``: ask it to end, and report what it has left. ``tail``: send the end of its log
#: with the next report.
BundleCommand = Literal["kill", "soft_kill", "tail"]


class Verdict(Message):
    """The server's answer to a report.

    Attributes
    ----------
    id : int
    accepted : bool
    why : str
        Why it was refused: who has the bundle now, or that the report is late.
    commands : tuple of str
        A refused report of a bundle that is somebody else's comes with ``kill``.
    """

    id: int
    accepted: bool
    why: str = ""
    commands: tuple[BundleCommand, ...] = ()


class Updated(Message):
    """Answers to reports, in their order, and commands for the pilot itself."""

    verdicts: tuple[Verdict, ...] = ()
    commands: tuple[PilotCommand, ...] = ()
