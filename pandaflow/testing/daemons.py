"""Daemons for tests that never outlive the process that started them.

They are children of a *keeper*: this file, run as a script. The keeper adopts whatever they
leave behind, and when its owner ends, in whichever way, it kills all of it and removes control
groups and files.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import random
import secrets
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Seconds to wait for a daemon, a command or a state before giving up.
PATIENCE = 60.0
#: Where control groups are mounted.
CGROUPS = Path("/sys/fs/cgroup")
#: Ports below those that Linux hands out by itself; a cluster takes one block.
_PORTS = range(20_000, 32_000, 64)


class Cluster(ABC):
    """A batch system on this machine that lives as long as a ``with`` statement.

    Attributes
    ----------
    env : dict[str, str]
        Environment in which its commands talk to it.
    """

    def __init__(self) -> None:
        self.env: dict[str, str] = {}
        self._daemons: Daemons | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Start it where no ``with`` statement can: in a notebook. :meth:`close` ends it."""
        try:
            self._start()
        except BaseException:  # also Ctrl-C: nothing may stay
            self.close()
            raise
        return self

    def close(self) -> None:
        """Kill the daemons and all jobs, and remove every trace. May be called twice."""
        if self._daemons:
            self._daemons.close()

    @property
    def folder(self) -> Path:
        """Where configuration, state and logs are."""
        return self._running.folder

    def run(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the environment of the cluster.

        Raises
        ------
        RuntimeError
            It failed, unless `check` is false; with what it said.
        """
        return run_command(argv, self.env, check=check)

    @abstractmethod
    def states(self) -> dict[str, str]:
        """State of every job by id, elements of arrays one by one."""

    def wait_state(self, job: str, *wanted: str, seconds: float = PATIENCE) -> str:
        """Wait until a job, or an element of an array, is in a state; return the state."""
        wait_until(
            lambda: self.states().get(job) in wanted,
            lambda: f"{job} to be {' or '.join(wanted)}: {self.states()}",
            seconds,
        )
        return self.states()[job]

    @abstractmethod
    def _start(self) -> None:
        """Make `_daemons` and `env`, start everything and wait until it is up."""

    @property
    def _running(self) -> Daemons:
        if self._daemons is None:
            raise RuntimeError(
                f"this {type(self).__name__} was not started: use it in a with statement"
            )
        return self._daemons

    def _logs(self, *patterns: str) -> str:
        """Return the ends of what the daemons wrote."""
        files = [path for pattern in ("*.out", *patterns) for path in self.folder.glob(pattern)]
        return "\n".join(path.read_text(errors="replace")[-800:] for path in files)


class Daemons:
    """Processes that end with this one, however it ends, with all their descendants.

    Parameters
    ----------
    prefix
        Of the name of the temporary folder, which ends with them, too.
    cgroups
        Names of control groups (version 1) to remove at the end.
    claim
        A bound socket that is kept open as long as the daemons live.
    """

    def __init__(
        self, prefix: str, *, cgroups: Sequence[str] = (), claim: socket.socket | None = None
    ) -> None:
        # Short: the path of a socket has 107 characters at most.
        self.folder = Path(tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(4)}"
        held = [claim.fileno()] if claim else []
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self.folder), *cgroups],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            pass_fds=held,
            start_new_session=True,
        )
        self._answer()

    def start(self, name: str, argv: Sequence[str | Path], env: dict[str, str]) -> int:
        """Start a daemon, in the foreground; return its process id."""
        log = self.folder / f"{name}.out"
        words = [str(word) for word in argv]
        return int(self._ask(name=name, argv=words, env=env, log=str(log)))

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal that ends a daemon, and wait for its end."""
        self._ask(name=name, signal=number)
        wait_until(lambda: not self.alive(name), f"{name} to end")

    def alive(self, name: str) -> bool:
        """Whether the daemon was started and runs."""
        return bool(self._ask(name=name))

    def close(self) -> None:
        """Kill everything and remove the folder. May be called twice."""
        keeper = self._keeper
        if keeper.stdin is None or keeper.stdout is None or keeper.stdin.closed:
            return
        keeper.stdin.close()
        keeper.wait(PATIENCE)
        keeper.stdout.close()

    def _ask(self, **request: Any) -> Any:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(request).encode() + b"\n")
        self._keeper.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"the keeper of {self.folder} is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]


def system_path() -> str:
    """Return the search path with the folders of system programs, which users may lack."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def clean_environment(*prefixes: str) -> dict[str, str]:
    """Return this environment without a batch system's variables, with system programs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return kept | {"PATH": system_path()}


