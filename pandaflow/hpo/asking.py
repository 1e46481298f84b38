"""Asking an optimizer without being at its mercy.

An optimizer that may hang, crash or think for long lives in a process of its own
(``python -m pandaflow.hpo.child``), so that the study's driver is never held up, a segfault ends
nothing but that process, and an optimizer that hangs can be ended. Its state follows from the
log, so another process goes on from there with the same next points. Optimizers that are pure
arithmetic answer in place.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeAlias

from pandaflow.hpo.engine import Adopt, Answer, Ask, Report, Request, Tell
from pandaflow.hpo.optimizers.designs import Exhausted
from pandaflow.hpo.port import AskEntry, Brief, Entry, Optimizer, OptimizerSpec
from pandaflow.hpo.space import AnySpace

#: Seconds that coming back from the log may take, however long that is.
_RESTORE_S = 1800.0
#: Answers are sent together if they come within this many seconds.
_FLUSH_S = 0.002


@dataclass(frozen=True, slots=True)
class Ready:
    """The optimizer is where the log ends; ``inexact`` tells why not quite, if so."""

    inexact: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """The optimizer failed; ``why`` is one line for people."""

    why: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The optimizer's state after the answers so far."""

    state: bytes


Said: TypeAlias = Ready | Broken | Snapshot | Answer
Hear: TypeAlias = Callable[[Sequence[Said]], None]


class Asker(Protocol):
    """Where the optimizer is. Answers come through the callback, in the order of requests."""

    def send(self, requests: Sequence[Request]) -> None:
        """Hand over requests; returns at once."""
        ...

    def overdue(self, now: float) -> str:
        """Return why it is to be given up ("": it is not); ``now`` is ``time.monotonic()``."""
        ...

    def close(self) -> None:
        """End it, and whatever it runs. May be called twice."""
        ...


def make_optimizer(spec: OptimizerSpec, space: AnySpace, brief: Brief) -> Optimizer:
    """Build the optimizer of a study, with its pruner."""
    optimizer = spec.build(space, brief)
    if brief.pruner is None or spec.describe()["kind"] == "optuna":
        return optimizer
    from pandaflow.hpo.optimizers.optuna_pruners import pruned_by

    return pruned_by(optimizer, brief)


def perform(optimizer: Optimizer, request: Request) -> Answer:
    """Carry out one request."""
    match request:
        case Ask(number=number):
            try:
                asked = optimizer.ask(number)
            except Exhausted:
                return Answer()
            return Answer(asked.point, asked.memo)
        case Adopt(number=number, point=point):
            return Answer(point, optimizer.adopt(number, point))
        case Tell(told=told):
            return Answer(memo=optimizer.tell(told))
        case Report(number=number, step=step, value=value):
            return Answer(prune=optimizer.report(number, step, value))


class InPlace:
    """An optimizer that answers at once, in the caller's thread."""

    def __init__(
        self, optimizer: Optimizer, entries: Sequence[Entry], hear: Hear, by: str = "optimizer"
    ) -> None:
        self._optimizer, self._hear, self._by = optimizer, hear, by
        hear([Ready(optimizer.restore(entries))])

    def send(self, requests: Sequence[Request]) -> None:
        """Answer."""
        said: list[Said] = []
        for request in requests:
            try:
                answer = perform(self._optimizer, request)
            except Exception as error:  # noqa: BLE001 - an optimizer is code of others
                said.append(Broken(f"{type(error).__name__}: {error}"))
                break
            if self._by != "optimizer" and isinstance(request, Ask):
                answer = Answer(answer.point, answer.memo, by=self._by)
            said.append(answer)
        self._hear(said)

    def overdue(self, now: float) -> str:
        """Never."""
        del now
        return ""

    def close(self) -> None:
        """Nothing is left behind."""


