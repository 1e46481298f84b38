"""A server at which hostile people leave runs: it runs nothing of theirs, and goes on."""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow.core.errors import StoreError
from pandaflow.data.results import Encoded, ResultStore, adler32
from pandaflow.grid.runs.store import ServerStore
from pandaflow.store.spec import dump_workflow
from pandaflow.store.sql import SqlStore
from pandaflow.testing.grid import GridServer

PATIENCE = 30.0
JSON = {"content-type": "application/json"}


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pf.task
def single(x):
    return x


@pf.workflow
def singles():
    return single(pf.items([1, 2]))


@pytest.fixture(scope="module")
def server() -> Iterator[GridServer]:
    with GridServer(options=["--rate", "0", "--patience", "3"]) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: GridServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/api/v1", timeout=PATIENCE) as client:
        yield client


def healthy(http: httpx.Client) -> None:
    assert http.get("/health").json()["status"] == "ok"


def test_no_route_unpickles_what_was_uploaded(
    server: GridServer, http: httpx.Client, tmp_path: Path
) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    made = singles()
    store = ServerStore(server.url)
    store.leave(made._spec, dict.fromkeys(made._trace.blobs, bomb), "unborn")
    store.leave(made._spec, made._trace.blobs, "bombs")
    here = pf.resume("bombs", store=server.store, executor="threads")
    assert here.wait(PATIENCE) == "done"
    _arm(here._results(), list(made._trace.blobs), bomb)
    number = store.request("bombs", "cancel", {})

    api = http.get("/openapi.json").json()
    asked = set()
    for path, methods in api["paths"].items():
        if not path.startswith("/api/v1/runs"):
            continue
        for method in methods:
            answer = _ask(http, method, path, bomb, number)
            assert answer.status_code < 500, (method, path, answer.text)
            asked.add((method, path, answer.status_code))
    assert len(asked) == sum(len(m) for p, m in api["paths"].items() if "/v1/runs" in p) > 20
    assert {status for *_, status in asked} <= {200, 204}, asked
    healthy(http)
    assert not (tmp_path / "exploded").exists()
    # It is live: whoever fetches and unpickles it sees the file.
    with pytest.raises(Exception):  # noqa: B017 - mkdir's None is no list of values
        pf.attach("bombs", store=server.url).result()
    assert (tmp_path / "exploded").is_dir()


def _arm(results: ResultStore, blobs: list[str], bomb: bytes) -> None:
    """Put the bomb into everything that a payload could have written."""
    for blob in blobs:
        results.put(blob, bomb)
    for bundle in (1, 2):
        header = results.header(results.place(bundle))
        jobs = [job for start, stop in header["jobs"] for job in range(start, stop)]
        spec = SimpleNamespace(run="bombs", name="single", bundle=bundle, attempt=1, jobs=jobs)
        results.save(spec, Encoded(bomb, "pickle", adler32(bomb)), header["report"])
        results.put(f"logs/{bundle}.log", bomb)


def _ask(http: httpx.Client, method: str, path: str, bomb: bytes, number: int) -> httpx.Response:
    words = {"run": "bombs", "name": "stream-9-0" if method == "put" else "values/000/1.values"}
    words |= {"bundle": "1", "number": str(number)}
    url = path.removeprefix("/api/v1")
    for word, value in words.items():
        url = url.replace(f"{{{word}:path}}", value).replace(f"{{{word}}}", value)
    query = {"task": "single", "index": 0, "kind": "run_moved", "seconds": 0}
    if "blobs" in path:
        return http.request(method, url, content=bomb)
    if method == "put":
        return http.put(url, json={"spec": dump_workflow(singles()._spec)})
    if method == "post":
        return http.post(url, json={"kind": "cancel"})
    return http.request(method, url, params=query)


def test_paths_do_not_lead_out_of_a_run(server: GridServer, http: httpx.Client) -> None:
    run = singles().submit(server=server.url)
    folder = SqlStore(server.store).reader().run(run.id)["results"]
    os.symlink("/etc/passwd", os.path.join(folder, "passwd"))
    up = "..%2F" * 12
    for name in (
        f"{up}etc%2Fpasswd",
        "%2Fetc%2Fpasswd",
        f"values%2F{up}etc%2Fpasswd",
        f"{'%2E%2E%2F' * 12}etc%2Fpasswd",
        f"..%5C{up}etc%2Fpasswd",
        "passwd",
        ".uploading",
        "a%00b",
        "..%2Fpool.db",
    ):
        for path in (f"/runs/{run.id}/files/{name}", f"/runs/{name}/files/items-0"):
            answer = http.get(path)
            assert answer.status_code in (404, 422), (path, answer.status_code)
            assert "root:" not in answer.text and folder not in answer.text
        if name == "passwd":  # a good name, for a blob too
            continue
        assert http.put(f"/runs/{run.id}/blobs/{name}", content=b"x").status_code in (404, 422)
        assert http.put(f"/runs/{name}/blobs/payload", content=b"x").status_code in (404, 422)
        assert http.put(f"/runs/{name}", json={"spec": {}}).status_code in (404, 422)
    assert http.get(f"/runs/{run.id}/files/items-0").status_code == 200
    healthy(http)


