"""A server as a process, over real HTTP: what drivers, pilots and people do with it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from pandaflow.cli.app import app
from pandaflow.core.errors import SiteError
from pandaflow.grid.http import GridClient
from pandaflow.grid.messages import (
    Acquire,
    Bundle,
    CommandJob,
    JobResult,
    Outcome,
    PilotUpdate,
    Report,
)
from pandaflow.grid.places import QueueBody
from pandaflow.testing.grid import GridServer
from pandaflow.testing.postgres import PostgresServer

#: Seconds before a test gives up waiting.
PATIENCE = 30.0


def bundle(number: int, work: bytes | None = None) -> Bundle:
    if work is not None:
        return Bundle(bundle=number, task="t", jobs=(number,), kind="function", work=work)
    job = CommandJob(position=0, line=f"echo {number}")
    return Bundle(bundle=number, task="t", jobs=(number,), kind="command", commands=(job,))


def question(pilot: str = "p1", **more: object) -> Acquire:
    return Acquire.model_validate({"pilot": pilot, "queue": "q", **more})


def ended(id: int, lease: str, seq: int = 1) -> Report:
    done = JobResult(position=0, code=0, began=1.0, ended=2.0, out=b"hello\n")
    return Report(id=id, lease=lease, seq=seq, state="ended", results=(done,))


def work_off(client: GridClient, pilot: str = "p1", cores: int = 50, wait: float = 0.0) -> int:
    """Take what there is and report it as ended; return how many."""
    got = client.acquire(question(pilot, cores=cores, count=cores, wait=wait)).bundles
    if got:
        told = PilotUpdate(pilot=pilot, reports=tuple(ended(b.id, b.lease) for b in got))
        verdicts = client.update(told).verdicts
        assert all(verdict.accepted for verdict in verdicts), verdicts
    return len(got)


def fetch(client: GridClient, run: str, enough: Callable[[list[Outcome]], bool]) -> list[Outcome]:
    """Return a run's outcomes, acknowledged one after the other, when they are enough."""
    found: list[Outcome] = []
    deadline = time.monotonic() + PATIENCE
    while not enough(found):
        assert time.monotonic() < deadline, found
        found += client.outcomes(run, after=found[-1].seq if found else 0, wait=1).outcomes
    return found


@pytest.fixture
def client(grid_server: GridServer) -> Iterator[GridClient]:
    with grid_server.client() as made:
        made.put_queue("q", QueueBody(site={"cores": 100}))
        made.open_run("run")
        yield made


def test_a_bundle_goes_from_its_driver_to_a_pilot_and_back(client: GridClient) -> None:
    assert client.submit("run", [bundle(1)]) == {}
    (got,) = client.acquire(question()).bundles
    assert (got.run, got.bundle, got.commands[0].line) == ("run", 1, "echo 1")
    begun = Report(id=got.id, lease=got.lease, seq=1, state="running")
    assert client.update(PilotUpdate(pilot="p1", reports=(begun,))).verdicts[0].accepted
    stranger = ended(got.id, "guessed", 2)
    refused = client.update(PilotUpdate(pilot="p2", reports=(stranger,))).verdicts[0]
    assert not refused.accepted and refused.why
    done = PilotUpdate(pilot="p1", reports=(ended(got.id, got.lease, 2),))
    assert client.update(done).verdicts[0].accepted
    first, last = client.outcomes("run").outcomes
    assert (first.kind, last.kind) == ("started", "ended")
    assert last.results[0].out == b"hello\n"
    assert client.outcomes("run", after=last.seq).outcomes == ()


def test_functions_travel_as_bytes_with_their_payload(client: GridClient) -> None:
    code = bytes(range(256)) * 4_000
    digest = hashlib.sha256(code).hexdigest()
    client.put_payload("run", digest, code)
    sent = bundle(1, work=b"\x00\xff" * 1_000).model_copy(update={"code": digest})
    assert client.submit("run", [sent]) == {}
    (got,) = client.acquire(question()).bundles
    assert (got.work, got.code) == (sent.work, digest)
    assert client.payload("run", digest) == code
    with pytest.raises(SiteError, match="SHA-256"):
        client.put_payload("run", "0" * 64, code)


