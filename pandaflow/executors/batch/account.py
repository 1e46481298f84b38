"""The account of a session: bundles in flight, who carries them, how they end.

Nothing here starts a process. Of files it writes but the marks that keep elements from beginning.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pandaflow.core import brokerage
from pandaflow.core.brokerage import Load
from pandaflow.core.bundle import BundleSpec
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted, SlotsChanged
from pandaflow.core.sizing import Pace
from pandaflow.data.results import ResultStore
from pandaflow.executors.batch import arrays, element
from pandaflow.executors.batch.inflight import Array, Bundle, Element
from pandaflow.executors.batch.leftovers import mark
from pandaflow.executors.batch.model import BatchStatus, JobRef
from pandaflow.executors.batch.places import Place
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Losses of the same jobs in a row, while nothing else ends, after which they fail.
MOST_LOSSES = 20


class Account:
    """What a session has in flight.

    Parameters
    ----------
    run : str
        For the log.
    results : ResultStore
    places : mapping of str to Place
        Sites by name.
    report : callable
        Gets the events.

    Attributes
    ----------
    bundles : dict of int to Bundle
        Those that have not ended.
    arrays : dict of str to Array
        Those of which something may still be in the queue, by id.
    kills : set of Element
        To be cancelled.
    paces : dict of int to Pace
        By task.
    trouble : str
        What holds the run up.
    queued : str
        Why batch jobs wait in queues.
    """

    def __init__(
        self, run: str, results: ResultStore, places: Mapping[str, Place], report: Report
    ) -> None:
        self._run, self.results, self.places, self.report = run, results, places, report
        self.bundles: dict[int, Bundle] = {}
        self.arrays: dict[str, Array] = {}
        self.kills: set[Element] = set()
        self.paces: dict[int, Pace] = defaultdict(Pace)
        self.trouble = self.queued = ""
        self._losses: Counter[tuple[int, int]] = Counter()

    # --- what there is ------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """Cores of all sites."""
        return sum(place.slots for place in self.places.values())

    @property
    def several(self) -> bool:
        """Whether there is a choice of sites."""
        return len(self.places) > 1

    @property
    def ready(self) -> list[Bundle]:
        """Bundles that can go into an element."""
        return [bundle for bundle in self.bundles.values() if bundle.ready]

    def elements(self) -> Iterator[Element]:
        """All elements that may still be in the queue."""
        for array in self.arrays.values():
            yield from (each for each in array.elements if not each.gone)

    def free(self, place: Place) -> int:
        """Return the cores that further elements may use at a site."""
        busy = (e.cores for e in self.elements() if e.open and e.array.place is place)
        return place.slots - sum(busy)

    def loads(self) -> dict[str, Load]:
        """Return what each site has, counted in elements and, for what is over, in bundles."""
        states = Counter((e.array.place.name, e.here) for e in self.elements() if e.open)
        return {
            name: Load(states[name, True], states[name, False], place.finished, place.lost)
            for name, place in self.places.items()
        }

    def state(self) -> SlotsChanged:
        """Return the event that tells how many slots there are, and what is wrong."""
        reason = "; ".join(filter(None, (self.trouble, self.queued)))
        return SlotsChanged(time.time(), "", self.slots, reason, arrays.AHEAD_S)

    def seconds(self, bundle: Bundle) -> float:
        """Return what a bundle should take; 0: nobody knows."""
        return self.paces[bundle.spec.task].mean * len(bundle.spec.jobs)

    def busy(self) -> float:
        """Return the seconds of work that is in elements."""
        carried = (bundle for bundle in self.bundles.values() if bundle.element is not None)
        return sum(map(self.seconds, carried))

    def show(self, trouble: str) -> None:
        """Let people see what holds the run up; empty: nothing does."""
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                logger.warning("%s: %s", self._run, trouble)
            self.report(self.state())

    def show_queue(self, statuses: Mapping[JobRef, BatchStatus]) -> None:
        """Let people see why batch jobs wait, in the words of the batch system."""
        waits = (
            (each.array.place.name, status)
            for each in self.elements()
            if each.open and not each.here and (status := statuses.get(each.ref)) is not None
        )
        queued = arrays.queued(waits)
        if queued != self.queued:
            self.queued = queued
            self.report(self.state())

    # --- bundles come and go ------------------------------------------------------------

    def take_in(self, assignments: Sequence[Assignment]) -> None:
        """Take bundles in; send back at once what can never run."""
        for given in assignments:
            self.bundles[given.emit.bundle] = Bundle(given, set())
        for given in assignments:
            self._admit(self.bundles[given.emit.bundle])

    def _admit(self, bundle: Bundle) -> None:
        spec, now = bundle.spec, time.time()
        needs = {need for need, location in bundle.given.deps if not location}
        bundle.needs = {need for need in needs if need in self.bundles}
        sites = [place.site for place in self.places.values()]
        ranking = brokerage.rank(spec.resources, sites)
        if not ranking.sites:
            self.tell(arrays.unfit(spec, ranking, now))
        elif any(self.results.find(need) is None for need in needs - bundle.needs):
            self.tell(BundleLost(now, spec.bundle, "values it reads are gone", None, False))

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget bundles that were cancelled; those that wait for them are handed back."""
        for number in numbers:
            bundle = self.bundles.pop(number, None)
            if bundle is None:
                continue
            self._settle_dependents(number, f"bundle {number}, which it reads, was cancelled")
            if bundle.element is not None:
                self._withdraw(bundle.element, number)

    def _withdraw(self, of: Element, number: int) -> None:
        """Keep a bundle from running, and end the element if it runs it or may begin it now."""
        of.open.remove(number)
        if of.current is not None and of.current != number and of.open:
            mark(of.array.folder / f"{number}.drop")
        else:
            self.end(of)

    def end(self, of: Element) -> None:
        """Cancel an element; what it has not done is for another."""
        mark(of.array.folder / f"{of.index}.{element.VOID}")
        for number in of.open:
            self.bundles[number].element = None
        of.open.clear()
        self.kills.add(of)

    def carry(self, array: Array, elements: Sequence[Sequence[Bundle]], cores: int) -> None:
        """Note that an array is in the queue, and which bundles its elements carry."""
        self.arrays[array.id] = array
        for index, group in enumerate(elements):
            new = Element(array, index, cores, [bundle.spec.bundle for bundle in group])
            array.elements.append(new)
            for bundle in group:
                bundle.element = new

    def carries(self, of: Element, number: object) -> bool:
        """Tell whether an element has a bundle that still matters."""
        bundle = self.bundles.get(number) if isinstance(number, int) else None
        return bundle is not None and bundle.element is of

    # --- events -------------------------------------------------------------------------

    def started(self, of: Element, event: BundleStarted) -> None:
        """Report that a bundle has begun."""
        site = of.array.place.name if self.several else ""
        self.report(BundleStarted(event.at, event.bundle, event.worker, site))

    def ended(self, event: BundleEnded) -> None:
        """Report a bundle whose jobs were run."""
        bundle = self.bundles.get(event.bundle)
        if bundle is not None:
            self._losses.clear()
            self._measure(bundle, event)
        self.tell(event)

    def _measure(self, bundle: Bundle, event: BundleEnded) -> None:
        if bundle.element is not None:
            bundle.element.array.place.finished += 1
        if len(event.wall):
            odd = {*event.failures, *event.blocked, *event.unstarted, *event.cached}
            walls = [wall for place, wall in enumerate(event.wall) if place not in odd]
            self.paces[bundle.spec.task].add(walls)

    def lost(self, event: BundleLost) -> None:
        """Report a bundle that nobody's payload is to blame for; too often, and it fails."""
        bundle = self.bundles.get(event.bundle)
        if bundle is None:
            return
        if bundle.element is not None:
            bundle.element.array.place.lost += 1
        times = self._count(bundle.spec)
        if times < MOST_LOSSES:
            self.tell(event)
            return
        told = f"it was lost {times} times in a row, and no other job ended meanwhile"
        self.tell(arrays.refused(bundle.spec, f"{told}; the last time: {event.reason}", event.at))

    def _count(self, spec: BundleSpec) -> int:
        # The bundle of the next attempt has another number.
        key = (spec.task, spec.jobs[0])
        self._losses[key] += 1
        return self._losses[key]

    def tell(self, event: BundleEnded | BundleLost) -> None:
        """Report how a bundle ended, unless nobody wants to know any more."""
        bundle = self.bundles.pop(event.bundle, None)
        if bundle is None:
            return
        if bundle.element is not None:
            bundle.element.open.remove(event.bundle)
        self.report(event)
        there = isinstance(event, BundleEnded) and event.location
        gone = "" if there else f"bundle {event.bundle}, which it reads, left no values"
        self._settle_dependents(event.bundle, gone)

    def _settle_dependents(self, number: int, gone: str) -> None:
        """Let go what waits for a bundle; with a reason if its values will not come."""
        for bundle in [each for each in self.bundles.values() if number in each.needs]:
            bundle.needs.discard(number)
            if gone:
                self.tell(BundleLost(time.time(), bundle.spec.bundle, gone, None, False))
