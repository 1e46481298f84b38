"""Commands as one shell script each, for endpoints that may not have PandaFlow.

The script runs the command line in a directory of its own, ends it after its walltime or when
the mark for its bundle says so, and prints what came of it behind a word of its own: exit code,
times, the ends of its output, and its ``%OUT`` files.
"""

from __future__ import annotations

import base64
import math
import pickle
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pandaflow.core.bundle import Blocked, BundleSpec, BundleValues, JobInputs
from pandaflow.core.errors import DataError
from pandaflow.executors.command import Command, CommandPayload, parse_command, render
from pandaflow.executors.jobs import job_seed
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.outcome import WALLTIME, Said
from pandaflow.executors.remote.worker import begun_mark, stop_mark
from pandaflow.executors.template import bind, load_payload, slot_of

#: Bytes of standard error, and of standard output where files are the value, that come back.
LOG_BYTES = 100_000
#: Exit codes of the script's own: stopped by a mark, no room to work in.
STOPPED, NO_ROOM = 143, 125
#: Launchers that a command starts its ranks with by itself.
_LAUNCHER = re.compile(r"\b(mpirun|mpiexec|srun|aprun|jsrun|PARSL_MPI_PREFIX)\b")

_SCRIPT = """\
word={word}; stop={stop}; limit={limit}; room={room}
say() {{ printf '%s %s' "$word" "$*"; }}
work=$(mktemp -d "${{TMPDIR:-/tmp}}/pandaflow-XXXXXXXX") && cd "$work" && mkdir .pandaflow || {{
  say code {no_room} 0 0; echo; exit 0
}}
{exports}
began=$(date +%s.%N)
{begun}
if [ -e "$stop" ]; then echo {stopped} > .pandaflow/why; code={stopped}; else
setsid {command} > .pandaflow/out 2> .pandaflow/err < /dev/null &
child=$!
{{
  end=$((SECONDS + limit + 1))
  while kill -0 "$child"; do
    if [ -e "$stop" ]; then why={stopped}
    elif [ "$limit" -gt 0 ] && [ "$SECONDS" -ge "$end" ]; then why={walltime}
    else sleep 0.2; continue; fi
    echo "$why" > .pandaflow/why
    kill -TERM -- "-$child"; sleep 1; kill -KILL -- "-$child"; break
  done
}} > /dev/null 2>&1 &
watch=$!
wait "$child"; code=$?
kill "$watch" 2> /dev/null
fi
[ -s .pandaflow/why ] && code=$(cat .pandaflow/why)
say code "$code" "$began" "$(date +%s.%N)" "$(hostname)"; echo
[ -e .pandaflow/out ] || : > .pandaflow/out; [ -e .pandaflow/err ] || : > .pandaflow/err
say out "$(wc -c < .pandaflow/out)" ' '; tail -c {out_bytes} .pandaflow/out | base64 -w0; echo
say err "$(wc -c < .pandaflow/err)" ' '; tail -c {log_bytes} .pandaflow/err | base64 -w0; echo
if [ "$code" = 0 ]; then for name in {outputs}; do
  [ -f "$name" ] || continue
  size=$(wc -c < "$name")
  if [ "$size" -le "$room" ]; then
    room=$((room - size))
    say file "$name" "$size" ' '; base64 -w0 < "$name"; echo
  elif [ -n {data} ]; then
    mkdir -p {data} && cp -- "$name" {data}/"$word-${{name//\\//_}}" \\
      && say kept "$name" "$size" {data}/"$word-${{name//\\//_}}" && echo
  else say large "$name" "$size"; echo; fi
done; fi
cd / && rm -rf "$work"
exit 0
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A job of a bundle as a shell script."""

    position: int
    script: str


@dataclass(frozen=True, slots=True)
class _Job:
    """What a command needs to know of its job."""

    run: str
    task: str
    index: int
    attempt: int
    seed: int


# --- to the endpoint --------------------------------------------------------------------


def lines(
    spec: BundleSpec, code: bytes, deps: Sequence[BundleValues], *, board: str, data: str, room: int
) -> tuple[list[Line], dict[int, str]]:
    """Turn the jobs of a command bundle into scripts.

    Parameters
    ----------
    spec : BundleSpec
    code : bytes
        The pickled ``CommandPayload``.
    deps : sequence of BundleValues
    board : str
        Folder of marks, as workers see it.
    data : str
        Folder for large outputs that both sides see; empty: there is none.
    room : int
        Bytes of a reply.

    Returns
    -------
    lines : list of Line
    blocked : dict of int to str
        Positions whose inputs are not there.
    """
    payload: CommandPayload = load_payload(code)
    inputs = JobInputs(spec, deps, pickle.loads)
    command = parse_command(payload.template)
    made: list[Line] = []
    blocked: dict[int, str] = {}
    for position, index in enumerate(spec.jobs):
        seed = job_seed(spec.run, spec.name, index)
        job = _Job(spec.run, spec.name, index, spec.attempt, seed)

        def line(*args: Any, _job: _Job = job, **kwargs: Any) -> str:
            return render(command, args, kwargs, _job, spec.resources)

        try:
            filled = bind(line, payload.args, payload.kwargs or {}, slot_of)(inputs.slots(index))
        except Blocked as why:
            blocked[position] = str(why)
            continue
        text = script(str(filled), command, payload, job, spec, board=board, data=data, room=room)
        made.append(Line(position, text))
    return made, blocked


