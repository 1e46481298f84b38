"""Command payloads: a command line with PanDA's placeholders, run in a directory of its own.

==================  ====================================================================
placeholder         becomes
==================  ====================================================================
``%IN``, ``%IN2``   the paths (or values) of the first, second, ... argument of the job,
                    quoted for the shell and separated by spaces
``%OUT{name}``      ``name``: a file that the command must write in its work directory
``%RNDM:n``         n + job index: a number that differs from job to job
``%MAXEVENTS``      events of the input files together; -1 if not known
``%SKIPEVENTS``     0
``%FIRSTEVENT``     job index times ``%MAXEVENTS``; 0 if not known
``%CORE_NUMBER``    cores of the job
``%{word}``         the keyword argument ``word`` given at the call, quoted
``%%``              a percent sign
==================  ====================================================================

The keyword arguments ``max_events``, ``skip_events`` and ``first_event`` replace what is said
above. A percent sign before anything else than a capital word or a brace stays what it is.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Failure, File, Resources
from pandaflow.data.results import ResultStore
from pandaflow.executors import cache
from pandaflow.executors.outcome import JobFailed
from pandaflow.executors.process import Ended, Limits, Process

_MARK = re.compile(r"%(%|\{[^{}]*\}|[A-Z][A-Z_]*[A-Z]\d*(?:\{[^{}]*\})?(?:[:=]\d+)?)")
_EVENTS = {"MAXEVENTS": "max_events", "SKIPEVENTS": "skip_events", "FIRSTEVENT": "first_event"}
_KNOWN = "%IN, %IN2, %OUT{file}, %RNDM:n, %MAXEVENTS, %SKIPEVENTS, %FIRSTEVENT, %CORE_NUMBER, "
#: Bytes of standard output that a job may hand over as its value.
VALUE_LIMIT = 10_000_000
#: Set in pilots: work directories vanish with them.
TEMPORARY = "PANDAFLOW_TEMPORARY_WORK"


@dataclass(frozen=True, slots=True)
class Staged(File):
    """A file that will be in the job's work directory: its path is relative to that."""


# --- the template -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """A placeholder.

    Attributes
    ----------
    word : str
        ``IN``, ``OUT``, ``RNDM``, ``MAXEVENTS``, ``SKIPEVENTS``, ``FIRSTEVENT``,
        ``CORE_NUMBER`` or ``NAMED``.
    number : int
        Which argument (``IN``, from 0), or the offset (``RNDM``).
    name : str
        The file (``OUT``) or the keyword (``NAMED``).
    """

    word: str
    number: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A parsed command line: literal text and placeholders, in order."""

    text: str
    parts: tuple[str | Mark, ...]

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The placeholders."""
        return tuple(part for part in self.parts if isinstance(part, Mark))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the files that the command must write, each once."""
        return tuple(dict.fromkeys(mark.name for mark in self.marks if mark.word == "OUT"))

    def check(self, n_args: int, names: Sequence[str]) -> None:
        """Check the placeholders against the arguments of a call.

        Parameters
        ----------
        n_args : int
            Positional arguments.
        names : sequence of str
            Keyword arguments.

        Raises
        ------
        WorkflowError
            A placeholder has no argument, or a keyword argument no placeholder.
        """
        for mark in self.marks:
            if mark.word == "IN" and mark.number >= n_args:
                raise WorkflowError(
                    f"{self.text!r} uses %IN{mark.number + 1 if mark.number else ''}, but the "
                    f"command is called with {n_args} positional argument(s)"
                )
            if mark.word == "NAMED" and mark.name not in names:
                raise WorkflowError(
                    f"{self.text!r} uses %{{{mark.name}}}; call it with {mark.name}=..."
                )
        used = {mark.name for mark in self.marks if mark.word == "NAMED"}
        unused = sorted(set(names) - used - set(_EVENTS.values()))
        if unused:
            raise WorkflowError(
                f"{self.text!r} has no %{{{unused[0]}}} for the argument {unused[0]}=..."
            )


@lru_cache(maxsize=64)
def parse_command(text: str) -> Command:
    """Parse a command line with placeholders.

    Raises
    ------
    WorkflowError
        It is empty, or a placeholder is unknown or incomplete.
    """
    if not text.strip():
        raise WorkflowError("the command is empty")
    parts: list[str | Mark] = []
    at = 0
    for found in _MARK.finditer(text):
        parts.append(text[at : found.start()])
        parts.append(_mark(found[1], text))
        at = found.end()
    parts.append(text[at:])
    return Command(text, tuple(part for part in parts if part != ""))