def test_a_pilot_that_waits_hears_of_work_at_once(client: GridClient) -> None:
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(client.acquire, question(wait=60))
        time.sleep(0.3)
        client.submit("run", [bundle(1)])
        assert waiting.result(PATIENCE).bundles[0].bundle == 1


def test_a_driver_that_waits_hears_of_outcomes_at_once(client: GridClient) -> None:
    client.submit("run", [bundle(1)])
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(client.outcomes, "run", 0, 60.0)
        time.sleep(0.3)
        work_off(client)
        assert [one.kind for one in waiting.result(PATIENCE).outcomes][-1] == "ended"


def test_a_pilot_that_hung_up_is_given_nothing(grid_server: GridServer, client: GridClient) -> None:
    body = question("gone", wait=60).model_dump_json()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{grid_server.url}/api/v1/pilot/acquire", content=body, timeout=0.3)
    client.submit("run", [bundle(1)])
    assert client.acquire(question("here", wait=5)).bundles[0].bundle == 1


def test_a_pilot_that_waits_is_told_to_drain(client: GridClient) -> None:
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(client.acquire, question(wait=60))
        deadline = time.monotonic() + PATIENCE
        while not client.pilots():
            assert time.monotonic() < deadline
        client.command_pilot("p1", "drain")
        assert waiting.result(PATIENCE).commands == ("drain",)


def test_events_are_seen_without_acknowledging_them(client: GridClient) -> None:
    client.submit("run", [bundle(n) for n in range(3)])
    seen: list[Outcome] = []
    watcher = threading.Thread(target=lambda: seen.extend(client.events("run", seconds=4)))
    watcher.start()
    work_off(client)
    heard = fetch(client, "run", lambda found: sum(o.kind == "ended" for o in found) == 3)
    watcher.join(PATIENCE)
    assert [one.seq for one in seen] == sorted({one.seq for one in seen})
    assert {one.seq for one in seen if one.kind == "ended"} == {
        one.seq for one in heard if one.kind == "ended"
    }
    later = list(client.events("run", after=seen[-1].seq, seconds=0))
    assert later == []


def test_what_a_watcher_has_missed_is_told(grid_server: GridServer, client: GridClient) -> None:
    client.submit("run", [bundle(n) for n in range(4)])
    work_off(client)
    heard = fetch(client, "run", lambda found: sum(o.kind == "ended" for o in found) == 4)
    client.outcomes("run", after=heard[1].seq)  # the driver has those up to it
    events = f"{grid_server.url}/api/v1/pool/run/events?seconds=0"
    text = httpx.get(events, timeout=PATIENCE).text
    assert f'event: missed\ndata: {{"first":1,"last":{heard[1].seq}}}' in text
    last = heard[-1].seq
    rest = [one.seq for one in client.events("run", seconds=0)]
    assert rest and rest[-1] == last and rest[0] > heard[1].seq


def test_logs_come_from_the_pilot_that_holds_the_bundle(client: GridClient) -> None:
    client.submit("run", [bundle(1)])
    (got,) = client.acquire(question()).bundles
    assert client.ask_tail("run", 1)
    client.put_log(got.id, got.lease, "line one\nNUL \0 and µ\n")
    assert client.log("run", 1) == "line one\nNUL \ufffd and µ\n"
    with pytest.raises(SiteError):
        client.put_log(got.id, "guessed", "mine")


def test_errors_are_problems(grid_server: GridServer) -> None:
    with httpx.Client(base_url=grid_server.url) as http:
        for answer, status in [
            (http.get("/nowhere"), 404),
            (http.get("/api/v1/pool/none/outcomes"), 404),
            (http.delete("/api/v1/whoami"), 405),
            (http.put("/api/v1/pilot/acquire"), 405),
            (http.post("/api/v1/pilot/acquire", content=b"{"), 422),
            (http.post("/api/v1/pilot/acquire", data={"pilot": "p"}), 415),
            (http.get("/api/v1/pool/x/outcomes", params={"limit": "many"}), 422),
            (http.get("/api/v1/pilot/payloads/x/abc"), 422),
            (http.get("/api/v1/whoami", headers={"Host": "evil.example"}), 403),
        ]:
            told = answer.json()
            assert answer.headers["content-type"] == "application/problem+json", answer.text
            assert answer.status_code == told["status"] == status, answer.text
            assert told["title"] and told["detail"] and "Traceback" not in answer.text


