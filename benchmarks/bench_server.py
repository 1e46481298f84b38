"""Requests a second that pilots make of a server, mixed, on this machine's loopback.

Simulated pilots (:mod:`benchmarks.pilot_load`) and a driver, in processes of their own, share the
machine with the server and its PostgreSQL, whose commits wait for the disk. Rounds: as fast as it
goes (requests/s); at a given rate with 10^3, 10^5 and 10^6 bundles waiting, while people list and
measure (times of requests, from when they were due); thousands of connected pilots that send
heartbeats or wait for work. With ``--no-fsync`` one sees what the disk costs. The yardstick is
``pgbench`` on the same server: one row changed a transaction.

    python -m benchmarks.bench_server [--pilots 64] [--seconds 5] [--rate 2000] [--held 1]
        [--ready 1000 100000 1000000] [--connected 10000] [--no-fsync] [--no-people]

Budget: 2,000 requests/s, and 99 % of them within 100 ms at that rate, on 2 cores, with 10^3 and
with 10^6 bundles; 10,000 pilots.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.synchronize import Event

import psutil

from benchmarks.pilot_load import Load, connected, mixed
from benchmarks.pool_setting import (
    RUN,
    Filled,
    bundle,
    cpu_of,
    plain_transactions,
    postgres,
)
from benchmarks.table import Row
from pandaflow.grid.http import GridClient
from pandaflow.testing.grid import GridServer

RATE = 2_000.0
P99 = 0.1
#: Seconds between two heartbeats of a connected pilot.
PERIOD = 10.0


# --- the driver -------------------------------------------------------------------------


def drive(url: str, first: int, over: Event) -> None:
    """Fetch outcomes of the run, and put in as many new bundles as have ended."""
    from pandaflow.grid.auth.credentials import Nobody

    after = 0
    with GridClient(url, credentials=Nobody(), timeout=60.0) as client:
        while not over.is_set():
            found = client.outcomes(RUN, after=after, wait=0.5, limit=1000).outcomes
            after = found[-1].seq if found else after
            ended = sum(one.kind == "ended" for one in found)
            if ended:
                told = [bundle(n, priority=n % 3) for n in range(first, first + ended)]
                first += ended
                assert not client.submit(RUN, told)
            over.wait(0.1)


@contextmanager
def driving(url: str, first: int) -> Iterator[int]:
    """Let a driver work in a process of its own; give its id."""
    spawn = mp.get_context("spawn")
    over = spawn.Event()
    process = spawn.Process(target=drive, args=(url, first, over), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        yield process.pid
        assert process.is_alive(), "the driver has failed"
    finally:
        over.set()
        process.join(30)
        process.kill()


@contextmanager
def looking(server: GridServer) -> Iterator[None]:
    """Let people list bundles, queues and pilots, and Prometheus read metrics, each second."""
    over = threading.Event()

    def look() -> None:
        with server.client(timeout=60.0) as client:
            while not over.wait(1.0):
                client.queues()
                client.pilots()
                client.bundle_rows(RUN)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- rounds -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Round:
    """A round: what it was, what pilots did, and CPU seconds by process."""

    what: str
    load: Load
    cpu: dict[str, float]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.load.requests / self.load.wall

    def cost(self, who: str) -> float:
        """Return the CPU microseconds of a request that a process has spent."""
        return 1e6 * self.cpu[who] / self.load.requests

    def __str__(self) -> str:
        load = self.load
        cpu = ", ".join(f"{who} {self.cost(who):.0f}" for who in self.cpu)
        return (
            f"{self.what}: {self.rate:,.0f} requests/s, {load.bundles / load.wall:,.0f} bundles/s, "
            f"p50 {1e3 * load.late(0.5):.1f} ms, p99 {1e3 * load.late(0.99):.1f} ms, "
            f"worst {1e3 * load.late(1.0):.0f} ms; CPU µs a request: {cpu} "
            f"(all together {sum(self.cpu.values()) / load.wall / (os.cpu_count() or 1):.0%} of "
            "the machine)"
        )


class Site:
    """A server with its database, and a pool that is filled."""

    def __init__(self, stack: ExitStack, *, fsync: bool) -> None:
        self.postgres = stack.enter_context(postgres(fsync=fsync))
        self.fsync = fsync
        url = self.postgres.create_database()
        self.pool = Filled(url)
        stack.callback(self.pool.close)
        self.server = stack.enter_context(GridServer(url, ["--rate", "0"]))

    def cpu(self, driver: int) -> dict[str, float]:
        """Return the CPU seconds so far, by process."""
        return {
            "server": cpu_of(self.server.pid),
            "database": cpu_of(self.postgres.pid),
            "pilots": time.process_time(),
            "driver": cpu_of(driver),
        }

    def round(self, what: str, work: Callable[[Callable[[], None]], Load]) -> Round:
        """Run one with a driver; `work` gets what to call when it begins, and returns its load."""
        with driving(self.server.url, self.pool.next) as driver:
            time.sleep(1.0)  # it imports
            before = self.cpu(driver)
            load = work(lambda: before.update(self.cpu(driver)))
            after = self.cpu(driver)
        self.pool.next += 1_000_000
        done = Round(what, load, {who: after[who] - before[who] for who in after})
        print(done, flush=True)
        return done

    def mixed(self, asked: argparse.Namespace, rate: float, ready: int) -> Round:
        """Run a round of pilots that work."""
        filled = self.pool.fill(ready)
        how = f"at {rate:,.0f}/s" if rate else "as fast as it goes"
        sync = "" if self.fsync else ", no fsync"
        what = f"{how}, {ready:,} ready (filled in {filled:.1f} s){sync}"

        def work(_: Callable[[], None]) -> Load:
            with nullcontext() if asked.no_people else looking(self.server):
                return mixed(self.server.url, asked.pilots, rate, asked.seconds, asked.held)

        return self.round(what, work)


def many(stack: ExitStack, asked: argparse.Namespace) -> tuple[Round, float]:
    """Run a round of many connected pilots at a server of their own; return it and the MiB."""
    number = min(asked.connected, _file_limit() - 500)
    idle = number // 5
    site = Site(stack, fsync=not asked.no_fsync)
    before = psutil.Process(site.server.pid).memory_info().rss
    site.pool.fill(number - idle)

    def work(begin: Callable[[], None]) -> Load:
        return connected(site.server.url, number, idle, PERIOD, 2 * asked.seconds, begin)

    what = f"{number:,} pilots connected, {idle:,} of them wait for work, heartbeats"
    done = site.round(what, work)
    rss = psutil.Process(site.server.pid).memory_info().rss
    print(f"server: {rss / 2**20:.0f} MiB, {(rss - before) / number / 1024:.0f} KiB a pilot")
    return done, rss / 2**20


def _file_limit() -> int:
    """Return how many files a process may open; all that may be had."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _asked(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Requests a second of pilots at a server")
    parser.add_argument("--pilots", type=int, default=64)
    parser.add_argument("--held", type=int, default=1, help="bundles that each holds")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--ready", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--connected", type=int, default=10_000, help="pilots; 0: without")
    parser.add_argument("--no-fsync", action="store_true", help="commits do not wait for the disk")
    parser.add_argument("--no-people", action="store_true", help="nobody lists meanwhile")
    return parser.parse_args(words)


