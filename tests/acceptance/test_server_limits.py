"""A server and those who mean it ill: huge, slow, malformed and crooked requests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pandaflow.grid.messages import Bundle
from pandaflow.testing.grid import GridServer

PATIENCE = 30.0
ROUTES = [
    ("POST", "/api/v1/pilot/acquire"),
    ("POST", "/api/v1/pilot/update"),
    ("POST", "/api/v1/pool/run/bundles"),
    ("POST", "/api/v1/pool/run/cancel"),
    ("PUT", "/api/v1/queues/q"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[GridServer]:
    options = ["--patience", "1", "--rate", "0", "--connections", "60"]
    with GridServer(options=options) as running:
        with running.client() as client:
            client.open_run("run")
        yield running


@pytest.fixture(autouse=True)
def _still_well(server: GridServer) -> Iterator[None]:
    yield
    with server.client(retries=4) as client:
        assert client.health()["status"] == "ok"
    assert not [line for line in server.said if "Traceback" in line], "".join(server.said)


def talk(server: GridServer, data: bytes) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    connection.sendall(data)
    return connection


def heard(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    found = b""
    with connection:
        while True:
            try:
                part = connection.recv(65_536)
            except ConnectionResetError:
                return found
            if not part:
                return found
            found += part


def head(path: str, *more: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *more, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_huge_body_is_refused_before_it_is_read(
    server: GridServer, method: str, path: str
) -> None:
    length = "Content-Length: 100000000000"
    with talk(server, head(path, length, method=method)) as connection:
        assert b" 413 " in connection.recv(65_536).split(b"\r\n")[0]


def test_a_huge_body_without_a_length_is_cut(server: GridServer) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2_000):
            yield b" " * 1_000

    answer = httpx.post(f"{server.url}/api/v1/pilot/acquire", content=endless(), timeout=PATIENCE)
    assert answer.status_code == 413
    assert answer.json()["status"] == 413


def test_many_deep_or_odd_bodies_are_told_what_is_wrong(server: GridServer) -> None:
    bodies = [
        b"[" * 100_00,
        b'{"a":' * 5_000,
        b"\xff\xfe\x00",
        b"null",
        b'{"pilot": "\\ud800", "queue": "q"}',
        b'{"pilot": "p\\u0000", "queue": "q"}',
        b'{"pilot": "p", "queue": "q", "walltime": 1e999}',
        b'{"pilot": "p", "queue": "q", "walltime": NaN}',
        b'{"pilot": "p", "queue": "q", "cores": 1%s}' % (b"0" * 5_000),
        b'{"pilot": "p", "queue": "q", "memory": 99999999999999999999999}',
    ]
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        for body in bodies:
            answer = http.post("/api/v1/pilot/acquire", content=body)
            assert answer.status_code in (403, 422), (body[:50], answer.text)


@pytest.mark.parametrize("text", ["bundle", "seq", "id"])
def test_numbers_beyond_64_bits_are_no_surprise(server: GridServer, text: str) -> None:
    number = 2**80
    sent = Bundle(bundle=1, task="t", jobs=(0,), kind="command").model_dump(mode="json")
    bodies = {
        "bundle": ("/api/v1/pool/run/bundles", {"bundles": [{**sent, "bundle": number}]}),
        "seq": (
            "/api/v1/pilot/update",
            {"pilot": "p", "reports": [{"id": 1, "lease": "x", "seq": number, "state": "ended"}]},
        ),
        "id": (
            "/api/v1/pilot/update",
            {"pilot": "p", "reports": [{"id": number, "lease": "x", "seq": 1, "state": "ended"}]},
        ),
    }
    path, body = bodies[text]
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=PATIENCE)
    assert answer.status_code < 500, answer.text


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(route=st.sampled_from(ROUTES), body=st.binary(max_size=400), cut=st.booleans())
def test_any_bytes_are_answered(
    server: GridServer, route: tuple[str, str], body: bytes, cut: bool
) -> None:
    method, path = route
    answer = httpx.request(method, f"{server.url}{path}", content=body[: 50 if cut else None])
    assert 400 <= answer.status_code < 500
    assert answer.json()["status"] == answer.status_code


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(min_size=1, max_size=300))
def test_what_is_no_http_is_answered_or_hung_up_on(server: GridServer, data: bytes) -> None:
    connection = talk(server, data + b"\r\n\r\n")
    connection.shutdown(socket.SHUT_WR)
    answer = heard(connection)
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/queues/../../../../etc/passwd",
        "/api/v1/queues/..%2f..%2fetc%2fpasswd",
        "/api/v1/queues/%00",
        "/api/v1/queues/%0d%0aSet-Cookie:%20a=b",
        "/api/v1/queues/%ff%fe",
        "/api/v1/pool/" + "a" * 5_000 + "/bundles",
        "/api/v1/pool/run/bundles/99999999999999999999/log",
        "/api/v1/pool/run/bundles/-1/log",
        "//api/v1/queues",
        "/api/v1/pilot/payloads/../" + "0" * 64,
        "/api/v1/queues/%F0%9F%90%BC",
    ],
)
def test_crooked_paths_lead_nowhere(server: GridServer, path: str) -> None:
    answer = heard(talk(server, head(path, "Connection: close", method="GET")))
    assert answer.split(b" ")[1] in (b"404", b"422"), answer
    assert b"root:" not in answer and b"\r\nset-cookie" not in answer.lower()


def test_headers_without_end_are_cut(server: GridServer) -> None:
    connection = talk(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
    try:
        for _ in range(200):
            connection.sendall(b"X-More: " + b"a" * 1_000 + b"\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass  # it hung up while we wrote: just as well
    answer = heard(connection)
    assert not answer or b" 431 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (b"GET /health HT", b""),
        (b"GET /health HTTP/1.1\r\nX: ", b"a"),
        (head("/api/v1/pilot/acquire", "Content-Length: 5000"), b" "),
        (head("/health", "Content-Length: 5000", method="GET"), b" "),
        (head("/nowhere", "Transfer-Encoding: chunked"), b"1\r\na\r\n"),
    ],
    ids=["silent", "blank", "half a line", "header", "body", "unread", "chunks"],
)
def test_a_slow_client_is_hung_up_on(server: GridServer, begin: bytes, drip: bytes) -> None:
    connection = talk(server, begin)
    over = threading.Event()

    def feed() -> None:
        while not over.wait(0.1):
            try:
                connection.sendall(drip)
            except OSError:
                return

    feeder = threading.Thread(target=feed)
    feeder.start()
    began = time.monotonic()
    try:
        heard(connection)  # its time-out fails the test
    finally:
        over.set()
        feeder.join()
    assert time.monotonic() - began < PATIENCE


def test_more_connections_than_allowed_are_told_so(server: GridServer) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(talk(server, b"")) for _ in range(70)]
        opened[-1].settimeout(PATIENCE)
        assert b" 503 " in opened[-1].recv(65_536).split(b"\r\n")[0]


def test_an_answer_reaches_a_client_that_still_sends(server: GridServer) -> None:
    body = b"x" * 3_000_000
    answer = httpx.post(f"{server.url}/api/v1/pilot/acquire", content=body, timeout=PATIENCE)
    assert answer.status_code == 413


def test_a_rate_is_kept_to_and_told() -> None:
    with GridServer(options=["--rate", "5"]) as server, httpx.Client() as http:
        answers = [http.get(f"{server.url}/api/v1/whoami") for _ in range(40)]
        statuses = [answer.status_code for answer in answers]
        assert statuses[0] == 200 and 429 in statuses
        told = next(answer for answer in answers if answer.status_code == 429)
        assert int(told.headers["retry-after"]) >= 1
        assert told.json()["status"] == 429
