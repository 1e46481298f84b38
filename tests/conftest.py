"""Fixtures that several test packages share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from pandaflow.testing.globus.broker import RabbitMissing, RabbitMQ
from pandaflow.testing.gridengine import GridEngine, GridEngineMissing
from pandaflow.testing.postgres import PostgresMissing, PostgresServer
from pandaflow.testing.slurm import Slurm, SlurmMissing

if TYPE_CHECKING:
    from pandaflow.testing.globus.endpoint import Endpoint
    from pandaflow.testing.globus.local import Globus
    from pandaflow.testing.grid import GridServer
    from pandaflow.testing.rucio.server import RucioServer

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


#: Tests that start servers and pilots of the grid: a beta, and minutes of two cores together. The
#: kits of pool and executor, and what starts nothing, always run.
_GRID = (
    "unit/pilot/",
    "test_grid",
    "test_server",
    "test_pilot.py",
    "test_oidc.py",
    "test_harvester",
    "test_rucio",
    "test_submitter_",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the minutes of the grid to ``make test ALL=1``."""
    for item in items:
        path = item.path.as_posix()
        if any(part in path for part in _GRID) or "04_grid" in item.name:
            item.add_marker(pytest.mark.very_slow)


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


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ of this test session's own."""
    try:
        broker = RabbitMQ()
    except RabbitMissing as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture(scope="session")
def globus_session(rabbitmq: RabbitMQ) -> Iterator[Globus]:
    """A stand-in of Globus Compute with endpoints, of this test session's own."""
    pytest.importorskip("globus_compute_sdk", reason="no Globus Compute SDK: extra 'globus'")
    # Not for every session: the SDK starts a thread when it is imported.
    from pandaflow.testing.globus.environment import GlobusMissing
    from pandaflow.testing.globus.local import Globus

    with Globus(rabbitmq) as cloud:
        try:
            cloud.endpoint()
        except GlobusMissing as error:
            pytest.skip(str(error))
        cloud.reset()
        yield cloud


@pytest.fixture
def globus(globus_session: Globus) -> Iterator[Globus]:
    """Globus Compute for the SDK of this process; tests may break it."""
    with globus_session.here():
        yield globus_session
    globus_session.reset()


@pytest.fixture
def grid_server() -> Iterator[GridServer]:
    """A server of a pool on SQLite, anonymous, for one test; tests may break it."""
    pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")
    from pandaflow.testing.grid import GridServer

    with GridServer() as server:
        yield server


@pytest.fixture(scope="session")
def rucio() -> Iterator[RucioServer]:
    """A Rucio of this test session's own; tests give what they make names of their own."""
    pytest.importorskip("rucio", reason="no rucio-clients: extra 'rucio'")
    from pandaflow.testing.rucio.environment import RucioMissing
    from pandaflow.testing.rucio.server import RucioServer

    try:
        server = RucioServer()
    except RucioMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def endpoint(globus: Globus) -> Endpoint:
    """An endpoint that tests share, so they leave it as it is."""
    return globus.endpoint()


@pytest.fixture
def mortal(globus: Globus) -> Iterator[Endpoint]:
    """An endpoint for tests that kill."""
    endpoint = globus.endpoint("mortal")
    yield endpoint
    endpoint.stop()
