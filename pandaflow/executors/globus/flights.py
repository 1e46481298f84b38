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
from pandaflow.core.events import BundleEnded, SlotsChanged
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus.functions import Function
from pandaflow.executors.globus.link import Call
from pandaflow.executors.globus.settings import Endpoint
from pandaflow.executors.remote import account as remote
from pandaflow.ports import Report

logger = logging.getLogger("pandaflow.executors")

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
class Flight(remote.Flight):
    """A bundle that has not ended.

    Attributes
    ----------
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
    refused : dict of str to str
        Endpoints that did not take it, and why.
    """

    calls: list[Call] = field(default_factory=list)
    commands: Commands | None = None
    place: Place | None = None
    futures: list[Future[Any]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    answers: dict[int, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> bool:
        """Whether it was sent, and not taken back."""
        return self.place is not None

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


def cores_of(spec: BundleSpec) -> int:
    """Return the cores that a bundle takes."""
    return brokerage.cores_on_node(spec.resources) * spec.resources.nodes


class Account(remote.Account[Flight]):
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
    stopping : set of Flight
        Those nobody wants any more, and that may still run.
    trouble : str
        What holds the run up.
    """

    def __init__(
        self, run: str, results: ResultStore, places: Sequence[Place], report: Report
    ) -> None:
        super().__init__(results, report)
        self._run, self._online = run, True
        self.places = {place.name: place for place in places}
        self.stopping: set[Flight] = set()
        self.trouble = ""

    # --- what there is ------------------------------------------------------------------

    @property
    def several(self) -> bool:
        """Whether there is a choice of endpoints."""
        return len(self.places) > 1

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

    def misfit(self, flight: Flight) -> str:
        """Say why no endpoint can ever run a bundle; empty if one can."""
        sites = [place.endpoint.place for place in self.places.values()]
        ranking = brokerage.rank(flight.spec.resources, sites)
        return "" if ranking.sites else f"no endpoint fits: {ranking.describe()}"

    def drop(self, numbers: Iterable[int]) -> list[Flight]:
        """Forget bundles that were cancelled; return those that have to be stopped."""
        dropped = super().drop(numbers)
        self.stopping.update(dropped)
        return dropped

    # --- events -------------------------------------------------------------------------

    def begun(self, flight: Flight, at: float, worker: str = "") -> None:
        """Report that a bundle has begun, once; and where, if there is a choice."""
        site = flight.place.name if flight.place and self.several else ""
        self.started(flight, at, worker, site)

    def ended(self, event: BundleEnded) -> None:
        """Report a bundle whose jobs were run."""
        flight = self.flights.get(event.bundle)
        if flight is None or flight.place is None:
            self.tell(event)
            return
        flight.place.finished += 1
        super().ended(event)

    def lose(self, flight: Flight, reason: str, *, charged: bool = False) -> None:
        """Report a bundle that will not come back; too often, and it fails."""
        if flight.place is not None:
            flight.place.lost += 1
        super().lose(flight, reason, charged=charged)


def reasons(places: Mapping[str, Place], now: float) -> str:
    """Say why endpoints get nothing now; empty if one of them may."""
    if any(place.takes(now) for place in places.values()):
        return ""
    told = []
    for place in places.values():
        what = "is offline; jobs wait" if not place.online else f"gets nothing now: {place.why}"
        told.append(f"endpoint {place.name} {what}")
    return "; ".join(told)
