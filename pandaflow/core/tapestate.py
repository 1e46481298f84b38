"""What a carousel knows of files, rules and tape systems, and the records that a store keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pandaflow.core.errors import InvalidTransition
from pandaflow.core.staging import (
    FILE_TRANSITIONS,
    LIVE,
    RULE_TRANSITIONS,
    Budget,
    FileStage,
    RuleState,
)
from pandaflow.core.tapequeue import Entry, QueueRecord, TapeQueue

#: How far files come, in order.
STEPS = ("wanted", "requested", "staged", "processed")


@dataclass(frozen=True, slots=True)
class Want:
    """That a run needs a file.

    Attributes
    ----------
    run : str
    priority : int
    entry : Entry or None
        Its place in the queue of the run, if it got one.
    told : bool
        Whether the jobs of the run have been released.
    """

    run: str
    priority: int = 0
    entry: Entry | None = None
    told: bool = False


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as a store keeps it; see :class:`StagedFile`."""

    name: str
    size: int
    tape: str
    dataset: str
    stage: FileStage
    rule: int | None
    wants: tuple[Want, ...]
    tries: int
    reached: int
    why: str


@dataclass(slots=True)
class StagedFile:
    """A file that somebody wants.

    Attributes
    ----------
    name : str
    size : int
        Bytes.
    tape, dataset : str
    stage : FileStage
    rule : int or None
        Number of the request that holds it.
    wants : dict of str to Want
        By run.
    tries : int
        Requests in vain so far.
    reached : int
        How many of ``STEPS`` it has taken, so that none is counted twice.
    why : str
        What was said when it was stuck or lost.
    """

    name: str
    size: int
    tape: str
    dataset: str
    stage: FileStage = FileStage.WAITING
    rule: int | None = None
    wants: dict[str, Want] = field(default_factory=dict)
    tries: int = 0
    reached: int = 0
    why: str = ""

    def move(self, stage: FileStage) -> None:
        """Change the stage; InvalidTransition if the table does not allow it."""
        if (self.stage, stage) not in FILE_TRANSITIONS:
            raise InvalidTransition(f"file {self.name}", self.stage, stage)
        self.stage = stage

    def record(self) -> FileRecord:
        """Return what a store keeps."""
        about = (self.name, self.size, self.tape, self.dataset, self.stage, self.rule)
        wants = tuple(self.wants.values())
        return FileRecord(*about, wants, self.tries, self.reached, self.why)

    @classmethod
    def restore(cls, record: FileRecord) -> StagedFile:
        """Return the file of a record."""
        about = (record.name, record.size, record.tape, record.dataset, record.stage, record.rule)
        wants = {want.run: want for want in record.wants}
        return cls(*about, wants, record.tries, record.reached, record.why)


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """A rule as a store keeps it; see :class:`StagingRule`."""

    request: int
    tape: str
    dataset: str
    state: RuleState
    rule: str
    files: tuple[tuple[str, int], ...]
    pending: tuple[str, ...]
    boosts: int
    boost_at: float | None
    excused: bool
    expires: float
    why: str


@dataclass(slots=True)
class StagingRule:
    """A rule that was requested.

    Attributes
    ----------
    request : int
    tape, dataset : str
    state : RuleState
    rule : str
        Its id in the catalog, once it is made.
    files : dict of str to int
        Names and bytes of those that it brings for us.
    pending : dict of str to int
        Those that are not on disk yet: they count against the budget.
    boosts : int
        In a row without a lock that came OK, leaving out what a downtime made necessary.
    boost_at : float or None
        When it is boosted next, if it is stuck.
    excused : bool
        Whether the next boost does not count.
    expires : float
        When the catalog may drop it.
    why : str
        What was said when it was stuck.
    """

    request: int
    tape: str
    dataset: str
    state: RuleState = RuleState.ASKED
    rule: str = ""
    files: dict[str, int] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    boosts: int = 0
    boost_at: float | None = None
    excused: bool = False
    expires: float = 0.0
    why: str = ""

    @property
    def live(self) -> bool:
        """Whether it may still bring files."""
        return self.state in LIVE

    def move(self, state: RuleState) -> None:
        """Change the state; InvalidTransition if the table does not allow it."""
        if (self.state, state) not in RULE_TRANSITIONS:
            raise InvalidTransition(f"rule {self.request}", self.state, state)
        self.state = state

    def record(self) -> RuleRecord:
        """Return what a store keeps."""
        return RuleRecord(
            self.request,
            self.tape,
            self.dataset,
            self.state,
            self.rule,
            tuple(self.files.items()),
            tuple(self.pending),
            self.boosts,
            self.boost_at,
            self.excused,
            self.expires,
            self.why,
        )

    @classmethod
    def restore(cls, record: RuleRecord) -> StagingRule:
        """Return the rule of a record."""
        files = dict(record.files)
        rule = cls(record.request, record.tape, record.dataset, record.state, record.rule, files)
        rule.pending = {name: files[name] for name in record.pending}
        rule.boosts, rule.boost_at = record.boosts, record.boost_at
        rule.excused, rule.expires, rule.why = record.excused, record.expires, record.why
        return rule


