"""What the SQL reader tells beyond the port: attempts, bundles, stories, charts, wishes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from pandaflow.core.errors import RunNotFound, StoreError
from pandaflow.core.status import JobStatus
from pandaflow.ports import Owner
from pandaflow.store.sql import SqlStore, this_process
from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.records import (
    T0,
    bundle_records,
    example_spec,
    failure,
    moved,
    opening_records,
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request, tmp_path) -> Iterator[SqlStore]:
    if request.param == "sqlite":
        store = SqlStore(str(tmp_path / "state.db"))
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        store = SqlStore(server.create_database())
    yield store
    store.close()


@pytest.fixture
def reader(store: SqlStore):
    """A run in which job 3 failed once, then finished."""
    store.create_run(example_spec(), run_id="r1", created=T0, results="")
    driver = store.drive("r1", this_process(), 60.0)
    sent, running, ended = bundle_records(
        1,
        (1, 3, 4),
        finished=(1, 4),
        wall=[1.0, 2.0, 3.0],
        cpu=[0.5] * 3,
        max_pss=[7, 8, 9],
        read_bytes=[1, 2, 3],
        cached=(2,),
        logs={1: (10, 20)},
    )
    back = moved(
        range(3, 4),
        JobStatus.RUNNING,
        JobStatus.READY,
        attempt=1,
        bundle=1,
        failure=failure(),
        log=(10, 20),
    )
    driver.commit([*opening_records(), sent, running, ended, back])
    driver.commit(bundle_records(2, range(3, 4), attempt=2, wall=[4.0]))
    driver.release()
    return store.reader()


def test_sites_of_a_run_and_of_an_attempt(store, reader):
    assert reader.sites("r1") == []
    driver = store.drive("r1", this_process(), 60.0)
    for bundle, job, site in ((3, 5, "short"), (4, 6, "long"), (5, 7, "long")):
        sent, running, ended = bundle_records(bundle, range(job, job + 1))
        driver.commit([sent, replace(running, site=site), ended])
    driver.release()
    assert reader.sites("r1") == ["long", "short"]
    assert [a["site"] for job in (3, 5) for a in reader.attempts("r1", "select", job)] == [
        *(None, None, "short"),
    ]
    assert next(reader.jobs("r1", task="select", index=6))["site"] == "long"
    with pytest.raises(RunNotFound):
        reader.sites("nowhere")


def test_upstream_of_a_task(reader):
    assert reader.upstream("r1", "fill") == {0}
    assert reader.upstream("r1", "select") == set()
    with pytest.raises(StoreError, match="no task 'nothing'"):
        reader.upstream("r1", "nothing")


def test_attempts(reader):
    first, second = reader.attempts("r1", "select", 3)
    assert (first["attempt"], first["status"], first["charged"]) == (1, "failed", True)
    assert (first["wall"], first["cpu"], first["max_pss"], first["read_bytes"]) == (2.0, 0.5, 8, 2)
    assert (first["started"], first["log"], first["bundle"]) == (T0 + 3.0, [10, 20], 1)
    assert first["failure"]["type"] == "builtins.KeyError"
    assert (second["attempt"], second["status"], second["failure"]) == (2, "finished", None)
    assert (second["wall"], second["location"], second["worker"]) == (4.0, "bundles/2", "w1")
    assert [a["cached"] for k in (1, 4) for a in reader.attempts("r1", "select", k)] == [
        *(False, True),
    ]
    assert reader.attempts("r1", "select", 0) == []


def test_bundle(reader):
    found = reader.bundle("r1", 1)
    assert (found["task"], found["jobs"], found["status"]) == ("select", [1, 3, 4], "ended")
    assert (found["location"], found["checksum"], found["nbytes"]) == (
        *("bundles/1", "adler32:1", 10),
    )
    assert reader.bundle("r1", 2)["jobs"] == [3]
    with pytest.raises(StoreError, match="no bundle 9"):
        reader.bundle("r1", 9)


def test_story_of_a_job(reader):
    moves = [(e["start"], e["finish"], e["attempt"]) for e in reader.story("r1", "select", 3)]
    assert moves == [
        ("ready", "sent", 1),
        ("sent", "running", 1),
        ("running", "ready", 1),
        ("ready", "sent", 2),
        ("sent", "running", 2),
        ("running", "finished", 2),
    ]
    assert reader.story("r1", "select", 2) == []  # between the indices of a bundle, not in it


def test_timeline(reader):
    rows = [(r["task"], r["index"], r["attempt"], r["status"]) for r in reader.timeline("r1")]
    assert sorted(rows) == [
        ("select", 1, 1, "finished"),
        ("select", 3, 1, "failed"),
        ("select", 3, 2, "finished"),
        ("select", 4, 1, "finished"),
    ]
    assert [row["attempt"] for row in reader.timeline("r1", limit=1)] == [2]


def test_open_requests(store, reader):
    number = store.request("r1", "pause", {"by": "me"})
    (found,) = reader.open_requests("r1")
    assert (found["id"], found["kind"], found["body"]) == (number, "pause", {"by": "me"})
    driver = store.drive("r1", this_process(), 60.0)
    driver.commit([], [number])
    driver.release()
    assert reader.open_requests("r1") == []


def test_counts(reader):
    assert reader.counts("r1") == {"finished": 3, "ready": 7}


def test_looking_without_the_lease(store, reader):
    assert not store.driven("r1")
    driver = store.drive("r1", this_process(), 60.0)
    assert store.driven("r1")
    state = store.state("r1")
    assert (state.status, len(list(state.tasks[0].jobs))) == ("running", 3)
    driver.release()
    store.drive("r1", Owner(this_process().host, 2**22 + 1, 0.0, "dead"), 3600.0)
    assert not store.driven("r1")
    with pytest.raises(RunNotFound):
        store.state("nowhere")


def test_failed_jobs_are_found_by_their_index(tmp_path):
    """Among a million rows a few failed ones must not need a scan."""
    store = SqlStore(str(tmp_path / "state.db"))
    store.create_run(example_spec(), run_id="r1", created=T0, results="")
    driver = store.drive("r1", this_process(), 60.0)
    driver.commit([*opening_records(), moved(range(4, 5), JobStatus.READY, JobStatus.FAILED)])
    driver.release()
    seen = []
    engine = store._database.engine
    sa.event.listen(engine, "before_cursor_execute", lambda *call: seen.append(call[2:4]))
    assert [row["index"] for row in store.reader().jobs("r1", status="failed")] == [4]
    plans = []
    with engine.connect() as connection:
        for text, params in [call for call in seen if "FROM jobs LEFT" in call[0]]:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", params)
            plans.append(" ".join(row[-1] for row in plan))
    store.close()
    assert plans
    assert all("COVERING INDEX ix_jobs_off_path" in plan for plan in plans)
