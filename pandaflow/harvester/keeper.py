"""One queue: look at the server and at the batch system, decide, act, write it down."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from pandaflow.core.errors import SiteError
from pandaflow.grid.http import GridClient
from pandaflow.grid.messages import Needs
from pandaflow.grid.places import Demand, Queue
from pandaflow.harvester import health, sizing
from pandaflow.harvester.account import (
    AGAIN,
    Heard,
    Looked,
    Record,
    ghosts,
    matched,
    parse_heard,
    seats,
    stillborn,
)
from pandaflow.harvester.health import Backoff, Refusal
from pandaflow.harvester.journal import Journal
from pandaflow.harvester.settings import Settings
from pandaflow.harvester.sizing import Leave, Limits, Plan, Seat, Submit
from pandaflow.harvester.submitter import Shape, Submitter

logger = logging.getLogger("pandaflow.harvester")

#: Seconds between two looks for pilots that nobody noted.
_SEARCH = 60.0
#: Seconds for which pilots that are gone are held against what the server still says of them.
_PAST = 3_600.0


class Keeper:
    """Keeps the right number of pilots at a queue.

    Parameters
    ----------
    settings : Settings
    name : str
        Of the queue.
    client : GridClient
    journal : Journal
    submitter : Submitter
    clock : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        client: GridClient,
        journal: Journal,
        submitter: Submitter,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name, self._settings = name, settings
        self._client, self._journal = client, journal
        self._submitter, self._clock = submitter, clock
        self._label = settings.label(name)
        self._settles = type(settings.queues[name].submitter).settles
        self._answers_since: float | None = None
        self._searched = 0.0
        self._ready_since: dict[str, float] = {}
        self._troubles: dict[str, str] = {}
        noted = journal.queue(name)
        self._backoff = Backoff(**noted.get("backoff", {}))
        self._refusals = {key: Refusal(**each) for key, each in noted.get("refusals", {}).items()}

    def round(self, drain: bool = False) -> int:
        """Look, decide and act once; return how many pilots there are, or are on their way.

        Parameters
        ----------
        drain : bool
            End all pilots instead of keeping some.

        Raises
        ------
        StoreError
            The journal cannot be written: nothing is submitted then.
        """
        now = self._clock()
        asked = self._ask(now)
        if asked is None:
            return len(self._journal.live(self.name))
        demand, heard = asked
        try:
            records = self._look(now, heard)
        except SiteError as error:
            self._trouble("the batch system", error, now)
            return len(self._journal.live(self.name))
        self._settle("the batch system")
        live = {name: each for name, each in records.items() if each.phase != "gone"}
        self._end_ghosts(live, demand.queue, now)
        gone = self._gone(now)
        there = seats(live.values(), heard, gone, self._label, now)
        plan = self._plan(demand, there, now, drain)
        self._leave(live, plan.leave, now)
        self._submit(live, demand.queue, plan.submit, now)
        self._note(demand, seats(live.values(), heard, gone, self._label, now), plan, now)
        return len(live)

    # --- looking ------------------------------------------------------------------------

    def _ask(self, now: float) -> tuple[Demand, dict[str, Heard]] | None:
        try:
            demand = self._client.demand(self.name)
            heard = parse_heard(self._client.pilots(self.name))
        except SiteError as error:
            self._answers_since = None
            self._trouble("the server", error, now)
            return None
        self._settle("the server")
        self._answers_since = self._answers_since or now
        return demand, heard

    def _look(self, now: float, heard: Mapping[str, Heard]) -> dict[str, Record]:
        """Return the records of pilots as they are now; they are written down."""
        before = self._journal.live(self.name)
        lost = any(not each.id for each in before)
        found: Mapping[str, str] = {}
        if lost or now - self._searched >= _SEARCH:
            found = self._submitter.found()
            self._searched = now
        ids = {each.id for each in before if each.id} | set(found)
        states = self._submitter.states(ids) if ids else {}
        after = matched(before, Looked(now, states, found, heard, self._settles))
        old = {each.name: each for each in before}
        changed = [each for each in after.values() if each != old.get(each.name)]
        self._journal.save(self.name, changed)
        self._tell(old, changed, now)
        return after

    def _tell(self, old: Mapping[str, Record], changed: Iterable[Record], now: float) -> None:
        """Log what has happened to pilots, and learn from it."""
        dead = ""
        for each in changed:
            past = old.get(each.name)
            if past is None:
                logger.warning("%s: %s was not in the journal: taken in", self.name, each.name)
            if each.first is not None and (past is None or past.first is None):
                logger.info("%s: %s is there", self.name, each.name)
                self._backoff = Backoff()
            if each.phase == "gone":
                logger.info("%s: %s is gone: %s", self.name, each.name, each.why or "done")
                dead = dead or stillborn(each)
        if dead:
            self._fail(dead, now)

    def _fail(self, why: str, now: float) -> None:
        before = self._backoff
        first = self._settings.harvester.backoff
        self._backoff = before.after_failure(why, now, first)
        if self._backoff.failures > before.failures:
            pause = self._backoff.until - now
            logger.warning("%s: no pilots for %.0f s: %s", self.name, pause, why)

    def _gone(self, now: float) -> list[Record]:
        past = self._journal.gone(self.name, 1_000)
        return [each for each in past if (each.ended or 0.0) > now - _PAST]

    # --- deciding -----------------------------------------------------------------------

    def _end_ghosts(self, live: dict[str, Record], queue: Queue, now: float) -> None:
        since = self._answers_since or now
        ghost = self._settings.harvester.ghost
        dead = list(ghosts(live.values(), now, since, ghost, queue.heartbeat))
        if dead:
            self._leave(live, dead, now)
            self._fail(f"pilot {dead[0].name}: {dead[0].why}", now)

    def _plan(self, demand: Demand, there: Sequence[Seat], now: float, drain: bool) -> Plan:
        queue = demand.queue
        tags = frozenset(queue.tags) | frozenset(self._settings.queues[self.name].tags)
        ready = {health.key(each.needs): each for each in demand.classes if each.ready}
        running = [health.key(each.needs) for each in demand.classes if each.running]
        self._ready_since = {name: self._ready_since.get(name, now) for name in ready}
        patience = min(health.PATIENCE, queue.provision.idle / 2)
        if queue.state == "open":
            waiting: dict[str, tuple[Needs, float]] = {
                name: (each.needs, self._ready_since[name]) for name, each in ready.items()
            }
            known = self._refusals
            self._refusals = health.refused(known, waiting, running, there, tags, now, patience)
            self._tell_refusals(known, queue.name)
        counts = {name: (each.needs, each.ready) for name, each in ready.items()}
        wanted = health.counted(counts, self._refusals, now)
        shapes = self._settings.shapes(queue)
        limits = Limits(max_pilots=0) if drain else self._limits(queue, now)
        return sizing.plan(wanted, there, shapes, limits, tags)

    def _tell_refusals(self, known: Mapping[str, Refusal], queue: str) -> None:
        for name, each in self._refusals.items():
            if each != known.get(name):
                logger.warning("%s: idle pilots do not take bundles that need %s", queue, name)

    def _limits(self, queue: Queue, now: float) -> Limits:
        wish = queue.provision
        span = sizing.window(wish.pilots_a_minute)
        credit = self._backoff.credit(now)
        shut = ""
        if queue.state in ("closed", "held"):
            shut = f"the queue is {queue.state}: {queue.reason}"
        elif queue.state == "probing":
            credit = 1 if credit is None else min(1, credit)
        return Limits(
            min_pilots=wish.min_pilots,
            max_pilots=wish.max_pilots,
            max_waiting=wish.max_waiting,
            pilots_a_minute=wish.pilots_a_minute,
            idle=wish.idle,
            recent=self._journal.submitted(self.name, now - span),
            credit=credit,
            shut=shut,
        )

    # --- acting -------------------------------------------------------------------------

    def _leave(self, live: dict[str, Record], leave: Iterable[Leave], now: float) -> None:
        """End pilots, and those again that were told and are still there."""
        told = {}
        for each in leave:
            if (record := live.get(each.name)) is not None:
                wish = {"wish": each.how, "wished": now, "why": each.why}
                told[each.name] = live[each.name] = replace(record, **wish)  # type: ignore[arg-type]
                logger.info("%s: %s: %s: %s", self.name, each.how, each.name, each.why)
        for name, record in live.items():
            if record.wish and now - record.wished >= AGAIN:
                told[name] = live[name] = replace(record, wished=now)
        self._journal.save(self.name, told.values())
        cancelled = [pilot.id for pilot in told.values() if pilot.wish == "cancel" and pilot.id]
        try:
            if cancelled:
                self._submitter.cancel(cancelled)
            for name in [name for name, each in told.items() if each.wish == "drain"]:
                self._client.command_pilot(name, "drain")
        except SiteError as error:
            self._trouble("ending pilots", error, now)

    def _submit(
        self, live: dict[str, Record], queue: Queue, submit: Iterable[Submit], now: float
    ) -> None:
        for shape, number in submit:
            names = [f"{self._label}-{secrets.token_hex(5)}" for _ in range(number)]
            new = {name: Record(name=name, shape=shape, ordered=now) for name in names}
            # Before it happens: who comes after us must know of it.
            self._journal.save(self.name, new.values())
            order = self._settings.order(queue, shape)
            try:
                begun = self._submitter.submit(order, names)
            except SiteError as error:
                if not error.transient:
                    new = {name: _never(each, str(error), now) for name, each in new.items()}
                self._fail(f"pilots cannot be submitted: {error}", now)
            else:
                new = {
                    name: replace(each, id=begun[name])
                    if name in begun
                    else _never(each, "it was not begun", now)
                    for name, each in new.items()
                }
                logger.info("%s: submitted %d pilots of %s", self.name, len(begun), words(shape))
            self._journal.save(self.name, new.values())
            live |= {name: each for name, each in new.items() if each.phase != "gone"}

    # --- telling ------------------------------------------------------------------------

    def _note(self, demand: Demand, there: Sequence[Seat], plan: Plan, now: float) -> None:
        reason = plan.why
        if now < self._backoff.until:
            pause = self._backoff.until - now
            reason = f"none for {pause:.0f} s: {self._backoff.reason}"
        elif self._backoff.failures:
            reason = f"{reason}: {self._backoff.reason}" if reason else self._backoff.reason
        elif not reason and plan.unserved:
            reason = f"{plan.unserved} ready bundles are too large for its pilots, or lack tags"
        elif not reason and self._refusals:
            reason = f"idle pilots do not take bundles that need {next(iter(self._refusals))}"
        self._journal.note(
            self.name,
            {
                "at": now,
                "queue": self.name,
                "submitter": self._settings.queues[self.name].kind,
                "state": demand.queue.state,
                "ready": sum(each.ready for each in demand.classes),
                "running": sum(each.running for each in demand.classes),
                "pilots": sizing.told(there),
                "leaving": sum(seat.leaving for seat in there if seat.ours),
                "others": sum(not seat.ours for seat in there),
                "wanted": plan.wanted,
                "submitted": plan.count,
                "reason": reason or "; ".join(self._troubles.values()),
                "backoff": asdict(self._backoff),
                "refusals": {name: asdict(each) for name, each in self._refusals.items()},
            },
        )

    def _trouble(self, what: str, error: SiteError, now: float) -> None:
        """Tell of a trouble once; nothing is decided while it lasts."""
        if self._troubles.get(what) != str(error):
            logger.warning("%s: %s: %s", self.name, what, error)
            self._troubles[what] = str(error)
        noted = self._journal.queue(self.name)
        own = {"queue": self.name, "submitter": self._settings.queues[self.name].kind}
        self._journal.note(self.name, {**noted, **own, "at": now, "reason": f"{what}: {error}"})

    def _settle(self, what: str) -> None:
        if self._troubles.pop(what, None) is not None:
            logger.info("%s: %s answers again", self.name, what)


def _never(record: Record, why: str, now: float) -> Record:
    return replace(record, phase="gone", why=why, ended=now)


def words(shape: Shape) -> str:
    """Return a shape for people."""
    said = [f"{shape.cores} core{'s' if shape.cores > 1 else ''}"]
    if shape.memory:
        said.append(f"{shape.memory / 1e9:.3g} GB")
    if shape.gpus:
        said.append(f"{shape.gpus} GPUs")
    if shape.walltime:
        said.append(f"{shape.walltime / 3600:.3g} h")
    return ", ".join(said)
