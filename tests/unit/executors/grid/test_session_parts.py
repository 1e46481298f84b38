"""What a session is made of: names, the sender on a real server, hearing, adoption."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

from pandaflow import __version__
from pandaflow.core.errors import SiteError
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted, Event
from pandaflow.core.model import File, Resources
from pandaflow.data.results import ResultStore
from pandaflow.executors.grid import names
from pandaflow.executors.grid.hearing import Hearing
from pandaflow.executors.grid.sending import Sender, Sent
from pandaflow.executors.grid.session import GridSession, _line
from pandaflow.executors.grid.settings import GridSettings, make_settings
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.account import Account
from pandaflow.executors.remote.journal import Journal
from pandaflow.grid.auth.credentials import Nobody
from pandaflow.grid.http import GridClient
from pandaflow.grid.messages import (
    Acquire,
    JobResult,
    Leased,
    Outcome,
    PilotUpdate,
    Report,
    Trouble,
)
from pandaflow.grid.places import QueueBody
from pandaflow.grid.pool import Pool
from pandaflow.store.database import Database
from pandaflow.testing import payloads
from pandaflow.testing.grid import GridServer
from pandaflow.testing.pool_scene import Scene
from pandaflow.testing.postgres import PostgresServer

URL = "http://127.0.0.1:1"

# --- names ------------------------------------------------------------------------------


def test_each_session_has_a_name_of_its_own_that_the_next_driver_finds_again() -> None:
    plain, bound = GridSettings(server=URL), GridSettings(server=URL, queue="B")
    taken = [names.take(each, "run-1") for each in (plain, bound, bound)]
    try:
        assert taken[0] == "run-1"
        assert len(set(taken)) == 3
        assert all(name.startswith("run-1.") for name in taken[1:])
        elsewhere = GridSettings(server="http://127.0.0.1:2")
        assert names.take(elsewhere, "run-1") == "run-1"
        names.give_back(elsewhere, "run-1")
    finally:
        for name in taken:
            names.give_back(plain, name)
    again = [names.take(each, "run-1") for each in (bound, plain)]
    for name in again:
        names.give_back(plain, name)
    assert again == [taken[1], taken[0]], "whoever is first"


def test_a_session_that_cannot_begin_keeps_no_name(tmp_path: Path) -> None:
    settings = make_settings(URL, {"credentials": Nobody()})
    with pytest.raises(SiteError, match="does not answer"):
        GridSession(settings, "run-9", str(tmp_path), lambda event: None)
    assert names.take(settings, "run-9") == "run-9"
    names.give_back(settings, "run-9")


# --- sending ----------------------------------------------------------------------------


class Desk:
    """An account, a sender, and the server that it sends to."""

    def __init__(self, server: GridServer, make: Any, folder: Path, **settings: Any) -> None:
        self.make, self.events = make, list[Event]()
        self.noted: list[list[int]] = []
        self.client: GridClient = server.client()
        self.client.open_run("run-1")
        self.account: Account[Sent] = Account(ResultStore(str(folder)), self.events.append)
        given = make_settings(server.url, {"credentials": Nobody(), **settings})
        self.sender = Sender(self.account, self.client, given, "run-1", self._note)

    def _note(self, flights: Any) -> None:
        here = [row["bundle"] for row in self.client.bundle_rows("run-1")]
        assert not set(here) & {flight.number for flight in flights}, "noted before it is sent"
        self.noted.append([flight.number for flight in flights])

    def take(self, number: int, what: Any, items: list[Any], **more: Any) -> None:
        given = self.make(number, what, items, **more)
        self.account.take_in([Sent(given.spec, given)])

    def acquired(self, **fields: Any) -> tuple[Leased, ...]:
        question = Acquire(pilot="p", queue="here", cores=8, count=8, **fields)
        return self.client.acquire(question).bundles


@pytest.fixture(scope="module")
def server() -> Iterator[GridServer]:
    """One for all tests here; each forgets its run."""
    with GridServer() as server:
        yield server


@pytest.fixture
def desk(server: GridServer, make: Any, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def start(**settings: Any) -> Desk:
        made.append(Desk(server, make, tmp_path / "results", **settings))
        made[-1].client.put_queue("here", QueueBody(site={"cores": 8}, tags=("gpu",)))
        return made[-1]

    yield start
    for each in made:
        each.client.forget_run("run-1")
        each.client.close()


def test_functions_travel_with_their_versions_and_code_goes_once(desk: Any) -> None:
    books = desk(tags=["gpu"], requirements=["numpy"])
    for number in (1, 2):
        books.take(number, payloads.double, [number], resources=Resources(walltime=9.0))
    assert [flight.number for flight in books.sender.send()] == [1, 2]
    python = "{}.{}".format(*sys.version_info)
    assert books.acquired(python="2.7", pandaflow=__version__) == ()
    one, two = books.acquired(python=python, pandaflow=__version__)
    assert one.code == two.code
    assert books.client.payload("run-1", one.code) == books.make(1, payloads.double, [1]).code
    assert (one.needs.tags, one.requirements, one.walltime) == (("gpu",), ("numpy",), 9.0)
    assert isinstance(wire.work_of(one.work), wire.Work)
    assert books.noted == [[1, 2]]


def test_what_no_queue_fits_comes_back_at_once_and_the_rest_goes(desk: Any) -> None:
    books = desk()
    books.take(1, "true", [1], resources=Resources(cores=64))
    books.take(2, "true", [1], resources=Resources(cores=8))
    assert [flight.number for flight in books.sender.send()] == [2]
    (event,) = books.events
    assert isinstance(event, BundleEnded)
    assert (event.bundle, event.failures[0].kind) == (1, "unfit")
    assert "here asks for 64 cores" in event.failures[0].message


def test_large_inputs_lie_in_the_store_or_are_refused(desk: Any, tmp_path: Path) -> None:
    big = os.urandom(2_000_000)
    books = desk()
    books.take(1, payloads.double, [big])
    assert books.sender.send() == []
    failure = books.events[0].failures[0]
    assert failure.kind == "input"
    assert "data=" in failure.message
    other = desk(data=str(tmp_path / "data"))
    other.take(2, payloads.double, [big])
    other.sender.send()
    python = "{}.{}".format(*sys.version_info)
    (leased,) = other.acquired(python=python, pandaflow=__version__)
    assert len(leased.work) < 1_000
    assert [path.name for path in (tmp_path / "data/run-1/works").iterdir()] == ["2"]
    assert wire.work_of(leased.work).spec.bundle == 2
    other.sender.clear()
    assert not (tmp_path / "data" / "run-1").exists()


def test_files_of_this_machine_are_put_into_the_store(desk: Any, tmp_path: Path) -> None:
    """By path and by URL; files of one name and checksum do not take each other's place."""
    texts = {name: f"{name}\n" * 5000 for name in ("120", "201")}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    books = desk(data=str(tmp_path / "data"))
    items = [File(f"file://{tmp_path}/120/x"), File(f"{tmp_path}/201/x")]
    books.take(1, "cat %IN", items)
    books.sender.send()
    (leased,) = books.acquired()
    places = [job.inputs[0].replicas[0] for job in leased.commands]
    assert [Path(place).read_text() for place in places] == list(texts.values())


