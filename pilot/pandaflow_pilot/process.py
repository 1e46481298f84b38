"""A payload's process: in a session of its own, with its files, and a sure end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.procfs import TAG, kill_tagged
from pandaflow_pilot.transfer import Check


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code or minus the signal, and CPU seconds of all it waited for."""

    code: int
    cpu: float


class Process:
    """A process with all that descend from it.

    Parameters
    ----------
    argv : sequence of str
    folder : str
        Where it begins.
    env : mapping of str to str
    out, err : str
        Files for what it prints.
    tag : str
        Its mark.

    Raises
    ------
    PilotError
        It cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        folder: str,
        env: Mapping[str, str],
        out: str,
        err: str,
        tag: str,
    ) -> None:
        self._tag = tag
        try:
            with open(out, "ab") as stdout, open(err, "ab") as stderr:
                self._child = subprocess.Popen(
                    argv,
                    cwd=folder,
                    env={**env, TAG: tag},
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            raise PilotError("not_started", f"{argv[0]!r} cannot be started: {error}") from None
        self.pid = self._child.pid

    def dead(self) -> bool:
        """Tell whether the first process has ended; its number stays ours until :meth:`reap`."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is not None

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def end(self, grace: float, hurry: Callable[[], bool]) -> None:
        """Ask it to end; make it end after ``grace`` seconds, or when ``hurry`` says so.

        Every process gets the time, also those that the first one has left behind.
        """
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and not self.dead() and not hurry():
            time.sleep(0.02)

    def reap(self) -> Ended:
        """Kill whatever is left, wherever it has gone; return how the first process ended."""
        self.signal(signal.SIGKILL)
        kill_tagged(self._tag)
        _, status, used = os.wait4(self.pid, 0)
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self._child.returncode = code
        return Ended(code, used.ru_utime + used.ru_stime)


def run_program(process: Process, timeout: float, check: Check) -> int:
    """Wait for a program of the pilot's own; return its exit code.

    Raises
    ------
    PilotError
        It took longer than ``timeout`` seconds.
    Aborted
    """
    deadline = time.monotonic() + timeout
    try:
        while not process.dead():
            check()
            if time.monotonic() > deadline:
                raise PilotError("internal", f"took longer than {timeout:g} s", transient=True)
            time.sleep(0.05)
    finally:
        code = process.reap().code
    return code


def tail(path: str, limit: int) -> bytes:
    """Return the last bytes of a file, none if it cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit))
        return file.read(limit)
    return b""


def size(path: str) -> int:
    """Return the bytes of a file, 0 if it is not there."""
    with suppress(OSError):
        return os.path.getsize(path)
    return 0
