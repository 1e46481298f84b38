"""Slurm: ``sbatch``, ``squeue``, ``sacct`` or ``scontrol``, ``scancel``, ``sinfo``.

``squeue`` is asked with ``-o`` and not with ``--json`` or ``-O``. JSON ignores ``-j`` and ``-t``
in 22.05, answers "no jobs" with exit code 0 when the controller is down, changed its shape with
every release since, and 20.11 has none; ``-O`` pads and cuts fields. ``-o`` is the same in all of
them. The fields that may contain anything (the reason) stand last, so the separator is safe.
``squeue`` tells no exit codes: they come from the history.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pandaflow.executors.batch.answers import (
    Refusals,
    ceiling,
    clock,
    duration,
    elements,
    identifier,
    moment,
    size,
    some,
    whole,
)
from pandaflow.executors.batch.model import (
    BatchRequest,
    BatchStatus,
    Ending,
    Inside,
    JobRef,
    Queue,
    State,
)

_MIB = 2**20
_STATES: Mapping[str, State] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_FED": "pending",
    "REQUEUE_HOLD": "held",
    "RESV_DEL_HOLD": "held",
    "SPECIAL_EXIT": "held",
    "SUSPENDED": "held",
    "STOPPED": "held",
    "RUNNING": "running",
    "RESIZING": "running",
    "EXPEDITING": "pending",
    "COMPLETING": "completing",
    "SIGNALING": "completing",
    "STAGE_OUT": "completing",
    "COMPLETED": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "out_of_memory",
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "LAUNCH_FAILED": "node_fail",
    "RECONFIG_FAIL": "node_fail",
    "PREEMPTED": "preempted",
}
#: Where the signal should be, ``0:53`` says that an output file cannot be opened, ``0:125`` that
#: memory ran out.
_NO_SIGNALS: Mapping[int, str] = {53: "an output file cannot be opened", 125: "OutOfMemory"}
_SQUEUE = "%i|%T|%S|%e|%N|%r"
_SACCT = "JobID,State,ExitCode,Submit,Start,End,NodeList,Reason"
_SINFO = "%P|%a|%l|%D|%c|%m|%G"
_JOB = re.compile(r"(\d{1,15})(?:_(?:(\d{1,9})|\[(.*)\]))?")

_REFUSALS = Refusals(
    "Slurm",
    silent=r"unable to contact slurm|connection refused|connection timed out|socket timed out"
    r"|problem talking to the database|slurm backup controller in standby"
    r"|zero bytes were transmitted|unable to establish control",
    gone=r"invalid job id specified|already completing or completed|job has already finished",
    remedies=(
        (r"invalid partition", "see `sinfo -s` for the partitions"),
        (r"invalid account", "see `sacctmgr show associations` for your accounts"),
        (r"memory specification|node configuration is not available", "ask for less per node"),
        (r"time limit|--time", "ask for a shorter walltime, see `sinfo -s`"),
        (r"job array", "use smaller arrays: `scontrol show config` says MaxArraySize"),
        (r"submit.*limit|job/proc/node limit", "wait for jobs to end, or submit fewer"),
        (r"accounting storage is disabled", "use Slurm(accounting=False)"),
        (r"generic resource|gres", "see `sinfo -o '%P %G'` for the gpus of each partition"),
    ),
)


@dataclass(frozen=True, slots=True)
class Slurm:
    """Slurm 20.11 and later.

    Attributes
    ----------
    accounting : bool
        Ask ``sacct`` how jobs ended; False: ``scontrol``, which knows ended jobs for
        ``MinJobAge`` seconds (5 minutes unless the site says otherwise).
    """

    accounting: bool = True
    name: str = field(default="slurm", init=False)
    prefix: str = field(default="#SBATCH", init=False)
    environment: Mapping[str, str] = field(
        # Seconds since the epoch, and lists of elements in full (they are cut after 64 letters).
        default_factory=lambda: {
            "LC_ALL": "C",
            "SLURM_TIME_FORMAT": "%s",
            "SLURM_BITSTR_LEN": "0",
        },
        init=False,
        hash=False,
    )
    inside: Inside = field(
        default=Inside(
            id="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}",
            index="${SLURM_ARRAY_TASK_ID:-}",
            nodes='scontrol show hostnames "$SLURM_JOB_NODELIST"',
        ),
        init=False,
    )
    ending: Ending = field(default=Ending(signals=("TERM", "KILL"), grace=30.0), init=False)

    def directives(self, request: BatchRequest) -> list[str]:
        """Return the options of ``sbatch``; memory in MiB, walltime in ``hh:mm:ss``.

        Slurm counts walltime in minutes and rounds up itself.
        """
        options = [
            ("job-name", request.name),
            ("partition", request.queue),
            ("account", request.account),
            ("time", None if request.walltime is None else clock(request.walltime)),
            ("nodes", request.nodes),
            ("ntasks-per-node", request.tasks_per_node),
            ("cpus-per-task", request.cores),
            ("mem", None if request.memory is None else f"{ceiling(request.memory, _MIB)}M"),
            ("gres", f"gpu:{request.gpus}" if request.gpus else None),
            ("array", _array(request)),
            ("output", self.log(request.stdout, request) if request.stdout else None),
            ("error", self.log(request.stderr, request) if request.stderr else None),
            ("chdir", request.workdir),
            ("signal", _warning(request)),
        ]
        lines = [shlex.quote(f"--{key}={value}") for key, value in options if value is not None]
        return [*lines, "--requeue" if request.requeue else "--no-requeue", *request.extra]

    def log(self, template: str, request: BatchRequest) -> str | None:
        """Return the path with ``%A`` and ``%a`` (arrays) or ``%j``; a ``%`` is doubled."""
        job, index = ("%j", "0") if request.array is None else ("%A", "%a")
        return template.replace("%", "%%").replace("{id}", job).replace("{index}", index)

    def warns(self, request: BatchRequest) -> bool:
        """Slurm signals the script's shell itself."""
        return True

    def submit(self, script_path: str, request: BatchRequest) -> list[str]:
        """Return ``sbatch --parsable SCRIPT``."""
        return ["sbatch", "--parsable", script_path]

    def parse_submit(self, stdout: str, stderr: str, code: int) -> str:
        """Return the id; the cluster of a federation that may follow it is left out."""
        if code:
            raise _REFUSALS.error(stdout, stderr, code)
        return identifier(r"(?:Submitted batch job )?(\d{1,15})(?:;[\w.-]+)?", stdout, "Slurm")

    def poll(self, ids: Sequence[str] | None, user: str) -> list[str]:
        """Return ``squeue`` in all states, so that what just ended is still seen."""
        whose = ["-u", user] if ids is None else ["-j", ",".join(ids)]
        return ["squeue", "-h", "-r", "-t", "all", *whose, "-o", _SQUEUE]

    def parse_poll(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return the jobs of ``squeue``, elements of compressed arrays one by one."""
        _REFUSALS.check(stdout, stderr, code)
        found: dict[JobRef, BatchStatus] = {}
        for line in stdout.splitlines():
            fields = line.strip().split("|", 5)
            if len(fields) == 6:
                found |= _by_ref(fields[0], _queued(fields))
        return dict(some(found, stdout, "squeue"))

    def history(self, ids: Sequence[str], user: str) -> list[str]:
        """Return ``sacct`` with all starts of each job, or ``scontrol show job``."""
        if self.accounting:
            return ["sacct", "-n", "-P", "-X", "-D", "-j", ",".join(ids), "-o", _SACCT]
        # It takes one id or none; none means all jobs.
        return ["scontrol", "-o", "show", "job", *(ids if len(ids) == 1 else ())]

    def parse_history(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return ended (and live) jobs with exit codes."""
        _REFUSALS.check(stdout, stderr, code)
        if self.accounting:
            return _accounted(stdout)
        found: dict[JobRef, BatchStatus] = {}
        for line in stdout.splitlines():
            found |= _controlled(line)
        if not found and "No jobs in the system" in stdout:
            return {}
        return dict(some(found, stdout, "scontrol"))

    def cancel(self, refs: Sequence[JobRef]) -> list[str]:
        """Return ``scancel``, which says nothing of jobs that have ended."""
        return ["scancel", *(job if i is None else f"{job}_{i}" for job, i in refs)]

    def parse_cancel(self, stdout: str, stderr: str, code: int) -> None:
        """Raise unless the jobs are gone or going."""
        _REFUSALS.check_cancel(stdout, stderr, code)

    def queues(self) -> list[str]:
        """Return ``sinfo`` with one line for each kind of node of each partition."""
        return ["sinfo", "-h", "-e", "-o", _SINFO]

    def parse_queues(self, stdout: str, stderr: str, code: int) -> list[Queue]:
        """Return the partitions, each with its largest node."""
        _REFUSALS.check(stdout, stderr, code)
        found: dict[str, Queue] = {}
        for line in stdout.splitlines():
            fields = line.strip().split("|", 6)
            if len(fields) == 7 and fields[0].strip("*"):
                part = _partition(fields)
                found[part.name] = _larger(found[part.name], part) if part.name in found else part
        return list(some(found, stdout, "sinfo").values())


def _array(request: BatchRequest) -> str | None:
    if request.array is None:
        return None
    throttle = f"%{request.max_running}" if request.max_running else ""
    return f"0-{request.array - 1}{throttle}"


def _warning(request: BatchRequest) -> str | None:
    if request.warn is None:
        return None
    signal, seconds = request.warn
    return f"B:{signal}@{ceiling(seconds, 1)}"


def _state(word: str) -> State:
    return _STATES.get(word.split(" ")[0].rstrip("+"), "unknown")


def _by_ref(name: str, status: BatchStatus) -> dict[JobRef, BatchStatus]:
    """Give a status to the job ``7``, the element ``3_4`` or the elements ``3_[5-9%2]``."""
    match = _JOB.fullmatch(name)
    if match is None:
        return {}
    job, one, many = match.groups()
    if one is None and many is None:
        return {(job, None): replace(status, id=job)}
    indices = elements(many) if one is None else [int(one)]
    return {(job, i): replace(status, id=job, index=i) for i in indices}


def _queued(fields: Sequence[str]) -> BatchStatus:
    _, word, start, end, nodes, reason = fields
    state = _held(_state(word), reason)
    live = state in ("pending", "held", "running", "completing")
    return BatchStatus(
        id="",
        state=state,
        reason=_told(reason),
        nodes=_hosts(nodes),
        # What pending jobs show is when the scheduler means to start them.
        started=None if state in ("pending", "held") and not nodes else moment(start),
        ended=None if live else moment(end),
    )


def _held(state: State, reason: str) -> State:
    hold = re.match(r"JobHeld|launch_failed_requeued_held|job_requeued_in_held", reason)
    return "held" if state == "pending" and hold else state


def _told(reason: str) -> str:
    return "" if reason in ("None", "(null)", "N/A") else reason


def _hosts(text: str) -> tuple[str, ...]:
    """Expand ``n[1-3,7],login1`` as far as Slurm's own notation goes."""
    if text in ("", "None assigned", "(null)", "N/A"):
        return ()
    hosts: list[str] = []
    for part in re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text)[:100_000]:
        match = re.fullmatch(r"([^\[\]]*)\[([\d,-]+)\]", part)
        hosts += _numbered(match[1], match[2]) if match else [part]
    return tuple(hosts)