def test_what_a_server_did_not_take_is_noted_once_and_sent_again(
    desk: Any, server: GridServer
) -> None:
    books = desk()
    books.take(1, "true", [1])
    server.stop()
    books.sender._note = lambda flights: books.noted.append([f.number for f in flights])
    for _ in range(2):
        with pytest.raises(SiteError):
            books.sender.send()
    server.start()
    assert [flight.number for flight in books.sender.send()] == [1]
    assert [numbers for numbers in books.noted if numbers] == [[1]]


# --- hearing ----------------------------------------------------------------------------


class Ear:
    """Hears outcomes of one bundle of commands in flight."""

    def __init__(self, make: Any, folder: Path, jobs: int = 1) -> None:
        self.events: list[Event] = []
        self.account: Account[Sent] = Account(ResultStore(str(folder)), self.events.append)
        given = make(1, payloads.double, list(range(jobs)))
        flight = Sent(given.spec, given, sent=1.0)
        self.account.flights[1] = flight
        self.hearing = Hearing(self.account, str(folder))

    def hear(self, kind: Any, **more: Any) -> list[Event]:
        about = {"seq": 1, "bundle": 1, "attempt": 1, "at": 5.0, "queue": "A", "pilot": "p"}
        before = len(self.events)
        self.hearing.hear(Outcome(**{**about, "kind": kind, **more}))
        return self.events[before:]


