"""What the benchmarks of the grid's pool run on: a database that is durable, and bundles in it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import sqlalchemy as sa

from pandaflow.grid.identity import ANYBODY
from pandaflow.grid.messages import Bundle, CommandJob, Needs
from pandaflow.grid.places import QueueBody
from pandaflow.grid.pool import Pool
from pandaflow.grid.pool.session import reading, writing
from pandaflow.store.database import Database
from pandaflow.testing.postgres import PostgresServer

RUN, QUEUE = "bench", "bench"
#: Memory of a small server; commits wait for the disk, as anywhere where jobs must not be lost.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "5min",
}
_PGBENCH = """\
\\set id random(1, 100000)
UPDATE plain SET state = state + 1 WHERE id = :id;
"""
_COPIES = """
    INSERT INTO pool_bundles (run, bundle, attempt, class, rank)
    SELECT :run, :first + n, 1,
        (CAST(:kinds AS bigint[]))[1 + mod(n, cardinality(CAST(:kinds AS bigint[])))], -mod(n, 3)
    FROM generate_series(0, :count - 1) AS n"""
_WORK = """
    INSERT INTO pool_work (id, body) SELECT id, :body FROM pool_bundles
    WHERE run = :run AND bundle >= :first"""


@contextmanager
def postgres(*, fsync: bool = True) -> Iterator[PostgresServer]:
    """Give a PostgreSQL server of our own; without ``fsync`` a commit is in memory only."""
    with PostgresServer({**SETTINGS, "fsync": "on" if fsync else "off"}) as server:
        yield server


@contextmanager
def database_url(store: str, *, fsync: bool = True) -> Iterator[str]:
    """Give the URL of an empty database: ``sqlite``, ``postgresql``, or one that is there."""
    if store == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield str(Path(folder) / "pool.db")
    elif store == "postgresql":
        with postgres(fsync=fsync) as server:
            yield server.create_database()
    else:
        yield store


def plain_transactions(server: PostgresServer, seconds: float, clients: int = 4) -> float:
    """Return what ``pgbench`` reaches: transactions/s, one row changed by its key in each."""
    url = server.create_database()
    name = str(sa.make_url(url).database)
    database = Database(url, 60.0)
    with writing(database) as session:
        session.run("CREATE TABLE plain (id integer PRIMARY KEY, state integer NOT NULL)")
        session.run("INSERT INTO plain SELECT n, 0 FROM generate_series(1, 100000) AS n")
    database.dispose()
    script = server.folder / "plain.sql"
    script.write_text(_PGBENCH)
    options = ["-n", "-M", "prepared", "-c", clients, "-j", 2, "-T", max(1, round(seconds))]
    done = subprocess.run(
        [
            *(str(server.program("pgbench")), *map(str, options), "-f", str(script)),
            *("-h", str(server.folder), "-U", "postgres", name),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("tps"))
    return float(line.split()[2])


def bundle(number: int, jobs: int = 1, kinds: int = 1, priority: int = 0) -> Bundle:
    """Return a bundle of no-op commands, one of some classes."""
    return Bundle(
        bundle=number,
        task="select",
        jobs=tuple(range(number * jobs, (number + 1) * jobs)),
        priority=priority,
        needs=Needs(memory=2**30 + number % kinds),
        kind="command",
        commands=tuple(CommandJob(position=at, line="true") for at in range(jobs)),
    )


class Filled:
    """A pool with a run, a queue, and ready bundles of some classes.

    Parameters
    ----------
    url : str
    jobs : int
        In a bundle.
    kinds : int
        Classes.
    """

    def __init__(self, url: str, jobs: int = 1, kinds: int = 1) -> None:
        self.database = Database(url, 60.0)
        self.pool = Pool(self.database)
        self._jobs, self._kinds = jobs, kinds
        self.pool.put_queue(ANYBODY, QUEUE, QueueBody(site={"cores": 1_000_000}), time.time())
        self.pool.open_run(ANYBODY, RUN, time.time())
        models = [bundle(n, jobs, kinds) for n in range(kinds)]
        assert not self.pool.submit(ANYBODY, RUN, models, time.time())
        with reading(self.database) as session:
            found = session.rows(
                "SELECT b.run, b.class, w.body FROM pool_bundles AS b, pool_work AS w "
                "WHERE w.id = b.id ORDER BY b.id"
            )
        self._run, _, self._body = found[0]
        self._numbers = [kind for _, kind, _ in found]
        #: Number of the next bundle.
        self.next = kinds

    def fill(self, ready: int) -> float:
        """Have so many ready bundles at least, by copies of the first; return the seconds."""
        began = time.perf_counter()
        count = ready - self.pool.load()["ready"]
        if count > 0 and self.database.dialect == "postgresql":
            self._copy(count)
        elif count > 0:
            self.submit(count)
        return time.perf_counter() - began

    def submit(self, count: int) -> None:
        """Put new bundles into the pool as drivers do."""
        while count > 0:
            numbers = range(self.next, self.next + min(count, 1000))
            self.next, count = numbers.stop, count - len(numbers)
            told = [bundle(n, self._jobs, self._kinds, n % 3) for n in numbers]
            assert not self.pool.submit(ANYBODY, RUN, told, time.time())

    def _copy(self, count: int) -> None:
        with writing(self.database) as session:
            about = {"run": self._run, "first": self.next}
            session.run(_COPIES, count=count, kinds=self._numbers, **about)
            session.run(_WORK, body=self._body, **about)
            session.run(
                "UPDATE pool_runs SET ready = ready + :n WHERE no = :run", n=count, run=self._run
            )
        self.next += count
        # What autovacuum and checkpoints have done meanwhile where a pool fills in hours instead of
        # seconds.
        raw = self.database.engine.raw_connection()
        raw.rollback()
        raw.driver_connection.autocommit = True  # type: ignore[union-attr]
        for table in ("pool_bundles", "pool_work"):
            raw.cursor().execute(f"VACUUM (ANALYZE) {table}")
        raw.cursor().execute("CHECKPOINT")
        raw.driver_connection.autocommit = False  # type: ignore[union-attr]
        raw.close()

    def close(self) -> None:
        """Close connections."""
        self.database.dispose()


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and its children, those that ended included."""
    total = 0.0
    for process in (main := psutil.Process(pid), *main.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
