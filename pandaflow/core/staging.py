"""What the data carousel is told and says, and every state of its files and rules, in tables.

A carousel brings files from tape to disk in the order and at the rate that the tape systems bear.
A *rule* is a replication rule of the data catalog over some files of one tape system; a *lock* is
what the catalog keeps for each file of a rule, and is OK when the file is on disk. A file is
believed to be staged when its own lock is OK, never because of the state of its rule.

``pandaflow.core.carousel`` decides; the diagrams in ``docs/carousel.md`` are drawn from the tables
here, and a test fails when they drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from pandaflow.core.errors import WorkflowError


class FileStage(StrEnum):
    """Where a wanted file is."""

    WAITING = "waiting"
    REQUESTED = "requested"
    STUCK = "stuck"
    STAGED = "staged"
    DONE = "done"
    LOST = "lost"


class RuleState(StrEnum):
    """Where a rule is."""

    ASKED = "asked"
    ACTIVE = "active"
    STUCK = "stuck"
    RELEASING = "releasing"
    GONE = "gone"


FILE_MEANING: Mapping[FileStage, str] = {
    FileStage.WAITING: "in the queue of its tape system; no rule holds it",
    FileStage.REQUESTED: "a rule asks the tape system for it",
    FileStage.STUCK: "its lock is stuck; the rule will be boosted",
    FileStage.STAGED: "its lock is OK: it is on disk and its jobs may run",
    FileStage.DONE: "no job needs it any more",
    FileStage.LOST: "it cannot be had; the jobs that need it fail",
}

RULE_MEANING: Mapping[RuleState, str] = {
    RuleState.ASKED: "requested; the catalog has not answered",
    RuleState.ACTIVE: "made; it brings files, or keeps them on disk",
    RuleState.STUCK: "some of its locks are stuck; it waits to be boosted",
    RuleState.RELEASING: "no job needs its files; the catalog is told so",
    RuleState.GONE: "refused, expired or deleted",
}

_F, _R = FileStage, RuleState

#: (start, finish) -> what causes it.
FILE_TRANSITIONS: Mapping[tuple[FileStage, FileStage], str] = {
    (_F.WAITING, _F.REQUESTED): "its turn has come and the budget has room",
    (_F.WAITING, _F.STAGED): "a lock that had been given up is OK after all",
    (_F.WAITING, _F.DONE): "no job needs it any more",
    (_F.WAITING, _F.LOST): "declared lost",
    (_F.REQUESTED, _F.STAGED): "its lock is OK",
    (_F.REQUESTED, _F.STUCK): "its lock is stuck",
    (_F.REQUESTED, _F.WAITING): "its rule was refused, or is gone, or was boosted in vain",
    (_F.REQUESTED, _F.DONE): "no job needs it any more",
    (_F.REQUESTED, _F.LOST): "declared lost, refused for good, or requested in vain too often",
    (_F.STUCK, _F.REQUESTED): "its rule was boosted",
    (_F.STUCK, _F.STAGED): "its lock is OK",
    (_F.STUCK, _F.WAITING): "its rule was boosted in vain, or is gone",
    (_F.STUCK, _F.DONE): "no job needs it any more",
    (_F.STUCK, _F.LOST): "declared lost, or requested in vain too often",
    (_F.STAGED, _F.DONE): "the last job that needs it is done",
    (_F.STAGED, _F.WAITING): "its rule is gone while jobs need it",
    (_F.STAGED, _F.LOST): "declared lost",
    (_F.DONE, _F.REQUESTED): "wanted again while its rule works on it",
    (_F.DONE, _F.STUCK): "wanted again while its rule is stuck",
    (_F.DONE, _F.STAGED): "wanted again while its rule keeps it on disk",
    (_F.LOST, _F.WAITING): "wanted again",
}

RULE_TRANSITIONS: Mapping[tuple[RuleState, RuleState], str] = {
    (_R.ASKED, _R.ACTIVE): "the catalog has made it",
    (_R.ASKED, _R.STUCK): "the catalog has made it, and a lock was stuck before it said so",
    (_R.ASKED, _R.GONE): "refused, or gone before it was known to be made",
    (_R.ACTIVE, _R.STUCK): "a lock is stuck",
    (_R.STUCK, _R.ACTIVE): "boosted, or every stuck lock is OK, lost or given up",
    (_R.ACTIVE, _R.RELEASING): "no job needs its files",
    (_R.STUCK, _R.RELEASING): "no job needs its files",
    (_R.ACTIVE, _R.GONE): "expired or deleted by somebody",
    (_R.STUCK, _R.GONE): "expired or deleted by somebody",
    (_R.RELEASING, _R.GONE): "the catalog has let go of it",
}

#: Stages in which some job needs the file and a rule is there for it.
HELD = frozenset({_F.REQUESTED, _F.STUCK, _F.STAGED})
#: States in which what a rule has not brought yet counts against the budget.
LIVE = frozenset({_R.ASKED, _R.ACTIVE, _R.STUCK})


# --- what it is told ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FilesWanted:
    """Jobs of a run need files that are on tape.

    Attributes
    ----------
    at : float
        Seconds since the epoch, as in all events.
    run, tape, dataset : str
        Who wants them, the tape system that has them, and the dataset they were written with.
    files : tuple of (str, int)
        Names and sizes in bytes.
    priority : int
        Among the files of the run; larger comes first.
    """

    at: float
    run: str
    tape: str
    dataset: str
    files: tuple[tuple[str, int], ...]
    priority: int = 0


@dataclass(frozen=True, slots=True)
class RuleMade:
    """The catalog has made the rule that was requested under ``request``; ``rule`` is its id."""

    at: float
    request: int
    rule: str


@dataclass(frozen=True, slots=True)
class RuleRefused:
    """The catalog did not make a rule.

    Attributes
    ----------
    at : float
    request : int
    why : str
    transient : bool
        Whether the same request may succeed later; if not, its files are lost.
    jitter : float
        0 to 1, drawn by whoever makes the event: how much of the back-off is left out.
    """

    at: float
    request: int
    why: str
    transient: bool = True
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class LockOk:
    """Locks of a rule are OK: these files are on disk. May come before :class:`RuleMade`."""

    at: float
    request: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RuleStuck:
    """Locks of a rule are stuck. May be told again and again.

    Attributes
    ----------
    at : float
    request : int
    files : tuple of str
        Whose locks; none: all that are not OK yet.
    why : str
        What the catalog says.
    jitter : float
        0 to 1: how much of the back-off is left out, up to a half.
    """

    at: float
    request: int
    files: tuple[str, ...] = ()
    why: str = ""
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class RuleGone:
    """A rule is no more: released by us, expired, or deleted by somebody."""

    at: float
    request: int


@dataclass(frozen=True, slots=True)
class Downtime:
    """A tape system will not serve from ``start`` to ``end``; ``end <= start`` takes that back."""

    at: float
    tape: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class JobsDone:
    """No job of a run needs these files any more; None: none of all its files."""

    at: float
    run: str
    files: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A file cannot be had any more."""

    at: float
    file: str
    why: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """Somebody drives a carousel that was restored: what was not answered is said again."""

    at: float


