"""Looking after endpoints and tasks: what to ask the service, and what its answers mean."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pandaflow import __version__
from pandaflow.executors.globus.flights import Account, Facts, Flight, Place
from pandaflow.executors.globus.link import Health, Link, TaskState
from pandaflow.executors.globus.settings import GlobusSettings
from pandaflow.executors.remote import wire

logger = logging.getLogger("pandaflow.executors")

#: Tasks that one question is about at most.
_TASKS = 100
#: Looks in a row at which a user endpoint is offline before its bundles are given up.
_LOOKS = 2
#: Heartbeats until a user endpoint that should be there is started once more.
_AGAIN, _SELDOM = 3.5, 20.0
#: Seconds after which a probe that has not come back is sent again.
_PROBE_S = 600.0
#: Seconds above the walltimes of its jobs that a bundle gets once it has begun.
MARGIN_S = 60.0
#: States of a task in which no worker has it yet.
_WAITING = frozenset({"unknown", "received", "waiting-for-ep", "waiting-for-nodes"})
_WAITING |= {"waiting_for_nodes", "waiting-for-launch", "waiting_for_launch"}


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask: endpoints by place, user endpoints by place, tasks."""

    endpoints: Mapping[str, str]
    user_endpoints: Mapping[str, str]
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said: health by place, tasks by id; ``asked`` is monotonic time."""

    asked: float
    endpoints: Mapping[str, Health]
    user_endpoints: Mapping[str, Health]
    tasks: Mapping[str, TaskState] = field(default_factory=dict)


def question(account: Account, now: float) -> Question:
    """Ask after all endpoints, and after the tasks that have been out for longest."""
    flights = [f for f in account.flights.values() if f.tasks and f.place is not None]
    flights.sort(key=lambda flight: (bool(flight.begun), flight.sent))
    tasks = [task for flight in flights for task in flight.tasks][:_TASKS]
    return Question(
        {name: place.endpoint.id for name, place in account.places.items()},
        {
            name: place.user_endpoint
            for name, place in account.places.items()
            if place.user_endpoint
        },
        (*_telling(account), *tasks),
    )


def _telling(account: Account) -> list[str]:
    """Return tasks that may tell which user endpoints there are, and that they have begun."""
    return [
        place.ended_task
        for place in account.places.values()
        if place.ended_task and (not place.user_endpoint or place.seen <= place.asked)
    ]


def ask(link: Link, asked: Question) -> Answer:
    """Put a question to the service.

    Raises
    ------
    globus_sdk.GlobusError
        It does not answer, or refuses.
    """
    at = time.monotonic()
    endpoints = {name: link.health(identifier) for name, identifier in asked.endpoints.items()}
    users = {name: link.health(identifier) for name, identifier in asked.user_endpoints.items()}
    return Answer(at, endpoints, users, link.states(asked.tasks) if asked.tasks else {})


def judge(account: Account, answer: Answer, now: float) -> Iterator[tuple[Flight, str]]:
    """Take in the state of endpoints; yield the bundles that were lost with one, and why."""
    _note_user_endpoints(account, answer)
    for name, health in answer.endpoints.items():
        _note_health(account.places[name], health, now)
    for name, health in answer.user_endpoints.items():
        place = account.places[name]
        place.away = 0 if health.online else place.away + 1
        if health.online:
            place.seen = max(place.seen, answer.asked)
        lost = _lost_at(account, place, now)
        if lost and place.online:
            why = "its user endpoint has died, and a new one needs a while to start"
            place.close(now, 2 * place.heartbeat, why)
        for flight in lost:
            yield flight, f"the user endpoint of {name} does not answer any more"


def _note_health(place: Place, health: Health, now: float) -> None:
    if health.online and not place.online:
        place.returned = now
    place.online = health.online
    place.heartbeat = health.heartbeat or place.heartbeat


def _lost_at(account: Account, place: Place, now: float) -> list[Flight]:
    """Return what an endpoint had that will not come back: its user endpoint has died."""
    if place.away < _LOOKS:
        return _unanswered(account, place, now)  # what it has sent last may be on its way
    if not place.online and not any(other.online for other in account.places.values()):
        return []  # maybe it is only cut off, and nothing could be run again before it is back
    if now < place.returned + place.heartbeat:
        return []  # its user endpoint has not had the time to say that it is there
    # What was sent since it was last seen is in its queue, and waits for the next one.
    return [f for f in account.at(place) if f.begun or f.sent < place.seen]


def _unanswered(account: Account, place: Place, now: float) -> list[Flight]:
    """Return what went with a greeting that nobody answered, though a later task has ended.

    Tasks begin in the order in which they were sent: the user endpoint that had the greeting has
    died, and another is there.
    """
    if not place.silent or now < place.answered + place.heartbeat:
        return []
    place.greeting = None
    return [flight for flight in account.at(place) if flight.sent < place.woken]


def asleep(account: Account, now: float) -> list[Place]:
    """Return endpoints whose user endpoint may have to be started once more.

    One starts with a submission only. So what waits in the queue of one that has died waits for
    ever if nothing else is submitted.
    """
    busy = {f.place.name for f in account.flights.values() if f.place is not None}
    return [
        place
        for name, place in account.places.items()
        if name in busy and place.takes(now) and _sleeps(place, now)
    ]


def _sleeps(place: Place, now: float) -> bool:
    last = max(place.woken, place.asked)
    if place.away >= _LOOKS or place.returned > last:
        heartbeats = _AGAIN
    elif place.silent and not place.user_endpoint:
        # Killed at once, or there is no worker for it yet: that may take hours.
        heartbeats = _AGAIN if place.woken == -math.inf else _SELDOM
    else:
        return False
    return now > max(last, place.returned) + heartbeats * place.heartbeat


def _note_user_endpoints(account: Account, answer: Answer) -> None:
    """Learn from finished tasks which user endpoint a place has."""
    for place in account.places.values():
        state = answer.tasks.get(place.ended_task)
        if state is not None and state.endpoint:
            place.user_endpoint = state.endpoint
            # It takes all that is in its queue at once: this task and what was sent with it.
            place.seen = max(place.seen, math.nextafter(place.asked, math.inf))


def begun_at(mark: str) -> float:
    """Return when a bundle has begun, by the mark that it left and the worker's clock."""
    try:
        return float(wire.read(wire.Ref(mark, 0)))
    except (OSError, ValueError):  # seen before it was written, or removed
        return time.time()


