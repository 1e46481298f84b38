"""Fixtures that several test packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pandaflow.testing.gridengine import GridEngine, GridEngineMissing
from pandaflow.testing.postgres import PostgresMissing, PostgresServer
from pandaflow.testing.slurm import Slurm, SlurmMissing


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test session's own."""
    try:
        server = PostgresServer()
    except PostgresMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[Slurm]:
    """A Slurm of this test session's own; tests take `slurm`."""
    try:
        cluster = Slurm()
    except SlurmMissing as error:
        pytest.skip(str(error))
    with cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_session: Slurm) -> Iterator[Slurm]:
    """A Slurm of four nodes, all up and free; tests may break it."""
    yield slurm_session
    slurm_session.reset()


@pytest.fixture(scope="session")
def gridengine_session() -> Iterator[GridEngine]:
    """A Grid Engine of this test session's own; tests take `gridengine`."""
    try:
        cluster = GridEngine()
    except GridEngineMissing as error:
        pytest.skip(str(error))
    with cluster:
        yield cluster


@pytest.fixture
def gridengine(gridengine_session: GridEngine) -> Iterator[GridEngine]:
    """A Grid Engine of one host, up and free; tests may break it."""
    yield gridengine_session
    gridengine_session.reset()