#: What the catalog says of a rule.
Answer: TypeAlias = RuleMade | RuleRefused | LockOk | RuleStuck | RuleGone
Event: TypeAlias = FilesWanted | JobsDone | Lost | Downtime | Tick | Resumed | Answer


# --- what it says -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestRule:
    """Make a rule for files of one tape dataset.

    The number of the request is to be written into the rule, and to be looked for before one is
    made: after a crash the same request is said again.

    Attributes
    ----------
    request : int
        Never used twice.
    tape, dataset : str
    files : tuple of str
    size : int
        Bytes together.
    lifetime : float
        Seconds after which the catalog may drop the rule, should nobody say anything more.
    """

    request: int
    tape: str
    dataset: str
    files: tuple[str, ...]
    size: int
    lifetime: float


@dataclass(frozen=True, slots=True)
class BoostRule:
    """Have the catalog try the stuck locks of a rule again.

    Attributes
    ----------
    request : int
    rule : str
    times : int
        In a row for so many times, leaving out what a downtime made necessary.
    """

    request: int
    rule: str
    times: int


@dataclass(frozen=True, slots=True)
class ExtendRule:
    """Jobs still need files of a rule: its lifetime (s) begins anew."""

    request: int
    rule: str
    lifetime: float


@dataclass(frozen=True, slots=True)
class ReleaseRule:
    """No job needs the files of a rule: have the catalog drop it, then tell :class:`RuleGone`."""

    request: int
    rule: str


