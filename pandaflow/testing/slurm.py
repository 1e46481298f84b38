"""A private Slurm of several nodes on one machine, for tests: up in about a second.

All daemons run in one temporary folder, with ports of their own, so several clusters may run at
once. `Daemons` sees to it that nothing stays, however the test ends.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket

from pandaflow.testing.daemons import (
    CGROUPS,
    PATIENCE,
    Cluster,
    Daemons,
    claim_ports,
    clean_environment,
    listens,
    system_path,
    wait_until,
)

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb", "mariadb-install-db")
_CONTROLLERS = ("memory", "freezer", "cpuacct", "cpuset")

_CONFIGURATION = """\
ClusterName=pandaflow
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued waits for its old credential to expire: 120 s by default.
AuthInfo=socket={folder}/run/munge.s,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
# Nodes may claim more cores and memory than the machine has.
SlurmdParameters=config_overrides
ProctrackType=proctrack/{tracking}
TaskPlugin=task/{binding}
JobAcctGatherType=jobacct_gather/{gathering}
JobAcctGatherFrequency=task=1
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1,default_queue_depth=1000
ReturnToService=1
MessageTimeout=5
SlurmdTimeout=5
KillWait=2
MinJobAge=300
MaxArraySize=10001
MaxJobCount=20000
JobRequeue=1
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
PlugStackConfig={folder}/plugstack.conf
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1"
    " SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory}{more}\n"
)
_PARTITIONS = """\
PartitionName=main Nodes={nodes} Default=YES MaxTime=1-0 DefaultTime=10 DefMemPerCPU=200 State=UP
PartitionName=short Nodes={nodes} MaxTime=1 DefaultTime=1 DefMemPerCPU=200 State=UP
PartitionName=small Nodes={first} MaxTime=5 DefaultTime=1 DefMemPerCPU=100 MaxMemPerNode=500 \
MaxCPUsPerNode=2 State=UP
"""
#: Devices that every machine has stand in for GPUs: Slurm looks at their names only.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
_CGROUP_CONFIGURATION = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainRAMSpace=yes
"""
_NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none\n"
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/run/munge.s
"""
_DATABASE_DAEMON = """\
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.s
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


class SlurmMissing(RuntimeError):
    """There is no Slurm to be had here."""


class Slurm(Cluster):
    """A Slurm cluster on this machine; use it as a context manager.

    Partitions: ``main`` (the default, one day), ``short`` (one minute) and ``small`` (the first
    node only: five minutes, 2 CPUs, 500 MB). Limits are counted in whole minutes, and enforced
    every 30 s.

    Parameters
    ----------
    nodes
        How many; at most 60.
    cpus, memory
        Of each node: cores and MB. They may exceed the machine's.
    cgroups
        Whether jobs are held by control groups (version 1), as on most sites: then a job that
        takes too much memory ends as ``OUT_OF_MEMORY``. None: if they can be used.
    accounting
        Whether to keep a database of jobs, so that ``sacct`` works; it lags some seconds.
    gpus
        Of each node, at most 4: counted, handed out and told to jobs as real ones are.
    extra
        More lines for ``slurm.conf``.

    Attributes
    ----------
    env : dict[str, str]
        Environment in which Slurm's commands talk to this cluster.
    nodes : tuple[str, ...]
        Names, which are unique on the machine.
    folder : Path
        Configuration, state and logs.

    Raises
    ------
    SlurmMissing
        Programs are missing, or we are not root; with what to do.
    RuntimeError
        The cluster does not start; with the ends of its logs.
    """

    def __init__(
        self,
        nodes: int = 4,
        *,
        cpus: int = 4,
        memory: int = 4000,
        cgroups: bool | None = None,
        accounting: bool = False,
        gpus: int = 0,
        extra: str = "",
    ) -> None:
        if not 1 <= nodes <= 60:
            raise ValueError(f"1 to 60 nodes, not {nodes}")
        if not 0 <= gpus <= len(_DEVICES):
            raise ValueError(f"0 to {len(_DEVICES)} GPUs, not {gpus}")
        super().__init__()
        find_programs(accounting=accounting)
        self.accounting = accounting
        self.cgroups = cgroups_usable() if cgroups is None else cgroups
        self._size = (nodes, cpus, memory)
        self._gpus, self._extra = gpus, extra
        self.nodes: tuple[str, ...] = ()

    # --- commands and jobs -----------------------------------------------------------------

    def submit(self, command: str, *options: str) -> str:
        """Submit a shell command with ``sbatch``; return the job's id. Output is thrown away."""
        quiet = ("--output=/dev/null", "--chdir=/")
        argv = ["sbatch", "--parsable", *quiet, *options, "--wrap", command]
        return self.run(argv).stdout.strip()

    def states(self) -> dict[str, str]:
        """State of every job by id, array elements one by one; finished ones for 5 minutes."""
        lines = self.run(["squeue", "-h", "-r", "-t", "all", "-o", "%i %T"]).stdout.splitlines()
        return dict(line.split(None, 1) for line in lines)

    def show(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` knows of a job."""
        text = self.run(["scontrol", "show", "job", "-o", job]).stdout
        return dict(re.findall(r"(\S+?)=(.*?)(?=\s+\S+?=|\s*$)", text))

    def wait_idle(self, seconds: float = PATIENCE) -> None:
        """Wait until every node is up, and free."""
        wait_until(
            lambda: [*self._node_states().values()] == ["idle"] * len(self.nodes),
            lambda: f"idle nodes: {self._node_states()}\n{self._logs()}",
            seconds,
        )

    def cancel_all(self) -> None:
        """Cancel every job."""
        jobs = self.run(["squeue", "-h", "-o", "%A"]).stdout.split()
        if jobs:
            self.run(["scancel", "--full", *sorted(set(jobs))])

    def reset(self) -> None:
        """Make a used cluster as new, but for its history: daemons run, nodes are up and free."""
        if not self._running.alive("slurmctld"):
            self.restart_controller()
        states = self._node_states()
        for node in self.nodes:
            # A new controller looks for its nodes after some seconds; they report at their start.
            if not self._running.alive(node) or states[node].startswith("unknown"):
                self.restart_slurmd(node)
        self.cancel_all()
        for node, state in self._node_states().items():
            if state.startswith(("down", "drain")):
                self._bring_back(node)
        self.wait_idle()

    def _bring_back(self, node: str) -> None:
        """Resume a node that may come back by itself at this very moment."""
        try:
            self.resume(node)
        except RuntimeError:
            if self._node_states()[node].startswith(("down", "drain")):
                raise

    # --- what may go wrong -----------------------------------------------------------------

    def down(self, node: str) -> None:
        """Declare a node broken: its jobs are requeued, or end as ``NODE_FAIL``."""
        self._update(f"nodename={node}", "state=down", "reason=test")

    def resume(self, node: str) -> None:
        """Take a node that is down back into service."""
        self._update(f"nodename={node}", "state=resume")

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon. Its jobs live on; after some 15 s Slurm gives the node up."""
        self._running.kill(node)

    def restart_slurmd(self, node: str) -> None:
        """Start a node's daemon; kill it before if it still runs."""
        if self._running.alive(node):
            self.kill_slurmd(node)
        self._start_slurmd(node)

    def kill_controller(self) -> None:
        """Kill ``slurmctld``, which forgets the last seconds: new jobs, and that jobs started."""
        self._running.kill("slurmctld")

    def restart_controller(self) -> None:
        """Start ``slurmctld`` from its saved state; if it runs, let it save and end before."""
        if self._running.alive("slurmctld"):
            self._running.kill("slurmctld", signal.SIGTERM)
        self._running.start("slurmctld", ["slurmctld", "-D"], self.env)
        self._wait_controller()

    def end_now(self, job: str) -> None:
        """Let the time limit of a running job end now: ``TIMEOUT`` within 30 s."""
        self._update(f"jobid={job}", "EndTime=now+1")

    def requeue(self, job: str) -> None:
        """Take a running job back into the queue; it starts again after about 7 s."""
        self.run(["scontrol", "requeue", job])

    def suspend(self, job: str) -> None:
        """Freeze a running job."""
        self.run(["scontrol", "suspend", job])

    def resume_job(self, job: str) -> None:
        """Let a suspended job go on."""
        self.run(["scontrol", "resume", job])

    # --- start -----------------------------------------------------------------------------

    def _start(self) -> None:
        count, cpus, memory = self._size
        claim = claim_ports(count + 3)
        port = claim.getsockname()[1]
        # Slurm names control groups after the node only: two clusters must not share a name.
        self.nodes = tuple(f"p{port}n{index}" for index in range(1, count + 1))
        with claim:
            groups = [f"slurm_{node}" for node in self.nodes] if self.cgroups else []
            self._daemons = Daemons("pandaflow-slurm-", cgroups=groups, claim=claim)
        self.env = clean_environment("SLURM", "SBATCH", "SQUEUE", "SINFO")
        self.env["SLURM_CONF"] = str(self.folder / "slurm.conf")
        self._configure(port, cpus, memory)
        self._start_munge()
        if self.accounting:
            self._start_accounting(port + count + 2)
        self._running.start("slurmctld", ["slurmctld", "-D", "-c"], self.env)
        self._wait_controller()
        for node in self.nodes:
            self._start_slurmd(node)
        self.wait_idle()

    def _configure(self, port: int, cpus: int, memory: int) -> None:
        for name in ("state", "log", "run", "munge"):
            (self.folder / name).mkdir(0o700 if name == "munge" else 0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        plugins = ("cgroup", "cgroup", "cgroup") if self.cgroups else ("linuxproc", "none", "linux")
        named = dict(zip(("tracking", "binding", "gathering"), plugins, strict=True))
        text = _CONFIGURATION.format(host=host, port=port + 1, folder=self.folder, **named)
        if not self.cgroups:
            text += "JobAcctGatherParams=OverMemoryKill\n"
        text += "GresTypes=gpu\n" if self._gpus else ""
        more = f" Gres=gpu:{self._gpus}" if self._gpus else ""
        size = {"cpus": cpus, "memory": memory, "more": more}
        for number, name in enumerate(self.nodes, port + 2):
            text += _NODE.format(name=name, host=host, port=number, **size)
        kept = _ACCOUNTING if self.accounting else _NO_ACCOUNTING
        text += kept.format(port=port + len(self.nodes) + 2, folder=self.folder)
        text += _PARTITIONS.format(nodes=",".join(self.nodes), first=self.nodes[0])
        groups = _CGROUP_CONFIGURATION if self.cgroups else ""
        (self.folder / "cgroup.conf").write_text(groups)
        (self.folder / "plugstack.conf").touch()
        (self.folder / "gres.conf").write_text(
            "".join(
                f"NodeName={name} Name=gpu File={device}\n"
                for name in self.nodes
                for device in _DEVICES[: self._gpus]
            )
        )
        (self.folder / "slurm.conf").write_text(text + self._extra + "\n")

    def _start_munge(self) -> None:
        at = self.folder
        argv = ["munged", "--foreground", "--num-threads=4", f"--key-file={at}/munge/key"]
        argv += [f"--socket={at}/run/munge.s", f"--pid-file={at}/run/munged.pid"]
        argv += [f"--log-file={at}/log/munged.log", f"--seed-file={at}/munge/seed"]
        self._running.start("munged", argv, self.env)
        path = at / "run" / "munge.s"
        wait_until(path.exists, lambda: f"munged to start\n{self._logs()}")

    def _start_accounting(self, port: int) -> None:
        at = self.folder
        name = f"{at}/run/database.s"
        make = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={at}/database"]
        self.run([*make, "--auth-root-authentication-method=normal", "--skip-test-db"])
        options = ["--user=root", f"--datadir={at}/database", f"--socket={name}"]
        options += ["--skip-networking", f"--pid-file={at}/run/database.pid"]
        # The values that slurmdbd asks for at least, but for the pool, which is small here.
        options += ["--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
        self._running.start("mariadbd", ["mariadbd", "--no-defaults", *options], self.env)
        create = ["mariadb", "--no-defaults", f"--socket={name}", "--user=root"]
        create += ["--execute=create database if not exists slurm_acct_db"]
        wait_until(
            lambda: self.run(create, check=False).returncode == 0,
            lambda: f"the database to start\n{self._logs()}",
        )
        self._start_slurmdbd(port, name)

    def _start_slurmdbd(self, port: int, database: str) -> None:
        file = self.folder / "slurmdbd.conf"
        file.write_text(_DATABASE_DAEMON.format(folder=self.folder, port=port))
        file.chmod(0o600)
        env = self.env | {"MYSQL_UNIX_PORT": database}
        self._running.start("slurmdbd", ["slurmdbd", "-D"], env)
        wait_until(lambda: listens(port), lambda: f"slurmdbd to start\n{self._logs()}")

    def _start_slurmd(self, node: str) -> None:
        self._running.start(node, ["slurmd", "-D", "-N", node], self.env)

    def _wait_controller(self) -> None:
        port = next(
            int(line.partition("=")[2])
            for line in (self.folder / "slurm.conf").read_text().splitlines()
            if line.startswith("SlurmctldPort=")
        )
        wait_until(
            lambda: self._running.alive("slurmctld") and listens(port),
            lambda: f"slurmctld to start\n{self._logs()}",
        )

    def _node_states(self) -> dict[str, str]:
        lines = self.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"]).stdout.splitlines()
        return dict(line.split() for line in lines)

    def _update(self, *words: str) -> None:
        self.run(["scontrol", "update", *words])


def find_programs(*, accounting: bool = False) -> None:
    """Check that Slurm's programs are here, and that we may start them.

    Raises
    ------
    SlurmMissing
        With the way to install them; or when we are not root, as the daemons have to be.
    """
    programs = [*_PROGRAMS, *(_ACCOUNTING_PROGRAMS if accounting else ())]
    missing = [name for name in programs if shutil.which(name, path=system_path()) is None]
    if missing:
        more = " slurmdbd slurm-wlm-mysql-plugin mariadb-server" if accounting else ""
        raise SlurmMissing(
            f"no {', '.join(missing)} (Debian: apt-get install slurmctld slurmd slurm-client"
            f" slurm-wlm-basic-plugins munge{more})"
        )
    if os.geteuid() != 0:
        raise SlurmMissing("a private Slurm needs root")


def cgroups_usable() -> bool:
    """Whether control groups of version 1 are mounted where Slurm wants them, and writable."""
    return all(
        os.path.ismount(CGROUPS / name) and os.access(CGROUPS / name, os.W_OK)
        for name in _CONTROLLERS
    )
