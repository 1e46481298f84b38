"""What the engine answers: records to keep and actions to take.

*Records* are facts for the store, the event stream and the callbacks; they are committed, in
order and in one transaction, before any *action* of the same step is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pandaflow.core.events import BundleEnded
from pandaflow.core.model import Failure, Jobs, Resources, TaskSpec
from pandaflow.core.status import JobStatus, RunStatus, TaskStatus

# --- records ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunMoved:
    """The run changed its state."""

    at: float
    start: RunStatus
    finish: RunStatus
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TaskAdded:
    """A task came into being while the run went on (a loop's next iteration)."""

    at: float
    spec: TaskSpec


@dataclass(frozen=True, slots=True)
class TaskChanged:
    """A retry changed a task's options."""

    at: float
    spec: TaskSpec


@dataclass(frozen=True, slots=True)
class TaskMoved:
    """A task changed its state."""

    at: float
    task: int
    start: TaskStatus
    finish: TaskStatus
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TaskGrew:
    """A task now has ``n`` jobs; ``closed``: no more will come.

    ``initial`` is the state of its new jobs (ready where inputs exist, else pending): jobs
    have no row of their own before something happens to them.
    """

    at: float
    task: int
    n: int
    closed: bool
    initial: JobStatus


@dataclass(frozen=True, slots=True)
class ItemsRecorded:
    """A scattering job brought ``count`` items into its open dataset, in order of arrival."""

    at: float
    task: int
    job: int
    count: int


@dataclass(frozen=True, slots=True)
class StreamGrew:
    """A stream (a source of the workflow) has ``n`` items now; ``closed``: no more will come."""

    at: float
    source: int
    n: int
    closed: bool


@dataclass(frozen=True, slots=True)
class ExecutorNoted:
    """What holds up the jobs of an executor has changed.

    Attributes
    ----------
    at : float
    executor : str
    slots : int
        Jobs of one core that it can run at once.
    reason : str
        In one line; empty: nothing holds them up any more.
    """

    at: float
    executor: str
    slots: int
    reason: str


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A wish from outside changed nothing.

    Attributes
    ----------
    at : float
    request : int
        Its number in the inbox.
    kind : str
        ``retry``, ``grow``, ...
    reason : str
        What is wrong with it, for whoever asked.
    by : str
        Who that was, where known.
    """

    at: float
    request: int
    kind: str
    reason: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class BundleSent:
    """Jobs became ``sent`` as one bundle, all at the same attempt number.

    Attributes
    ----------
    start : JobStatus
        The state they were in (pending or ready).
    executor : str
    """

    at: float
    bundle: int
    task: int
    jobs: Jobs
    attempt: int
    start: JobStatus
    executor: str = ""


@dataclass(frozen=True, slots=True)
class BundleSited:
    """A bundle in flight was given a site, or may go to several (``site`` is empty then).

    No job changes its state by it.
    """

    at: float
    bundle: int
    task: int
    jobs: Jobs
    attempt: int
    site: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BundleRunning:
    """The jobs of a bundle became ``running`` on a worker; ``site``: where that is, if told."""

    at: float
    bundle: int
    task: int
    jobs: Jobs
    attempt: int
    worker: str = ""
    site: str = ""


@dataclass(frozen=True, slots=True)
class BundleFinished:
    """A bundle's outcomes; ``report`` has its measures, place and checksum.

    Attributes
    ----------
    jobs : Jobs
        All jobs of the bundle, in order of position.
    finished : Jobs
        Those that went running -> holding -> finished; whatever happened to the others
        follows as ``JobsMoved``.
    """

    at: float
    bundle: int
    task: int
    jobs: Jobs
    attempt: int
    finished: Jobs
    report: BundleEnded


@dataclass(frozen=True, slots=True)
class JobsMoved:
    """Jobs of one task changed their state together, outside the smooth path of a bundle.

    Attributes
    ----------
    attempt : int
        The attempt that ended (0: none did).
    bundle : int or None
        The bundle of that attempt.
    failure : Failure or None
        Why the attempt failed.
    not_before : float
        For a job that waits out a back-off: when it may go. -1 for a closed job: nobody is at
        fault (a branch ended early), and the task may be ``done`` without it.
    wall, cpu : float
        Seconds of the failed attempt, where known.
    """

    at: float
    task: int
    jobs: Jobs
    start: JobStatus
    finish: JobStatus
    attempt: int = 0
    bundle: int | None = None
    reason: str = ""
    failure: Failure | None = None
    not_before: float = 0.0
    wall: float = 0.0
    cpu: float = 0.0
    log: tuple[int, int] | None = None


Record: TypeAlias = (
    RunMoved
    | TaskAdded
    | TaskChanged
    | TaskMoved
    | TaskGrew
    | ItemsRecorded
    | StreamGrew
    | ExecutorNoted
    | RequestRefused
    | BundleSent
    | BundleSited
    | BundleRunning
    | BundleFinished
    | JobsMoved
)

# --- actions ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EmitBundle:
    """Give a bundle to an executor.

    Attributes
    ----------
    needs : tuple of int
        Bundles whose results it reads; those in flight become edges of the Dask graph.
    absent : tuple of (int, int)
        (task, job) pairs among its inputs that failed and are left out (a goal was reached).
    join : int or None
        Join the job that bundle ``join`` left running instead of starting anew.
    priority : tuple of int
        Larger goes first: task priority, depth, urgency within a job graph.
    """

    bundle: int
    task: int
    jobs: Jobs
    attempt: int
    executor: str
    resources: Resources
    needs: tuple[int, ...] = ()
    absent: tuple[tuple[int, int], ...] = ()
    join: int | None = None
    priority: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CancelBundle:
    """Stop a bundle wherever it is; its later reports will be ignored."""

    bundle: int
    executor: str


@dataclass(frozen=True, slots=True)
class ReleaseBundle:
    """Nobody in flight or to come reads this bundle from memory any more."""

    bundle: int


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send ``Ticked`` at this time."""

    at: float


Action: TypeAlias = EmitBundle | CancelBundle | ReleaseBundle | WakeAt
Command: TypeAlias = Record | Action