def test_files_come_in_ranges(server: GridServer, http: httpx.Client) -> None:
    run = singles().submit(server=server.url)
    path = f"/runs/{run.id}/files/items-0"
    whole = http.get(path).content
    part = http.get(path, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(whole)}"
    assert http.get(path, headers={"Range": "bytes=99999-"}).status_code == 416


def test_garbage_is_refused_and_never_breaks_the_server(http: httpx.Client) -> None:
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"spec": null}',
        b'{"spec": {"version": 1, "workflow": {"name": "\\ud800", "tasks": []}}}',
        b'{"spec": {"version": 1, "workflow": {"name": "a\\u0000b", "tasks": []}}}',
        b'{"spec": {"version": 1, "workflow": {"name": "x", "tasks": [], "params": {"a": "\\u0000"}'
        b'}}, "more": 1}',
        b'{"spec": {"version": NaN}}',
        b'{"spec": ' + b'{"a": ' * 5_000 + b"1" + b"}" * 5_000 + b"}",
        pickle.dumps({"spec": {}}),
        b"\xff\xfe",
    ):
        answer = http.put("/runs/garbage", content=body, headers=JSON)
        assert answer.status_code == 422, (body[:60], answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    for wish in (
        {"kind": "grow", "fragment": {}},
        {"kind": "cancel", "job": -1},
        {"kind": "cancel", "by": "root"},
        {"kind": "retry", "options": {"memory": [1]}},
        {"kind": "append", "source": 0, "count": 10**12},
        {"kind": 3},
        [],
        "cancel",
    ):
        assert http.post("/runs/garbage/requests", json=wish).status_code == 422, wish
    plain = http.put("/runs/garbage", content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    assert http.get("/runs/garbage").status_code == 404
    healthy(http)


def test_huge_and_broken_uploads_leave_nothing(server: GridServer, http: httpx.Client) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as huge:
        huge.sendall(
            b"PUT /api/v1/runs/huge/blobs/a HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 10000000000000\r\n\r\nx"
        )
        assert b" 413 " in huge.recv(1_000)
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as cut:
        cut.sendall(
            b"PUT /api/v1/runs/cut/blobs/a HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 5000000\r\n\r\n" + b"x" * 3_000_000
        )
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as slow:
        slow.sendall(
            b"PUT /api/v1/runs/slow/blobs/a HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 50\r\n\r\nx"
        )
        assert b" 408 " in slow.recv(1_000)
    left = json.dumps({"spec": dump_workflow(singles()._spec)}).encode()
    for run in ("huge", "cut", "slow"):
        answer = http.put(
            f"/runs/{run}", content=left, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422 and "upload first" in answer.json()["detail"]
    found = [path for path in server.folder.rglob("*") if path.parent.name in ("cut", "slow")]
    assert {path.name for path in found} == {".uploading"}
    healthy(http)


def test_the_end_of_a_log_is_fetched_from_the_pilot_that_runs_it(server: GridServer) -> None:
    from pandaflow.grid.messages import Acquire, Bundle, PilotUpdate, Report
    from pandaflow.grid.places import QueueBody

    run = singles().submit(server=server.url)
    store = ServerStore(server.url)
    assert store.live_log(run.id, 1) == ""
    with server.client() as client:
        client.put_queue("q", QueueBody())
        client.open_run(run.id)
        bundle = Bundle(bundle=1, task="single", jobs=(0,), kind="function", work=b"x")
        client.submit(run.id, [bundle])
        leased = client.acquire(Acquire(pilot="p", queue="q", count=9, cores=9)).bundles[0]
        client.put_log(leased.id, leased.lease, "so far\n")
        asked = httpx.get(f"{server.url}/api/v1/runs/{run.id}/bundles/1/tail")
        assert asked.text == "so far\n"
        told = Report(id=leased.id, lease=leased.lease, seq=1, state="running")
        commands = client.update(PilotUpdate(pilot="p", reports=(told,)))
        assert "tail" in commands.model_dump_json()
        client.put_log(leased.id, leased.lease, "so far\nand further\n")
        assert "and further" in store.live_log(run.id, 1)
        client.forget_run(run.id)


def test_a_refused_upload_is_told_as_the_store_would(server: GridServer) -> None:
    store = ServerStore(server.url)
    made = singles()
    store.leave(made._spec, made._trace.blobs, "taken")
    store.leave(made._spec, made._trace.blobs, "taken")
    other = {name: b"other" for name in made._trace.blobs}
    with pytest.raises(StoreError, match="something else of that name"):
        store.leave(made._spec, other, "taken")
