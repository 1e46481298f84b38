"""The batch script: shebang, directives, what a job may know of itself, prologue, body."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence

from pandaflow.executors.batch.answers import ceiling
from pandaflow.executors.batch.model import Backend, BatchRequest, Describing
from pandaflow.executors.batch.names import ID, INDEX

__all__ = ["ID", "INDEX", "batch_files", "batch_script"]


def batch_files(
    backend: Backend,
    script_path: str,
    request: BatchRequest,
    body: str,
    prologue: Sequence[str] = (),
) -> dict[str, str]:
    """Return the files to write before ``backend.submit(script_path, request)`` is run.

    Returns
    -------
    dict of str to str
        Path and text: the script, and a description beside it for systems that want one.
    """
    files = {script_path: batch_script(backend, request, body, prologue)}
    if isinstance(backend, Describing):
        path, text = backend.describe(script_path, request)
        files[path] = text
    return files


def batch_script(
    backend: Backend, request: BatchRequest, body: str, prologue: Sequence[str] = ()
) -> str:
    """Return the text of the script.

    It exports :data:`ID`, :data:`INDEX` and the variables of the request, goes to the working
    directory, opens the output where the system cannot name it, starts the clock of the warning
    where the system has none, and runs the lines of ``prologue`` and ``body`` in the same shell.

    Parameters
    ----------
    body : str
        What to run; with ``exec`` the warning signal reaches the program itself.
    prologue : sequence of str
        Lines such as ``module load python``.
    """
    directives = backend.directives(request) if backend.prefix else []
    lines = [
        "#!/bin/bash",
        *(f"{backend.prefix} {line}" for line in directives),
        "",
        *_identity(backend),
        *(f"export {name}={shlex.quote(value)}" for name, value in request.env.items()),
        *_surroundings(backend, request),
        *_timer(backend, request),
        *prologue,
        body,
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _identity(backend: Backend) -> Iterator[str]:
    inside = backend.inside
    yield f'export {ID}="{inside.id}"'
    yield f'export {INDEX}="{inside.index}"'
    if inside.first:
        yield f'[ -z "${INDEX}" ] || {INDEX}=$(({INDEX} - {inside.first}))'


def _surroundings(backend: Backend, request: BatchRequest) -> Iterator[str]:
    enter, streams = list(_enter(backend, request)), list(_streams(backend, request))
    # Where the output is opened here, it is before anything can fail that should be told in it.
    relative = not all(os.path.isabs(path) for path in (request.stdout, request.stderr) if path)
    yield from (*enter, *streams) if relative else (*streams, *enter)


def _enter(backend: Backend, request: BatchRequest) -> Iterator[str]:
    # With a description the system may have made the working directory, on another disk.
    if request.workdir is not None and backend.prefix:
        folder = shlex.quote(request.workdir)
        said = f'echo "$(hostname) cannot enter the working directory" {folder} >&2'
        yield f"cd -- {folder} || {{ {said}; exit 1; }}"


def _streams(backend: Backend, request: BatchRequest) -> Iterator[str]:
    if request.stdout is not None and backend.log(request.stdout, request) is None:
        joined = " 2>&1" if request.stderr is None else ""
        yield f"exec >{_path(backend, request.stdout)}{joined}"
    if request.stderr is not None and backend.log(request.stderr, request) is None:
        yield f"exec 2>{_path(backend, request.stderr)}"


def _path(backend: Backend, template: str) -> str:
    """Return a path template as one word of the shell."""
    index = backend.inside.index
    words = {"{id}": f'"${ID}"', "{index}": f'"{index}"'}
    parts = re.split(r"(\{id\}|\{index\})", template)
    return "".join(words.get(part) or (shlex.quote(part) if part else "") for part in parts)


def _timer(backend: Backend, request: BatchRequest) -> Iterator[str]:
    if request.warn is None or request.walltime is None or backend.warns(request):
        return
    signal, seconds = request.warn
    wait = max(1, int(request.walltime) - ceiling(seconds, 1))
    # Its streams are closed, so that nobody waits for the end of the output because of it.
    yield f"(sleep {wait}; kill -s {signal} $$) </dev/null >/dev/null 2>&1 &"
