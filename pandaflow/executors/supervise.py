"""Payload threads and those who watch them: limits, cancellation, detaching, measuring.

Rule 1: jobs run in a payload thread; the thread that called ``run_bundle`` supervises it.
Rule 2: a job is stopped by an exception raised in its thread. Whoever wants to stop job ``p``
must first take ``p`` out of ``Track.running``; the job loop takes it out itself when the job has
ended. ``dict.pop`` is atomic, so exactly one of them gets it, and the loop pays 0.1 us a job.
Rule 3: a loop that finds its job taken calls ``Track.settle``, after which no exception can be
under way any more: it never hits the next job.
"""

from __future__ import annotations

import contextvars
import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, Literal

from pandaflow.core.model import Failure, Resources
from pandaflow.executors import channel
from pandaflow.executors.channel import STOPPED, Ask
from pandaflow.executors.memory import own_rss, pss, younger_pss

#: Seconds between two looks at a payload thread, and how long a stopped job may take to react.
PERIOD, GRACE = 0.1, 0.5
#: Seconds that a command's own loop may take to end its processes.
COMMAND_GRACE = 10.0
#: Jobs that run longer than this (s) are measured, this often (s).
MEASURE_AFTER, MEASURE_EVERY = 0.5, 0.25

End = Literal["done", "detached", "stuck"]


class JobStopped(BaseException):
    """Raised in a payload thread to stop its job. Not for users: it is no ``Exception``."""


