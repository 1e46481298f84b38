"""A private RabbitMQ for tests: own folder, own ports, on 127.0.0.1 only."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
from pathlib import Path
from types import TracebackType

from pandaflow.testing.daemons import Daemons, claim_ports, run_command, system_path, wait_until

#: Where Debian keeps the programs proper; those in /usr/sbin change the user first.
_DEBIAN = Path("/usr/lib/rabbitmq/bin")
_PROGRAMS = ("rabbitmq-server", "rabbitmqctl")
_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
# A test needs little; the defaults look at the whole machine.
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
log.file.level = warning
"""


class RabbitMissing(RuntimeError):
    """There is no RabbitMQ to be had here."""


def find_programs() -> Path:
    """Return the folder of ``rabbitmq-server`` and ``rabbitmqctl``.

    Raises
    ------
    RabbitMissing
        With the way to install them.
    """
    on_path = shutil.which("rabbitmq-server")
    folders = [_DEBIAN, *([Path(on_path).resolve().parent] if on_path else [])]
    for folder in folders:
        if all((folder / program).exists() for program in _PROGRAMS) and shutil.which("erl"):
            return folder
    raise RabbitMissing("no RabbitMQ (Debian: apt-get install rabbitmq-server)")


class RabbitMQ:
    """A RabbitMQ server in a temporary folder; use it as a context manager.

    Its queues are on disk, so that durable ones outlive `restart`. Whatever happens to this
    process, the server and its port mapper (epmd) end with it.

    Attributes
    ----------
    url : str
        AMQP URL, of the virtual host ``/``.

    Raises
    ------
    RabbitMissing
        No server programs.
    TimeoutError
        The server does not start; with the end of its log.
    """

    def __init__(self) -> None:
        self._programs = find_programs()
        self._claim: socket.socket | None = None
        self._daemons: Daemons | None = None
        self._env: dict[str, str] = {}
        self._port = 0

    def __enter__(self) -> RabbitMQ:
        try:
            self._claim = claim_ports(4)
            self._daemons = Daemons("pf-rabbit-", claim=self._claim)
            self._configure(self._claim.getsockname()[1])
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
    def url(self) -> str:
        """AMQP URL of the server."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}/%2F"

    @property
    def folder(self) -> Path:
        """Where configuration, queues and logs are."""
        return self._running.folder

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._running.start("rabbitmq", [self._programs / "rabbitmq-server"], self._env)
        wait_until(self._answers, lambda: f"RabbitMQ to start:\n{self._log()}")

    def stop(self) -> None:
        """Stop the server as an administrator does: queues are written, connections closed."""
        if self._running.alive("rabbitmq"):
            self._running.kill("rabbitmq", signal.SIGTERM)

    def restart(self) -> None:
        """Stop and start; durable queues and persistent messages are kept."""
        self.stop()
        self.start()

    def cut_connections(self, reason: str = "a test asked for it") -> None:
        """Close the connections of all clients; they may connect again at once."""
        self.control("close_all_connections", reason)

    def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl``; return its output. It takes a second or two.

        Raises
        ------
        RuntimeError
            It failed; with what it said.
        """
        argv = [str(self._programs / "rabbitmqctl"), "--quiet", *arguments]
        return run_command(argv, self._env).stdout

    def queue_lengths(self) -> dict[str, int]:
        """Return the number of messages in every queue."""
        lines = self.control("list_queues", "name", "messages").splitlines()
        pairs = (line.rsplit("\t", 1) for line in lines)
        return {name: int(count) for name, count in pairs if count.isdigit()}

    def close(self) -> None:
        """Kill the server and remove every trace. May be called twice."""
        if self._daemons:
            self._daemons.close()
        if self._claim:
            self._claim.close()

    def _configure(self, first_port: int) -> None:
        # The first port is the claim itself.
        self._port, distribution, mapper = range(first_port + 1, first_port + 4)
        folder = self.folder
        (folder / "rabbitmq.conf").write_text(_CONFIGURATION.format(port=self._port))
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / ".erlang.cookie").write_text(secrets.token_hex(16))
        (folder / ".erlang.cookie").chmod(0o400)
        self._env = {
            "PATH": system_path(),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"pandaflow{self._port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def _answers(self) -> bool:
        """Whether a greeting by AMQP 0-9-1 is answered with a frame, not with silence."""
        if not self._running.alive("rabbitmq"):
            raise RuntimeError(f"RabbitMQ does not start:\n{self._log()}")
        try:
            with socket.create_connection(("127.0.0.1", self._port), 1) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(1) == b"\x01"
        except OSError:
            return False

    def _log(self) -> str:
        files = [*self.folder.glob("*.out"), *self.folder.glob("log/*.log")]
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in files)

    @property
    def _running(self) -> Daemons:
        if self._daemons is None:
            raise RuntimeError("this RabbitMQ was not started: use it in a with statement")
        return self._daemons
