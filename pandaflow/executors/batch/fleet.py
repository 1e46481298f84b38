"""How many pilots of one kind to have: a pure account of allocations.

A pilot is a batch job that holds Dask workers; a fleet has those of one site that are cut into
equal slots. What counts is what the batch system says of its jobs and what Dask's scheduler says
of its workers, put together: a batch job whose workers never come is as much no pilot as a worker
whose batch job was cancelled. A fleet keeps the account and says what to submit and what to give
back; it does nothing itself and asks no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pandaflow.executors.batch.model import BatchStatus

#: Pilots in a row that end without a worker before the site is left alone for a while.
_PATIENCE = 3
#: Seconds that it is then left alone; doubled each time, up to the second number.
_REST_S, _REST_MOST_S = 30.0, 600.0
#: States of batch jobs that wait.
_QUEUED = ("pending", "held")
#: Seconds that a batch job may be unknown to its system before it counts as lost.
_UNKNOWN_S = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A pilot's workers, as the scheduler sees them.

    Attributes
    ----------
    busy : int
        Workers that run something.
    draining : bool
        None of them takes work any more, or one had to turn down a job for want of time.
    """

    busy: int
    draining: bool = False


@dataclass(slots=True)
class Pilot:
    """A pilot in the account.

    Attributes
    ----------
    joined : bool
        A worker of it has been there.
    idle_since : float or None
        Since when its workers have had nothing to do.
    leaving : bool
        It was told to go, or drains: nothing more is expected of it.
    unknown_since : float or None
        Since when its batch system has not known it.
    reason : str
        Why it waits, in the words of its batch system.
    """

    id: str
    submitted: float
    state: str = "pending"
    joined: bool = False
    idle_since: float | None = None
    leaving: bool = False
    unknown_since: float | None = None
    reason: str = ""

    def tardy(self, now: float, after: float) -> bool:
        """Whether it has waited in the queue for so long that nobody counts on it."""
        return not self.joined and not self.leaving and now - self.submitted >= after


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now.

    Attributes
    ----------
    submit : int
    cancel : tuple of str
        Batch jobs that have no worker yet and are not needed.
    retire : tuple of str
        Pilots with idle workers that are not needed.
    """

    submit: int = 0
    cancel: tuple[str, ...] = ()
    retire: tuple[str, ...] = ()


class Allowance:
    """A rate limit with a minute's worth saved up.

    Parameters
    ----------
    per_minute : float
    """

    def __init__(self, per_minute: float) -> None:
        self._rate = self._saved = per_minute
        self._counted: float | None = None

    def take(self, now: float, wanted: int) -> int:
        """Return how many of ``wanted`` may go now."""
        since = 0.0 if self._counted is None else now - self._counted
        self._saved = min(self._rate, self._saved + since / 60.0 * self._rate)
        self._counted = now
        number = max(0, min(wanted, int(self._saved)))
        self._saved -= number
        return number


class Fleet:
    """The pilots of one kind.

    Parameters
    ----------
    idle : float
        Seconds without work after which a pilot is given back.
    tardy : float
        Seconds in the queue after which a pilot is not counted on.
    """

    def __init__(self, *, idle: float = 60.0, tardy: float = 300.0) -> None:
        self._idle, self._tardy = idle, tardy
        self.pilots: dict[str, Pilot] = {}
        self.started, self.spoiled = 0, 0
        self._failures, self._rests = 0, 0
        self._rest_until = 0.0

    def submitted(self, ids: Sequence[str], now: float) -> None:
        """Note pilots that were submitted, or found again after a change of drivers."""
        for one in ids:
            self.pilots[one] = Pilot(one, now)

    def refused(self, now: float) -> None:
        """Note that the batch system took no submission: try again later."""
        self._fail(now, _PATIENCE)

    def tardy(self, now: float) -> int:
        """Return how many pilots wait that nobody counts on any more."""
        return sum(pilot.tardy(now, self._tardy) for pilot in self.pilots.values())

    def staying(self, now: float) -> int:
        """Return how many pilots are there, or soon will be, and stay."""
        return sum(not pilot.leaving for pilot in self.pilots.values()) - self.tardy(now)

    def update(
        self, now: float, statuses: Mapping[str, BatchStatus], workers: Mapping[str, Seen]
    ) -> dict[str, BatchStatus | None]:
        """Bring the account up to date; return pilots that are gone.

        Parameters
        ----------
        now : float
            Seconds of any steady clock.
        statuses : mapping of str to BatchStatus
            What the batch system knows of the pilots, by id.
        workers : mapping of str to Seen
            Workers that are there, by the id of their pilot.
        """
        ended: dict[str, BatchStatus | None] = {}
        for one, pilot in list(self.pilots.items()):
            status, seen = statuses.get(one), workers.get(one)
            if seen is not None:
                self._present(pilot, seen, now)
            elif _is_gone(pilot, status, now):
                ended[one] = status
                del self.pilots[one]
                if not pilot.joined and not pilot.leaving:
                    self._fail(now)
            elif status is not None and _was_taken_back(pilot, status):
                self.pilots[one] = pilot = Pilot(one, now)
            if status is not None:
                pilot.state, pilot.reason = status.state, status.reason
        return ended

    def give(self, now: float, wanted: int, most: int, *, busy: bool) -> list[Pilot]:
        """Give pilots away that are not wanted here, to be cut for other jobs.

        Parameters
        ----------
        now : float
        wanted : int
            Pilots to keep.
        most : int
            Pilots to give at most.
        busy : bool
            Whether pilots that run something are given too: they are cut when that has ended.
        """
        here = [pilot for pilot in self.pilots.values() if not pilot.leaving]
        queued = [p for p in here if not p.joined]
        idle = [p for p in here if p.joined and p.idle_since is not None]
        rest = [p for p in here if p.joined and p.idle_since is None] if busy else []
        given = [*idle, *queued, *rest][: max(0, min(most, self.staying(now) - wanted))]
        for pilot in given:
            del self.pilots[pilot.id]
        return given

    def take(self, pilots: Sequence[Pilot], now: float) -> None:
        """Take in pilots that will be cut for the jobs of this fleet."""
        for pilot in pilots:
            started = now if pilot.state == "running" else pilot.submitted
            self.pilots[pilot.id] = Pilot(pilot.id, started, pilot.state, reason=pilot.reason)

    def plan(self, now: float, wanted: int, *, work: bool = True) -> Plan:
        """Say what to do, after :meth:`update`.

        Parameters
        ----------
        now : float
        wanted : int
            Pilots to have, besides those that nobody counts on.
        work : bool
            Whether anything waits for pilots: those that are late are kept then.
        """
        spare = self.staying(now) + (0 if work else self.tardy(now)) - wanted
        gone = [p.id for p in self.pilots.values() if p.leaving and p.idle_since is not None]
        cancel, retire = self._surplus(now, spare)
        submit = 0 if now < self._rest_until else max(0, -spare)
        return Plan(submit, cancel, (*gone, *retire))

    def trouble(self, now: float) -> str:
        """Say what is wrong with the pilots; empty if nothing is."""
        if now < self._rest_until:
            return "pilots end before their workers are there; it is left alone for a while"
        return "a pilot has ended before its workers were there" * bool(self._failures)

    # --- the account --------------------------------------------------------------------

    def _present(self, pilot: Pilot, seen: Seen, now: float) -> None:
        if not pilot.joined:
            pilot.joined = True
            self.started += 1
            self._failures = self._rests = 0
        pilot.unknown_since = None
        pilot.leaving = pilot.leaving or seen.draining
        if seen.busy:
            pilot.idle_since = None
        elif pilot.idle_since is None:
            pilot.idle_since = now

    def _fail(self, now: float, times: int = 1) -> None:
        self.spoiled += 1
        self._failures += times
        if self._failures >= _PATIENCE:
            self._rest_until = now + min(_REST_MOST_S, _REST_S * 2**self._rests)
            self._rests += 1
            self._failures = 0

    # --- decisions ----------------------------------------------------------------------

    def _surplus(self, now: float, spare: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Choose pilots to be without: those that wait first, then the longest idle."""
        if spare <= 0:
            return (), ()
        here = [pilot for pilot in self.pilots.values() if not pilot.leaving]
        queued = [p for p in reversed(here) if not p.joined and p.state in _QUEUED]
        cancel = [p for p in queued if now - p.submitted >= self._idle][:spare]
        rested = [p for p in here if p.idle_since is not None and now - p.idle_since >= self._idle]
        rested.sort(key=lambda p: p.idle_since or 0.0)
        retire = rested[: spare - len(cancel)]
        for pilot in (*cancel, *retire):
            pilot.leaving = True
        return tuple(p.id for p in cancel), tuple(p.id for p in retire)


def _was_taken_back(pilot: Pilot, status: BatchStatus) -> bool:
    """Tell whether a pilot that had begun waits in the queue again: it was requeued, evicted."""
    return status.state in _QUEUED and pilot.state not in (*_QUEUED, "unknown")


def _is_gone(pilot: Pilot, status: BatchStatus | None, now: float) -> bool:
    """Tell whether a pilot without a worker is no more."""
    if status is not None and status.state != "unknown":
        pilot.unknown_since = None
        return status.over
    pilot.unknown_since = now if pilot.unknown_since is None else pilot.unknown_since
    return now - pilot.unknown_since >= _UNKNOWN_S
