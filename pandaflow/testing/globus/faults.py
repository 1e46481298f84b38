"""Faults that tests inject into the service, and the log of what it was asked."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class LoggedRequest:
    """One request that the service saw.

    Parameters
    ----------
    route
        Name of the route: ``submit``, ``batch_status``, …; ``unknown`` for none.
    method, path
        As asked.
    status
        Of the answer; 0 where the connection was dropped instead.
    size
        Of the request's body, in bytes.
    agent
        What the client calls itself.
    at
        When it was answered: seconds since the epoch.
    """

    route: str
    method: str
    path: str
    status: int
    size: int
    agent: str
    at: float


class RequestLog:
    """Every request since the last `clear`, in the order of the answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[LoggedRequest] = []

    def __iter__(self) -> Iterator[LoggedRequest]:
        with self._lock:
            return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: LoggedRequest) -> None:
        """Append an entry."""
        with self._lock:
            self._entries.append(entry)

    def of(self, route: str, status: int | None = None) -> list[LoggedRequest]:
        """Return the requests to a route, or those of them that were answered so."""
        return [r for r in self if r.route == route and status in (None, r.status)]

    def counts(self) -> dict[str, int]:
        """Return the number of requests by route."""
        return dict(Counter(entry.route for entry in self))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


@dataclass
class Fault:
    """What happens to the next requests of a route.

    Parameters
    ----------
    route
        Name of the route; ``*`` for any.
    times
        To how many requests.
    status
        Answer this and do nothing; 0 to do what was asked.
    delay
        Seconds to wait before the request is looked at.
    drop
        Do what was asked, then close the connection without an answer.
    retry_after
        Seconds, for the header of that name, where there is a `status`.
    """

    route: str
    times: int
    status: int = 0
    delay: float = 0.0
    drop: bool = False
    retry_after: int | None = None


class Faults:
    """Faults to come; each call plans one. Faults of a route happen in the order planned."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[Fault] = []

    def answer(
        self, status: int, route: str = "*", times: int = 1, *, retry_after: int | None = None
    ) -> None:
        """Answer a status (429, 500, 503, …) to the next requests, without doing anything."""
        self._plan(Fault(route, times, status=status, retry_after=retry_after))

    def delay(self, seconds: float, route: str = "*", times: int = 1) -> None:
        """Be slow with the next requests."""
        self._plan(Fault(route, times, delay=seconds))

    def drop(self, route: str = "*", times: int = 1) -> None:
        """Do what the next requests ask, and close their connections without an answer."""
        self._plan(Fault(route, times, drop=True))

    def clear(self) -> None:
        """Forget what was planned."""
        with self._lock:
            self._planned.clear()

    @property
    def left(self) -> int:
        """How many requests will still be hit."""
        with self._lock:
            return sum(fault.times for fault in self._planned)

    def take(self, route: str) -> Fault:
        """Return what happens to a request, after its delay."""
        fault = self._next(route)
        if fault.delay:
            time.sleep(fault.delay)
        return fault

    def _plan(self, fault: Fault) -> None:
        with self._lock:
            self._planned.append(fault)

    def _next(self, route: str) -> Fault:
        with self._lock:
            for fault in self._planned:
                if fault.route in ("*", route):
                    fault.times -= 1
                    if not fault.times:
                        self._planned.remove(fault)
                    return fault
        return Fault(route, 1)
