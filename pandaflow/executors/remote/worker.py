"""What a worker of an endpoint does with a bundle; the driver only sends for it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pandaflow.core.bundle import BundleSpec, BundleValues
from pandaflow.core.errors import DataError
from pandaflow.core.model import File
from pandaflow.data.results import ResultStore, encode
from pandaflow.executors.outcome import pack_ended, unpack_ended
from pandaflow.executors.remote import versions, wire
from pandaflow.executors.remote.wire import Blob, Ref, Reply, Work

#: Seconds between looks for the mark that stops a bundle: in a folder, and in a remote store.
_LOOK_S = (0.2, 5.0)


def run(work: bytes, code: bytes | None = None) -> bytes:
    """Run a bundle; return its packed reply.

    Parameters
    ----------
    work : bytes
        A packed :class:`Work`, or a :class:`Ref` to one.
    code : bytes, optional
        The pickled payload, where the registered function carries it.

    Raises
    ------
    DataError, OSError
        What was sent cannot be read, or there is no room for temporary files.
    """
    message = wire.work_of(work)
    sys.path += [entry for entry in message.path if entry not in sys.path]
    if message.board and wire.exists(stop_mark(message.board, message.spec.bundle)):
        return wire.pack(Reply(message.spec.bundle, dropped=True))
    payload = code if message.code is None else wire.read(message.code)
    if payload is None:
        raise DataError("a worker was sent no code")
    folder = tempfile.mkdtemp(prefix="pandaflow-remote-")
    try:
        return _replied(message, _run(message, payload, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stop_mark(board: str, bundle: int) -> str:
    """Return the place of the mark that stops a bundle."""
    return f"{board}/{bundle}.stop"


def begun_mark(board: str, bundle: int) -> str:
    """Return the place of the mark that a bundle has begun."""
    return f"{board}/{bundle}.begun"


def _run(work: Work, payload: bytes, folder: str) -> Reply:
    from pandaflow.executors.payload import run_bundle

    own = ResultStore(folder)
    deps = _direct(work) if work.direct else _sent(work.deps, own)
    # Nobody here could join a job that a bundle leaves running, so bundles take their time. The
    # cache lies beside results that are not here.
    spec = replace(work.spec, seconds=0.0)
    if not work.direct:
        spec = replace(spec, results=folder, cache="")
    messages: list[Mapping[str, Any]] = []
    with _watched(work):
        run_bundle(
            spec,
            payload,
            deps,
            report=messages.append,
            # Bundles of one run that share a worker's name share its outbox, and threads of this
            # process may run several at once.
            worker=f"{socket.gethostname()}/{os.getpid()}-{threading.get_ident():x}",
            isolation="thread",
            workdir=work.workdir or os.path.join(folder, "work"),
        )
    messages = [_compared(work, message) for message in messages]
    if work.direct:
        return Reply(spec.bundle, messages)
    if spec.kind == "command":
        messages = _moved(work, spec, own, messages)
    return Reply(spec.bundle, messages, _files(Path(folder)))


def _direct(work: Work) -> list[BundleValues]:
    store = ResultStore(work.spec.results)
    return [store.load(place) for place in work.places]


def _sent(blobs: tuple[Blob, ...], store: ResultStore) -> list[BundleValues]:
    values = []
    for number, blob in enumerate(blobs):
        name = f"deps/{number}"
        store.put(name, wire.read(blob))
        values.append(store.load(name))
    return values


def _compared(work: Work, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add to failures what is of another version here: it may be the reason."""
    if message["op"] != "ended" or not message.get("failures"):
        return message
    words = versions.different(dict(work.versions))
    ended = unpack_ended(message)
    if not words:
        return message
    told = {
        at: replace(failure, message=f"{failure.message} ({words})")
        if failure.kind == "exception"
        else failure
        for at, failure in ended.failures.items()
    }
    return pack_ended(replace(ended, failures=told))


def _moved(
    work: Work, spec: BundleSpec, here: ResultStore, messages: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Let the values of commands name their files where the driver will put them."""
    told = next((message for message in messages if message["op"] == "ended"), None)
    if told is None or here.find(spec.bundle) is None:
        return list(messages)
    there = ResultStore(work.spec.results)
    root = there.local or there.url
    held = here.load(here.place(spec.bundle)).values
    encoded = encode([_renamed(value, here.local or here.url, root) for value in held])
    ended = replace(unpack_ended(told), checksum=encoded.checksum, nbytes=len(encoded.body))
    packed = pack_ended(ended)
    here.save(spec, encoded, packed)
    return [packed if message is told else message for message in messages]


def _renamed(value: Any, here: str, there: str) -> Any:
    """Return a command's value with its files below another folder."""
    if isinstance(value, dict):
        return {name: _renamed(each, here, there) for name, each in value.items()}
    if isinstance(value, File) and value.path.startswith(f"{here}/"):
        return replace(value, path=there + value.path.removeprefix(here))
    return value


def _files(folder: Path) -> dict[str, bytes]:
    """Return the files that a bundle has left, by name."""
    kept = (path for top in ("values", "logs", "files") for path in (folder / top).rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept if path.is_file()}


def _replied(work: Work, reply: Reply) -> bytes:
    """Return a reply as the service takes it: what is too large by reference."""
    packed = wire.pack(reply)
    if wire.travelling(len(packed)) <= work.limit:
        return packed
    if not work.data:
        said = [message for message in reply.messages if message["op"] == "started"]
        return wire.pack(Reply(reply.bundle, said, large=len(packed)))
    # Its own name: the service may have handed the same work out twice.
    url = f"{work.data}/replies/{reply.bundle}-{os.urandom(6).hex()}"
    wire.write(url, packed)
    return wire.pack(Ref(url, len(packed)))


# --- marks ------------------------------------------------------------------------------


@contextmanager
def _watched(work: Work) -> Iterator[None]:
    """Tell that a bundle has begun, and stop it when a mark says so."""
    if not work.board:
        yield
        return
    with suppress(OSError):  # marks are a courtesy
        if work.marks:
            wire.write(begun_mark(work.board, work.spec.bundle), str(time.time()).encode())
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(work, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(work: Work, over: threading.Event) -> None:
    from pandaflow.executors.payload import cancel

    pause = _LOOK_S[wire.local_path(work.board) is None]
    mark = stop_mark(work.board, work.spec.bundle)
    while not over.wait(pause):
        with suppress(OSError):
            if wire.exists(mark):
                cancel(work.spec.run, work.spec.bundle)
                return