class OwnProcess:
    """An optimizer in a process of its own.

    Parameters
    ----------
    spec, space, brief
        What to build there.
    entries, snapshot
        What to restore.
    hear : callable
        Gets what it says, in a thread of its own.
    patience : float
        Seconds that an answer may take.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        space: AnySpace,
        brief: Brief,
        entries: Sequence[Entry],
        snapshot: bytes | None,
        hear: Hear,
        *,
        patience: float,
    ) -> None:
        import cloudpickle

        self._hear, self._patience = hear, patience
        self._lock = threading.Lock()
        self._waiting, self._since = 1, time.monotonic()  # it owes us a Ready
        self._ready, self._closed = False, False
        mine, its = socket.socketpair()
        with its:
            self._process = _launch(its.fileno())
        self._connection: Any = Connection(mine.detach())
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="pandaflow-asker", daemon=True)
        self._writer = threading.Thread(target=self._write, name="pandaflow-teller", daemon=True)
        self._reader.start()
        self._writer.start()
        self._put(cloudpickle.dumps((spec, space, brief, list(entries), snapshot)))

    @property
    def pid(self) -> int:
        """Of the optimizer's process."""
        return self._process.pid

    def send(self, requests: Sequence[Request]) -> None:
        """Hand over requests."""
        import pickle

        with self._lock:
            if not self._waiting:
                self._since = time.monotonic()
            self._waiting += len(requests)
        self._put(pickle.dumps(list(requests)))

    def overdue(self, now: float) -> str:
        """Tell whether the oldest answer takes too long."""
        patience = self._patience if self._ready else _RESTORE_S
        with self._lock:
            late = self._waiting > 0 and now - self._since > patience
        return f"it has not answered for {patience:g} s" if late else ""

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._process.kill()
        self._process.wait()
        self._outgoing.put(None)
        for thread in (self._reader, self._writer):
            if threading.current_thread() is not thread:
                thread.join(timeout=5)
        self._connection.close()

    def _put(self, data: bytes) -> None:
        self._outgoing.put(data)

    def _write(self) -> None:
        """In a thread: one that hangs reads nothing, and a full pipe must not hold the study."""
        try:
            while (data := self._outgoing.get()) is not None:
                self._connection.send_bytes(data)
        except OSError:
            return  # it has died: the reader tells

    def _read(self) -> None:
        import pickle

        try:
            while True:
                said: list[Said] = pickle.loads(self._connection.recv_bytes())
                with self._lock:
                    self._waiting -= sum(isinstance(one, Answer | Ready) for one in said)
                    self._since = time.monotonic()
                self._ready = True
                self._hear(said)
                if any(isinstance(one, Broken) for one in said):
                    return  # the end of its process is no second failure
        except (EOFError, OSError):
            if not self._closed:
                self._hear([Broken(f"its process ended ({_exit_of(self._process)})")])


def _launch(descriptor: int) -> subprocess.Popen[bytes]:
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "pandaflow.hpo.child", str(descriptor)],
        pass_fds=(descriptor,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("PANDAFLOW_DEBUG") else subprocess.DEVNULL,
        start_new_session=True,  # ctrl-C in a terminal is the driver's to handle
        env={**threads, **os.environ, "PYTHONPATH": path},
    )


def _exit_of(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it closed its connection"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def open_asker(
    spec: OptimizerSpec,
    space: AnySpace,
    brief: Brief,
    entries: Sequence[Entry],
    snapshot: bytes | None,
    hear: Hear,
    *,
    patience: float,
) -> Asker:
    """Start the optimizer of a study where it belongs."""
    if spec.isolated or brief.pruner is not None:
        return OwnProcess(spec, space, brief, entries, snapshot, hear, patience=patience)
    return InPlace(make_optimizer(spec, space, brief), entries, hear)


def serve(connection: Any, build: Callable[[bytes], tuple[Optimizer, Ready]]) -> None:
    """Answer requests until the other side is gone; runs in the optimizer's process."""
    import pickle

    try:
        optimizer, ready = build(connection.recv_bytes())
        connection.send_bytes(pickle.dumps([ready]))
        while True:
            _serve_some(connection, optimizer, pickle.loads(connection.recv_bytes()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException as error:  # noqa: BLE001 - an optimizer is code of others
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        connection.send_bytes(pickle.dumps([Broken(why)]))


def _serve_some(connection: Any, optimizer: Optimizer, requests: Sequence[Request]) -> None:
    import pickle

    said: list[Said] = []
    flushed = time.monotonic()
    for request in requests:
        try:
            said.append(perform(optimizer, request))
            state = optimizer.snapshot() if isinstance(request, Tell) else None
        except BaseException:
            connection.send_bytes(pickle.dumps(said))
            raise
        if state is not None:
            said.append(Snapshot(state))
        if time.monotonic() - flushed > _FLUSH_S:
            connection.send_bytes(pickle.dumps(said))
            said, flushed = [], time.monotonic()
    if said:
        connection.send_bytes(pickle.dumps(said))


def entries_to_adopt(entries: Sequence[Entry]) -> list[Entry]:
    """Return the log as an optimizer sees it that proposed none of the points."""
    return [
        AskEntry(entry.number, entry.point, {}, own=False) if isinstance(entry, AskEntry) else entry
        for entry in entries
    ]
