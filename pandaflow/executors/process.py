"""One child process with all its descendants: output, limits, measures, and a sure end."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import psutil

from pandaflow.core.model import Failure
from pandaflow.executors.memory import tree, tree_pss

#: Seconds between SIGTERM and SIGKILL: for a command over its limits, and on cancel.
GRACE, CANCEL_GRACE = 2.0, 0.3
_PERIOD, _MEASURE_EVERY, _DISK_EVERY = 0.1, 0.25, 1.0
_LAST = 2_000
_TAG = "PANDAFLOW_PROCESS"


@dataclass(frozen=True, slots=True)
class Limits:
    """Walltime in seconds, memory (PSS) and disk (of the work directory) in bytes."""

    walltime: float | None = None
    memory: int | None = None
    disk: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes
    ----------
    code : int
        Exit code, or minus the signal's number.
    stopped : Failure or None
        Why it was stopped, if it was.
    output : bytes
        Its standard output, where that was to be kept.
    overflow : bool
        There was more of it than was to be kept.
    last : str
        Its last lines.
    cpu : float
        Seconds.
    max_pss, read_bytes, written_bytes, disk : int
        Bytes; 0 where not known.
    """

    code: int
    stopped: Failure | None
    output: bytes
    overflow: bool
    last: str
    cpu: float
    max_pss: int
    read_bytes: int
    written_bytes: int
    disk: int


class Process:
    """A command in a session of its own.

    Parameters
    ----------
    argv : sequence of str
    workdir : str
    env : mapping
    write : callable
        Takes its output as it comes, both streams merged.
    keep : int
        Bytes of standard output to keep as well.

    Raises
    ------
    OSError
        It cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        workdir: str,
        env: Mapping[str, str],
        write: Callable[[bytes], None],
        keep: int,
    ) -> None:
        self._tag = uuid.uuid4().hex
        self._workdir, self._write, self._keep = workdir, write, keep
        self._output = bytearray()
        self._last, self._overflow = b"", False
        self._peak = 0
        self._began = time.monotonic()
        self._next_measure = self._next_disk = 0.0
        self._guard = _Guard(self._tag)
        try:
            self._child = subprocess.Popen(
                argv,
                cwd=workdir,
                env={**env, _TAG: self._tag},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if keep else subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:  # there is nothing to guard
            self._guard.close()
            raise
        self._guard.watch(self._child.pid)
        self._pipes = _pipes(self._child)
        self._selector = selectors.DefaultSelector()
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)
        self._death = _death_of(self._child.pid)
        if self._death is not None:
            self._selector.register(self._death, selectors.EVENT_READ, "death")

    def wait(self, limits: Limits, wanted: Callable[[], Failure | None]) -> Ended:
        """Wait until it has ended, or end it; no process of it is left afterwards.

        Parameters
        ----------
        limits : Limits
        wanted : callable
            Asked all the time: a failure means that the command shall be stopped.
        """
        stopped: Failure | None = None
        try:
            while stopped is None and not self._pump(_PERIOD):
                stopped = wanted() or self._over(limits)
            self._end(0.0 if stopped is None else _grace(stopped))
            self._pump(0.0)
            return self._ended(stopped)
        finally:
            self._close()

    # --- output ---

    def _pump(self, timeout: float) -> bool:
        """Pass on output for at most ``timeout`` seconds; return whether the child is dead."""
        for key, _ in self._selector.select(timeout if self._death else min(timeout, 0.02)):
            if key.data is None:
                self._read(key.fileobj)
        if not _dead(self._child.pid):
            return False
        self._close_death()
        for pipe in self._pipes:
            self._read(pipe)
        return True

    def _read(self, pipe: Any) -> None:
        """Read what is there. A descendant that lives on may hold the pipe open for ever."""
        for _ in range(64):
            try:
                data = os.read(pipe.fileno(), 65536)
            except (BlockingIOError, ValueError):
                return
            if not data:
                with suppress(KeyError):
                    self._selector.unregister(pipe)
                return
            self._take(data, pipe is self._child.stdout)

    def _take(self, data: bytes, standard: bool) -> None:
        self._write(data)
        self._last = (self._last + data)[-_LAST:]
        if standard and self._keep:
            room = self._keep - len(self._output)
            self._overflow = self._overflow or len(data) > room
            self._output += data[:room]

    # --- limits ---

    def _over(self, limits: Limits) -> Failure | None:
        now = time.monotonic()
        if limits.walltime is not None and now - self._began > limits.walltime:
            text = f"ran longer than its walltime of {limits.walltime:g} s"
            return Failure(kind="walltime", message=text)
        if now >= self._next_measure:
            self._next_measure = now + (_MEASURE_EVERY if limits.memory is None else _PERIOD)
            self._peak = max(self._peak, tree_pss(self._child.pid))
            if limits.memory is not None and self._peak > limits.memory:
                return Failure(
                    kind="memory", message=_too_much("memory", self._peak, limits.memory)
                )
        if limits.disk is not None and now >= self._next_disk:
            self._next_disk = now + _DISK_EVERY
            used = disk_usage(self._workdir)
            if used > limits.disk:
                return Failure(kind="output", message=_too_much("disk", used, limits.disk))
        return None

    # --- the end ---

    def _end(self, grace: float) -> None:
        """Ask politely, then kill, until nothing is left; the dead child is not reaped yet."""
        until = time.monotonic() + grace
        if grace:
            self._signal(signal.SIGTERM)
            while time.monotonic() < until and self._living():
                self._pump(0.02)
        while self._living():
            self._signal(signal.SIGKILL)
            self._pump(0.01)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._living():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _living(self) -> list[int]:
        """Return every live process of the command, whatever group or parent it has now."""
        return family(self._child.pid, self._tag)

    def _ended(self, stopped: Failure | None) -> Ended:
        read, written = _io(self._child.pid)
        _, status, usage = os.wait4(self._child.pid, 0)
        self._child.returncode = os.waitstatus_to_exitcode(status)
        return Ended(
            code=self._child.returncode,
            stopped=stopped,
            output=bytes(self._output),
            overflow=self._overflow,
            last=_last_lines(self._last),
            cpu=usage.ru_utime + usage.ru_stime,
            max_pss=self._peak,
            read_bytes=max(read, usage.ru_inblock * 512),
            written_bytes=max(written, usage.ru_oublock * 512),
            disk=disk_usage(self._workdir),
        )

    def _close_death(self) -> None:
        """A dead child's descriptor is readable for ever: waiting on it would spin."""
        if self._death is not None:
            self._selector.unregister(self._death)
            os.close(self._death)
            self._death = None

    def _close(self) -> None:
        try:
            if self._child.returncode is None:  # something raised: leave no zombie
                self._write = _lose  # it may be what raised
                self._end(0.0)
                self._child.wait()
        finally:
            self._guard.close()
            self._close_death()
            self._selector.close()
            for pipe in self._pipes:
                pipe.close()