def _numbered(stem: str, ranges: str) -> Iterable[str]:
    for piece in ranges.split(","):
        width = len(piece.split("-")[0])
        for number in elements(piece)[:100_000]:
            yield f"{stem}{number:0{width}d}"


def _ended_by(state: State, code: str) -> tuple[int | None, int | None]:
    """Read ``exit:signal``."""
    exit_text, _, signal_text = code.partition(":")
    exit_code, signal = whole(exit_text), whole(signal_text) or None
    if state in ("pending", "held", "running"):
        return None, None
    if signal is not None:
        return None, signal if signal not in _NO_SIGNALS else None
    # Slurm writes 0:0 for jobs that did not get as far as an exit code.
    return (exit_code if state in ("done", "failed") or exit_code else None), None


def _record(state: State, code: str, start: str, end: str, nodes: str, reason: str) -> BatchStatus:
    exit_code, signal = _ended_by(state, code)
    live = state in ("pending", "held", "running", "completing")
    return BatchStatus(
        id="",
        state=state,
        exit_code=exit_code,
        signal=signal,
        reason=_told(reason) or _NO_SIGNALS.get(whole(code.partition(":")[2]) or 0, ""),
        nodes=_hosts(nodes),
        started=None if state in ("pending", "held") else moment(start),
        ended=None if live else moment(end),
    )