def test_the_server_says_how_it_is(grid_server: GridServer, client: GridClient) -> None:
    assert client.health()["status"] == "ok"
    assert client.whoami()["subject"] == "anonymous"
    assert any("ANONYMOUS" in line for line in grid_server.said)
    client.submit("run", [bundle(1)])
    work_off(client)
    text = httpx.get(f"{grid_server.url}/metrics").text
    assert "pandaflow_acquires_total 1" in text.splitlines()
    assert 'route="/api/v1/pilot/update",status="200"} 1' in text
    document = httpx.get(f"{grid_server.url}/api/v1/openapi.json").json()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "certificate"}


def test_the_pilot_is_handed_out_as_one_file(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "pilot"
    if not (source / "pandaflow_pilot").is_dir():
        pytest.skip("an installed package: the pilot's own folder is not beside it")
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(source))))
    with GridServer(env={"PYTHONPATH": path}) as server, server.client() as client:
        archive = tmp_path / "pilot.pyz"
        archive.write_bytes(client.pilot_archive())
    told = subprocess.run(
        [sys.executable, "-I", archive, "--help"], capture_output=True, text=True, check=True
    )
    assert "--server" in told.stdout


def test_a_server_that_is_stopped_answers_those_who_wait(
    grid_server: GridServer, client: GridClient
) -> None:
    with ThreadPoolExecutor(2) as others:
        pilot = others.submit(client.acquire, question(wait=60))
        driver = others.submit(client.outcomes, "run", 0, 60.0)
        time.sleep(0.5)
        assert grid_server.stop() in (0, -15)
        assert pilot.result(PATIENCE).bundles == ()
        assert driver.result(PATIENCE).outcomes == ()


def test_a_second_server_at_the_same_port_says_so(grid_server: GridServer) -> None:
    port = grid_server.url.rpartition(":")[2]
    with pytest.raises(RuntimeError, match=f"cannot listen at 127.0.0.1:{port}"):
        GridServer(grid_server.store, ["--port", port]).start()


@pytest.mark.parametrize("ends", ["kill", "stop"])
def test_nothing_is_lost_or_done_twice_when_the_server_ends_under_load(
    grid_server: GridServer, client: GridClient, ends: str
) -> None:
    total, over = 300, threading.Event()
    taken: list[tuple[int, int]] = []

    def pilot(name: str) -> None:
        with grid_server.client(retries=0) as mine:
            while not over.is_set():
                try:
                    got = mine.acquire(question(name, cores=5, count=5, wait=1)).bundles
                except SiteError:
                    time.sleep(0.05)
                    continue
                for leased in got:
                    taken.append((leased.bundle, leased.id))
                report(mine, name, got)

    def report(mine: GridClient, name: str, got: tuple) -> None:
        told = PilotUpdate(pilot=name, reports=tuple(ended(b.id, b.lease) for b in got))
        while got and not over.is_set():
            try:
                verdicts = mine.update(told).verdicts
            except SiteError:
                time.sleep(0.05)
                continue
            assert all(verdict.accepted for verdict in verdicts)
            return

    # What was leased in an answer that was cut is taken back after `start`.
    client.put_queue("q", QueueBody(site={"cores": 100}, start=2.0))
    client.submit("run", [bundle(n) for n in range(total)])
    with ThreadPoolExecutor(3) as pilots:
        jobs = [pilots.submit(pilot, f"p{n}") for n in range(3)]
        try:
            while len(taken) < total // 4:
                time.sleep(0.01)
            getattr(grid_server, ends)()
            grid_server.start()
            with grid_server.client(retries=8) as driver:
                heard = drive(driver, total)
        finally:
            over.set()
    for job in jobs:
        job.result()
    final = [one for one in heard if one.kind == "ended"]
    assert sorted(one.bundle for one in final) == list(range(total))


