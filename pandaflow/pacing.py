"""Reports of slots: their number passes at once, reasons for it once a second."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from pandaflow.core.events import SlotsChanged


@dataclass(slots=True)
class _Told:
    """What was last passed on about an executor, and when its reason last changed."""

    event: SlotsChanged
    changed: float


class Reasons:
    """Passes on what executors say of their slots, and keeps back reasons that change too often.

    A batch system's words on a queue may change with every look at it; each that is passed on
    becomes a row of the event log. Thread-safe.

    Parameters
    ----------
    every : float
        Seconds between two reasons of one executor, at least.
    """

    def __init__(self, every: float = 1.0) -> None:
        self._every = every
        self._told: dict[str, _Told] = {}
        self._held: dict[str, SlotsChanged] = {}
        self._lock = threading.Lock()

    def take(self, event: SlotsChanged) -> SlotsChanged | None:
        """Return what is to be told now; None: nothing new, or nothing before a later ``due``."""
        with self._lock:
            self._held.pop(event.executor, None)  # the newest wins
            told = self._told.get(event.executor)
            if told is None:
                return self._pass(event)
            now = replace(event, reason=told.event.reason)
            if event.reason != now.reason:
                if event.at - told.changed >= self._every:
                    return self._pass(event)
                self._held[event.executor] = event
            same = now == replace(told.event, at=event.at)
            return None if same else self._pass(now)

    def due(self, now: float) -> list[SlotsChanged]:
        """Return what was kept back and may be told at ``now``, seconds since the epoch."""
        if not self._held:  # nearly always, and asked in every turn of the loop
            return []
        with self._lock:
            held = list(self._held.values())
            free = [e for e in held if now - self._told[e.executor].changed >= self._every]
            for event in free:
                del self._held[event.executor]
            return [self._pass(replace(event, at=now)) for event in free]

    def _pass(self, event: SlotsChanged) -> SlotsChanged:
        told = self._told.get(event.executor)
        if told is None:
            # An executor that begins with nothing to say may say something at once.
            changed = event.at if event.reason else float("-inf")
        else:
            changed = told.changed if told.event.reason == event.reason else event.at
        self._told[event.executor] = _Told(event, changed)
        return event
