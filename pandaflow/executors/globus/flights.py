"""What a session has in flight: bundles, the endpoints that they are at, and how bundles end."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pandaflow.core import brokerage
from pandaflow.core.brokerage import Load
from pandaflow.core.bundle import BundleSpec
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted, SlotsChanged
from pandaflow.core.model import Failure
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus.functions import Function
from pandaflow.executors.globus.link import Call
from pandaflow.executors.globus.settings import Endpoint
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Losses of the same jobs in a row, while nothing else ends, after which they fail.
MOST_LOSSES = 20
#: Seconds of work for each slot that a session wants at hand: a request takes seconds.
AHEAD_S = 10.0
#: Seconds until a submission that failed is tried again: at first, and at most.
BACK_OFF_S = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the probe of an endpoint has told."""

    python: tuple[int, ...]
    pandaflow: str
    platform: str


@dataclass(slots=True, eq=False)
class Place:
    """An endpoint in one session.

    Attributes
    ----------
    endpoint : Endpoint
    facts : Facts or None
        Known once its probe has come back.
    refuses : str
        Why it cannot run functions; empty: it can.
    foreign : str
        Why it cannot run functions that travel as byte code; empty: it can.
    greeting : Future or None
        Of the task that ends at once, which was sent with its first jobs.
    woken : float
        When it was sent a task only for its user endpoint to start (monotonic).
    answered : float
        When that came back (monotonic), infinity if it has not.
    probed : float
        When the probe was sent (monotonic), infinity if none is on its way.
    user_endpoint : str
        Id of the user endpoint that does its work; empty while it is not known.
    ended_task : str
        A small task that it has had: the service says which user endpoint has run it.
    asked : float
        When that was sent (monotonic).
    online : bool
        What the service said last; before it has said anything, true.
    returned : float
        When it was seen to be online again (monotonic).
    seen : float
        When its user endpoint was seen online, or was sent what has come back (monotonic).
    away : int
        Looks in a row at which its user endpoint was offline.
    heartbeat : float
        Seconds.
    closed : float
        It gets nothing before (monotonic time).
    finished, lost : int
        Bundles that ended there, and bundles that it has spoiled.
    why : str
        Why it is closed or offline, for people.
    """

    endpoint: Endpoint
    heartbeat: float
    facts: Facts | None = None
    refuses: str = ""
    foreign: str = ""
    greeting: Future[Any] | None = None
    woken: float = -math.inf
    answered: float = math.inf
    probed: float = math.inf
    user_endpoint: str = ""
    ended_task: str = ""
    asked: float = -math.inf
    online: bool = True
    returned: float = -math.inf
    seen: float = -math.inf
    away: int = 0
    closed: float = -math.inf
    finished: int = 0
    lost: int = 0
    why: str = ""

    @property
    def name(self) -> str:
        """Name of the endpoint."""
        return self.endpoint.name

    @property
    def silent(self) -> bool:
        """Whether its greeting was not answered."""
        return self.greeting is not None and not self.greeting.done()

    def takes(self, now: float) -> bool:
        """Whether it may be sent anything now."""
        return self.online and now >= self.closed

    def close(self, now: float, seconds: float, why: str) -> None:
        """Send it nothing for a while."""
        self.closed, self.why = max(self.closed, now + seconds), why


@dataclass(frozen=True, slots=True)
class Commands:
    """How the calls of a bundle of commands go together.

    Attributes
    ----------
    positions : tuple of int
        Of the job of each call.
    blocked : mapping of int to str
        Positions without a call, because their inputs are not there.
    outputs : tuple of str
        Files that each command must write.
    """

    positions: tuple[int, ...]
    blocked: Mapping[int, str]
    outputs: tuple[str, ...]


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
    calls : list of Call
        What is submitted for it: one for a bundle of functions, one for each command.
    commands : Commands or None
        None: it is one of functions.
    place : Place or None
        Where it was sent.
    futures : list
        Of its calls; they get a ``task_id`` when the service has accepted them.
    tasks : list of str
        Ids of its calls, where known.
    answers : dict of int to Any
        Results of its calls that have come.
    sent : float
        When it was handed to the SDK (monotonic).
    begun : float
        When its start was noticed (monotonic); 0: it has not begun as far as is known.
    gone : bool
        Nobody wants to know about it any more, but it may still run.
    refused : dict of str to str
        Endpoints that did not take it, and why.
    """

    spec: BundleSpec
    given: Assignment | None = None
    needs: set[int] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    commands: Commands | None = None
    place: Place | None = None
    futures: list[Future[Any]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    answers: dict[int, Any] = field(default_factory=dict)
    sent: float = 0.0
    begun: float = 0.0
    gone: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Number of the bundle."""
        return self.spec.bundle

    @property
    def ready(self) -> bool:
        """Whether it can be sent."""
        return self.place is None and not self.needs

    @property
    def size(self) -> int:
        """Bytes in a request."""
        return sum(call.size for call in self.calls)

    @property
    def function(self) -> Function:
        """What its calls call."""
        return self.calls[0].function

    def take_back(self) -> None:
        """Forget that it was sent."""
        self.place, self.futures, self.tasks, self.answers = None, [], [], {}


def urgency(flight: Flight) -> tuple[tuple[int, ...], int]:
    """Order of submission, largest first: by priority, and then as they came."""
    assert flight.given is not None  # those adopted were sent long ago
    return flight.given.emit.priority, -flight.number


