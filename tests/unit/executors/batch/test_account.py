"""The account of a session in batch jobs, and what it hears: no batch system is needed."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.brokerage import Load, Site
from pandaflow.core.commands import EmitBundle
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted, Event, SlotsChanged
from pandaflow.core.model import Resources
from pandaflow.data.results import ResultStore
from pandaflow.executors.batch import hearing, sender
from pandaflow.executors.batch.account import MOST_LOSSES, Account
from pandaflow.executors.batch.inflight import Array
from pandaflow.executors.batch.leftovers import release, reserve
from pandaflow.executors.batch.model import BatchStatus, State
from pandaflow.executors.batch.places import BACK_OFF_S, Place
from pandaflow.ports import Assignment
from tests.unit.executors.batch.test_jobs import settings, spec_of


def given(number: int, *, first: int = 0, n: int = 1, **resources: Any) -> Assignment:
    spec = spec_of(n, bundle=number, **resources)
    jobs = range(first, first + n)
    emit = EmitBundle(
        bundle=number,
        task=spec.task,
        jobs=jobs,
        attempt=1,
        executor="",
        resources=Resources(**resources),
        priority=(0, 0, 0),
    )
    spec = replace(spec, jobs=jobs)
    return Assignment(emit, spec, "payload", b"")


class Books:
    """An account of two sites, and what it reported."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder, list[Event]()
        sites = (Site("wide", cores=8, nodes=2), Site("tight", cores=2, walltime=60))
        places = {name: Place(s) for name, s in settings(sites=sites).places().items()}
        results = ResultStore(str(folder))
        self.account = Account("run", results, places, self.events.append)

    def carry(self, site: str, *numbers: int, job: str = "7", **resources: Any) -> Array:
        """Take bundles in, and put each in an element of an array."""
        self.account.take_in([given(number, **resources) for number in numbers])
        (self.folder / job).mkdir(exist_ok=True)
        array = Array(job, self.folder / job, True, self.account.places[site])
        bundles = [[self.account.bundles[number]] for number in numbers]
        self.account.carry(array, bundles, resources.get("cores", 1))
        return array

    def of(self, number: int) -> list[Event]:
        return [event for event in self.events if getattr(event, "bundle", None) == number]


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def lost(number: int, reason: str = "batch job 7[0]: its node failed") -> BundleLost:
    return BundleLost(1.0, number, reason, None, charged=False)


# --- sites ------------------------------------------------------------------------------


def test_slots_and_loads_are_counted_by_site(books: Books) -> None:
    array = books.carry("wide", 1, 2, 3, cores=4)
    array.elements[0].here = True
    account = books.account
    assert account.slots == 18
    assert [account.free(place) for place in account.places.values()] == [4, 2]
    assert account.loads() == {"wide": Load(running=1, waiting=2), "tight": Load()}
    account.ended(BundleEnded(at=1.0, bundle=1, location="x", wall=[0.5]))
    account.lost(lost(2))
    assert account.loads()["wide"] == Load(running=0, waiting=1, finished=1, lost=1)
    assert account.free(account.places["wide"]) == 12


def test_what_fits_nowhere_ends_at_once(books: Books) -> None:
    books.account.take_in([given(1, cores=4, walltime=90.0), given(2, cores=9)])
    assert list(books.account.bundles) == [1], "the other fits one of them"
    (event,) = books.of(2)
    assert isinstance(event, BundleEnded)
    failure = event.failures[0]
    assert (failure.kind, failure.charged) == ("unfit", True)
    assert failure.message == (
        "fit fits nowhere: not at wide: asks for 9 cores and it has 8 cores; "
        "not at tight: asks for 9 cores and it has 2 cores"
    )


def test_who_starts_is_told_with_the_site(books: Books) -> None:
    array = books.carry("tight", 1)
    books.account.started(array.elements[0], BundleStarted(1.0, 1, "n1/7_0"))
    assert books.of(1) == [BundleStarted(1.0, 1, "n1/7_0", "tight")]


def test_trouble_is_told_once(books: Books) -> None:
    for trouble in ("no answer", "no answer", ""):
        books.account.show(trouble)
    told = [event.reason for event in books.events if isinstance(event, SlotsChanged)]
    assert told == ["no answer", ""]


def test_why_batch_jobs_wait_is_told_until_they_run(books: Books) -> None:
    array = books.carry("wide", 1, 2)

    def look(*said: tuple[State, str]) -> str:
        found = zip(array.elements, said, strict=True)
        books.account.show_queue(
            {
                each.ref: BatchStatus(id="7", index=each.ref[1], state=told[0], reason=told[1])
                for each, told in found
            }
        )
        return books.account.state().reason

    books.account.show("nothing can be submitted now: busy")
    why = look(("pending", "Resources"), ("held", "JobHeldUser"))
    assert why == (
        "nothing can be submitted now: busy; "
        "wide: batch jobs wait in the queue (JobHeldUser, Resources)"
    )
    told = len(books.events)
    look(("pending", "Resources"), ("held", "JobHeldUser"))
    assert len(books.events) == told, "once"
    books.account.show("")
    assert look(("pending", ""), ("running", "")) == "wide: batch jobs wait in the queue"
    array.elements[0].here = True  # it has begun, though the queue does not know it yet
    assert look(("pending", "Resources"), ("running", "")) == ""


