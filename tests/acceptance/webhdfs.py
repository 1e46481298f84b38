"""A file system over HTTP as Hadoop serves it (WebHDFS), in memory: what fsspec's client asks for.

Driver and workers reach it by ``webhdfs://127.0.0.1:PORT/…`` as they reach an object store: there
is no folder that both see, and a file appears with its content.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

PREFIX = "/webhdfs/v1"


class WebHDFS(ThreadingHTTPServer):
    """The server, on a free port of 127.0.0.1; use `webhdfs`.

    Attributes
    ----------
    files : dict of str to bytes
        By path.
    begun : set of str
        Paths that were created and have no content yet.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.begun: set[str] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Root of the file system, for fsspec."""
        return f"webhdfs://127.0.0.1:{self.server_port}"

    def names(self, folder: str) -> list[str]:
        """Return the paths of the files under a folder."""
        with self.lock:
            return [path for path in self.files if path.startswith(f"{folder}/")]

    def status(self, path: str) -> dict[str, Any] | None:
        """Describe a file or folder; None: there is none."""
        if path in self.files:
            kind, size = "FILE", len(self.files[path])
        elif any(name.startswith(f"{path.rstrip('/')}/") for name in self.files):
            kind, size = "DIRECTORY", 0
        else:
            return None
        about = {"pathSuffix": path.rpartition("/")[2], "type": kind, "length": size}
        return about | {"modificationTime": int(time.time() * 1000)}

    def children(self, path: str) -> list[dict[str, Any]]:
        """Describe what is in a folder."""
        top = f"{path.rstrip('/')}/"
        inside = {name[len(top) :].partition("/")[0] for name in self.files if name.startswith(top)}
        found = (self.status(f"{top}{name}") for name in sorted(inside))
        return [about for about in found if about is not None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebHDFS

    def do_GET(self) -> None:
        path, asked = self._asked()
        with self.server.lock:
            status = self.server.status(path)
            if status is None:
                self._missing(path)
            elif asked["op"] == "OPEN":
                first = int(asked.get("offset", 0))
                last = first + int(asked.get("length", status["length"]))
                self._send(200, self.server.files[path][first:last])
            elif asked["op"] == "LISTSTATUS":
                listed = {"FileStatus": self.server.children(path)}
                self._send(200, json.dumps({"FileStatuses": listed}).encode())
            else:
                self._send(200, json.dumps({"FileStatus": status}).encode())

    def do_PUT(self) -> None:
        path, asked = self._asked()
        self._body()
        if asked["op"] == "CREATE" and "data" not in asked:
            self._elsewhere(path, "CREATE")
            return
        if asked["op"] == "CREATE":  # the empty file comes first: here, it appears with its content
            with self.server.lock:
                self.server.begun.add(path)
        self._send(201 if asked["op"] == "CREATE" else 200, b'{"boolean": true}')

    def do_POST(self) -> None:
        path, asked = self._asked()
        body = self._body()
        if "data" not in asked:
            self._elsewhere(path, "APPEND")
            return
        with self.server.lock:
            before = b"" if path in self.server.begun else self.server.files[path]
            self.server.files[path] = before + body
            self.server.begun.discard(path)
        self._send(200, b"")

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        files = self.server.files
        with self.server.lock:
            gone = [name for name in files if name == path or name.startswith(f"{path}/")]
            for name in gone:
                del files[name]
        self._send(200, json.dumps({"boolean": bool(gone)}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        return unquote(parts.path.removeprefix(PREFIX)), dict(parse_qsl(parts.query))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _elsewhere(self, path: str, op: str) -> None:
        """Send the client to the node that keeps the data, which is this one."""
        place = f"http://127.0.0.1:{self.server.server_port}{PREFIX}{quote(path)}?op={op}&data=true"
        self._send(307, b"", Location=place)

    def _missing(self, path: str) -> None:
        said = {"exception": "FileNotFoundException", "message": f"no {path}"}
        self._send(404, json.dumps({"RemoteException": said}).encode())

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def webhdfs() -> Iterator[WebHDFS]:
    """Serve an empty file system."""
    server = WebHDFS()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
