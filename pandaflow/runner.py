"""The one loop: ports -> events -> engine -> one transaction -> dispatch.

Everything that happens to a run passes through :meth:`Runner.drive`, in this order: reports and
wishes are gathered from the queue; the engine draws its conclusions; its records are committed
in one transaction; only then are its actions carried out. Whatever kills this process, the store
holds what was committed, and :func:`~pandaflow.restore.restore` goes on from there.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.engine import Engine
from pandaflow.core.errors import (
    DataError,
    PandaflowError,
    RunLocked,
    SiteError,
    StoreError,
    StoreUnavailable,
    WorkflowError,
)
from pandaflow.core.growth import all_tasks
from pandaflow.core.slices import bundle_spec
from pandaflow.core.status import RUN_TERMINAL, RunStatus
from pandaflow.core.steering import changed
from pandaflow.data import plain
from pandaflow.data.items import StoredItems
from pandaflow.data.results import ResultStore
from pandaflow.executors.outcome import parse_ended
from pandaflow.offers import check_executors
from pandaflow.pacing import Reasons
from pandaflow.ports import (
    Adopting,
    Assignment,
    Channel,
    Executor,
    Lasting,
    Owner,
    Request,
    RunState,
    Session,
    StateStore,
)
from pandaflow.restore import restore
from pandaflow.wishes import wish

logger = logging.getLogger("pandaflow.runner")

#: Seconds between looks into the run's inbox, and extensions of the lease.
_RENEW_S = 0.25
#: Seconds that mere starts and placements may wait for others to be committed with.
_GROUP_S = 0.04
#: Seconds that a store may be away before its driver gives up.
_STORE_S = 120.0
#: Seconds a lease holds when its owner falls silent.
LEASE_S = 20.0

#: Nothing follows from these, so they are committed in groups.
_CALM = (ev.BundleStarted, ev.BundlePlaced)

T = TypeVar("T")
Callback = Callable[[Sequence[cmd.Record]], None]
Listener = Callable[[ev.JobSaid, str], None]


class Runner:
    """Drives one run.

    Parameters
    ----------
    store : StateStore
    run_id : str
    executors : mapping of str to Executor
        The first is the default.
    owner : Owner
        This process.
    callbacks : sequence of callables
        Called with the records of each step after they were committed; an error in one is
        logged and does not touch the run.
    listeners : sequence of callables
        Called with what running jobs send and the name of their task, in the thread that
        reports it, so they must not wait. The sequence may grow while the run goes on.
    lease : float
        Seconds that the lease holds without a sign of life.
    lasting : bool
        What runs where it can go on alone is left to the next driver if this one stops or fails.
    """

    def __init__(
        self,
        store: StateStore,
        run_id: str,
        executors: Mapping[str, Executor],
        owner: Owner,
        *,
        callbacks: Sequence[Callback] = (),
        listeners: Sequence[Listener] = (),
        lease: float = LEASE_S,
        lasting: bool = False,
    ) -> None:
        self._driver = store.drive(run_id, owner, lease)
        self._run, self._executors = run_id, executors
        self._callbacks, self.listeners = list(callbacks), listeners
        self._queue: queue.SimpleQueue[ev.Event | None] = queue.SimpleQueue()
        self._sessions: dict[str, Session] = {}
        self._stop = threading.Event()
        self._done: list[int] = []
        self._wake_at = float("inf")
        self._renewed = 0.0
        self._running = 0
        #: Whether sessions leave what they began to the next driver.
        self._lasting, self._leaves = lasting, lasting
        self._known_slots: dict[str, int] = {}
        self._reasons = Reasons()
        #: Wishes among the events of the coming step, and those of which nothing can come.
        self._wishes: list[tuple[ev.Event, Request]] = []
        self._refusals: list[cmd.RequestRefused] = []

    # --- the loop -----------------------------------------------------------------------

    def drive(self) -> RunStatus:
        """Drive the run until it ends or :meth:`stop` is called; return its status.

        Raises
        ------
        PandaflowError
            The store or an executor failed; the run stays as committed and can be resumed.
        """
        kill = True
        try:
            engine = self._load()
            self._open_sessions({task.spec.executor for task in engine.tasks.values()})
            self._step(engine, [ev.RunStarted(time.time(), self._slots()), *self._adopt(engine)])
            self._step(engine, self._inbox(engine))  # a wish may bring an ended run back
            while engine.status not in RUN_TERMINAL and not self._stop.is_set():
                self._step(engine, self._gather(engine))
            kill = bool(engine.bundles_in_flight()) or engine.status is not RunStatus.DONE
            self._leaves = self._lasting and engine.status not in RUN_TERMINAL
            return engine.status
        except RunLocked:
            self._leaves = True  # what runs is another driver's by now
            raise
        finally:
            self._close(kill)

    def settle(self) -> None:
        """Carry out the wishes that wait, without running anything, and give the run back."""
        try:
            engine = self._load()
            self._step(engine, [ev.RunStarted(time.time()), *self._adopt(engine)])
            events = self._inbox(engine)
            self._step(engine, events)
        finally:
            self._close(kill=False)

    def usage(self) -> tuple[int, int]:
        """Return slots known, and bundles that run in them. Thread-safe."""
        slots = sum(self._known_slots.values())
        return slots, min(slots, self._running)

    def stop(self) -> None:
        """Make :meth:`drive` return soon, leaving the run to be resumed. Thread-safe."""
        self._stop.set()
        self._queue.put(None)

    def stop_jobs(self, task: str, jobs: Sequence[int], reason: str, grace: float) -> bool:
        """Ask jobs that run to stop; False if no executor can reach them. Thread-safe."""
        named = [(task, job) for job in jobs]
        open_now = list(self._sessions.values())
        reached = [session for session in open_now if isinstance(session, Channel)]
        for session in reached:
            session.stop(named, reason, grace)
        return bool(reached)

    def wake(self) -> None:
        """Look into the inbox now. Thread-safe."""
        self._renewed = 0.0
        self._queue.put(None)

    def _step(self, engine: Engine, events: Sequence[ev.Event]) -> None:
        """Handle events: conclude, commit, carry out."""
        if not events and not self._done:
            return
        records, actions = _divide(engine.handle(events))
        records += self._refused(engine)
        self._running = sum(bundle.started for bundle in engine.bundles_in_flight())
        # Stopping needs no record to be safe, and people wait for it.
        self._cancel([action for action in actions if isinstance(action, cmd.CancelBundle)])
        if records or self._done:
            done = self._done
            self._patiently(lambda: self._driver.commit(records, done))
            self._done = []
        for record in records:
            if isinstance(record, cmd.TaskAdded) and record.spec.brings is not None:
                self._items.add(record.spec.brings.sources)
        self._carry_out(engine, actions)
        for callback in self._callbacks:
            self._call(callback, records)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do something with the store; wait for it while it may come back.

        What runs goes on meanwhile, and its reports wait in the queue.
        """
        deadline = time.monotonic() + _STORE_S
        while True:
            try:
                return work()
            except StoreUnavailable as error:
                if time.monotonic() > deadline or self._stop.is_set():
                    raise
                logger.warning("%s: waiting for the store: %s", self._run, error)
                self._stop.wait(0.5)

    def _call(self, callback: Callback, records: Sequence[cmd.Record]) -> None:
        try:
            callback(records)
        except Exception:  # a user's hook may raise anything; the run goes on
            logger.exception("%s: a callback failed", self._run)

    def _gather(self, engine: Engine) -> list[ev.Event]:
        """Wait for something to happen; return all that has."""
        now = time.time()
        if now - self._renewed > _RENEW_S:
            events = self._inbox(engine)
            if events:
                return events
        events = []
        timeout = max(0.0, min(self._renewed + _RENEW_S, self._wake_at) - time.time())
        try:
            first = self._queue.get(timeout=timeout)
            if first is not None:
                events.append(first)
            patience = time.time() + _GROUP_S
            while True:
                calm = events and all(isinstance(event, _CALM) for event in events)
                event = self._queue.get(timeout=max(0.0, patience - time.time()) if calm else 0)
                if event is None:
                    break
                events.append(event)
        except queue.Empty:
            pass
        if time.time() >= self._wake_at:
            self._wake_at = float("inf")
            events.append(ev.Ticked(time.time()))
        return events + self._reasons.due(time.time())

    # --- beginning and end --------------------------------------------------------------

    def _load(self) -> Engine:
        state = self._driver.load()
        self._results = ResultStore(state.results)
        self._code = lru_cache(maxsize=64)(self._results.get)
        engine = Engine(state.spec) if _is_new(state) else restore(state)
        sources = {source.id: source for source in engine.spec.sources}
        self._items = StoredItems(sources, self._results)
        if self._executors:
            bodies = [task for loop in engine.spec.loops for task in all_tasks(loop)]
            tasks = [*(task.spec for task in engine.tasks.values()), *bodies]
            check_executors(tasks, self._executors)
        return engine

    def _open_sessions(self, wanted: Set[str | None]) -> None:
        default = next(iter(self._executors))
        for name, executor in self._executors.items():
            if (name in wanted or name == default) and name not in self._sessions:
                report = self._reporter(name)
                self._sessions[name] = executor.open(self._run, self._results.url, report)

    def _reporter(self, name: str) -> Callable[[ev.Event], None]:
        def report(event: ev.Event) -> None:
            if isinstance(event, ev.JobSaid):
                return self._pass_on(event)
            if isinstance(event, ev.SlotsChanged):
                self._known_slots[name] = event.slots
                told = self._reasons.take(replace(event, executor=name))
                return None if told is None else self._queue.put(told)
            return self._queue.put(event)

        return report

    def _pass_on(self, said: ev.JobSaid) -> None:
        for listener in tuple(self.listeners):
            try:
                listener(said, said.task)
            except Exception:  # a listener may raise anything; the run goes on
                logger.exception("%s: a listener failed", self._run)

    def _slots(self) -> dict[str, int]:
        return {name: self._known_slots.get(name, 0) for name in self._executors}

    def _adopt(self, engine: Engine) -> list[ev.Event]:
        """Settle what was in flight when the last driver ended, but for what goes on."""
        now, events = time.time(), []
        kept = self._kept(engine)
        for bundle in engine.bundles_in_flight():
            event = self._end_of(bundle.id, len(bundle.jobs))
            if event is None and bundle.id not in kept:
                event = ev.BundleLost(now, bundle.id, "its driver ended", None, charged=False)
            if event is not None:
                events.append(event)
        return events

    def _kept(self, engine: Engine) -> set[int]:
        """Return the bundles that sessions have taken over from the last driver's."""
        flying: dict[str, list[int]] = {}
        for bundle in engine.bundles_in_flight():
            flying.setdefault(bundle.executor, []).append(bundle.id)
        kept: set[int] = set()
        for name, session in self._sessions.items():
            if isinstance(session, Adopting):
                kept |= session.adopt(flying.get(name, []))
        return kept

    def _end_of(self, bundle: int, size: int) -> ev.Event | None:
        """Return how a bundle ended, if it left its values."""
        location = self._results.find(bundle)
        if location is None:
            return None
        try:
            event = parse_ended(self._results.header(location).get("report", {}), bundle, size)
        except DataError as error:
            logger.warning("%s: %s", self._run, error)
            return None
        # One that left something running or undone is begun again as a whole.
        return event if event.detached is None else None

    def _close(self, kill: bool) -> None:
        errors: list[Exception] = []
        for session in self._sessions.values():
            try:
                if self._leaves and isinstance(session, Lasting):
                    session.leave()
                else:
                    session.close(kill=kill)
            except (PandaflowError, OSError, RuntimeError) as error:
                errors.append(error)
        try:
            self._driver.release()
        except StoreError as error:
            errors.append(error)
        for problem in errors:
            logger.warning("%s: while closing an executor: %s", self._run, problem)

    # --- actions ------------------------------------------------------------------------

    def _cancel(self, actions: Sequence[cmd.CancelBundle]) -> None:
        by_executor: dict[str, list[int]] = {}
        for action in actions:
            by_executor.setdefault(action.executor, []).append(action.bundle)
        for name, bundles in by_executor.items():
            if name in self._sessions:
                self._sessions[name].cancel(bundles)

    def _carry_out(self, engine: Engine, actions: Sequence[cmd.Action]) -> None:
        slices: dict[str, list[Assignment]] = {}
        released: list[int] = []
        for action in actions:
            match action:
                case cmd.EmitBundle():
                    self._prepare(engine, action, slices)
                case cmd.ReleaseBundle(bundle=bundle):
                    released.append(bundle)
                case cmd.WakeAt(at=at):
                    self._wake_at = min(self._wake_at, at)
        for name, assignments in slices.items():
            self._submit(name, assignments)
        if released:
            for session in self._sessions.values():
                session.release(released)

    def _prepare(
        self, engine: Engine, emit: cmd.EmitBundle, slices: dict[str, list[Assignment]]
    ) -> None:
        if engine.in_flight(emit.bundle):  # else: taken back in this very step
            try:
                assignment = self._assignment(engine, emit)
            except DataError as error:
                self._queue.put(ev.BundleLost(time.time(), emit.bundle, str(error)))
                return
            slices.setdefault(emit.executor, []).append(assignment)

    def _assignment(self, engine: Engine, emit: cmd.EmitBundle) -> Assignment:
        spec = bundle_spec(engine, emit, self._items, run=self._run, results=self._results.url)
        payload = engine.tasks[emit.task].spec.payload
        code = self._code(payload)
        if spec.kind == "graph":
            frames = _frames(code)
            code = pickle.dumps({job: frames[job] for job in emit.jobs})
        deps = tuple((need, self._location(engine, need)) for need in emit.needs)
        return Assignment(emit, spec, payload, code, deps)

    def _location(self, engine: Engine, bundle: int) -> str:
        return "" if engine.in_flight(bundle) else self._results.place(bundle)

    def _submit(self, name: str, assignments: list[Assignment]) -> None:
        try:
            self._sessions[name].submit(assignments)
        except SiteError as error:
            if not error.transient:
                raise
            for assignment in assignments:
                lost = ev.BundleLost(time.time(), assignment.emit.bundle, str(error), None, False)
                self._queue.put(lost)

    # --- the inbox ----------------------------------------------------------------------

    def _inbox(self, engine: Engine) -> list[ev.Event]:
        self._renewed = time.time()
        events: list[ev.Event] = []
        for request in self._patiently(self._driver.renew):
            if request.id in self._done:
                continue
            self._done.append(request.id)
            try:
                event = self._wish(engine, request)
            except (WorkflowError, KeyError, TypeError, ValueError) as error:
                self._refuse(request, str(error))
            else:
                events.append(event)
                self._wishes.append((event, request))
        if self._done and not events:
            self._step(engine, [ev.Ticked(time.time())])
        return events

    def _wish(self, engine: Engine, request: Request) -> ev.Event:
        event = wish(engine, request.kind, request.body, time.time())
        if isinstance(event, ev.FragmentAppended) and self._executors:
            tasks = list(all_tasks(event.fragment))
            check_executors(tasks, self._executors)
            self._open_sessions({task.executor for task in tasks})
        if isinstance(event, ev.RetryRequested) and event.changes and self._executors:
            specs = [changed(spec, event.changes) for spec in engine.to_change(event)]
            check_executors(specs, self._executors)
            self._open_sessions({spec.executor for spec in specs})
        return event

    def _refuse(self, request: Request, reason: str) -> None:
        logger.warning("%s: request %s refused: %s", self._run, request.kind, reason)
        by = str(request.body.get("by", ""))
        self._refusals.append(cmd.RequestRefused(time.time(), request.id, request.kind, reason, by))

    def _refused(self, engine: Engine) -> list[cmd.RequestRefused]:
        """Return the refusals of the step's wishes, the engine's own included."""
        for event, reason in engine.refused:
            for wished, request in self._wishes:
                if wished is event:
                    self._refuse(request, reason)
        refusals, self._refusals, self._wishes = self._refusals, [], []
        return refusals


def _is_new(state: RunState) -> bool:
    return state.status == RunStatus.DEFINED and not state.bundles


def _divide(commands: Sequence[cmd.Command]) -> tuple[list[cmd.Record], list[cmd.Action]]:
    records: list[cmd.Record] = []
    actions: list[cmd.Action] = []
    for command in commands:
        if isinstance(command, cmd.EmitBundle | cmd.CancelBundle | cmd.ReleaseBundle | cmd.WakeAt):
            actions.append(command)
        else:
            records.append(command)
    return records, actions


@lru_cache(maxsize=8)
def _frames(code: bytes) -> list[bytes]:
    return plain.frames(code)
