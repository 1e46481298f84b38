"""What has gone wrong at a queue, and for how long it is to be left alone: no I/O, no clock.

Two things go wrong. Pilots do not come to life: they die at once, or cannot be submitted
(:class:`Backoff`). Or pilots live and find nothing, although bundles wait that they could run by
all that a harvester knows: their Python, container runtime or disk is not what the bundles need
(:class:`Refusal`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pandaflow.grid.messages import Needs
from pandaflow.harvester.sizing import Seat, Wanted, holds

#: Seconds of the longest pause.
LONGEST = 3600.0
#: Seconds for which nobody who could took a class, before it is believed that none will.
PATIENCE = 60.0
#: Seconds for which no pilots are begun for a class that was left, the first time.
LEFT = 600.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often in a row pilots did not come to life, and until when none is begun.

    Attributes
    ----------
    failures : int
    until : float
        Seconds since the epoch.
    reason : str
    """

    failures: int = 0
    until: float = 0.0
    reason: str = ""

    def after_failure(self, reason: str, now: float, first: float) -> Backoff:
        """Return it after another failure; pauses double from ``first`` seconds."""
        if now < self.until:
            return replace(self, reason=reason)  # of the same lot
        pause = min(LONGEST, first * 2.0 ** min(self.failures, 20))
        return Backoff(self.failures + 1, now + pause, reason)

    def credit(self, now: float) -> int | None:
        """Return how many pilots may be on their way; None: any number."""
        if not self.failures:
            return None
        return 0 if now < self.until else 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """A class of bundles that pilots of this queue do not take.

    Attributes
    ----------
    times : int
    until : float
        Seconds since the epoch: until then no pilot is begun for it, then one.
    """

    times: int
    until: float


def key(needs: Needs) -> str:
    """Return a name of a class."""
    return needs.model_dump_json(exclude_defaults=True)


def refused(
    refusals: Mapping[str, Refusal],
    waiting: Mapping[str, tuple[Needs, float]],
    running: Iterable[str],
    seats: Sequence[Seat],
    tags: frozenset[str],
    now: float,
    patience: float = PATIENCE,
) -> dict[str, Refusal]:
    """Return the classes that pilots of a queue do not take, as known from now on.

    Parameters
    ----------
    refusals : mapping of str to Refusal
        As known so far.
    waiting : mapping of str to (Needs, float)
        Classes of which some are ready, and since when there always were.
    running : iterable of str
        Classes that run at the queue: those are taken.
    seats : sequence of Seat
    tags : frozenset of str
    now : float
    patience : float
        Seconds for which a pilot must have been idle, and bundles ready.
    """
    taken = set(running)
    known = {name: each for name, each in refusals.items() if name not in taken}
    idle = [seat for seat in seats if seat.stage == "idle" and seat.since >= patience]
    for name, (needs, since) in waiting.items():
        able = any(holds(seat.shape, needs, tags) and _in_time(seat, needs) for seat in idle)
        if name in taken or not able or now - since < patience:
            continue
        old = known.get(name)
        if old is None or now >= old.until:
            times = 1 if old is None else old.times + 1
            pause = min(24 * LONGEST, LEFT * 2.0 ** min(times - 1, 20))
            known[name] = Refusal(times, now + pause)
    return known


def _in_time(seat: Seat, needs: Needs) -> bool:
    return seat.cores >= needs.cores and seat.left >= (needs.walltime or 0.0)


def counted(
    waiting: Mapping[str, tuple[Needs, int]], refusals: Mapping[str, Refusal], now: float
) -> list[Wanted]:
    """Return the demand for which pilots are worth beginning."""
    return [
        Wanted(needs, ready, probe=name in refusals)
        for name, (needs, ready) in waiting.items()
        if name not in refusals or now >= refusals[name].until
    ]
