"""HTCondor: ``condor_submit``, ``condor_q``, ``condor_history``, ``condor_rm``, ``condor_status``.

A job is described in a file beside its script. HTCondor holds a job that went over a limit or
cannot be run, instead of ending it: such a job has ended for PandaFlow (``timeout``,
``out_of_memory``, ``failed``) and ``remains`` in the queue until it is cancelled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.answers import (
    Refusals,
    ceiling,
    identifier,
    json_object,
    not_understood,
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
_ATTRIBUTES = (
    "ClusterId,ProcId,JobStatus,HoldReasonCode,HoldReason,RemoveReason,ExitCode,ExitBySignal,"
    "ExitSignal,RemoteHost,LastRemoteHost,EnteredCurrentStatus,JobCurrentStartDate,NumJobStarts,"
    "TotalSubmitProcs,PandaflowElements"
)
_MACHINE = "Machine,TotalCpus,TotalMemory,TotalGPUs"
_STATES: Mapping[int, State] = {
    1: "pending",
    2: "running",
    3: "cancelled",
    4: "done",
    5: "failed",
    6: "completing",
    7: "held",
}
#: HoldReasonCode: see "HoldReasonCode" among the job ClassAd attributes of the manual.
_HOLDS: Mapping[int, State] = {
    1: "held",
    15: "held",
    16: "pending",  # input files are being spooled
    21: "out_of_memory",
    34: "out_of_memory",
    46: "timeout",
    47: "timeout",
}
_BY_THE_MACHINE = 21
_ONCE = "JobStatus == 1 && NumJobStarts > 0"
_REFUSALS = Refusals(
    "HTCondor",
    silent=r"can't find address|failed to connect|communication error|\(null\)|failed to fetch ads"
    r"|unable to locate|timed out|connection refused|can't connect to",
    gone=r"couldn't find/remove all jobs|job \S+ not found|already (?:removed|completed)",
    remedies=(
        (r"parse error|invalid queue|failed to parse", "look at the description beside the script"),
        (r"can't access executable|failed to open", "write it where this command can read it"),
        (r"accounting.?group|not authorized|permission denied", "ask the site whom to charge"),
    ),
)


@dataclass(frozen=True, slots=True)
class HTCondor:
    """HTCondor 10 and later (it needs ``allowed_execute_duration``)."""

    name: str = field(default="htcondor", init=False)
    prefix: str = field(default="", init=False)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"LC_ALL": "C"}, init=False, hash=False
    )
    inside: Inside = field(
        default=Inside(id="$_PANDAFLOW_CLUSTER", index="${_PANDAFLOW_PROCESS:-}"), init=False
    )
    ending: Ending = field(default=Ending(signals=("TERM", "KILL"), grace=600.0), init=False)

    def directives(self, request: BatchRequest) -> list[str]:
        """Return ``name = value`` lines: memory in MiB, walltime in seconds.

        Raises
        ------
        WorkflowError
            A queue was asked for: there are none.
        """
        if request.queue is not None:
            raise WorkflowError(
                f"queue={request.queue!r}: HTCondor has no queues; say what the site wants in "
                "extra, for example extra=('+JobFlavour = \"longlunch\"',)"
            )
        parallel = request.nodes > 1
        lines = [
            ("universe", "parallel" if parallel else "vanilla"),
            ("machine_count", request.nodes if parallel else None),
            ("batch_name", _literal(request.name)),
            ("accounting_group", _literal(request.account)),
            ("request_cpus", request.slots),
            ("request_memory", None if request.memory is None else ceiling(request.memory, _MIB)),
            ("request_gpus", request.gpus or None),
            ("allowed_execute_duration", _seconds(request.walltime)),
            ("initialdir", _literal(request.workdir)),
            ("output", self.log(request.stdout, request) if request.stdout else None),
            ("error", self._error(request)),
            ("environment", _environment(request)),
            ("max_materialize", request.max_running if request.array else None),
            ("periodic_remove", None if request.requeue else _ONCE),
            ("+PandaflowElements", request.array),
            ("notification", "never"),
        ]
        written = [f"{key} = {value}" for key, value in lines if value is not None]
        return [*written, *request.extra]

    def _error(self, request: BatchRequest) -> str | None:
        template = request.stderr or request.stdout
        return self.log(template, request) if template else None

    def describe(self, script_path: str, request: BatchRequest) -> tuple[str, str]:
        """Return the description: ``executable``, the directives, ``queue``."""
        queue = "queue" if request.array is None else f"queue {request.array}"
        lines = [f"executable = {_literal(script_path)}", *self.directives(request), queue]
        return f"{script_path}.sub", "\n".join(lines) + "\n"

    def log(self, template: str, request: BatchRequest) -> str | None:
        """Return the path with ``$(ClusterId)`` and ``$(ProcId)``."""
        path = str(_literal(template))
        return path.replace("{id}", "$(ClusterId)").replace("{index}", "$(ProcId)")

    def warns(self, request: BatchRequest) -> bool:
        """HTCondor signals only at the end."""
        return False

    def submit(self, script_path: str, request: BatchRequest) -> list[str]:
        """Return ``condor_submit -terse DESCRIPTION``."""
        return ["condor_submit", "-terse", f"{script_path}.sub"]

    def parse_submit(self, stdout: str, stderr: str, code: int) -> str:
        """Return the cluster."""
        if code:
            raise _REFUSALS.error(stdout, stderr, code)
        # Without -terse it says "2 job(s) submitted to cluster 7.".
        said = re.sub(r"\d+ job\(s\) submitted to cluster (\d+)\.", r"\1.0 - \1.0", stdout)
        return identifier(r"(\d{1,15})\.\d+ - \d{1,15}\.\d+", said, "HTCondor")

    def poll(self, ids: Sequence[str] | None, user: str) -> list[str]:
        """Return ``condor_q`` with the attributes that are needed, as JSON."""
        whose = [user] if ids is None else list(ids)
        return ["condor_q", *whose, "-json", "-attributes", _ATTRIBUTES]

    def parse_poll(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return the jobs in the queue; no job at all is an empty text."""
        return _jobs(stdout, stderr, code)

    def history(self, ids: Sequence[str], user: str) -> list[str]:
        """Return ``condor_history``, which works with every daemon down."""
        return ["condor_history", *ids, "-json", "-attributes", _ATTRIBUTES]

    def parse_history(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return the jobs that left the queue."""
        return _jobs(stdout, stderr, code)

    def cancel(self, refs: Sequence[JobRef]) -> list[str]:
        """Return ``condor_rm`` with ``cluster`` or ``cluster.process``."""
        return ["condor_rm", *(job if i is None else f"{job}.{i}" for job, i in refs)]

    def parse_cancel(self, stdout: str, stderr: str, code: int) -> None:
        """Raise unless the jobs are gone or going."""
        _REFUSALS.check_cancel(stdout, stderr, code)

    def queues(self) -> list[str]:
        """Return ``condor_status`` of all slots."""
        return ["condor_status", "-json", "-attributes", _MACHINE]

    def parse_queues(self, stdout: str, stderr: str, code: int) -> list[Queue]:
        """Return the pool as one queue, without a limit of walltime."""
        _REFUSALS.check(stdout, stderr, code)
        machines = _ads(stdout)
        if not machines:
            return []
        largest = {key: max(_number(ad.get(key)) or 0 for ad in machines) for key in _SIZES}
        return [
            Queue(
                name="pool",
                default=True,
                cores=largest["TotalCpus"] or None,
                memory=largest["TotalMemory"] * _MIB or None,
                gpus=largest["TotalGPUs"],
                nodes=len({str(ad.get("Machine")) for ad in machines}),
            )
        ]


_SIZES = ("TotalCpus", "TotalMemory", "TotalGPUs")


def _literal(value: str | None) -> str | None:
    """Keep ``$`` from being a macro.

    Raises
    ------
    WorkflowError
        What a description cannot hold: a last backslash joins two lines, blanks at the ends
        are dropped.
    """
    if value is not None and (value.endswith("\\") or value != value.strip()):
        raise WorkflowError(f"{value!r}: HTCondor takes no text that ends in '\\' or with blanks")
    return None if value is None else value.replace("$", "$(DOLLAR)")


def _seconds(walltime: float | None) -> int | None:
    return None if walltime is None else ceiling(walltime, 1)


def _environment(request: BatchRequest) -> str:
    element = "" if request.array is None else " _PANDAFLOW_PROCESS=$(ProcId)"
    return f'"_PANDAFLOW_CLUSTER=$(ClusterId){element}"'


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if abs(value) < 1e15 else None


def _moment(value: object) -> float | None:
    seconds = _number(value)
    return float(seconds) if seconds else None


def _ads(stdout: str) -> list[dict[str, Any]]:
    if not stdout.strip():
        return []
    answer = json_object(stdout, "HTCondor")
    if not isinstance(answer, list):
        raise not_understood("HTCondor", stdout)
    return [ad for ad in answer if isinstance(ad, dict)]


def _jobs(stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
    _REFUSALS.check(stdout, stderr, code)
    ads = [ad for ad in _ads(stdout) if _number(ad.get("ClusterId")) is not None]
    # A cluster of which another process is seen is an array, whoever submitted it.
    arrays = {ad["ClusterId"] for ad in ads if _is_element(ad)}
    statuses = (_status(ad, ad["ClusterId"] in arrays) for ad in ads)
    return {status.ref: status for status in statuses}


def _is_element(ad: Mapping[str, Any]) -> bool:
    return (
        _number(ad.get("PandaflowElements")) is not None
        or (_number(ad.get("TotalSubmitProcs")) or 1) > 1
        or (_number(ad.get("ProcId")) or 0) > 0
    )


def _status(ad: Mapping[str, Any], element: bool) -> BatchStatus:
    state = _state(ad)
    ran = state in ("done", "failed") and ad.get("JobStatus") == 4
    by_signal = ad.get("ExitBySignal") is True
    starts = _number(ad.get("NumJobStarts")) or 0
    over = state not in ("pending", "held", "running", "completing", "unknown")
    slot = ad.get("RemoteHost") or ad.get("LastRemoteHost")
    return BatchStatus(
        id=str(_number(ad.get("ClusterId"))),
        index=_number(ad.get("ProcId")) or 0 if element else None,
        state=state,
        # Held and removed jobs carry a signal that was not theirs.
        exit_code=_number(ad.get("ExitCode")) if ran and not by_signal else None,
        signal=_number(ad.get("ExitSignal")) if ran and by_signal else None,
        reason=str(ad.get("HoldReason") or ad.get("RemoveReason") or ""),
        nodes=(slot.rpartition("@")[2],) if isinstance(slot, str) else (),
        started=_moment(ad.get("JobCurrentStartDate")),
        ended=_moment(ad.get("EnteredCurrentStatus")) if over else None,
        requeues=max(0, starts - 1),
        remains=over and ad.get("JobStatus") == 5,
    )


def _state(ad: Mapping[str, Any]) -> State:
    state = _STATES.get(_number(ad.get("JobStatus")) or 0, "unknown")
    if state == "done" and (ad.get("ExitBySignal") is True or _number(ad.get("ExitCode"))):
        return "failed"
    if state == "failed":
        return _held(ad)
    if state == "cancelled" and _ONCE in str(ad.get("RemoveReason")):
        return "preempted"
    return state


def _held(ad: Mapping[str, Any]) -> State:
    code = _number(ad.get("HoldReasonCode")) or 0
    # The machine's own policy may be about anything; most are about memory.
    if code == _BY_THE_MACHINE and "memory" not in str(ad.get("HoldReason")).lower():
        return "failed"
    return _HOLDS.get(code, "failed")
