"""Grid Engine (SGE 8.1, Son of Grid Engine, Univa): ``qsub``, ``qstat``, ``qacct``, ``qdel``.

A finished job is in no queue any more, and ``qacct`` learns of it some seconds later; one that
was deleted while it waited has no record there at all. Array tasks count from 1. ``qacct`` cannot
tell a deleted job from one that was killed (both: failed 100, exit status 137).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.answers import (
    Refusals,
    ceiling,
    duration,
    elements,
    identifier,
    moment,
    not_understood,
    size,
    some,
    whole,
    xml_tree,
)
from pandaflow.executors.batch.model import (
    BatchRequest,
    BatchStatus,
    Ending,
    Inside,
    JobRef,
    Queue,
    State,
    plain_name,
)

_REFUSALS = Refusals(
    "Grid Engine",
    silent=r"unable to send message to qmaster|got select error|got send error|commlib error"
    r"|unable to contact qmaster|connection refused|can't connect to service",
    gone=r"does not exist|job id \S+ not found|is already in deletion|no jobs? running since"
    r"|has (?:registered the job|deleted job)"
    # Until the first job has ended there is no file to read.
    r"|accounting: no such file",
    remedies=(
        (r"unknown queue", "see `qconf -sql` for the queues"),
        (r"parallel environment", "see `qconf -spl`, and give SGE(parallel=...)"),
        (r"unknown resource", "see `qconf -sc`, and give SGE(memory=..., gpu=...)"),
        (r"no suitable queues", "no queue has that much: see `qhost` and `qconf -sq QUEUE`"),
        (r"project", "see `qconf -sprjl` for the projects"),
    ),
)
#: ``failed`` codes of qacct that are the fault of the machine: see sge_status(5).
_FAULTS = frozenset({*range(1, 22), 23, 24, 31, 32, 33, 34, 38})
_RESCHEDULED = 25
_LIMIT = 37
_AFTER_JOB = 100
_LAST_SIGNAL = 64


@dataclass(frozen=True, slots=True)
class SGE:
    """Grid Engine; what sites name as they like can be said here.

    Attributes
    ----------
    parallel : str
        Parallel environment for several cores on one node.
    spread : str or None
        Parallel environment that gives whole nodes, for ``nodes`` > 1.
    memory : str
        Resource that limits memory; it counts per slot.
    gpu : str
    """

    parallel: str = "smp"
    spread: str | None = None
    memory: str = "h_vmem"
    gpu: str = "gpu"
    name: str = field(default="sge", init=False)
    prefix: str = field(default="#$", init=False)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"LC_ALL": "C"}, init=False, hash=False
    )
    inside: Inside = field(
        default=Inside(
            id="$JOB_ID",
            index="${SGE_TASK_ID#undefined}",
            first=1,
            nodes='cut -d " " -f 1 "${PE_HOSTFILE:-/dev/null}" | sort -u | grep . || hostname',
        ),
        init=False,
    )
    ending: Ending = field(default=Ending(signals=("KILL",)), init=False)

    def directives(self, request: BatchRequest) -> list[str]:
        """Return the options of ``qsub``: walltime in seconds, memory in bytes per slot.

        Raises
        ------
        WorkflowError
            More than one node without ``spread``.
        """
        lines = [
            ("-N", plain_name(request.name)),
            # The queue's own shell runs the script unless one is named.
            ("-S", "/bin/bash"),
            ("-q", request.queue),
            ("-P", request.account),
            ("-t", None if request.array is None else f"1-{request.array}"),
            ("-tc", None if request.array is None else request.max_running),
            ("-pe", self._environment(request)),
            *(("-l", limit) for limit in self._limits(request)),
            ("-wd", request.workdir),
            ("-o", self.log(request.stdout, request) if request.stdout else None),
            ("-e", self.log(request.stderr, request) if request.stderr else None),
            ("-j", "n" if request.stderr else "y"),
            ("-r", "y" if request.requeue else "n"),
        ]
        written = [_option(key, value) for key, value in lines if value is not None]
        return [*written, *([] if request.workdir else ["-cwd"]), *request.extra]

    def _environment(self, request: BatchRequest) -> tuple[str, str] | None:
        if request.nodes > 1 and self.spread is None:
            raise WorkflowError(
                f"nodes={request.nodes}: Grid Engine spreads a job over nodes by a parallel "
                "environment of the site: name it, SGE(spread=...); `qconf -spl` lists them"
            )
        name = self.parallel if request.nodes == 1 else str(self.spread)
        slots = request.nodes * request.slots
        return (name, str(slots)) if slots > 1 else None

    def _limits(self, request: BatchRequest) -> Iterator[str]:
        if request.walltime is not None:
            yield f"h_rt={ceiling(request.walltime, 1)}"
        if request.memory is not None:
            yield f"{self.memory}={ceiling(request.memory, request.slots)}"
        if request.gpus:
            yield f"{self.gpu}={request.gpus}"

    def log(self, template: str, request: BatchRequest) -> str | None:
        """Return the path with ``$JOB_ID`` and ``$TASK_ID``; None if it has a ``$`` itself."""
        if "$" in template or ":" in template:
            return None
        index = "$TASK_ID" if request.array is not None else "0"
        return template.replace("{id}", "$JOB_ID").replace("{index}", index)

    def warns(self, request: BatchRequest) -> bool:
        """A soft limit would signal the payload's processes too, which it kills."""
        return False

    def submit(self, script_path: str, request: BatchRequest) -> list[str]:
        """Return ``qsub -terse SCRIPT``."""
        return ["qsub", "-terse", script_path]

    def parse_submit(self, stdout: str, stderr: str, code: int) -> str:
        """Return the job number, without the tasks of an array."""
        if code:
            raise _REFUSALS.error(stdout, stderr, code)
        return identifier(
            r"(?:Your job(?:-array)? )?(\d{1,15})(?:\.[\d:-]+)?(?: \(.*\) has been submitted)?",
            stdout,
            "Grid Engine",
        )

    def poll(self, ids: Sequence[str] | None, user: str) -> list[str]:
        """Return ``qstat -xml``: all jobs of the user, whatever the ids."""
        return ["qstat", "-u", user, "-xml"]

    def parse_poll(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return the jobs in the queue, tasks one by one."""
        _REFUSALS.check(stdout, stderr, code)
        found: dict[JobRef, BatchStatus] = {}
        # Some versions print nothing at all when there is nothing to tell.
        tree = xml_tree(stdout.strip() or "<job_info/>", "qstat")
        if tree.tag != "job_info":
            raise not_understood("qstat", stdout)
        for entry in tree.iter("job_list"):
            found |= _queued(entry)
        return found

    def history(self, ids: Sequence[str], user: str) -> list[str]:
        """Return ``qacct`` for one job, or for all of the user's: it takes no list."""
        return ["qacct", "-j", ids[0]] if len(ids) == 1 else ["qacct", "-o", user, "-j"]

    def parse_history(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return ended jobs; a job that was started again has one record for each start."""
        _REFUSALS.check(stdout, stderr, code)
        found: dict[JobRef, BatchStatus] = {}
        requeues: dict[JobRef, int] = {}
        understood = False
        for record in re.split(r"^=+\s*$", stdout, flags=re.M):
            fields = dict(re.findall(r"^(\w+)[ \t]+(\S.*?)\s*$", record, re.M))
            status = _ended(fields)
            understood = understood or "jobnumber" in fields
            if status is not None and status.state == "pending":
                requeues[status.ref] = requeues.get(status.ref, 0) + 1
            elif status is not None:
                found[status.ref] = status
        if not re.search(_REFUSALS.gone, stdout, re.I):
            some(understood, stdout, "qacct")
        return {ref: replace(s, requeues=requeues.get(ref, 0)) for ref, s in found.items()}

    def cancel(self, refs: Sequence[JobRef]) -> list[str]:
        """Return ``qdel`` with ``job`` or ``job.task``."""
        return ["qdel", *(job if i is None else f"{job}.{i + 1}" for job, i in refs)]

    def parse_cancel(self, stdout: str, stderr: str, code: int) -> None:
        """Raise unless the jobs are gone or going; errors stand on stdout."""
        _REFUSALS.check_cancel(stdout, stderr, code)

    def queues(self) -> list[str]:
        """Return the configuration of all queues."""
        return ["qconf", "-sq", "*"]

    def parse_queues(self, stdout: str, stderr: str, code: int) -> list[Queue]:
        """Return the queues; whether one is open is known by ``qstat -f`` only."""
        _REFUSALS.check(stdout, stderr, code)
        found = []
        # A backslash at the end of a line continues it.
        text = re.sub(r"\\\n\s*", " ", stdout)
        for part in re.split(r"(?=^qname\s)", text, flags=re.M):
            fields = dict(re.findall(r"^(\w+)[ \t]+(\S.*?)\s*$", part, re.M))
            if "qname" in fields:
                found.append(_configured(fields))
        return list(some(found, stdout, "qconf"))


def _option(key: str, value: object) -> str:
    words = value if isinstance(value, tuple) else (value,)
    return " ".join([key, *(shlex.quote(str(word)) for word in words)])


def _word(entry: Element, tag: str) -> str:
    return (entry.findtext(tag) or "").strip()


def _queued(entry: Element) -> dict[JobRef, BatchStatus]:
    job, letters = _word(entry, "JB_job_number"), _word(entry, "state")
    if not re.fullmatch(r"\d{1,15}", job, re.A):
        return {}
    state = _state(letters)
    status = BatchStatus(
        id=job,
        state=state,
        reason=f"state {letters}" if state in ("failed", "held", "unknown") else "",
        nodes=tuple(_word(entry, "queue_name").partition("@")[2].split()),
        started=moment(_word(entry, "JAT_start_time")),
        requeues=int("R" in letters),
        remains=state == "failed",
    )
    tasks = _word(entry, "tasks")
    if not tasks:
        return {(job, None): status}
    return {(job, i): replace(status, index=i) for i in elements(tasks, first=1)}


def _state(letters: str) -> State:
    """Read the letters of qstat; those that matter most come first."""
    for some_of, state in _LETTERS:
        if set(some_of) & set(letters):
            return state
    return "unknown"


_LETTERS: tuple[tuple[str, State], ...] = (
    ("d", "completing"),
    ("E", "failed"),
    ("z", "unknown"),
    ("h", "held"),
    ("sST", "held"),
    ("rt", "running"),
    ("wqR", "pending"),
)


def _ended(fields: Mapping[str, str]) -> BatchStatus | None:
    """Read a record of qacct; ``pending`` is one that was rescheduled."""
    job, task = fields.get("jobnumber", ""), whole(fields.get("taskid"))
    if not re.fullmatch(r"\d{1,15}", job, re.A) or (task is not None and task < 1):
        return None
    failed_text, _, reason = fields.get("failed", "").partition(":")
    failed = whole(failed_text)
    exit_code = whole(fields.get("exit_status", "").split("(")[0])
    state = _verdict(failed, exit_code, fields)
    signal = None
    if failed in (_AFTER_JOB, _LIMIT) and exit_code is not None:
        signal = exit_code - 128 if 128 < exit_code <= 128 + _LAST_SIGNAL else None
    return BatchStatus(
        id=job,
        index=None if task is None else task - 1,
        state=state,
        exit_code=exit_code if signal is None and failed in (0, 30) else None,
        signal=signal,
        reason=reason.strip(),
        nodes=tuple(fields.get("hostname", "").split()),
        started=moment(fields.get("start_time")),
        ended=moment(fields.get("end_time")),
    )


def _verdict(failed: int | None, exit_code: int | None, fields: Mapping[str, str]) -> State:
    if failed is None or exit_code is None:
        return "unknown"
    if failed == _RESCHEDULED:
        return "pending"
    if failed in _FAULTS:
        return "node_fail"
    if failed in (_LIMIT, _AFTER_JOB):
        return _limit(fields) or ("timeout" if failed == _LIMIT else "failed")
    return "done" if failed == 0 and exit_code == 0 else "failed"


def _limit(fields: Mapping[str, str]) -> State | None:
    """Find the limit among those that the job asked for (``category``) that it went over."""
    asked = dict(re.findall(r"(\w+)=([\w.:]+)", fields.get("category", "")))
    used = size(fields.get("maxvmem", "").rstrip("Bb"))
    memory = size(asked.get("h_vmem"))
    # A limit per slot: with a parallel environment the job may use that much in each.
    slots = whole(fields.get("slots")) or 1
    if memory is not None and used is not None and used >= memory * slots:
        return "out_of_memory"
    ran = duration(fields.get("ru_wallclock", "").rstrip("s"))
    limits = [duration(asked.get(name)) for name in ("s_rt", "h_rt")]
    if ran is not None and any(limit is not None and ran >= limit for limit in limits):
        return "timeout"
    return None


def _configured(fields: Mapping[str, str]) -> Queue:
    def first(name: str) -> str:
        # Hosts that differ follow in brackets.
        return fields.get(name, "").split(",")[0].split(" ")[0]

    hosts = [h for h in fields.get("hostlist", "").split() if h != "NONE" and h[0] != "@"]
    return Queue(
        name=fields["qname"],
        open=first("initial_state") != "disabled",
        walltime=duration(first("h_rt")),
        cores=whole(first("slots")),
        memory=size(first("h_vmem")),
        nodes=len(hosts) or None,
    )
