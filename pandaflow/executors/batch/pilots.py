"""Pilots in allocations: Dask workers held by batch jobs, as many as the run has work for.

The driver's process has the scheduler; batch jobs bring workers to it. A thread looks every few
seconds at what Dask's scheduler has and what the batch system says
(:class:`~pandaflow.executors.batch.allocations.Allocations`), and sends workers away that are not
needed. What a worker that dies leaves behind is charged to its job only if its allocation is not
to blame.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

from pandaflow.core.errors import SiteError
from pandaflow.core.events import (
    BundleEnded,
    BundleLost,
    BundlePlaced,
    BundleStarted,
    Event,
    SlotsChanged,
)
from pandaflow.core.model import Failure, Resources
from pandaflow.executors import tls
from pandaflow.executors.batch.allocations import Allocations
from pandaflow.executors.batch.contact import Contact, own_addresses
from pandaflow.executors.batch.fleet import Seen
from pandaflow.executors.batch.model import BatchStatus
from pandaflow.executors.batch.provision import Kind
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.batch.slots import WALLTIME, needs
from pandaflow.executors.dask import DaskSession
from pandaflow.executors.node import CUT_SHORT
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Seconds that a lost bundle waits for its batch system to say why.
_VERDICT_S = 15.0
#: Seconds in which the workers of one pilot die if all of them do.
_SETTLE_S = 1.0
#: Seconds between turns at least, when new work comes in.
_PAUSE_S = 0.2
#: Seconds of work that are worth a slot more.
_WORTH_S = 1.0
#: States of workers that take no more work.
_GOING = ("paused", "closing", "closing_gracefully", "closed")
#: A job that used this much of a whole pilot's time and did not end will not end in another.
_WHOLE = 0.8


class PilotSession(DaskSession):
    """One run's bundles on workers in allocations.

    Parameters
    ----------
    settings : BatchSettings
    run_id, results, report
        As for any session; ``results`` must be a folder that the nodes see.
    """

    def __init__(self, settings: BatchSettings, run_id: str, results: str, report: Report) -> None:
        self._settings, self._tell_runner = settings, report
        folder = Path(results) / "pilots"
        folder.mkdir(parents=True, exist_ok=True)
        self._contact = folder / "contact.json"
        self._allocations = Allocations(settings, run_id, folder)
        self._asked: dict[int, tuple[Resources, int]] = {}
        self._began: dict[int, float] = {}
        self._lost: list[tuple[float, BundleLost, str]] = []
        self._ended: dict[str, BatchStatus | None] = {}
        self._told = (-1, "")
        self._over, self._stir = threading.Event(), threading.Event()
        self._cluster, self._secret = _start(settings)
        self._arrivals = _Arrivals()
        self._pilot_of, self._labels = self._arrivals.pilots, self._arrivals.labels
        self._scheduler.add_plugin(self._arrivals)
        client = Client(self._cluster, set_as_default=False)
        try:
            super().__init__(client, run_id, results, self._hand_on, owns_client=True)
            self._allocations.adopt()
            self._write_contact()
        except BaseException:
            self._abandon(client)
            raise
        self._keeper = threading.Thread(target=self._keep, name="pandaflow-pilots", daemon=True)
        self._keeper.start()

    # --- the port -----------------------------------------------------------------------

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Add a slice to the graph; pilots come for it. What fits nowhere fails at once."""
        fit = [one for one in assignments if self._place(one)]
        if fit:
            super().submit(fit)
            self._stir.set()

    def cancel(self, bundles: Sequence[int]) -> None:
        """Drop nodes that wait, stop payloads that run."""
        for bundle in bundles:
            self._asked.pop(bundle, None)
        super().cancel(bundles)

    def close(self, *, kill: bool = False) -> None:
        """Give all allocations back and wait until they have left the queue."""
        if self._over.is_set():
            return
        self._over.set()
        self._stir.set()
        self._keeper.join(timeout=60)
        self._write_contact(over=True)
        super().close(kill=kill)
        self._allocations.leave()
        self._cluster.close(timeout=5)

    def _abandon(self, client: Client) -> None:
        """Close what was opened before the session could begin."""
        if hasattr(self, "_closed"):
            super().close()
        client.close()
        self._cluster.close(timeout=5)

    # --- bundles ------------------------------------------------------------------------

    def _place(self, one: Assignment) -> bool:
        """Say where a bundle may run; whether it may anywhere."""
        spec, bundle = one.spec, one.emit.bundle
        ranking = self._allocations.ranking(spec.resources)
        self._asked[bundle] = (spec.resources, len(spec.jobs))
        if not ranking.sites:
            kind = "site" if self._allocations.refused else "unfit"
            self._fail(bundle, kind, f"{spec.name} fits nowhere: {ranking.describe()}")
        elif self._allocations.several:
            self._hand_on(BundlePlaced(time.time(), bundle, "", ranking.describe()))
        return bool(ranking.sites)

    def _fail(self, bundle: int, kind: str, why: str) -> None:
        _, size = self._asked[bundle]
        failures = dict.fromkeys(range(size), Failure(kind=kind, message=why))
        self._hand_on(BundleEnded(at=time.time(), bundle=bundle, failures=failures))

    def _hand_on(self, event: Event) -> None:
        """Report an event, and keep track of what is in flight."""
        if isinstance(event, BundleStarted):
            self._began[event.bundle] = event.at
            kind = self._allocations.kind_of(self._pilot_of.get(event.worker, ""))
            site = kind.site if kind is not None and self._allocations.several else ""
            event = replace(event, site=site, worker=self._labels.get(event.worker, event.worker))
        elif isinstance(event, BundleEnded | BundleLost):
            self._asked.pop(event.bundle, None)
            self._began.pop(event.bundle, None)
            if isinstance(event, BundleEnded):
                event = replace(event, worker=self._labels.get(event.worker, event.worker))
        self._tell_runner(event)

    @property
    def _scheduler(self) -> Any:
        return self._cluster.scheduler

    # --- what the base class asks -------------------------------------------------------

    def _needs(self, assignment: Assignment) -> Mapping[str, float]:
        return needs(assignment.spec.resources)

    def _count_slots(self) -> None:
        """Tell the slots that there may be: the engine sends work, and workers come for it."""
        reason = "" if self._see_workers() else self._allocations.trouble()
        now = (self._allocations.slots, reason)
        if now != self._told:
            self._told = now
            self._hand_on(SlotsChanged(time.time(), "", *now))

    def _tell_lost(self, lost: BundleLost, worker: str) -> None:
        """Wait with a verdict until the batch system has said what became of the pilot."""
        with self._lock:
            self._lost.append((time.monotonic(), lost, worker))

    # --- the account --------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._over.is_set():
            try:
                self._turn()
            except (SiteError, OSError) as error:  # a full disk, a worker gone while it is told
                logger.warning("%s: %s", self._run, error)
            self._over.wait(_PAUSE_S)
            self._stir.wait(self._settings.poll_seconds)
            self._stir.clear()

    def _turn(self) -> None:
        workers = self._see_workers()
        for pilot, seconds in self._arrivals.first():
            self._allocations.began(pilot, seconds)
        busy, waiting = self._work()
        turn = self._allocations.turn(workers, busy, waiting)
        self._ended.update(turn.ended)
        self._judge()
        self._retire(turn.retire)
        if self._allocations.refused or self._allocations.late:
            self._give_up()

    def _see_workers(self) -> dict[str, Seen]:
        """Return what workers the pilots have."""
        found: dict[str, Seen] = {}
        for worker in list(self._scheduler.workers.values()):
            pilot, tag, _ = _parts(str(worker.name))
            kind = self._allocations.kind_of(pilot)
            if kind is None or kind.slot.tag != tag:
                continue  # of a pilot that is being cut for other jobs
            known = found.get(pilot, Seen(0, draining=True))
            going = worker.status.name in _GOING or CUT_SHORT in worker.resources
            busy = min(1, len(worker.processing))
            found[pilot] = Seen(known.busy + busy, known.draining and going)
        return found

    def _work(self) -> tuple[Counter[Kind], dict[Resources, int]]:
        """Return the slots that run something, and those that more could be run in."""
        busy: Counter[Kind] = Counter()
        counts: Counter[Resources] = Counter()
        seconds: dict[Resources, float] = defaultdict(float)
        taken: set[Any] = set()
        in_flight = {self._keys.get(bundle) for bundle in list(self._asked)}
        for bundle, (resources, _) in list(self._asked.items()):
            node = self._scheduler.tasks.get(self._keys.get(bundle, ()))
            if node is None or not _could_run(node, in_flight):
                continue
            worker = node.processing_on
            pilot = _parts(str(worker.name))[0] if worker else ""
            kind = self._allocations.kind_of(pilot)
            if kind is not None and worker not in taken:
                taken.add(worker)
                busy[kind] += 1
            else:
                counts[resources] += 1
                known = node.prefix.duration_average
                seconds[resources] += known if known >= 0 else _WORTH_S
        slots = {r: min(n, math.ceil(seconds[r] / _WORTH_S)) for r, n in counts.items()}
        return busy, slots

    def _retire(self, pilots: frozenset[str]) -> None:
        """Give idle allocations back."""
        gone = self._workers_of(pilots)
        if gone:
            self._client.retire_workers(workers=gone, close_workers=True, remove=True)
        self._allocations.cancel(pilots)

    def _workers_of(self, pilots: frozenset[str]) -> list[str]:
        here = list(self._scheduler.workers)
        return [address for address in here if self._pilot_of.get(address) in pilots]

    def _give_up(self) -> None:
        """Fail what no site will ever take, now that one has refused or its pilots are late."""
        kind = "site" if self._allocations.refused else "unfit"
        failed = []
        for bundle, (resources, _) in list(self._asked.items()):
            ranking = self._allocations.ranking(resources)
            if not ranking.sites and bundle not in self._began:
                failed.append(bundle)
                self._fail(bundle, kind, ranking.describe())
        self.cancel(failed)  # their nodes must not wait for workers any more

    # --- verdicts -----------------------------------------------------------------------

    def _judge(self) -> None:
        """Report bundles whose worker died, charged or not, once it is known why it did.

        Where other workers of the same pilot live on, the job itself is to blame; where none
        does, the batch system is given some seconds to say what became of the allocation.
        """
        with self._lock:
            waiting, self._lost = self._lost, []
        alive = {self._pilot_of.get(address) for address in list(self._scheduler.workers)}
        for since, lost, worker in waiting:
            pilot = self._pilot_of.get(worker, "")
            status = self._ended.get(pilot) or self._allocations.status_of(pilot)
            over = status is not None and status.over
            age = time.monotonic() - since
            if worker in self._arrivals.replaced:
                told = f"its pilot {pilot} was taken back into the queue"
                self._hand_on(replace(lost, reason=told, charged=False))
            elif over or (pilot in alive and age > _SETTLE_S) or age > _VERDICT_S:
                self._hand_on(self._verdict(lost, pilot, status if over else None))
            else:
                with self._lock:
                    self._lost.append((since, lost, worker))

    def _verdict(
        self, lost: BundleLost, pilot: str, status: BatchStatus | None
    ) -> BundleLost | BundleEnded:
        """Say who is to blame: the job, unless its allocation ended for reasons of its own."""
        kind = self._allocations.kind_of(pilot)
        if status is None or kind is None:
            return lost
        time_is_up = status.state in ("timeout", "done")
        place = self._settings.places()[kind.site]
        limit, ran = place.walltime, lost.at - self._began.get(lost.bundle, lost.at)
        size = self._asked.get(lost.bundle, (None, 1))[1]
        if time_is_up and ran >= _WHOLE * (limit - place.last_call) and size == 1:
            why = (
                f"it ran for {ran:.0f} s and its pilot of {limit:g} s was over; give the task a "
                "walltime, so that it goes where there is as much, or the executor a longer one"
            )
            failures = {0: Failure(kind="walltime", message=why)}
            return BundleEnded(at=lost.at, bundle=lost.bundle, failures=failures)
        told = f"its pilot {pilot} ended: {status.state} {status.reason}".rstrip()
        fault = status.infrastructure or time_is_up
        return replace(lost, reason=told, charged=lost.charged and not fault)

    # --- beginning and end --------------------------------------------------------------

    def _write_contact(self, *, over: bool = False) -> None:
        url = self._scheduler.listeners[0].listen_address
        contact = Contact(
            id=uuid.uuid4().hex, addresses=own_addresses(url), tls=self._secret, over=over
        )
        contact.write(self._contact)


