"""What running jobs and the driver of their run tell each other.

Upwards: a job's messages wait in the :class:`Outbox` of its worker, which posts them in lists,
in order. Messages may be lost with their worker; none arrives twice, and none after the report
that its bundle has ended. Downwards: the driver asks for jobs to be stopped, and every worker
keeps what was asked (:func:`ask`) until the run ends there. A request is about one attempt of a
job, so a retry that the driver sends later is not touched by it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeAlias

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.errors import WorkflowError
from pandaflow.core.events import BundleEnded, JobSaid
from pandaflow.core.model import Jobs

logger = logging.getLogger("pandaflow.executors")

#: Seconds between two lists of messages of one process.
PERIOD = 0.02
#: Messages in one list, and messages of one outbox that may wait: more are refused.
PAGE, BACKLOG = 500, 20_000
#: Bytes of one message.
LIMIT = 8_192
#: Requests to stop that a process keeps; beyond that the oldest are forgotten.
KEPT = 100_000
#: The kind of "failure" that stops such a job; it is reported as a skip.
STOPPED = "stopped"

#: The bundle in which a job begins, and its index: what the driver tells an attempt by.
Begun: TypeAlias = tuple[int, int]
#: Run, bundle, job index.
Key: TypeAlias = tuple[str, int, int]
#: Task name, bundle, job index, attempt, time of sending, body as JSON.
Message: TypeAlias = tuple[str, int, int, int, float, str]
Post: TypeAlias = Callable[[dict[str, Any]], None]


# --- upwards ----------------------------------------------------------------------------


def encode_body(body: Mapping[str, Any]) -> str:
    """Turn the body of a message into text.

    Raises
    ------
    WorkflowError
        It is no dict, holds something that JSON cannot, or is larger than ``LIMIT``.
    """
    if not isinstance(body, dict):
        raise WorkflowError(f"send() takes a dict, not {type(body).__name__}")
    try:
        text = json.dumps(body)
    except (TypeError, ValueError, RecursionError) as error:
        raise WorkflowError(
            f"send() takes None, bool, int, float, str, and lists and dicts of them: {error}"
        ) from None
    if len(text) > LIMIT:
        raise WorkflowError(
            f"send() takes small messages, at most {LIMIT:,} bytes, and this one has "
            f"{len(text):,}: leave large data in the job's result"
        )
    return text


class Outbox:
    """Messages of one run's jobs on one worker, on their way to the driver.

    Parameters
    ----------
    post : callable
        Gets ``{"op": "said", "said": [message, ...]}``: plain values, lists of at most
        ``PAGE`` messages. Called by one thread at a time.
    at_once : bool
        Post in the thread that sends, message by message.
    """

    def __init__(self, post: Post, *, at_once: bool = False) -> None:
        self.post, self._at_once, self._pid = post, at_once, os.getpid()
        self._waiting: deque[Message] = deque()
        self._lock = threading.RLock()  # who hears a message may send one
        self._rung = False

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy in another process leads nowhere: None."""
        return (type(None), ())

    def put(self, message: Message) -> bool:
        """Add a message without waiting; False if it will not be posted.

        Called in payload threads, where an exception may arrive at any time (a job is
        stopped), so it takes no lock.
        """
        if len(self._waiting) >= BACKLOG or self._pid != os.getpid():
            return False
        self._waiting.append(message)
        if self._at_once:
            self.flush()
        elif not self._rung:
            self._rung = True
            _ring(self)
        return True

    def post_page(self) -> bool:
        """Post one list; return whether messages are left."""
        self._rung = False  # before looking: what is put from now on rings again
        with self._lock:
            self._post_next()
        return bool(self._waiting)

    def flush(self) -> None:
        """Post all that waits; when this returns, it has been handed over."""
        self._rung = False
        with self._lock:
            while self._waiting:
                self._post_next()

    def _post_next(self) -> None:
        size = min(PAGE, len(self._waiting))
        page = [self._waiting.popleft() for _ in range(size)]
        if page:
            try:
                self.post({"op": "said", "said": page})
            except (RuntimeError, OSError) as error:  # the worker is being closed
                logger.debug("%d messages could not be posted: %s", size, error)


# The postman belongs to the process: one thread that posts for all outboxes of all runs.
_bell: queue.SimpleQueue[Outbox] = queue.SimpleQueue()
_outboxes: dict[tuple[str, str], Outbox] = {}
_postman_lock = threading.Lock()
_postman: threading.Thread | None = None


def _ring(outbox: Outbox) -> None:
    if _postman is None:
        _hire()
    _bell.put(outbox)


def _hire() -> None:
    global _postman
    with _postman_lock:
        if _postman is None:
            thread = threading.Thread(target=_deliver, name="pandaflow-postman", daemon=True)
            thread.start()
            _postman = thread


def _deliver() -> None:
    """Post at once what comes after a quiet time, and what follows in lists."""
    while True:
        boxes = [_bell.get()]
        while not _bell.empty():
            boxes.append(_bell.get())
        for outbox in dict.fromkeys(boxes):
            if outbox.post_page():
                _bell.put(outbox)
        time.sleep(PERIOD)


