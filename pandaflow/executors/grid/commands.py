"""Bundles of commands as a pilot gets them: rendered lines, files to bring along, files to keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from pandaflow.core.bundle import Blocked, BundleSpec, BundleValues, JobInputs
from pandaflow.core.errors import DataError
from pandaflow.core.model import Failure, File
from pandaflow.data import plain
from pandaflow.data.results import adler32
from pandaflow.executors.command import CommandPayload, Staged, parse_command, render
from pandaflow.executors.jobs import job_seed
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.outcome import Said
from pandaflow.executors.template import bind, slot_of
from pandaflow.grid.messages import CommandJob, InputFile, JobResult, OutputFile, Trouble

#: From a file on this machine to where pilots find it; None: they see it in its place.
Upload = Callable[[File], str | None]
#: The highest exit code of a payload's own, and what a shell adds to the number of a signal.
_EXIT, _SIGNALLED = 255, 128


@dataclass(frozen=True, slots=True)
class Commands:
    """How the jobs of a bundle of commands go together.

    Attributes
    ----------
    positions : tuple of int
        Of the jobs that have a command.
    blocked : mapping of int to str
        Positions without a command, because their inputs are not there.
    outputs : tuple of str
        Files that each command must write.
    """

    positions: tuple[int, ...]
    blocked: Mapping[int, str]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """What a command needs to know of its job."""

    run: str
    task: str
    index: int
    attempt: int
    seed: int

    def environment(self) -> dict[str, str]:
        """Return the variables that tell it."""
        return {
            "PANDAFLOW_RUN": self.run,
            "PANDAFLOW_TASK": self.task,
            "PANDAFLOW_INDEX": str(self.index),
            "PANDAFLOW_ATTEMPT": str(self.attempt),
            "PANDAFLOW_SEED": str(self.seed),
        }


@dataclass(slots=True)
class _Stage:
    """Files that a job reads, as they are found among its arguments."""

    upload: Upload
    inputs: dict[str, InputFile] = field(default_factory=dict)

    def take(self, value: Any) -> Any:
        """Replace files by what they are called in the work directory."""
        if isinstance(value, File):
            return self._file(value)
        if isinstance(value, list | tuple):
            return type(value)([self.take(each) for each in value])
        return value

    def _file(self, file: File) -> File:
        here, there = wire.local_path(file.path), file.path
        if here is not None:
            put = self.upload(file)
            if put is None:
                return replace(file, path=here)
            there = put
        name = self._name(file.name, there)
        self.inputs[name] = InputFile(
            name=name,
            replicas=(there, *(r for r in file.replicas if wire.local_path(r) is None)),
            size=file.size,
            checksum=file.checksum or "",
        )
        return Staged(name, file.size, file.checksum, file.events)

    def _name(self, wanted: str, url: str) -> str:
        """Return a name in the work directory that no other input has."""
        name, number = f"inputs/{wanted}", 1
        while name in self.inputs and self.inputs[name].replicas[0] != url:
            name, number = f"inputs/{number}/{wanted}", number + 1
        return name


# --- to the pilot -----------------------------------------------------------------------


def prepare(
    spec: BundleSpec, code: bytes, deps: Sequence[BundleValues], upload: Upload
) -> tuple[list[CommandJob], Commands]:
    """Render the jobs of a bundle, without running anybody's code.

    Parameters
    ----------
    spec : BundleSpec
    code : bytes
        The pickled ``CommandPayload``.
    deps : sequence of BundleValues
    upload : callable
        Puts a local file where pilots reach it.

    Raises
    ------
    NotPlain
        An argument or an item is of a class that only its user has.
    OSError
        An input cannot be read, or not be put there.
    """
    payload = _payload(code)
    command = parse_command(payload.template)
    inputs = JobInputs(spec, deps, plain.loads)
    made: list[CommandJob] = []
    blocked: dict[int, str] = {}
    for position, index in enumerate(spec.jobs):
        seed = job_seed(spec.run, spec.name, index)
        job = _Job(spec.run, spec.name, index, spec.attempt, seed)
        stage = _Stage(upload)

        def line(*args: Any, _job: _Job = job, **kwargs: Any) -> str:
            return render(command, args, kwargs, _job, spec.resources)

        try:
            slots = [stage.take(value) for value in inputs.slots(index)]
        except Blocked as why:
            blocked[position] = str(why)
            continue
        fill = bind(line, payload.args, payload.kwargs or {}, slot_of)
        made.append(
            CommandJob(
                position=position,
                line=str(fill(slots)),
                shell=payload.shell,
                env=job.environment() | dict(payload.env or {}),
                inputs=tuple(stage.inputs.values()),
                outputs=tuple(command.outputs),
            )
        )
    return made, Commands(tuple(job.position for job in made), blocked, tuple(command.outputs))


def _payload(code: bytes) -> CommandPayload:
    payload = plain.loads(code, (CommandPayload,))
    if not isinstance(payload, CommandPayload) or type(payload.template) is not str:
        raise DataError("the payload is no command")
    return payload


# --- and back ---------------------------------------------------------------------------


def said(result: JobResult, host: str, data: str = "") -> Said:
    """Return what a pilot tells of a job, as the keepers of outcomes understand it.

    Parameters
    ----------
    result : JobResult
    host : str
        Where it ran.
    data : str
        Folder or URL where pilots leave large outputs; empty: there is none.

    Raises
    ------
    DataError
        An output is not what its checksum says, or is said to lie elsewhere.
    """
    error, code = result.error, result.code
    if error is not None and error.source == "payload" and error.code == code <= _EXIT:
        # Its own exit tells it all, in the words that it has on other executors.
        error, code = None, code if code >= 0 else _SIGNALLED - code
    return Said(
        code=code,
        began=result.began,
        ended=result.ended,
        host=host,
        out=result.out,
        err=result.err,
        printed=result.printed,
        files={file.name: _blob(file, data) for file in result.files},
        failure=failure(error) if error is not None else None,
    )


def _blob(file: OutputFile, data: str) -> wire.Blob:
    if file.data is None:
        place = wire.Ref(file.url, file.size, file.checksum)
        wire.check_within(place, data, "the pilot")
        return place
    if adler32(file.data) != file.checksum:
        raise DataError(f"the output {file.name} does not have its checksum {file.checksum}")
    return file.data


def failure(trouble: Trouble) -> Failure:
    """Return a pilot's trouble as a failure; the pilot's own and the site's are not charged."""
    charged = trouble.source == "payload"
    kind, code = trouble.kind, trouble.code
    if charged and code < 0:
        kind, code = "signal", -code
    return Failure(kind=kind, message=trouble.message, code=code, charged=charged)


def local_name(file: File) -> str:
    """Return a name for a file's copy; other files have others, also those of equal checksum.

    Adler-32 is no fingerprint: texts whose numbers are 120 and 201 have the same.
    """
    about = (wire.local_path(file.path), file.size, file.checksum, file.mtime)
    mark = blake2b(repr(about).encode(), digest_size=12).hexdigest()
    return f"{mark}-{os.path.basename(file.path)}"
