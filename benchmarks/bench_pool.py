"""Bundles a second through the grid's pool: acquired and ended, with few and with many waiting.

A bundle's life here: a pilot gets it, says that it runs, says that it has ended. Workers, each a
process as an instance of the server is one, make batched calls of ``Pool.acquire`` and
``Pool.update``, each a durable transaction. The pool begins with so many ready bundles and one
batch for each call of a worker. What submitting, starting and hearing cost is measured apart. The
yardstick is the database alone: as many rows set from ready to ended by as many workers, one
UPDATE and commit a batch, by ids that are known.

    python -m benchmarks.bench_pool [--ready 1000 1000000] [--jobs 1 10] [--batch 500]
        [--workers 2] [--rounds 10] [--no-fsync] [--profile]

Budget: 10,000 jobs/s acquired and ended on PostgreSQL, the same with 10^3 and 10^6 ready.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing as mp
import pstats
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.pool_setting import QUEUE, RUN, Filled, cpu_of, postgres
from benchmarks.table import Row
from pandaflow.grid.identity import ANYBODY, Forbidden
from pandaflow.grid.messages import BATCH, Acquire, JobResult, Leased, PilotUpdate, Report
from pandaflow.grid.pool import Pool
from pandaflow.grid.pool.session import Many, writing
from pandaflow.store.database import Database

BUDGET = 10_000
#: Different needs, as of tasks of different sizes.
CLASSES = 8
#: Pilots of a batch.
PILOTS = 10
STEPS = ("acquire", "start", "end")
_RAW_INSERT = "INSERT INTO raw SELECT id, 1, '' FROM unnest(CAST(%(id)s AS integer[])) AS new(id)"
_RAW_UPDATE = (
    "UPDATE raw SET state = 4, pilot = 'p' FROM unnest(CAST(%(id)s AS integer[])) AS new(id) "
    "WHERE raw.id = new.id"
)
_RAW = Many("UPDATE raw SET state = 4, pilot = 'p' WHERE id = ?", _RAW_UPDATE, ("id",))


@dataclass(slots=True)
class Rates:
    """What some workers have done together.

    Attributes
    ----------
    ready, jobs, bundles : int
        Waiting, in a bundle, done.
    seconds : dict of str to float
        Of each step, the mean of the workers.
    cpu : float
        Seconds of workers and database, for all steps.
    """

    ready: int
    jobs: int
    bundles: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Bundles a second, acquired and ended."""
        return self.bundles / (self.seconds["acquire"] + self.seconds["end"])


class Worker:
    """An instance's part: it asks and reports for many pilots at once."""

    def __init__(self, url: str, name: str, batch: int) -> None:
        self.database = Database(url, 60.0)
        self.pool, self.name, self.share = Pool(self.database), name, batch // PILOTS

    def life(self, jobs: int) -> tuple[int, dict[str, float]]:
        """Take a batch through its life; return how many bundles, and seconds by step."""
        asks = [
            Acquire(pilot=f"{self.name}-{i}", queue=QUEUE, cores=self.share, count=self.share)
            for i in range(PILOTS)
        ]
        seconds: dict[str, float] = {}
        answers = self._timed(seconds, "acquire", self.pool.acquire, asks)
        given: list[tuple[str, tuple[Leased, ...]]] = []
        for ask, answer in zip(asks, answers, strict=True):
            assert not isinstance(answer, Forbidden), answer
            given.append((ask.pilot, answer.bundles))
        for step in ("start", "end"):
            told = [
                PilotUpdate(pilot=pilot, reports=tuple(_report(each, step, jobs) for each in some))
                for pilot, some in given
            ]
            for updated in self._timed(seconds, step, self.pool.update, told):
                assert all(verdict.accepted for verdict in updated.verdicts), updated
        return sum(len(some) for _, some in given), seconds

    def raw(self, ids: Sequence[int]) -> None:
        """Change rows of the yardstick."""
        with writing(self.database) as session:
            session.many(_RAW, [(i,) for i in ids])

    def _timed(self, seconds: dict[str, float], step: str, method: Any, told: list[Any]) -> Any:
        began = time.perf_counter()
        answers = method([(ANYBODY, each) for each in told], time.time())
        seconds[step] = time.perf_counter() - began
        return answers


