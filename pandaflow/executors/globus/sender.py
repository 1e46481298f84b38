"""Sending bundles: what they are sent as, which go together, to which endpoint; and refusals.

One request is on its way at a time, and the next goes when the service has answered it. So none
grows above the limit by what the SDK would add, and what is refused is known exactly.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from pandaflow.core import brokerage
from pandaflow.core.errors import DataError, PandaflowError, SiteError, WorkflowError
from pandaflow.core.events import BundlePlaced
from pandaflow.executors.command import parse_command
from pandaflow.executors.globus import coalesce, shell
from pandaflow.executors.globus.flights import (
    BACK_OFF_S,
    Account,
    Commands,
    Flight,
    Place,
    cores_of,
)
from pandaflow.executors.globus.functions import (
    CARRIED,
    Function,
    Registry,
    bundle_function,
    has_byte_code,
    probe_function,
    shell_function,
)
from pandaflow.executors.globus.link import FINAL, Call, Link, http_status, short, specification
from pandaflow.executors.globus.settings import GlobusSettings
from pandaflow.executors.outcome import JobFailed
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.account import refused
from pandaflow.executors.template import load_payload
from pandaflow.ports import Assignment

#: Seconds that bundles are collected for before a request is made.
_GATHER_S = 0.05
#: Bundles that an endpoint gets ahead, for each of its slots: a request takes seconds.
_AHEAD = 3
#: Bytes of a command's result besides what it prints: the rest of the SDK's dictionary.
_SHELL_ROOM = 4_096
#: Seconds after a walltime at which a shell function itself gives up its script.
_NET_S = 60.0
#: Seconds that shell functions of our own may take.
_OWN_S = 60.0
#: The SDK may make two requests of what it is handed at once.
_SPLIT = 2

#: Bundle or None (a call of our own), number of the call, the call's future.
Sent: TypeAlias = tuple[Flight | None, int, Future[Any]]


@dataclass(slots=True)
class Outgoing:
    """A request on its way."""

    place: Place
    sent: list[Sent]
    at: float

    @property
    def flights(self) -> list[Flight]:
        """Its bundles."""
        return list(dict.fromkeys(flight for flight, _, _ in self.sent if flight is not None))


class _Deal:
    """Bundles dealt out to endpoints, before the first of them is sent.

    Attributes
    ----------
    loads : dict of str to Load
        As if what was given were there.
    reasons : dict of int to str
        Why bundles go where they go.
    """

    def __init__(self, account: Account) -> None:
        self.loads, self.reasons = account.loads(), dict[int, str]()
        self._places = account.places
        self._busy: Counter[str] = Counter()
        for flight in account.flights.values():
            if flight.place is not None:
                self._busy[flight.place.name] += cores_of(flight.spec)

    @property
    def full(self) -> bool:
        """Whether no endpoint has room for anything."""
        places = self._places.values()
        return all(self._busy[place.name] >= _AHEAD * place.endpoint.slots for place in places)

    def room(self, place: Place, flight: Flight) -> bool:
        """Whether an endpoint has room for a bundle; what is too large goes alone."""
        busy = self._busy[place.name]
        return not busy or busy + cores_of(flight.spec) <= _AHEAD * place.endpoint.slots

    def give(self, place: Place, flight: Flight, reason: str) -> None:
        """Count a bundle in."""
        self._busy[place.name] += cores_of(flight.spec)
        load = self.loads[place.name]
        self.loads[place.name] = replace(load, waiting=load.waiting + 1)
        self.reasons[flight.number] = reason


class Sender:
    """Sends what is ready.

    Parameters
    ----------
    account : Account
    link : Link
    registry : Registry
    settings : GlobusSettings
    run : str
    """

    def __init__(
        self,
        account: Account,
        link: Link,
        registry: Registry,
        settings: GlobusSettings,
        run: str,
    ) -> None:
        self._account, self._link, self._registry = account, link, registry
        self._settings, self._run = settings, run
        requests, seconds = settings.rate
        self._pace = coalesce.Pace(max(1, requests // _SPLIT), seconds)
        self._limit = settings.request_bytes
        self._at, self._held, self._delay = 0.0, 0.0, BACK_OFF_S[0]
        self.outgoing: Outgoing | None = None
        self._own: list[tuple[Place, Call, Future[Any]]] = []
        home = f"~/.pandaflow/{run}"
        #: Where the marks of bundles are: of functions, and of commands, which know folders only.
        self.board = f"{settings.data}/{run}/board" if settings.data else home
        self.shell_board = home if wire.local_path(self.board) is None else self.board

    # --- when ---------------------------------------------------------------------------

    def gather(self) -> None:
        """Wait a moment for what may come along."""
        self._at = max(self._at, time.monotonic() + _GATHER_S)

    def due(self) -> float:
        """Return when to call :meth:`turn` even if nothing happens (monotonic time)."""
        now = time.monotonic()
        if self.outgoing is not None:
            return now + 0.02
        if not self._own and not any(flight.ready for flight in self._account.flights.values()):
            return math.inf
        return max(self._at, self._held, now + self._pace.wait(now), now + 0.05)

    def turn(self) -> list[Sent]:
        """See to the request on its way, and make the next; return what was accepted."""
        accepted = self._confirm() if self.outgoing is not None else []
        now = time.monotonic()
        ready = now >= max(self._at, self._held) and not self._pace.wait(now)
        if self.outgoing is None and ready:
            self._send()
        return accepted

    def own_call(self, place: Place, call: Call) -> Future[Any]:
        """Send a call that is none of the run's jobs, before all that are; return its future."""
        outcome: Future[Any] = Future()
        self._own.append((place, call, outcome))
        self._at = min(self._at, time.monotonic())
        return outcome

    def probe(self, place: Place) -> Future[Any]:
        """Ask an endpoint what it has."""
        place.probed = time.monotonic()
        return self.own_call(place, Call(probe_function(), size=1_000))

    def wake(self, place: Place) -> Future[Any]:
        """Have an endpoint do nothing: a user endpoint that is not there starts with it."""
        place.woken, place.answered = time.monotonic(), math.inf
        known = place.facts is not None
        return self.own_call(
            place, _greeting(probe_function() if known else shell_function(_OWN_S))
        )

    def stop(self, place: Place, numbers: Sequence[int]) -> Future[Any]:
        """Leave marks at an endpoint for bundles to stop."""
        line = shell.stop_line(numbers, self.shell_board)
        return self.own_call(place, Call(shell_function(_OWN_S), kwargs={"line": line}, size=1_000))

    # --- what, and where to -------------------------------------------------------------

    def _send(self) -> None:
        if self._own and self._send_own():
            return
        deal = _Deal(self._account)
        group: list[Flight] = []
        place: Place | None = None
        for flight in self._account.ready():
            if len(group) >= self._settings.request_tasks or deal.full:
                break
            chosen = self._place_for(flight, deal)
            if chosen is None or (place is not None and chosen is not place):
                continue
            if group and flight.spec.resources != group[0].spec.resources:
                continue
            if flight.calls or self._prepare(flight):
                place = chosen
                group.append(flight)
        if place is not None:
            self._send_group(group, place, deal)

    def _send_own(self) -> bool:
        now = time.monotonic()
        for at, (place, call, outcome) in enumerate(self._own):
            if now < place.closed:
                continue
            del self._own[at]
            ((_, _, future),) = self._submit(place, [(None, 0, call)], None)
            future.add_done_callback(partial(_pass_on, outcome))
            return True
        return False

    def _place_for(self, flight: Flight, deal: _Deal) -> Place | None:
        """Choose an endpoint that may take a bundle now; fail it if none ever will."""
        left = self._left_for(flight)
        if not left:
            why = "; ".join(f"not at {name}: {told}" for name, told in flight.refused.items())
            self._account.tell(refused(flight.spec, why))
            return None
        now = time.monotonic()
        able = [
            place.endpoint.place
            for place in left
            if place.takes(now) and deal.room(place, flight) and _known(place, flight)
        ]
        if not able:
            return None
        ranking = brokerage.rank(flight.spec.resources, able, deal.loads)
        chosen = self._account.places[ranking.sites[0][0].name]
        deal.give(chosen, flight, "; ".join([ranking.describe(), *flight.refused.values()]))
        return chosen

    def _left_for(self, flight: Flight) -> list[Place]:
        """Return the endpoints that may ever take a bundle."""
        places = self._account.places.values()
        if flight.spec.kind != "command":
            told = {place.name: _refusal(place, flight) for place in places}
            flight.refused |= {name: why for name, why in told.items() if why}
        return [
            place
            for place in places
            if place.name not in flight.refused
            and not brokerage.misfit(flight.spec.resources, place.endpoint.place)
        ]

    def _send_group(self, group: Sequence[Flight], place: Place, deal: _Deal) -> None:
        """Send as many bundles as one request takes."""
        sizes = [flight.size for flight in group]
        count = coalesce.first_group(sizes, self._limit, self._settings.request_tasks)
        calls: list[tuple[Flight | None, int, Call]] = []
        if place.greeting is None:
            # Its record tells early which user endpoint does the work, and that it has begun.
            command = group[0].spec.kind == "command"
            calls = [(None, 0, _greeting(group[0].function if command else probe_function()))]
        calls += [(f, at, call) for f in group[:count] for at, call in enumerate(f.calls)]
        if self._account.several:
            now = time.time()
            for flight in group[:count]:
                reason = deal.reasons[flight.number]
                self._account.report(BundlePlaced(now, flight.number, place.name, reason))
        sent = self._submit(place, calls, specification(group[0].spec.resources))
        if sent[0][0] is None:
            place.greeting = sent[0][2]

    # --- what bundles are sent as -------------------------------------------------------

    def _prepare(self, flight: Flight) -> bool:
        """Make the calls of a bundle; if that cannot be, tell how it ended."""
        try:
            if flight.spec.kind == "command":
                self._prepare_commands(flight)
            else:
                flight.calls = [self._bundle_call(flight)]
        except DataError as error:
            self._account.lose(flight, str(error))
        except JobFailed as error:
            every = dict.fromkeys(range(len(flight.spec.jobs)), error.failure)
            self._account.tell(replace(refused(flight.spec, ""), failures=every))
        except _TooLarge as error:
            self._account.tell(refused(flight.spec, str(error), "input"))
        except (PandaflowError, OSError) as error:
            self._account.tell(refused(flight.spec, str(error), "input"))
        return bool(flight.calls)

    def _bundle_call(self, flight: Flight) -> Call:
        spec, given, settings = flight.spec, _given(flight), self._settings
        results = self._account.results
        direct = results.local is None
        places = tuple(location or results.place(need) for need, location in given.deps)
        carried = len(given.code) <= CARRIED
        work = wire.Work(
            spec,
            () if direct else tuple(results.get(place) for place in places),
            None if carried else given.code,
            places if direct else (),
            direct=direct,
            board=self.board,
            marks=bool(settings.data),
            data=f"{settings.data}/{self._run}" if settings.data else "",
            limit=settings.result_bytes,
            path=tuple(sys.path),
            workdir=settings.workdir,
        )
        function = bundle_function(given.code if carried else None)
        packed = self._small(wire.pack(work), flight)
        return Call(function, (packed,), size=wire.travelling(len(packed)))

    def _small(self, packed: bytes, flight: Flight) -> bytes:
        """Return what travels: large things lie in the store that workers reach."""
        if wire.travelling(len(packed)) <= self._settings.request_bytes:
            return packed
        data, spec = self._settings.data, flight.spec
        if not data:
            raise _TooLarge(
                f"the inputs of {spec.name}[{spec.jobs[0]}] and {len(spec.jobs) - 1} more jobs of "
                f"its bundle have {len(packed)} bytes, and the service takes "
                f"{wire.room(self._settings.request_bytes)}: give data=, a folder or URL that "
                "driver and workers reach, or pass files instead of values"
            )
        url = f"{data}/{self._run}/works/{spec.bundle}"
        wire.write(url, packed)
        return wire.pack(wire.Ref(url, len(packed)))

    def _prepare_commands(self, flight: Flight) -> None:
        spec, given, settings = flight.spec, _given(flight), self._settings
        results = self._account.results
        deps = [results.load(where or results.place(need)) for need, where in given.deps]
        shared = wire.local_path(settings.data) if settings.data else None
        made, blocked = shell.lines(
            spec,
            given.code,
            deps,
            board=self.shell_board,
            data=f"{shared}/{self._run}" if shared else "",
            room=wire.room(wire.room(settings.result_bytes)) - _SHELL_ROOM,
        )
        walltime = spec.resources.walltime
        function = shell_function(None if walltime is None else walltime + _NET_S)
        outputs = parse_command(load_payload(given.code).template).outputs
        flight.commands = Commands(tuple(line.position for line in made), blocked, outputs)
        flight.calls = [
            Call(function, kwargs={"line": line.script}, size=wire.travelling(len(line.script)))
            for line in made
        ]
        if not made:
            from pandaflow.executors.remote.outcome import keep_commands

            self._account.tell(keep_commands(spec, {}, blocked, outputs, results))

    # --- the request --------------------------------------------------------------------

    def _submit(
        self,
        place: Place,
        calls: Sequence[tuple[Flight | None, int, Call]],
        wanted: Mapping[str, int] | None,
    ) -> list[Sent]:
        now = time.monotonic()
        self._pace.made(now)
        try:
            named = [(self._registry.id_of(call.function), call) for _, _, call in calls]
        except SiteError as error:
            futures: list[Future[Any]] = []
            for _ in calls:
                futures.append(Future())
                futures[-1].set_exception(error)
        else:
            futures = self._link.submit(place.endpoint, named, wanted)
        sent = [(flight, at, f) for (flight, at, _), f in zip(calls, futures, strict=True)]
        for flight, _, future in sent:
            if flight is not None:
                flight.place, flight.sent = place, now
                flight.futures.append(future)
        self.outgoing = Outgoing(place, sent, now)
        return sent

    def _confirm(self) -> list[Sent]:
        """Look whether the service has answered; return what it has accepted."""
        outgoing = self.outgoing
        assert outgoing is not None
        if not all(task_of(f) or f.done() for _, _, f in outgoing.sent):
            return []
        self.outgoing = None
        failed = [f for _, _, f in outgoing.sent if not task_of(f)]
        if not failed:
            self._delay = BACK_OFF_S[0]
        for flight, _, future in outgoing.sent:
            if flight is None and task_of(future):
                outgoing.place.ended_task, outgoing.place.asked = task_of(future), outgoing.at
        for flight in outgoing.flights:
            if all(map(task_of, flight.futures)):
                flight.tasks = [task_of(future) for future in flight.futures]
        if failed:
            self._not_taken(outgoing, failed)
        return [sent for sent in outgoing.sent if task_of(sent[2])]

    def _not_taken(self, outgoing: Outgoing, failed: Sequence[Future[Any]]) -> None:
        """Try again later, or smaller; or give up what will never be taken."""
        self._link.renew()
        outgoing.place.greeting = None
        error = next(
            (e for f in failed if (e := _error_of(f)) and not isinstance(e, RuntimeError)),
            _error_of(failed[0]),
        )
        back = [f for f in outgoing.flights if not all(map(task_of, f.futures))]
        for flight in back:
            flight.take_back()
        status = http_status(error)
        if status == 404 and "FUNCTION" in str(error):
            ours = (probe_function(), shell_function(_OWN_S))
            for function in {*ours, *(flight.function for flight in back)}:
                self._registry.forget(function)
        elif status == 413 and len(back) > 1:
            self._limit = sum(flight.size for flight in back) // 2
            return
        elif status == 404 or status in FINAL:
            for flight in back:
                flight.refused[outgoing.place.name] = short(error)
            return
        self._held = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, BACK_OFF_S[1])
        self._account.show(f"nothing can be submitted now: {short(error)}")


