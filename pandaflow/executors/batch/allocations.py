"""The allocations of a run: fleets of pilots on all sites, and what is asked of the batch system.

One account for each kind of pilot (:class:`~pandaflow.executors.batch.fleet.Fleet`), one place
where they are put together: nodes of a site are shared between kinds, submissions keep one rate.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pandaflow.core.brokerage import Load, Ranking, Site, misfit, rank
from pandaflow.core.errors import DataError, SiteError
from pandaflow.core.model import Resources
from pandaflow.executors.batch.arrays import last_words
from pandaflow.executors.batch.contact import write_order
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.fleet import Allowance, Fleet, Plan, Seen
from pandaflow.executors.batch.model import BatchRequest, BatchStatus, plain_name
from pandaflow.executors.batch.provision import Kind, kinds, provision
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.batch.slots import Slot

logger = logging.getLogger("pandaflow.executors")

#: Seconds that a cancelled batch job is given to leave the queue.
_LEAVE_S = 20.0
#: Seconds, and looks at the queue, after which a pilot that should have gone is cancelled again.
_AGAIN_S, _AGAIN = 2.0, 5
#: Seconds that may go by between a worker's coming and its first job.
_FIRST_S = 2.0
#: Pilots that were submitted, one a line: id, site, slot.
_JOBS = "jobs"
#: In the same folder; see ``contact.py``.
_CONTACT = "contact.json"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn found, and what is to be done with Dask's workers.

    Attributes
    ----------
    ended : mapping of str to BatchStatus or None
        Pilots that are gone since the last turn.
    retire : frozenset of str
        Pilots whose workers are idle and to go.
    """

    ended: Mapping[str, BatchStatus | None] = field(default_factory=dict)
    retire: frozenset[str] = frozenset()


