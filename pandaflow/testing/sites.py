"""A small grid for tests: a server, queues, and pilots as processes of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pandaflow.grid.places import Queue, QueueBody
from pandaflow.testing.grid import GridServer

#: Seconds to wait for a pilot to end by itself.
_PATIENCE = 20.0

#: The first signal lets what runs go on.
_GUARD = 'read -r well || { kill -TERM "$1"; sleep 0.2; kill -TERM "$1"; }'


class PilotProcess:
    """A pilot as a child process, in a session of its own.

    Parameters
    ----------
    url : str
        Of the server.
    queue : str
    options : sequence of str
        Of ``pandaflow-pilot``, besides.
    """

    def __init__(self, url: str, queue: str, options: Sequence[str] = ()) -> None:
        self.queue = queue
        self.folder = Path(tempfile.mkdtemp(prefix="pandaflow-pilot-"))
        self._log = open(self.folder / "log", "wb")
        command = [sys.executable, "-m", "pandaflow_pilot", "--server", url, "--queue", queue]
        given = ["--workdir", str(self.folder / "work"), "--python", sys.executable, *options]
        own = {k: v for k, v in os.environ.items() if not k.startswith("PANDAFLOW_")}
        self.process = subprocess.Popen(
            [*command, *given],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # Ends the pilot if this process dies and cannot do it: it reads from a pipe of ours.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(self.process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """What the pilot has said."""
        return (self.folder / "log").read_text(errors="replace")

    def spoil(self) -> None:
        """Take its disk away: from now on it fails whatever it gets, at once."""
        work, deadline = self.folder / "work", time.monotonic() + _PATIENCE
        while not (work.exists() and any(work.iterdir())):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"the pilot does not start:\n{self.log}")
            time.sleep(0.02)
        work.rename(self.folder / "gone")
        work.touch()

    def kill(self) -> None:
        """Kill the pilot, not its payloads: as when the system runs out of memory."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Tell the pilot to end now, with all its payloads."""
        for _ in range(2):  # the first one lets what runs go on
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                time.sleep(0.05)

    def close(self) -> None:
        """End the pilot and all its payloads. May be called twice."""
        self.end()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._guard.poll() is None:
            self._guard.communicate(b"well\n")
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class MiniGrid:
    """A server with queues and pilots. Use it as a context manager.

    Parameters
    ----------
    store : str, optional
        SQLAlchemy URL; default: SQLite in a temporary folder.
    heartbeat : float
        Seconds after which a pilot that was not heard of has lost its bundles.
    """

    def __init__(self, store: str | None = None, *, heartbeat: float = 6.0) -> None:
        self.server = GridServer(store)
        self._heartbeat = heartbeat
        self.pilots: list[PilotProcess] = []

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pilot in self.pilots:
            pilot.end()
        for pilot in self.pilots:
            pilot.close()
        self.server.close()

    @property
    def url(self) -> str:
        """Of the server."""
        return self.server.url

    def queue(self, name: str, **site: int) -> None:
        """Make a queue; ``site`` are fields of :class:`pandaflow.Site`."""
        body = QueueBody(site=dict(site), heartbeat=self._heartbeat, start=4 * self._heartbeat)
        with self.server.client() as client:
            client.put_queue(name, body)

    def look(self, queue: str) -> Queue:
        """Return how a queue is."""
        with self.server.client(retries=4) as client:
            return client.queue(queue)

    def pilot(self, queue: str, *options: str, cores: int = 2) -> PilotProcess:
        """Start a pilot for a queue."""
        pilot = PilotProcess(self.url, queue, ["--cores", str(cores), "--grace", "1s", *options])
        self.pilots.append(pilot)
        return pilot