def cores_of(spec: BundleSpec) -> int:
    """Return the cores that a bundle takes."""
    return brokerage.cores_on_node(spec.resources) * spec.resources.nodes


def refused(spec: BundleSpec, text: str, kind: str = "site") -> BundleEnded:
    """Return the end of a bundle that cannot run: nobody's code is to blame."""
    failure = Failure(kind=kind, message=text, charged=False)
    return BundleEnded(
        at=time.time(), bundle=spec.bundle, failures=dict.fromkeys(range(len(spec.jobs)), failure)
    )


class Account:
    """What a session has in flight.

    Parameters
    ----------
    run : str
        For the log.
    results : ResultStore
    places : sequence of Place
    report : callable
        Gets the events.

    Attributes
    ----------
    flights : dict of int to Flight
        Those that have not ended.
    stopping : set of Flight
        Those nobody wants any more, and that may still run.
    trouble : str
        What holds the run up.
    """

    def __init__(
        self, run: str, results: ResultStore, places: Sequence[Place], report: Report
    ) -> None:
        self._run, self.results, self.report = run, results, report
        self.places = {place.name: place for place in places}
        self.flights: dict[int, Flight] = {}
        self.stopping: set[Flight] = set()
        self.trouble = ""
        self._losses: Counter[tuple[int, int]] = Counter()
        self._online = True

    # --- what there is ------------------------------------------------------------------

    @property
    def several(self) -> bool:
        """Whether there is a choice of endpoints."""
        return len(self.places) > 1

    def ready(self) -> list[Flight]:
        """Bundles that can be sent, the most urgent first."""
        waiting = [flight for flight in self.flights.values() if flight.ready]
        return sorted(waiting, key=urgency, reverse=True)

    def at(self, place: Place) -> list[Flight]:
        """Bundles that an endpoint has."""
        return [flight for flight in self.flights.values() if flight.place is place]

    def loads(self) -> dict[str, Load]:
        """Return what each endpoint has, in bundles."""
        states = Counter((f.place.name, bool(f.begun)) for f in self.flights.values() if f.place)
        return {
            name: Load(states[name, True], states[name, False], place.finished, place.lost)
            for name, place in self.places.items()
        }

    def state(self) -> SlotsChanged:
        """Return the event that tells how many slots there are, and what is wrong."""
        slots = sum(place.endpoint.slots for place in self.places.values() if place.online)
        return SlotsChanged(time.time(), "", slots, self.trouble, AHEAD_S)

    def show(self, trouble: str) -> None:
        """Let people see what holds the run up; empty: nothing does."""
        online = any(place.online for place in self.places.values())
        if (trouble, online) != (self.trouble, self._online):
            self.trouble, self._online = trouble, online
            if trouble:
                logger.warning("%s: %s", self._run, trouble)
            self.report(self.state())

    # --- bundles come and go ------------------------------------------------------------

    def take_in(self, assignments: Sequence[Assignment]) -> None:
        """Take bundles in; send back at once what can never run."""
        for given in assignments:
            self.flights[given.emit.bundle] = Flight(given.spec, given)
        for given in assignments:
            self._admit(self.flights[given.emit.bundle], given)

    def _admit(self, flight: Flight, given: Assignment) -> None:
        needs = {need for need, location in given.deps if not location}
        flight.needs = {need for need in needs if need in self.flights}
        sites = [place.endpoint.place for place in self.places.values()]
        ranking = brokerage.rank(flight.spec.resources, sites)
        if not ranking.sites:
            self.tell(refused(flight.spec, f"no endpoint fits: {ranking.describe()}", "unfit"))
        elif any(self.results.find(need) is None for need in needs - flight.needs):
            self.lose(flight, "values it reads are gone")

    def drop(self, numbers: Iterable[int]) -> list[Flight]:
        """Forget bundles that were cancelled; return those that have to be stopped."""
        dropped = []
        for number in numbers:
            flight = self.flights.pop(number, None)
            if flight is None:
                continue
            flight.gone = True
            if flight.place is not None:
                self.stopping.add(flight)
                dropped.append(flight)
            self._settle_dependents(number, f"bundle {number}, which it reads, was cancelled")
        return dropped

    # --- events -------------------------------------------------------------------------

    def started(self, flight: Flight, at: float, worker: str = "") -> None:
        """Report that a bundle has begun, once."""
        if flight.begun or flight.gone:
            return
        flight.begun = time.monotonic()
        site = flight.place.name if flight.place and self.several else ""
        self.report(BundleStarted(at, flight.number, worker, site))

    def ended(self, event: BundleEnded) -> None:
        """Report a bundle whose jobs were run."""
        flight = self.flights.get(event.bundle)
        if flight is not None and flight.place is not None:
            self._losses.clear()
            flight.place.finished += 1
        self.tell(event)

    def lose(self, flight: Flight, reason: str, *, charged: bool = False) -> None:
        """Report a bundle that will not come back; too often, and it fails."""
        if flight.place is not None:
            flight.place.lost += 1
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


def reasons(places: Mapping[str, Place], now: float) -> str:
    """Say why endpoints get nothing now; empty if one of them may."""
    if any(place.takes(now) for place in places.values()):
        return ""
    told = []
    for place in places.values():
        what = "is offline; jobs wait" if not place.online else f"gets nothing now: {place.why}"
        told.append(f"endpoint {place.name} {what}")
    return "; ".join(told)
