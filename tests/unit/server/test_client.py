"""What the client does about answers that a healthy server does not give."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.grid.auth.credentials import BearerToken, Nobody
from pandaflow.grid.auth.secret import Secret
from pandaflow.grid.http import GridClient, _bodies
from pandaflow.grid.messages import BATCH, Acquire, Bundle, Submission
from pandaflow.grid.places import QueueBody

Answer = tuple[int, dict[str, str], bytes]
PROBLEM = json.dumps({"title": "Busy", "status": 503, "detail": "come again"}).encode()


class Script:
    """A server that answers as it is told; the last answer again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    def next(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            script.asked.append((self.command, self.path, dict(self.headers)))
            status, headers, body = script.next()
            if not status:  # cut the connection
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def client(url: str, **more: object) -> GridClient:
    return GridClient(url, **{"credentials": Nobody(), "retries": 2, **more})


BUSY: Answer = (503, {"Retry-After": "0"}, PROBLEM)
CUT: Answer = (0, {}, b"")
EMPTY: Answer = (200, {}, b"[]")


@pytest.mark.parametrize("answers", [[BUSY, EMPTY], [CUT, EMPTY], [(502, {}, b""), BUSY, EMPTY]])
def test_what_may_be_asked_twice_is(url: str, script: Script, answers: Sequence[Answer]) -> None:
    script.answers = list(answers)
    with client(url) as made:
        assert made.runs() == []
    assert len(script.asked) == len(answers)


def test_in_the_end_the_servers_words_are_told(url: str, script: Script) -> None:
    script.answers = [BUSY]
    with client(url) as made, pytest.raises(SiteError, match=r"come again \(503\)") as caught:
        made.runs()
    assert caught.value.transient
    assert len(script.asked) == 3


@pytest.mark.parametrize("answer", [CUT, (500, {}, PROBLEM)])
def test_a_question_for_work_is_not_repeated_after_it_may_have_been_heard(
    url: str, script: Script, answer: Answer
) -> None:
    script.answers = [answer]
    with client(url) as made, pytest.raises(SiteError) as caught:
        made.acquire(Acquire(pilot="p", queue="q"))
    assert caught.value.transient
    assert len(script.asked) == 1


def test_a_question_that_was_turned_away_is_repeated(url: str, script: Script) -> None:
    script.answers = [BUSY, (200, {}, b"{}")]
    with client(url) as made:
        assert made.acquire(Acquire(pilot="p", queue="q")).bundles == ()


def test_a_refusal_is_final(url: str, script: Script) -> None:
    script.answers = [(403, {}, json.dumps({"detail": "not yours"}).encode())]
    with client(url) as made, pytest.raises(SiteError, match=r"not yours \(403\)") as caught:
        made.put_queue("q", QueueBody())
    assert not caught.value.transient
    assert len(script.asked) == 1


def test_a_run_that_is_gone_already_may_be_forgotten(url: str, script: Script) -> None:
    script.answers = [(404, {}, b"")]
    with client(url) as made:
        made.forget_run("run")
    assert script.asked[0][:2] == ("DELETE", "/api/v1/pool/run")


@pytest.mark.parametrize("body", [b"<html>", b'{"name": 7}', b"[]"])
def test_somebody_elses_answers_are_told_as_such(url: str, script: Script, body: bytes) -> None:
    script.answers = [(200, {}, body)]
    with client(url) as made, pytest.raises(SiteError, match="PandaFlow server"):
        made.queue("q")


def test_what_a_newer_server_adds_is_left_alone(url: str, script: Script) -> None:
    script.answers = [(200, {}, b'{"name": "q", "colour": "red", "vos": ["a"]}')]
    with client(url) as made:
        assert made.queue("q").vos == ("a",)


def test_a_redirection_is_not_followed_with_a_token(url: str, script: Script) -> None:
    script.answers = [(307, {"Location": "http://127.0.0.1:9/"}, b"")]
    token = BearerToken(Secret("hush.hush.hush"))
    with client(url, credentials=token) as made, pytest.raises(SiteError):
        made.open_run("run")
    assert len(script.asked) == 1


def test_a_token_goes_into_the_header_and_nowhere_else(
    url: str, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    script.answers = [(401, {}, b"")]
    token = BearerToken(Secret("hush.hush.hush"))
    with caplog.at_level(logging.DEBUG), client(url, credentials=token, vo="atlas") as made:
        with pytest.raises(SiteError) as caught:
            made.runs()
    assert script.asked[0][2]["Authorization"] == "Bearer hush.hush.hush"
    assert script.asked[0][2]["X-Pandaflow-VO"] == "atlas"
    assert "hush" not in str(caught.value) + repr(made.__dict__) + caplog.text


def test_nobody_there_is_told_with_the_address() -> None:
    with client("http://127.0.0.1:9", retries=0) as made:
        with pytest.raises(SiteError, match=r"127\.0\.0\.1:9 does not answer") as caught:
            made.runs()
    assert caught.value.transient


@pytest.mark.parametrize("name", ["", "..", "a/b", "."])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with client("http://127.0.0.1:9") as made, pytest.raises(SiteError, match="address"):
        made.queue(name)


@pytest.mark.parametrize("url", ["http://example.org", "ftp://x", "https://a:b@host"])
def test_unsafe_addresses_are_refused(url: str) -> None:
    with pytest.raises(SiteError):
        GridClient(url, Nobody())


def test_many_or_large_bundles_go_in_several_requests() -> None:
    def bundles(count: int, work: bytes) -> list[Bundle]:
        return [
            Bundle(bundle=n, task="t", jobs=(n,), kind="function", work=work) for n in range(count)
        ]

    small = list(_bodies(bundles(2 * BATCH + 1, b"x")))
    large = list(_bodies(bundles(30, b"x" * 1_000_000)))
    assert len(small) == 3
    assert len(large) > 1 and max(map(len, large)) < 20_000_000
    numbers = [b.bundle for body in large for b in Submission.model_validate_json(body).bundles]
    assert numbers == list(range(30))