def _accounted(stdout: str) -> dict[JobRef, BatchStatus]:
    """Read ``sacct -P -D``: each start of a requeued job is a record; the last one counts."""
    records: list[tuple[float, str, BatchStatus]] = []
    for line in stdout.splitlines():
        fields = line.strip().split("|", 7)
        if len(fields) == 8 and _JOB.fullmatch(fields[0]):
            job, word, code, submitted, start, end, nodes, reason = fields
            status = _record(_held(_state(word), reason), code, start, end, nodes, reason)
            records.append((moment(submitted) or 0.0, job, status))
    found: dict[JobRef, BatchStatus] = {}
    for _, job, status in sorted(records, key=lambda record: record[0]):
        for ref, new in _by_ref(job, status).items():
            found[ref] = replace(new, requeues=found[ref].requeues + 1 if ref in found else 0)
    return dict(some(found, stdout, "sacct"))


def _controlled(line: str) -> dict[JobRef, BatchStatus]:
    """Read one line of ``scontrol -o show job``."""
    fields = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))
    if not {"JobId", "JobState"} <= set(fields):
        return {}
    state = _held(_state(fields["JobState"]), fields.get("Reason", ""))
    status = replace(
        _record(
            state,
            fields.get("ExitCode", ""),
            fields.get("StartTime", ""),
            fields.get("EndTime", ""),
            fields.get("NodeList", ""),
            fields.get("Reason", ""),
        ),
        requeues=whole(fields.get("Restarts")) or 0,
    )
    if "ArrayJobId" not in fields:
        return _by_ref(fields["JobId"], status)
    return _by_ref(f"{fields['ArrayJobId']}_[{fields.get('ArrayTaskId', '')}]", status)


def _partition(fields: Sequence[str]) -> Queue:
    name, up, limit, nodes, cores, memory, gres = fields
    gpus = [whole(count) or 0 for count in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", gres)]
    return Queue(
        name=name.rstrip("*"),
        open=up == "up",
        default=name.endswith("*"),
        walltime=duration(limit),
        cores=whole(cores.rstrip("+")),
        memory=size(memory.rstrip("+"), "m"),
        gpus=sum(gpus),
        nodes=whole(nodes),
    )


def _larger(one: Queue, other: Queue) -> Queue:
    return replace(
        one,
        cores=max(one.cores or 0, other.cores or 0) or None,
        memory=max(one.memory or 0, other.memory or 0) or None,
        gpus=max(one.gpus, other.gpus),
        nodes=(one.nodes or 0) + (other.nodes or 0),
    )
