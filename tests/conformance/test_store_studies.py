"""Studies in the store: what is appended stays, once, whole, exact, by one writer."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import Any

import pytest
import sqlalchemy as sa

from pandaflow.core.errors import RunLocked, StoreError, StoreUnavailable
from pandaflow.ports import LogRecord, Owner, StudyState, StudyStore, StudyWriter
from pandaflow.store.sql import SqlStore, this_process
from pandaflow.store.studies import PAGE, SqlStudyWriter
from pandaflow.testing.postgres import PostgresServer

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
FAR = Owner("elsewhere", 1, 0.0, "x")
_numbers = count()


@pytest.fixture(params=DATABASES, scope="module")
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SqlStore]:
    """One store for all tests of a database: each makes its own studies."""
    if request.param == "sqlite":
        url = str(tmp_path_factory.mktemp("studies") / "state.db")
    else:
        url = request.getfixturevalue("postgres").create_database()
    store = SqlStore(url)
    yield store
    store.close()


@pytest.fixture
def name(store: StudyStore) -> str:
    return new_study(store)


@pytest.fixture
def writer(store: SqlStore, name: str) -> Iterator[SqlStudyWriter]:
    with writing(store, name) as writer:
        yield writer


def new_study(store: StudyStore, created: float = 1.0, **head: Any) -> str:
    name = f"study {next(_numbers)}"
    store.create_study(name, head, created)
    return name


@contextmanager
def writing(store: SqlStore, name: str) -> Iterator[SqlStudyWriter]:
    writer = store.write_study(name, this_process(), 60.0)
    try:
        yield writer
    finally:
        writer.release()


def ask(trial: int, **body: Any) -> tuple[float, str, int | None, dict[str, Any]]:
    return (1.5, "ask", trial, body)


def tell(trial: int, **body: Any) -> tuple[float, str, int | None, dict[str, Any]]:
    return (2.5, "tell", trial, body)


def note(**body: Any) -> tuple[float, str, int | None, dict[str, Any]]:
    return (3.5, "note", None, body)


def short(records: Iterator[LogRecord]) -> list[tuple[int, str, int | None]]:
    return [(record.seq, record.kind, record.trial) for record in records]


# --- the study itself -------------------------------------------------------------------


def test_new_study(store):
    head = {"z": -0.0, "a": [1e-320, {"y": None, "b": 2**70}], "": "\x00 \ud800 é"}
    name = new_study(store, created=12.25, **head)
    state = store.study(name)
    assert replace(state, head={}) == StudyState(name, 12.25, 12.25, "running", {}, {}, None)
    assert json.dumps(state.head) == json.dumps(head)  # with order and the sign of zero
    assert list(store.study_log(name)) == []


def test_name_is_unique(store, name):
    with pytest.raises(StoreError, match=f"{name}' exists already"):
        store.create_study(name, {}, 2.0)
    assert store.study(name).created == 1.0


def test_unknown_study(store):
    assert store.study("nobody") is None
    take = partial(store.write_study, owner=this_process(), ttl=60.0)
    for use in (store.study_log, take, store.delete_study):
        with pytest.raises(StoreError, match="there is no study 'nobody'"):
            use("nobody")


def test_newest_first(store):
    names = [new_study(store, created=at) for at in (3e9, 2e9, 3e9)]
    listed = [state.name for state in store.studies(limit=3)]
    assert listed == [names[2], names[0], names[1]]


def test_append_replaces_what_it_is_given(store, name, writer):
    writer.append([], summary={"asked": 1}, status="stopped", head={"n": 1}, run="r1")
    first = store.study(name)
    assert (first.summary, first.status) == ({"asked": 1}, "stopped")
    assert (first.head, first.run) == ({"n": 1}, "r1")
    assert first.changed > 1e9  # by the clock, where it was made at second 1
    writer.append([note()], summary={})
    assert store.study(name) == replace(first, summary={}, changed=store.study(name).changed)


# --- the log ----------------------------------------------------------------------------

AWKWARD = [
    *(0.1, -0.0, 1e-320, 5e-324, 1.7976931348623157e308, 1 / 3, 2.0**53 + 2.0, 1e22, -1e-7),
    *(0, -1, 2**63, 10**40, True, None, "", "\x00", "é\ud800\n\u2028", "NaN", [], {}),
]


def test_values_come_back_exactly(store, name, writer):
    body = {"values": AWKWARD, "z": {"b": 1, "a": AWKWARD}, "a": 1.0}
    times = [0.1 + 0.2, 1763821089.1234567]
    writer.append([(at, "note", None, body) for at in times])
    found = list(store.study_log(name))
    assert [repr(record.at) for record in found] == [repr(at) for at in times]
    assert {repr(record.body) for record in found} == {repr(body)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), object(), {1, 2}])
def test_what_is_no_json_is_refused(store, name, writer, value):
    bad = {"deep": [{"value": value}]}
    with pytest.raises(StoreError, match=f"{name}': the tell of trial 7 cannot be stored as JSON"):
        writer.append([ask(7), (2.0, "tell", 7, bad)])
    for what, said in (("summary", "summary"), ("head", "definition")):
        with pytest.raises(StoreError, match=f"its {said} cannot be stored as JSON"):
            writer.append([ask(7)], **{what: bad})
    with pytest.raises(StoreError, match="its definition cannot be stored as JSON"):
        store.create_study("bad", bad, 1.0)
    assert list(store.study_log(name)) == []
    assert store.study("bad") is None


def test_numbers_go_on(store, name, writer):
    assert writer.next_seq == 1
    assert writer.append([ask(0), ask(1), tell(0)]) == 3
    assert writer.append([]) == 3
    writer.release()
    with writing(store, name) as again:
        assert again.next_seq == 4
        assert again.append([note(), tell(1)]) == 5
    log = [(1, "ask", 0), (2, "ask", 1), (3, "tell", 0), (4, "note", None), (5, "tell", 1)]
    assert short(store.study_log(name)) == log
    assert all(short(store.study_log(name, k)) == log[max(k, 0) :] for k in range(-1, 7))


@pytest.mark.parametrize("kind", ["ask", "tell"])
def test_a_trial_is_asked_and_told_once(store, name, writer, kind):
    writer.append([ask(3), tell(3), note(of=3), (4.0, "report", 3, {}), (5.0, "report", 3, {})])
    before, log = store.study(name), list(store.study_log(name))
    again = (9.0, kind, 3, {})
    with pytest.raises(StoreError, match=f"{name}': {kind} of trial 3 is in the log already"):
        writer.append([ask(4), again, tell(4)], summary={"told": 9}, status="done")
    with pytest.raises(StoreError, match=f"{kind} of trial 5 is in the log already"):
        writer.append([note(), (9.0, kind, 5, {}), (9.0, kind, 5, {})])
    assert (store.study(name), list(store.study_log(name))) == (before, log)
    assert writer.append([ask(4), tell(4), ask(5), tell(5)]) == 9  # and it goes on
    other = new_study(store)
    with writing(store, other) as second:
        assert second.append([ask(3), tell(3)]) == 2


def test_what_breaks_another_rule_is_refused(store, name, writer):
    for records, status in (([(1.0, "ask", None, {})], None), ([note()], "busy")):
        with pytest.raises(StoreError, match=r"ck_stud(y_log_trial|ies_status)"):
            writer.append(records, status=status)
    assert list(store.study_log(name)) == []


def test_reader_sees_what_was_there_at_the_call(store, name, writer):
    writer.append([ask(trial, x=trial / 7) for trial in range(PAGE + 5)])
    reading = store.study_log(name)
    seen = list(islice(reading, 2))
    writer.append([tell(0)], summary={"told": 1})
    seen += list(reading)
    assert [record.seq for record in seen] == list(range(1, PAGE + 6))
    assert [record.body["x"] for record in seen] == [trial / 7 for trial in range(PAGE + 5)]
    assert short(store.study_log(name, PAGE + 5)) == [(PAGE + 6, "tell", 0)]


def test_readers_while_it_is_written(store, name, writer):
    sizes, deadline = [1, 7, 64, 32] * 12, time.monotonic() + 60.0

    def read(_: int) -> list[int]:
        lengths: list[int] = []
        while sum(sizes) not in lengths and time.monotonic() < deadline:
            records = list(store.study_log(name))
            assert [record.seq for record in records] == list(range(1, len(records) + 1))
            lengths.append(len(records))
        return lengths

    with ThreadPoolExecutor(2) as pool:
        reads = pool.map(read, range(2))
        ends = [writer.append([note(size=size)] * size) for size in sizes]
        whole = {0, *ends}
        for lengths in reads:
            assert lengths == sorted(lengths) and whole.issuperset(lengths)
            assert lengths[-1] == sum(sizes)


# --- the lease --------------------------------------------------------------------------


def test_second_writer_is_refused(store, name, writer):
    said = f"study '{name}' is written by process {os.getpid()} on .* stop that process"
    for other in (this_process(), FAR):
        with pytest.raises(RunLocked, match=said):
            store.write_study(name, other, 60.0)
    assert writer.append([ask(0)]) == 1


def test_owner_may_take_it_again(store, name):
    late, second = (store.write_study(name, FAR, 60.0) for _ in range(2))
    with pytest.raises(RunLocked, match="process 1 on elsewhere writes it now"):
        late.append([note()])
    assert second.append([note()]) == 1
    second.release()
    late.release()


def test_writer_of_another_host_holds_it(store, name):
    far = store.write_study(name, FAR, 60.0)
    with pytest.raises(RunLocked, match="elsewhere"):
        store.write_study(name, this_process(), 60.0)
    far.release()
    far.release()
    with pytest.raises(RunLocked, match="has given its lease back"):
        far.append([note()])
    store.write_study(name, this_process(), 60.0).release()


def test_lease_of_a_dead_process_is_void(store, name):
    dead = replace(this_process(), pid=2**22 + 1)
    late = store.write_study(name, dead, 3600.0)
    heir = store.write_study(name, this_process(), 60.0)
    with pytest.raises(RunLocked, match=f"process {os.getpid()} on .* writes it now"):
        late.append([ask(0)])
    assert heir.append([ask(0)]) == 1
    heir.release()
    with pytest.raises(RunLocked, match="its lease was given back"):
        late.append([tell(0)])


def test_writer_whose_lease_expired_is_fenced_off(store, name):
    late = store.write_study(name, FAR, 0.05)
    late.append([ask(0)])
    time.sleep(0.2)
    heir = store.write_study(name, this_process(), 60.0)
    with pytest.raises(RunLocked, match=f"{name}': this writer has lost the study, process"):
        late.append([tell(0, by="late")], summary={"by": "late"}, status="failed")
    with pytest.raises(RunLocked, match="has lost the study"):
        late.renew()
    late.release()  # gives back nothing that is not its own
    assert heir.append([tell(0, by="heir")], summary={"by": "heir"}) == 2
    heir.renew()
    heir.release()
    assert [record.body for record in store.study_log(name)] == [{}, {"by": "heir"}]
    assert (store.study(name).summary, store.study(name).status) == ({"by": "heir"}, "running")


@pytest.mark.parametrize("sign", [lambda w: w.append([]), lambda w: w.renew()])
def test_sign_of_life_extends_the_lease(store, name, sign: Callable[[StudyWriter], object]):
    second = store.write_study(name, FAR, 60.0)
    with store._database.write() as connection:
        over = "UPDATE studies SET lease_until = 1.0 WHERE name = :name"
        assert connection.execute(sa.text(over), {"name": name}).rowcount == 1
    sign(second)
    with pytest.raises(RunLocked, match="elsewhere"):
        store.write_study(name, this_process(), 60.0)
    second.release()


def test_one_of_many_at_once_gets_it(store, name):
    def take(_: int) -> SqlStudyWriter | None:
        try:
            return store.write_study(name, this_process(), 60.0)
        except RunLocked:
            return None

    with ThreadPoolExecutor(4) as pool:
        writers = [writer for writer in pool.map(take, range(16)) if writer]
    assert len(writers) == 1
    assert writers[0].append([ask(0)]) == 1
    writers[0].release()


# --- deleting ---------------------------------------------------------------------------


def test_delete(store, name, writer):
    other = new_study(store)
    with writing(store, other) as second:
        second.append([ask(0)])
    writer.append([ask(0), tell(0)])
    with pytest.raises(RunLocked, match=f"'{name}' is written by process {os.getpid()}"):
        store.delete_study(name)
    writer.release()
    store.delete_study(name)
    assert store.study(name) is None
    assert short(store.study_log(other)) == [(1, "ask", 0)]


def test_late_users_of_a_deleted_study_do_not_meet_its_namesake(store, name):
    late = store.write_study(name, FAR, 0.05)
    late.append([note()] * (PAGE + 1))
    reading = store.study_log(name)
    next(reading)
    time.sleep(0.2)
    store.delete_study(name)
    with pytest.raises(RunLocked, match="it was deleted"):
        late.append([note()])
    store.create_study(name, {}, 5.0)
    with writing(store, name) as writer:
        writer.append([note(new=True)] * (PAGE + 1))
        with pytest.raises(RunLocked, match="it was deleted"):
            late.append([note()])
        with pytest.raises(StoreError, match=f"1 record.* between {PAGE + 1} and .* are gone"):
            list(reading)
    late.release()
    assert len(list(store.study_log(name))) == PAGE + 1


# --- processes, files, servers ----------------------------------------------------------


def test_kill_at_any_moment(store, name):
    """What the child heard to be kept is there, and no append is there in part."""
    code = f"""
        from pandaflow.store.sql import SqlStore, this_process
        writer = SqlStore({store.url!r}).write_study({name!r}, this_process(), 3600.0)
        for append in range(100_000):
            size = append % 40 + 1
            records = [(0.5, "note", None, {{"append": append}})] * size
            writer.append(records, summary={{"appends": append + 1}})
            print(append, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    heard = [child.stdout.readline() for _ in range(30)]
    child.kill()
    heard += child.stdout.read().splitlines()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    with writing(store, name) as writer:  # the dead child's lease is void
        appends = store.study(name).summary["appends"]
        assert appends - len(heard) in (0, 1)
        whole = [append for append in range(appends) for _ in range(append % 40 + 1)]
        assert [record.body["append"] for record in store.study_log(name)] == whole
        assert writer.append([ask(0)]) == len(whole) + 1


def test_locked_database(tmp_path):
    store = SqlStore(str(tmp_path / "state.db"), timeout=0.1)
    name = new_study(store)
    with writing(store, name) as writer:
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=r"is locked by (process|another process)"):
            writer.append([ask(0)])
        with pytest.raises(StoreUnavailable, match="is locked by"):
            new_study(store)
        assert list(store.study_log(name)) == []  # readers are not kept waiting
        other.execute("ROLLBACK")
        other.close()
        assert writer.append([ask(1)]) == 1
    store.close()


