"""Facts that the engine is told. Past tense, each with the time at which it became known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pandaflow.core.model import Failure, Fragment


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A driver has taken the run (for the first time or again)."""

    at: float
    slots: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """An executor can run so many one-core jobs at once (0: it is offline).

    ``reason`` says in one line why there are no more, or why jobs wait although there are; it is
    empty if nothing holds them up. ``ahead``: seconds of work for each slot that it wants at
    hand, since a start costs it much.
    """

    at: float
    executor: str
    slots: int
    reason: str = ""
    ahead: float = 0.0


@dataclass(frozen=True, slots=True)
class BundlePlaced:
    """An executor has chosen a site for a bundle, or says which sites may take it.

    Attributes
    ----------
    at : float
    bundle : int
    site : str
        Where it will run; empty while several may take it.
    reason : str
        In one line: where it may run, and why not elsewhere (``Ranking.describe``).
    """

    at: float
    bundle: int
    site: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BundleStarted:
    """A worker has begun with a bundle, at a site if the executor has several."""

    at: float
    bundle: int
    worker: str = ""
    site: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleEnded:
    """A bundle's node returned: one outcome per job, by position in the bundle.

    Positions in none of ``failures``, ``blocked``, ``unstarted``, ``detached`` and ``skipped``
    finished. Their values are persisted under ``location``.

    Attributes
    ----------
    failures : mapping of int to Failure
    blocked : mapping of int to str
        Jobs whose inputs were not there, with the name of the input.
    unstarted : tuple of int
        Jobs handed back because the bundle ran out of time.
    detached : int or None
        The job still running when the bundle returned; a later ``BundleEnded`` of the
        bundle that joins it brings its outcome.
    skipped : mapping of int to str
        Jobs that ended their branch early (``pandaflow.Skip``), with the reason.
    cached : tuple of int
        Jobs whose result was found in the cache.
    sizes : mapping of int to int
        Length of the list a scattering job returned.
    truth : bool or None
        A gate's verdict.
    started : float
        When the first job began.
    wall, cpu : sequence of float
        Seconds of each job, by position.
    max_pss, read_bytes, written_bytes, disk : sequence of int
        Measures of each job by position, empty where not taken.
    logs : mapping of int to (int, int)
        Offset and length of each job's log in the bundle's log.
    """

    at: float
    bundle: int
    worker: str = ""
    location: str = ""
    checksum: str = ""
    nbytes: int = 0
    failures: Mapping[int, Failure] = field(default_factory=dict)
    blocked: Mapping[int, str] = field(default_factory=dict)
    unstarted: tuple[int, ...] = ()
    detached: int | None = None
    skipped: Mapping[int, str] = field(default_factory=dict)
    cached: tuple[int, ...] = ()
    sizes: Mapping[int, int] = field(default_factory=dict)
    truth: bool | None = None
    started: float = 0.0
    wall: Any = ()
    cpu: Any = ()
    max_pss: Any = ()
    read_bytes: Any = ()
    written_bytes: Any = ()
    disk: Any = ()
    logs: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BundleLost:
    """A bundle will not report: its worker died, or nobody knows it any more.

    Attributes
    ----------
    position : int or None
        The job that was running when the worker died, where that is known.
    charged : bool
        Whether the loss may be the job's own fault (a worker died under it), as against
        a driver that was restarted.
    """

    at: float
    bundle: int
    reason: str
    position: int | None = None
    charged: bool = True


@dataclass(frozen=True, slots=True)
class JobSaid:
    """A running job has sent a message: for those who listen to the run, not for the engine.

    Attributes
    ----------
    at : float
        When it was sent, by the worker's clock.
    bundle : int
        The bundle in which the job began.
    job, attempt : int
    body : mapping
        What was said: JSON values.
    task : str
        Name of the task.
    """

    at: float
    bundle: int
    job: int
    attempt: int
    body: Mapping[str, Any]
    task: str = ""


@dataclass(frozen=True, slots=True)
class ItemsAppended:
    """A stream has grown by ``count`` items, or was closed."""

    at: float
    source: int
    count: int
    closed: bool = False


@dataclass(frozen=True, slots=True)
class FragmentAppended:
    """A sub-workflow joins the run."""

    at: float
    fragment: Fragment


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed: back-offs may be over."""

    at: float


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Stop a run, a task with what depends on it, or one job."""

    at: float
    task: int | None = None
    job: int | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """Start nothing new."""

    at: float
    by: str = ""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """Go on after a pause."""

    at: float
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequested:
    """Try again what failed, was cancelled or closed.

    Attributes
    ----------
    task : int or None
        Only this task's jobs (and what was closed because of them); None: all.
    restart : bool
        Run the task and all downstream of it again, finished jobs too.
    changes : mapping of str to Any
        Options to change, parsed, for each task that is retried: by field of ``Resources``
        (``memory``, ``cores``, ...) or of ``TaskSpec`` (``retry``, ``executor``).
    """

    at: float
    task: int | None = None
    restart: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""


Event: TypeAlias = (
    RunStarted
    | SlotsChanged
    | BundlePlaced
    | BundleStarted
    | BundleEnded
    | BundleLost
    | JobSaid
    | ItemsAppended
    | FragmentAppended
    | Ticked
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | RetryRequested
)
