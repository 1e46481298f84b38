"""The executors' kit on a pool with pilots as real processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

from pandaflow.executors import Grid
from pandaflow.testing.executors import ExecutorTests
from pandaflow.testing.sites import MiniGrid


class TestGrid(ExecutorTests):
    detaches = False  # nobody could join a job that was left running in a pilot
    moments = 5  # a pilot hears of a cancel with its next heartbeat

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls) -> Iterator[Grid]:
        with MiniGrid(heartbeat=3.0) as grid, tempfile.TemporaryDirectory() as data:
            grid.queue("here")
            grid.pilot("here", cores=2)
            grid.pilot("here", cores=2)
            yield Grid(grid.url, data=data, slots=4)
