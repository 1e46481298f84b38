"""The schema: created once, by migrations, whoever comes first; and guarding its rules."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import pandaflow.store
from pandaflow.core.commands import BundleSited
from pandaflow.core.errors import StoreError
from pandaflow.core.status import JOB_CODES
from pandaflow.store.database import Database
from pandaflow.store.schema import HEAD, VERSION_TABLE, metadata, runs, tasks
from pandaflow.store.spec import dump_task, dump_workflow
from pandaflow.store.sql import SqlStore, open_store, this_process
from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.records import bundle_records, example_spec, opening_records


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return URLs of new, empty databases."""
    if request.param == "sqlite":
        numbers = count()
        return lambda: f"sqlite:///{tmp_path}/state{next(numbers)}.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database


@pytest.fixture
def url(fresh: Callable[[], str]) -> str:
    return fresh()


def checks(connection: sa.Connection) -> set[tuple[str, str, str]]:
    """Return table, name and text of every CHECK."""
    return {
        (table, str(check["name"]), check["sqltext"])
        for table in sa.inspect(connection).get_table_names()
        for check in sa.inspect(connection).get_check_constraints(table)
    }


def alembic_config() -> Config:
    config = Config()
    folder = Path(pandaflow.store.__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    return config


def test_migrations_make_what_the_tables_say(fresh):
    database = Database(fresh(), 5.0)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
        found = checks(connection)
    database.dispose()
    engine = sa.create_engine(fresh())
    with engine.begin() as connection:
        metadata.create_all(connection)
    with engine.connect() as connection:
        assert found == checks(connection)
    engine.dispose()
    assert len(found) >= 15


def test_head_is_the_newest_revision():
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_way_back(url):
    database = Database(url, 5.0)
    config = alembic_config()
    with database.engine.connect().execution_options(immediate=True) as connection:
        with connection.begin():
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
        assert sa.inspect(connection).get_table_names() == [VERSION_TABLE]
    database.dispose()
    SqlStore(url).close()  # and up again


def make_first_revision(url: str) -> None:
    """Make a store as revision 0001 had it, with a run in it."""
    spec, config, engine = example_spec(), alembic_config(), sa.create_engine(url)
    run = {"no": 1, "id": "old", "name": spec.name, "status": "defined", "created": 1.0}
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        assert not sa.inspect(connection).has_table("studies")
        more = {"spec": dump_workflow(spec), "params": dict(spec.params), "results": ""}
        connection.execute(sa.insert(runs).values(**run, **more))
        for task in spec.tasks:
            row = {"run": 1, "id": task.id, "name": task.name, "internal": task.internal}
            connection.execute(sa.insert(tasks).values(**row, spec=dump_task(task)))
    engine.dispose()


def test_store_of_the_first_revision_keeps_its_runs(url):
    make_first_revision(url)
    store = SqlStore(url)
    assert [run["id"] for run in store.reader().runs()] == ["old"]
    driver = store.drive("old", this_process(), 60.0)
    assert driver.load().spec == example_spec()
    driver.commit(opening_records(10))
    driver.release()
    store.create_study("new", {}, 2.0)
    writer = store.write_study("new", this_process(), 60.0)
    assert writer.append([(1.0, "ask", 0, {})]) == 1
    writer.release()
    store.close()
    database = Database(url, 5.0)
    with database.read() as connection:
        query = sa.text(f"SELECT version_num FROM {VERSION_TABLE}")
        assert connection.execute(query).scalar() == HEAD
    database.dispose()


def test_several_open_a_new_database_at_once(url):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(SqlStore, [url] * 4))
    for number, store in enumerate(stores):
        store.create_run(example_spec(), run_id=f"r{number}", created=1.0, results="")
    assert len(stores[0].reader().runs()) == 4
    for store in stores:
        store.close()


def test_several_processes_open_a_new_file_at_once(tmp_path):
    code = f"from pandaflow.store.sql import SqlStore; SqlStore({str(tmp_path / 's.db')!r})"
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]


def test_newer_schema_is_refused(url):
    database = Database(url, 5.0)
    with database.write() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    database.dispose()
    with pytest.raises(StoreError, match=f"newer PandaFlow .schema 9999, .*{HEAD}"):
        SqlStore(url)


