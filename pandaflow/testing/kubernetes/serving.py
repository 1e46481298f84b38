"""The stand-in's REST interface."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from pandaflow.testing.kubernetes.objects import KINDS, Failure, Objects, Thing

_PATH = re.compile(r"/(api/v1|apis/batch/v1)/namespaces/([^/]+)/(\w+)(?:/([^/]+))?")
Fault = Callable[[str, str], bytes | Failure | None]


class Server(ThreadingHTTPServer):
    """Serves objects on a free port of this machine.

    Attributes
    ----------
    fault : callable or None
        Given method and path, returns what is answered instead: a failure, or any bytes.
    asked : list of str
        Methods and paths so far.
    """

    daemon_threads = True

    def __init__(self, objects: Objects, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.token = objects, token
        self.fault: Fault | None = None
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> str:
        """Serve; return the URL."""
        self._thread.start()
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        """Serve no more."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815 - names of http.server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {self.path}")
        try:
            code, body = self._answer(content)
        except Failure as error:
            code, body = error.code, _status(error)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _answer(self, content: bytes) -> tuple[int, Thing | bytes]:
        fault = self.server.fault and self.server.fault(self.command, self.path)
        if isinstance(fault, Failure):
            raise fault
        if fault is not None:
            return 200, fault
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            raise Failure(401, "Unauthorized")
        url = urlsplit(self.path)
        match = _PATH.fullmatch(url.path)
        if match is None or KINDS.get(match[3], ("",))[0] != match[1].rpartition("apis/")[
            2
        ].replace("api/", ""):
            raise Failure(404, "the server could not find the requested resource")
        return self._do(match[2], match[3], match[4], dict(parse_qsl(url.query)), content)

    def _do(
        self, namespace: str, kind: str, name: str | None, query: dict[str, str], content: bytes
    ) -> tuple[int, Thing]:
        objects = self.server.objects
        if namespace != objects.namespace:
            raise Failure(404, f'namespaces "{namespace}" not found')
        if self.command == "GET":
            return 200, objects.get(kind, name) if name else objects.page(kind, query)
        if self.command == "DELETE" and name:
            return 200, objects.delete(kind, name)
        body: Any = yaml.safe_load(content)
        if self.command == "POST" and not name:
            return 201, objects.create(kind, body)
        applies = self.headers.get("Content-Type") == "application/apply-patch+yaml"
        if self.command == "PATCH" and name and applies and query.get("fieldManager"):
            return 200, objects.apply(kind, name, body)
        raise Failure(405, "the server does not allow this method", "MethodNotAllowed")


def _status(error: Failure) -> Thing:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": error.message,
        "reason": error.reason,
        "code": error.code,
    }
