"""The account, the watch and the journal of a session: no service is needed."""

from __future__ import annotations

import math
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.brokerage import Site
from pandaflow.core.events import BundleEnded, BundleLost, Event, SlotsChanged
from pandaflow.core.model import Resources
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus import flights, watch
from pandaflow.executors.globus.flights import Account, Facts, Flight, Place
from pandaflow.executors.globus.functions import __version__
from pandaflow.executors.globus.hearing import Hearing
from pandaflow.executors.globus.journal import Journal
from pandaflow.executors.globus.link import Health, TaskState, specification
from pandaflow.executors.globus.settings import Endpoint, GlobusSettings
from pandaflow.executors.globus.watch import Answer
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.account import MOST_LOSSES
from pandaflow.testing import payloads

HERE = (*sys.version_info[:2], 0)


def flight_of(given: Any) -> Flight:
    return Flight(given.spec, given)


class Books:
    """An account of two endpoints, and what it reported."""

    def __init__(self, make: Any, folder: Path) -> None:
        self.make, self.events = make, list[Event]()
        self.results = ResultStore(str(folder))
        named = [Site("near", cores=4), Site("far", cores=64, nodes=8)]
        endpoints = [Endpoint(str(uuid.UUID(int=n)), site=s) for n, s in enumerate(named, 1)]
        self.settings = GlobusSettings(endpoints=tuple(endpoints))
        self.places = [Place(endpoint, 5.0) for endpoint in endpoints]
        self.account = Account("run-1", self.results, self.places, self.events.append)

    def take(self, number: int, *, at: Place | None = None, sent: float = 0.0, **more: Any) -> Any:
        self.account.take_in([flight_of(self.make(number, payloads.double, [1], **more))])
        flight = self.account.flights[number]
        if at is not None:
            flight.place, flight.sent, flight.tasks = at, sent, [f"task-{number}"]
        return flight

    def answer(self, online: bool, user: bool, at: float, **tasks: TaskState) -> Answer:
        names = [place.name for place in self.places]
        health, users = Health(online, 7.0), Health(user)
        return Answer(at, dict.fromkeys(names, health), {"near": users}, tasks)


@pytest.fixture
def books(make: Any, tmp_path: Path) -> Books:
    return Books(make, tmp_path)


def test_what_fits_nowhere_is_refused_with_the_reasons(books: Books) -> None:
    books.account.take_in([flight_of(books.make(1, "true", [1], resources=Resources(nodes=9)))])
    (event,) = books.events
    assert isinstance(event, BundleEnded)
    failure = event.failures[0]
    assert (failure.kind, failure.charged) == ("unfit", False)
    assert "far: asks for 9 nodes at once and it has 8" in failure.message
    assert "near" in failure.message


def test_bundles_that_are_lost_for_ever_fail(books: Books) -> None:
    for number in range(MOST_LOSSES):
        books.account.lose(books.take(number), "it vanished")
    *lost, last = books.events
    assert all(isinstance(event, BundleLost) and not event.charged for event in lost)
    assert isinstance(last, BundleEnded)
    assert "it vanished" in last.failures[0].message


def test_trouble_is_told_once_and_slots_go_with_endpoints(books: Books) -> None:
    for _ in range(2):
        books.account.show("no")
    books.places[0].online = False
    assert flights.reasons(books.account.places, 0.0) == ""
    books.places[1].close(0.0, 10.0, "it was killed")
    held = flights.reasons(books.account.places, 5.0)
    assert "near is offline" in held
    assert "far gets nothing now: it was killed" in held
    books.places[1].online = False
    books.account.show(held)
    told = [event for event in books.events if isinstance(event, SlotsChanged)]
    assert [(event.reason, event.slots) for event in told] == [("no", 8), (held, 0)]