def measure(asked: argparse.Namespace) -> tuple[float, list[Round]]:
    """Return pgbench's transactions/s, and the rounds: flat out, then at the rate."""
    with ExitStack() as stack:
        site = Site(stack, fsync=not asked.no_fsync)
        plain = plain_transactions(site.postgres, 2)
        print(f"pgbench: {plain:,.0f} transactions/s, one row changed in each", flush=True)
        rounds = [site.mixed(asked, 0.0, min(asked.ready))]
        return plain, rounds + [site.mixed(asked, asked.rate, n) for n in sorted(asked.ready)]


def rows() -> Iterator[Row]:
    """Lines of the table."""
    asked = _asked([])
    plain, (flat_out, few, *_, most) = measure(asked)
    yield Row(
        "requests/s of 64 pilots, mixed, at a server on PostgreSQL (fsync on), 1,000 ready",
        f"{flat_out.rate:,.0f}/s, {flat_out.cost('server'):.0f} us CPU a request in the server",
        f"pgbench, a row a transaction: {plain:,.0f}/s",
        f"{flat_out.rate / plain:.2f} x",
        f">= {RATE:,.0f}/s",
        flat_out.rate >= RATE,
    )
    for done, ready in ((few, "1,000"), (most, "1,000,000")):
        late = done.load.late(0.99)
        yield Row(
            f"... at {asked.rate:,.0f} requests/s with {ready} ready, people listing: p99",
            f"{1e3 * late:.0f} ms (p50 {1e3 * done.load.late(0.5):.0f} ms)",
            "",
            "",
            f"< {1e3 * P99:.0f} ms",
            late < P99 and done.rate > 0.95 * asked.rate,
        )
    with ExitStack() as stack:
        done, mib = many(stack, asked)
    late = done.load.late(0.99)
    yield Row(
        f"... {asked.connected:,} pilots connected, a heartbeat each {PERIOD:g} s: p99",
        f"{1e3 * late:.0f} ms at {done.rate:,.0f}/s; server {mib:.0f} MiB",
        "",
        "",
        f"< {1e3 * P99:.0f} ms",
        late < P99,
    )


def main() -> None:
    """Run it."""
    asked = _asked()
    measure(asked)
    if asked.connected:
        with ExitStack() as stack:
            many(stack, asked)


if __name__ == "__main__":
    main()
