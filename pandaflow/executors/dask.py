"""Runs bundles on a Dask cluster: any ``Client``, address or cluster object.

Each call of :meth:`DaskSession.submit` is one slice of the workflow's Dask graph: a node per
bundle, edges between bundles, and edges to futures of earlier slices. Dask places nodes, moves
values and starts a node the moment its inputs exist.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from dask._task_spec import DataNode, Task, TaskRef
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from distributed import Client, Future, WorkerPlugin
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from pandaflow.core.errors import DataError, SiteError
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted, SlotsChanged
from pandaflow.data.results import ResultStore
from pandaflow.executors import channel, supervise
from pandaflow.executors.channel import Ask, Begun, Roll, unpack_said
from pandaflow.executors.node import (
    cancel_on_worker,
    forget_on_worker,
    load_node,
    run_node,
    stop_on_worker,
)
from pandaflow.executors.outcome import BundleAbandoned, unpack_ended
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Seconds between looks at the number of workers.
_WATCH_S = 0.5
#: Seconds that a stopped payload is given before the cluster's workers are left to themselves.
_CANCEL_S = 0.9
#: Seconds that workers are given at the end to forget what jobs were asked.
_FORGET_S = 5.0

Key = tuple[str | int, ...]
#: Priority, the worker that holds a job to be joined ("": any will do), and resources of Dask.
Place = tuple[int, str, tuple[tuple[str, float], ...]]
Cause = Callable[[str], str]


class Dask:
    """An executor on an existing Dask cluster.

    Parameters
    ----------
    cluster : Client, cluster object or str
        A ``distributed.Client``, anything with a ``scheduler_address`` (``LocalCluster``,
        ``SLURMCluster``, ...) or an address such as ``"tcp://10.0.0.1:8786"``.

    Notes
    -----
    The workers need PandaFlow installed and the result store's folder in reach.
    """

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    def __repr__(self) -> str:
        return f"Dask({getattr(self._cluster, 'scheduler_address', None) or self._cluster!r})"

    def open(self, run_id: str, results: str, report: Report) -> DaskSession:
        """Connect to the cluster for a run."""
        if isinstance(self._cluster, Client):
            return DaskSession(self._cluster, run_id, results, report)
        address = getattr(self._cluster, "scheduler_address", self._cluster)
        try:
            client = Client(address, set_as_default=False, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise SiteError(
                f"no Dask scheduler answers at {address} ({error}); is it running there?",
                transient=True,
            ) from error
        return DaskSession(client, run_id, results, report, owns_client=True)


class _Ear:
    """Hands events of a topic on until its session closes.

    A client keeps the handlers of topics for good, and with them all that they refer to.
    """

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self.hear: Callable[[Any], None] | None = hear

    def __call__(self, event: Any) -> None:
        hear = self.hear
        if hear is not None:
            hear(event)


class _Asks(WorkerPlugin):
    """What jobs of a run were asked; Dask sets it up in a worker before that takes any of them.

    Parameters
    ----------
    run : str
    asks : list of (bundle and job, reason, seconds since the epoch)
        The last is when the job is stopped by force; clocks may differ by a little.
    """

    def __init__(self, run: str, asks: list[tuple[Begun, str, float]]) -> None:
        self._run, self._asks = run, asks

    def setup(self, worker: Any) -> None:
        """Keep the requests, and pass them on to jobs that run."""
        for job, reason, force_at in self._asks:
            channel.ask(self._run, [job], reason, max(0.0, force_at - time.time()))
        supervise.look()


class DaskSession:
    """One run's bundles on a Dask cluster.

    Parameters
    ----------
    cause_of : callable, optional
        Given a worker's address, tells why it died.
    on_kill : callable, optional
        Ends the workers at once, for payloads that nothing else stops.
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        results: str,
        report: Report,
        *,
        owns_client: bool = False,
        cause_of: Cause | None = None,
        on_kill: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._client, self._run, self._url, self._report = client, run_id, results, report
        self._owns, self._cause_of, self._on_kill = owns_client, cause_of, on_kill
        self._results = ResultStore(results)
        self._topic = f"pandaflow-{run_id}-{uuid.uuid4().hex[:8]}"
        self._futures: dict[int, Future[Any]] = {}
        self._keys: dict[int, Key] = {}
        self._payloads: dict[str, tuple[Key, Future[Any] | None]] = {}
        self._where: dict[int, str] = {}
        self._detached: dict[int, str] = {}
        self._stopping: dict[int, str] = {}
        self._roll = Roll()
        self._asks_known = False
        self._slots = -1
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ear = _Ear(self._hear)
        client.subscribe_topic(self._topic, self._ear)
        self._count_slots()
        self._watcher = threading.Thread(target=self._watch, name="pandaflow-slots", daemon=True)
        self._watcher.start()

    # --- the port -----------------------------------------------------------------------

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Add a slice to the graph."""
        layers: dict[Place, dict[Key, Any]] = defaultdict(dict)
        dependencies: dict[Key, Any] = {}
        for assignment in assignments:
            key = self._key(assignment)
            self._keys[assignment.emit.bundle] = key
            self._roll.add(assignment.spec)
            node = self._node(key, assignment, dependencies)
            where = self._detached.pop(assignment.emit.join or 0, "")
            place = (_rank(assignment.emit.priority), where, tuple(self._needs(assignment).items()))
            layers[place][key] = node
        wanted = [self._keys[assignment.emit.bundle] for assignment in assignments]
        fresh = [key for key, _ in self._payloads.values() if key in dependencies]
        futures = self._client.get(
            _graph(layers, dependencies), [*wanted, *fresh], sync=False, fifo_timeout=0
        )
        for assignment, future in zip(assignments, futures, strict=False):
            bundle = assignment.emit.bundle
            self._futures[bundle] = future
            future.add_done_callback(lambda done, bundle=bundle: self._done(bundle, done))
        self._keep_payloads(dict(zip(fresh, futures[len(wanted) :], strict=True)))

    def cancel(self, bundles: Sequence[int]) -> None:
        """Drop nodes that wait, stop payloads that run."""
        futures = [self._futures.pop(bundle, None) for bundle in bundles]
        self._roll.drop(bundles)
        with self._lock:
            for bundle in bundles:
                worker = self._where.pop(bundle, None)
                if worker is not None:
                    self._stopping[bundle] = worker
        if bundles and self._client.status == "running":
            self._client.run(
                cancel_on_worker, self._run, list(bundles), wait=False, on_error="ignore"
            )
            self._client.cancel([future for future in futures if future is not None], force=True)

    def stop(self, jobs: Sequence[tuple[str, int]], reason: str, grace: float) -> None:
        """Ask jobs to stop; every worker keeps it, for what it has or may get.

        Workers that join later are told too, before they begin anything.
        """
        if self._roll.ask(jobs, Ask(reason, time.monotonic() + grace)):
            self._in_loop(self._tell_all)

    def _in_loop(self, call: Callable[..., Any], *args: Any) -> None:
        """Call in the client's loop, for those who hear a job may ask from there."""
        if not self._closed.is_set() and self._client.status == "running":
            loop: Any = self._client.loop
            loop.add_callback(call, *args)

    async def _tell_all(self) -> None:
        """Tell all workers, those to come included, what is asked of the jobs that are out."""
        since = time.time() - time.monotonic()
        asks = [(job, each.reason, since + each.force_at) for job, each in self._roll.open()]
        self._asks_known = True
        try:
            await self._client.register_plugin(_Asks(self._run, asks), self._topic)
        except (OSError, TimeoutError) as error:  # a worker has gone meanwhile
            logger.debug("%s: not all workers were told: %s", self._run, error)

    async def _untell(self) -> None:
        await self._client.unregister_worker_plugin(self._topic)

    async def _tell(self, job: Begun, request: Ask, worker: str) -> None:
        """Pass a request on to one worker."""
        await self._client.run(
            stop_on_worker,
            self._run,
            [job],
            request.reason,
            max(0.0, request.force_at - time.monotonic()),
            workers=[worker],
            wait=False,
            on_error="ignore",
        )

    def release(self, bundles: Sequence[int]) -> None:
        """Let Dask forget values."""
        for bundle in bundles:
            self._futures.pop(bundle, None)
            self._keys.pop(bundle, None)

    def close(self, *, kill: bool = False) -> None:
        """End the run's use of the cluster."""
        if self._closed.is_set():
            return
        if kill:
            self.cancel(list(self._futures))
            self._wait_stopped()
        self._closed.set()
        self._client.unsubscribe_topic(self._topic)
        self._ear.hear = None
        self._futures.clear()
        self._payloads.clear()
        self._watcher.join(timeout=5)
        if self._client.status == "running":
            self._forget()
        if self._owns:
            self._client.close()

    def _forget(self) -> None:
        """Have the workers drop what they keep for the run."""
        if self._asks_known:
            with suppress(OSError, TimeoutError, LookupError, ValueError):  # workers come and go
                self._client.sync(self._untell, callback_timeout=_FORGET_S)
        self._client.run(forget_on_worker, self._run, wait=False, on_error="ignore")

    # --- graph --------------------------------------------------------------------------

    def _key(self, assignment: Assignment) -> Key:
        spec = assignment.spec
        return (f"{spec.name}-{spec.token}", spec.jobs[0], f"{self._run}/{spec.bundle}")

    def _needs(self, assignment: Assignment) -> Mapping[str, float]:
        """Return the resources of Dask that a worker must have; this cluster's have none."""
        del assignment
        return {}

    def _node(self, key: Key, assignment: Assignment, extra: dict[Key, Any]) -> Task:
        refs = [self._value_of(bundle, location, extra) for bundle, location in assignment.deps]
        payload = self._payload_of(assignment, extra)
        return Task(key, run_node, assignment.spec, self._topic, payload, *map(TaskRef, refs))

    def _value_of(self, bundle: int, location: str, extra: dict[Key, Any]) -> Key:
        """Return the key of an upstream bundle's values: in flight, in memory, or in the store."""
        if bundle in self._keys and (bundle in self._futures or self._keys[bundle] in extra):
            return self._keys[bundle]
        if not location and bundle in self._keys:
            return self._keys[bundle]  # of this very slice
        key = ("load", f"{self._run}/{bundle}")
        extra[key] = Task(key, load_node, self._url, location or self._results.place(bundle))
        return key

    def _payload_of(self, assignment: Assignment, extra: dict[Key, Any]) -> Any:
        """Return a node that holds the payload: sent once a task, moved by Dask once a worker."""
        if assignment.spec.kind == "graph":
            return assignment.code
        known = self._payloads.get(assignment.payload)
        if known is not None and known[1] is not None and known[1].status in ("error", "lost"):
            known = None
        if known is None:
            place = f"{self._run}/{assignment.payload}/{assignment.emit.bundle}"
            key: Key = (f"payload-{assignment.spec.token}", place)
            self._payloads[assignment.payload] = known = (key, None)
            extra[key] = DataNode(key, assignment.code)
        return TaskRef(known[0])

    def _keep_payloads(self, futures: Mapping[Key, Future[Any]]) -> None:
        for name, (key, kept) in list(self._payloads.items()):
            if kept is None and key in futures:
                self._payloads[name] = (key, futures[key])

    # --- reports ------------------------------------------------------------------------

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Take in what a worker says; called in the client's event loop."""
        message = event[1]
        if message["op"] == "said":
            for said in unpack_said(message):
                self._report(said)
            return
        bundle = message["bundle"]
        match message["op"]:
            case "started":
                with self._lock:
                    self._where[bundle] = message["worker"]
                # What was asked of a job that was handed back holds for its next bundle too.
                for job, request in self._roll.asked_of(bundle):
                    self._in_loop(self._tell, job, request, message["worker"])
                self._report(BundleStarted(message["at"], bundle, message["worker"]))
            case "ended":
                with self._lock:
                    self._where.pop(bundle, None)
                    self._stopping.pop(bundle, None)
                    if "detached" in message:
                        self._detached[bundle] = message["worker"]
                self._finish(unpack_ended(message))
            case "lost":
                with self._lock:
                    self._where.pop(bundle, None)
                self._roll.drop([bundle])
                worker = self._results.claimed_by(bundle)
                reason = f"its worker died{self._why(worker)}"
                lost = BundleLost(time.time(), bundle, reason, message["position"])
                self._tell_lost(lost, worker)

    def _tell_lost(self, lost: BundleLost, worker: str) -> None:
        """Report a bundle whose worker died while a job of it ran; ``worker`` is its address."""
        del worker
        self._report(lost)

    def _finish(self, ended: BundleEnded) -> None:
        self._roll.ended(ended)
        self._report(ended)

    def _done(self, bundle: int, future: Future[Any]) -> None:
        """Look at how a node ended; called in a thread of the client."""
        if self._closed.is_set() or self._futures.get(bundle) is not future:
            return
        if future.status == "finished":
            self._make_sure(bundle)
        elif future.status == "error":
            self._erred(bundle, future.exception())
        else:
            self._roll.drop([bundle])
            self._report(
                BundleLost(time.time(), bundle, "its Dask node was cancelled", None, False)
            )

    def _make_sure(self, bundle: int) -> None:
        """Report a bundle whose own report went astray, from the file that it left."""
        with self._lock:
            if bundle not in self._where:
                return
        time.sleep(0.05)
        with self._lock:
            astray = self._where.pop(bundle, None) is not None
        location = self._results.find(bundle) if astray else None
        if location is not None:
            self._finish(unpack_ended(self._results.header(location)["report"]))

    def _erred(self, bundle: int, error: BaseException | None) -> None:
        with self._lock:
            self._where.pop(bundle, None)
        self._roll.drop([bundle])
        location = self._results.find(bundle)
        if location is not None:
            try:
                self._report(unpack_ended(self._results.header(location)["report"]))
            except DataError as unreadable:
                self._report(BundleLost(time.time(), bundle, str(unreadable)))
            return
        position = self._results.claimed_position(bundle)
        infrastructure = isinstance(error, KilledWorker | FutureCancelledError | BundleAbandoned)
        charged = position is not None or not infrastructure
        worker = self._results.claimed_by(bundle)
        lost = BundleLost(time.time(), bundle, self._reason(error, worker), position, charged)
        if infrastructure:
            self._tell_lost(lost, worker)
        else:
            self._report(lost)

    def _reason(self, error: BaseException | None, worker: str) -> str:
        if isinstance(error, KilledWorker | BundleAbandoned):
            return f"its worker died{self._why(worker)}"
        if isinstance(error, FutureCancelledError):
            return "its Dask node was cancelled"
        return f"its Dask node failed: {type(error).__name__}: {error}"

    def _why(self, worker: str) -> str:
        why = self._cause_of(worker) if self._cause_of is not None and worker else ""
        return f" ({why})" if why else ""

    # --- workers ------------------------------------------------------------------------

    def _count_slots(self) -> None:
        workers = self._client.scheduler_info(n_workers=-1).get("workers")
        if workers is None:  # the client is being closed
            return
        slots = sum(worker["nthreads"] for worker in workers.values())
        if slots != self._slots:
            self._slots = slots
            reason = "" if slots else "the Dask cluster has no workers"
            self._report(SlotsChanged(time.time(), "", slots, reason))

    def _watch(self) -> None:
        while not self._closed.wait(_WATCH_S):
            if self._client.status == "running":
                self._count_slots()

    def _wait_stopped(self) -> None:
        deadline = time.monotonic() + _CANCEL_S
        while self._stopping and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._stopping and self._on_kill is not None:
            self._on_kill(sorted(set(self._stopping.values())))


def _graph(layers: Mapping[Place, Mapping[Key, Any]], extra: Mapping[Key, Any]) -> HighLevelGraph:
    """Put nodes of one priority and place into one layer, so that these are said once."""
    parts: dict[str, Any] = {}
    for number, ((priority, worker, needs), nodes) in enumerate(layers.items()):
        annotations: dict[str, Any] = {"priority": priority}
        if needs:
            annotations["resources"] = dict(needs)
        if worker:
            # Elsewhere only if that worker is gone; there the job is reported as lost.
            annotations |= {"workers": [worker], "allow_other_workers": True}
        parts[f"slice-{number}"] = MaterializedLayer(dict(nodes), annotations=annotations)
    if extra:
        parts["inputs"] = MaterializedLayer(dict(extra), annotations={"priority": 10**12})
    return HighLevelGraph(parts, {name: set() for name in parts})


def _rank(priority: Iterable[int]) -> int:
    """Fold (task priority, depth, urgency) into Dask's one number, larger first."""
    task, depth, urgency = priority
    return (task * 10**4 + min(depth, 10**4 - 1)) * 10**8 + urgency
