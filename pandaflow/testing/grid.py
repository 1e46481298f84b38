"""A server of the pool for tests: a process of its own on a free port of this machine."""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pandaflow.grid.auth.credentials import Nobody
from pandaflow.grid.http import GridClient

#: Seconds to wait for a server to start or to stop.
_PATIENCE = 60.0
_LISTENS = "listening on "
#: What a person who runs the tests has for servers of theirs.
_PRIVATE = ("PANDAFLOW_", "BEARER_TOKEN")


class GridServer:
    """``pandaflow server`` as a child process. Use it as a context manager.

    The child ends with this process, however that ends: it reads from a pipe of ours.

    Parameters
    ----------
    store : str, optional
        SQLAlchemy URL; default: SQLite in a temporary folder, which is removed at the end.
    options : sequence of str
        Of the command, besides.
    env : mapping of str to str, optional
        Variables for it, besides.

    Attributes
    ----------
    url : str
        Where it listens; stays the same over restarts.
    """

    def __init__(
        self,
        store: str | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pandaflow-server-"))
        self.store = store or f"sqlite:///{self.folder / 'pool.db'}"
        self._options, self._env = tuple(options), dict(env or {})
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.said: list[str] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # also Ctrl-C: nothing may stay
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def start(self) -> None:
        """Start the server, on the same port as before, and wait until it listens.

        Raises
        ------
        RuntimeError
            It ended instead, or says nothing; with what it wrote.
        """
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "pandaflow.cli", "--store", self.store, "server"]
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.said = []
        self._process = process = subprocess.Popen(
            [*command, "--port", port, "--stop-with-stdin", *self._options],
            env=self._environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, lines, self.said))
        reader.daemon = True
        reader.start()
        self.url = self._listening(lines)

    def stop(self) -> int:
        """Stop the server as an operator does (SIGTERM); return its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server, with whatever it is doing."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its folder. May be called twice."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, **settings: object) -> GridClient:
        """Return a client of this server; without credentials unless some are given."""
        given = {"credentials": Nobody(), "retries": 0, **settings}
        return GridClient(self.url, **given)  # type: ignore[arg-type]

    def _environ(self) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(_PRIVATE)}
        return {**own, "PYTHONUNBUFFERED": "1", **self._env}

    def _listening(self, lines: queue.SimpleQueue[str | None]) -> str:
        while True:
            try:
                line = lines.get(timeout=_PATIENCE)
            except queue.Empty:
                line = None
            if line is None:
                self.kill()
                raise RuntimeError("the server does not start:\n" + "".join(self.said))
            if _LISTENS in line:
                return line.rpartition(_LISTENS)[2].strip()

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        return code


def _read(stream: IO[str], lines: queue.SimpleQueue[str | None], said: list[str]) -> None:
    """Take what the server writes, to the end: a full pipe would stop it."""
    with stream:
        for line in stream:
            said.append(line)
            lines.put(line)
    lines.put(None)


def random_name(prefix: str) -> str:
    """Return a name that no other test uses."""
    return f"{prefix}-{secrets.token_hex(4)}"
