"""Who drives a run, and whether that process still lives."""

from __future__ import annotations

import os
import socket
from uuid import uuid4

import psutil

from pandaflow.ports import Owner

#: Seconds by which two readings of one process's start time may differ.
_TOLERANCE = 2.0

#: Tokens of the leases that this very process holds: a driver that failed here, and could not
#: give its lease back, must not keep this process from taking the run again.
_held: set[str] = set()


def this_process() -> Owner:
    """Return an owner for this process, with a token of its own at each call."""
    started = psutil.Process().create_time()
    return Owner(host=socket.gethostname(), pid=os.getpid(), started=started, token=uuid4().hex)


def hold(owner: Owner) -> None:
    """Note that this process drives something under ``owner``."""
    _held.add(owner.token)


def let_go(owner: Owner) -> None:
    """Note that it does not any more."""
    _held.discard(owner.token)


def is_gone(owner: Owner, host: str) -> bool:
    """Return whether ``owner`` was a process of ``host`` (ours) that certainly lives no more.

    A process of another host is never known to be gone; its lease has to expire.
    """
    if owner.host != host:
        return False
    try:
        process = psutil.Process(owner.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        if abs(process.create_time() - owner.started) > _TOLERANCE:
            return True
        return owner.pid == os.getpid() and owner.token not in _held
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