@dataclass(slots=True)
class Totals:
    """Files and bytes of a tape system that have come so far, for pictures.

    Attributes
    ----------
    files, size : dict of str to int
        By step (``STEPS``) and ``"lost"``; each file counts once for each.
    """

    files: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, size: int) -> None:
        """Count a file."""
        self.files[what] = self.files.get(what, 0) + 1
        self.size[what] = self.size.get(what, 0) + size

    def row(self, at: float, tape: str) -> dict[str, float | str]:
        """Return it as a row of ``pandaflow.display.staging``."""
        steps = (*STEPS, "lost")
        row: dict[str, float | str] = {"at": at, "tape": tape}
        row |= {f"{step}_files": self.files.get(step, 0) for step in steps}
        return row | {f"{step}_bytes": self.size.get(step, 0) for step in steps}


@dataclass(frozen=True, slots=True)
class TapeRecord:
    """A tape system as a store keeps it; see :class:`TapeSystem`."""

    name: str
    downtimes: tuple[tuple[float, float], ...]
    not_before: float
    refusals: int
    queue: QueueRecord
    files: tuple[tuple[str, int], ...]
    sizes: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class TapeSystem:
    """A tape system, and what is asked of it.

    Attributes
    ----------
    name : str
    budget : Budget
    queue : TapeQueue
    size, files : int
        In flight: bytes and files that were requested and are not on disk.
    waiting : int
        Files in the queue.
    downtimes : dict of float to float
        Announced: begin to end.
    not_before : float
        It gets no request before, since one was refused.
    refusals : int
        In a row.
    totals : Totals
        Since the carousel began.
    """

    name: str
    budget: Budget
    queue: TapeQueue
    size: int = 0
    files: int = 0
    waiting: int = 0
    downtimes: dict[float, float] = field(default_factory=dict)
    not_before: float = 0.0
    refusals: int = 0
    totals: Totals = field(default_factory=Totals)

    def down_until(self, now: float) -> float | None:
        """Return when the announced downtime ends, if there is one now; joins those that touch."""
        end: float | None = None
        for start, finish in sorted(self.downtimes.items()):
            if start <= (now if end is None else end) < finish:
                end = finish
        return end

    def fits(self, size: int) -> bool:
        """Whether the budget has room for a file; one that is alone always has."""
        if not self.files:
            return True
        return self.size + size <= self.budget.size and self.files < self.budget.files

    def price(self, size: int) -> int:
        """Return what a file counts between runs: at least its share of the budget of files."""
        return max(size, self.budget.size // self.budget.files)

    def low(self, refill: float) -> bool:
        """Whether so little is in flight that more is requested."""
        most = self.budget
        return self.size <= refill * most.size and self.files <= refill * most.files

    def add(self, size: int) -> None:
        """Count a file as in flight."""
        self.size += size
        self.files += 1

    def drop(self, size: int) -> None:
        """Count a file as in flight no more."""
        self.size -= size
        self.files -= 1

    def record(self) -> TapeRecord:
        """Return what a store keeps."""
        times = tuple(sorted(self.downtimes.items()))
        counts = tuple(self.totals.files.items()), tuple(self.totals.size.items())
        about = (self.name, times, self.not_before, self.refusals, self.queue.record())
        return TapeRecord(*about, *counts)

    @classmethod
    def restore(cls, record: TapeRecord, budget: Budget, quantum: int) -> TapeSystem:
        """Return the tape system of a record, with nothing in its queue and in flight yet."""
        system = cls(record.name, budget, TapeQueue.restore(record.queue, quantum))
        system.downtimes = dict(record.downtimes)
        system.not_before, system.refusals = record.not_before, record.refusals
        system.totals = Totals(dict(record.files), dict(record.sizes))
        return system


@dataclass(frozen=True, slots=True)
class Records:
    """What a store keeps of a carousel: all of it, or what has changed.

    Attributes
    ----------
    files, rules, tapes
        As they are now.
    gone_files : tuple of str
    gone_rules : tuple of int
        Not needed any more.
    last_request : int
    """

    files: tuple[FileRecord, ...] = ()
    rules: tuple[RuleRecord, ...] = ()
    tapes: tuple[TapeRecord, ...] = ()
    gone_files: tuple[str, ...] = ()
    gone_rules: tuple[int, ...] = ()
    last_request: int = 0


def held(rule: StagingRule, files: dict[str, StagedFile]) -> Iterator[StagedFile]:
    """Yield the files that a rule holds for somebody."""
    for name in rule.files:
        file = files.get(name)
        if file is not None and file.rule == rule.request and file.wants:
            yield file
