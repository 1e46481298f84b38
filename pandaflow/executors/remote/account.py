"""What a session has in flight, and how it tells the run what becomes of it.

Rule 1: a bundle is sent when no bundle that it reads is still in flight here.
Rule 2: a bundle ends once. What comes after that is nobody's business any more.
Rule 3: what is lost too often, while nothing else ends, fails: somebody must look at it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted
from pandaflow.core.model import Failure
from pandaflow.data.results import ResultStore
from pandaflow.ports import Assignment, Report

#: Losses of the same jobs in a row, while nothing else ends, after which they fail.
MOST_LOSSES = 20


@dataclass(slots=True, eq=False)
class Flight:
    """A bundle that has not ended.

    Attributes
    ----------
    spec : BundleSpec
    given : Assignment or None
        None: adopted from an earlier session.
    needs : set of int
        Bundles in flight that it waits for.
    sent : float
        When it was sent (monotonic); 0: it was not.
    begun : float
        When its start was noticed (monotonic); 0: it has not begun as far as is known.
    gone : bool
        Nobody wants to know about it any more, but it may still run.
    """

    spec: BundleSpec
    given: Assignment | None = None
    needs: set[int] = field(default_factory=set)
    sent: float = 0.0
    begun: float = 0.0
    gone: bool = False

    @property
    def number(self) -> int:
        """Number of the bundle."""
        return self.spec.bundle

    @property
    def out(self) -> bool:
        """Whether it was sent."""
        return bool(self.sent)

    @property
    def ready(self) -> bool:
        """Whether it can be sent."""
        return not self.out and not self.needs


F = TypeVar("F", bound=Flight)


def urgency(flight: Flight) -> tuple[tuple[int, ...], int]:
    """Order of submission, largest first: by priority, and then as they came."""
    assert flight.given is not None  # those adopted were sent long ago
    return flight.given.emit.priority, -flight.number


def refused(spec: BundleSpec, text: str, kind: str = "site") -> BundleEnded:
    """Return the end of a bundle that cannot run: nobody's code is to blame."""
    failure = Failure(kind=kind, message=text, charged=False)
    return BundleEnded(
        at=time.time(), bundle=spec.bundle, failures=dict.fromkeys(range(len(spec.jobs)), failure)
    )


class Account(Generic[F]):
    """What a session has in flight.

    Parameters
    ----------
    results : ResultStore
    report : callable
        Gets the events.

    Attributes
    ----------
    flights : dict of int to Flight
        Those that have not ended.
    """

    def __init__(self, results: ResultStore, report: Report) -> None:
        self.results, self.report = results, report
        self.flights: dict[int, F] = {}
        self._losses: Counter[tuple[int, int]] = Counter()

    # --- bundles come and go ------------------------------------------------------------

    def ready(self) -> list[F]:
        """Return the bundles that can be sent, the most urgent first."""
        waiting = [flight for flight in self.flights.values() if flight.ready]
        return sorted(waiting, key=urgency, reverse=True)

    def take_in(self, flights: Sequence[F]) -> None:
        """Take new bundles in; send back at once what can never run, or not as it is."""
        self.flights |= {flight.number: flight for flight in flights}
        for flight in flights:
            assert flight.given is not None
            needs = {need for need, location in flight.given.deps if not location}
            flight.needs = {need for need in needs if need in self.flights}
            if why := self.misfit(flight):
                self.tell(refused(flight.spec, why, "unfit"))
            elif any(self.results.find(need) is None for need in needs - flight.needs):
                self.lose(flight, "values it reads are gone")

    def misfit(self, flight: F) -> str:
        """Say why a bundle can never run; empty if it may."""
        return ""

    def drop(self, numbers: Iterable[int]) -> list[F]:
        """Forget bundles that were cancelled; return those that were sent."""
        dropped = []
        for number in numbers:
            flight = self.flights.pop(number, None)
            if flight is None:
                continue
            flight.gone = True
            if flight.out:
                dropped.append(flight)
            self._settle_dependents(number, f"bundle {number}, which it reads, was cancelled")
        return dropped

    # --- events -------------------------------------------------------------------------

    def started(self, flight: F, at: float, worker: str = "", site: str = "") -> None:
        """Report that a bundle has begun, once."""
        if not flight.begun and not flight.gone:
            flight.begun = time.monotonic()
            self.report(BundleStarted(at, flight.number, worker, site))

    def ended(self, event: BundleEnded) -> None:
        """Report a bundle whose jobs were run."""
        self._losses.clear()
        self.tell(event)

    def lose(self, flight: F, reason: str, *, charged: bool = False) -> None:
        """Report a bundle that will not come back; too often, and it fails."""
        # The bundle of the next attempt has another number.
        key = (flight.spec.task, flight.spec.jobs[0])
        self._losses[key] += 1
        if self._losses[key] < MOST_LOSSES:
            self.tell(BundleLost(time.time(), flight.number, reason, None, charged))
            return
        told = f"it was lost {MOST_LOSSES} times in a row, and no other job ended meanwhile"
        self.tell(refused(flight.spec, f"{told}; the last time: {reason}"))

    def tell(self, event: BundleEnded | BundleLost) -> None:
        """Report how a bundle ended, unless nobody wants to know any more."""
        flight = self.flights.pop(event.bundle, None)
        if flight is None:
            return
        flight.gone = True
        self.report(event)
        there = isinstance(event, BundleEnded) and event.location
        gone = "" if there else f"bundle {event.bundle}, which it reads, left no values"
        self._settle_dependents(event.bundle, gone)

    def _settle_dependents(self, number: int, gone: str) -> None:
        """Let go what waits for a bundle; with a reason if its values will not come."""
        for flight in [each for each in self.flights.values() if number in each.needs]:
            flight.needs.discard(number)
            if gone and flight.number in self.flights:
                self.tell(BundleLost(time.time(), flight.number, gone, None, False))