def _mark(token: str, text: str) -> str | Mark:
    if token == "%":
        return "%"
    if token[0] == "{" and token[1:-1].isidentifier():
        return Mark("NAMED", name=token[1:-1])
    if found := re.fullmatch(r"IN([1-9]\d*)?", token):
        return Mark("IN", int(found[1] or 1) - 1)
    if found := re.fullmatch(r"RNDM(?:[:=](\d+))?", token):
        return Mark("RNDM", int(found[1] or 0))
    if found := re.fullmatch(r"OUT\{([^{}]+)\}", token):
        return Mark("OUT", name=_output_name(found[1], text))
    if token in _EVENTS or token == "CORE_NUMBER":
        return Mark(token)
    hint = "name the file: %OUT{hist.root}" if token.startswith("OUT") else f"known are {_KNOWN}"
    raise WorkflowError(f"{text!r}: unknown placeholder %{token}; {hint}%{{keyword}}, and %% for %")


def _output_name(name: str, text: str) -> str:
    name = name.strip()
    if not name or os.path.isabs(name) or ".." in name.split("/") or shlex.quote(name) != name:
        raise WorkflowError(
            f"{text!r}: %OUT{{{name}}} must be a plain file name in the job's own directory"
        )
    return name


@dataclass(frozen=True, slots=True)
class CommandPayload:
    """What the jobs of a command task run.

    Attributes
    ----------
    template : str
        The command line.
    args, kwargs : tuple, mapping
        What the command was called with; may hold ``Slot`` marks.
    shell : bool
        Run by ``/bin/sh -c``; otherwise split into words and run directly.
    env : mapping or None
        Added to the environment.
    """

    template: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    shell: bool = True
    env: Mapping[str, str] | None = None


# --- running it -------------------------------------------------------------------------