def _after_fork() -> None:
    global _bell, _postman, _postman_lock
    _bell, _postman, _postman_lock = queue.SimpleQueue(), None, threading.Lock()
    _outboxes.clear()


os.register_at_fork(after_in_child=_after_fork)


def outbox_of(run: str, worker: str, post: Post) -> Outbox:
    """Return the outbox of a run on a worker of this process; from now on it posts so."""
    outbox = _outboxes.get((run, worker)) or _outboxes.setdefault((run, worker), Outbox(post))
    outbox.post = post  # of the driver that sent the latest bundle: the run may have been resumed
    return outbox


def unpack_said(report: Mapping[str, Any]) -> Iterator[JobSaid]:
    """Turn what an outbox has posted into events, oldest first."""
    for task, bundle, job, attempt, at, text in report["said"]:
        yield JobSaid(at, bundle, job, attempt, json.loads(text), task)


# --- downwards, in a worker -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to stop a job.

    Attributes
    ----------
    reason : str
    force_at : float
        When it is stopped by force, on this process's monotonic clock (s).
    """

    reason: str
    force_at: float


#: What was asked for in this process. Flat, because the job loop looks here before every job.
asked: dict[Key, Ask] = {}


def ask(run: str, jobs: Iterable[Sequence[int]], reason: str, grace: float) -> None:
    """Ask jobs to stop; whoever runs them sees it at once. The first request counts.

    Parameters
    ----------
    run : str
    jobs : iterable of (int, int)
        The bundle in which the job begins, its index.
    reason : str
    grace : float
        Seconds until they are stopped by force.
    """
    request = Ask(reason or "stopped", monotonic() + grace)
    for bundle, job in jobs:
        asked.setdefault((run, bundle, job), request)
    if len(asked) > KEPT:
        for key in list(asked)[: len(asked) - KEPT]:
            asked.pop(key, None)


def forget(run: str) -> None:
    """Drop what is kept for a run."""
    for key in [key for key in list(asked) if key[0] == run]:
        asked.pop(key, None)
    for place in [place for place in list(_outboxes) if place[0] == run]:
        _outboxes.pop(place, None)


# --- downwards, in a session ------------------------------------------------------------


@dataclass(slots=True)
class _Given:
    """A bundle that is out; ``begun`` is the bundle in which its jobs begin."""

    begun: int
    task: str
    jobs: Jobs
    asked: dict[int, Ask] = field(default_factory=dict)


class Roll:
    """The bundles that a session has handed out and that have not ended. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given: dict[int, _Given] = {}
        #: Requests for jobs that were handed back before they began.
        self._back: dict[tuple[str, int], Ask] = {}

    def add(self, spec: BundleSpec) -> None:
        """Note a bundle before it is handed out."""
        with self._lock:
            left = self._given.pop(spec.join, None) if spec.join is not None else None
            begun = spec.bundle if left is None else left.begun
            given = self._given[spec.bundle] = _Given(begun, spec.name, spec.jobs)
            for task, job in list(self._back):
                if task == spec.name and job in spec.jobs:
                    given.asked[job] = self._back.pop((task, job))

    def ended(self, event: BundleEnded) -> None:
        """Note that a bundle has ended; a job that it left running stays on the roll."""
        with self._lock:
            given = self._given.pop(event.bundle, None)
            if given is None:
                return
            for job in [given.jobs[position] for position in event.unstarted if given.asked]:
                if job in given.asked:
                    self._back[given.task, job] = given.asked[job]
            if event.detached is not None:
                job = given.jobs[event.detached]
                self._given[event.bundle] = _Given(given.begun, given.task, range(job, job + 1))

    def drop(self, bundles: Iterable[int]) -> None:
        """Forget bundles that were lost or cancelled."""
        with self._lock:
            for bundle in bundles:
                self._given.pop(bundle, None)

    def ask(self, jobs: Sequence[tuple[str, int]], request: Ask) -> list[Begun]:
        """Return where the named jobs are that are out, and note what they are asked."""
        found: list[Begun] = []
        with self._lock:
            for given in self._given.values():
                mine = [job for task, job in jobs if task == given.task and job in given.jobs]
                found += [(given.begun, job) for job in mine]
                given.asked.update(dict.fromkeys(mine, request))
        return found

    def open(self) -> list[tuple[Begun, Ask]]:
        """Return what all jobs that are out were asked so far."""
        with self._lock:
            return [
                ((given.begun, job), request)
                for given in self._given.values()
                for job, request in given.asked.items()
            ]

    def asked_of(self, bundle: int) -> list[tuple[Begun, Ask]]:
        """Return what the jobs of a bundle were asked so far."""
        with self._lock:
            given = self._given.get(bundle)
            asks = given.asked.items() if given is not None else ()
            return [((bundle, job), request) for job, request in asks]
