"""What processes use, from /proc; from psutil where there is no /proc.

A payload's processes are its first one, all that descend from it, and all of its session: who
leaves the family by a double fork is still seen.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

try:
    import psutil
except ImportError:  # only needed where there is no /proc
    psutil = None

#: Marks the processes of a payload, however far they have gone.
TAG = "PANDAFLOW_PILOT_PROCESS"
_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = "/proc"


@dataclass(frozen=True)
class Seen:
    """A process: who made it, its session, its CPU time (s, with that of dead children)."""

    parent: int
    session: int
    cpu: float


@dataclass(frozen=True)
class Usage:
    """What processes use together.

    Attributes
    ----------
    processes : int
    pss, read, written : int
        Bytes; read from and written to devices.
    cpu : float
        Seconds.
    """

    processes: int
    pss: int
    cpu: float
    read: int
    written: int


def snapshot() -> dict[int, Seen]:
    """Return all processes of this machine that can be seen, by their number."""
    if not os.path.isdir(f"{_PROC}/self"):
        return _snapshot_elsewhere()
    seen = {}
    for name in os.listdir(_PROC):
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                seen[int(name)] = _stat(int(name))
    return seen


def _stat(pid: int) -> Seen:
    with open(f"{_PROC}/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    ticks = sum(map(int, fields[11:15]))
    return Seen(int(fields[1]), int(fields[3]), ticks / _TICKS)


def _snapshot_elsewhere() -> dict[int, Seen]:
    if psutil is None:
        return {}
    seen = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            times: Any = process.cpu_times()
            cpu = float(times.user + times.system)
            seen[process.pid] = Seen(process.ppid(), os.getsid(process.pid), cpu)
    return seen


def family(pid: int, seen: dict[int, Seen]) -> list[int]:
    """Return the processes of the payload whose first process, and session, is ``pid``."""
    children: dict[int, list[int]] = {}
    for number, process in seen.items():
        children.setdefault(process.parent, []).append(number)
    members = {number for number, process in seen.items() if process.session == pid}
    waiting = [pid, *members]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in members:
                members.add(child)
                waiting.append(child)
    return sorted(members | ({pid} & seen.keys()))


def usage(pid: int, seen: dict[int, Seen] | None = None) -> Usage:
    """Return what a payload's processes use at this moment."""
    seen = snapshot() if seen is None else seen
    members = family(pid, seen)
    moved = [_moved(member) for member in members]
    return Usage(
        processes=len(members),
        pss=sum(map(pss, members)),
        cpu=sum(seen[member].cpu for member in members),
        read=sum(read for read, _ in moved),
        written=sum(written for _, written in moved),
    )


def pss(pid: int) -> int:
    """Return the proportional set size (bytes) of a process; 0 if it cannot be seen."""
    for name, field in (("smaps_rollup", b"Pss:"), ("status", b"VmRSS:")):
        try:
            with open(f"{_PROC}/{pid}/{name}", "rb") as file:
                for line in file:
                    if line.startswith(field):
                        return int(line.split()[1]) * 1024
        except (OSError, ValueError):
            continue
    if psutil is not None and not os.path.isdir(f"{_PROC}/self"):
        with suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
    return 0


def _moved(pid: int) -> tuple[int, int]:
    """Return the bytes that a process has read and written."""
    found = {}
    with suppress(OSError, ValueError), open(f"{_PROC}/{pid}/io", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            found[name] = int(value)
    return found.get(b"read_bytes", 0), found.get(b"write_bytes", 0)


def started(pid: int) -> str:
    """Return when a process began, as a word; empty if there is none."""
    try:
        with open(f"{_PROC}/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


def tagged(prefix: str) -> list[int]:
    """Return the processes whose mark begins with ``prefix``, this one left out."""
    wanted, found = f"{TAG}={prefix}".encode(), []
    own = os.getpid()
    for name in os.listdir(_PROC) if os.path.isdir(_PROC) else ():
        if not name.isdigit() or int(name) == own:
            continue
        with suppress(OSError), open(f"{_PROC}/{name}/environ", "rb") as file:
            if any(entry.startswith(wanted) for entry in file.read().split(b"\0")):
                found.append(int(name))
    return found


def kill_tagged(prefix: str) -> int:
    """Kill all processes with such a mark, until none is left; return how many there were."""
    killed: set[int] = set()
    for _ in range(50):  # somebody may fork meanwhile
        pids = tagged(prefix)
        if not pids:
            break
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed.update(pids)
    return len(killed)


@dataclass(frozen=True)
class Disk:
    """What a folder holds.

    Attributes
    ----------
    used : int
        Bytes that it takes on disk.
    length : int
        Bytes of its files.
    changed : int
        When the newest was written to (ns since the epoch).
    """

    used: int
    length: int
    changed: int


def disk(folder: str) -> Disk:
    """Return what a folder holds; links are not followed."""
    used = length = changed = 0
    waiting = [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    stat = entry.stat(follow_symlinks=False)
                    used += stat.st_blocks * 512
                    length += stat.st_size
                    changed = max(changed, stat.st_mtime_ns)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return Disk(used, length, changed)
