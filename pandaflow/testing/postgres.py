"""A private PostgreSQL server for tests: own folder, own socket, no network port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

#: Where Debian keeps the server programs, newest version last.
_DEBIAN = "/usr/lib/postgresql"
#: Seconds to wait for the server to start or stop.
_PATIENCE = 60.0
#: What a test server need not have: it does not outlive its machine.
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "shared_buffers": "32MB",
    "max_connections": "40",
    "timezone": "UTC",
}


class PostgresMissing(RuntimeError):
    """There are no PostgreSQL server programs here."""


def find_programs() -> Path:
    """Return the folder of ``initdb`` and ``postgres``.

    Raises
    ------
    PostgresMissing
        With the way to install them.
    """
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path(_DEBIAN).glob("*/bin"), key=_version, reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresMissing("no PostgreSQL server programs (Debian: apt-get install postgresql)")


def _version(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


class PostgresServer:
    """A server in a temporary folder, reached by a Unix socket in it.

    Use it as a context manager. PostgreSQL refuses to run as root: then it runs as the user
    ``postgres``, or ``nobody``.

    Parameters
    ----------
    settings : mapping of str to str, optional
        Of ``postgresql.conf``, besides those of tests or instead of them: tests run without
        ``fsync``, benchmarks with.

    Attributes
    ----------
    folder : Path
        Has its data and its socket.

    Raises
    ------
    PostgresMissing
        No server programs.
    RuntimeError
        The server does not start; with the end of its log.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._settings = {**_SETTINGS, **(settings or {})}
        self._programs = find_programs()
        self._account = _account()
        # Not under pytest's folder: a socket's path may have 107 characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="pandaflow-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __enter__(self) -> PostgresServer:
        try:
            self._initialise()
            self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clean_up()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise RuntimeError("the PostgreSQL server does not run")
        return self._process.pid

    def program(self, name: str) -> Path:
        """Return the path of one of PostgreSQL's programs."""
        return self._programs / name

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [word for item in self._settings.items() for word in ("-c", "=".join(item))]
        command = [self._programs / "postgres", "-D", self.folder / "data", *options]
        with (self.folder / "log").open("ab") as log:
            self._process = self._popen([*command, "-k", self.folder], stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE
        while self._run("pg_isready", "-h", self.folder, "-q").returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start:\n{self._log()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server at once; open connections are cut. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        # "Fast shutdown": open transactions are rolled back.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Stop and start; data are kept, connections are not."""
        self.stop()
        self.start()

    def create_database(self) -> str:
        """Create an empty database; return its SQLAlchemy URL."""
        self._databases += 1
        name = f"test{self._databases}"
        done = self._run("createdb", "-h", self.folder, "-U", "postgres", name)
        if done.returncode != 0:
            raise RuntimeError(f"createdb: {done.stderr.decode()}")
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the server down for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _initialise(self) -> None:
        if self._account:
            os.chown(self.folder, *self._account)
        options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        done = self._run("initdb", "-D", self.folder / "data", *options)
        if done.returncode != 0:
            raise RuntimeError(f"initdb: {done.stderr.decode()}")

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        command = [self._programs / program, *arguments]
        return subprocess.run(command, capture_output=True, check=False, **self._as_user())

    def _popen(self, command: list[Any], **more: Any) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in the terminal must not reach the server first.
        return subprocess.Popen(command, start_new_session=True, **self._as_user(), **more)

    def _as_user(self) -> dict[str, Any]:
        if self._account is None:
            return {"cwd": self.folder}
        user, group = self._account
        return {"cwd": self.folder, "user": user, "group": group, "extra_groups": []}

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def _clean_up(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _account() -> tuple[int, int] | None:
    """User and group to run as where we are root, else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise PostgresMissing("PostgreSQL refuses root, and there is no user postgres or nobody")
