"""The jobs of one task as columns: a byte of state, an attempt count, a bundle number.

A million jobs are three arrays, not a million objects. States are the codes of
``status.JOB_CODES`` plus two that only the engine tells apart:

* ``BLOCKED``: pending, and not to be sent before an upstream job has been made again;
* ``QUEUED``: ready, and kept in a queue of the task (a retry, a job handed back).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence

from pandaflow.core.errors import InvalidTransition
from pandaflow.core.model import Jobs, runs_of
from pandaflow.core.status import (
    JOB_CODE,
    JOB_CODES,
    JOB_LIVE,
    JOB_TERMINAL,
    JOB_TRANSITIONS,
    JobStatus,
)

PENDING = JOB_CODE[JobStatus.PENDING]
READY = JOB_CODE[JobStatus.READY]
SENT = JOB_CODE[JobStatus.SENT]
RUNNING = JOB_CODE[JobStatus.RUNNING]
HOLDING = JOB_CODE[JobStatus.HOLDING]
FINISHED = JOB_CODE[JobStatus.FINISHED]
FAILED = JOB_CODE[JobStatus.FAILED]
CANCELLED = JOB_CODE[JobStatus.CANCELLED]
CLOSED = JOB_CODE[JobStatus.CLOSED]
BLOCKED = len(JOB_CODES)
QUEUED = len(JOB_CODES) + 1

STATUS_OF: tuple[JobStatus, ...] = (*JOB_CODES, JobStatus.PENDING, JobStatus.READY)
_LEGAL = frozenset(
    (start, finish)
    for start, s in enumerate(STATUS_OF)
    for finish, f in enumerate(STATUS_OF)
    if (s, f) in JOB_TRANSITIONS or s == f
)


def _class(codes: Iterable[int], *, negate: bool = False) -> re.Pattern[bytes]:
    listed = b"".join(b"\\x%02x" % code for code in codes)
    return re.compile(b"[" + (b"^" if negate else b"") + listed + b"]")


LIVE_CODES = tuple(JOB_CODE[status] for status in JOB_LIVE)
TERMINAL_CODES = tuple(JOB_CODE[status] for status in JOB_TERMINAL)
_PLACED = frozenset((*LIVE_CODES, FINISHED))
#: States of jobs that no executor has and that may still run.
WAITING_CODES = (PENDING, READY, BLOCKED, QUEUED)
FRESH = _class((PENDING, READY))
NOT_FRESH = _class((PENDING, READY), negate=True)
#: What a job whose value exists, or is being made, is not.
NOT_COMING = _class((*LIVE_CODES, FINISHED), negate=True)
NOT_FINISHED = _class((FINISHED,), negate=True)
NOT_TERMINAL = _class(TERMINAL_CODES, negate=True)


class JobTable:
    """State, attempts and bundles of a task's jobs.

    Attributes
    ----------
    state : bytearray
        A code per job.
    ended : array of unsigned short
        Attempts that have ended without success.
    bundle : array of long
        The bundle in flight or, once finished, the one that holds the value; -1: none.
    counts : list of int
        Jobs by code.
    """

    __slots__ = ("bundle", "counts", "ended", "name", "state", "story")

    def __init__(self, name: str, story: Callable[[int], Sequence[str]] = lambda job: ()) -> None:
        self.name, self.story = name, story
        self.state = bytearray()
        self.ended = array("H")
        self.bundle = array("q")
        self.counts = [0] * len(STATUS_OF)

    def __len__(self) -> int:
        return len(self.state)

    def grow(self, n: int, code: int) -> None:
        """Add jobs up to ``n``, all in the state ``code``."""
        more = n - len(self.state)
        self.state += bytes((code,)) * more
        self.ended.frombytes(bytes(self.ended.itemsize * more))
        self.bundle.frombytes(b"\xff" * (self.bundle.itemsize * more))
        self.counts[code] += more

    def move(self, jobs: Jobs, finish: int) -> None:
        """Put jobs into the state ``finish``.

        Raises
        ------
        InvalidTransition
            With the story of the first offender; nothing was changed.
        """
        state = self.state
        if isinstance(jobs, range) and len(jobs) > 1:
            piece = state[jobs.start : jobs.stop]
            starts = set(piece)
            for start in starts:
                if (start, finish) not in _LEGAL:
                    self._refuse(jobs.start + piece.index(start), start, finish)
            for start in starts:
                self.counts[start] -= piece.count(start)
            state[jobs.start : jobs.stop] = bytes((finish,)) * len(piece)
        else:
            for job in jobs:
                if (state[job], finish) not in _LEGAL:
                    self._refuse(job, state[job], finish)
            for job in jobs:
                self.counts[state[job]] -= 1
                state[job] = finish
        self.counts[finish] += len(jobs)
        if finish not in _PLACED:
            self.place(jobs, -1)

    def place(self, jobs: Jobs, bundle: int) -> None:
        """Note the bundle of jobs."""
        for piece in runs_of(jobs):
            self.bundle[piece.start : piece.stop] = array("q", (bundle,)) * len(piece)

    def bundles(self, lo: int, hi: int) -> set[int]:
        """Return the bundles of the jobs ``[lo, hi)``."""
        if hi - lo == 1:
            return {self.bundle[lo]}
        return set(self.bundle[lo:hi]) - {-1}

    def first(self, pattern: re.Pattern[bytes], lo: int, hi: int) -> int | None:
        """Return the first job of ``[lo, hi)`` whose state matches ``pattern``."""
        found = pattern.search(self.state, lo, hi)
        return None if found is None else found.start()

    def jobs_in(self, codes: Iterable[int], lo: int = 0, hi: int | None = None) -> list[range]:
        """Return the contiguous ranges of jobs whose states are among ``codes``."""
        pattern = re.compile(_class(codes).pattern + b"+")
        stop = len(self.state) if hi is None else hi
        return [range(*found.span()) for found in pattern.finditer(self.state, lo, stop)]

    def status(self, job: int) -> JobStatus:
        """Return the state of one job in public words."""
        return STATUS_OF[self.state[job]]

    def terminal(self) -> int:
        """Return how many jobs only a person can move."""
        return sum(self.counts[code] for code in TERMINAL_CODES)

    def live(self) -> int:
        """Return how many jobs an executor has."""
        return sum(self.counts[code] for code in LIVE_CODES)

    def _refuse(self, job: int, start: int, finish: int) -> None:
        raise InvalidTransition(
            f"job {self.name}[{job}]", STATUS_OF[start], STATUS_OF[finish], self.story(job)
        )
