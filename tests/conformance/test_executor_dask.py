from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from pandaflow.executors import Dask
from pandaflow.testing import payloads
from pandaflow.testing.executors import ExecutorTests
from pandaflow.testing.probe import Probe


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


def test_a_worker_that_joins_knows_what_was_asked_before(tmp_path: Path) -> None:
    with LocalCluster(
        n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        plugins = cluster.scheduler.worker_plugins
        before = set(plugins)
        probe = Probe(Dask(cluster), tmp_path)
        probe.submit(probe.bundle(1, payloads.touch, [str(tmp_path / name) for name in "ab"]))
        probe.session.stop([("probe", 1)], "not wanted", 5.0)
        probe.until(lambda: set(plugins) != before)
        cluster.scale(1)
        assert probe.ended(1).skipped == {1: "not wanted"}
        assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()
        probe.session.close()
        assert set(plugins) == before
