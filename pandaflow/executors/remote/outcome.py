"""From what came back to how a bundle ended: files into the run's results first, then the event.

A job counts as finished only when its value is on the driver's disk, so everything here is
written and synced before the event is made.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pandaflow.core.bundle import BundleSpec, Missing
from pandaflow.core.errors import DataError
from pandaflow.core.events import BundleEnded, JobSaid
from pandaflow.core.model import Failure, File, compact
from pandaflow.data.results import ResultStore, adler32, encode, parse_header
from pandaflow.executors.channel import unpack_said
from pandaflow.executors.outcome import pack_ended, parse_ended
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.wire import Reply

#: Jobs that a bundle never has.
_MOST_JOBS = 1_000_000
#: Exit code that stands for a walltime that was over.
WALLTIME = 124
#: A shell reports the death of what it ran by a signal as 128 + signal.
_DEADLY = {128 + number: number for number in (4, 6, 7, 8, 9, 11, 15)}


# --- functions --------------------------------------------------------------------------


def keep(reply: Reply, spec: BundleSpec, results: ResultStore) -> BundleEnded | None:
    """Write what a bundle has left into the run's results; return how it ended, if it did.

    Nothing is written unless all of it fits the bundle: whoever had it may answer what they like.

    Raises
    ------
    DataError
        The reply is about something else, or has files that are not the bundle's.
    OSError
        The results cannot be written.
    """
    told = next((message for message in reply.messages if message["op"] == "ended"), None)
    ended = None if told is None else parse_ended(told, spec.bundle, len(spec.jobs))
    _check_files_of(reply, spec, ended, results)
    for name, data in reply.files.items():
        put(results, name, data)
    return ended


def begun(message: Mapping[str, Any]) -> tuple[float, str]:
    """Return when a bundle says that it has begun (s since the epoch), and on which worker.

    Raises
    ------
    DataError
    """
    at, worker = message.get("at"), message.get("worker")
    if not isinstance(at, int | float) or not isinstance(worker, str):
        raise DataError("the message that the bundle has begun is damaged")
    return float(at), worker


def said_in(reply: Reply) -> list[JobSaid]:
    """Return what jobs have sent meanwhile, oldest first.

    Raises
    ------
    DataError
        Somebody wrote it who knows how jobs send, but not what.
    """
    try:
        told = [
            said
            for message in reply.messages
            if message["op"] == "said"
            for said in unpack_said(message)
        ]
        sound = all(map(_is_said, told))
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"messages of jobs are damaged: {error}") from error
    if not sound:
        raise DataError("messages of jobs are damaged")
    return told


def _is_said(said: JobSaid) -> bool:
    numbers = (said.bundle, said.job, said.attempt)
    return (
        all(type(each) is int for each in numbers)
        and type(said.at) in (int, float)
        and type(said.body) is dict
        and type(said.task) is str
    )


def _check_files_of(
    reply: Reply, spec: BundleSpec, ended: BundleEnded | None, results: ResultStore
) -> None:
    place = results.place(spec.bundle)
    if reply.bundle != spec.bundle:
        raise DataError(f"the reply is about bundle {reply.bundle}, not {spec.bundle}")
    for name in reply.files:
        if name not in (place, f"logs/{spec.bundle}.log") and not _is_output(name, spec):
            raise DataError(f"the reply has a file {name!r}, which is not the bundle's")
    location = "" if ended is None else ended.location
    if location not in ("", place):
        raise DataError(f"the reply says that its values are in {location!r}")
    if place in reply.files:
        _check_values(reply.files[place], spec, ended)
    elif location and results.local is not None:
        raise DataError("the reply does not have the values that it tells of")


def _is_output(name: str, spec: BundleSpec) -> bool:
    """Tell whether a file may be what a command of the bundle has left."""
    if spec.kind != "command" or ".." in name.split("/"):
        return False
    return any(name.startswith(f"{output_folder(spec, index)}/") for index in spec.jobs)


def _check_values(data: bytes, spec: BundleSpec, ended: BundleEnded | None) -> None:
    """Refuse a values file that a later driver would take for something else."""
    end = data.find(b"\n") + 1
    try:
        header = parse_header(data[:end], "the reply")
        jobs = [job for start, stop in _spans(header["jobs"]) for job in range(start, stop)]
        about = (header["run"], header["bundle"], compact(jobs), header["nbytes"])
        parse_ended(header["report"], spec.bundle, len(spec.jobs))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the reply has damaged values: {error}") from error
    size = len(data) - end
    wrong = ended is None or ended.nbytes != size
    if wrong or about != (spec.run, spec.bundle, compact(spec.jobs), size):
        raise DataError("the reply has the values of another bundle")


def _spans(told: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    if sum(stop - start for start, stop in told) > _MOST_JOBS:
        raise ValueError("more jobs than a bundle has")
    return told


def put(results: ResultStore, name: str, data: bytes) -> str:
    """Write a file that survives a power cut; return its path or URL.

    Raises
    ------
    OSError
    """
    folder = results.local
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.chmod(file.name, 0o644)
        return results.adopt(file.name, name)
    except OSError:
        os.unlink(file.name)
        raise


def unwritten(spec: BundleSpec, error: OSError, results: ResultStore) -> BundleEnded:
    """Return the end of a bundle whose values cannot be written: nobody's code is to blame."""
    text = f"the results cannot be written to {results.url}: {error.strerror or error}"
    failure = Failure(kind="output", message=f"{text}; make room there and retry", charged=False)
    return BundleEnded(
        at=time.time(), bundle=spec.bundle, failures=dict.fromkeys(range(len(spec.jobs)), failure)
    )