def test_only_what_the_dead_user_endpoint_had_is_lost(books: Books) -> None:
    near = books.places[0]
    near.user_endpoint = "uep"
    old = books.take(1, at=near, sent=10.0)
    assert list(watch.judge(books.account, books.answer(True, True, 20.0), 20.0)) == []
    books.take(2, at=near, sent=25.0)  # it waits for the next one
    books.take(3, at=books.places[1], sent=10.0)
    assert list(watch.judge(books.account, books.answer(True, False, 30.0), 30.0)) == []
    lost = list(watch.judge(books.account, books.answer(True, False, 31.0), 31.0))
    assert [flight for flight, _ in lost] == [old]
    assert near.heartbeat == 7.0
    assert not near.takes(31.0 + 10.0)
    assert near.takes(31.0 + 15.0)


def test_a_finished_task_tells_the_user_endpoint(books: Books) -> None:
    books.places[0].ended_task = "probe"
    assert watch.question(books.account, 0.0).tasks == ("probe",)
    state = TaskState("success", False, {}, "uep-1")
    list(watch.judge(books.account, books.answer(True, True, 1.0, probe=state), 1.0))
    asked = watch.question(books.account, 0.0)
    assert (asked.user_endpoints, asked.tasks) == ({"near": "uep-1"}, ())


def test_what_has_begun_is_lost_even_if_nobody_saw_the_user_endpoint(books: Books) -> None:
    near = books.places[0]
    near.user_endpoint = "uep"
    begun, unknown = (books.take(n, at=near, sent=float(n)) for n in (1, 2))
    begun.begun = 1.5
    gone = books.answer(True, False, 3.0)
    assert list(watch.judge(books.account, gone, 3.0)) == []
    assert [flight for flight, _ in watch.judge(books.account, gone, 4.0)] == [begun]
    near.ended_task, near.asked = "greeting", unknown.sent
    told = books.answer(True, False, 5.0, greeting=TaskState("success", False, {}, "uep"))
    assert unknown in [flight for flight, _ in watch.judge(books.account, told, 5.0)]


def test_an_endpoint_that_is_cut_off_keeps_its_bundles_unless_another_could_run_them(
    books: Books,
) -> None:
    near = books.places[0]
    near.user_endpoint, near.seen = "uep", 5.0
    flight = books.take(1, at=near, sent=1.0)
    off = Answer(6.0, dict.fromkeys(["near", "far"], Health(False)), {"near": Health(False)})
    for now in (6.0, 7.0, 8.0):
        assert list(watch.judge(books.account, off, now)) == []
    # Back again, its user endpoint has a heartbeat's time to say that it is there as well.
    back = books.answer(True, False, 9.0)
    assert list(watch.judge(books.account, back, 9.0)) == []
    assert list(watch.judge(books.account, back, 9.0 + 6.0)) == []
    assert [lost for lost, _ in watch.judge(books.account, back, 9.0 + 7.0)] == [flight]
    near.away = 0
    half = Answer(20.0, {"near": Health(False), "far": Health(True)}, {"near": Health(False)})
    assert list(watch.judge(books.account, half, 20.0)) == []
    assert [lost for lost, _ in watch.judge(books.account, half, 21.0)] == [flight]


def test_a_user_endpoint_is_started_again_for_what_waits_in_its_queue(books: Books) -> None:
    near = books.places[0]
    near.user_endpoint, near.away, near.asked = "uep", 2, 10.0
    assert watch.asleep(books.account, 100.0) == []
    books.take(1, at=near, sent=12.0)
    assert watch.asleep(books.account, 10.0 + 17.0) == []
    assert watch.asleep(books.account, 10.0 + 18.0) == [near]
    near.woken = 28.0
    assert watch.asleep(books.account, 30.0) == []
    near.online = False
    assert watch.asleep(books.account, 100.0) == []


