"""What runs in a batch job: one element of an array, with a few bundles one after the other.

``python -m pandaflow.executors.batch.element FOLDER`` finds its number in the environment, its
work in ``FOLDER/<number>.todo``, and tells how it goes in ``FOLDER/<number>.report``: a line of
JSON for each message, only ever appended to. It needs the file system, and nobody to talk to.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.errors import DataError
from pandaflow.data.results import ResultStore
from pandaflow.executors.batch.names import ID, INDEX
from pandaflow.executors.outcome import BundleAbandoned

#: In the folder of all arrays: the token of the session whose elements may begin bundles, and on
#: further lines the arrays of sessions before it that it has adopted.
OWNER = "owner"
#: In the folder of an array: none of its elements may begin anything any more.
VOID = "void"
#: Bytes of a report that cannot be written, from which on messages of jobs are lost.
_WAITING = 2**20


@dataclass(frozen=True, slots=True)
class Work:
    """A bundle, with all that is needed to run it.

    Attributes
    ----------
    spec : BundleSpec
    code : bytes or str
        The pickled payload, or the path of the file that holds it.
    deps : tuple of str
        Places of upstream values in the result store.
    """

    spec: BundleSpec
    code: bytes | str
    deps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Todo:
    """What an element does.

    Attributes
    ----------
    owner : str
        Token of the session that wants it.
    works : tuple of Work
    path : tuple of str
        Where the driver imports from: payloads may need it.
    scratch : str
        Root of the jobs' work directories; empty: the temporary directory.
    system, site : str
        Where it was sent: the batch system's name, and the site's.
    """

    owner: str
    works: tuple[Work, ...]
    path: tuple[str, ...] = ()
    scratch: str = ""
    system: str = ""
    site: str = ""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_todo(folder: Path, index: int, todo: Todo) -> None:
    """Leave an element its work."""
    (folder / f"{index}.todo").write_bytes(pickle.dumps(todo, protocol=5))


# --- reports ----------------------------------------------------------------------------


class Reporter:
    """Appends messages to a file, as whole lines. Thread-safe.

    What cannot be written now (a full disk, a file server that is away) waits for the next
    message, and at the end for some time: no job ends because of it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._lock = threading.Lock()
        self._rest = b"" if self._whole() else b"\n"

    def _whole(self) -> bool:
        """Tell whether whoever wrote before us came to the end of a line."""
        end = os.fstat(self._file).st_size
        return not end or os.pread(self._file, 1, end - 1) == b"\n"

    def __call__(self, message: Mapping[str, Any]) -> None:
        """Append a message; the end of a bundle survives the node."""
        line = json.dumps(message, default=_bytes_as_json).encode() + b"\n"
        with self._lock:
            if message["op"] == "said" and len(self._rest) > _WAITING:
                return
            self._rest += line
            self._write()
            # An end with values is on disk together with them.
            if message["op"] in ("ended", "lost") and not message.get("location"):
                with suppress(OSError):
                    os.fsync(self._file)

    def _write(self) -> None:
        with suppress(OSError):
            while self._rest:
                self._rest = self._rest[os.write(self._file, self._rest) :]

    def close(self, patience: float = 60.0) -> None:
        """Close the file, after so many seconds even if not all could be written."""
        deadline = time.monotonic() + patience
        with self._lock:
            self._write()
            while self._rest and time.monotonic() < deadline:
                time.sleep(0.2)
                self._write()
            os.close(self._file)


def _bytes_as_json(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} in a report")


def _bytes_from_json(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"]) if value.keys() == {"base64"} else value


def read_reports(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the messages behind ``offset`` and where they end; a line cut short waits.

    A file that is not there (yet) has no messages; what is no message is left out.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return list(_messages(data[:end].splitlines())), offset + end


def _messages(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):  # a node that broke down may leave zeros
            message = json.loads(line, object_hook=_bytes_from_json)
            if isinstance(message, dict) and isinstance(message.get("op"), str):
                yield message


# --- running ----------------------------------------------------------------------------


def run_element(folder: Path, index: int, batch_id: str = "") -> int:
    """Run the bundles of an element that are still wanted; return how many were begun."""
    todo: Todo = pickle.loads((folder / f"{index}.todo").read_bytes())
    sys.path += [entry for entry in todo.path if entry not in sys.path]
    report = Reporter(folder / f"{index}.report")
    worker = f"{socket.gethostname()}/{batch_id}_{index}"
    report({"op": "here", "id": batch_id, "worker": worker, "at": time.time()})
    begun = 0
    for work in todo.works:
        if not wanted(folder, index, todo.owner, work.spec.bundle):
            report({"op": "dropped", "bundle": work.spec.bundle})
            continue
        begun += 1
        _run(work, report, worker, todo.scratch)
    report.close()
    return begun


def wanted(folder: Path, index: int, owner: str, bundle: int) -> bool:
    """Tell whether a bundle shall still begin: not cancelled, and its session still in charge."""
    marks = (VOID, f"{index}.{VOID}", f"{bundle}.drop")
    if any((folder / mark).exists() for mark in marks):
        return False
    try:
        token, *adopted = (folder.parent / OWNER).read_text().splitlines()
    except (OSError, ValueError):
        return False
    return token == owner or folder.name in adopted


def _run(work: Work, report: Reporter, worker: str, scratch: str) -> None:
    from pandaflow.executors.payload import run_bundle

    # Nobody here could join a job that a bundle leaves running, so bundles take their time.
    spec = replace(work.spec, seconds=0.0)
    store = ResultStore(spec.results)
    try:
        code = work.code if isinstance(work.code, bytes) else Path(work.code).read_bytes()
        deps = [store.load(place) for place in work.deps]
    except OSError as error:  # DataError among them
        reason = str(error) if isinstance(error, DataError) else f"its files are gone: {error}"
        report({"op": "lost", "bundle": spec.bundle, "position": None, "reason": reason})
        return
    # BundleAbandoned: a restarted element had begun it before, and has said so.
    with suppress(BundleAbandoned):
        run_bundle(
            spec,
            code,
            deps,
            report=report,
            worker=worker,
            isolation="process",
            on_stuck=_start_again,
            workdir=scratch,
        )


def _start_again() -> None:
    """Rid this process of a payload that does not end; bundles that have ended stay so."""
    os.execv(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]])


def main(argv: Sequence[str]) -> int:
    """Run the element that the environment names; return the exit code."""
    # Ids of array elements are numbered from 0 by the script, whatever the system does.
    index = int(os.environ.get(INDEX) or 0)
    run_element(Path(argv[0]), index, os.environ.get(ID, ""))
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that payloads left behind must not keep the batch job.
    os._exit(code)