def runs(state: TaskState) -> bool:
    """Whether a worker has begun with a task."""
    return state.pending and state.status not in _WAITING


def overdue(account: Account, settings: GlobusSettings, now: float) -> list[Flight]:
    """Return bundles that should have come back long ago."""
    return [flight for flight in account.flights.values() if _is_overdue(flight, settings, now)]


def _is_overdue(flight: Flight, settings: GlobusSettings, now: float) -> bool:
    if flight.place is None or not flight.tasks:
        return False
    jobs, walltime = len(flight.spec.jobs), flight.spec.resources.walltime
    if walltime is not None and flight.begun:
        grace = MARGIN_S + 3 * flight.place.heartbeat
        return now > flight.begun + walltime * jobs + grace
    limit = settings.task_timeout
    return limit is not None and now > flight.sent + limit * jobs


# --- probes -----------------------------------------------------------------------------


def probe_due(place: Place, now: float) -> bool:
    """Whether an endpoint is to be asked what it has, for the first time or again."""
    return place.probed == float("inf") or now > place.probed + _PROBE_S


def facts_of(told: Mapping[str, Any]) -> Facts:
    """Read what a probe has told."""
    python = tuple(int(part) for part in told["python"])
    return Facts(python, str(told["pandaflow"]), str(told["platform"]))


def mismatch(facts: Facts, name: str) -> str:
    """Say why an endpoint cannot run functions at all; empty if it can."""
    if not facts.pandaflow:
        return (
            f"endpoint {name} has no PandaFlow, and functions need it: pip install "
            f"pandaflow=={__version__} in the environment of its workers; commands run as they are"
        )
    if facts.pandaflow != __version__:
        return (
            f"endpoint {name} has PandaFlow {facts.pandaflow} and this driver {__version__}: "
            f"pip install pandaflow=={__version__} in the environment of its workers"
        )
    return ""


def foreign(facts: Facts, name: str) -> str:
    """Say why an endpoint cannot run functions that travel as byte code; empty if it can."""
    here, there = sys.version_info[:2], facts.python[:2]
    if there == here:
        return ""
    return (
        f"endpoint {name} runs Python {_dotted(there)} and this driver {_dotted(here)}: byte code "
        "travels between equal minor versions only. Start the endpoint, or this driver, with the "
        "other's Python; or put the function into a module that is installed on both sides and "
        "wrap it, pf.task(module.function), so that it travels by name; or use commands, which "
        "run as they are"
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