@dataclass(frozen=True, slots=True)
class ReleaseJobs:
    """These files are on disk: jobs of the run that wait for them may go."""

    run: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FailJobs:
    """These files cannot be had: jobs of the run that need them fail."""

    run: str
    files: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class ReportStuck:
    """Tell people that a rule was boosted in vain; its files are requested anew or given up."""

    request: int
    rule: str
    files: tuple[str, ...]
    boosts: int
    why: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a :class:`Tick` at this time, if nothing else comes before."""

    time: float


Command: TypeAlias = (
    RequestRule
    | BoostRule
    | ExtendRule
    | ReleaseRule
    | ReleaseJobs
    | FailJobs
    | ReportStuck
    | WakeAt
)


# --- how it is set up ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """What a tape system may have in flight: requested and not on disk yet.

    Parameters
    ----------
    size : int
        Bytes. A file larger than that is requested alone.
    files : int
    """

    size: int = 40 * 10**12
    files: int = 10_000

    def __post_init__(self) -> None:
        if self.size < 1 or self.files < 1:
            raise WorkflowError(f"{self}: give at least one byte and one file")


@dataclass(frozen=True, slots=True, kw_only=True)
class CarouselSettings:
    """How a carousel works; times in seconds.

    Parameters
    ----------
    budgets : mapping of str to Budget
        By tape system.
    default : Budget
        Of tape systems that are not named.
    refill : float
        Requests are made when no more than this share of the budget is in flight: in bulk, since
        a tape system sorts what it knows of by tape and position.
    quantum : int
        Bytes that a run gets in one turn; larger groups better, smaller is fairer.
    rule_files : int
        Files of one rule at most.
    lifetime : float
        Of a rule; begun anew while jobs need it.
    boost_after, boost_most : float
        Until a stuck rule is boosted the first time, doubled each time, and at most.
    boosts : int
        In vain so many times, a rule is reported and its stuck files are given up.
    tries : int
        Requested in vain so many times, a file is lost.
    refused_after, refused_most : float
        Until a tape system gets another request when one was refused, doubled each time.

    Raises
    ------
    WorkflowError
        A number that cannot be.
    """

    budgets: Mapping[str, Budget] = field(default_factory=dict)
    default: Budget = Budget()
    refill: float = 0.9
    quantum: int = 500 * 10**9
    rule_files: int = 500
    lifetime: float = 7 * 86400.0
    boost_after: float = 900.0
    boost_most: float = 6 * 3600.0
    boosts: int = 5
    tries: int = 3
    refused_after: float = 60.0
    refused_most: float = 3600.0

    def __post_init__(self) -> None:
        if not 0 <= self.refill <= 1:
            raise WorkflowError(f"refill={self.refill!r}: give a share from 0 to 1")
        for name in ("quantum", "rule_files", "tries"):
            if getattr(self, name) < 1:
                raise WorkflowError(f"{name}={getattr(self, name)!r}: give at least 1")
        if self.boosts < 0:
            raise WorkflowError(f"boosts={self.boosts!r}: give 0 or more")
        for name in ("lifetime", "boost_after", "boost_most", "refused_after", "refused_most"):
            if not getattr(self, name) > 0:
                raise WorkflowError(f"{name}={getattr(self, name)!r}: give seconds above 0")

    def budget(self, tape: str) -> Budget:
        """Return what a tape system may have in flight."""
        return self.budgets.get(tape, self.default)


def backoff(first: float, most: float, times: int, jitter: float) -> float:
    """Return the seconds of a back-off: doubled each time, at most ``most``, up to half left out.

    ``jitter`` (0 to 1) comes from outside, so that many rules do not come back at one moment.
    """
    doubled = first * 2.0 ** min(times, 60)
    return min(doubled, most) * (1.0 - 0.5 * min(max(jitter, 0.0), 1.0))
