"""One run's use of Globus Compute: a thread that sends bundles, hears results, watches endpoints.

Rule 1: one thread does everything; the port's methods, the SDK's futures and the poller leave it
orders.
Rule 2: the first reply of a bundle counts. The service or the SDK may have handed it out twice.
Rule 3: values are on the driver's disk before a bundle is reported as ended.
Rule 4: the service cannot cancel tasks. Marks, in the ``data`` store or in a folder of the
endpoint, stop bundles; those that have not begun see their mark before they begin.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from pandaflow.core.events import SlotsChanged
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus import watch
from pandaflow.executors.globus.flights import Account, Facts, Flight, Place, reasons
from pandaflow.executors.globus.functions import Registry, beside
from pandaflow.executors.globus.hearing import Hearing
from pandaflow.executors.globus.journal import Journal
from pandaflow.executors.globus.link import Link
from pandaflow.executors.globus.sender import Sender, task_of
from pandaflow.executors.globus.settings import GlobusSettings
from pandaflow.executors.orders import Orders
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.account import refused
from pandaflow.executors.remote.worker import begun_mark, stop_mark
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Seconds to wait at the end for bundles that were told to stop.
GONE_S = 30.0
#: Seconds between looks for marks: in a folder, and in a remote store.
_MARKS_S = (0.1, 5.0)
#: Seconds until results that were not heard of are asked for again.
_RELOAD_S = 5.0


class GlobusSession:
    """One run's bundles on endpoints.

    Parameters
    ----------
    settings : GlobusSettings
    client : globus_compute_sdk.Client
        Signed in.
    facts : dict of (str, str) to Facts
        What earlier sessions have learned of endpoints; this one adds to it.
    run_id : str
    results : str
        Folder or URL of the run.
    report : callable
        Gets the events.

    Raises
    ------
    SiteError
        An endpoint is not known, or refuses this identity; or the service does not answer.
    """

    def __init__(
        self,
        settings: GlobusSettings,
        client: Any,
        facts: dict[tuple[str, str], Facts],
        run_id: str,
        results: str,
        report: Report,
    ) -> None:
        self._settings, self._run, self._facts = settings, run_id, facts
        self._results = store = ResultStore(results)
        self._journal = Journal(store)
        self._link = Link(client, self._journal.group)
        places = [Place(endpoint, settings.heartbeat) for endpoint in settings.endpoints]
        self._account = Account(run_id, store, places, report)
        for place in places:
            place.online = self._link.check(place.endpoint).online
            self._learn(place, facts.get(place.endpoint.key))
        registry = Registry(self._link.address, self._link.register, beside(store))
        self._sender = Sender(self._account, self._link, registry, settings, run_id)
        self._hearing = Hearing(self._account, settings, self._stop_flight)
        self._poller = ThreadPoolExecutor(1, thread_name_prefix="pandaflow-globus-poll")
        self._polling = False
        self._poll_at, self._marks_at, self._reload_at = 0.0, 0.0, float("inf")
        self._by_task: dict[str, tuple[Flight, int]] = {}
        self._account.show(reasons(self._account.places, time.monotonic()))
        report(self._account.state())
        self._orders = Orders(
            run_id,
            "Globus Compute",
            wait=self._wait,
            carry_out=self._carry_out,
            turn=self._turn,
            leave=self._leave,
            give_up=self._give_up,
        )
        self._orders.start()

    # --- the port -----------------------------------------------------------------------

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Take bundles in."""
        self._orders.submit(assignments)

    def adopt(self, bundles: Sequence[int]) -> set[int]:
        """Go on with those of these bundles that the service has accepted from an earlier session.

        Results that came meanwhile are collected. What else the earlier session left is told to
        stop.
        """
        adopted: set[int] = self._orders.ask("adopt", set(bundles))
        return adopted

    def cancel(self, bundles: Sequence[int]) -> None:
        """Drop bundles that wait, stop those that run."""
        self._orders.put("cancel", list(bundles))

    def release(self, bundles: Sequence[int]) -> None:
        """Do nothing: no values are kept in memory."""

    def close(self, *, kill: bool = False) -> None:
        """Stop all that is left, and wait until it has ended, for a while."""
        self._orders.close()
        self._poller.shutdown(wait=False, cancel_futures=True)
        self._link.close()

    # --- the thread ---------------------------------------------------------------------

    def _give_up(self, reason: str, untaken: Sequence[Assignment]) -> None:
        self._account.report(SlotsChanged(time.time(), "", 0, reason))
        for flight in list(self._account.flights.values()):
            self._account.tell(refused(flight.spec, reason))
        for given in untaken:
            self._account.report(refused(given.spec, reason))

    def _wait(self) -> float:
        """Return the seconds until something is due."""
        now = time.monotonic()
        due = [now + 60.0, self._sender.due(), self._reload_at]
        if self._looking():
            due.append(now + 60.0 if self._polling else self._poll_at)
        if self._watched():
            due.append(self._marks_at)
        return max(0.0, min(due) - now)

    def _carry_out(self, kind: str, what: Any) -> Any:
        match kind:
            case "submit":
                self._sender.gather()
                self._account.take_in([Flight(given.spec, given) for given in what])
            case "adopt":
                return self._adopt(what)
            case "cancel":
                self._stop(self._account.drop(what))
            case "done":
                self._done(*what)
            case "probed":
                self._probed(*what)
            case "answered":
                what.answered = time.monotonic()
            case "polled":
                self._polled(what)
            case "reloaded":
                self._reloaded(what)
        return None

    def _turn(self) -> None:
        now = time.monotonic()
        if self._watched() and now >= self._marks_at:
            self._look_for_marks(now)
        self._probe_where_needed(now)
        self._wake_where_needed(now)
        self._accept(self._sender.turn())
        if now >= self._reload_at:
            self._reload_at = float("inf")  # the answer comes, and may take long: it is large
            self._in_background("reloaded", self._link.reload)
        if self._looking() and now >= self._poll_at and not self._polling:
            self._poll_at = now + self._settings.poll_seconds
            self._poll()
        for flight in watch.overdue(self._account, self._settings, now):
            self._stop_flight(flight)
            self._account.lose(flight, "it did not come back in time")
        self._show(now)

    def _show(self, now: float) -> None:
        """Say why nothing goes; a failed submission says so by itself."""
        held = reasons(self._account.places, now)
        submitting = self._account.trouble.startswith("nothing can be submitted")
        if held or not submitting:
            self._account.show(held)

    # --- what was accepted --------------------------------------------------------------

    def _accept(self, sent: Sequence[tuple[Flight | None, int, Future[Any]]]) -> None:
        """Note what the service has accepted, and listen for its results."""
        flights = {f for f, _, future in sent if f is not None and future in f.futures}
        self._note([f for f in flights if f.tasks])
        if sent and self._account.trouble.startswith("nothing can be submitted"):
            self._account.show("")
        for flight, at, future in sent:
            if flight is not None and future in flight.futures:
                self._by_task[task_of(future)] = (flight, at)
                self._listen(flight, at, future)

    def _note(self, flights: Sequence[Flight] = ()) -> None:
        try:
            self._journal.note(self._link.group, flights)
            self._journal.note_user_endpoints(self._account.places.values())
        except OSError as error:  # only the next driver would miss it
            logger.warning("%s: the journal cannot be written: %s", self._run, error)

    def _listen(self, flight: Flight, at: int, future: Future[Any]) -> None:
        future.add_done_callback(lambda done: self._orders.put("done", (flight, at, done)))

    def _done(self, flight: Flight, at: int, future: Future[Any]) -> None:
        """A call has ended, or the SDK will not tell how it does."""
        error = Forsaken() if future.cancelled() else future.exception(timeout=0)
        if error is None:
            self._heard(flight, at, future.result())
        elif self._hearing.failed(flight, error) == "unheard":
            self._reload_at = min(self._reload_at, time.monotonic() + _RELOAD_S)
        self._forget_ended(flight)

    def _heard(self, flight: Flight, at: int, result: Any) -> None:
        known = len(self._account.flights)
        self._hearing.heard(flight, at, result)
        if len(self._account.flights) < known:
            self._sender.gather()

    def _forget_ended(self, flight: Flight) -> None:
        if all(future.done() for future in flight.futures):
            self._account.stopping.discard(flight)
        if flight.gone:
            for task in flight.tasks:
                self._by_task.pop(task, None)

    # --- probes -------------------------------------------------------------------------

    def _probe_where_needed(self, now: float) -> None:
        wanted = any(f.ready and f.spec.kind != "command" for f in self._account.flights.values())
        for place in self._account.places.values() if wanted else ():
            if place.facts is None and place.takes(now) and watch.probe_due(place, now):
                future = self._sender.probe(place)
                future.add_done_callback(partial(self._on_probe, place))

    def _on_probe(self, place: Place, future: Future[Any]) -> None:
        self._orders.put("probed", (place, future))

    def _probed(self, place: Place, future: Future[Any]) -> None:
        sent, place.probed = place.probed, float("inf")
        error = future.exception(timeout=0)
        if error is not None:
            self._hearing.probe_failed(place, error)
            return
        place.seen = max(place.seen, sent)
        facts = watch.facts_of(future.result())
        self._facts[place.endpoint.key] = facts
        self._learn(place, facts)

    def _learn(self, place: Place, facts: Facts | None) -> None:
        if facts is not None:
            place.facts, place.refuses = facts, watch.mismatch(facts, place.name)
            place.foreign = watch.foreign(facts, place.name)

    def _wake_where_needed(self, now: float) -> None:
        """Start user endpoints that died while jobs were in their queue."""
        for place in watch.asleep(self._account, now):
            future = self._sender.wake(place)
            future.add_done_callback(partial(self._on_answer, place))

    def _on_answer(self, place: Place, future: Future[Any]) -> None:
        if future.exception(timeout=0) is None:
            self._orders.put("answered", place)

    # --- looking ------------------------------------------------------------------------

    def _looking(self) -> bool:
        """Whether the state of endpoints matters: one has work, or may come back."""
        account = self._account
        away = any(not place.online for place in account.places.values())
        return bool(account.flights or account.stopping or away)

    def _watched(self) -> bool:
        """Whether marks tell that bundles have begun, and some have not."""
        return bool(self._settings.data) and any(
            flight.tasks and not flight.begun for flight in self._account.flights.values()
        )

    def _look_for_marks(self, now: float) -> None:
        board = self._sender.board
        self._marks_at = now + _MARKS_S[wire.local_path(board) is None]
        with suppress(OSError):
            there = wire.names(board)
            for flight in list(self._account.flights.values()):
                name = begun_mark("", flight.number)[1:]
                if flight.tasks and not flight.begun and name in there:
                    self._account.begun(flight, watch.begun_at(f"{board}/{name}"))

    def _poll(self) -> None:
        self._polling = True
        question = watch.question(self._account, time.monotonic())
        self._in_background("polled", lambda: watch.ask(self._link, question))

    def _polled(self, answer: Any) -> None:
        self._polling = False
        if isinstance(answer, BaseException):
            logger.info("%s: endpoints cannot be looked at: %s", self._run, answer)
            return
        now = time.monotonic()
        lost = list(watch.judge(self._account, answer, now))
        self._note()
        # The broker hands what was not acknowledged to the next user endpoint.
        self._stop([flight for flight, _ in lost])
        for flight, reason in lost:
            self._account.lose(flight, reason)
        for task, state in answer.tasks.items():
            if task in self._by_task:
                flight, at = self._by_task[task]
                if not state.pending and state.result is not None:
                    self._heard(flight, at, state.result)
                elif watch.runs(state):
                    self._account.begun(flight, time.time())

    def _in_background(self, kind: str, call: Callable[[], Any]) -> None:
        """Ask the service something; the answer, or its refusal, is an order."""

        def ask() -> None:
            try:
                answer = call()
            except BaseException as error:  # noqa: BLE001 - of the SDK, globus_sdk, requests, pika
                answer = error
            self._orders.put(kind, answer)

        self._poller.submit(ask)

    # --- stopping -----------------------------------------------------------------------

    def _stop(self, flights: Sequence[Flight]) -> None:
        """Leave marks for bundles: none begins after, and those that run see theirs soon."""
        by_place: dict[str, list[int]] = {}
        for flight in flights:
            board = self._sender.board if flight.commands is None else self._sender.shell_board
            if self._settings.data and not board.startswith("~"):
                with suppress(OSError):
                    wire.write(stop_mark(board, flight.number), b"")
            elif flight.place is not None:
                by_place.setdefault(flight.place.name, []).append(flight.number)
        for name, numbers in by_place.items():
            self._sender.stop(self._account.places[name], numbers)

    def _stop_flight(self, flight: Flight) -> None:
        self._stop([flight])

    def _leave(self) -> None:
        """Stop what is left, and wait until it has ended, for a while."""
        self._stop(self._account.drop(list(self._account.flights)))
        deadline = time.monotonic() + GONE_S
        stopping = self._account.stopping
        while stopping and time.monotonic() < deadline:
            self._orders.obey(0.02)
            self._accept(self._sender.turn())
            for flight in list(stopping):
                if flight.futures and all(future.done() for future in flight.futures):
                    stopping.discard(flight)
        if stopping:
            told = f"{len(stopping)} bundles at endpoints do not react, and may go on"
            logger.warning("%s: %s", self._run, told)
        elif self._settings.data:
            with suppress(OSError):
                wire.remove(f"{self._settings.data}/{self._run}")

    # --- going on with an earlier session -----------------------------------------------

    def _adopt(self, wanted: set[int]) -> set[int]:
        entries, self._journal.entries = self._journal.entries, {}
        known, first = self._journal.user_endpoints, next(iter(self._account.places.values()))
        left: list[Flight] = []
        for number, entry in entries.items():
            place = self._account.places.get(entry.place, first)
            flight = Flight(entry.spec, commands=entry.commands, place=place)
            flight.tasks, flight.sent = list(entry.tasks), time.monotonic()
            # What the earlier session has sent was taken out of the queue long ago.
            place.user_endpoint = place.user_endpoint or known.get(place.name, "")
            place.seen = math.nextafter(flight.sent, math.inf)
            if number in wanted:
                self._account.flights[number] = flight
                self._by_task |= {t: (flight, at) for at, t in enumerate(entry.tasks)}
            elif self._results.find(number) is None:
                left.append(flight)
        if self._account.flights:
            self._reload_at = 0.0
        if self._settings.data:  # else it would take a worker at each endpoint to say so
            self._stop(left)
        return set(self._account.flights)

    def _reloaded(self, answer: Any) -> None:
        if isinstance(answer, BaseException):
            self._account.show(f"results cannot be asked for: {answer}")
            self._reload_at = time.monotonic() + _RELOAD_S
            return
        self._take_up(answer)

    def _take_up(self, futures: Sequence[Future[Any]]) -> None:
        """Listen to tasks again; what the service does not know any more is lost."""
        found: Mapping[str, Future[Any]] = {task_of(future): future for future in futures}
        for task, (flight, at) in list(self._by_task.items()):
            if flight.gone:
                continue
            if task in found:
                flight.futures.append(found[task])
                self._listen(flight, at, found[task])
            elif all(future.done() for future in flight.futures if task_of(future) == task):
                self._account.lose(flight, "the service does not know it any more")


class Forsaken(Exception):
    """The SDK gave up a future: nothing is known of its task."""

    def __init__(self) -> None:
        super().__init__("the SDK gave up waiting for it")
