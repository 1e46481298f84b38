"""What the executor kit's jobs run. Without pytest, so that any worker can import it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from pandaflow.executors.outcome import Skip

#: Seconds after which a payload that nobody stops ends by itself: well after the test has failed.
LONGEST = 300.0


def double(x: Any) -> Any:
    """Return twice the input."""
    return 2 * x


def total(xs: list[Any]) -> Any:
    """Return the sum of a list."""
    return sum(xs)


def fate(what: Any) -> Any:
    """End as told: ``"raise"``, ``"unpicklable"``, ``"skip"``; anything else is returned."""
    if what == "raise":
        raise ValueError("told to raise")
    if what == "unpicklable":
        return threading.Lock()
    if what == "skip":
        raise Skip("told to skip")
    return what


def say(x: Any) -> Any:
    """Print the input."""
    print(f"payload says {x}")  # noqa: T201 - what is under test
    return x


def touch(path: str) -> str:
    """Leave a file behind."""
    Path(path).touch()
    return path


def heartbeat(path: str) -> str:
    """Append to a file all the time, until stopped."""
    end = time.monotonic() + LONGEST
    # The exception that stops a job may come right after the opening, before any block that
    # closes: a file object would then be told of as left open, and fail the test.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        while time.monotonic() < end:
            os.write(file, b".")
            time.sleep(0.02)
    finally:
        os.close(file)
    return path


def nap(seconds: float) -> float:
    """Sleep in small steps, so that it can be stopped."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return seconds


def wait_for(path: str) -> str:
    """Wait until a file exists."""
    end = time.monotonic() + LONGEST
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.01)
    return path


def die(what: str) -> str:
    """End the worker's process if the input says so."""
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return what


def fail_once(path: str) -> str:
    """Fail where no file is, and leave one."""
    if os.path.exists(path):
        return path
    Path(path).touch()
    raise OSError("the first time fails")


def listed(n: int) -> list[int]:
    """Return the numbers below ``n``."""
    return list(range(n))