@pytest.fixture
def ear(make: Any, tmp_path: Path) -> Callable[..., Ear]:
    return lambda jobs=1: Ear(make, tmp_path, jobs)


def test_others_outcomes_are_left_alone(ear: Any) -> None:
    books = ear()
    assert books.hear("lost", bundle=2) == []
    assert books.hear("lost", attempt=2) == []
    (event,) = books.hear("lost")
    assert isinstance(event, BundleLost)
    assert "it was lost at A" in event.reason
    assert books.hear("lost") == [], "it ends once"


def test_a_start_is_told_once_with_the_place(ear: Any) -> None:
    books = ear()
    (event,) = books.hear("started", host="n1")
    assert isinstance(event, BundleStarted)
    assert (event.at, event.worker, event.site) == (5.0, "n1/p", "A")
    assert books.hear("started") == []


def test_who_is_to_blame_decides_who_is_charged(ear: Any) -> None:
    signal = Trouble(source="payload", code=-11, kind="exit", message="ended by signal 11")
    site = Trouble(source="pilot", code=1098, kind="site", message="the disk is full")
    assert isinstance(ear().hear("ended", error=site)[-1], BundleLost)
    alone = ear().hear("ended", error=signal)[-1]
    assert isinstance(alone, BundleEnded)
    assert (alone.failures[0].kind, alone.failures[0].code) == ("signal", 11)
    together = ear(jobs=3).hear("ended", error=signal)[-1]
    assert isinstance(together, BundleLost)
    assert together.charged, "which of them it was shows when they run apart"


@pytest.mark.parametrize(
    "reply",
    [None, b"no packet", wire.pack(wire.Ref("/nowhere/at/all", 1))],
    ids=["none", "damaged", "gone"],
)
def test_replies_that_are_none_lose_the_bundle(ear: Any, reply: bytes | None) -> None:
    (_, event) = ear().hear("ended", reply=reply)
    assert isinstance(event, BundleLost)
    assert not event.charged


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> Any:
        return (os.system, (self.line,))


def test_a_hostile_reply_loses_the_bundle_and_runs_nothing(ear: Any, tmp_path: Path) -> None:
    evil = Shell(f"touch {tmp_path}/run")
    for reply in (wire.Reply(1, [{"op": "ended", "at": evil}]), evil):
        (_, event) = ear().hear("ended", reply=wire.pack(reply))
        assert isinstance(event, BundleLost)
        assert "the pilot sent a reply that cannot be read" in event.reason
        assert "system" in event.reason
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["../../.profile", "/etc/x", "values/000/2.values", "logs/../../x", "files/work/0.1/x"]
)
def test_replies_cannot_write_elsewhere(ear: Any, tmp_path: Path, name: str) -> None:
    (_, event) = ear().hear("ended", reply=wire.pack(wire.Reply(1, [], {name: b"x"})))
    assert isinstance(event, BundleLost)
    assert "not the bundle's" in event.reason
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "told",
    [
        {"bundle": 2},
        {"failures": [[7, {"kind": "exit", "message": ""}]]},
        {"failures": [[0, {"kind": "exit", "message": 5}]]},
        {"unstarted": [[0, 10**12]]},
        {"blocked": [["why", [[-5, 1]]]]},
        {"sizes": b"odd"},
        {"at": "now"},
        {"location": "values/000/9.values"},
        {"location": "values/000/1.values"},
    ],
)
def test_reports_that_do_not_fit_lose_the_bundle(ear: Any, told: Any) -> None:
    message = {"op": "ended", "at": 1.0, "bundle": 1, **told}
    (_, event) = ear().hear("ended", reply=wire.pack(wire.Reply(1, [message])))
    assert isinstance(event, BundleLost)
    assert not event.charged


