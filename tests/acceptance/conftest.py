"""Executors shared by a test session, and a store of each test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pandaflow as pf


@pytest.fixture(scope="session")
def processes() -> Iterator[pf.executors.Local]:
    """Two worker processes."""
    executor = pf.executors.Local(workers=2)
    yield executor
    executor.close()


@pytest.fixture(scope="session")
def threads() -> Iterator[pf.executors.Local]:
    """Two threads of this process."""
    executor = pf.executors.Local(workers=2, processes=False)
    yield executor
    executor.close()


@pytest.fixture(params=["processes", "threads", "sync"])
def executor(request: pytest.FixtureRequest) -> object:
    """Each way to run on this machine."""
    if request.param == "sync":
        return pf.executors.Local(workers=0)
    return request.getfixturevalue(request.param)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store of the test's own."""
    return f"sqlite:///{tmp_path}/store.db"
