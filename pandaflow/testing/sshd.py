"""A real ``sshd`` for tests: on a free port of this machine, with keys of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PATIENCE = 30.0


class SshdMissing(RuntimeError):
    """There is no ``sshd`` here."""


class Sshd:
    """OpenSSH's server, for the user who runs the tests. Use it as a context manager.

    Attributes
    ----------
    folder : Path
        For whatever tests leave; removed at the end.
    port : int

    Raises
    ------
    SshdMissing
    """

    def __init__(self) -> None:
        places = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
        program = shutil.which("sshd", path=places)
        if program is None or shutil.which("ssh-keygen") is None:
            raise SshdMissing("no sshd here: install openssh-server")
        self._program = program
        self.folder = Path(tempfile.mkdtemp(prefix="pandaflow-sshd-"))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._prepare()
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

    def start(self) -> None:
        """Start the server, on the same port as before, and wait until it listens."""
        with (self.folder / "sshd.log").open("ab") as log:
            command = [self._program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise RuntimeError(f"sshd does not start:\n{(self.folder / 'sshd.log').read_text()}")

    def stop(self) -> None:
        """Stop the server and cut all its connections."""
        process, self._process = self._process, None
        if process is None:
            return
        # Connections are processes of the same session.
        children = _children(process.pid)
        for pid in (process.pid, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    def close(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_host_key(self) -> None:
        """Let the host show another key from the next start on."""
        (self.folder / "host").unlink()
        _key(self.folder / "host")

    def trust(self) -> None:
        """Let users know the key that the host shows."""
        public = (self.folder / "host.pub").read_text().strip()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}\n")

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return settings of a submitter that uses this host."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "identity": self.folder / "user",
            "known_hosts": self.folder / "known_hosts",
            "config": Path("/dev/null"),
            "folder": str(self.folder / "pilots"),
            "timeout": 30.0,
            "connect": 5.0,
            **more,
        }

    def _prepare(self) -> None:
        for name in ("host", "user"):
            _key(self.folder / name)
        shutil.copy(self.folder / "user.pub", self.folder / "authorized")
        self.trust()
        (self.folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.folder / 'host'}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized'}\nPidFile none\nUsePAM no\n"
            "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin prohibit-password\nMaxSessions 20\n"
        )
        if os.getuid() == 0:
            # Where OpenSSH's own start-up script makes it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def _key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True, input=b"y\n")


def _children(pid: int) -> list[int]:
    """Return the processes of connections; what users have begun has left them long ago."""
    import psutil

    found = psutil.Process(pid).children(recursive=True)
    return [child.pid for child in found if child.name() == "sshd"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