class _Guard:
    """Ends the command if this process dies and cannot do it: a shell at the end of a pipe.

    It is there before the command is. It gets the command's process id, then a line when all is
    well, and the end of the file when we are gone; if that is all it gets, it looks for processes
    by the tag in their environment.
    """

    _SCRIPT = """
        if read -r pid; then read -r well || kill -s KILL -- "-$pid"; exit; fi
        sleep 0.2
        for file in /proc/[0-9]*/environ; do
            if grep -qs "$1" "$file"; then
                file=${file#/proc/}
                kill -s KILL "${file%/environ}"
            fi
        done
    """

    def __init__(self, tag: str) -> None:
        self._watching = False
        self._child = subprocess.Popen(
            ["/bin/sh", "-c", self._SCRIPT, "sh", tag],
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """End this process and its group if we die."""
        self._watching = True
        with suppress(BrokenPipeError):
            assert self._child.stdin is not None
            self._child.stdin.write(b"%d\n" % pid)
            self._child.stdin.flush()

    def close(self) -> None:
        """All is well."""
        with suppress(BrokenPipeError):
            self._child.communicate(b"well\n" if self._watching else b"none\nwell\n")


def _lose(data: bytes) -> None:
    """Take output that nobody wants any more."""


def _pipes(child: subprocess.Popen[bytes]) -> list[IO[bytes]]:
    return [pipe for pipe in (child.stdout, child.stderr) if pipe is not None]


def _death_of(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the child dies, where the system has it."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _dead(pid: int) -> bool:
    """Tell whether a child is dead, without reaping it: its account is still to be read."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


@dataclass(frozen=True, slots=True)
class _Stat:
    """A line of ``/proc/<pid>/stat``, see proc(5)."""

    state: str
    parent: int
    group: int
    session: int
    start: int


def _stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return _Stat(words[0].decode(), int(words[1]), int(words[2]), int(words[3]), int(words[19]))


def family(pid: int, tag: str) -> list[int]:
    """Return the live processes that a child has brought about, itself included.

    Found by descent, by session and group, and, for those that left all of these, by ``tag``
    in their environment.
    """
    if not os.path.isdir("/proc/self"):
        return _family_elsewhere(pid)
    first = _stat(pid)
    if first is None:
        return []
    stats = {int(name): _stat(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    descent = set(tree(pid))
    return [
        other
        for other, stat in stats.items()
        if stat is not None
        and stat.start >= first.start
        and stat.state not in "ZX"
        and (other in descent or pid in (stat.group, stat.session) or _tagged(other, tag))
    ]


def _tagged(pid: int, tag: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{_TAG}={tag}".encode() in file.read()
    except OSError:
        return False


def _family_elsewhere(pid: int) -> list[int]:
    try:
        child = psutil.Process(pid)
        family = [child, *child.children(recursive=True)]
        return [one.pid for one in family if one.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []


def _io(pid: int) -> tuple[int, int]:
    """Return the bytes a dead but unreaped child and its dead children read and wrote."""
    try:
        with open(f"/proc/{pid}/io") as file:
            counts = dict(line.split(": ") for line in file.read().splitlines())
        return int(counts["read_bytes"]), int(counts["write_bytes"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def _grace(stopped: Failure) -> float:
    return CANCEL_GRACE if stopped.kind == "cancelled" else GRACE


def _too_much(what: str, used: int, limit: int) -> str:
    had, may = (f"{size / 2**20:,.0f} MiB" for size in (used, limit))
    return f"used {had} of {what}, more than its {may}; ask for more {what}"


def _last_lines(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()[-5:]
    return " | ".join(line.strip() for line in lines)[-1000:]


def disk_usage(path: str) -> int:
    """Return the bytes of all files below a directory."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