class _Arrivals(SchedulerPlugin):
    """Keeps whose every worker was that ever came, by address: some die at once.

    Attributes
    ----------
    pilots, labels : dict of str to str
        Batch jobs, and what people call the workers.
    replaced : set of str
        Workers whose pilot has begun anew since: its batch job went back into the queue.
    """

    def __init__(self) -> None:
        self.pilots: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.replaced: set[str] = set()
        self._names: dict[str, set[str]] = defaultdict(set)
        self._first: SimpleQueue[tuple[str, float]] = SimpleQueue()

    def first(self) -> Iterator[tuple[str, float]]:
        """Yield pilots whose first worker has come since the last call, and the seconds it had."""
        while not self._first.empty():
            yield self._first.get()

    def add_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Note a worker. A pilot gives no name twice, unless it counts from 1 again."""
        name = str(scheduler.workers[worker].name)
        pilot, _tag, label = _parts(name)
        mine = name.partition("@")[0]
        if mine in self._names[pilot]:
            self.replaced.update(each for each, its in self.pilots.items() if its == pilot)
            self._names[pilot].clear()
        if not self._names[pilot]:
            self._first.put((pilot, scheduler.workers[worker].resources.get(WALLTIME, math.inf)))
        self._names[pilot].add(mine)
        self.pilots[worker], self.labels[worker] = pilot, label


def _parts(worker: str) -> tuple[str, str, str]:
    """Return batch job, slot and label of ``pilot-<id>-<slot>-<number>.<start>@<node>``."""
    rest, _, node = worker.removeprefix("pilot-").partition("@")
    rest, _, number = rest.rpartition("-")
    pilot, _, tag = rest.rpartition("-")
    return pilot, tag, f"{node}/{pilot}.{number.partition('.')[0]}"


def _could_run(node: Any, in_flight: Set[Any]) -> bool:
    """Whether a node of the graph runs, or would if a worker were there.

    Without workers it waits for its payload, for values to be loaded, and for values that were
    lost with a worker: nodes that wait for workers themselves.
    """
    return node.state in ("processing", "queued", "no-worker") or (
        node.state == "waiting" and not any(each.key in in_flight for each in list(node.waiting_on))
    )


def _start(settings: BatchSettings) -> tuple[LocalCluster, dict[str, str]]:
    """Start a scheduler that compute nodes can reach; return it with its keys."""
    quiet = {
        "distributed.scheduler.allowed-failures": 1000,
        "distributed.scheduler.worker-saturation": 1.0,
        # Jobs that ask for resources are given to workers at once, so they are moved more often.
        "distributed.scheduler.work-stealing-interval": "250ms",
        "distributed.comm.timeouts.connect": "30s",
        "distributed.admin.low-level-log-length": 100,
        "distributed.admin.large-graph-warning-threshold": "100MB",
    }
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    encrypt = tls.available() if settings.encrypt is None else settings.encrypt
    if not encrypt and settings.encrypt is None:
        logger.warning(
            "driver and pilots talk in clear, and whoever reaches this machine's ports can run "
            "code as you: install pandaflow[hpc] for TLS"
        )
    security, keys = tls.make() if encrypt else (None, {})
    with dask.config.set(quiet):
        cluster = LocalCluster(
            n_workers=0,
            processes=True,
            host=settings.host or "0.0.0.0",
            protocol="tls" if encrypt else "tcp",
            security=security,
            dashboard_address=":0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
        )
    return cluster, keys