class Allocations:
    """The allocations of one run.

    Parameters
    ----------
    settings : BatchSettings
    run_id : str
    folder : Path
        On a disk that driver and nodes share, for scripts, outputs and the contact.
    """

    def __init__(self, settings: BatchSettings, run_id: str, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._control = Control(settings.backend, settings.commands_env)
        self._name = plain_name(f"pf-{run_id}")
        self._places = settings.places()
        # A pilot has less time for jobs than its batch job has: what could never begin is unfit.
        self._sites = {
            name: replace(place.site, walltime=place.longest)
            for name, place in self._places.items()
        }
        self._whole = dict(self._sites)
        self._allowance = Allowance(settings.submit_rate)
        self._fleets: dict[Kind, Fleet] = {}
        self._kinds: dict[str, Kind] = {}
        self._statuses: dict[str, BatchStatus] = {}
        self._look_at = 0.0
        #: Pilots that are to go and have no workers any more, since when they were told last.
        self._told: dict[str, float] = {}
        #: By site: the seconds that its best pilot had for jobs when it began.
        self._spans: dict[str, float] = {}
        self._adopted: set[str] = set()
        #: By site: why it will never take a pilot.
        self.refused: dict[str, str] = {}

    # --- questions ----------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """Jobs of one core that all nodes together run at once."""
        return sum(
            place.max_nodes * place.cores
            for name, place in self._places.items()
            if name not in self.refused
        )

    @property
    def several(self) -> bool:
        """Whether there is a choice of sites."""
        return len(self._places) > 1

    def ranking(self, resources: Resources) -> Ranking:
        """Rank the sites for a job; those that take no pilots are among the refused."""
        if resources.parallel:
            alone = "pilots have one node each; use an executor with mode='batch'"
            return Ranking((), dict.fromkeys(self._sites, alone))
        found = rank(resources, list(self._open().values()), self._loads())
        late = {name: self._advice(name, resources) for name in found.refused}
        late = {name: advice for name, advice in late.items() if advice}
        return Ranking(found.sites, {**found.refused, **late, **self.refused})

    def _advice(self, name: str, resources: Resources) -> str:
        """Say what to do for a job that only the late beginning of pilots keeps from a site."""
        if misfit(resources, self._whole[name]) or not misfit(resources, self._sites[name]):
            return ""
        return (
            f"its pilots have {self._spans[name]:.0f} s left for jobs when they begin, and it asks "
            f"for {resources.walltime:g} s; give the executor a longer walltime or the job a "
            "shorter one, or make the prologue quicker"
        )

    @property
    def late(self) -> bool:
        """Whether pilots of some site begin so late that jobs which it promised to take do not."""
        return self._sites != self._whole

    def began(self, pilot: str, seconds: float) -> None:
        """Note how much time a pilot had left for jobs when its first worker came.

        A prologue that takes long leaves less than was counted on, in every pilot of the site:
        jobs that need more would wait for ever.
        """
        kind = self._kinds.get(pilot)
        if kind is None or pilot in self._adopted:  # those began long ago
            return
        left = max(0.0, seconds - _FIRST_S)
        best = self._spans[kind.site] = max(left, self._spans.get(kind.site, 0.0))
        whole = self._whole[kind.site]
        least = min(best, whole.walltime or best)
        self._sites[kind.site] = replace(whole, walltime=least)

    def kind_of(self, pilot: str) -> Kind | None:
        """Return what a pilot is, if it is one of this run."""
        return self._kinds.get(pilot)

    def status_of(self, pilot: str) -> BatchStatus | None:
        """Return what the batch system last said of a pilot."""
        return self._statuses.get(pilot)

    def trouble(self) -> str:
        """Say in one line why there are no workers; empty if nothing is known."""
        said = [f"{name}: {why}" for name, why in self.refused.items()]
        now = time.monotonic()
        for kind, fleet in self._fleets.items():
            resting = fleet.trouble(now)
            if resting:
                said.append(f"{kind.site}: {resting}: {self._last_words()}")
            queued = [p for p in fleet.pilots.values() if p.state in ("pending", "held")]
            if queued:
                why = f" ({queued[0].reason})" if queued[0].reason else ""
                said.append(f"{kind.site}: {len(queued)} pilot(s) wait in the queue{why}")
        return "; ".join(said)

    # --- a turn -------------------------------------------------------------------------

    def turn(
        self,
        workers: Mapping[str, Seen],
        busy: Mapping[Kind, int],
        waiting: Mapping[Resources, int],
    ) -> Turn:
        """Bring the accounts up to date, submit and cancel.

        Parameters
        ----------
        workers : mapping of str to Seen
            By pilot.
        busy : mapping of Kind to int
            Slots that run something.
        waiting : mapping of Resources to int
            Jobs that could run if there were a slot, by what they ask for.

        Raises
        ------
        SiteError
            The batch system does not tell what is in its queue.
        """
        now = time.monotonic()
        looked = self._look(now)
        ended: dict[str, BatchStatus | None] = {}
        for fleet in self._fleets.values():
            ended |= fleet.update(now, self._statuses, workers)
        plans = self._plans(now, busy, waiting)
        cancel = {one for plan in plans.values() for one in plan.cancel}
        retire = frozenset(one for plan in plans.values() for one in plan.retire)
        self.cancel(frozenset(cancel | (self._left_over(now, workers) if looked else set())))
        try:
            self._submit_all(now, plans)
        except SiteError as error:  # what has ended is told all the same
            logger.warning("%s: %s", self._name, error)
        return Turn(ended, retire)

    def cancel(self, pilots: frozenset[str]) -> None:
        """End batch jobs; those that this does not reach are cancelled again in later turns."""
        try:
            self._control.cancel([(one, None) for one in sorted(pilots)])
        except SiteError as error:
            logger.warning("%s: %s", self._name, error)

    def _look(self, now: float) -> bool:
        """Ask the batch system, unless it was asked just now; whether it was."""
        if now < self._look_at:
            return False
        self._look_at = now + self._settings.poll_seconds
        found = self._control.look(sorted(self._alive()))
        self._statuses |= {ref[0]: status for ref, status in found.items()}
        return True

    def _left_over(self, now: float, workers: Mapping[str, Seen]) -> set[str]:
        """Return pilots that should have gone for a while and are still in the queue.

        Not at once: one that ends by itself is not to look as if somebody had cancelled it.
        """
        going = {
            pilot.id
            for fleet in self._fleets.values()
            for pilot in fleet.pilots.values()
            if pilot.leaving and pilot.id not in workers and self._is_live(pilot.id)
        }
        self._told = {one: self._told.get(one, now) for one in going}
        patience = max(_AGAIN_S, _AGAIN * self._settings.poll_seconds)
        again = {one for one, since in self._told.items() if now - since >= patience}
        self._told |= dict.fromkeys(again, now)
        return again

    def _is_live(self, pilot: str) -> bool:
        status = self._statuses.get(pilot)
        return status is not None and status.live

    def _alive(self) -> list[str]:
        return [one for fleet in self._fleets.values() for one in fleet.pilots]

    def _open(self) -> dict[str, Site]:
        return {name: site for name, site in self._sites.items() if name not in self.refused}

    def _loads(self) -> dict[str, Load]:
        loads: dict[str, Load] = {}
        for kind, fleet in list(self._fleets.items()):
            known = loads.get(kind.site, Load())
            pilots = list(fleet.pilots.values())
            there = sum(pilot.joined for pilot in pilots)
            loads[kind.site] = Load(
                known.running + there * kind.slot.count,
                known.waiting + (len(pilots) - there) * kind.slot.count,
                known.finished + fleet.started,
                known.lost + fleet.spoiled,
            )
        return loads

    def _plans(
        self, now: float, busy: Mapping[Kind, int], waiting: Mapping[Resources, int]
    ) -> dict[Kind, Plan]:
        room = {
            name: site.nodes - self._at(name, lambda fleet: fleet.tardy(now))
            for name, site in self._open().items()
            if site.nodes is not None
        }
        there = {kind: fleet.staying(now) for kind, fleet in self._fleets.items()}
        wanted = provision(busy, waiting, self._open(), room, self._loads(), there)
        self._keep_least(wanted)
        for kind in wanted:
            self._fleet(kind)
        self._recut(now, wanted)
        return {
            kind: fleet.plan(now, wanted.get(kind, 0), work=bool(waiting))
            for kind, fleet in self._fleets.items()
        }

    def _recut(self, now: float, wanted: Mapping[Kind, int]) -> None:
        """Have pilots that one kind of jobs can spare cut for another: they are there already."""
        for kind, number in wanted.items():
            for other, fleet in self._fleets.items():
                missing = number - self._fleets[kind].staying(now)
                if missing > 0 and other.site == kind.site and other != kind:
                    full = self._free(kind.site) <= 0
                    given = fleet.give(now, wanted.get(other, 0), missing, busy=full)
                    for pilot in given:
                        write_order(self._folder / _CONTACT, pilot.id, kind.slot)
                        self._record(pilot.id, kind)
                    self._fleets[kind].take(given, now)

    def _keep_least(self, wanted: dict[Kind, int]) -> None:
        """Want as many nodes of each site as are to be kept although nothing waits."""
        for name, site in self._open().items():
            least = self._places[name].min_nodes
            missing = least - sum(n for kind, n in wanted.items() if kind.site == name)
            plain = kinds(Resources(), {name: site}, {})
            if missing > 0 and plain:
                wanted[plain[0]] = wanted.get(plain[0], 0) + missing

    def _at(self, site: str, count: Callable[[Fleet], int]) -> int:
        return sum(count(fleet) for kind, fleet in self._fleets.items() if kind.site == site)

    def _free(self, site: str) -> int:
        """Return the nodes of a site that no pilot has or waits for."""
        most = self._places[site].max_nodes
        return most - self._at(site, lambda fleet: len(fleet.pilots))

    def _submit_all(self, now: float, plans: Mapping[Kind, Plan]) -> None:
        for kind, plan in plans.items():
            number = min(plan.submit, self._free(kind.site))
            for _ in range(self._allowance.take(now, number)):
                try:
                    self._submit(kind)
                except SiteError as error:
                    self._fleets[kind].refused(now)
                    if error.transient or self._fleets[kind].pilots:
                        raise
                    self.refused[kind.site] = str(error)
                    break

    def _submit(self, kind: Kind) -> None:
        place, folder = self._places[kind.site], self._folder
        script = folder / f"pilot-{uuid.uuid4().hex[:8]}.sh"
        request = pilot_request(place, kind.slot, self._name, str(folder))
        body = pilot_body(place, folder / _CONTACT, kind.slot)
        pilot = self._control.submit(script, request, body, place.prologue)
        self._note(pilot, kind)
        self._record(pilot, kind)

    def _record(self, pilot: str, kind: Kind) -> None:
        """Leave a note for the driver after this one; the last of a pilot counts."""
        self._kinds[pilot] = kind
        with open(self._folder / _JOBS, "a", encoding="utf-8") as file:
            file.write(f"{pilot}\t{kind.site}\t{kind.slot.dump()}\n")

    def _note(self, pilot: str, kind: Kind) -> None:
        self._kinds[pilot] = kind
        self._fleet(kind).submitted([pilot], time.monotonic())

    def _fleet(self, kind: Kind) -> Fleet:
        """Return the pilots of a kind, none to begin with."""
        if kind not in self._fleets:
            place = self._places[kind.site]
            self._fleets[kind] = Fleet(idle=place.idle_seconds, tardy=place.queue_seconds)
        return self._fleets[kind]

    def _last_words(self) -> str:
        """Return the end of what the newest pilot wrote."""
        logs = sorted(self._folder.glob("*.out"), key=os.path.getmtime)
        return last_words(logs[-1].read_bytes() if logs else b"") or "it wrote nothing"

    # --- beginning and end --------------------------------------------------------------

    def adopt(self) -> None:
        """Count pilots in that a driver before this one left alive: they read the contact.

        Raises
        ------
        SiteError
            The batch system does not answer.
        """
        left = dict(self._left())
        alive = {ref[0] for ref, status in self._control.look(list(left)).items() if status.live}
        for pilot in left.keys() & alive:
            self._adopted.add(pilot)
            self._note(pilot, left[pilot])

    def _left(self) -> list[tuple[str, Kind]]:
        found = []
        with suppress(OSError):
            for line in (self._folder / _JOBS).read_text(encoding="utf-8").splitlines():
                pilot, _, rest = line.partition("\t")
                site, _, slot = rest.partition("\t")
                with suppress(DataError):  # a line cut short by a full disk
                    kind = Kind(site, Slot.parse(slot))
                    if site in self._places:
                        found.append((pilot, kind))
        return found

    def leave(self) -> None:
        """Cancel what is left, and stay until it is gone."""
        deadline = time.monotonic() + _LEAVE_S
        left = sorted(self._alive())
        while left and time.monotonic() < deadline:
            try:
                self._control.cancel([(one, None) for one in left])
                found = self._control.look(left)
                left = sorted({ref[0] for ref, s in found.items() if s.live or s.remains})
            except SiteError as error:
                logger.warning("%s: %s", self._name, error)
            if left:
                time.sleep(0.3)


def pilot_request(place: BatchSettings, slot: Slot, name: str, folder: str) -> BatchRequest:
    """Return what is asked of the batch system for a pilot of a site: a whole node."""
    return replace(
        place.request(name),
        gpus=place.gpus if slot.gpus else 0,
        stdout=f"{folder}/{{id}}.out",
        workdir=os.getcwd(),
        warn=("USR1", min(60.0, place.walltime / 4)),
    )


def pilot_body(place: BatchSettings, contact: Path, slot: Slot) -> str:
    """Return the line of the script that becomes the pilot."""
    words = [
        *(place.python, "-m", "pandaflow.executors.batch.pilot", str(contact)),
        *("--slot", slot.dump(), "--margin", f"{place.last_call:g}"),
        *("--patience", f"{place.patience:g}"),
        *(("--scratch", place.scratch) if place.scratch else ()),
    ]
    inside = f"{place.container} " if place.container else ""
    # The shell knows how long the lines before this one took.
    left = f'"$(({int(place.walltime)} - SECONDS))"'
    return f"exec {inside}{shlex.join(words)} --walltime {left}"