def run_command(
    argv: Sequence[str], env: dict[str, str], *, check: bool = True, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command with an input; raise RuntimeError with what it said when it fails."""
    done = subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False, input=given
    )
    if check and done.returncode != 0:
        said = (done.stderr + done.stdout).strip()
        raise RuntimeError(f"{shlex.join(argv)}: exit {done.returncode}: {said}")
    return done


def wait_until(
    true: Callable[[], bool], what: str | Callable[[], str], seconds: float = PATIENCE
) -> None:
    """Ask until something is true.

    Raises
    ------
    TimeoutError
        It did not become true in time; with `what` it was.
    """
    deadline = time.monotonic() + seconds
    for turn in itertools.count():
        if true():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited {seconds:g} s for {what if isinstance(what, str) else what()}"
            )
        time.sleep(min(0.2, 0.01 * 1.3**turn))


def claim_ports(count: int) -> socket.socket:
    """Return a socket on the first of `count` free ports; while it is open they are claimed.

    The others are free at this moment, and every user of this function respects the claim.
    """
    for first in random.sample(_PORTS, len(_PORTS)):
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", first))
        except OSError:
            claim.close()
            continue
        if all(_is_free(port) for port in range(first + 1, first + count)):
            return claim
        claim.close()
    raise RuntimeError("no free block of ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def listens(port: int) -> bool:
    """Whether somebody answers at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- the keeper: this file as a script, with the standard library only -----------------------

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class _Keeper:
    """Starts daemons on request; kills every descendant when the requests or the owner end."""

    def __init__(self, owner: int, folder: Path, cgroups: Sequence[str]) -> None:
        self._owner, self._folder, self._cgroups = owner, folder, cgroups
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        # Orphans come to us, not to process 1: none escapes, however often it forks.
        self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._pids: dict[str, int] = {}
        folder.mkdir(0o755)
        folder.chmod(0o755)

    def serve(self) -> None:
        _write(value=None)
        for line in self._requests():
            try:
                _write(value=self._do(json.loads(line)))
            except OSError as error:
                _write(error=str(error))

    def clean_up(self) -> None:
        """Kill until nothing is left: a process may fork while we look."""
        while children := _descendants(os.getpid()):
            self._thaw()
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
            self._reap()
        for group in self._groups():
            _remove_group(group)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _requests(self) -> Iterator[bytes]:
        rest = b""
        # The pipe alone would not do: a fork of the owner holds a copy of its end.
        while os.getppid() == self._owner:
            self._reap()
            if not select.select([0], [], [], 0.2)[0]:
                continue
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from lines

    def _do(self, request: dict[str, Any]) -> object:
        if "argv" in request:
            return self._start(request)
        self._reap()
        pid = self._pids.get(request["name"])
        if pid and "signal" in request:
            os.kill(pid, request["signal"])
        return pid is not None

    def _start(self, request: dict[str, Any]) -> int:
        with open(request["log"], "ab") as log:
            process = subprocess.Popen(
                request["argv"],
                env=request["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                preexec_fn=self._die_with_keeper,
            )
        # Its end is noticed by waitpid(-1) below, for which it has to look ended to Popen.
        process.returncode = 0
        self._pids[request["name"]] = process.pid
        return process.pid

    def _die_with_keeper(self) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitpid(-1, os.WNOHANG)[0]:
                self._pids = {name: pid for name, pid in self._pids.items() if pid != ended}

    def _groups(self) -> Iterator[Path]:
        for name in self._cgroups:
            yield from (path for path in CGROUPS.glob(f"*/{name}") if path.is_dir())

    def _thaw(self) -> None:
        # A frozen process does not die.
        for group in self._groups():
            for state in group.rglob("freezer.state"):
                with contextlib.suppress(OSError):
                    state.write_text("THAWED")


def _write(**answer: object) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _descendants(root: int) -> list[int]:
    parents = dict(_parents())
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {root})


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # pid (name) state parent ...; the name may hold anything.
            yield int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[1])


def _remove_group(group: Path) -> None:
    """Remove a control group and those below; a dying process may hold it for a moment."""
    inner = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
    for path in [*inner, group]:
        for _ in range(100):
            try:
                path.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.02)
            else:
                break


def _keep() -> None:
    owner, folder, *cgroups = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    keeper = _Keeper(int(owner), Path(folder), cgroups)
    try:
        keeper.serve()
    finally:
        keeper.clean_up()


if __name__ == "__main__":
    _keep()
