"""Sending bundles: which go together, to which site, in arrays of what size; and refusals.

A bundle is bound to a site when it is sent and not before, and only a site with free cores gets
any. What one site refuses for good the next one is asked for; jobs fail when all have refused.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

from pandaflow.core import brokerage
from pandaflow.core.errors import SiteError, WorkflowError
from pandaflow.core.events import BundlePlaced
from pandaflow.core.model import Resources
from pandaflow.executors.batch import arrays, element
from pandaflow.executors.batch.account import Account
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.inflight import Array, Bundle, rank
from pandaflow.executors.batch.leftovers import mark
from pandaflow.executors.batch.places import BACK_OFF_S, Place, cores_of
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.ports import Assignment

#: Seconds that bundles are collected for before an array is submitted.
_GATHER_S = 0.1
#: Bytes of a payload that every element gets its own copy of; larger ones share a file.
_INLINE = 16_384
#: Seconds that a site may refuse everything for want of room, though nothing of ours is there.
FULL_S = 900.0
#: Refusals that end by themselves as jobs end, ours or others'.
_FULL = re.compile(
    r"submit\w*[\s-]*limit|job/proc/node limit|limit.*(?:exceeded|reached)"
    r"|temporarily (?:unable|unavailable)",
    re.I,
)
#: Refusals that a smaller array may escape.
_TOO_LARGE = re.compile(r"invalid job array|array (?:size|index|task)|max.*array", re.I)

Group: TypeAlias = Sequence[Bundle]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is sent next: each group of bundles is an element; ``reason`` is for people."""

    place: Place
    groups: Sequence[Group]
    reason: str

    @property
    def bundles(self) -> list[Bundle]:
        """All of them."""
        return [bundle for group in self.groups for bundle in group]

    @property
    def resources(self) -> Resources:
        """What each job asks for."""
        return self.groups[0][0].spec.resources


