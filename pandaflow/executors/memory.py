"""What processes use: their memory, and who descends from whom."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil

_PAGE, _TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    pids, at = [pid], 0
    while at < len(pids):
        pids += _children(pids[at])
        at += 1
    return pids


def _children(pid: int) -> list[int]:
    try:
        found: list[int] = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
        return found
    except OSError:
        return _children_elsewhere(pid)


def _children_elsewhere(pid: int) -> list[int]:
    """Slower, and where there is no /proc."""
    if os.path.isdir("/proc/self"):
        return []
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()]
    return []


def own_rss() -> int:
    """Return the resident set size (bytes) of this process; much cheaper than its PSS."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return int(psutil.Process().memory_info().rss)


def tree_pss(pid: int) -> int:
    """Return the proportional set size (bytes) of a process and its descendants."""
    return sum(map(pss, tree(pid)))


def pss(pid: int) -> int:
    """Return the proportional set size (bytes) of a process; 0 if it cannot be seen."""
    try:
        memory = psutil.Process(pid).memory_full_info()
    except (psutil.Error, OSError):
        return 0
    return int(getattr(memory, "pss", 0) or getattr(memory, "uss", memory.rss))


def younger_pss(age: float) -> int:
    """Return the PSS (bytes) of descendants born in the last ``age`` seconds.

    Older ones are not the job's: other workers, say, where jobs run in the driver's process.
    """
    slack = 0.02  # births are told in clock ticks of 10 ms
    pids = [pid for pid in tree(os.getpid())[1:] if _age(pid) <= age + slack]
    return sum(map(pss, pids))


def _age(pid: int) -> float:
    """Return for how many seconds a process has lived; infinite if it does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            born = int(file.read().rpartition(b")")[2].split()[19]) / _TICKS
        return time.clock_gettime(time.CLOCK_BOOTTIME) - born
    except OSError:
        return _age_elsewhere(pid)


def _age_elsewhere(pid: int) -> float:
    try:
        return time.time() - float(psutil.Process(pid).create_time())
    except psutil.Error:
        return float("inf")