def test_a_reply_in_the_store_goes_when_its_values_are_kept(ear: Any, tmp_path: Path) -> None:
    place = tmp_path / "reply"
    place.write_bytes(wire.pack(wire.Reply(1, [])))
    (_, event) = ear().hear("ended", reply=wire.pack(wire.Ref(str(place), 1)))
    assert isinstance(event, BundleLost)
    assert "it left no result" in event.reason
    assert not place.exists()


def test_replies_that_were_too_large_say_what_to_do(ear: Any) -> None:
    reply = wire.pack(wire.Reply(1, [], large=9_000_000))
    (_, event) = ear().hear("ended", reply=reply)
    assert isinstance(event, BundleEnded)
    assert "9000000 bytes" in event.failures[0].message
    assert "data=" in event.failures[0].message


# --- adoption ---------------------------------------------------------------------------


def test_the_next_session_waits_only_for_what_it_has_not_heard(
    server: GridServer, make: Any, tmp_path: Path
) -> None:
    """1: acknowledged, and kept by the pool; 2: ended unread; 3: waits; 4: nobody wants it."""
    settings = make_settings(server.url, {"credentials": Nobody(), "wait": 0.1})
    with server.client() as client:
        client.put_queue("here", QueueBody())
        books = Desk(server, make, tmp_path, wait=0.1)
        journal = Journal(ResultStore(str(tmp_path)), "grid")
        for number in (1, 2, 3, 4):
            books.take(number, "true", [number])
        sent = books.sender.send()
        journal.append([_line(flight) for flight in sent])
        one, two = client.acquire(Acquire(pilot="p", queue="here", cores=2, count=2)).bundles
        for leased in (one, two):
            done = JobResult(position=0, code=0, began=1.0, ended=2.0)
            report = Report(id=leased.id, lease=leased.lease, seq=1, state="ended", results=(done,))
            client.update(PilotUpdate(pilot="p", reports=(report,)))
        told = client.outcomes("run-1").outcomes
        assert [(each.bundle, each.kind) for each in told] == [(1, "ended"), (2, "ended")]
        client.outcomes("run-1", after=told[0].seq)
        rows = {row["bundle"]: (row["state"], row["unread"]) for row in client.bundle_rows("run-1")}
        assert rows[1] == ("ended", False)
        assert rows[2] == ("ended", True)
        books.client.close()
        events: list[Event] = []
        session = GridSession(settings, "run-1", str(tmp_path), events.append)
        try:
            assert session.adopt([1, 2, 3]) == {2, 3}
            states = {row["bundle"]: row["state"] for row in client.bundle_rows("run-1")}
            assert (states[3], states[4]) == ("ready", "cancelled")
        finally:
            session.close()
        assert client.runs() == []


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = str(tmp_path / "pool.db")
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database()
    database = Database(url, 30.0)
    yield database
    database.dispose()


def test_the_pool_tells_what_was_not_read_and_what_pilots_lack(database: Database) -> None:
    scene = Scene(Pool(database))
    scene.submit([1, 2], python="3.11", pandaflow="1.2", tags=("gpu",), container="img")
    scene.ask("old", cores=2)
    answer = scene.pool.outcomes(scene.user, scene.run, 0, 10, scene.now)
    for words in ("Python 3.11 with PandaFlow 1.2", "a container runtime for img", "the tags gpu"):
        assert words in answer.waiting
    fit: dict[str, Any] = {
        "python": "3.11",
        "pandaflow": "1.2",
        "tags": ("gpu",),
        "containers": ("c",),
    }
    (leased,) = scene.ask("new", **fit)
    scene.report(leased, 1, "ended", pilot="new")

    def unread() -> list[bool]:
        return [row["unread"] for row in scene.pool.bundles(scene.user, scene.run)]

    assert unread() == [True, False]
    scene.hear()
    scene.hear()
    assert unread() == [False, False]
