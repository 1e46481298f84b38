"""A private Grid Engine (SGE) on one machine, for tests: up in about two seconds.

Debian keeps one cluster in ``/var/lib/gridengine``; this one has root folder, database, ports
and group ids of its own, so several run at once and the system's is not touched. `Daemons` sees
to it that nothing stays, however the test ends.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from pandaflow.testing.daemons import (
    PATIENCE,
    Cluster,
    Daemons,
    claim_ports,
    clean_environment,
    listens,
    run_command,
    system_path,
    wait_until,
)

#: Debian's folders: programs, and what its own cluster is made of.
_PROGRAMS = Path("/usr/lib/gridengine")
_SHARED = Path("/usr/share/gridengine")
_ROOT = Path("/var/lib/gridengine")
_NEEDED = (
    "sge_qmaster",
    "sge_execd",
    "sge_shepherd",
    "spoolinit",
    "spooldefaults",
    "qsub",
    "qacct",
)
#: An instance marks the processes of its jobs by group ids; nobody else may use them.
_FIRST_GROUP = 1_000_000

_BOOTSTRAP = """\
admin_user none
default_domain none
ignore_fqdn false
spooling_method berkeleydb
spooling_lib libspoolb
spooling_params {folder}/database
binary_path /usr/sbin
qmaster_spool_dir {folder}/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""
_HOST = """\
hostname {host}
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
_PARALLEL = """\
pe_name smp
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""


class GridEngineMissing(RuntimeError):
    """There is no Grid Engine to be had here."""


