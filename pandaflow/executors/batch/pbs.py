"""PBS: OpenPBS and PBS Professional, and the dialects of Torque and of Slurm's wrappers.

OpenPBS answers in JSON, and its history (``job_history_enable``) is asked with ``-x``. Torque has
neither: it keeps ended jobs in ``qstat -f`` for ``keep_completed`` seconds. Neither expands the
job's number in the path of an output file, so such paths are opened by the script itself.

Slurm brings ``qsub``, ``qstat`` and ``qdel`` for people who come from PBS. They speak as Torque
does, but ``qstat`` tells neither how a job ended nor which element of an array one is, and
``qdel`` can only end a whole array: so there are no arrays in this dialect.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import dirname
from typing import Any, Literal

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.answers import (
    Refusals,
    ceiling,
    clock,
    duration,
    identifier,
    json_object,
    moment,
    names,
    not_understood,
    size,
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

_MIB = 2**20
_REFUSALS = Refusals(
    "PBS",
    silent=r"cannot connect to server|couldn't connect to cluster|connection refused"
    r"|connection timed out|no route to host|communication failure|unknown host|end of file"
    r"|problem loading|unable to contact slurm",
    gone=r"unknown job id|job has finished|request invalid for state of job|job has been deleted",
    remedies=(
        (
            r"unknown queue|queue is not enabled|access to queue|invalid partition",
            "see `qstat -Q` for the queues",
        ),
        (r"unknown resource", "see `pbsnodes -a` for what nodes offer"),
        (r"violates queue|resource limits", "ask for less, see `qstat -Qf QUEUE`"),
        (r"illegal -n value", "use a name of letters, digits, '-' and '_'"),
        (r"illegal -j value|array", "use smaller arrays, see max_array_size in `qstat -Bf`"),
    ),
)
_STATES: Mapping[str, State] = {
    "Q": "pending",
    "W": "pending",
    "T": "pending",
    "M": "pending",
    "H": "held",
    "S": "held",
    "U": "held",
    "R": "running",
    "B": "running",
    "E": "completing",
}
_ENDED = frozenset("FXC")
#: What the wrappers have no letter for is no suspended job, as it would be elsewhere.
_SLURM_STATES: Mapping[str, State] = {key: value for key, value in _STATES.items() if key != "U"}
_NOT_TOLD = "the qstat of Slurm's wrappers does not tell how it ended"
_DELETED = 91
#: Exit_status below 0 (see "Job Exit Status" in the administrators' guides): limits of memory and
#: time, and, the same in both dialects, jobs that a node could not start or gave up.
_FAULTS: dict[int, State] = dict.fromkeys(range(-7, -2), "node_fail")
_OPENPBS_EXITS: Mapping[int, State] = _FAULTS | {
    -26: "out_of_memory",
    -27: "out_of_memory",
    -28: "timeout",
    -29: "timeout",
}
_TORQUE_EXITS: Mapping[int, State] = _FAULTS | {-10: "out_of_memory", -11: "timeout"}
#: Attributes with times, by dialect. Slurm's wrappers give those of changes another meaning.
_STARTED = {"openpbs": ("stime",), "torque": ("start_time", "stime"), "slurm": ("mtime",)}
_FINISHED = {
    "openpbs": ("obittime", "history_timestamp"),
    "torque": ("comp_time", "obittime"),
    "slurm": ("ctime",),
}
_DIALECTS = ("openpbs", "torque", "slurm")
#: Exit code of a ``qstat`` that finds none of the jobs.
_UNKNOWN_JOB = 153
_ID = r"(\d{1,15}(?:\[\])?(?:\.[\w.-]+)?)"
_SUBJOB = re.compile(r"(\d{1,15})\[(\d{1,9})\](.*)", re.S)


@dataclass(frozen=True, slots=True)
class PBS:
    """OpenPBS, PBS Professional, Torque, or Slurm's wrappers of that name.

    Attributes
    ----------
    dialect : {'openpbs', 'torque', 'slurm'}

    Raises
    ------
    WorkflowError
        Another dialect.
    """

    dialect: Literal["openpbs", "torque", "slurm"] = "openpbs"
    name: str = field(default="pbs", init=False)
    prefix: str = field(default="#PBS", init=False)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"LC_ALL": "C"}, init=False, hash=False
    )
    ending: Ending = field(default=Ending(signals=("TERM", "KILL"), grace=10.0), init=False)

    def __post_init__(self) -> None:
        if self.dialect not in _DIALECTS:
            raise WorkflowError(f"dialect={self.dialect!r}: one of {', '.join(_DIALECTS)}")

    @property
    def inside(self) -> Inside:
        """Torque has no variable for the array as a whole: the element is cut out of the id."""
        if self.dialect == "slurm":
            nodes = 'scontrol show hostnames "$SLURM_JOB_NODELIST"'
            return Inside(id="${PBS_JOBID:-$SLURM_JOB_ID}", index="", nodes=nodes)
        if self.dialect == "openpbs":
            identity, index = "${PBS_ARRAY_ID:-$PBS_JOBID}", "${PBS_ARRAY_INDEX:-}"
        else:
            identity = r'$(printf %s "$PBS_JOBID" | sed "s/\[[0-9]*\]/[]/")'
            index = "${PBS_ARRAYID:-}"
        return Inside(id=identity, index=index, nodes='sort -u "$PBS_NODEFILE"')

    def directives(self, request: BatchRequest) -> list[str]:
        """Return the options of ``qsub``: walltime in ``hh:mm:ss``, memory in MiB.

        Raises
        ------
        WorkflowError
            An array, in the dialect that has none.
        """
        lines = [
            ("-N", plain_name(request.name, 15 if self.dialect == "torque" else 200)),
            ("-S", "/bin/bash"),
            ("-q", request.queue),
            ("-A", request.account),
            *(("-l", resource) for resource in self._resources(request)),
            self._array(request),
            *(_outputs(self, request) if self.dialect != "slurm" else ()),
            ("-r", "y" if request.requeue else "n"),
            ("-d", request.workdir if self.dialect == "torque" else None),
        ]
        written = [f"{key} {shlex.quote(value)}" for key, value in lines if value is not None]
        return [*written, *request.extra]

    def _resources(self, request: BatchRequest) -> Iterator[str]:
        memory = None if request.memory is None else f"{ceiling(request.memory, _MIB)}mb"
        if self.dialect != "openpbs":
            gpus = f":gpus={request.gpus}" if request.gpus else ""
            yield f"nodes={request.nodes}:ppn={request.slots}{gpus}"
            if request.memory is not None:
                # Slurm takes it as that of a node.
                nodes = request.nodes if self.dialect == "torque" else 1
                yield f"mem={ceiling(nodes * request.memory, _MIB)}mb"
        else:
            chunk = f"{request.nodes}:ncpus={request.slots}:mpiprocs={request.tasks_per_node}"
            chunk += f":mem={memory}" if memory else ""
            yield f"select={chunk}" + (f":ngpus={request.gpus}" if request.gpus else "")
            if request.nodes > 1:
                yield "place=scatter"
        if request.walltime is not None:
            yield f"walltime={clock(request.walltime)}"

    def _array(self, request: BatchRequest) -> tuple[str, str | None]:
        key = "-t" if self.dialect == "torque" else "-J"
        if request.array is None:
            return key, None
        if self.dialect == "slurm":
            raise WorkflowError(
                f"array={request.array}: the qstat of Slurm's wrappers does not tell the elements "
                "of an array apart; use Slurm(...), or one job at a time"
            )
        throttle = f"%{request.max_running}" if request.max_running else ""
        # OpenPBS refuses an array of one; of 0-1 in steps of 2 it makes only element 0.
        if request.array == 1 and self.dialect == "openpbs":
            return key, "0-1:2"
        return key, f"0-{request.array - 1}{throttle}"

    def log(self, template: str, request: BatchRequest) -> str | None:
        """Return the path if it is the same for all jobs; Slurm's wrapper takes none."""
        if self.dialect == "slurm":
            return None
        return None if "{id}" in template or "{index}" in template else template

    def warns(self, request: BatchRequest) -> bool:
        """PBS signals only at the end."""
        return False

    def submit(self, script_path: str, request: BatchRequest) -> list[str]:
        """Return ``qsub SCRIPT``; Slurm's wrapper hands its words to another shell."""
        if self.dialect != "slurm":
            return ["qsub", script_path]
        # It says itself where the output goes, whatever the script asks for.
        output = shlex.quote(f"{script_path.replace('%', '%%')}.o%j")
        return ["qsub", "-j", "oe", "-o", output, shlex.quote(script_path)]

    def parse_submit(self, stdout: str, stderr: str, code: int) -> str:
        """Return the id with its server: ``12.server`` or ``12[].server``."""
        if code:
            # Slurm's wrapper tells of its command before it lets Slurm speak.
            words = stdout.rpartition("and the output was:")[2]
            raise _REFUSALS.error(words, stderr, code)
        return identifier(_ID, stdout, "PBS")

    def poll(self, ids: Sequence[str] | None, user: str) -> list[str]:
        """Return ``qstat`` with the elements of arrays; PBS shows ended elements as well."""
        if self.dialect != "openpbs":
            elements = ("-t",) if self.dialect == "torque" else ()
            return ["qstat", "-f", *elements, *(ids or ())]
        return ["qstat", "-t", "-f", "-F", "json", *(ids or ())]

    def parse_poll(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return the jobs of ``qstat``; those that are not known are told on stderr only."""
        return self._jobs(stdout, stderr, code)

    def history(self, ids: Sequence[str], user: str) -> list[str]:
        """Return ``qstat -x``; Torque has none and is asked as ever."""
        if self.dialect != "openpbs":
            return self.poll(ids, user)
        return ["qstat", "-x", "-t", "-f", "-F", "json", *ids]

    def parse_history(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        """Return ended (and live) jobs with exit codes."""
        return self._jobs(stdout, stderr, code)

    def cancel(self, refs: Sequence[JobRef]) -> list[str]:
        """Return ``qdel`` with ids; an element goes into the brackets of its array."""
        return ["qdel", *(_subjob(job, i) for job, i in refs)]

    def parse_cancel(self, stdout: str, stderr: str, code: int) -> None:
        """Raise unless the jobs are gone or going."""
        # Slurm's wrapper counts in its exit code, without a word, the jobs that are gone.
        silent = self.dialect == "slurm" and not (stdout + stderr).strip()
        _REFUSALS.check_cancel(stdout, stderr, 0 if silent else code)

    def queues(self) -> list[str]:
        """Return ``qstat -Q -f``."""
        return ["qstat", "-Q", "-f", *(("-F", "json") if self.dialect == "openpbs" else ())]

    def parse_queues(self, stdout: str, stderr: str, code: int) -> list[Queue]:
        """Return the queues; PBS knows limits of a job, not the size of a node."""
        _REFUSALS.check(stdout, stderr, code)
        return [_queue(name, fields) for name, fields in self._records(stdout, "Queue")]

    def _jobs(self, stdout: str, stderr: str, code: int) -> dict[JobRef, BatchStatus]:
        # No job at all of those that were asked for: Slurm's wrapper has no word for it.
        if self.dialect == "slurm" and code == _UNKNOWN_JOB and not (stdout + stderr).strip():
            return {}
        _REFUSALS.check(stdout, stderr, code)
        found: dict[JobRef, BatchStatus] = {}
        for name, fields in self._records(stdout, "Jobs"):
            status = _status(name, fields, self.dialect)
            # The array as a whole is no job: its elements are listed.
            if status is not None:
                found[status.ref] = status
        return found

    def _records(self, stdout: str, kind: str) -> list[tuple[str, Mapping[str, Any]]]:
        if not stdout.strip():
            return []
        if self.dialect != "openpbs":
            return _attributes(stdout, "Job Id" if kind == "Jobs" else "Queue")
        answer = json_object(stdout, "qstat")
        if not isinstance(answer, dict) or "pbs_version" not in answer:
            raise not_understood("qstat", stdout)
        records = answer.get(kind)
        if not isinstance(records, dict):
            return []
        return [(name, entry) for name, entry in records.items() if isinstance(entry, dict)]


def _outputs(backend: PBS, request: BatchRequest) -> Iterator[tuple[str, str | None]]:
    yield "-o", _path(backend, request.stdout, request)
    yield "-e", _path(backend, request.stderr, request)
    yield "-j", None if request.stderr else "oe"


def _path(backend: PBS, template: str | None, request: BatchRequest) -> str | None:
    """Return the path, or the folder where PBS may put its own last words."""
    if template is None:
        return None
    path = backend.log(template, request)
    if path is not None:
        return path
    folder = dirname(template)
    return f"{folder}/" if folder and "{" not in folder else None


def _subjob(job: str, index: int | None) -> str:
    return job if index is None else job.replace("[]", f"[{index}]", 1)


def _attributes(text: str, kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Read ``name = value`` lines under ``Job Id:``; other lines with a tab go on with a value.

    Slurm's imitation of ``qstat`` puts a tab before the names as well.
    """
    records: list[tuple[str, Mapping[str, Any]]] = []
    text = re.sub(r"\n\t(?![\w.]+ = )", "", text)
    for part in re.split(rf"^{kind}:[ \t]", text, flags=re.M)[1:]:
        name, _, body = part.partition("\n")
        records.append((name.strip(), dict(re.findall(r"^[ \t]+([\w.]+) = (.*)$", body, re.M))))
    if not records:
        raise not_understood("qstat", text)
    return records


def _value(fields: Mapping[str, Any], name: str) -> str:
    """Return an attribute as text; ``a.b`` is flat in text and nested in JSON."""
    value = fields.get(name)
    head, _, rest = name.partition(".")
    nested = fields.get(head)
    if value is None and rest and isinstance(nested, dict):
        value = nested.get(rest)
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _status(name: str, fields: Mapping[str, Any], dialect: str) -> BatchStatus | None:
    letter = _value(fields, "job_state")
    job, index = _named(name)
    if job is None or (job.partition(".")[0].endswith("[]") and index is None):
        return None
    exits = _OPENPBS_EXITS if dialect == "openpbs" else _TORQUE_EXITS
    state = (_SLURM_STATES if dialect == "slurm" else _STATES).get(letter, "unknown")
    exit_status = whole(_value(fields, "Exit_status") or _value(fields, "exit_status"))
    exit_code = signal = None
    ended = letter in _ENDED
    if ended:
        # An element that never began shows exit status 1 when its array is deleted.
        deleted = whole(_value(fields, "substate")) == _DELETED or not _value(fields, "exec_host")
        state = _verdict(exit_status, deleted, exits)
        exit_code, signal = _how(exit_status, state)
    return BatchStatus(
        id=job,
        index=index,
        state=state,
        exit_code=exit_code,
        signal=signal,
        reason=_NOT_TOLD if ended and dialect == "slurm" else _value(fields, "comment"),
        nodes=names(re.sub(r"/[^+]*", "", _value(fields, "exec_host"))),
        # An element that waits shows when its array began.
        started=None if state in ("pending", "held") else _when(fields, _STARTED[dialect]),
        ended=_when(fields, _FINISHED[dialect]) if ended else None,
        requeues=max(0, (whole(_value(fields, "run_count")) or 1) - 1),
    )


def _when(fields: Mapping[str, Any], attributes: Sequence[str]) -> float | None:
    texts = (_value(fields, name) for name in attributes)
    return next((when for when in map(moment, texts) if when is not None), None)


def _named(name: str) -> tuple[str | None, int | None]:
    match = _SUBJOB.fullmatch(name)
    if match is not None:
        return f"{match[1]}[]{match[3]}", int(match[2])
    return (name, None) if re.fullmatch(_ID, name, re.A) else (None, None)


def _verdict(exit_status: int | None, deleted: bool, exits: Mapping[int, State]) -> State:
    # A deleted job may well show exit status 0 (it trapped the signal), 1 or none.
    # One without never ran: a dependency failed, say.
    if deleted or exit_status is None:
        return "cancelled"
    return exits.get(exit_status, "done" if exit_status == 0 else "failed")


def _how(exit_status: int | None, state: State) -> tuple[int | None, int | None]:
    if exit_status is None or exit_status < 0 or state not in ("done", "failed"):
        return None, None
    # 256 + s: signal s ended the script itself; 128 + s is the shell's word for the same.
    return (None, exit_status - 256) if exit_status > 256 else (exit_status, None)


def _queue(name: str, fields: Mapping[str, Any]) -> Queue:
    def limit(what: str) -> str:
        most = _value(fields, f"resources_max.{what}")
        return most or _value(fields, f"resources_available.{what}")

    # Slurm's wrapper says yes.
    running = {_value(fields, "enabled"), _value(fields, "started")} <= {"True", "yes"}
    return Queue(
        name=name,
        open=running,
        walltime=duration(limit("walltime")),
        cores=whole(limit("ncpus")),
        memory=size(limit("mem")),
        gpus=whole(limit("ngpus")) or 0,
        nodes=whole(limit("nodect")),
    )
