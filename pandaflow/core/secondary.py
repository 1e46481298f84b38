"""Secondary inputs and splits by events: which files, and which of their events, a job reads.

A task has one primary input, which drives the splitting; secondary ones follow it. PanDA's kinds:
so many files a job, files in proportion to those of the primary input, all files for each job;
each with files used once or again and again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple, Protocol

from pandaflow.core.chunking import ChunkMap
from pandaflow.core.errors import WorkflowError


class SecondaryMap(Protocol):
    """Jobs of a task against the files of a secondary input."""

    def files(self, job: int) -> tuple[range, ...]:
        """Return the files that a job reads, in order: usually one range, two where it wraps."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """All files for every job (a calibration, a conditions file)."""

    n_files: int

    def files(self, job: int) -> tuple[range, ...]:
        """Every file."""
        return (range(self.n_files),) if self.n_files else ()


@dataclass(frozen=True, slots=True)
class PerJob:
    """``size`` files for each job.

    Parameters
    ----------
    n_files : int
    n_jobs : int
        Of the primary input.
    size : int
    reused : bool
        Whether the files begin again when they are used up, as for pile-up.

    Raises
    ------
    WorkflowError
        There are too few files, and they may not be used again.
    """

    n_files: int
    n_jobs: int
    size: int
    reused: bool = False

    def __post_init__(self) -> None:
        _check(self.n_files, self.n_jobs * self.size, self.reused)

    def files(self, job: int) -> tuple[range, ...]:
        """[job * size, (job + 1) * size), modulo the number of files if they are reused."""
        return tuple(_wrapped(job * self.size, (job + 1) * self.size, self.n_files))


@dataclass(frozen=True, slots=True)
class InProportion:
    """``ratio`` files for each file of the primary input that a job reads.

    Parameters
    ----------
    n_files : int
    primary : ChunkMap
        Which files of the primary input a job reads.
    ratio : Fraction
        Two for three are ``Fraction(2, 3)``: exact, so that no file is left out or read twice.
    reused : bool
        As for :class:`PerJob`.

    Raises
    ------
    WorkflowError
        There are too few files, and they may not be used again.
    """

    n_files: int
    primary: ChunkMap
    ratio: Fraction
    reused: bool = False

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise WorkflowError(f"ratio={self.ratio}: give a number above 0")
        last = self.primary.items(self.primary.n_jobs - 1)[1] if self.primary.n_jobs else 0
        _check(self.n_files, self._bound(last), self.reused)

    def files(self, job: int) -> tuple[range, ...]:
        """[floor(lo * ratio), floor(hi * ratio)) for the primary files [lo, hi)."""
        lo, hi = self.primary.items(job)
        return tuple(_wrapped(self._bound(lo), self._bound(hi), self.n_files))

    def _bound(self, item: int) -> int:
        return item * self.ratio.numerator // self.ratio.denominator


def _check(there: int, wanted: int, reused: bool) -> None:
    if wanted > there and not (reused and there):
        raise WorkflowError(
            f"the secondary input has {there} files and the jobs need {wanted}; give more files, "
            "fewer for each job, or let them be used again"
        )


def _wrapped(lo: int, hi: int, size: int) -> Iterator[range]:
    while lo < hi:
        start = lo % size
        stop = min(start + hi - lo, size)
        yield range(start, stop)
        lo += stop - start


class EventRange(NamedTuple):
    """Events ``[first, last)`` of a file, counted from 0 within it."""

    file: int
    first: int
    last: int


class ByEvents:
    """Jobs of so many events: small files are grouped, large ones cut.

    Parameters
    ----------
    events : sequence of int
        Of each file, in order. Files without events are read by no job.
    per_job : int
        Of each job; the last gets what is left.
    across : bool
        Whether the end of one file and the beginning of the next may meet in a job. If not, a
        job has whole files, as many as do not pass ``per_job``, or one piece of a larger file.

    Raises
    ------
    WorkflowError
        A number of events below 0, or ``per_job`` below 1.

    Notes
    -----
    With ``across`` it is arithmetic over sums of events; without, an array with two numbers a job.
    JEDI's splitter cuts at the ends of files (``across=False``).
    """

    def __init__(self, events: Sequence[int], per_job: int, *, across: bool = True) -> None:
        if per_job < 1:
            raise WorkflowError(f"events per job {per_job}: give at least 1")
        if min(events, default=0) < 0:
            raise WorkflowError("a file has fewer than 0 events")
        self._sums = [0, *accumulate(events)]
        self._per_job = per_job
        #: Where jobs begin and end, if not at multiples of ``per_job``.
        self._bounds = None if across else list(_bounds(events, per_job))

    @property
    def n_jobs(self) -> int:
        """ceil(events / per_job), or more where files are not joined."""
        if self._bounds is not None:
            return len(self._bounds) - 1
        return -(-self._sums[-1] // self._per_job)

    def ranges(self, job: int) -> tuple[EventRange, ...]:
        """Return what a job reads, in order."""
        lo, hi = self._span(job)
        found = []
        file = bisect_right(self._sums, lo) - 1
        while lo < hi:
            start, end = self._sums[file], self._sums[file + 1]
            if end > start:
                found.append(EventRange(file, lo - start, min(hi, end) - start))
            lo, file = max(lo, min(hi, end)), file + 1
        return tuple(found)

    def _span(self, job: int) -> tuple[int, int]:
        if self._bounds is not None:
            return self._bounds[job], self._bounds[job + 1]
        return job * self._per_job, min((job + 1) * self._per_job, self._sums[-1])


def _bounds(events: Sequence[int], per_job: int) -> Iterator[int]:
    """Yield where jobs begin and end among all events: at files, and within large ones."""
    yield 0
    begun = total = 0
    for count in events:
        if begun < total and total + count - begun > per_job:
            yield total
            begun = total
        total += count
        if count > per_job:  # nothing joins its pieces
            yield from range(begun + per_job, total, per_job)
            yield total
            begun = total
    if begun < total:
        yield total