def test_who_found_no_room_looks_again_when_nothing_is_left_in_the_queue(books: Books) -> None:
    books.carry("wide", 1, 2, cores=8)
    books.account.take_in([given(3, cores=8)])
    control: Any = None  # nothing is submitted
    waits = sender.Sender(books.account, control, settings(), books.folder, "token", lambda: True)
    waits.send()
    assert waits.due() == math.inf, "all that there is is taken"
    for number in (1, 2):
        books.account.tell(lost(number))
    books.account.arrays.clear()
    assert waits.due() < time.monotonic() + 5.0


# --- losses -----------------------------------------------------------------------------


def test_losses_without_end_become_a_failure(books: Books) -> None:
    for number in range(1, MOST_LOSSES + 1):
        books.carry("wide", number)
        books.account.lost(lost(number))
    *before, last = [event for n in range(1, MOST_LOSSES + 1) for event in books.of(n)]
    assert all(isinstance(event, BundleLost) and not event.charged for event in before)
    assert isinstance(last, BundleEnded)
    failure = last.failures[0]
    assert (failure.kind, failure.charged) == ("site", False)
    assert "lost 20 times in a row" in failure.message and "its node failed" in failure.message


def test_losses_do_not_add_up_while_others_end(books: Books) -> None:
    for number in range(1, 3 * MOST_LOSSES, 2):
        books.carry("wide", number)
        books.account.lost(lost(number))
        books.account.take_in([given(number + 1, first=1)])
        books.account.ended(BundleEnded(at=1.0, bundle=number + 1, location="x"))
    assert not any(isinstance(event, BundleEnded) and event.failures for event in books.events)


# --- what elements say ------------------------------------------------------------------

DAMAGED = [
    {"op": "started"},
    {"op": "started", "bundle": "x", "at": 1, "worker": ""},
    {"op": "started", "bundle": 1, "at": None, "worker": ""},
    {"op": "ended", "bundle": 1},
    {"op": "ended", "bundle": 1, "at": 1.0, "failures": 3},
    {"op": "ended", "bundle": [1], "at": 1.0},
    {"op": "lost"},
    {"op": "said"},
    {"op": "said", "said": [[1]]},
    {"op": "said", "said": [["t", 1, 0, 1, 1.0, "{"]]},
    {"op": "what?", "bundle": 1},
]


@pytest.mark.parametrize("message", DAMAGED, ids=json.dumps)
def test_damaged_messages_change_nothing(books: Books, message: dict[str, Any]) -> None:
    (element,) = books.carry("wide", 1).elements
    element.report.write_text(json.dumps(message) + "\n")
    hearing.listen(books.account, element)
    assert books.events == [] and element.open == [1]
    element.report.write_text(json.dumps(message) + "\n")
    hearing.catch_up(books.account, element)
    assert books.events == [] and element.open == [1]


def test_messages_of_jobs_are_passed_on_by_one_session_only(books: Books) -> None:
    (element,) = books.carry("wide", 1).elements
    said = {"op": "said", "said": [["fit", 1, 0, 1, 1.0, '{"x": 1}']]}
    element.report.write_text(json.dumps(said) + "\n")
    hearing.catch_up(books.account, element)
    assert books.events == []
    with open(element.report, "a") as file:
        file.write(json.dumps(said) + "\n")
    hearing.listen(books.account, element)
    assert len(books.events) == 1


def test_an_element_that_begins_what_nobody_wants_is_ended(books: Books) -> None:
    (element,) = books.carry("wide", 1).elements
    started = {"op": "started", "bundle": 99, "at": 1.0, "worker": "w"}
    element.report.write_text(json.dumps(started) + "\n")
    hearing.listen(books.account, element)
    assert books.account.kills == {element}
    assert books.account.ready == [books.account.bundles[1]], "what it had goes to another"
    assert (element.array.folder / "0.void").exists()


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "QOSMaxSubmitJobPerUserLimit",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        "Batch job submission failed: Resource temporarily unavailable",
        "sbatch: error: AssocMaxSubmitJobLimit",
        "Batch job submission failed: Job/step limit exceeded",
        "qsub: would exceed queue generic's per-user limit; Maximum number of jobs limit reached",
    ],
)
def test_refusals_that_pass_by_themselves(words: str) -> None:
    assert sender._FULL.search(words)
    assert not sender._TOO_LARGE.search(words)


def test_arrays_that_are_too_large_are_told_apart() -> None:
    words = "Batch job submission failed: Invalid job array specification"
    assert sender._TOO_LARGE.search(words) and not sender._FULL.search(words)


def test_a_site_that_refuses_is_asked_less_and_less() -> None:
    place = Place(settings())
    waits = []
    for _ in range(8):
        place.close(100.0)
        waits.append(place.closed - 100.0)
    assert waits[:3] == [1.0, 2.0, 4.0] and waits[-1] == BACK_OFF_S[1]
    place.accept()
    assert place.delay == BACK_OFF_S[0]


def test_two_executors_of_a_run_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = reserve(tmp_path), reserve(tmp_path)
    assert [first.name, second.name] == ["batch", "batch-2"]
    release(first)
    release(first)
    assert reserve(tmp_path) == first
    release(first)
    release(second)
