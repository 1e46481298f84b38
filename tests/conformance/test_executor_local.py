from __future__ import annotations

from collections.abc import Iterator

import pytest

from pandaflow.executors import Local
from pandaflow.testing.executors import ExecutorTests


class TestProcesses(ExecutorTests):
    survives_death = True

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls) -> Iterator[Local]:
        executor = Local(workers=2)
        yield executor
        executor.close()


class TestThreads(ExecutorTests):
    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls) -> Iterator[Local]:
        executor = Local(workers=2, processes=False)
        yield executor
        executor.close()


class TestCaller(ExecutorTests):
    asynchronous = False
    detaches = False

    @pytest.fixture
    def executor(self) -> Local:
        return Local(workers=0)
