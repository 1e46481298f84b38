"""What goes wrong with disks, locks, servers and processes; nothing committed is ever lost."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pandaflow.core.errors import RunLocked, StoreError
from pandaflow.store.faults import writer_of
from pandaflow.store.owner import hold, is_gone, let_go
from pandaflow.store.sql import SqlStore, this_process
from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.records import bundle_records, example_spec, opening_records


def begin(store: SqlStore, run: str = "r1", n: int = 10) -> Any:
    store.create_run(example_spec(), run_id=run, created=1.0, results="")
    driver = store.drive(run, this_process(), 60.0)
    driver.commit(opening_records(n))
    return driver


def counts(store: SqlStore, run: str = "r1") -> dict[str, int]:
    return dict(store.reader().counts(run))


# --- files ------------------------------------------------------------------------------


def test_read_only_database(tmp_path):
    path = tmp_path / "state.db"
    begin(SqlStore(str(path))).release()
    store = SqlStore(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert counts(store) == {"ready": 10}  # people may look
    with pytest.raises(StoreError, match="is read-only: check the permissions"):
        store.drive("r1", this_process(), 60.0)
    store.close()


def test_garbage_file(tmp_path):
    path = tmp_path / "state.db"
    path.write_bytes(b"no database at all\n" * 100)
    with pytest.raises(StoreError, match="is no SQLite database: move the file away"):
        SqlStore(str(path))


def test_damaged_file(tmp_path):
    path = tmp_path / "state.db"
    store = SqlStore(str(path))
    driver = begin(store, n=5000)
    driver.commit(bundle_records(1, range(5000), wall=[1.0] * 5000))
    driver.release()
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((root[0] - 1) * page)
        file.write(b"\xff" * page)
    store = SqlStore(str(path))
    with pytest.raises(StoreError, match="is damaged: copy what can be read"):
        list(store.reader().jobs("r1"))
    store.close()


def test_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"folder .* cannot be made"):
        SqlStore(str(tmp_path / "file" / "below" / "state.db"))


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("mysql://u@h/d", "mysql is not supported"),
        ("sqlite://", "would forget its runs"),
        ("sqlite:///:memory:", "would forget its runs"),
        ("://", "not a path and not an SQLAlchemy URL"),
    ],
)
def test_no_such_kind_of_store(url, what):
    with pytest.raises(StoreError, match=what):
        SqlStore(url)


def test_full_disk(tmp_path):
    """A child whose files may not grow fails in words; what it had committed is all there."""
    path = tmp_path / "state.db"
    begin(SqlStore(str(path)), n=100_000).release()
    code = f"""
        import resource
        from pandaflow.core.errors import StoreError
        from pandaflow.store.sql import SqlStore, this_process
        from pandaflow.testing.records import bundle_records
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        driver = SqlStore({str(path)!r}).drive("r1", this_process(), 60.0)
        for bundle in range(100):
            first = bundle * 1000
            try:
                driver.commit(bundle_records(bundle, range(first, first + 1000), wall=[1.0] * 1000))
            except StoreError as error:
                print(bundle, error)
                break
    """
    out = run_python(code).stdout
    done, message = out.split(" ", 1)
    assert "disk" in message and "nothing that was committed is lost" in message
    store = SqlStore(str(path))
    expected = {"finished": int(done) * 1000, "ready": 100_000 - int(done) * 1000}
    assert counts(store) == {state: n for state, n in expected.items() if n}
    driver = store.drive("r1", this_process(), 60.0)
    driver.commit(bundle_records(500, range(99_000, 100_000)))
    driver.release()
    store.close()
    assert integrity(path) == "ok"


def test_damaged_specification_names_the_run(tmp_path):
    path = tmp_path / "state.db"
    store = SqlStore(str(path))
    driver = begin(store)
    for spec, what in (
        ('{"version": 99, "workflow": {}}', "version 99, this PandaFlow reads version 1"),
        ('{"version": 1, "workflow": {"name": 3}}', "damaged"),
        ("[]", "damaged"),
    ):
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE runs SET spec = ?", (spec,))
        connection.close()
        with pytest.raises(StoreError, match=f"r1.*{what}"):
            driver.load()
    driver.release()
    store.close()


# --- locks and processes ----------------------------------------------------------------


def test_second_writer_holds_the_lock_too_long(tmp_path):
    path = tmp_path / "state.db"
    store = SqlStore(str(path), timeout=0.1)
    driver = begin(store)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=f"is locked by (process {os.getpid()}|another process)"):
        driver.commit(bundle_records(1, range(10)))
    assert counts(store) == {"ready": 10}  # readers are not kept waiting
    other.execute("ROLLBACK")
    other.close()
    driver.commit(bundle_records(1, range(10)))
    driver.release()
    assert counts(store) == {"finished": 10}
    store.close()


def test_lock_holder_is_read_from_the_kernel(tmp_path):
    (tmp_path / "s.db-shm").write_bytes(b"")
    inode = (tmp_path / "s.db-shm").stat().st_ino
    lines = [
        f"1: POSIX  ADVISORY  READ 11 fe:00:{inode} 123 123",
        f"2: POSIX  ADVISORY  WRITE 22 fe:00:{inode + 1} 120 120",
        f"3: POSIX  ADVISORY  WRITE 33 fe:00:{inode} 120 120",
    ]
    assert writer_of(tmp_path / "s.db", lambda: "\n".join(lines)) == 33
    assert writer_of(tmp_path / "s.db", lambda: "\n".join(lines[:2])) is None
    assert writer_of(tmp_path / "none.db", lambda: "") is None


def test_kill_in_the_middle_of_a_commit(tmp_path):
    """The child dies by SIGKILL after it has written half of a commit's rows."""
    path = tmp_path / "state.db"
    begin(SqlStore(str(path)), n=3000).release()
    code = f"""
        import os, signal
        from pandaflow.store.sql import SqlStore, this_process
        from pandaflow.testing.records import bundle_records
        class Deadly(list):
            def __len__(self):
                os.kill(os.getpid(), signal.SIGKILL)
        driver = SqlStore({str(path)!r}).drive("r1", this_process(), 3600.0)
        driver.commit(bundle_records(1, range(1000)))
        driver.commit(bundle_records(2, range(1000, 2000))[:2])
        driver.commit([bundle_records(2, range(1000, 2000), wall=Deadly())[2]])
    """
    assert run_python(code, expect=-signal.SIGKILL).returncode == -signal.SIGKILL
    store = SqlStore(str(path))
    assert counts(store) == {"finished": 1000, "running": 1000, "ready": 1000}
    driver = store.drive("r1", this_process(), 60.0)  # the dead child's lease is void
    assert [bundle.location for bundle in driver.load().bundles] == ["bundles/1", ""]
    driver.commit([bundle_records(2, range(1000, 2000))[2]])
    driver.release()
    assert counts(store) == {"finished": 2000, "ready": 1000}
    store.close()
    assert integrity(path) == "ok"