class _Job(Protocol):
    """What a command needs to know of its job."""

    @property
    def run(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Measures:
    """What a command used.

    Attributes
    ----------
    cpu : float
        Seconds, of all its processes.
    max_pss, read_bytes, written_bytes, disk : int
        Bytes; 0 where not known.
    """

    cpu: float = 0.0
    max_pss: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    disk: int = 0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a command runs.

    Attributes
    ----------
    job : JobContext
    workdir : str
        Its own directory; made here, removed on success.
    files : str
        Folder of its outputs, relative to the run's results.
    resources : Resources
    store : ResultStore
    write : callable
        Takes output for the job's log.
    wanted : callable
        Tells why the job shall be stopped, if it shall.
    measured : callable
        Takes the measures, whether the command succeeds or not.
    """

    job: _Job
    workdir: str
    files: str
    resources: Resources
    store: ResultStore
    write: Callable[[bytes], None]
    wanted: Callable[[], Failure | None]
    measured: Callable[[Measures], None]


def run_command(
    payload: CommandPayload, args: Sequence[Any], kwargs: Mapping[str, Any], around: Surroundings
) -> Any:
    """Run a command for one job.

    Parameters
    ----------
    payload : CommandPayload
    args, kwargs
        Its arguments with the job's inputs in place.
    around : Surroundings

    Returns
    -------
    File, dict of str to File, or str
        The output file; several by name; without ``%OUT`` what the command printed, stripped.

    Raises
    ------
    JobFailed
        It ended badly, was stopped, or did not write what it should. Its work directory is
        kept, and the message names it.
    """
    command = parse_command(payload.template)
    line = render(command, args, kwargs, around.job, around.resources)
    workdir = _fresh(around.workdir)
    try:
        process = Process(
            ["/bin/sh", "-c", line] if payload.shell else shlex.split(line),
            workdir=workdir,
            env=_environment(payload.env, around.job),
            write=around.write,
            keep=0 if command.outputs else VALUE_LIMIT,
        )
    except OSError as error:
        raise _failed("exit", f"cannot be started: {error}", workdir, 127) from None
    ended = process.wait(_limits(around.resources), around.wanted)
    around.measured(_measures(ended))
    _check(ended, workdir)
    if not command.outputs:
        value: Any = _text(ended, workdir)
    else:
        value = _collect(command.outputs, workdir, around)
    shutil.rmtree(workdir, ignore_errors=True)
    return value


def render(
    command: Command,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    job: _Job,
    resources: Resources,
) -> str:
    """Return the command line of a job, quoted for the shell."""

    def text(part: str | Mark) -> str:
        if isinstance(part, str):
            return part
        match part.word:
            case "IN":
                return _words(args[part.number])
            case "NAMED":
                return _words(kwargs[part.name])
            case "OUT":
                return part.name
            case "RNDM":
                return str(part.number + job.index)
            case "CORE_NUMBER":
                return str(resources.cores)
        return str(_events(part.word, args, kwargs, job.index))

    return "".join(map(text, command.parts))


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_words, value))
    if isinstance(value, Staged):
        return shlex.quote(value.path)
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return shlex.quote(path if "://" in path else os.path.abspath(path))
    return shlex.quote(str(value))


def _events(word: str, args: Sequence[Any], kwargs: Mapping[str, Any], index: int) -> int:
    given = kwargs.get(_EVENTS[word])
    if given is not None:
        return int(given)
    if word == "SKIPEVENTS":
        return 0
    known = kwargs.get("max_events", _events_of(args))
    if word == "MAXEVENTS":
        return -1 if known is None else int(known)
    return 0 if known is None else index * int(known)


def _events_of(args: Sequence[Any]) -> int | None:
    """Events of the files of the first argument together, if all are known."""
    files = args[0] if args and isinstance(args[0], list | tuple) else args[:1]
    counts = [item.events if isinstance(item, File) else None for item in files]
    return None if None in counts or not counts else sum(n for n in counts if n is not None)


def _fresh(path: str) -> str:
    """Make an empty directory; an attempt that died may have left things behind."""
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def _environment(extra: Mapping[str, str] | None, job: _Job) -> dict[str, str]:
    ours = {
        "PANDAFLOW_RUN": job.run,
        "PANDAFLOW_TASK": job.task,
        "PANDAFLOW_INDEX": str(job.index),
        "PANDAFLOW_ATTEMPT": str(job.attempt),
        "PANDAFLOW_SEED": str(job.seed),
    }
    return {**os.environ, **ours, **(extra or {})}


def _limits(resources: Resources) -> Limits:
    return Limits(resources.walltime, resources.memory, resources.disk)


def _measures(ended: Ended) -> Measures:
    return Measures(ended.cpu, ended.max_pss, ended.read_bytes, ended.written_bytes, ended.disk)


# --- outcomes ---------------------------------------------------------------------------


def _failed(
    kind: str, text: str, workdir: str, code: int | None = None, *, charged: bool = True
) -> JobFailed:
    until = " until its pilot ends" if TEMPORARY in os.environ else ""
    message = f"{text} (work directory kept{until}: {workdir})"
    return JobFailed(Failure(kind=kind, message=message, code=code, charged=charged))


#: A shell reports the death of what it ran by a signal as 128 + signal.
_DEADLY = {128 + number: number for number in (4, 6, 7, 8, 9, 11, 15)}


def _check(ended: Ended, workdir: str) -> None:
    """Raise unless the command ended well."""
    if ended.stopped is not None:
        why = ended.stopped
        raise _failed(why.kind, why.message, workdir, charged=why.charged)
    code = ended.code
    if code == 0:
        return
    said = f": {ended.last}" if ended.last else ""
    number = -code if code < 0 else _DEADLY.get(code)
    if number is not None:
        name = signal.Signals(number).name
        raise _failed("signal", f"ended by {name}{said}", workdir, number)
    raise _failed("exit", f"exit code {code}{said}", workdir, code)


def _text(ended: Ended, workdir: str) -> str:
    if ended.overflow:
        text = f"printed more than {VALUE_LIMIT} bytes; write a file and name it %OUT{{...}}"
        raise _failed("output", text, workdir)
    return ended.output.decode(errors="replace").strip()


def _collect(names: Sequence[str], workdir: str, around: Surroundings) -> File | dict[str, File]:
    """Move the outputs to the run's results; all must be there before any is moved."""
    for name in names:
        if not os.path.isfile(os.path.join(workdir, name)):
            raise _failed("output", f"did not write its output {name}", workdir)
    files = {name: _adopt(name, workdir, around) for name in names}
    return files[names[0]] if len(names) == 1 else files


def _adopt(name: str, workdir: str, around: Surroundings) -> File:
    path = os.path.join(workdir, name)
    try:
        status, checksum = os.stat(path), cache.checksum(path)
        target = around.store.adopt(path, f"{around.files}/{name}")
    except OSError as error:
        text = f"its output {name} cannot be moved to the results: {error.strerror or error}"
        raise _failed("output", text, workdir, charged=False) from None
    return File(target, status.st_size, checksum, mtime=status.st_mtime)