class GridEngine(Cluster):
    """A Grid Engine with one host on this machine; use it as a context manager.

    The queue is ``main.q``, the parallel environment ``smp``. A host that is silent for a minute
    is given up, and its jobs that may be rerun start again when it is back.

    Parameters
    ----------
    slots
        Of the queue; may exceed the cores of the machine.

    Attributes
    ----------
    env : dict[str, str]
        Environment in which the commands talk to this cluster.
    folder : Path
        Root, configuration, state and logs.

    Raises
    ------
    GridEngineMissing
        Programs are missing, or we are not root; with what to do.
    RuntimeError
        The cluster does not start; with the ends of its logs.
    """

    def __init__(self, slots: int = 8) -> None:
        super().__init__()
        find_programs()
        self._slots = slots
        self._host = socket.gethostname()

    # --- commands and jobs -----------------------------------------------------------------

    def submit(self, command: str, *options: str) -> str:
        """Submit a shell command with ``qsub``; return the job's id. Output is thrown away."""
        quiet = ("-o", "/dev/null", "-e", "/dev/null", "-wd", "/")
        argv = ["qsub", "-terse", *quiet, "-r", "y", *options]
        said = run_command(argv, self.env, given=f"{command}\n").stdout
        # An array is called "7.1-10:1".
        return said.strip().partition(".")[0]

    def states(self) -> dict[str, str]:
        """State of every job in the queue by id, elements of arrays as ``id.element``."""
        text = self.run(["qstat", "-u", "*", "-g", "d", "-xml"]).stdout
        return dict(_job(element) for element in ElementTree.fromstring(text).iter("job_list"))

    def accounting(self, job: str) -> list[dict[str, str]]:
        """What ``qacct`` tells of a job that ended: a record for each element and attempt."""
        done = self.run(["qacct", "-j", job], check=False)
        records = re.split(r"^=+$", done.stdout, flags=re.MULTILINE)[1:]
        return [_record(text) for text in records]

    def wait_end(
        self, job: str, *, records: int = 1, seconds: float = PATIENCE
    ) -> list[dict[str, str]]:
        """Wait until a job has left the queue and is accounted for; return the records."""
        wait_until(
            lambda: not self._queued(job) and len(self.accounting(job)) >= records,
            lambda: f"the end of {job}: {self.states()}, {self.accounting(job)}",
            seconds,
        )
        return self.accounting(job)

    def wait_idle(self, seconds: float = PATIENCE) -> None:
        """Wait until the host is up, and free."""
        wait_until(
            lambda: not self._queue_state() and not set(self.states().values()) - {"qw", "hqw"},
            lambda: f"an idle host: {self._queue_state()} {self.states()}\n{self._logs()}",
            seconds,
        )

    def cancel_all(self) -> None:
        """Delete every job, whatever its host says."""
        jobs = {name.partition(".")[0] for name in self.states()}
        if jobs:
            self.run(["qdel", "-f", *sorted(jobs)], check=False)

    def reset(self) -> None:
        """Make a used cluster as new, but for its history: daemons run, the host is free."""
        if not self._running.alive("qmaster"):
            self.restart_qmaster()
        # By itself a host finds a new central daemon only after 30 s.
        if not self._running.alive("execd") or "u" in self._queue_state():
            self.restart_execd()
        self.cancel_all()
        if self._queue_state():
            self.run(["qmod", "-cq", "main.q"])
            self.resume()
        self.wait_idle()

    # --- what may go wrong -----------------------------------------------------------------

    def down(self) -> None:
        """Disable the queue: nothing more starts."""
        self.run(["qmod", "-d", "main.q"])

    def resume(self) -> None:
        """Enable the queue again."""
        self.run(["qmod", "-e", "main.q"])

    def kill_execd(self) -> None:
        """Kill the host's daemon. Its jobs live on."""
        self._running.kill("execd")

    def restart_execd(self) -> None:
        """Start the host's daemon; kill it before if it still runs.

        Running jobs live on, but their end is noticed only within a minute.
        """
        if self._running.alive("execd"):
            self.kill_execd()
        self._running.start("execd", [_PROGRAMS / "sge_execd"], self.env)

    def kill_qmaster(self) -> None:
        """Kill the central daemon."""
        self._running.kill("qmaster")

    def restart_qmaster(self) -> None:
        """Start the central daemon from its database; kill it before if it still runs.

        The host finds it within 30 s, or at once if `restart_execd` follows.
        """
        if self._running.alive("qmaster"):
            self.kill_qmaster()
        self._start_qmaster()

    def requeue(self, job: str) -> None:
        """Take a running job back into the queue."""
        self.run(["qmod", "-rj", job])

    def suspend(self, job: str) -> None:
        """Freeze a running job."""
        self.run(["qmod", "-sj", job])

    def resume_job(self, job: str) -> None:
        """Let a suspended job go on."""
        self.run(["qmod", "-usj", job])

    # --- start -----------------------------------------------------------------------------

    def _start(self) -> None:
        claim = claim_ports(3)
        port = claim.getsockname()[1]
        with claim:
            self._daemons = Daemons("pandaflow-sge-", claim=claim)
        self.env = clean_environment("SGE_") | {
            "SGE_ROOT": str(self.folder),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(port + 1),
            "SGE_EXECD_PORT": str(port + 2),
            "SGE_ND": "1",  # daemons stay in the foreground
        }
        self._make_root()
        self._fill_database(port)
        self._start_qmaster()
        self._configure()
        self.restart_execd()
        self.wait_idle()

    def _make_root(self) -> None:
        for name in ("default/common", "qmaster/job_scripts", "execd", "database"):
            (self.folder / name).mkdir(0o755, parents=True)
        for name in ("bin", "lib", "util", "utilbin"):
            (self.folder / name).symlink_to(_ROOT / name)
        common = self.folder / "default" / "common"
        (common / "bootstrap").write_text(_BOOTSTRAP.format(folder=self.folder))
        (common / "act_qmaster").write_text(f"{self._host}\n")
        # The loopback's name and the host's are the same machine; otherwise access is denied.
        (common / "host_aliases").write_text(f"{self._host} localhost\n")

    def _fill_database(self, port: int) -> None:
        groups = _FIRST_GROUP + port
        changes = {
            "execd_spool_dir": str(self.folder / "execd"),
            "mailer": "/bin/true",
            "min_uid": "0",
            "min_gid": "0",
            "load_report_time": "00:00:01",
            # Longer than the 30 s that a host takes to find a restarted central daemon.
            "max_unheard": "00:01:00",
            "reschedule_unknown": "00:00:05",
            "reporting_params": "accounting=true reporting=false flush_time=00:00:01 "
            "joblog=false sharelog=00:00:00 accounting_flush_time=00:00:00",
            "gid_range": f"{groups}-{groups + 63}",
        }
        debian = (_SHARED / "default-configuration").read_text()
        file = self._file("configuration", changed(debian, changes))
        self.run(
            [f"{_PROGRAMS}/spoolinit", "berkeleydb", "libspoolb", f"{self.folder}/database", "init"]
        )
        resources = _SHARED / "util" / "resources"
        for kind, value in (
            ("configuration", file),
            ("complexes", str(resources / "centry")),
            ("usersets", str(resources / "usersets")),
            ("managers", "root"),
        ):
            self.run([f"{_PROGRAMS}/spooldefaults", kind, value])

    def _start_qmaster(self) -> None:
        self._running.start("qmaster", [_PROGRAMS / "sge_qmaster"], self.env)
        port = int(self.env["SGE_QMASTER_PORT"])
        wait_until(
            lambda: listens(port) and self.run(["qconf", "-sm"], check=False).returncode == 0,
            lambda: f"sge_qmaster to start\n{self._logs()}",
        )

    def _configure(self) -> None:
        self.run(["qconf", "-as", self._host])
        self.run(["qconf", "-Ae", self._file("host", _HOST.format(host=self._host))])
        self.run(["qconf", "-Ap", self._file("parallel", _PARALLEL)])
        queue = {
            "qname": "main.q",
            "hostlist": self._host,
            "slots": str(self._slots),
            "shell": "/bin/bash",
            "shell_start_mode": "unix_behavior",
            "load_thresholds": "NONE",
            "rerun": "TRUE",
            "pe_list": "smp",
        }
        template = self.run(["qconf", "-sq"]).stdout
        self.run(["qconf", "-Aq", self._file("queue", changed(template, queue))])
        quick = {"schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1"}
        schedule = self.run(["qconf", "-ssconf"]).stdout
        self.run(["qconf", "-Msconf", self._file("schedule", changed(schedule, quick))])

    def _file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def _queued(self, job: str) -> bool:
        return any(name.partition(".")[0] == job for name in self.states())

    def _queue_state(self) -> str:
        text = self.run(["qstat", "-f", "-q", "main.q", "-xml"]).stdout
        queue = ElementTree.fromstring(text).find(".//Queue-List")
        return "missing" if queue is None else queue.findtext("state", "")

    def _logs(self, *patterns: str) -> str:
        return super()._logs("*/messages", *patterns)