CANCELLED = Failure(kind="cancelled", message="cancelled while it ran", charged=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about a job while it ran.

    Attributes
    ----------
    failure : Failure or None
        Why it was stopped; None: it was not, and its outcome counts.
    leave : bool
        The supervisor has gone; the loop must begin no other job.
    """

    failure: Failure | None
    leave: bool


class Track:
    """Where a payload thread is; shared by the job loop, its supervisor and ``cancel``.

    Parameters
    ----------
    soft : bool
        The payload watches ``wanted`` itself (commands) and needs no exception.
    memory : int or None
        Limit of the running job, bytes.
    asked : callable
        Given a position, tells whether the driver wants that job to stop.
    """

    def __init__(
        self,
        *,
        soft: bool = False,
        memory: int | None = None,
        asked: Callable[[int], Ask | None] = lambda position: None,
    ) -> None:
        self.position, self.began = 0, perf_counter()
        self.halt = self.cancelled = False
        self.running: dict[int, bool] = {}
        self.peaks: dict[int, int] = {}
        self.memory = memory
        #: Memory of this process before the job began (bytes): RSS, and PSS, which is worked
        #: out when it is first needed.
        self.rss = own_rss()
        self.base: int | None = None
        self.weighed = False
        self.ended, self.wake = threading.Event(), threading.Event()
        self.crash: BaseException | None = None
        self.soft, self.asked = soft, asked
        self._lock = threading.Lock()
        self._ident: int | None = None
        self._taken: int | None = None
        self._failure: Failure | None = None
        self._leave = False
        self._raised = 0.0

    @property
    def wanted(self) -> Failure | None:
        """Why the running job shall stop, if it shall."""
        return CANCELLED if self.cancelled else self._failure

    @property
    def taken(self) -> bool:
        """Whether a decision about the running job still waits to be settled."""
        return self._taken is not None

    def interrupt(self, position: int, failure: Failure) -> bool:
        """Stop the job at ``position``; False if it has ended by itself.

        May be called again and again, by several threads: the payload may have swallowed the
        exception in an except clause. It is raised once in ``PERIOD`` seconds, so that it does
        not come a second time while the loop is about to settle the first.
        """
        with self._lock:
            again = self._taken == position
            if not again and self.running.pop(position, None) is None:
                return False
            self._taken = position
            self._failure = self._failure or failure
            if not again or monotonic() >= self._raised + PERIOD:
                self._raised = monotonic()
                self._raise()
            return True

    def detach(self, position: int, then: Callable[[], None]) -> bool:
        """Let the job at ``position`` be the loop's last; False if it has ended by itself.

        ``then`` is called before the loop can go on.
        """
        with self._lock:
            if self.running.pop(position, None) is None:
                return False
            self._taken, self._leave = position, True
            then()
            return True

    def abandon(self) -> bool:
        """Give up on a job that does not react; False if it has just ended."""
        with self._lock:
            self._leave = self._taken is not None
            return self._leave

    def settle(self) -> Verdict:
        """Close the matter of a taken job. Called by the job loop only."""
        while True:
            try:
                with self._lock:
                    self._taken = None
                    _throw(threading.get_ident(), None)
                    verdict = Verdict(self._failure, self._leave)
                    self._failure = None
                return verdict
            except JobStopped:
                continue  # it came just now, and only once

    def weigh(self) -> None:
        """Note the memory that is in use before a job begins.

        The loop does so after a job that was itself measured, and so was no short one: what
        the job has left behind is not charged to the next.
        """
        self.rss, self.base, self.weighed = own_rss(), None, False

    def run(self, body: Callable[[], None]) -> None:
        """Run ``body`` in this thread and say when it is over."""
        self._ident = threading.get_ident()
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - our own mistake: the supervisor raises it again
            self.crash = error
        self._part()
        self.ended.set()
        self.wake.set()

    def _part(self) -> None:
        """See that no stop reaches this thread any more: it will run other bodies."""
        while self._ident is not None:
            with suppress(JobStopped), self._lock:  # one may come at this very moment
                _throw(threading.get_ident(), None)
                self._ident = None

    def _raise(self) -> None:
        if not self.soft and self._ident is not None:
            _throw(self._ident, JobStopped)


def _throw(ident: int, kind: type[BaseException] | None) -> None:
    """Raise ``kind`` in the thread ``ident``; None takes back what has not arrived yet."""
    exception = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), exception)


# --- payload threads --------------------------------------------------------------------


class _PayloadThread(threading.Thread):
    """Runs one body after the other; parked in between."""

    def __init__(self) -> None:
        super().__init__(name="pandaflow-payload", daemon=True)
        self.bodies: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            self.bodies.get()()
            _parked.append(self)


# Threads belong to the process; starting one costs as much as ten short jobs.
_parked: list[_PayloadThread] = []
os.register_at_fork(after_in_child=_parked.clear)


def start(track: Track, body: Callable[[], None]) -> None:
    """Run ``body`` in a payload thread, with a copy of the caller's context variables."""
    context = contextvars.copy_context()
    try:
        thread = _parked.pop()
    except IndexError:
        thread = _PayloadThread()
        thread.start()
    thread.bodies.put(lambda: context.run(track.run, body))


# --- what this process is doing ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Left:
    """A loop whose last job goes on after its bundle has returned."""

    track: Track
    loop: Any
    supervisor: Supervisor


# Bundles belong to the process: cancel() comes from another thread, a join from a later call.
_live: dict[tuple[str, int], Track] = {}
#: Bundles that must not begin here: Dask may have sent them before it heard of the cancellation.
_cancelled: set[tuple[str, int]] = set()
_left: dict[tuple[str, int], Left] = {}


@contextmanager
def enlisted(run: str, bundle: int, track: Track) -> Iterator[None]:
    """Make a bundle known to :func:`cancel` while it runs here."""
    _live[run, bundle] = track
    if is_cancelled(run, bundle):  # between the report that it began and this line
        track.halt = track.cancelled = True
    try:
        yield
    except BaseException:  # ctrl-C, or a mistake of ours: do not leave the payload alone
        track.halt = True
        track.interrupt(track.position, CANCELLED)
        raise
    finally:
        del _live[run, bundle]


def leave_running(run: str, bundle: int, loop: Any, supervisor: Supervisor) -> None:
    """Keep the loop whose last job goes on, until a bundle joins it."""
    _left[run, bundle] = Left(supervisor.track, loop, supervisor)


def take_running(run: str, bundle: int) -> Left | None:
    """Return what ``bundle`` left running, once; None if this process has nothing of it."""
    return _left.pop((run, bundle), None)


def cancel(run: str, bundle: int) -> bool:
    """Stop a bundle of this process: its running job, and no other job begins.

    Returns
    -------
    bool
        Whether this process had it.
    """
    _cancelled.add((run, bundle))
    track = _live.get((run, bundle))
    if track is not None:
        track.halt = track.cancelled = True
        track.wake.set()
        return True
    left = _left.pop((run, bundle), None)
    if left is None:
        return False
    left.track.cancelled = True
    left.track.interrupt(left.track.position, CANCELLED)
    return True


def look() -> None:
    """Have all supervisors of this process look now what they are to do."""
    for track in list(_live.values()):
        track.wake.set()


def is_cancelled(run: str, bundle: int) -> bool:
    """Return whether :func:`cancel` was called for a bundle, of this process or not."""
    return (run, bundle) in _cancelled


def forget(run: str) -> None:
    """Stop and forget whatever jobs of a run were left running and never joined."""
    channel.forget(run)
    for key in [key for key in _left if key[0] == run]:
        cancel(*key)
    _cancelled.difference_update([key for key in _cancelled if key[0] == run])


# --- memory -----------------------------------------------------------------------------


class _Gauge:
    """Growth of this process since the running job began, and what its children use."""

    def __init__(self, track: Track, limit: int | None) -> None:
        self._track, self._limit, self._next = track, limit, 0.0

    def growth(self) -> int | None:
        """Measure if it is time to; return bytes, or None if nothing was measured."""
        track, now = self._track, perf_counter()
        position, base, rss = track.position, track.base, track.rss
        if now < self._next or (self._limit is None and now - track.began < MEASURE_AFTER):
            return None
        self._next = now + (PERIOD if self._limit is not None else MEASURE_EVERY)
        own = pss(os.getpid())
        if base is None:
            base = track.base = own - (own_rss() - rss)
        growth = max(own - base, 0) + younger_pss(perf_counter() - track.began)
        if track.position == position:
            track.weighed = True
            track.peaks[position] = max(growth, track.peaks.get(position, 0))
        return growth

    def failure(self) -> Failure | None:
        """Return the failure for memory, if the job has earned it."""
        growth, allowed = self.growth(), self._allowed()
        if growth is None or allowed is None or growth <= allowed:
            return None
        used, limit = (f"{size / 2**20:,.0f} MiB" for size in (growth, allowed))
        text = f"used {used} of memory, more than its {limit}; ask for more memory"
        return Failure(kind="memory", message=text)

    def _allowed(self) -> int | None:
        """Jobs that share a process share its measure, and so must share their limits."""
        if self._limit is None:
            return None
        others = [track.memory for track in list(_live.values()) if track is not self._track]
        return None if None in others else self._limit + sum(size or 0 for size in others)


def _nothing() -> None:
    return None


# --- the supervisor ---------------------------------------------------------------------


class Supervisor:
    """Watches one payload thread from the thread that called.

    Parameters
    ----------
    track : Track
    resources : Resources
        ``walltime`` and ``memory`` of a job are enforced, unless the payload is a command,
        which sees to its own limits.
    """

    def __init__(self, track: Track, resources: Resources) -> None:
        self.track = track
        self._walltime = None if track.soft else resources.walltime
        self._gauge = None if track.soft else _Gauge(track, resources.memory)
        self._deadline = self._patience = 0.0
        self._on_detach: Callable[[], None] = _nothing

    def watch(self, seconds: float, tick: Callable[[], None], on_detach: Callable[[], None]) -> End:
        """Stay until the loop has ended, its job is detached, or its job cannot be stopped.

        Parameters
        ----------
        seconds : float
            After so long the loop begins no more jobs, and the running job is detached.
            0: never.
        tick : callable
            Called at every look.
        on_detach : callable
            Called when a job is detached, before it can end.
        """
        track = self.track
        self._deadline = monotonic() + seconds if seconds else float("inf")
        self._patience, self._on_detach = min(PERIOD, seconds / 10), on_detach
        while not track.ended.is_set():
            track.wake.wait(self._pause())
            track.wake.clear()
            if track.ended.is_set():
                break
            tick()
            if not self._obey():
                return "stuck"
            if monotonic() >= self._deadline and self._detached():
                return "detached"
        if track.crash is not None:
            raise track.crash
        return "done"

    def _pause(self) -> float:
        """Seconds until the next look."""
        track, until = self.track, min(PERIOD, self._deadline - monotonic())
        if track.cancelled:
            until = 0.01
        if self._walltime is not None:
            until = min(until, track.began + self._walltime - perf_counter())
        ask = track.asked(track.position)
        if ask is not None:
            until = min(until, ask.force_at - monotonic())
        return max(until, 0.005)

    def _obey(self) -> bool:
        """Stop the job if somebody or some limit says so; False if it does not react."""
        position, began = self.track.position, self.track.began
        failure = CANCELLED if self.track.cancelled else self._unwanted(position)
        failure = failure or self._over_limit(began)
        if failure is None or not self.track.interrupt(position, failure):
            return True
        return self._stopped(position, failure)

    def _unwanted(self, position: int) -> Failure | None:
        """Tell whether the driver wants the job to end, and it was given time enough."""
        ask = self.track.asked(position)
        # A command cannot see that it is asked, so there is nothing to wait for.
        if ask is None or not (self.track.soft or monotonic() >= ask.force_at):
            return None
        return Failure(kind=STOPPED, message=ask.reason, charged=False)

    def _over_limit(self, began: float) -> Failure | None:
        wall = perf_counter() - began
        if self._walltime is not None and wall > self._walltime:
            text = f"ran for {wall:.3g} s, more than its walltime of {self._walltime:g} s"
            return Failure(kind="walltime", message=text)
        return self._gauge.failure() if self._gauge is not None else None

    def _stopped(self, position: int, failure: Failure) -> bool:
        track = self.track
        until = monotonic() + (COMMAND_GRACE if track.soft else GRACE)
        while track.taken and track.position == position:
            if monotonic() > until:
                return not track.abandon()
            track.interrupt(position, failure)
            track.ended.wait(0.005)
        return True

    def _detached(self) -> bool:
        """Begin no more jobs; give the running one a moment to end, then go without it."""
        self.track.halt = True
        if self.track.ended.wait(self._patience):
            return False
        return self.track.detach(self.track.position, self._on_detach)