class _TooLarge(WorkflowError):
    """What a bundle reads does not go through the service, and there is no other way."""


def _known(place: Place, flight: Flight) -> bool:
    """Whether an endpoint is known to run such bundles; functions need a probe."""
    return flight.spec.kind == "command" or place.facts is not None


def _greeting(function: Function) -> Call:
    """Return a call that does nothing of note, and takes no time."""
    kwargs = {} if function.source else {"line": "true"}
    return Call(function, kwargs=kwargs, size=1_000)


def _refusal(place: Place, flight: Flight) -> str:
    """Say why an endpoint cannot run a bundle of functions; empty if it can."""
    if place.refuses or not place.foreign:
        return place.refuses
    if has_byte_code(_given(flight).code):
        return f"{flight.spec.name} travels as byte code, and {place.foreign}"
    return ""


def task_of(future: Future[Any]) -> str:
    """Return the id of a future's task; empty until the service has accepted it."""
    return str(getattr(future, "task_id", None) or "")


def _error_of(future: Future[Any]) -> BaseException | None:
    if future.cancelled():
        return RuntimeError("the SDK gave it back unsent")
    return future.exception(timeout=0)


def _pass_on(outcome: Future[Any], done: Future[Any]) -> None:
    error = _error_of(done)
    if error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(done.result())


def _given(flight: Flight) -> Assignment:
    assert flight.given is not None  # those adopted are never sent
    return flight.given