def _report(leased: Leased, step: str, jobs: int) -> Report:
    if step == "start":
        return Report(id=leased.id, lease=leased.lease, seq=1, state="running")
    results = tuple(
        JobResult(position=at, code=0, began=1.0, ended=2.0, metrics={"cpu": 1.0})
        for at in range(jobs)
    )
    return Report(id=leased.id, lease=leased.lease, seq=2, state="ended", results=results)


def _work(url: str, name: str, batch: int, tasks: Any, results: Any) -> None:
    """Be a worker process: do what comes until None does."""
    worker = Worker(url, name, batch)
    results.put(None)
    while (task := tasks.get()) is not None:
        what, some = task
        if what == "life":
            results.put(worker.life(some))
        else:
            worker.raw(some)
            results.put(None)
    worker.database.dispose()


class Workers:
    """Processes that work at once. Use it as a context manager."""

    def __init__(self, url: str, number: int, batch: int) -> None:
        spawn = mp.get_context("spawn")
        self.number, self.batch = number, batch
        self._tasks, self._results = spawn.Queue(), spawn.Queue()
        self._processes = [
            spawn.Process(
                target=_work,
                args=(url, f"worker-{n}", batch, self._tasks, self._results),
                daemon=True,
            )
            for n in range(number)
        ]

    def __enter__(self) -> Workers:
        for process in self._processes:
            process.start()
        for _ in self._processes:
            self._results.get(timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        for _ in self._processes:
            self._tasks.put(None)
        for process in self._processes:
            process.join(10)
            process.kill()

    def do(self, tasks: Sequence[tuple[str, Any]]) -> list[Any]:
        """Have tasks done, whoever is free does the next; return their results."""
        for task in tasks:
            self._tasks.put(task)
        return [self._results.get(timeout=300) for _ in tasks]

    def cpu(self) -> float:
        """Return the CPU seconds so far."""
        return sum(cpu_of(process.pid) for process in self._processes if process.pid)


def lives(
    workers: Workers, filled: Filled, database: int, ready: int, jobs: int, rounds: int
) -> Rates:
    """Measure rounds of a batch with so many bundles waiting."""
    filled.fill(ready + rounds * workers.batch)
    rates = Rates(ready, jobs)
    before = workers.cpu() + cpu_of(database)
    for bundles, seconds in workers.do([("life", jobs)] * rounds):
        rates.bundles += bundles
        for step, value in seconds.items():
            rates.seconds[step] += value / workers.number
    rates.cpu = workers.cpu() + cpu_of(database) - before
    # What one worker has locked is not there for the others just then.
    assert rates.bundles >= 0.9 * rounds * workers.batch, rates
    return rates


def raw_rate(workers: Workers, filled: Filled, rounds: int) -> float:
    """Return rows a second of the yardstick."""
    batch, count = workers.batch, workers.batch * rounds
    with writing(filled.database) as session:
        session.run(
            "CREATE TABLE IF NOT EXISTS raw (id integer PRIMARY KEY, state int, pilot text)"
        )
        session.run("TRUNCATE raw")
        session.many(Many("", _RAW_INSERT, ("id",)), [(i,) for i in range(count)])
    began = time.perf_counter()
    workers.do([("raw", list(range(at, at + batch))) for at in range(0, count, batch)])
    return count / (time.perf_counter() - began)


def driver_rates(filled: Filled, bundles: int) -> tuple[float, float]:
    """Return bundles a second submitted, and outcomes a second heard, by one driver."""
    began = time.perf_counter()
    filled.submit(bundles)
    submitted = time.perf_counter() - began
    began, read, after = time.perf_counter(), 0, 0
    while page := filled.pool.outcomes(ANYBODY, RUN, after, BATCH, time.time()).outcomes:
        after, read = page[-1].seq, read + len(page)
    return bundles / submitted, read / (time.perf_counter() - began)


def measure(asked: argparse.Namespace, ready: Sequence[int], jobs: int) -> Iterator[Rates]:
    """Yield rates with so many bundles waiting, from few to many; print them."""
    with postgres(fsync=not asked.no_fsync) as server:
        url = server.create_database()
        filled = Filled(url, jobs, CLASSES)
        with Workers(url, asked.workers, asked.batch) as workers:
            lives(workers, filled, server.pid, 5_000, jobs, 2 * asked.workers)  # connections, plans
            for each in sorted(ready):
                rates = lives(workers, filled, server.pid, each, jobs, asked.rounds)
                steps = ", ".join(
                    f"{step} {rates.bundles / seconds:,.0f}/s"
                    for step, seconds in rates.seconds.items()
                )
                print(
                    f"{each:,} ready, {jobs} job{'s' * (jobs > 1)} a bundle: acquired and ended "
                    f"{rates.rate:,.0f} bundles/s, {rates.rate * jobs:,.0f} jobs/s ({steps}), "
                    f"CPU a whole life {rates.cpu / rates.bundles * 1e6:.0f} us",
                    flush=True,
                )
                yield rates
            submitted, heard = driver_rates(filled, 5_000)
            raw = raw_rate(workers, filled, asked.rounds * 4)
            print(f"one driver: {submitted:,.0f} bundles/s in, {heard:,.0f} outcomes/s heard")
            print(f"yardstick: {raw:,.0f} rows/s", flush=True)
            asked.raw = raw
        filled.close()


def _asked(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bundles a second through the grid's pool")
    parser.add_argument("--ready", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 10], help="in a bundle")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60, help="batches of each measurement")
    parser.add_argument("--no-fsync", action="store_true", help="commits do not wait for the disk")
    parser.add_argument("--profile", action="store_true", help="one worker, here, by cProfile")
    return parser.parse_args(words)