def test_kill_at_any_moment(tmp_path):
    """Whatever the child had reported as committed is there, and nothing is there in part."""
    path = tmp_path / "state.db"
    begin(SqlStore(str(path)), n=100_000).release()
    code = f"""
        from pandaflow.store.sql import SqlStore, this_process
        from pandaflow.testing.records import bundle_records
        driver = SqlStore({str(path)!r}).drive("r1", this_process(), 3600.0)
        for bundle in range(100):
            driver.commit(bundle_records(bundle, range(bundle * 1000, (bundle + 1) * 1000)))
            print(bundle, flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    heard = [child.stdout.readline() for _ in range(3)]
    child.kill()
    heard += child.stdout.read().splitlines()
    child.wait()
    child.stdout.close()
    store = SqlStore(str(path))
    finished = counts(store).get("finished", 0)
    assert finished % 1000 == 0
    assert finished // 1000 - len(heard) in (0, 1)
    assert sum(1 for _ in store.reader().jobs("r1", status="finished")) == finished
    store.close()
    assert integrity(path) == "ok"


def test_zombie_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    me = this_process()
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet buried
        assert is_gone(replace(me, pid=child.pid), me.host)
    finally:
        child.wait()
    assert is_gone(replace(me, pid=child.pid), me.host)
    assert is_gone(me, me.host)  # of this process, but nothing here holds its lease
    hold(me)
    assert not is_gone(me, me.host)
    let_go(me)
    assert not is_gone(replace(me, pid=child.pid), "another host")


# --- servers ----------------------------------------------------------------------------


@pytest.fixture
def remote(postgres: PostgresServer):
    store = SqlStore(postgres.create_database())
    yield store
    store.close()


def terminate_others(store: SqlStore) -> int:
    """Cut every connection of other sessions to the database; return how many there were."""
    engine = sa.create_engine(store.url, poolclass=sa.NullPool)
    query = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        return int(connection.execute(sa.text(query)).scalar_one())


@pytest.mark.postgres
def test_server_restarted_between_commits(postgres, remote):
    driver = begin(remote)
    postgres.restart()
    driver.commit(bundle_records(1, range(5)))
    postgres.restart()
    assert list(driver.renew()) == []
    assert driver.load().next_bundle == 2
    driver.commit(bundle_records(2, range(5, 10)))
    driver.release()
    assert counts(remote) == {"finished": 10}


@pytest.mark.postgres
def test_connection_cut_between_commits(remote):
    driver = begin(remote)
    assert terminate_others(remote) >= 1
    driver.commit(bundle_records(1, range(10)))
    driver.release()
    assert counts(remote) == {"finished": 10}


@pytest.mark.postgres
def test_connection_cut_in_the_middle_of_a_commit(remote):
    class Cutting(list):
        cuts = 0

        def __len__(self):
            if not self.cuts:
                self.cuts = terminate_others(remote)
            return super().__len__()

    driver, wall = begin(remote), Cutting([1.0] * 10)
    driver.commit(bundle_records(1, range(10), wall=wall))
    driver.release()
    assert wall.cuts >= 1
    assert counts(remote) == {"finished": 10}
    assert [event["kind"] for event in remote.reader().events("r1", after=4)] == [
        *("bundle_sent", "bundle_running", "bundle_finished"),
    ]


class AnswerLost:
    """A connection that is cut right after the server has committed."""

    def __init__(self, connection: Any, store: SqlStore) -> None:
        self._connection, self._store = connection, store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        self._connection.commit()
        terminate_others(self._store)
        self._connection.cursor().execute("SELECT 1")  # the server's own farewell


@pytest.mark.postgres
def test_commit_whose_answer_was_lost_is_not_applied_twice(remote):
    driver = begin(remote)
    driver._link._connection = AnswerLost(driver._link._connection, remote)
    driver.commit(bundle_records(1, range(5)))
    driver.commit(bundle_records(2, range(5, 10)))
    driver.release()
    assert counts(remote) == {"finished": 10}
    assert [event["seq"] for event in remote.reader().events("r1")] == list(range(1, 11))


@pytest.mark.postgres
def test_server_down(postgres, remote):
    driver = begin(remote)
    records = list(bundle_records(1, range(5)))
    with postgres.stopped():
        with pytest.raises(StoreError, match=r"cannot be reached|was shut down"):
            driver.commit(records)
        with pytest.raises(StoreError, match="cannot be reached"):
            remote.reader().runs()
        with pytest.raises(StoreError, match="cannot be reached"):
            SqlStore(remote.url)
    with pytest.raises(StoreError, match="commit the same records again"):
        driver.commit(bundle_records(2, range(5, 10)))
    driver.commit(records)
    driver.commit(bundle_records(2, range(5, 10)))
    driver.release()
    assert counts(remote) == {"finished": 10}


@pytest.mark.postgres
def test_no_such_database(remote):
    with pytest.raises(StoreError, match="does not exist"):
        SqlStore(sa.make_url(remote.url).set(database="nowhere").render_as_string(False))


@pytest.mark.postgres
def test_two_drivers_race_for_a_run(remote):
    remote.create_run(example_spec(), run_id="r1", created=1.0, results="")
    first = remote.drive("r1", this_process(), 60.0)
    with pytest.raises(RunLocked):
        remote.drive("r1", this_process(), 60.0)
    first.release()


# --- helpers of these tests -------------------------------------------------------------


def run_python(code: str, *, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    found = connection.execute("PRAGMA integrity_check").fetchone()[0]
    connection.close()
    return str(found)
