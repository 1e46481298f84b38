from __future__ import annotations

from collections.abc import Iterator

import pytest

from pandaflow.store.database import Database
from pandaflow.testing.pools import PoolTests
from pandaflow.testing.postgres import PostgresServer


@pytest.fixture(scope="module")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(str(tmp_path_factory.mktemp("pool") / "pool.db"), 30.0)
    yield database
    database.dispose()


@pytest.fixture(scope="module")
def postgres_database(postgres: PostgresServer) -> Iterator[Database]:
    database = Database(postgres.create_database(), 30.0)
    yield database
    database.dispose()


class TestSqlite(PoolTests):
    @pytest.fixture
    def database(self, sqlite_database: Database) -> Database:
        return sqlite_database


@pytest.mark.postgres
class TestPostgres(PoolTests):
    @pytest.fixture
    def database(self, postgres_database: Database) -> Database:
        return postgres_database
