"""Work for endpoints of Globus Compute, and how tests look at what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandaflow as pf

PATIENCE = 90.0


@pf.task
def double(x: int) -> int:
    return 2 * x


@pf.task
def total(xs: list[int]) -> int:
    return sum(xs)


@pf.task
def block(size: int) -> bytes:
    """Return bytes that do not compress."""
    import os

    return os.urandom(size)


@pf.task
def length(data: bytes) -> int:
    return len(data)


@pf.task
def noted(x: int, folder: str, seconds: float) -> int:
    """Leave a line when it begins, and one when it has ended."""
    with open(Path(folder, "begun"), "a") as file:
        file.write(f"{x}\n")
    time.sleep(seconds)
    with open(Path(folder, "over"), "a") as file:
        file.write(f"{x}\n")
    return x


@pf.task
def over_when_begun(x: int, folder: str) -> int:
    """Return how many jobs of ``noted`` had ended when this one began."""
    return len(Path(folder, "over").read_text().split())


@pf.workflow
def two_stages(n: int) -> Any:
    sums = total.options(items_per_job=50)(double(pf.items(range(n))))
    return total.options(n_jobs=1, name="grand")(sums)


@pf.workflow
def all_noted(n: int, folder: str, seconds: float) -> Any:
    return noted(pf.items(range(n)), folder, seconds)


@pf.workflow
def through(size: int) -> Any:
    return length(block(pf.items([size])))


@pf.workflow
def in_steps(n: int, folder: str, seconds: float) -> Any:
    """Stages that are submitted one after the other, while earlier ones run."""
    return total.options(n_jobs=1)(double(double(noted(pf.items(range(n)), folder, seconds))))


def site(endpoint: str, data: object = "", **settings: Any) -> pf.executors.GlobusCompute:
    """Return the executor on an endpoint of tests, which looks often."""
    quick: dict[str, Any] = {"poll_seconds": 1.0, "heartbeat": 5.0}
    return pf.executors.GlobusCompute(endpoint, data=str(data) or None, **(quick | settings))


def lines(folder: Path, name: str) -> list[int]:
    path = folder / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def failures(run: Any) -> list[dict[str, Any]]:
    return [job["failure"] for job in run.jobs(status="failed")]
