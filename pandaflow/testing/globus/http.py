"""A small JSON server with routes: what the stand-in needs of HTTP, by the standard library."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Refused(Exception):
    """A request is answered with an error.

    Parameters
    ----------
    status
        Of HTTP.
    code
        Name of the error, for programs.
    reason
        For people.
    retry_after
        Seconds after which to ask again, for the header of that name.
    """

    def __init__(
        self, status: int, code: str, reason: str, *, retry_after: int | None = None
    ) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason
        self.retry_after = retry_after


@dataclass(frozen=True)
class Call:
    """A request, parsed.

    Parameters
    ----------
    method, path, headers
        As asked; the path without its query.
    data
        The body: JSON, or the fields of a form.
    size
        Of the body, in bytes.
    """

    method: str
    path: str
    headers: Message
    data: dict[str, Any]
    size: int


@dataclass(frozen=True)
class Answer:
    """What is sent back; status 0 closes the connection instead."""

    status: int
    body: Any
    retry_after: int | None = None


class Route:
    """Method and path of a request, with ``{id}`` for every UUID in it."""

    def __init__(self, name: str, method: str, path: str, act: Callable[..., Any]) -> None:
        self.name, self.method, self.act = name, method, act
        self._pattern = re.compile(path.replace("{id}", "([0-9a-fA-F-]{36})"))

    def match(self, call: Call) -> tuple[str, ...] | None:
        """Return the UUIDs of a request to this route, None for another one."""
        found = self._pattern.fullmatch(call.path) if call.method == self.method else None
        return found.groups() if found else None


class JsonServer(ThreadingHTTPServer):
    """Answers requests in threads of their own, on 127.0.0.1."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, answer: Callable[[Call], Answer]) -> None:
        self.answer = answer
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop to answer, and cut every connection."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            sockets = tuple(self._open)
        for connection in sockets:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, so that it can be cut."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a client went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JsonServer
    # Head and body leave in one packet, at once.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the service has a log."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        call = Call(self.command, path, self.headers, self._parse(body), len(body))
        answer = self.server.answer(call)
        if answer.status:
            self._send(answer)
        else:
            self.close_connection = True

    def _parse(self, body: bytes) -> dict[str, Any]:
        if "urlencoded" in self.headers.get("Content-Type", ""):
            return {key: values[0] for key, values in parse_qs(body.decode()).items()}
        try:
            data = json.loads(body or b"{}")
        except ValueError:
            return {}
        return data if isinstance(data, dict) else {}

    def _send(self, answer: Answer) -> None:
        body = json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if answer.retry_after is not None:
            self.send_header("Retry-After", str(answer.retry_after))
        self.end_headers()
        self.wfile.write(body)
