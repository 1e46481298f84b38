"""Runs on PostgreSQL, and runs whose store or disk fails: a clear error and no loss."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.testing.postgres import PostgresServer


@pf.task
def noted(x, folder):
    with open(os.path.join(folder, str(x)), "a") as file:
        file.write("x")
    time.sleep(0.01)
    return x


@pf.task(n_jobs=1)
def total(xs):
    return sum(xs)


@pf.task(retries=1)
def flaky(x):
    if x == 3 and pf.current_job().attempt == 1:
        raise ValueError("once")
    return x


@pf.workflow
def work(n, folder):
    return total(flaky(noted(pf.items(range(n)), folder)))


@pytest.mark.postgres
def test_a_run_on_postgres(
    postgres: PostgresServer,
    processes: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PANDAFLOW_RESULTS", str(tmp_path / "results"))
    url = postgres.create_database()
    run = work(50, str(tmp_path)).run(executor=processes, store=url)
    assert run.status == "done"
    assert run.result() == sum(range(50))
    assert "ValueError: once" in run.explain("flaky[3]")
    assert pf.attach(run.id, store=url).tasks[0]["jobs"] == {"finished": 50}


@pytest.mark.postgres
def test_postgres_restarts_under_a_run(
    postgres: PostgresServer,
    processes: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PANDAFLOW_RESULTS", str(tmp_path / "results"))
    notes = tmp_path / "notes"
    notes.mkdir()
    url = postgres.create_database()
    run = work(300, str(notes)).submit(executor=processes, store=url)
    while len(list(notes.iterdir())) < 50:
        time.sleep(0.01)
    postgres.restart()
    try:
        status = run.wait(60)
    except pf.StoreError:
        # The server was away for longer than one reconnect: the run is there to be resumed.
        run = pf.resume(run.id, store=url, executor=processes)
        status = run.wait(60)
    assert status == "done"
    assert run.result() == sum(range(300))


def test_a_locked_store_loses_nothing(processes: Any, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    from pandaflow.places import open_store

    store = open_store(f"sqlite:///{tmp_path}/s.db")
    run = work(200, str(notes)).submit(executor=processes, store=store)
    while len(list(notes.iterdir())) < 20:
        time.sleep(0.01)
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None, timeout=30)
    other.execute("BEGIN IMMEDIATE")
    time.sleep(1.5)  # shorter than the time that the driver waits for a lock
    other.execute("ROLLBACK")
    other.close()
    assert run.wait(60) == "done"
    assert run.result() == sum(range(200))
    assert {path.stat().st_size for path in notes.iterdir()} == {1}


BROKEN = """
import os, sys, pandaflow as pf
sys.path.insert(0, sys.argv[3])
from test_stores import work
try:
    run = work(5, sys.argv[2]).run(executor="sync", store=sys.argv[1])
except pf.StoreError as error:
    print("StoreError:", error)
"""


def broken(store: str, folder: Path, prefix: str = "") -> str:
    code = prefix + BROKEN
    command = [sys.executable, "-c", code, store, str(folder), os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr[-2000:]


def test_a_store_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"this is no database at all" * 100)
    assert "StoreError: " in broken(f"sqlite:///{tmp_path}/s.db", tmp_path)
    assert (tmp_path / "s.db").read_bytes().startswith(b"this is no database")


def test_a_full_disk(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
    limit += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    text = broken(f"sqlite:///{tmp_path}/s.db", tmp_path, limit)
    assert "StoreError: " in text
    # With room again, whatever was committed is there and goes on.
    for run in pf.runs(store=f"sqlite:///{tmp_path}/s.db"):
        assert pf.resume(run.id, store=f"sqlite:///{tmp_path}/s.db", executor="sync")


def test_the_result_folder_cannot_be_written(tmp_path: Path, processes: Any) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    run = work(4, str(tmp_path)).submit(executor=processes, store=store)
    assert run.wait(30) == "done"
    place = Path(run.summary()["results"]) / "values"
    for path in place.rglob("*.values"):
        path.write_bytes(b"garbage")
    with pytest.raises(pf.DataError, match=r"\.values"):
        run.result()


@pf.task
def kills_its_worker_once(x, folder):
    flag = os.path.join(folder, "killed")
    if x == 5 and not os.path.exists(flag):
        open(flag, "w").close()
        os.kill(os.getpid(), 9)
        time.sleep(60)
    return x


@pf.workflow
def deadly(folder):
    return kills_its_worker_once(pf.items(range(60)), folder)


def test_a_worker_killed_by_somebody_is_not_charged(tmp_path: Path, processes: Any) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    run = deadly(str(tmp_path)).run(executor=processes, store=store)
    assert run.status == "done"
    assert run.result() == list(range(60))
    text = run.explain("kills_its_worker_once[5]")
    assert "SIGKILL" in text
    assert "not charged" in text