@pytest.mark.parametrize(
    ("walltime", "begun", "timeout", "now", "late"),
    [
        (10.0, 100.0, None, 100.0 + 10.0 + 60.0 + 15.0 + 1.0, True),
        (10.0, 100.0, None, 100.0 + 10.0 + 60.0 + 14.0, False),
        (10.0, 0.0, None, 1e6, False),
        (None, 100.0, None, 1e6, False),
        (None, 0.0, 50.0, 61.0, True),
        (None, 0.0, 50.0, 59.0, False),
    ],
)
def test_what_is_overdue(
    books: Books, walltime: Any, begun: float, timeout: Any, now: float, late: bool
) -> None:
    flight = books.take(1, at=books.places[0], sent=10.0, resources=Resources(walltime=walltime))
    flight.begun = begun
    settings = replace(books.settings, task_timeout=timeout)
    assert watch.overdue(books.account, settings, now) == ([flight] if late else [])


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (Facts(HERE, __version__, ""), ""),
        (Facts((3, 9, 1), __version__, ""), ""),
        (Facts(HERE, "", ""), f"pip install pandaflow=={__version__}"),
        (Facts(HERE, "0.0.1", ""), "has PandaFlow 0.0.1"),
    ],
)
def test_what_the_probe_finds_is_said_with_the_remedy(facts: Facts, told: str) -> None:
    found = watch.mismatch(facts, "near")
    assert told in found
    assert bool(told) == bool(found)


def test_another_python_is_told_with_the_remedy() -> None:
    told = watch.foreign(Facts((3, 9, 1), __version__, ""), "near")
    assert "near runs Python 3.9 and this driver" in told
    assert "pf.task(module.function)" in told
    assert watch.foreign(Facts(HERE, __version__, ""), "near") == ""


def test_specifications_name_what_mpi_engines_want() -> None:
    assert specification(Resources(cores=8)) is None
    told = specification(Resources(nodes=3, ranks_per_node=4))
    assert told == {"num_nodes": 3, "ranks_per_node": 4, "num_ranks": 12}


def test_a_probe_is_repeated_after_a_while(books: Books) -> None:
    place = books.places[0]
    assert place.probed == math.inf
    assert watch.probe_due(place, 1.0)
    place.probed = 1.0
    assert not watch.probe_due(place, 500.0)
    assert watch.probe_due(place, 700.0)


class Refusal(Exception):
    """An answer of the service."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.http_status = status


def test_a_probe_that_was_not_taken_is_sent_again_or_tells_what_is_wrong(books: Books) -> None:
    near = books.places[0]
    hearing = Hearing(books.account, books.settings, lambda flight: None)
    hearing.probe_failed(near, Refusal(503))
    assert near.takes(0.0)
    assert near.refuses == ""
    hearing.probe_failed(near, Refusal(403))
    assert "HTTP 403" in near.refuses


def test_the_journal_survives_a_line_cut_short(books: Books) -> None:
    one, two = (books.take(n, at=books.places[1]) for n in (1, 2))
    journal = Journal(books.results)
    journal.note("group-1", [one])
    journal.note("group-1", [two])
    path = Path(books.results.local or "", "globus", "journal")
    path.write_bytes(path.read_bytes()[:-20])
    later = Journal(books.results)
    assert later.group == "group-1"
    assert set(later.entries) == {1}
    assert later.entries[1].tasks == ("task-1",)
    assert later.entries[1].place == "far"
    later.note("group-1", [two])
    assert set(Journal(books.results).entries) == {1, 2}


def test_the_journal_lies_in_an_object_store_as_well(books: Books) -> None:
    one, two = (books.take(n, at=books.places[1]) for n in (1, 2))
    results = ResultStore(f"memory://{uuid.uuid4()}/run")
    journal = Journal(results)
    assert (journal.group, journal.entries) == (None, {})
    journal.note("group-1", [one])
    journal.note("group-1", [])
    journal.note_user_endpoints(books.places)
    books.places[1].user_endpoint = "uep-1"
    for _ in range(2):
        journal.note_user_endpoints(books.places)
    later = Journal(results)
    assert later.user_endpoints == {"far": "uep-1"}
    later.note("group-2", [two])
    last = Journal(results)
    assert len(wire.names(f"{results.url}/globus/journal")) == 3, "nothing is noted twice"
    assert last.group == "group-2"
    assert {number: entry.tasks for number, entry in last.entries.items()} == {
        1: ("task-1",),
        2: ("task-2",),
    }


def test_the_first_reply_of_a_bundle_counts(books: Books) -> None:
    flight = books.take(1, at=books.places[0])
    books.account.ended(BundleEnded(at=1.0, bundle=1, location="values/000/1.values"))
    assert flight.gone
    books.account.ended(BundleEnded(at=2.0, bundle=1))
    assert len(books.events) == 1