def drive(client: GridClient, total: int) -> list[Outcome]:
    """Fetch outcomes until all have ended; give what was lost again, as the engine does."""
    found: list[Outcome] = []
    deadline = time.monotonic() + 60
    while sum(one.kind == "ended" for one in found) < total:
        assert time.monotonic() < deadline, len(found)
        new = client.outcomes("run", after=found[-1].seq if found else 0, wait=1).outcomes
        lost = [one for one in new if one.kind == "lost"]
        again = [bundle(one.bundle).model_copy(update={"attempt": one.attempt + 1}) for one in lost]
        assert client.submit("run", again) == {}
        found += new
    return found


@pytest.mark.postgres
def test_two_instances_serve_one_pool(postgres: PostgresServer) -> None:
    store = postgres.create_database()
    with GridServer(store) as one, GridServer(store) as two:
        with one.client() as here, two.client() as there:
            here.put_queue("q", QueueBody())
            here.open_run("run")
            with ThreadPoolExecutor(2) as others:
                # Each waits at the instance that hears nothing of the other's call.
                pilot = others.submit(there.acquire, question(wait=60))
                driver = others.submit(here.outcomes, "run", 0, 60.0)
                time.sleep(0.3)
                here.submit("run", [bundle(1)])
                (got,) = pilot.result(PATIENCE).bundles
                there.update(PilotUpdate(pilot="p1", reports=(ended(got.id, got.lease),)))
                assert driver.result(PATIENCE).outcomes
            here.submit("run", [bundle(n) for n in range(2, 202)])
            counts = exhaust([here, there])
            assert sum(counts) == 200
            done = fetch(there, "run", lambda f: sum(o.kind == "ended" for o in f) == 201)
            assert len({one.bundle for one in done if one.kind == "ended"}) == 201


def exhaust(clients: list[GridClient]) -> list[int]:
    """Work off a pool by a pilot at each instance at once; return how many each has got."""

    def work(client: GridClient, name: str) -> int:
        total = 0
        while count := work_off(client, name, cores=7):
            total += count
        return total

    with ThreadPoolExecutor(len(clients)) as threads:
        names = [f"pilot{n}" for n in range(len(clients))]
        return list(threads.map(work, clients, names))


@pytest.mark.postgres
def test_a_database_that_restarts_is_told_and_survived(postgres: PostgresServer) -> None:
    with GridServer(postgres.create_database()) as server, server.client() as client:
        client.put_queue("q", QueueBody())
        client.open_run("run")
        with postgres.stopped():
            with pytest.raises(SiteError, match="database") as caught:
                client.acquire(question())
            assert caught.value.transient
        assert client.submit("run", [bundle(1)]) == {}
        assert work_off(client) == 1


def test_people_look_and_steer_by_commands(grid_server: GridServer, client: GridClient) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, words, env={"PANDAFLOW_SERVER": grid_server.url})
        assert done.exit_code == 0, done.output
        return done.output

    run("queues", "put", "new", "--site", "cores=8", "--tag", "ssd", "--heartbeat", "60")
    run("queues", "put", "new", "--start", "50")
    shown = json.loads(run("queues", "show", "new"))
    assert (shown["heartbeat"], shown["start"], shown["tags"]) == (60.0, 50.0, ["ssd"])
    assert shown["site"]["cores"] == 8
    assert "closed" in run("queues", "close", "new", "power cut")
    listed = {row["name"]: row for row in json.loads(run("queues", "ls", "--json"))}
    assert (listed["new"]["state"], listed["q"]["state"]) == ("closed", "open")
    assert "power cut" in run("queues", "ls")
    assert "open" in run("queues", "open", "new")
    run("queues", "rm", "new")
    client.acquire(question("pilot-7"))
    assert "pilot-7" in run("pilots", "ls")
    run("pilots", "drain", "pilot-7")
    assert client.acquire(question("pilot-7")).commands == ("drain",)
    refused = CliRunner().invoke(
        app, ["queues", "show", "none"], env={"PANDAFLOW_SERVER": grid_server.url}
    )
    assert refused.exit_code == 2 and "404" in refused.output