class Sender:
    """Submits arrays of what is ready.

    Parameters
    ----------
    account : Account
    control : Control
    settings : BatchSettings
        Of the executor.
    folder : Path
        Of the run's arrays.
    token : str
        Of the session: its elements look whether it still is in charge.
    in_charge : callable
        Tells whether it is.
    """

    def __init__(
        self,
        account: Account,
        control: Control,
        settings: BatchSettings,
        folder: Path,
        token: str,
        in_charge: Callable[[], bool],
    ) -> None:
        self._account, self._control, self._settings = account, control, settings
        self._folder, self._token, self._in_charge = folder, token, in_charge
        self._workdir = os.getcwd()
        self._numbers = _last_number(folder)
        self._at = 0.0
        self._stuck = self._gathered = False
        self._delay = BACK_OFF_S[0]

    # --- when ---------------------------------------------------------------------------

    def gather(self) -> None:
        """Wait a moment, once: what came, or the run makes of what ended, may not be all."""
        if not self._gathered:
            self._gathered = True
            self._at = max(self._at, time.monotonic() + _GATHER_S)

    def due(self) -> float:
        """Return when to call :meth:`send` even if nothing happens (monotonic time)."""
        if not self._account.ready:
            return math.inf
        if not self._stuck:
            return self._at
        now = time.monotonic()
        closed = [place.closed for place in self._account.places.values()]
        # Where none of ours is in a queue, nothing will happen that has the caller look again.
        rest = math.inf if self._account.arrays else now + _GATHER_S
        return max(self._at, min((at for at in closed if at > now), default=rest))

    def send(self) -> None:
        """Submit an array, if there is anything to submit and room for it."""
        if time.monotonic() < self._at or not self._account.ready:
            return
        choice = self._choose()
        self._stuck = choice is None
        if choice is None:
            self._gathered = False
        elif self._in_charge():
            self._submit(choice)

    # --- what, and where to -------------------------------------------------------------

    def _choose(self) -> Choice | None:
        """Return what is to go next: the first by priority for which a site has room."""
        if all(self._account.free(place) < 1 for place in self._account.places.values()):
            return None
        waiting: dict[tuple[Resources, frozenset[str]], list[Bundle]] = defaultdict(list)
        for bundle in self._account.ready:
            waiting[bundle.spec.resources, frozenset(bundle.refused)].append(bundle)
        for group in sorted(waiting.values(), key=lambda group: max(map(rank, group)))[::-1]:
            choice = self._place(sorted(group, key=rank, reverse=True))
            if choice is not None:
                return choice
        return None

    def _place(self, group: Group) -> Choice | None:
        """Choose a site for bundles that ask for the same and were refused by the same."""
        resources = group[0].spec.resources
        open_now, reasons = self._open_for(group[0])
        if not open_now:
            return None
        sites = [place.site for place in self._account.places.values()]
        sites = [site for site in sites if site.name not in reasons]
        ranking = brokerage.rank(resources, sites, self._account.loads())
        name, count = self._shared(resources, open_now, len(group))
        place = self._account.places[name]
        reason = "; ".join([ranking.describe(), *reasons.values()])
        return Choice(place, self._packed(group, place, count), reason)

    def _open_for(self, bundle: Bundle) -> tuple[dict[str, int], dict[str, str]]:
        """Return for how many elements each site has room now, and why others get none."""
        resources, now = bundle.spec.resources, time.monotonic()
        room: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for name, place in self._account.places.items():
            if brokerage.misfit(resources, place.site):
                continue
            free = self._account.free(place) // cores_of(resources)
            if name in bundle.refused:
                reasons[name] = f"refused at {name}: {bundle.refused[name]}"
            elif now < place.closed:
                reasons[name] = f"not now at {name}: it has just refused others"
            elif free < 1:
                reasons[name] = f"not now at {name}: no cores are free"
            else:
                room[name] = min(free, place.most)
        return room, reasons

    def _shared(self, resources: Resources, room: dict[str, int], wanted: int) -> tuple[str, int]:
        """Deal elements out one by one to the best site; return that with most, and its share."""
        if len(room) == 1:
            return next(iter(room.items()))
        loads, dealt = self._account.loads(), Counter[str]()
        for _ in range(min(wanted, sum(room.values()))):
            sites = [self._account.places[n].site for n in room if dealt[n] < room[n]]
            best = brokerage.rank(resources, sites, loads).sites[0][0].name
            dealt[best] += 1
            loads[best] = replace(loads[best], waiting=loads[best].waiting + 1)
        return dealt.most_common(1)[0]

    def _packed(self, group: Group, place: Place, count: int) -> list[Group]:
        """Divide bundles among so many elements at a site."""
        resources = group[0].spec.resources
        if resources.parallel:  # it starts ranks of its own
            return [[bundle] for bundle in group[:count]]
        each = [self._account.seconds(bundle) for bundle in group]
        fit = [p for p in self._account.places.values() if not brokerage.misfit(resources, p.site)]
        slots = sum(p.slots // cores_of(resources) for p in fit)
        rest = iter(group)
        sizes = arrays.pack(each, slots, count, self._account.busy())
        return [[next(rest) for _ in range(size)] for size in sizes]

    # --- submission ---------------------------------------------------------------------

    def _submit(self, choice: Choice) -> None:
        self._numbers += 1
        self._gathered = False
        folder = self._folder / f"{self._numbers:05d}-{self._token}"
        self._at = time.monotonic() + 60.0 / self._settings.submit_rate
        try:
            number = self._hand_over(folder, choice)
        except (SiteError, WorkflowError, OSError) as error:
            mark(folder / element.VOID)  # it may be in the queue nevertheless
            self._not_taken(error, choice)
            return
        self._account.show("")
        self._delay = BACK_OFF_S[0]
        choice.place.accept()
        array = Array(number, folder, len(choice.groups) > 1, choice.place)
        self._account.carry(array, choice.groups, cores_of(choice.resources))
        if self._account.several:
            self._announce(choice)

    def _announce(self, choice: Choice) -> None:
        now = time.time()
        for bundle in choice.bundles:
            number = bundle.spec.bundle
            self._account.report(BundlePlaced(now, number, choice.place.name, choice.reason))

    def _hand_over(self, folder: Path, choice: Choice) -> str:
        """Write the files of an array and submit it; return its id."""
        folder.mkdir(parents=True)
        settings = choice.place.settings
        for index, group in enumerate(choice.groups):
            todo = element.Todo(
                self._token,
                tuple(self._work(bundle.given) for bundle in group),
                tuple(sys.path),
                settings.scratch or "",
                settings.backend.name,
                choice.place.name,
            )
            element.write_todo(folder, index, todo)
        specs = [[bundle.spec for bundle in group] for group in choice.groups]
        request = arrays.array_request(settings, specs, folder=folder, workdir=self._workdir)
        line = arrays.body(settings, folder)
        number = self._control.submit(folder / "script", request, line, settings.prologue)
        element.write_whole(folder / "id", number.encode())
        return number

    def _work(self, given: Assignment) -> element.Work:
        results = self._account.results
        places = tuple(location or results.place(need) for need, location in given.deps)
        code: bytes | str = given.code
        if len(given.code) > _INLINE:
            path = self._folder / f"{blake2b(given.code, digest_size=12).hexdigest()}.code"
            if not path.exists():
                element.write_whole(path, given.code)
            code = str(path)
        return element.Work(given.spec, code, places)

    # --- refusals -----------------------------------------------------------------------

    def _not_taken(self, error: Exception, choice: Choice) -> None:
        """Try again later, or smaller, or elsewhere; or let it fail if that is all in vain."""
        told = str(error)
        if isinstance(error, OSError) or getattr(error, "transient", False):
            self._account.show(f"nothing can be submitted now: {told}")
            self._at = time.monotonic() + self._delay
            self._delay = min(2 * self._delay, BACK_OFF_S[1])
        elif len(choice.groups) > 1 and _TOO_LARGE.search(told):
            choice.place.most = len(choice.groups) // 2
            self._at = 0.0
        elif _FULL.search(told) and self._patient(choice.place):
            self._account.show(f"{choice.place.name} takes nothing now: {told}")
            choice.place.close(time.monotonic())
        else:
            self._refused(told, choice)

    def _patient(self, place: Place) -> bool:
        """Tell whether to wait on for room: as long as jobs of ours there may end, and a while."""
        now = time.monotonic()
        if any(array.place is place for array in self._account.arrays.values()):
            place.full = None
            return True
        place.full = place.full or now
        return now - place.full < FULL_S

    def _refused(self, told: str, choice: Choice) -> None:
        """Ask the next site; fail what none is left for."""
        if choice.place.full is not None:
            told = f"no room for {FULL_S:g} s: {told}"
        choice.place.lost += len(choice.bundles)
        if self._account.several:
            choice.place.close(time.monotonic())
        for bundle in choice.bundles:
            bundle.refused[choice.place.name] = told
            if not self._left_for(bundle):
                why = "; ".join(bundle.refused.values())
                self._account.tell(arrays.refused(bundle.spec, why, time.time()))

    def _left_for(self, bundle: Bundle) -> list[str]:
        """Return the sites that may still take a bundle."""
        return [
            name
            for name, place in self._account.places.items()
            if name not in bundle.refused
            and not brokerage.misfit(bundle.spec.resources, place.site)
        ]


def _last_number(folder: Path) -> int:
    """Return the number of the last array of the sessions before."""
    names = (path.name.partition("-")[0] for path in folder.iterdir() if path.is_dir())
    return max((int(name) for name in names if name.isdigit()), default=0)
