"""What jobs print and log goes to the log of their bundle, job by job.

``sys.stdout`` and ``sys.stderr`` are replaced by proxies that look at a context variable: in a
payload thread (and in threads started with its context) it names the sink of the bundle, all
other threads write on as before. Logging needs no more than that, unless the root logger has
handlers that hold some other stream; then a handler of ours is put beside them.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, BinaryIO

#: Bytes kept of one job's output: so many from its beginning and so many from its end.
HEAD, TAIL = 5_000_000, 5_000_000
_BUFFERED = 1_000_000

_sink: ContextVar[Sink | None] = ContextVar("pandaflow_sink", default=None)


class Sink:
    """The output of the jobs of one bundle, in order.

    Parameters
    ----------
    open_log : callable
        Opens the log for writing; called only when there is something to write.
    live : bool
        Whether the output of the running job may be written before it ends. Not when the job
        may be detached: what it says then belongs to the log of the bundle that joins it.
    tee : bool
        Show the output as well.
    """

    def __init__(
        self, open_log: Callable[[], BinaryIO], *, live: bool = True, tee: bool = False
    ) -> None:
        self._open, self._live, self.tee = open_log, live, tee
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._parts: list[bytes] = []
        self._tail: deque[bytes] = deque()
        self._tail_size = self._dropped = self._waiting = self._start = 0
        self.broken = ""
        #: Bytes in the log, and bytes of output: the job loop looks at these after each job.
        self.size = self.heard = 0

    def write(self, data: bytes) -> None:
        """Add output of the running job. Thread-safe; never raises for a full disk."""
        with self._lock:
            self.heard += len(data)
            room = max(HEAD - (self.size - self._start), 0)
            if len(data) > room:
                self._to_tail(data[room:])
                data = data[:room]
            self._parts.append(data)
            self.size += len(data)
            self._waiting += len(data)
            if self._live and self._waiting > _BUFFERED:
                self._write_out()

    def mark(self) -> tuple[int, int]:
        """End the output of a job; return its offset and length in the log, in bytes."""
        with self._lock:
            self._close_tail()
            start, self._start = self._start, self.size
            if self._waiting > _BUFFERED:
                self._write_out()
            return (start, self.size - start)

    @property
    def pending(self) -> bool:
        """Whether the running job has said anything."""
        return self.size != self._start or bool(self._tail)

    def flush(self) -> None:
        """Write what may be written, for people who look while the job runs."""
        with self._lock:
            if self._live and self._parts:
                self._write_out()

    def hand_over(self) -> Sink:
        """Part with the log after the last job that ended, for the running job is detached.

        The object itself goes on as the sink of the running job and keeps what it says until
        :meth:`attach`; what is returned stands for the log so far.
        """
        with self._lock:
            ended = Sink(self._open, live=True, tee=self.tee)
            keep, gone = self._start - (self.size - self._waiting), b"".join(self._parts)
            ended._file, ended._parts, ended._waiting = self._file, [gone[:keep]], keep
            ended.size = ended._start = self._start
            self._file, self._live = None, False
            self._parts, self._waiting = [gone[keep:]], len(gone) - keep
            self.size, self._start = self._waiting, 0
            return ended

    def attach(self, open_log: Callable[[], BinaryIO]) -> None:
        """Write to another log from now on, live; for a sink that was handed over."""
        with self._lock:
            self._open, self._live = open_log, True

    def close(self) -> None:
        """Write the rest and close the log."""
        with self._lock:
            if self.size and self._waiting:
                self._write_out()
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
                self._file = None

    def _to_tail(self, data: bytes) -> None:
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) > TAIL:
            gone = len(self._tail.popleft())
            self._tail_size -= gone
            self._dropped += gone

    def _close_tail(self) -> None:
        if not self._tail:
            return
        end = b"".join(self._tail)
        cut = max(len(end) - TAIL, 0)
        notice = f"\n[... {self._dropped + cut} bytes of output left out ...]\n".encode()
        rest = (notice if self._dropped + cut else b"") + end[cut:]
        self._parts.append(rest)
        self.size += len(rest)
        self._waiting += len(rest)
        self._tail.clear()
        self._tail_size = self._dropped = 0

    def _write_out(self) -> None:
        """A log that cannot be written is a pity, but no reason to fail jobs."""
        data = b"".join(self._parts)
        self._parts, self._waiting = [], 0
        if self.broken:
            return
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(data)
        except OSError as error:
            self.broken = f"the log could not be written: {error.strerror or error}"


class _Stream(io.TextIOBase):
    """A standard stream that writes to the sink of the job that prints."""

    def __init__(self, below: Any) -> None:
        self.below = below

    def write(self, text: str) -> int:
        sink = _sink.get()
        if sink is None:
            return int(self.below.write(text) or 0)
        sink.write(text.encode(errors="backslashreplace"))
        if sink.tee:
            self.below.write(text)
        return len(text)

    def flush(self) -> None:
        if _sink.get() is None and not getattr(self.below, "closed", False):
            self.below.flush()

    @property
    def buffer(self) -> Any:
        sink = _sink.get()
        return self.below.buffer if sink is None else _Bytes(sink)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(getattr(self.below, "encoding", None) or "utf-8")

    def isatty(self) -> bool:
        return _sink.get() is None and bool(self.below.isatty())

    def fileno(self) -> int:
        return int(self.below.fileno())

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Closing is for whoever owns the stream below."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


class _Bytes(io.RawIOBase):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write(bytes(data))
        return len(data)


class _Handler(logging.Handler):
    """Copies the records of jobs to their sinks."""

    def emit(self, record: logging.LogRecord) -> None:
        sink = _sink.get()
        if sink is None or _reaches_proxy(record.name):
            return
        try:
            sink.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except (TypeError, ValueError, KeyError):  # the arguments do not fit the format
            self.handleError(record)


def _reaches_proxy(name: str) -> bool:
    """Tell whether some handler of the logger writes to a proxy, so that we would double it."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        for handler in logger.handlers:
            if isinstance(getattr(handler, "stream", None), _Stream):
                return True
        logger = logger.parent if logger.propagate else None
    return False


# Standard streams belong to the process, and so does the one handler beside them.
_lock = threading.Lock()
_handler = _Handler()
_handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))


def install() -> None:
    """Put the proxies in place. Cheap to repeat: others (notebooks, tests) swap streams too."""
    if isinstance(sys.stdout, _Stream) and isinstance(sys.stderr, _Stream):
        return
    with _lock:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Stream):
                setattr(sys, name, _Stream(stream))
        root = logging.getLogger()
        # With no handler at all, logging writes to sys.stderr: routed already, and a handler
        # of ours would stop basicConfig from doing its work.
        if root.handlers and _handler not in root.handlers:
            root.addHandler(_handler)


def restore() -> None:
    """Take the proxies out again."""
    with _lock:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, _Stream):
                setattr(sys, name, stream.below)
        logging.getLogger().removeHandler(_handler)


@contextmanager
def routed(sink: Sink) -> Iterator[None]:
    """Send what this context prints and logs to ``sink``."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