# --- commands ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """What is told of a command that was run elsewhere.

    Attributes
    ----------
    code : int
        Exit code of the command.
    began, ended : float
        Seconds since the epoch, by the worker's clock.
    host : str
    out, err : bytes
        The ends of its output.
    printed : int
        Bytes of standard output that there were.
    files : mapping of str to bytes or Ref
        Its outputs: here, or where they were put.
    large : mapping of str to int
        Outputs that were too large to come back, with their sizes.
    failure : Failure or None
        What those who ran it say of its failure; None: the exit code tells.
    """

    code: int
    began: float = 0.0
    ended: float = 0.0
    host: str = ""
    out: bytes = b""
    err: bytes = b""
    printed: int = 0
    files: Mapping[str, wire.Blob] = field(default_factory=dict)
    large: Mapping[str, int] = field(default_factory=dict)
    failure: Failure | None = None


@dataclass(slots=True)
class _Tally:
    """Outcomes of a bundle's jobs, by position."""

    values: list[Any]
    failures: dict[int, Failure] = field(default_factory=dict)
    logs: dict[int, tuple[int, int]] = field(default_factory=dict)
    wall: dict[int, float] = field(default_factory=dict)
    log: bytes = b""


def keep_commands(
    spec: BundleSpec,
    said: Mapping[int, Said],
    blocked: Mapping[int, str],
    outputs: Sequence[str],
    results: ResultStore,
) -> BundleEnded:
    """Write the values and logs of a bundle of commands; return how it ended.

    Parameters
    ----------
    spec : BundleSpec
    said : mapping of int to Said
        By position.
    blocked : mapping of int to str
        Positions that were not run.
    outputs : sequence of str
        Names of the files that each command must write.
    results : ResultStore

    Raises
    ------
    OSError
        The results cannot be written, or an output that was left in the store cannot be read.
    """
    tally = _Tally([Missing(blocked.get(p, "")) for p in range(len(spec.jobs))])
    for position, each in said.items():
        _count(tally, spec, position, each, outputs, results)
    if tally.log:
        put(results, f"logs/{spec.bundle}.log", tally.log)
    encoded = encode(tally.values)
    first = min((each.began for each in said.values()), default=0.0)
    ended = BundleEnded(
        at=time.time(),
        bundle=spec.bundle,
        worker=next((each.host for each in said.values()), ""),
        location=results.place(spec.bundle),
        checksum=encoded.checksum,
        nbytes=len(encoded.body),
        failures=tally.failures,
        blocked=blocked,
        started=first,
        wall=array("f", [tally.wall.get(p, 0.0) for p in range(len(spec.jobs))]),
        cpu=array("f", bytes(4 * len(spec.jobs))),
        logs=tally.logs,
    )
    if spec.gate and len(said) == 1 and not tally.failures:
        ended = replace(ended, truth=bool(tally.values[next(iter(said))]))
    results.save(spec, encoded, pack_ended(ended))
    return ended


