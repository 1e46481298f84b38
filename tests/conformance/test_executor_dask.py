from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import Client, LocalCluster

from pandaflow.executors import Dask
from pandaflow.testing.executors import ExecutorTests


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Workers that are threads of this process."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of worker processes, as others set it up: each under a nanny."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs="CRITICAL",
    ) as cluster:
        yield cluster.scheduler_address


class TestByClient(ExecutorTests):
    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, cluster: LocalCluster) -> Iterator[Dask]:
        with Client(cluster, set_as_default=False) as client:
            yield Dask(client)


class TestByCluster(ExecutorTests):
    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, cluster: LocalCluster) -> Dask:
        return Dask(cluster)


class TestByAddress(ExecutorTests):
    survives_death = True

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, address: str) -> Dask:
        return Dask(address)
