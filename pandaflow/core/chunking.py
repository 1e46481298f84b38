"""Chunk maps: which items a job reads, and which jobs read an item.

A map is arithmetic where it can be (one-to-one, k-to-one, N even parts) and an array of
bounds only where it must be (events, gigabytes, items that arrive in lists). None of them
makes an object per job: a million-job task costs a few machine words.

Splitting follows PanDA's precedence: events > items (files) > gigabytes > number of jobs.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import File
from pandaflow.core.policy import SplitRule


class ChunkMap(Protocol):
    """Jobs of a task against the items of its mapped inputs."""

    @property
    def n_jobs(self) -> int:
        """Jobs known so far."""
        ...

    def items(self, job: int) -> tuple[int, int]:
        """Return the items ``[lo, hi)`` that ``job`` reads."""
        ...

    def jobs(self, lo: int, hi: int) -> tuple[int, int]:
        """Return the jobs ``[first, last)`` that read any item of ``[lo, hi)``."""
        ...


@dataclass(frozen=True, slots=True)
class NoItems:
    """``n_jobs`` jobs that read no mapped items."""

    n_jobs: int

    def items(self, job: int) -> tuple[int, int]:
        """No items."""
        return (0, 0)

    def jobs(self, lo: int, hi: int) -> tuple[int, int]:
        """No jobs."""
        return (0, 0)


@dataclass(frozen=True, slots=True)
class Fixed:
    """``size`` items a job, the last job gets what is left."""

    n_items: int
    size: int = 1

    @property
    def n_jobs(self) -> int:
        """ceil(n_items / size)."""
        return -(-self.n_items // self.size)

    def items(self, job: int) -> tuple[int, int]:
        """[job * size, (job + 1) * size), cut at the end."""
        lo = job * self.size
        return (lo, min(lo + self.size, self.n_items))

    def jobs(self, lo: int, hi: int) -> tuple[int, int]:
        """[lo // size, ceil(hi / size))."""
        return (lo // self.size, -(-hi // self.size)) if hi > lo else (0, 0)


@dataclass(frozen=True, slots=True)
class Even:
    """``n_items`` spread over ``n_jobs`` jobs, sizes differing by one at most."""

    n_items: int
    n_jobs: int

    def items(self, job: int) -> tuple[int, int]:
        """[job * n_items // n_jobs, (job + 1) * n_items // n_jobs)."""
        return (job * self.n_items // self.n_jobs, (job + 1) * self.n_items // self.n_jobs)

    def _job_of(self, item: int) -> int:
        return ((item + 1) * self.n_jobs - 1) // self.n_items

    def jobs(self, lo: int, hi: int) -> tuple[int, int]:
        """From the job of the first item to that of the last."""
        return (self._job_of(lo), self._job_of(hi - 1) + 1) if hi > lo else (0, 0)


@dataclass(slots=True)
class Bounds:
    """Irregular chunks: job ``j`` reads ``[bounds[j], bounds[j + 1])``. Can grow."""

    bounds: array[int] = field(default_factory=lambda: array("q", [0]))

    @property
    def n_jobs(self) -> int:
        """One less than the bounds."""
        return len(self.bounds) - 1

    def items(self, job: int) -> tuple[int, int]:
        """Neighbouring bounds."""
        return (self.bounds[job], self.bounds[job + 1])

    def jobs(self, lo: int, hi: int) -> tuple[int, int]:
        """By bisection."""
        if hi <= lo:
            return (0, 0)
        return (bisect_right(self.bounds, lo) - 1, min(bisect_left(self.bounds, hi), self.n_jobs))

    def append(self, size: int) -> None:
        """Add one job that reads the next ``size`` items."""
        self.bounds.append(self.bounds[-1] + size)


def grow(chunks: Bounds, arrived: int, size: int, *, closed: bool) -> int:
    """Cut items that have arrived into jobs of ``size``; the rest waits until ``closed``.

    Parameters
    ----------
    chunks : Bounds
        Extended in place.
    arrived : int
        Items of the dataset so far.
    size : int
        Items a job.
    closed : bool
        Whether no more will come, so that a short last job is made.

    Returns
    -------
    int
        Number of new jobs.
    """
    before = chunks.n_jobs
    while arrived - chunks.bounds[-1] >= size:
        chunks.append(size)
    if closed and arrived > chunks.bounds[-1]:
        chunks.append(arrived - chunks.bounds[-1])
    return chunks.n_jobs - before


def split(
    rule: SplitRule, n_items: int, files: Sequence[File] | None = None, *, task: str = "task"
) -> ChunkMap:
    """Cut ``n_items`` items into jobs.

    Parameters
    ----------
    rule : SplitRule
        The first rule given of events, items, gigabytes, number of jobs counts.
    n_items : int
    files : sequence of File, optional
        The items, where they are files: rules by events or gigabytes read their sizes.
    task : str
        For error messages.

    Raises
    ------
    WorkflowError
        The rule needs sizes or event counts that the items do not have.
    """
    if rule.events_per_job is not None:
        return _by_weight(_weights(files, "events", task), rule.events_per_job)
    if rule.items_per_job is not None:
        return Fixed(n_items, rule.items_per_job)
    if rule.gb_per_job is not None:
        return _by_weight(_weights(files, "size", task), int(rule.gb_per_job * 10**9))
    if rule.n_jobs is not None:
        return Even(n_items, min(rule.n_jobs, n_items)) if n_items else Fixed(0)
    return Fixed(n_items)


def _weights(files: Sequence[File] | None, attribute: str, task: str) -> list[int]:
    rule = {"events": "events_per_job", "size": "gb_per_job"}[attribute]
    if files is None:
        raise WorkflowError(
            f"task {task!r}: {rule} needs files with known {attribute}, but its input is no "
            "pf.files source; split by items_per_job or n_jobs instead"
        )
    weights = []
    for file in files:
        weight = getattr(file, attribute)
        if weight is None:
            raise WorkflowError(
                f"task {task!r}: {rule} needs the {attribute} of every file, and {file.path} "
                f"has none; pass pf.File(path, {attribute}=...) or split by files_per_job"
            )
        weights.append(int(weight))
    return weights


def _by_weight(weights: Sequence[int], limit: int) -> Bounds:
    """Greedy, as JEDI's splitter: add files until the next would pass the limit."""
    chunks = Bounds()
    size = total = 0
    for weight in weights:
        if size and total + weight > limit:
            chunks.append(size)
            size = total = 0
        size, total = size + 1, total + weight
    if size:
        chunks.append(size)
    return chunks