def _count(
    tally: _Tally,
    spec: BundleSpec,
    position: int,
    said: Said,
    outputs: Sequence[str],
    results: ResultStore,
) -> None:
    tally.wall[position] = max(0.0, said.ended - said.began)
    spoken = said.out + said.err
    if spoken:
        tally.logs[position] = (len(tally.log), len(spoken))
        tally.log += spoken
    failure = _failure(said, spec)
    if failure is None:
        try:
            tally.values[position] = _value(said, spec, position, outputs, results)
            return
        except _NoValue as why:
            failure = Failure(kind="output", message=str(why))
    tally.failures[position] = failure
    tally.values[position] = Missing(failure.message)


class _NoValue(Exception):
    """A command ended well and left nothing that could be its value."""


def _failure(said: Said, spec: BundleSpec) -> Failure | None:
    """Say why a command failed; None: it did not."""
    if said.failure is not None or said.code == 0:
        return said.failure
    limit, last = spec.resources.walltime, _last(said)
    if said.code == WALLTIME and limit is not None:
        return Failure(kind="walltime", message=f"ran longer than its walltime of {limit:g} s")
    if said.code in _DEADLY:
        number = _DEADLY[said.code]
        name = signal.Signals(number).name
        return Failure(kind="signal", message=f"ended by {name}{last}", code=number)
    return Failure(kind="exit", message=f"exit code {said.code}{last}", code=said.code)


def _last(said: Said) -> str:
    """Return the last line that was said, for a message."""
    spoken = (said.err or said.out).decode(errors="replace").strip().splitlines()
    return f": {spoken[-1].strip()[:500]}" if spoken else ""


def _value(
    said: Said, spec: BundleSpec, position: int, names: Sequence[str], results: ResultStore
) -> Any:
    if spec.scatters:
        raise _NoValue("a command returns no list, but its items are mapped over")
    if not names:
        return _printed(said)
    _check_files(said, names)
    where = output_folder(spec, spec.jobs[position])
    files = {name: _file(said.files[name], f"{where}/{name}", results) for name in names}
    return files[names[0]] if len(names) == 1 else files


def output_folder(spec: BundleSpec, index: int) -> str:
    """Return the folder in the run's results for the outputs of a job's command."""
    folder = re.sub(r"[^\w.+-]", "_", spec.name)
    return f"files/{folder}/{index}.{spec.attempt}"


def _printed(said: Said) -> str:
    if said.printed > len(said.out):
        raise _NoValue(
            f"printed {said.printed} bytes, more than come back; write a file, %OUT{{...}}"
        )
    return said.out.decode(errors="replace").strip()


def _check_files(said: Said, names: Sequence[str]) -> None:
    for name in names:
        if name in said.large:
            raise _NoValue(
                f"its output {name} has {said.large[name]} bytes, too many for the service: give "
                "data=, a folder that driver and workers see"
            )
        if name not in said.files:
            raise _NoValue(f"did not write its output {name}")


def _file(blob: wire.Blob, name: str, results: ResultStore) -> File:
    data = wire.read(blob)
    target = put(results, name, data)
    if isinstance(blob, wire.Ref):
        wire.discard(blob.url)
    return File(target, len(data), adler32(data), mtime=time.time())
