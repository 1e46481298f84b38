"""How many pilots to have: a pure account of the allocations of a run.

A pilot is a batch job that holds a Dask worker. What counts is what the batch system says of its
jobs and what Dask's scheduler says of its workers, put together: a batch job whose worker never
comes is as much no pilot as a worker whose batch job was cancelled. The fleet keeps the account
and says what to submit, retire and cancel; it does nothing itself and asks no clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pandaflow.executors.batch.model import BatchStatus

#: Pilots in a row that end without a worker before the site is left alone for a while.
_PATIENCE = 3
#: Seconds that it is then left alone; doubled each time, up to the second number.
_REST_S, _REST_MOST_S = 30.0, 600.0
#: Seconds that a batch job may be unknown to its system before it counts as lost.
_UNKNOWN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the fleet keeps to.

    Attributes
    ----------
    least, most : int
        Pilots.
    slots : int
        Nodes of the Dask graph that a pilot runs at once.
    idle : float
        Seconds without work after which a pilot is given back.
    per_minute : float
        Submissions.
    """

    least: int = 0
    most: int = 10
    slots: int = 1
    idle: float = 60.0
    per_minute: float = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A pilot's worker, as the scheduler sees it: nodes that it has, and whether it drains."""

    busy: int
    draining: bool = False


@dataclass(slots=True)
class Pilot:
    """A pilot in the account.

    Attributes
    ----------
    joined : bool
        Its worker has been there.
    idle_since : float or None
        Since when its worker has had nothing to do.
    leaving : bool
        It was told to go, or drains: nothing more is expected of it.
    unknown_since : float or None
        Since when its batch system has not known it.
    """

    id: str
    submitted: float
    state: str = "pending"
    joined: bool = False
    idle_since: float | None = None
    leaving: bool = False
    unknown_since: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now.

    Attributes
    ----------
    submit : int
    cancel : tuple of str
        Batch jobs that have no worker yet and are not needed.
    retire : tuple of str
        Pilots with an idle worker that is not needed.
    ended : mapping of str to BatchStatus or None
        Pilots that are gone since the last time; None: their system has forgotten them.
    trouble : str
        Why there are no more pilots, for people.
    """

    submit: int = 0
    cancel: tuple[str, ...] = ()
    retire: tuple[str, ...] = ()
    ended: Mapping[str, BatchStatus | None] = field(default_factory=dict)
    trouble: str = ""


class Fleet:
    """The pilots of a run.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pilots: dict[str, Pilot] = {}
        self._allowance, self._counted = limits.per_minute, 0.0
        self._failures, self._rests = 0, 0
        self._rest_until = 0.0

    def submitted(self, ids: Sequence[str], now: float) -> None:
        """Note pilots that were submitted, or found again after a change of drivers."""
        for one in ids:
            self.pilots[one] = Pilot(one, now)

    def refused(self, now: float) -> None:
        """Note that the batch system took no submission: try again later."""
        self._fail(now, _PATIENCE)

    def look(
        self,
        now: float,
        statuses: Mapping[str, BatchStatus],
        workers: Mapping[str, Seen],
        waiting: int,
    ) -> Plan:
        """Bring the account up to date and say what to do.

        Parameters
        ----------
        now : float
            Seconds of any steady clock.
        statuses : mapping of str to BatchStatus
            What the batch system knows of the pilots, by id.
        workers : mapping of str to Seen
            Workers that are there, by the id of their pilot.
        waiting : int
            Nodes that could run if there were a slot.
        """
        ended = self._update(now, statuses, workers)
        busy = sum(seen.busy for seen in workers.values())
        wanted = self._wanted(busy + waiting)
        here = [pilot for pilot in self.pilots.values() if not pilot.leaving]
        cancel, retire = self._surplus(now, here, wanted)
        submit = self._submissions(now, wanted - len(here))
        return Plan(submit, cancel, retire, ended, self._trouble(now))

    # --- the account --------------------------------------------------------------------

    def _update(
        self, now: float, statuses: Mapping[str, BatchStatus], workers: Mapping[str, Seen]
    ) -> dict[str, BatchStatus | None]:
        ended: dict[str, BatchStatus | None] = {}
        for one, pilot in list(self.pilots.items()):
            status, seen = statuses.get(one), workers.get(one)
            if seen is not None:
                self._present(pilot, seen, now)
            elif self._is_gone(pilot, status, now):
                ended[one] = status
                del self.pilots[one]
                if not pilot.joined and not pilot.leaving:
                    self._fail(now)
            if status is not None:
                pilot.state = status.state
        return ended

    def _present(self, pilot: Pilot, seen: Seen, now: float) -> None:
        if not pilot.joined:
            pilot.joined = True
            self._failures = self._rests = 0
        pilot.unknown_since = None
        pilot.leaving = pilot.leaving or seen.draining
        if seen.busy:
            pilot.idle_since = None
        elif pilot.idle_since is None:
            pilot.idle_since = now

    def _is_gone(self, pilot: Pilot, status: BatchStatus | None, now: float) -> bool:
        """Tell whether a pilot without a worker is no more."""
        if status is not None and status.state != "unknown":
            pilot.unknown_since = None
            return status.over
        pilot.unknown_since = now if pilot.unknown_since is None else pilot.unknown_since
        return now - pilot.unknown_since >= _UNKNOWN_S

    def _fail(self, now: float, times: int = 1) -> None:
        self._failures += times
        if self._failures >= _PATIENCE:
            self._rest_until = now + min(_REST_MOST_S, _REST_S * 2**self._rests)
            self._rests += 1
            self._failures = 0

    # --- decisions ----------------------------------------------------------------------

    def _wanted(self, nodes: int) -> int:
        limits = self.limits
        return max(limits.least, min(limits.most, math.ceil(nodes / limits.slots)))

    def _surplus(
        self, now: float, here: Sequence[Pilot], wanted: int
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Choose pilots to be without: those that still wait first, then the longest idle."""
        spare = len(here) - wanted
        if spare <= 0:
            return (), ()
        queued = [p for p in here if not p.joined and p.state in ("pending", "held")]
        cancel = [p for p in reversed(queued) if now - p.submitted >= self.limits.idle][:spare]
        rested = [
            p for p in here if p.idle_since is not None and now - p.idle_since >= self.limits.idle
        ]
        rested.sort(key=lambda p: p.idle_since or 0.0)
        retire = rested[: spare - len(cancel)]
        for pilot in (*cancel, *retire):
            pilot.leaving = True
        return tuple(p.id for p in cancel), tuple(p.id for p in retire)

    def _submissions(self, now: float, missing: int) -> int:
        """Return how many to submit now: a rate limit with a minute's allowance saved up."""
        per_minute = self.limits.per_minute
        earned = (now - self._counted) / 60.0 * per_minute if self._counted else 0.0
        self._allowance = min(per_minute, self._allowance + earned)
        self._counted = now
        if now < self._rest_until:
            return 0
        number = max(0, min(missing, int(self._allowance)))
        self._allowance -= number
        return number

    def _trouble(self, now: float) -> str:
        if now >= self._rest_until:
            return ""
        left = self._rest_until - now
        return f"pilots end before their worker is there; the next is tried in {left:.0f} s"