def script(
    line: str,
    command: Command,
    payload: CommandPayload,
    job: _Job,
    spec: BundleSpec,
    *,
    board: str,
    data: str,
    room: int,
) -> str:
    """Return the script of a job."""
    walltime = spec.resources.walltime
    mark = _path(begun_mark(board, spec.bundle))
    begun = f"mkdir -p {_path(board)} && date +%s.%N > {mark}" if data else ":"
    return _SCRIPT.format(
        word=f"pandaflow-{secrets.token_hex(8)}",
        stop=_path(stop_mark(board, spec.bundle)),
        limit=math.ceil(walltime) if walltime is not None else 0,
        room=room - 3 * LOG_BYTES,
        no_room=NO_ROOM,
        stopped=STOPPED,
        walltime=WALLTIME,
        exports=_exports(payload, job),
        begun=begun,
        command=_command(line, payload.shell, spec),
        out_bytes=LOG_BYTES if command.outputs else room,
        log_bytes=LOG_BYTES,
        outputs=" ".join(map(shlex.quote, command.outputs)),
        data=shlex.quote(f"{data}/files" if data else ""),
    )


def _path(path: str) -> str:
    """Quote a path; a leading ``~/`` is the home where the script runs."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _exports(payload: CommandPayload, job: _Job) -> str:
    about = {
        "PANDAFLOW_RUN": job.run,
        "PANDAFLOW_TASK": job.task,
        "PANDAFLOW_INDEX": str(job.index),
        "PANDAFLOW_ATTEMPT": str(job.attempt),
        "PANDAFLOW_SEED": str(job.seed),
    }
    said = {**about, **(payload.env or {})}
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in said.items())


def _command(line: str, shell: bool, spec: BundleSpec) -> str:
    """Return the words to run; ranks are started by the engine's launcher, or by the command."""
    words = f"/bin/sh -c {shlex.quote(line)}" if shell else shlex.join(shlex.split(line))
    if spec.resources.parallel and not _LAUNCHER.search(line):
        return f"$PARSL_MPI_PREFIX {words}"
    return words


def stop_line(bundles: Sequence[int], board: str) -> str:
    """Return the command line that leaves marks for bundles to stop."""
    marks = " ".join(_path(stop_mark(board, bundle)) for bundle in bundles)
    return f"mkdir -p {_path(board)} && touch {marks}"


# --- and back ---------------------------------------------------------------------------


def hear(result: object) -> Said:
    """Read what a script has printed.

    Raises
    ------
    DataError
        It did not come to its end, or somebody else's output came instead.
    """
    stdout = result.get("stdout", "") if isinstance(result, Mapping) else ""
    told: dict[str, list[list[str]]] = {}
    for key, words in _told(str(stdout)):
        told.setdefault(key, []).append(words)
    if "code" not in told:
        stderr = result.get("stderr", "") if isinstance(result, Mapping) else result
        last = " ".join(str(stderr).split())[-500:]
        raise DataError(f"the script of a command did not come to its end: {last}")
    code, began, ended, *host = told["code"][0]
    (out,), (err,) = told.get("out", [["0"]]), told.get("err", [["0"]])
    files: dict[str, wire.Blob] = {w[0]: _bytes(w[2:]) for w in told.get("file", ())}
    files |= {w[0]: wire.Ref(w[2], int(w[1])) for w in told.get("kept", ())}
    return Said(
        int(code),
        float(began),
        float(ended),
        " ".join(host),
        _bytes(out[1:]),
        _bytes(err[1:]),
        int(out[0]),
        files,
        {w[0]: int(w[1]) for w in told.get("large", ())},
    )


_TOLD = re.compile(r"^pandaflow-[0-9a-f]{16} (code|out|err|file|kept|large)( .*)?$", re.M)


def _told(text: str) -> Iterator[tuple[str, list[str]]]:
    for found in _TOLD.finditer(text):
        yield found[1], (found[2] or "").split()


def _bytes(words: Sequence[str]) -> bytes:
    return base64.b64decode(words[0]) if words else b""
