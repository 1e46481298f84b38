"""Whose turn it is among runs that were left with a server, and who takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from pandaflow.core import commands as cmd
from pandaflow.core.errors import RunLocked
from pandaflow.core.status import RunStatus
from pandaflow.ports import Owner, Submitter
from pandaflow.store.schema import runs
from pandaflow.store.serving import waiting_runs
from pandaflow.store.sql import SqlStore, this_process
from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.records import example_spec

#: A process of another machine, of which nobody here knows whether it lives.
FAR = Owner("elsewhere.example.org", 7, 1.0, "token")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[SqlStore]:
    if request.param == "sqlite":
        store = SqlStore(str(tmp_path / "state.db"))
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        store = SqlStore(server.create_database())
    yield store
    store.close()


def leave(store: SqlStore, run: str, who: str = "", vo: str = "", served: bool = True) -> None:
    whose = Submitter(who, vo) if served else None
    store.create_run(example_spec(), run_id=run, created=1.0, results="", served=whose)


def waiting(store: SqlStore, **more: Any) -> list[str]:
    return [run.id for run in store.waiting_runs(**more)]


def end(store: SqlStore, run: str, status: RunStatus = RunStatus.DONE) -> None:
    driver = store.drive(run, this_process(), 60.0)
    running = RunStatus.RUNNING
    moves = [cmd.RunMoved(2.0, RunStatus.DEFINED, running), cmd.RunMoved(3.0, running, status)]
    driver.commit(moves)
    driver.release()


def test_only_runs_that_were_left_and_that_nobody_drives(store: SqlStore) -> None:
    assert waiting(store) == []
    for run in ("a", "b", "c"):
        leave(store, run)
    leave(store, "mine", served=False)
    assert waiting(store) == ["a", "b", "c"]
    assert waiting(store, limit=2) == ["a", "b"]
    driver = store.drive("b", FAR, 60.0)
    assert waiting(store) == ["a", "c"]
    driver.release()
    end(store, "a")
    assert waiting(store) == ["b", "c"]


def test_a_lease_that_has_run_out_holds_nobody_up(store: SqlStore) -> None:
    leave(store, "a")
    store.drive("a", FAR, 60.0)
    assert waiting(store) == []
    with store._database.write() as connection:
        connection.execute(sa.update(runs).values(lease_until=1.0))
    assert waiting(store) == ["a"]
    assert store.drive("a", this_process(), 60.0).load().id == "a"


def test_submitters_take_turns(store: SqlStore) -> None:
    for run in ("x1", "x2", "x3"):
        leave(store, run, "x", "atlas")
    for run in ("y1", "y2"):
        leave(store, run, "y", "atlas")
    leave(store, "z1", "x", "cms")
    assert waiting(store) == ["x1", "y1", "z1", "x2", "y2", "x3"]
    store.drive("x2", FAR, 60.0)
    assert waiting(store) == ["y1", "z1", "x1", "y2", "x3"], "x has one that is driven"


def test_only_of_vos_that_a_runner_acts_for(store: SqlStore) -> None:
    leave(store, "a", "x", "atlas")
    leave(store, "c", "x", "cms")
    leave(store, "n")
    assert waiting(store, vos=["atlas"]) == ["a"]
    assert waiting(store, vos=["cms", ""]) == ["c", "n"]
    assert waiting(store, vos=[]) == []
    (run,) = store.waiting_runs(["atlas"])
    assert (run.vo, run.submitter, run.ended) == ("atlas", "x", False)


def test_runs_that_have_ended_wait_while_somebody_has_a_wish(store: SqlStore) -> None:
    for run in ("a", "b", "mine"):
        leave(store, run, served=run != "mine")
        end(store, run, RunStatus.FAILED)
        if run != "b":
            request = store.request(run, "retry", {})
            store.request(run, "retry", {})
    assert [(run.id, run.ended) for run in store.waiting_runs()] == [("a", True)]
    driver = store.drive("a", FAR, 60.0)
    assert waiting(store) == []
    driver.commit([], done=[each.id for each in driver.renew()])
    driver.release()
    assert waiting(store) == []
    assert request


def test_many_takers_get_each_run_once(store: SqlStore) -> None:
    for number in range(12):
        leave(store, f"run{number}")
    taken: list[str] = []

    def take(name: str) -> None:
        while found := waiting(store, limit=3):
            for run in found:
                try:
                    store.drive(run, Owner(f"{name}.example.org", 1, 1.0, name), 60.0)
                except RunLocked:
                    continue
                taken.append(run)

    threads = [threading.Thread(target=take, args=(f"taker{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"run{number}" for number in range(12))


def test_the_question_uses_its_indexes(store: SqlStore) -> None:
    """It is asked each second by each runner, whatever ended before."""
    if store._database.dialect != "sqlite":
        pytest.skip("with few rows PostgreSQL reads them all")
    seen: list[tuple[str, Any]] = []
    with store._database.read() as connection:
        sa.event.listen(
            connection,
            "before_cursor_execute",
            lambda c, cur, text, par, *_: seen.append((text, par)),
        )
        waiting_runs(connection, None, 5)
        plans = []
        for text, parameters in [each for each in seen if "SELECT" in each[0]]:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", parameters)
            plans.append(" ".join(str(row[-1]) for row in rows))
    assert "ix_requests_open" in plans[0]
    assert "SCAN runs" not in " ".join(plans)
