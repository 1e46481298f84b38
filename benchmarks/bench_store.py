"""State transitions a second through the store, against raw sqlite3 with one row a job.

A transition is one job that changes its state once. The smooth path has four: sent, running,
holding, finished. Each record of a bundle (sent, running, finished) is a commit of its own, as
when bundles report one by one. Everything counts: events, attempts with their measures, counts,
the lease's fence, fsync. The yardstick keeps nothing but a state: one ``executemany`` per change
over one row a job, in one process, with the same durability.

    python -m benchmarks.bench_store [--jobs 200000] [--bundle 1000] [--store URL]

Budget: 100,000 transitions/s on SQLite with bundles of 1000 jobs.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pandaflow.core import commands as cmd
from pandaflow.core.events import BundleEnded
from pandaflow.core.model import TaskSpec, WorkflowSpec
from pandaflow.core.status import JobStatus, RunStatus, TaskStatus
from pandaflow.ports import RunDriver
from pandaflow.store.sql import SqlStore, this_process

#: Changes of state on a job's smooth path.
TRANSITIONS = 4
BUDGET = 100_000

Spent = tuple[float, float]


@contextmanager
def clock(spent: list[Spent]) -> Iterator[None]:
    """Append (CPU, wall) seconds of the block to ``spent``."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    spent.append((time.process_time() - cpu, time.perf_counter() - wall))


def opening(jobs: int) -> list[cmd.Record]:
    """Return the records of a run with one task of ``jobs`` ready jobs."""
    return [
        cmd.RunMoved(0.0, RunStatus.DEFINED, RunStatus.RUNNING),
        cmd.TaskGrew(0.0, 0, jobs, True, JobStatus.READY),
        cmd.TaskMoved(0.0, 0, TaskStatus.DEFINED, TaskStatus.READY),
        cmd.TaskMoved(0.0, 0, TaskStatus.READY, TaskStatus.RUNNING),
    ]


def life(bundle: int, size: int) -> list[cmd.Record]:
    """Return the three records of a bundle whose jobs all finish."""
    jobs = range((bundle - 1) * size, bundle * size)
    seconds = array("d", [0.001]) * size
    report = BundleEnded(
        at=3.0,
        bundle=bundle,
        worker="w",
        location=f"bundles/{bundle}",
        checksum="adler32:00000001",
        nbytes=size,
        started=2.0,
        wall=seconds,
        cpu=seconds,
        max_pss=array("q", [10**8]) * size,
    )
    return [
        cmd.BundleSent(1.0, bundle, 0, jobs, 1, JobStatus.READY, "local"),
        cmd.BundleRunning(2.0, bundle, 0, jobs, 1, "w"),
        cmd.BundleFinished(3.0, bundle, 0, jobs, 1, jobs, report),
    ]


def drive(driver: RunDriver, jobs: int, size: int) -> list[Spent]:
    """Commit the life of all bundles; return what each kind of record took."""
    spent: list[list[Spent]] = [[], [], []]
    for bundle in range(1, jobs // size + 1):
        for kind, record in enumerate(life(bundle, size)):
            with clock(spent[kind]):
                driver.commit([record])
    return [(sum(cpu for cpu, _ in times), sum(wall for _, wall in times)) for times in spent]


def ours(url: str, jobs: int, size: int) -> list[Spent]:
    """Measure the store."""
    store = SqlStore(url)
    task = TaskSpec(id=0, name="noop", token="t", payload="p")
    run = f"bench-{time.time_ns()}"
    spec = WorkflowSpec(name="bench", tasks=(task,))
    store.create_run(spec, run_id=run, created=time.time(), results="")
    driver = store.drive(run, this_process(), 60.0)
    driver.commit(opening(jobs))
    try:
        spent = drive(driver, jobs, size)
    finally:
        driver.release()
    assert store.reader().counts(run) == {"finished": jobs}
    store.close()
    return spent


def yardstick(path: Path, jobs: int, size: int) -> Spent:
    """Measure raw sqlite3: one row a job, one executemany and commit per bundle and change."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, state TEXT NOT NULL)")
    insert = "INSERT INTO job (id, state) VALUES (?, 'sent')"
    update = "UPDATE job SET state = '{}' WHERE id = ?"
    changes = [insert, *(update.format(s) for s in ("running", "holding", "finished"))]
    spent: list[Spent] = []
    with clock(spent):
        for first in range(0, jobs, size):
            for change in changes:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(change, [(job,) for job in range(first, first + size)])
                connection.execute("COMMIT")
    connection.close()
    return spent[0]


def show(name: str, jobs: int, spent: Spent) -> None:
    """Print one line of figures."""
    cpu, wall = spent
    print(
        f"{name:<22}{jobs / wall:>12,.0f}{TRANSITIONS * jobs / wall:>16,.0f}"
        f"{cpu / jobs * 1e6:>14.2f}{wall / jobs * 1e6:>15.2f}"
    )


def measured(url: str | None, jobs: int, size: int) -> tuple[list[Spent], Spent]:
    """Measure the store and, right after it, the yardstick."""
    with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
        path = Path(folder)
        place = url or f"sqlite:///{path / 'state.db'}"
        return ours(place, jobs, size), yardstick(path / "raw.db", jobs, size)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--bundle", type=int, default=1000, help="jobs a bundle")
    parser.add_argument("--store", help="SQLAlchemy URL; default: SQLite in a temporary folder")
    options = parser.parse_args()
    size = options.bundle
    jobs = options.jobs // size * size
    spent, raw = measured(options.store, jobs, size)
    total = sum(cpu for cpu, _ in spent), sum(wall for _, wall in spent)
    print(f"{jobs:,} jobs in bundles of {size}, a commit for each record of a bundle")
    print(f"{'':<22}{'jobs/s':>12}{'transitions/s':>16}{'CPU us/job':>14}{'wall us/job':>15}")
    show("store", jobs, total)
    show("raw sqlite3, 1 row/job", jobs, raw)
    for name, (cpu, wall) in zip(("sent", "running", "finished"), spent, strict=True):
        print(f"  {name:<48}{cpu / jobs * 1e6:>14.2f}{wall / jobs * 1e6:>15.2f}")
    rate = TRANSITIONS * jobs / total[1]
    print(f"ratio to raw: CPU {total[0] / raw[0]:.2f}, wall {total[1] / raw[1]:.2f}")
    if size >= 1000:
        verdict = "kept" if rate >= BUDGET else "MISSED"
        print(f"budget {BUDGET:,} transitions/s: {verdict} ({rate:,.0f})")


if __name__ == "__main__":
    main()