def test_opening_again_keeps_everything(url):
    first = SqlStore(url)
    first.create_run(example_spec(), run_id="r1", created=1.0, results="")
    first.close()
    second = pickle.loads(pickle.dumps(SqlStore(url)))
    assert [run["id"] for run in second.reader().runs()] == ["r1"]
    second.close()


JOB = "INSERT INTO jobs (run, task, idx, status, attempt) VALUES "
STUDY = "INSERT INTO studies (name, created, changed, head, status, lease_until) VALUES "
LOG = "INSERT INTO study_log (study, seq, at, kind, trial, body) VALUES "
TWICE = "UNIQUE constraint failed: study_log.study, study_log.trial"


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        (JOB + "(1, 0, 99, 2, 0)", "ck_jobs_attempt"),
        (JOB + "(1, 0, 99, 9, 1)", "ck_jobs_status"),
        (JOB + "(1, 0, 0, 2, 2)", r"UNIQUE constraint failed: jobs|pk_jobs"),
        ("UPDATE tasks SET n_ready = n_ready + 1 WHERE id = 0", "ck_tasks_sum"),
        ("UPDATE tasks SET n_ready = -1, n_failed = 1 WHERE id = 0", "ck_tasks_counts"),
        ("UPDATE tasks SET status = 'busy'", "ck_tasks_status"),
        ("UPDATE runs SET status = 'busy'", "ck_runs_status"),
        ("UPDATE runs SET lease_until = 1.0", "ck_runs_lease"),
        ("UPDATE attempts SET charged = 1", "ck_attempts_charged"),
        (STUDY + "('s', 1, 1, '{}', 'busy', NULL)", "ck_studies_status"),
        (STUDY + "('s', 1, 1, '{}', 'done', 1)", "ck_studies_lease"),
        (LOG + "(1, 1, 1, 'ask', NULL, '')", "ck_study_log_trial"),
        (LOG + "(1, 1, 1, 'ask', 5, ''), (1, 2, 1, 'ask', 5, '')", f"{TWICE}|ix_study_log_ask"),
        (LOG + "(1, 1, 1, 'tell', 5, ''), (1, 2, 1, 'tell', 5, '')", f"{TWICE}|ix_study_log_tell"),
    ],
)
def test_database_guards_its_rules(url, statement, rule):
    store = SqlStore(url)
    store.create_run(example_spec(), run_id="r1", created=1.0, results="")
    driver = store.drive("r1", this_process(), 60.0)
    driver.commit([*opening_records(10), *bundle_records(1, range(10))])
    driver.release()
    engine = sa.create_engine(url)
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match=rule):
        connection.execute(sa.text(statement))
    engine.dispose()
    store.close()


def test_words_for_people_with_a_prompt(tmp_path):
    store = SqlStore(str(tmp_path / "s.db"))
    store.create_run(example_spec(), run_id="r1", created=1.0, results="")
    driver = store.drive("r1", this_process(), 60.0)
    driver.commit([*opening_records(10), *bundle_records(1, range(2))[:2]])
    driver.commit([BundleSited(1.0, 1, 0, range(2), 1, "long")])
    driver.release()
    store.close()
    connection = sqlite3.connect(tmp_path / "s.db")
    columns = "run, task, idx, status, worker, site"
    rows = connection.execute(f"SELECT {columns} FROM job_states").fetchall()
    names = connection.execute("SELECT name FROM job_statuses ORDER BY code").fetchall()
    connection.close()
    assert rows == [("r1", "select", job, "running", "w1", "long") for job in (0, 1)]
    assert [name for (name,) in names] == [status.value for status in JOB_CODES]


def test_default_place(tmp_path, monkeypatch):
    monkeypatch.delenv("PANDAFLOW_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    open_store().close()
    assert (tmp_path / ".pandaflow" / "pandaflow.db").exists()


def test_environment_names_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PANDAFLOW_STORE", f"sqlite:///{tmp_path}/a/b/mine.db")
    open_store().close()
    assert (tmp_path / "a" / "b" / "mine.db").exists()


def test_plain_path(tmp_path):
    store = open_store(tmp_path / "50% off" / "state.db")
    assert store.reader().runs() == []
    store.close()


def test_light_import():
    code = "import sys, pandaflow.store; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
