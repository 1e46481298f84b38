from __future__ import annotations

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pandaflow.grid.pool.session import inserting, reading, updating, writing
from pandaflow.store.database import Database
from pandaflow.store.pool_tables import pool_payloads, pool_pilots
from pandaflow.testing.postgres import PostgresServer

#: PostgreSQL's text has no zero bytes, and lone surrogates are no text.
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
ADD = inserting(
    pool_pilots, "name", "vo", "subject", "queue", "host", "free", "since", "heard", "command"
)
HEAR = updating(pool_pilots, "name", "heard", "host")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request, tmp_path_factory):
    if request.param == "sqlite":
        url = str(tmp_path_factory.mktemp("session") / "s.db")
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database()
    database = Database(url, 30.0)
    yield database
    database.dispose()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    hosts=st.lists(TEXTS | st.sampled_from(["NULL", '"', "\\", "{a,b}", "'", "%s", ":x"])),
    at=st.floats(allow_nan=False, allow_infinity=False, width=64),
)
def test_rows_come_back_as_they_were_written(database, hosts, at):
    with writing(database) as session:
        session.run("DELETE FROM pool_pilots")
        rows = [(str(i), "", "s", "q", "", i, 0.0, 0.0, "") for i in range(len(hosts))]
        session.many(ADD, rows)
        session.many(HEAR, [(at, host, str(i)) for i, host in enumerate(hosts)])
        names = [str(i) for i in range(len(hosts))]
        query = "SELECT host, heard FROM pool_pilots WHERE name AMONG :names[text] ORDER BY free"
        assert session.rows(query, names=names) == [(host, at) for host in hosts]


def test_nothing_is_none(database):
    with writing(database) as session:
        session.many(ADD, [])
        query = "SELECT name FROM pool_pilots WHERE name AMONG :names[text]"
        assert session.one(query, names=[]) is None


def test_a_transaction_that_fails_leaves_nothing(database):
    with pytest.raises(KeyError), writing(database) as session:
        session.many(ADD, [("p", "", "s", "q", "", 1, 0.0, 0.0, "")])
        raise KeyError
    with reading(database) as session:
        assert session.rows("SELECT name FROM pool_pilots") == []


def test_zero_bytes_are_refused(database):
    with pytest.raises(ValueError, match="zero byte"), reading(database) as session:
        session.rows("SELECT 1 WHERE :text = 'x'", text="a\0")


def test_tables_are_in_the_store_s_metadata():
    metadata: sa.MetaData = pool_payloads.metadata
    assert {name for name in metadata.tables if name.startswith("pool_")} >= {
        "pool_runs",
        "pool_bundles",
        "pool_queues",
    }
