"""A real Globus Compute endpoint, configured and started for tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from pandaflow.testing.daemons import Daemons, run_command, wait_until
from pandaflow.testing.globus.service import GlobusService

#: Seconds between heartbeats: the least that endpoints allow. One that misses three counts as
#: offline, and a killed user endpoint is replaced after three.
HEARTBEAT = 5

#: Options reach the template as JSON, so strings have quotes.
_TEMPLATE = """\
heartbeat_period: {{ heartbeat }}
{% set name = engine|default('"threads"') %}
engine:
{% if name == '"threads"' %}
  type: ThreadPoolEngine
  max_workers: {{ workers|default(4) }}
{% elif name == '"processes"' %}
  type: ProcessPoolEngine
  max_workers: {{ workers|default(2) }}
{% elif name == '"htex"' %}
  type: GlobusComputeEngine
  address: 127.0.0.1
  encrypted: false
  max_workers_per_node: {{ workers|default(2) }}
  run_in_sandbox: true
  max_retries_on_system_failure: 1
  provider:
    type: LocalProvider
    init_blocks: 1
    min_blocks: 0
    max_blocks: 1
    worker_init: "export PATH=@bin@:$PATH"
{% elif name == '"mpi"' %}
  type: GlobusMPIEngine
  address: 127.0.0.1
  encrypted: false
  mpi_launcher: mpiexec
  max_workers_per_block: 1
  provider:
    type: LocalProvider
    init_blocks: 1
    min_blocks: 0
    max_blocks: 1
    launcher:
      type: SimpleLauncher
    worker_init: |
      export PATH=@bin@:$PATH PBS_NODEFILE=@nodes@.{{ nodes|default(1) }}
      { echo localhost; hostname; } | head -n {{ nodes|default(1) }} > $PBS_NODEFILE
{% else %}
  type: {{ name }}
{% endif %}
"""


class Endpoint:
    """An endpoint of its own folder; tests may kill it and start it again.

    Which engine runs a task is up to the submission: ``user_endpoint_config={"engine": …,
    "workers": n}`` with ``threads`` (the default; 4), ``processes`` (2), ``htex``
    (GlobusComputeEngine; 2) or ``mpi`` (GlobusMPIEngine with ``mpiexec``, on one node; with
    ``"nodes": 2``, on two names of this machine). Any other name is taken for an engine's type, so
    an unknown one shows how a user endpoint fails to start. Every other configuration has a user
    endpoint of its own.

    Parameters
    ----------
    name
        Of the endpoint.
    service
        Where it registers.
    daemons
        Keeper of its processes and of its folder.
    env
        Environment of its processes.
    programs
        Folder of ``globus-compute-endpoint``.
    environment
        More variables for its user endpoints and their workers.

    Attributes
    ----------
    id : str
        UUID; kept over restarts.
    """

    def __init__(
        self,
        name: str,
        service: GlobusService,
        daemons: Daemons,
        env: dict[str, str],
        programs: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.id = ""
        self._service, self._daemons, self._programs = service, daemons, programs
        self._environment = dict(environment or {})
        self._home = daemons.folder / name
        self._env = env | {
            "HOME": str(self._home),
            "GLOBUS_COMPUTE_USER_DIR": str(self._home / "core"),
            "PATH": f"{programs}{os.pathsep}{env['PATH']}",
        }
        self._folder = self._home / "core" / name
        self._configure()

    def start(self) -> None:
        """Start the core endpoint, and wait until the service sees its heartbeats."""
        # The endpoint refuses to start beside the fresh file of one that was killed until
        # that is 15 s old; it says that a person should remove the file.
        (self._folder / "daemon.pid").unlink(missing_ok=True)
        begin = time.monotonic()
        argv = [str(self._program), "start", self.name, "--log-to-console"]
        self._daemons.start(self.name, argv, self._env)
        registered = self._folder / "endpoint.json"
        wait_until(registered.exists, lambda: f"{self.name} to register:\n{self.log()}")
        self.id = json.loads(registered.read_text())["endpoint_id"]
        wait_until(
            lambda: self._service.online(self.id, since=begin),
            lambda: f"{self.name} to be online:\n{self.log()}",
        )

    def kill(self) -> None:
        """Kill the core endpoint (-9).

        Its user endpoints notice within about three seconds and end, too: what they ran has no
        result until the endpoint is started again, if ever.
        """
        self._daemons.kill(self.name)

    def stop(self) -> None:
        """Stop the core endpoint, which stops its user endpoints."""
        if self._daemons.alive(self.name):
            self._daemons.kill(self.name, signal.SIGTERM)

    def restart(self) -> None:
        """Kill the core endpoint if it runs, and start it under the same id."""
        if self._daemons.alive(self.name):
            self.kill()
        self.start()

    def alive(self) -> bool:
        """Whether the core endpoint runs."""
        return self._daemons.alive(self.name)

    def user_endpoints(self) -> dict[str, int]:
        """Return process ids of the running user endpoints, by name."""
        found = {}
        for path in (self._home / "user").glob("*/daemon.pid"):
            with contextlib.suppress(OSError, ValueError):  # it ends, or begins, just now
                pid = int(path.read_text())
                if _is_running(pid):
                    found[path.parent.name] = pid
        return found

    def kill_user_endpoints(self) -> int:
        """Kill (-9) every user endpoint; its tasks are lost. Return how many there were.

        Workers of ``htex`` and ``mpi`` outlive it for a while, as on a real machine.
        """
        running = self.user_endpoints()
        for pid in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.user_endpoints(), f"user endpoints of {self.name} to end")
        return len(running)

    def log(self) -> str:
        """Return the ends of what the endpoint and its user endpoints wrote."""
        files = [self._daemons.folder / f"{self.name}.out", *self._home.glob("*/*/endpoint.log")]
        there = [path for path in files if path.exists()]
        return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-2000:]}" for path in there)

    @property
    def _program(self) -> Path:
        return self._programs / "globus-compute-endpoint"

    def _configure(self) -> None:
        self._home.mkdir()
        template = self._home / "template.j2"
        nodes = self._home / "nodes"
        text = _TEMPLATE.replace("{{ heartbeat }}", str(HEARTBEAT))
        text = text.replace("@bin@", str(self._programs)).replace("@nodes@", str(nodes))
        template.write_text(text)
        argv = [str(self._program), "configure", "--template-config", str(template), self.name]
        # Root must say whom to write to, and would map identities to users.
        mail = ["--contact-email", "nobody@pandaflow.example"] if os.geteuid() == 0 else []
        run_command([*argv, *mail], self._env)
        self._adjust()

    def _adjust(self) -> None:
        path = self._folder / "config.yaml"
        lines = [one for one in path.read_text().splitlines() if "identity_mapping" not in one]
        path.write_text("\n".join([*lines, f"heartbeat_period: {HEARTBEAT}", ""]))
        # User endpoints of root begin with an empty environment.
        variables = {
            "GLOBUS_COMPUTE_USER_DIR": str(self._home / "user"),
            "HOME": str(self._home),
            "PATH": self._env["PATH"],
            **self._environment,
        }
        # JSON is YAML.
        (self._folder / "user_environment.yaml").write_text(json.dumps(variables))


def mpi_missing() -> str:
    """Return why there can be no engine ``mpi`` here, empty where there can."""
    return "" if shutil.which("mpiexec") else "no mpiexec (Debian: apt-get install mpich)"


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
