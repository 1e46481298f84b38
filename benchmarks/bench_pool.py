"""Bundles a second through the grid's pool: acquired and ended, with few and with many waiting.

A bundle's life here: a pilot gets it, says that it runs, says that it has ended. Each batch is a
call of ``Pool.acquire`` and one or two of ``Pool.update``, each a durable transaction; the pool
keeps its number of ready bundles meanwhile, by as many new ones, which is measured apart. The
yardstick is the database alone: as many rows set from ready to ended, one UPDATE and commit a
batch, by ids that are known.

    python -m benchmarks.bench_pool [--ready 1000 100000] [--seconds 3] [--batch 250]
        [--store URL] [--profile]

Budget: 10,000 bundles/s acquired and ended on PostgreSQL, the same with 10^3 and 10^6 ready.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.table import cpu_of_tree
from pandaflow.grid.identity import ANYBODY, Forbidden
from pandaflow.grid.messages import (
    BATCH,
    Acquire,
    Bundle,
    CommandJob,
    JobResult,
    Leased,
    Needs,
    PilotUpdate,
    Report,
)
from pandaflow.grid.places import QueueBody
from pandaflow.grid.pool import Pool
from pandaflow.grid.pool.session import Many, writing
from pandaflow.store.database import Database
from pandaflow.testing.postgres import PostgresServer

BUDGET = 10_000
RUN = "bench"
#: Different needs, as of tasks of different sizes.
CLASSES = 8


@dataclass(slots=True)
class Rates:
    """Bundles a second of each step of a life, and of all together."""

    ready: int
    done: int = 0
    submit: float = 0.0
    acquire: float = 0.0
    start: float = 0.0
    end: float = 0.0
    read: float = 0.0
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Acquired and ended."""
        return self.done / (self.acquire + self.end)

    @property
    def whole(self) -> float:
        """Submitted, acquired, started, ended, heard of by the driver and forgotten."""
        return self.done / (self.submit + self.acquire + self.start + self.end + self.read)


class Bench:
    """A pool with a number of ready bundles."""

    def __init__(self, url: str, batch: int, pilots: int) -> None:
        self.database = Database(url, 60.0)
        self.pool = Pool(self.database)
        self.batch, self.pilots = batch, pilots
        self.numbers, self.read, self.names = count(1), 0, count()
        self.pool.put_queue(ANYBODY, "here", QueueBody(), time.time())
        self.pool.open_run(ANYBODY, RUN, time.time())

    def submit(self, n: int) -> None:
        """Put new bundles into the pool."""
        for numbers in _chunks([next(self.numbers) for _ in range(n)], BATCH):
            refused = self.pool.submit(ANYBODY, RUN, [_bundle(i) for i in numbers], time.time())
            assert not refused, refused

    def acquire(self) -> list[tuple[str, tuple[Leased, ...]]]:
        """Let some pilots ask at once for a batch together."""
        share = self.batch // self.pilots
        asks = [
            Acquire(pilot=f"p{i}", queue="here", cores=share, memory=2**40, count=share)
            for i in range(self.pilots)
        ]
        answers = self.pool.acquire([(ANYBODY, ask) for ask in asks], time.time())
        given = []
        for ask, answer in zip(asks, answers, strict=True):
            assert not isinstance(answer, Forbidden), answer
            given.append((ask.pilot, answer.bundles))
        return given

    def report(self, given: list[tuple[str, tuple[Leased, ...]]], *, ended: bool) -> None:
        """Let these pilots report at once."""
        told = [
            PilotUpdate(pilot=pilot, reports=tuple(_report(each, ended) for each in bundles))
            for pilot, bundles in given
        ]
        for answer in self.pool.update([(ANYBODY, each) for each in told], time.time()):
            assert all(verdict.accepted for verdict in answer.verdicts), answer

    def hear(self) -> None:
        """Take the outcomes as a driver, and acknowledge those of before."""
        while True:
            page = self.pool.outcomes(ANYBODY, RUN, self.read, BATCH, time.time()).outcomes
            self.read = page[-1].seq if page else self.read
            if len(page) < BATCH:
                return

    def life(self, ready: int, seconds: float) -> Rates:
        """Measure batches until the time is over."""
        rates = Rates(ready)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            with _clock(rates, "submit"):
                self.submit(self.batch)
            with _processor(rates), _clock(rates, "acquire"):
                given = self.acquire()
            with _clock(rates, "start"):
                self.report(given, ended=False)
            with _processor(rates), _clock(rates, "end"):
                self.report(given, ended=True)
            with _clock(rates, "read"):
                self.hear()
            rates.done += sum(len(bundles) for _, bundles in given)
        return rates

    def raw(self, seconds: float) -> float:
        """Return rows a second of the yardstick."""
        with writing(self.database) as session:
            session.run("CREATE TABLE raw (id INTEGER PRIMARY KEY, state INTEGER, pilot TEXT)")
            insert = Many("INSERT INTO raw VALUES (?, 1, '')", _RAW_INSERT, ("id",))
            session.many(insert, [(i,) for i in range(100_000)])
        update = Many("UPDATE raw SET state = 4, pilot = 'p' WHERE id = ?", _RAW_UPDATE, ("id",))
        done, began = 0, time.perf_counter()
        for ids in _chunks(list(range(100_000)), self.batch):
            with writing(self.database) as session:
                session.many(update, [(i,) for i in ids])
            done += len(ids)
            if time.perf_counter() - began > seconds:
                break
        return done / (time.perf_counter() - began)


