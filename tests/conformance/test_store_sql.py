from __future__ import annotations

from collections.abc import Iterator

import pytest

from pandaflow.store.sql import SqlStore
from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.stores import StateStoreTests


@pytest.fixture(scope="module")
def sqlite_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    store = SqlStore(str(tmp_path_factory.mktemp("store") / "state.db"))
    yield store
    store.close()


@pytest.fixture(scope="module")
def postgres_store(postgres: PostgresServer) -> Iterator[SqlStore]:
    store = SqlStore(postgres.create_database())
    yield store
    store.close()


class TestSqlite(StateStoreTests):
    @pytest.fixture
    def store(self, sqlite_store: SqlStore) -> SqlStore:
        return sqlite_store


@pytest.mark.postgres
class TestPostgres(StateStoreTests):
    @pytest.fixture
    def store(self, postgres_store: SqlStore) -> SqlStore:
        return postgres_store