def find_programs() -> None:
    """Check that Debian's Grid Engine is here, and that we may start it.

    Raises
    ------
    GridEngineMissing
        With the way to install it; or when we are not root, as the daemons have to be.
    """
    missing = [name for name in _NEEDED if not (_PROGRAMS / name).exists()]
    missing += [name for name in ("qsub", "qconf") if not shutil.which(name, path=system_path())]
    if missing:
        raise GridEngineMissing(
            f"no {', '.join(missing)} (Debian: apt-get install gridengine-master gridengine-exec"
            " gridengine-client)"
        )
    if os.geteuid() != 0:
        raise GridEngineMissing("a private Grid Engine needs root")


def changed(text: str, values: Mapping[str, str]) -> str:
    """Return a configuration, lines of a key and a value, with some values replaced."""
    rest = dict(values)
    lines = []
    for line in text.replace("\\\n", " ").splitlines():
        key = line.partition(" ")[0]
        lines.append(f"{key} {rest.pop(key)}" if key in rest else line)
    return "\n".join([*lines, *(f"{key} {value}" for key, value in rest.items())]) + "\n"


def _job(element: ElementTree.Element) -> tuple[str, str]:
    number, task = element.findtext("JB_job_number", ""), element.findtext("tasks")
    return f"{number}.{task}" if task else number, element.findtext("state", "")


def _record(text: str) -> dict[str, str]:
    pairs = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return {pair[0]: pair[1].strip() if len(pair) > 1 else "" for pair in pairs}