def test_read_only_database(tmp_path):
    path = tmp_path / "state.db"
    first = SqlStore(str(path))
    name = new_study(first)
    with writing(first, name) as writer:
        writer.append([ask(0)])
    first.close()
    store = SqlStore(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert short(store.study_log(name)) == [(1, "ask", 0)]
    for use in (
        lambda: store.write_study(name, this_process(), 60.0),
        lambda: store.delete_study(name),
        lambda: store.create_study("other", {}, 1.0),
    ):
        with pytest.raises(StoreError, match="is read-only: check the permissions"):
            use()
    store.close()


def test_damaged_texts_name_the_study(tmp_path):
    store = SqlStore(str(tmp_path / "state.db"))
    name = new_study(store)
    with writing(store, name) as writer:
        writer.append([ask(0)])
    with store._database.write() as connection:
        connection.execute(sa.text("UPDATE study_log SET body = '{'"))
        connection.execute(sa.text("UPDATE studies SET head = '{'"))
    for read in (store.study, lambda name: list(store.study_log(name))):
        with pytest.raises(StoreError, match=f"'{name}' is damaged in the store"):
            read(name)
    store.close()


@pytest.fixture
def remote(postgres: PostgresServer) -> Iterator[SqlStore]:
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
def test_connection_cut_between_appends(remote):
    name = new_study(remote)
    with writing(remote, name) as writer:
        writer.append([ask(0)])
        assert terminate_others(remote) >= 1
        assert writer.append([tell(0)]) == 2
    assert short(remote.study_log(name)) == [(1, "ask", 0), (2, "tell", 0)]


@pytest.mark.postgres
def test_append_whose_answer_was_lost_is_not_made_twice(remote):
    name = new_study(remote)
    with writing(remote, name) as writer:
        writer.renew()
        writer._link._connection = AnswerLost(writer._link._connection, remote)
        assert writer.append([note(n=1), ask(0)]) == 2
        assert writer.append([note(n=2)]) == 3
    assert short(remote.study_log(name)) == [(1, "note", None), (2, "ask", 0), (3, "note", None)]


@pytest.mark.postgres
def test_server_down(postgres, remote):
    name = new_study(remote)
    with writing(remote, name) as writer:
        writer.append([ask(0)])
        with postgres.stopped():
            with pytest.raises(StoreUnavailable, match=r"cannot be reached|was shut down"):
                writer.append([tell(0)])
        with pytest.raises(StoreError, match="append the same again"):
            writer.append([note()])
        assert writer.append([tell(0)]) == 2
        assert writer.append([note()]) == 3
