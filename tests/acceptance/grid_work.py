"""Work for pilots, and how tests look at what became of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandaflow as pf
from pandaflow.store.sql import open_store

PATIENCE = 60.0


@pf.task
def double(x: int) -> int:
    return 2 * x


@pf.task
def total(xs: list[int]) -> int:
    return sum(xs)


@pf.task
def block(size: int) -> bytes:
    """Return bytes that do not compress."""
    return os.urandom(size)


@pf.task
def length(data: bytes) -> int:
    return len(data)


@pf.task
def noted(x: int, folder: str, seconds: float) -> int:
    """Leave a line when it begins, and one when it has ended."""
    note(Path(folder, "begun"), x)
    time.sleep(seconds)
    note(Path(folder, "over"), x)
    return x


def note(path: Path, x: object) -> None:
    """Add a line in one piece."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, f"{x}\n".encode())
    finally:
        os.close(file)


@pf.workflow
def all_noted(n: int, folder: str, seconds: float) -> Any:
    return noted(pf.items(range(n)), folder, seconds)


def lines(folder: Path, name: str) -> list[int]:
    path = folder / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


def records(run: pf.Run, store: str) -> list[dict[str, Any]]:
    """Return what the store knows of a run's jobs, also where they ran."""
    return list(open_store(store).reader().jobs(run.id))


def failures(run: Any) -> dict[str, dict[str, Any]]:
    """Return why jobs failed, by task."""
    return {job["task"]: job["failure"] for job in run.jobs(status="failed")}
