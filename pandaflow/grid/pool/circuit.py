"""The circuit breaker of a queue: whether its last bundles ended well enough to send more there.

``open`` → ``held`` when the site spoiled too many of the last bundles; after a while → ``probing``:
one bundle is given out, and its end opens the queue or holds it for twice as long. What payloads
do wrong does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pandaflow.grid.messages import JobResult, Trouble

#: Ends that are looked at, and how many of them must be spoiled, at least and as a share.
RING, LEAST, SHARE = 20, 5, 0.7
#: Seconds of the first hold and of the longest.
HOLD, LONGEST = 60.0, 3600.0
#: Kinds of failures that are the payload's own, although the pilot is who finds them.
_OWN = frozenset({"memory", "walltime", "looping", "exit", "cancelled"})


@dataclass(frozen=True, slots=True)
class End:
    """How a bundle ended at a queue; ``words`` say how the site spoiled it, else they are empty."""

    id: int
    words: str


@dataclass(frozen=True, slots=True)
class Circuit:
    """The breaker's state.

    Attributes
    ----------
    state : {'open', 'held', 'probing', 'closed'}
    reason : str
    held_until : float or None
    holds : int
        In a row, so far.
    ring : str
        The last ends, oldest first; ``1``: spoiled.
    probe : int or None
        The bundle that is out to try a queue that is ``probing``.
    """

    state: Literal["open", "held", "probing", "closed"] = "open"
    reason: str = ""
    held_until: float | None = None
    holds: int = 0
    ring: str = ""
    probe: int | None = None


def after(circuit: Circuit, ends: Iterable[End], now: float) -> Circuit:
    """Return the breaker after some bundles have ended.

    Ends of bundles that were given out before a hold tell nothing new while it lasts.
    """
    for end in ends:
        if circuit.state == "open":
            circuit = _counted(circuit, end, now)
        elif circuit.state == "probing" and circuit.probe == end.id:
            circuit = (
                _hold(circuit, f"its probe was spoiled: {end.words}", now)
                if end.words
                else (Circuit())
            )
    return circuit


def _counted(circuit: Circuit, end: End, now: float) -> Circuit:
    ring = (circuit.ring + ("1" if end.words else "0"))[-RING:]
    spoiled = ring.count("1")
    if spoiled >= LEAST and spoiled >= SHARE * len(ring):
        words = f"the site spoiled {spoiled} of the last {len(ring)} bundles, last: {end.words}"
        return _hold(circuit, words, now)
    return replace(circuit, ring=ring)


def _hold(circuit: Circuit, reason: str, now: float) -> Circuit:
    # 2 ** 20 times a minute is far above the longest: the power must not grow without end.
    seconds = min(LONGEST, HOLD * 2 ** min(circuit.holds, 20))
    words = f"{reason[:1000]}; held for {seconds:g} s"
    return Circuit("held", words, now + seconds, circuit.holds + 1)


def spoiled(error: Trouble | None, results: Sequence[JobResult] = ()) -> str:
    """Say how the site or the pilot spoiled a bundle that ended; empty: it did not."""
    if error is not None:
        return _blame(error)
    if any(result.error is None for result in results):
        return ""
    return next((words for each in results if each.error and (words := _blame(each.error))), "")


def _blame(error: Trouble) -> str:
    if error.source not in ("pilot", "site") or error.kind in _OWN:
        return ""
    return f"{error.kind}: {error.message}"
