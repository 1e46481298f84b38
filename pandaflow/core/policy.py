"""What authors decide about a task: how its items are split, what follows its jobs' failures."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from pandaflow.core.errors import WorkflowError
from pandaflow.core.quantities import parse_bytes, parse_seconds

RetryAction = Literal["retry", "fail", "more_memory", "more_walltime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """What to do with failures of a kind or an exception type (PanDA's retry module).

    Attributes
    ----------
    match : str
        A failure kind (``"memory"``) or an exception's name (``"OSError"``, which covers
        its subclasses; qualified names work too).
    action : {'retry', 'fail', 'more_memory', 'more_walltime'}
    max_attempts : int or None
        Give up after that many failures of this kind.
    """

    match: str
    action: RetryAction = "retry"
    max_attempts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A retry policy.

    Attributes
    ----------
    retries : int
        How often a failed job is tried again; infrastructure failures are not counted.
    delay : float
        Seconds before the first retry.
    factor : float
        Each further delay is this times longer.
    max_delay : float
        Seconds at most.
    memory_factor, walltime_factor : float
        After a failure for memory (walltime), the next attempt asks this times more.
    max_memory : int or None
        Bytes at most.
    max_walltime : float or None
        Seconds at most.
    rules : tuple of RetryRule
        The first rule that matches decides; none: retry.
    """

    retries: int = 0
    delay: float = 0.0
    factor: float = 2.0
    max_delay: float = 3600.0
    memory_factor: float = 1.0
    walltime_factor: float = 1.0
    max_memory: int | None = None
    max_walltime: float | None = None
    rules: tuple[RetryRule, ...] = ()

    def __post_init__(self) -> None:
        # Written by people: sizes and durations as text, rules as a list.
        put = object.__setattr__
        put(self, "delay", parse_seconds(self.delay, "delay"))
        put(self, "max_delay", parse_seconds(self.max_delay, "max_delay"))
        put(self, "rules", tuple(self.rules))
        if self.max_memory is not None:
            put(self, "max_memory", parse_bytes(self.max_memory, "max_memory"))
        if self.max_walltime is not None:
            put(self, "max_walltime", parse_seconds(self.max_walltime, "max_walltime"))
        if isinstance(self.retries, bool) or self.retries < 0:
            raise WorkflowError(f"retries={self.retries!r}: give a number of at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """How a task's items are cut into jobs.

    Given together, events beat items, items beat gigabytes, gigabytes beat the number of
    jobs (PanDA: nEventsPerJob > nFilesPerJob > nGBPerJob). None given: one job per item, and
    the payload gets the item itself instead of a list.
    """

    events_per_job: int | None = None
    items_per_job: int | None = None
    gb_per_job: float | None = None
    n_jobs: int | None = None

    @property
    def given(self) -> bool:
        """Whether any rule is given, so that payloads get lists."""
        return any(getattr(self, f.name) is not None for f in fields(self))
