"""IBM Spectrum LSF 10.1: ``bsub``, ``bjobs``, ``bkill``, ``bqueues``.

Written after the manual; no LSF was at hand. Walltime counts in minutes, memory in a unit that
the site sets (``LSF_UNIT_FOR_LIMITS``, KB unless it does). Ended jobs are shown by
``bjobs -a`` for ``CLEAN_PERIOD`` seconds (an hour unless the site says otherwise). Elements of
arrays count from 1, and a job that is no array shows element 0.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pandaflow.executors.batch.answers import (
    Refusals,
    ceiling,
    identifier,
    moment,
    names,
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
    plain_name,
)

_UNITS: Mapping[str, int] = {"KB": 2**10, "MB": 2**20, "GB": 2**30}
# The reasons, which may contain anything, stand last.
_FIELDS = "jobid jobindex stat exit_code exec_host start_time finish_time exit_reason pend_reason"
_STATES: Mapping[str, State] = {
    "PEND": "pending",
    "FWD_PEND": "pending",
    "WAIT": "pending",
    "PROV": "pending",
    "PSUSP": "held",
    "USUSP": "held",
    "SSUSP": "held",
    "RUN": "running",
    "DONE": "done",
    "POST_DONE": "done",
    "EXIT": "failed",
    "POST_ERR": "failed",
    "ZOMBI": "node_fail",
    "UNKWN": "unknown",
}
#: What ``exit_reason`` begins with: see "termination reasons" of ``bhist -l``.
_TERMINATIONS: Mapping[str, State] = {
    "TERM_RUNLIMIT": "timeout",
    "TERM_DEADLINE": "timeout",
    "TERM_WINDOW": "preempted",
    "TERM_CPULIMIT": "timeout",
    "TERM_MEMLIMIT": "out_of_memory",
    "TERM_SWAP": "out_of_memory",
    "TERM_OWNER": "cancelled",
    "TERM_ADMIN": "cancelled",
    "TERM_FORCE_OWNER": "cancelled",
    "TERM_FORCE_ADMIN": "cancelled",
    "TERM_REMOVE_HUNG_JOB": "node_fail",
    "TERM_ORPHAN_SYSTEM": "cancelled",
    "TERM_PREEMPT": "preempted",
    "TERM_LOAD": "preempted",
    "TERM_REQUEUE_OWNER": "preempted",
    "TERM_REQUEUE_ADMIN": "preempted",
    "TERM_REQUEUE_RC": "preempted",
    "TERM_RC_RECLAIM": "preempted",
    "TERM_ZOMBIE": "node_fail",
}
_REFUSALS = Refusals(
    "LSF",
    silent=r"cannot connect to lsf|lsf is down|batch daemon not responding|still trying"
    r"|failed in sending/receiving|communication time ?out|connection refused"
    r"|host does not respond|lim is down",
    gone=r"is not found|no (?:matching |unfinished |pending |running )?job found"
    r"|already finished|is being terminated|being signaled",
    remedies=(
        (r"no such queue|queue", "see `bqueues` for the queues"),
        (r"project", "see `bugroup` and ask the site for the name of your project"),
        (r"memlimit|memory", "ask for less memory, or set LSF(unit=...) as the site does"),
        (r"runlimit|run limit", "ask for a shorter walltime, see `bqueues -l`"),
    ),
)


@dataclass(frozen=True, slots=True)
class LSF:
    """LSF 10.1.

    Attributes
    ----------
    unit : {'KB', 'MB', 'GB'}
        ``LSF_UNIT_FOR_LIMITS`` of the site.
    """

    unit: Literal["KB", "MB", "GB"] = "KB"
    name: str = field(default="lsf", init=False)
    prefix: str = field(default="#BSUB", init=False)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"LC_ALL": "C", "LSB_DISPLAY_YEAR": "Y"}, init=False, hash=False
    )
    inside: Inside = field(
        default=Inside(
            id="$LSB_JOBID",
            index="${LSB_JOBINDEX#0}",
            first=1,
            nodes="printf '%s\\n' $LSB_HOSTS | sort -u",
        ),
        init=False,
    )
    ending: Ending = field(default=Ending(signals=("INT", "TERM", "KILL"), grace=20.0), init=False)

    def directives(self, request: BatchRequest) -> list[str]:
        """Return the options of ``bsub``: walltime in minutes, memory per node in ``unit``."""
        memory = None
        if request.memory is not None:
            memory = ceiling(request.memory, _UNITS[self.unit])
        lines = [
            ("-J", _name(request)),
            ("-q", request.queue),
            ("-P", request.account),
            ("-W", _minutes(request.walltime)),
            ("-n", request.nodes * request.slots),
            ("-R", f"span[ptile={request.slots}]"),
            ("-R", None if memory is None else f"rusage[mem={memory}]"),
            ("-M", memory),
            ("-gpu", f"num={request.gpus}" if request.gpus else None),
            ("-o", self.log(request.stdout, request) if request.stdout else None),
            ("-e", self.log(request.stderr, request) if request.stderr else None),
            ("-cwd", request.workdir),
        ]
        written = [f"{key} {shlex.quote(str(value))}" for key, value in lines if value is not None]
        return [*written, "-r" if request.requeue else "-rn", *request.extra]

    def log(self, template: str, request: BatchRequest) -> str | None:
        """Return the path with ``%J`` and ``%I``; None if it has a ``%`` itself."""
        if "%" in template:
            return None
        index = "0" if request.array is None else "%I"
        return template.replace("{id}", "%J").replace("{index}", index)

    def warns(self, request: BatchRequest) -> bool:
        """``-wa`` would signal the payload's processes too, and counts in minutes."""
        return False

    def submit(self, script_path: str, request: BatchRequest) -> list[str]:
        """Return ``bsub`` in a shell: it reads directives from its standard input only."""
        return ["sh", "-c", 'exec bsub < "$1"', "bsub", script_path]

    def parse_submit(self, stdout: str, stderr: str, code: int) -> str:
        """Return the id."""
        if code:
            raise _REFUSALS.error(stdout, stderr, code)
        return identifier(r"Job <(\d{1,15})> is submitted to .*", stdout, "LSF")

    def poll(self, ids: Sequence[str] | None, user: str) -> list[str]:
        """Return ``bjobs -a``, so that what just ended is still seen."""
        command = ["bjobs", "-a", "-noheader", "-u", user, "-o", f"{_FIELDS} delimiter='|'"]
        return [*command, *(ids or ())]

    def parse_poll(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return the jobs of ``bjobs``."""
        _REFUSALS.check(stdout, stderr, code)
        found: dict[JobRef, BatchStatus] = {}
        for line in stdout.splitlines():
            fields = line.strip().split("|", 8)
            status = _status(fields) if len(fields) == 9 else None
            if status is not None:
                found[status.ref] = status
        if re.search(_REFUSALS.gone, stdout, re.I):
            return found
        return dict(some(found, stdout, "bjobs"))

    def history(self, ids: Sequence[str], user: str) -> list[str]:
        """Return the same as a poll: ``bjobs`` remembers."""
        return self.poll(ids, user)

    def parse_history(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return ended (and live) jobs with exit codes."""
        return self.parse_poll(stdout, stderr, code)

    def cancel(self, refs: Sequence[JobRef]) -> list[str]:
        """Return ``bkill`` with ``job`` or ``job[element]``."""
        return ["bkill", *(job if i is None else f"{job}[{i + 1}]" for job, i in refs)]

    def parse_cancel(self, stdout: str, stderr: str, code: int) -> None:
        """Raise unless the jobs are gone or going."""
        _REFUSALS.check_cancel(stdout, stderr, code)

    def queues(self) -> list[str]:
        """Return ``bqueues -l``, the only form with limits."""
        return ["bqueues", "-l"]

    def parse_queues(self, stdout: str, stderr: str, code: int) -> list[Queue]:
        """Return the queues with status, run limit and memory limit."""
        _REFUSALS.check(stdout, stderr, code)
        found = []
        for part in re.split(r"^QUEUE:", stdout, flags=re.M)[1:]:
            queue = _queue(part)
            found += [queue] if queue is not None else []
        return list(some(found, stdout, "bqueues"))


def _name(request: BatchRequest) -> str:
    name = plain_name(request.name)
    if request.array is None:
        return name
    throttle = f"%{request.max_running}" if request.max_running else ""
    return f"{name}[1-{request.array}]{throttle}"


def _minutes(seconds: float | None) -> int | None:
    return None if seconds is None else ceiling(seconds, 60)


def _dash(text: str) -> str:
    return "" if text.strip() == "-" else text.strip()


def _status(fields: Sequence[str]) -> BatchStatus | None:
    job, index, word, code, hosts, start, end, exit_reason, pending = map(_dash, fields)
    element = whole(index)
    if not re.fullmatch(r"\d{1,15}", job, re.A) or element is None or element < 0:
        return None
    state = _state(word, exit_reason)
    exit_code, signal = _how(state, whole(code))
    return BatchStatus(
        id=job,
        index=element - 1 if element else None,
        state=state,
        exit_code=exit_code,
        signal=signal,
        reason=pending if state in ("pending", "held") else exit_reason,
        nodes=names(re.sub(r"(?:^|:)(?:\d+\*)?", " ", hosts)),
        # A letter behind a time says how it is meant: estimated, by the limit, exceeded.
        started=moment(re.sub(r" [A-Z]$", "", start)),
        ended=moment(re.sub(r" [A-Z]$", "", end)) if word in _OVER else None,
    )


_OVER = frozenset({"DONE", "EXIT", "POST_DONE", "POST_ERR"})


def _state(word: str, exit_reason: str) -> State:
    state = _STATES.get(word, "unknown")
    if state != "failed":
        return state
    return _TERMINATIONS.get(re.split(r"[:\s]", exit_reason, maxsplit=1)[0], "failed")


def _how(state: State, code: int | None) -> tuple[int | None, int | None]:
    if state == "done":
        return 0, None
    if state != "failed" or code is None:
        return None, None
    # LSF reports 128 + s for a signal.
    return (None, code - 128) if 128 < code <= 192 else (code, None)


def _queue(text: str) -> Queue | None:
    """Read one block of ``bqueues -l``: columns under ``PRIO``, limits under their names."""
    name = text.strip().split("\n")[0].strip()
    status = re.search(r"\b(Open|Closed):(Active|Inact\w*)", text)
    if not name or status is None:
        return None
    run = re.search(r"^\s*RUNLIMIT\s*\n\s*(\d+(?:\.\d+)?) min", text, re.M)
    memory = re.search(r"\bMEMLIMIT\b.*\n\s*(\d+(?:\.\d+)? [KMGT])\b", text)
    return Queue(
        name=name,
        open=(status[1], status[2]) == ("Open", "Active"),
        default="This is the default queue" in text,
        walltime=60 * float(run[1]) if run else None,
        memory=size(memory[1]) if memory else None,
    )
