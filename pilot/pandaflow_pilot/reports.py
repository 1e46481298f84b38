"""Reports to the server: heartbeats, last reports, and what the server says to them.

A bundle's last report keeps its number until the server has answered it: one whose answer was
lost is recognised. Heartbeats are made anew for each try. A bundle whose server was not heard of
for longer than its heartbeat allows is somebody else's by now, and its payload is ended.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pandaflow_pilot.api import Api, ApiError, Pauses
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.control import Control
from pandaflow_pilot.leases import Verdict, parse_verdicts
from pandaflow_pilot.log import LOGGER

#: Bytes and reports of one call at most.
_BYTES, _COUNT = 4_000_000, 500
#: States that a report itself is to blame for.
_UNFIT = frozenset({400, 413, 422})
#: Seconds for which a last report is offered, where heartbeats are shorter.
_LAST = 600.0
#: Characters of a log's end that are reported.
_TAIL = 20_000


class Subject(Protocol):
    """What is reported about."""

    phase: str
    control: Control

    def metrics(self) -> dict[str, float]:
        """Return what it has used so far."""

    def tail(self, limit: int = _TAIL) -> str:
        """Return the end of what it has printed."""


@dataclass
class Held:
    """A bundle that this pilot holds, and what is to be said of it.

    Attributes
    ----------
    id : int
    lease : str
    heartbeat : float
        Seconds.
    subject : Subject or None
        None: it never began.
    final : dict or None
        Its last report.
    contact : float
        Monotonic time at which a call began that the server has answered.
    """

    id: int
    lease: str
    heartbeat: float
    subject: Subject | None = None
    final: dict[str, Any] | None = None
    seq: int = 0
    said: bool = False
    urgent: bool = True
    tail: bool = False
    refused: int = 0
    contact: float = field(default_factory=time.monotonic)

    def report(self) -> dict[str, Any]:
        """Return what is to be said now."""
        if self.final is not None:
            return self.final
        subject = self.subject
        assert subject is not None, "a bundle that never began has its last report at once"
        report = self._numbered({"state": "running", "phase": subject.phase})
        report["metrics"] = subject.metrics()
        if self.tail:
            report["tail"] = subject.tail(_TAIL)
        return report

    def finish(self, fields: dict[str, Any]) -> None:
        """Set the last report."""
        self.final, self.urgent = self._numbered(fields), True

    def _numbered(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.seq += 1
        return {"id": self.id, "lease": self.lease, "seq": self.seq, **fields}

    def overdue(self, now: float) -> bool:
        """Tell whether the server must have given it to somebody else."""
        patience = self.heartbeat if self.final is None else max(self.heartbeat, _LAST)
        return now - self.contact > patience


class Reporter:
    """Sends reports, on a thread of its own.

    Parameters
    ----------
    api : Api
    pilot : str
    beat : float
        Seconds between two heartbeats at most.
    on_command : callable
        Takes ``drain`` and ``stop``.
    """

    def __init__(
        self, api: Api, pilot: str, beat: float, on_command: Callable[[str], None]
    ) -> None:
        self._api, self._pilot, self._beat, self._on_command = api, pilot, beat, on_command
        self._held: dict[str, Held] = {}
        self._lock, self._wake = threading.RLock(), threading.Event()
        self._over, self._next = threading.Event(), 0.0
        self._pauses = Pauses(0.3, 15.0)
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    def add(self, held: Held) -> None:
        """Begin to report a bundle."""
        with self._lock:
            self._held[held.lease] = held
        self._wake.set()

    def finish(self, held: Held, fields: dict[str, Any] | None) -> None:
        """Report a bundle for the last time; None: without a word."""
        with self._lock:
            if fields is None:
                self._held.pop(held.lease, None)
            elif held.lease in self._held:
                held.finish(fields)
        self._wake.set()

    def expire(self) -> None:
        """Give up what the server must have given to somebody else."""
        now = time.monotonic()
        with self._lock:
            for held in list(self._held.values()):
                if held.overdue(now):
                    LOGGER.warning("bundle %d: no word from the server for too long", held.id)
                    self._drop(held)

    def pending(self) -> int:
        """Return how many bundles have something to be said yet."""
        with self._lock:
            return len(self._held)

    def flush(self, seconds: float) -> bool:
        """Wait until all is said, at most so long; tell whether it is."""
        deadline = time.monotonic() + seconds
        while self.pending() and time.monotonic() < deadline:
            self.expire()
            time.sleep(0.02)
        return not self.pending()

    def goodbye(self, seconds: float) -> None:
        """Say that the pilot has ended, once: a server that does not hear it finds out later."""
        body = {"pilot": self._pilot, "reports": [], "gone": True}
        try:
            self._api.post("/pilot/update", body, timeout=seconds)
        except ApiError as error:
            LOGGER.debug("the server did not hear that the pilot ends: %s", error)

    def close(self) -> None:
        """Say nothing more; the connections must have been closed."""
        self._over.set()
        self._wake.set()
        self._thread.join(10.0)

    # --- the thread ---

    def _run(self) -> None:
        while not self._over.is_set():
            self._wake.wait(self._due_in())
            self._wake.clear()
            if self._over.is_set():
                return
            pause = self._round()
            if pause:
                self._over.wait(pause)
                self._wake.set()

    def _due_in(self) -> float:
        return max(0.0, min(self._next - time.monotonic(), 5.0))

    def _interval(self) -> float:
        """A third of the shortest heartbeat, and never for all pilots at the same moment."""
        with self._lock:
            shortest = min((held.heartbeat for held in self._held.values()), default=180.0)
        return min(self._beat, shortest / 3) * random.uniform(0.85, 1.0)

    def _round(self) -> float:
        """Say what is due; return the seconds to wait before the next try, 0 if it went well."""
        beat = time.monotonic() >= self._next
        with self._lock:
            waiting = [held for held in self._held.values() if beat or held.urgent]
            for held in waiting:
                held.urgent = False
        try:
            for batch in _batches(waiting, self._lock):
                self._send(batch)
            if beat and not waiting and not self._over.is_set():
                self._send([])
        except ApiError as error:
            LOGGER.warning("reports cannot be sent (%s); trying again", error)
            for held in waiting:
                held.urgent = True
            return min(self._pauses.next(error.retry_after), self._interval())
        self._pauses.reset()
        if beat:
            self._next = time.monotonic() + self._interval()
        else:  # a bundle with a shorter heartbeat may have come
            self._next = min(self._next, time.monotonic() + self._interval())
        return 0.0

    def _send(self, batch: list[tuple[Held, dict[str, Any]]]) -> None:
        body = {"pilot": self._pilot, "reports": [report for _, report in batch]}
        began = time.monotonic()
        shortest = min((held.heartbeat for held, _ in batch), default=90.0)
        try:
            answer = self._api.post(
                "/pilot/update", body, timeout=min(30.0, max(1.0, shortest / 3))
            )
            verdicts, commands = parse_verdicts(answer)
        except PilotError as error:
            raise ApiError(str(error)) from None
        except ApiError as error:
            if error.status not in _UNFIT or not batch:
                raise
            self._unfit(batch, error)
            return
        with self._lock:
            self._judged(batch, verdicts, began)
        for command in commands:
            self._on_command(command)

    def _unfit(self, batch: list[tuple[Held, dict[str, Any]]], error: ApiError) -> None:
        """The server does not understand a report: find out which, and say less of it."""
        if len(batch) > 1:
            for one in batch:
                self._send([one])
            return
        held, report = batch[0]
        LOGGER.error("bundle %d: the server does not take its report: %s", held.id, error)
        with self._lock:
            blamed = report.get("error") or {}
            if held.final is None or blamed.get("code") in _LAST_WORDS:
                self._drop(held)
                return
            name = "reply_size" if error.status == 413 else "protocol"
            text = f"the server does not take the report: {error}"
            state = "ended" if error.status == 413 else "lost"
            held.finish({"state": state, "error": PilotError(name, text).trouble()})
        self._wake.set()

    # --- answers ---

    def _judged(
        self,
        batch: list[tuple[Held, dict[str, Any]]],
        verdicts: Iterable[Verdict],
        began: float,
    ) -> None:
        told = list(verdicts)
        if [verdict.id for verdict in told] != [held.id for held, _ in batch]:
            raise ApiError("the server's verdicts are not about what was reported")
        for (held, report), verdict in zip(batch, told):
            if verdict.accepted:
                self._accepted(held, report, verdict, began)
            else:
                self._refused(held, report, verdict)

    def _accepted(self, held: Held, report: dict[str, Any], verdict: Verdict, began: float) -> None:
        held.contact, held.refused, held.said = began, 0, True
        if report["state"] != "running":
            self._held.pop(held.lease, None)
            return
        if "tail" in report:
            held.tail = False
        self._obey(held, verdict.commands)

    def _refused(self, held: Held, report: dict[str, Any], verdict: Verdict) -> None:
        held.refused += 1
        LOGGER.warning("bundle %d: a report was refused: %s", held.id, verdict.why)
        final = report["state"] != "running"
        if not final and "kill" in verdict.commands:
            self._kill(held)
        elif final or held.refused > 1:  # one late heartbeat does no harm: its answer was lost
            self._drop(held)

    def _obey(self, held: Held, commands: frozenset[str]) -> None:
        if "kill" in commands:
            self._kill(held)
        elif "soft_kill" in commands and held.subject is not None:
            if not held.subject.control.soft:
                LOGGER.info("bundle %d: asked to end by the server", held.id)
            held.subject.control.ask_to_end()
        if "tail" in commands:
            held.tail = held.urgent = True
            self._wake.set()

    def _kill(self, held: Held) -> None:
        """End it; the last report tells the server that nothing of it runs any more."""
        if held.subject is not None and not held.subject.control.hard:
            LOGGER.info("bundle %d: killed by the server", held.id)
            held.subject.control.lose(PilotError("cancelled", "the server wants it no more"))

    def _drop(self, held: Held) -> None:
        self._held.pop(held.lease, None)
        if held.subject is not None:
            held.subject.control.drop()


_LAST_WORDS = frozenset(PilotError(name, "").number for name in ("reply_size", "protocol"))


def _batches(
    waiting: list[Held], lock: threading.RLock
) -> Iterable[list[tuple[Held, dict[str, Any]]]]:
    """Put reports together up to what one call may carry."""
    batch: list[tuple[Held, dict[str, Any]]] = []
    weight = 0
    for held in waiting:
        with lock:
            report = held.report()
        size = len(json.dumps(report))
        if batch and (weight + size > _BYTES or len(batch) >= _COUNT):
            yield batch
            batch, weight = [], 0
        batch.append((held, report))
        weight += size
    if batch:
        yield batch
