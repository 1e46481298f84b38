"""The executors' kit on a real Globus Compute endpoint, behind the stand-in of its service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

pytest.importorskip("globus_compute_sdk", reason="no Globus Compute SDK: extra 'globus'")

from pandaflow.executors import GlobusCompute
from pandaflow.testing.executors import ExecutorTests
from pandaflow.testing.globus.environment import GlobusMissing
from pandaflow.testing.globus.local import Globus


class TestGlobusCompute(ExecutorTests):
    detaches = False  # nobody could join a job that was left running in a worker

    @pytest.fixture(scope="class")
    @classmethod
    def signed_in(cls, globus_session: Globus) -> Iterator[Globus]:
        with globus_session.here():
            yield globus_session
        globus_session.reset()

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, signed_in: Globus) -> Iterator[GlobusCompute]:
        try:
            endpoint = signed_in.endpoint()
        except GlobusMissing as error:
            pytest.skip(str(error))
        with tempfile.TemporaryDirectory() as data:
            yield GlobusCompute(endpoint.id, slots=4, data=data, poll_seconds=1.0, rate=(400, 10.0))
