"""Folders of the pilot: one for its life, in it one for each bundle; none of them stays.

A pilot writes who it is into its folder. What a pilot that was killed has left in the same
``--workdir`` is removed by the next one there, with processes that it has left. So that this
is rarely needed, each pilot has a *guard*: a process that does the same once the pilot is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from contextlib import suppress

from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.procfs import kill_tagged, started

_PREFIX, _OWNER = "pandaflow-grid-pilot-", "owner.json"
#: Seconds for which a folder without an owner may be one that is just being made.
_UNOWNED = 60.0


def remove(folder: str) -> bool:
    """Remove a folder, also where a payload has taken rights away; tell whether it is gone."""
    for _ in range(3):  # somebody may still write
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return True
        _open_up(folder)
    return False


def _open_up(folder: str) -> None:
    """Give ourselves all rights to the folders below; links are not followed."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        with suppress(OSError):
            os.chmod(path, 0o700)
            with os.scandir(path) as entries:
                waiting += [e.path for e in entries if e.is_dir(follow_symlinks=False)]


def sweep(root: str) -> int:
    """Remove what dead pilots of this host have left below ``root``; return how many they were."""
    swept = 0
    with suppress(OSError), os.scandir(root) as entries:
        for entry in list(entries):
            ours = entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
            if ours and _abandoned(entry.path):
                kill_tagged(entry.name[len(_PREFIX) :])
                swept += remove(entry.path)
    return swept


def _abandoned(folder: str) -> bool:
    try:
        if os.lstat(folder).st_uid != os.geteuid():
            return False
        with open(os.path.join(folder, _OWNER), encoding="utf-8") as file:
            owner = json.load(file)
        host, pid, began = str(owner["host"]), int(owner["pid"]), str(owner["started"])
    except (OSError, ValueError, KeyError, TypeError):
        with suppress(OSError):
            return time.time() - os.stat(folder).st_mtime > _UNOWNED
        return False
    return host == _host() and started(pid) != began


def _host() -> str:
    """Return what tells this boot of this machine from others that share a file system."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{socket.gethostname()} {file.read().strip()}"
    return socket.gethostname()


class WorkDir:
    """The pilot's folder.

    Parameters
    ----------
    root : str
        Where to make it.
    tag : str
        The pilot's mark.

    Raises
    ------
    PilotError
        It cannot be made.
    """

    def __init__(self, root: str, tag: str) -> None:
        self.root, self.tag = os.path.abspath(root), tag
        self.path = os.path.join(os.path.realpath(root), _PREFIX + tag)
        self._made = 0
        try:
            os.makedirs(self.root, exist_ok=True)
            sweep(self.root)
            os.mkdir(self.path, 0o700)
            owner = {"host": _host(), "pid": os.getpid(), "started": started(os.getpid())}
            with open(os.path.join(self.path, _OWNER), "w", encoding="utf-8") as file:
                json.dump(owner, file)
        except OSError as error:
            raise PilotError("no_space", f"no work directory: {error}") from None

    def folder(self, name: str) -> str:
        """Return a new folder; its name begins with ``name``.

        Raises
        ------
        PilotError
        """
        self._made += 1
        return made(os.path.join(self.path, f"{name}-{self._made}"))

    def free(self) -> int:
        """Return the bytes that are free."""
        try:
            return shutil.disk_usage(self.path).free
        except OSError:
            return 0

    def close(self) -> None:
        """Kill what is left of payloads, and remove all."""
        kill_tagged(self.tag)
        remove(self.path)


def made(path: str) -> str:
    """Make a folder that only we may enter, and return it.

    Raises
    ------
    PilotError
    """
    try:
        os.makedirs(path, 0o700)
    except OSError as error:
        raise PilotError("no_space", f"no work directory: {error}", transient=True) from None
    return path


def start_guard(work: WorkDir) -> tuple[int, int]:
    """Start the process that cleans up after this one; must be called before threads start.

    Returns
    -------
    pid, fd : int
        Of the guard, and of the pipe that it listens to: it acts when the pipe closes.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return pid, writing
    try:
        _guard(work, reading, writing)
    finally:
        os._exit(0)


def _guard(work: WorkDir, reading: int, writing: int) -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.close(writing)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    while os.read(reading, 64):
        pass
    work.close()


def end_guard(guard: tuple[int, int]) -> None:
    """Let the guard clean up, and wait until it has."""
    pid, fd = guard
    os.close(fd)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