def rows() -> Iterator[Row]:
    """Lines of the table."""
    asked = _asked([])
    (few, many) = measure(asked, asked.ready, 1)
    yield Row(
        "grid's pool on PostgreSQL (fsync on), bundles of a job acquired and ended in batches",
        f"{few.rate:,.0f}/s, {few.cpu / few.bundles * 1e6:.0f} us CPU a whole life",
        f"rows changed by id: {asked.raw:,.0f}/s",
        f"{few.rate / asked.raw:.2f} x",
        f">= {BUDGET:,} jobs/s",
        few.rate >= BUDGET,
    )
    yield Row(
        "... with 1,000,000 bundles waiting",
        f"{many.rate:,.0f}/s",
        f"1,000 waiting: {few.rate:,.0f}/s",
        f"{many.rate / few.rate:.2f}",
        ">= 0.7",
        many.rate >= 0.7 * few.rate,
    )


def profiled(asked: argparse.Namespace) -> None:
    """Print where one worker's time goes."""
    with postgres(fsync=not asked.no_fsync) as server:
        url = server.create_database()
        filled = Filled(url, asked.jobs[0], CLASSES)
        filled.fill((asked.rounds + 1) * asked.batch)
        worker, profile = Worker(url, "worker", asked.batch), cProfile.Profile()
        worker.life(asked.jobs[0])
        profile.enable()
        for _ in range(asked.rounds):
            worker.life(asked.jobs[0])
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        worker.database.dispose()
        filled.close()


def main() -> None:
    """Run it."""
    asked = _asked()
    if asked.profile:
        profiled(asked)
        return
    for jobs in asked.jobs:
        # Many waiting are measured with bundles of one job: filling takes longest.
        ready = asked.ready if jobs == min(asked.jobs) else asked.ready[:1]
        list(measure(asked, ready, jobs))


if __name__ == "__main__":
    main()
