"""A pool on SQLite behind a small HTTP server that can be broken in many ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pandaflow.grid.identity import ANYBODY
from pandaflow.grid.messages import (
    Acquire,
    Bundle,
    CommandJob,
    JobResult,
    Needs,
    Outcome,
    PilotUpdate,
)
from pandaflow.grid.places import QueueBody
from pandaflow.grid.pool import Pool
from pandaflow.store.database import Database

ROOT = Path(__file__).resolve().parents[3]
RUN, QUEUE = "run-1", "site"
#: Answers a request instead of the pool; returns whether it did.
Fault = Callable[["Handler", str], bool]


class Handler(BaseHTTPRequestHandler):
    """The pilot's routes of the server."""

    protocol_version = "HTTP/1.1"
    server: Front

    def log_message(self, *words: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do(self) -> None:
        front = self.server.front
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        route = urlsplit(self.path).path.removeprefix("/api/v1")
        front.heard.append((route, dict(self.headers)))
        fault = front.faults[0] if front.faults else None
        if fault is not None and fault(self, route):
            if fault in front.faults:
                front.faults.remove(fault)
            return
        try:
            self.answer(*front.serve(route, body, parse_qs(urlsplit(self.path).query), self))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do  # noqa: N815 - as the standard library wants it


class Front(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    front: PoolFront

    def handle_error(self, *words: Any) -> None:
        pass


class PoolFront:
    """A real pool, behind HTTP."""

    def __init__(self, folder: Path) -> None:
        self._database = Database(f"sqlite:///{folder}/pool.db", 10.0)
        self.folder, self.pool = folder, Pool(self._database)
        self.pool.put_queue(ANYBODY, QUEUE, QueueBody(heartbeat=300), time.time())
        self.pool.open_run(ANYBODY, RUN, time.time())
        self.faults: list[Fault] = []
        self.heard: list[tuple[str, dict[str, str]]] = []
        self.logs: dict[int, str] = {}
        self._server: Front | None = None
        self._port = 0
        self._bundles = 0
        self.data = ""
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = Front(("127.0.0.1", self._port), Handler)
        self._server.front = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        self.stop()
        self._database.dispose()

    def serve(self, route: str, body: bytes, query: Any, handler: Handler) -> tuple[Any, ...]:
        now = time.time()
        if self._server is None:  # a connection that outlived the server
            handler.close_connection = True
            raise BrokenPipeError
        if route == "/pilot/acquire":
            return 200, self._acquire(Acquire.model_validate_json(body)).encode()
        if route == "/pilot/update":
            told = PilotUpdate.model_validate_json(body)
            (updated,) = self.pool.update([(ANYBODY, told)], now)
            return 200, updated.model_dump_json(exclude_defaults=True).encode()
        parts = [unquote(part) for part in route.strip("/").split("/")]
        if parts[1] == "payloads":
            return 200, self.pool.payload(ANYBODY, parts[2], parts[3]), "application/octet-stream"
        lease = handler.headers["X-Pandaflow-Lease"]
        self.pool.put_log(ANYBODY, int(parts[2]), lease, body.decode(), now)
        return 204, b""

    def _acquire(self, question: Acquire) -> str:
        deadline = time.time() + min(question.wait, 1.0)
        while True:
            (answer,) = self.pool.acquire([(ANYBODY, question)], time.time())
            if isinstance(answer, Exception):
                raise answer
            if answer.bundles or answer.commands or time.time() > deadline:
                return answer.model_dump_json(exclude_defaults=True)
            time.sleep(0.03)

    # --- the driver's side ---

    def heartbeat(self, seconds: float) -> None:
        self.pool.put_queue(ANYBODY, QUEUE, QueueBody(heartbeat=seconds), time.time())

    def submit(self, *lines: str, needs: dict[str, Any] | None = None, **fields: Any) -> int:
        """Submit a bundle of commands; return its number."""
        jobs = fields.pop("commands", None) or tuple(
            CommandJob(position=at, line=line, shell=True) for at, line in enumerate(lines)
        )
        self._bundles += 1
        bundle = Bundle(
            bundle=self._bundles,
            task="task",
            jobs=tuple(range(10, 10 + max(len(jobs), 1))),
            kind=fields.pop("kind", "command"),
            needs=Needs(**(needs or {})),
            commands=jobs,
            data=fields.pop("data", self.data),
            **fields,
        )
        assert self.pool.submit(ANYBODY, RUN, [bundle], time.time()) == {}
        return self._bundles

    def outcomes(self) -> list[Outcome]:
        return list(self.pool.outcomes(ANYBODY, RUN, 0, 1_000, time.time()).outcomes)

    def end_of(self, bundle: int, patience: float = 40.0) -> Outcome:
        """Wait until a bundle is over."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for outcome in self.outcomes():
                if outcome.bundle == bundle and outcome.kind != "started":
                    return outcome
            time.sleep(0.03)
        raise AssertionError(f"bundle {bundle} did not end: {self.outcomes()}")

    def result_of(self, bundle: int) -> JobResult:
        end = self.end_of(bundle)
        assert end.kind == "ended", end
        (result,) = end.results
        return result


@pytest.fixture
def front(tmp_path: Path) -> Iterator[PoolFront]:
    folder = tmp_path / "pool"
    folder.mkdir()
    made = PoolFront(folder)
    yield made
    made.close()


class PilotProcess:
    """A pilot in a process of its own."""

    def __init__(self, url: str, workdir: Path, *options: str, **env: str) -> None:
        self.workdir = workdir
        path = os.pathsep.join([str(ROOT), str(ROOT / "pilot")])
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pandaflow_pilot", "--server", url, "--queue", QUEUE),
                *("--workdir", str(workdir), "--grace", "1s", *options),
            ],
            env={**os.environ, "PYTHONPATH": path, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out = self.err = ""

    def wait(self, patience: float = 40.0) -> int:
        self.out, self.err = self.process.communicate(timeout=patience)
        return self.process.returncode

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)  # two that come at once are one
            self.process.send_signal(signal.SIGTERM)
        try:
            self.wait(15.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
        except ValueError:  # it was waited for before
            pass
        sys.stderr.write(self.err)  # for whoever reads why a test failed

    @property
    def folders(self) -> list[str]:
        return sorted(os.listdir(self.workdir)) if self.workdir.exists() else []


StartPilot = Callable[..., PilotProcess]


@pytest.fixture
def start_pilot(front: PoolFront, tmp_path: Path) -> Iterator[StartPilot]:
    started: list[PilotProcess] = []

    def start(*options: str, **env: str) -> PilotProcess:
        pilot = PilotProcess(front.url, tmp_path / "work", "--cores", "2", *options, **env)
        started.append(pilot)
        return pilot

    yield start
    for pilot in started:
        pilot.close()


def eventually(holds: Callable[[], Any], patience: float = 20.0) -> Any:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = holds()
        if found:
            return found
        time.sleep(0.03)
    raise AssertionError("it never came to hold")


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()