_RAW_INSERT = "INSERT INTO raw SELECT id, 1, '' FROM unnest(CAST(%(id)s AS integer[])) AS new(id)"
_RAW_UPDATE = (
    "UPDATE raw SET state = 4, pilot = 'p' FROM unnest(CAST(%(id)s AS integer[])) AS new(id) "
    "WHERE raw.id = new.id"
)


@contextmanager
def _clock(rates: Rates, step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    setattr(rates, step, getattr(rates, step) + time.perf_counter() - began)


@contextmanager
def _processor(rates: Rates) -> Iterator[None]:
    """Add the CPU time of this process and of the database, which a busy machine leaves alike."""
    began = cpu_of_tree()
    yield
    rates.cpu += cpu_of_tree() - began


def _bundle(number: int) -> Bundle:
    return Bundle(
        bundle=number,
        task="select",
        jobs=(number,),
        priority=number % 3,
        needs=Needs(memory=2**30 + number % CLASSES),
        kind="command",
        commands=(CommandJob(position=0, line=f"./select --seed {number} > out.root"),),
    )


def _report(leased: Leased, ended: bool) -> Report:
    if not ended:
        return Report(id=leased.id, lease=leased.lease, seq=1, state="running")
    result = JobResult(position=0, code=0, began=1.0, ended=2.0, metrics={"cpu": 1.0})
    return Report(id=leased.id, lease=leased.lease, seq=2, state="ended", results=(result,))


def _chunks(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


@contextmanager
def database_url(store: str) -> Iterator[str]:
    """Give the URL of an empty database: ``sqlite``, ``postgresql``, or one that is there."""
    with ExitStack() as stack:
        if store == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            yield str(Path(folder) / "pool.db")
        elif store == "postgresql":
            yield stack.enter_context(PostgresServer()).create_database()
        else:
            yield store


def measure(url: str, ready: list[int], seconds: float, batch: int, pilots: int = 10) -> None:
    """Print the rates with so many bundles waiting, from few to many."""
    bench = Bench(url, batch, pilots)
    print(f"| ready | acquired + ended/s | CPU us of it | whole life/s | {' | '.join(_STEPS)} |")
    waiting = 0
    for each in sorted(ready):
        bench.submit(each - waiting)
        waiting = each
        rates = bench.life(each, seconds)
        steps = [f"{rates.done / getattr(rates, step):,.0f}/s" for step in _STEPS]
        cpu = f"{rates.cpu / rates.done * 1e6:.0f}"
        cells = [f"{each:,}", f"{rates.rate:,.0f}", cpu, f"{rates.whole:,.0f}", *steps]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"yardstick: {bench.raw(seconds):,.0f} rows/s")
    bench.database.dispose()


_STEPS = ("submit", "acquire", "start", "end", "read")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Bundles a second through the grid's pool")
    parser.add_argument("--ready", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--store", default="postgresql", help="sqlite, postgresql, or a URL")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    profile = cProfile.Profile()
    with database_url(asked.store) as url:
        if asked.profile:
            profile.enable()
        measure(url, asked.ready, asked.seconds, asked.batch)
        profile.disable()
    if asked.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
