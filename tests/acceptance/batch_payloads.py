"""What the tests of batch systems run, and how they look at it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandaflow as pf
from pandaflow.store.sql import open_store


@pf.task
def double(x: int) -> int:
    return 2 * x


@pf.task
def tenfold(values: list[int]) -> int:
    return 10 * sum(values)


@pf.task
def counted(x: int, folder: str, seconds: float = 0.0) -> int:
    """Leave a line for each time it begins; the first time, sleep, and go on while it is held."""
    path = Path(folder, "begun")
    again = path.exists() and str(x) in path.read_text().split()
    with open(path, "a") as file:
        file.write(f"{x}\n")
    if again:
        return x
    time.sleep(seconds)
    end = time.monotonic() + 90
    while time.monotonic() < end and Path(folder, "hold").exists():
        time.sleep(0.05)
    return x


@pf.workflow
def two_stages(n: int) -> Any:
    return tenfold(double(pf.items(range(n))).all())


@pf.workflow
def many(n: int, folder: str, seconds: float) -> Any:
    return counted(pf.items(range(n)), folder, seconds)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let no counted job end meanwhile: however late a test looks, they still run."""
    path = folder / "hold"
    path.touch()
    try:
        yield
    finally:
        path.unlink()


class BatchSite(ABC):
    """A store, and runs whose payloads leave their traces in a folder.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, f"sqlite:///{folder}/store.db"

    @abstractmethod
    def executor(self, *where: str, **settings: Any) -> Any:
        """Return an executor, of the mode or for the partition that is named."""

    def submit(self, flow: Any, *where: str, **settings: Any) -> pf.Run:
        return flow.submit(executor=self.executor(*where, **settings), store=self.store)

    def attempts(self, run: pf.Run | str, task: str, job: int = 0) -> list[dict[str, Any]]:
        run_id = run if isinstance(run, str) else run.id
        return open_store(self.store).reader().attempts(run_id, task, job)

    def begun(self) -> list[int]:
        """Return the jobs of all payloads that have begun, in order."""
        path = self.folder / "begun"
        return [int(job) for job in path.read_text().split()] if path.exists() else []


def wait_for(true: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
