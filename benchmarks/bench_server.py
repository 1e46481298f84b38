"""Requests a second that pilots make of a server, mixed, on this machine's loopback.

Simulated pilots (:mod:`benchmarks.pilot_load`) and a driver, in processes of their own, share the
machine with the server and its PostgreSQL, whose commits wait for the disk. Rounds: as fast as it
goes (requests/s); at a given rate with 10^3, 10^5 and 10^6 bundles waiting, while people list and
measure (times of requests, from when they were due); thousands of connected pilots that send
heartbeats or wait for work; and the first two again without ``fsync``, which shows what the disk
costs. The yardstick is ``pgbench`` on the same server: one row changed a transaction.

    python -m benchmarks.bench_server [--pilots 64] [--seconds 5] [--rate 2000] [--held 1]
        [--ready 1000 100000 1000000] [--connected 10000] [--no-fsync] [--store URL]

Budget: 2,000 requests/s, and 99 % of them within 100 ms at that rate, on 2 cores, with 10^3 and
with 10^6 bundles; 10,000 pilots.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import psutil

from benchmarks.pilot_load import Load, mixed
from benchmarks.pool_setting import (
    RUN,
    Filled,
    bundle,
    cpu_of,
    plain_transactions,
    postgres,
)
from pandaflow.grid.http import GridClient
from pandaflow.testing.grid import GridServer

RATE = 2_000.0
P99 = 0.1


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

    def __str__(self) -> str:
        load, n = self.load, self.load.requests
        cpu = ", ".join(f"{who} {1e6 * seconds / n:.0f}" for who, seconds in self.cpu.items())
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

    def round(self, what: str, work: Any) -> Round:
        """Run one with a driver; `work` returns its load."""
        with driving(self.server.url, self.pool.next) as driver:
            time.sleep(1.0)  # it imports
            before = self.cpu(driver)
            load = work()
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

        def work() -> Load:
            with looking(self.server):
                return mixed(self.server.url, asked.pilots, rate, asked.seconds, asked.held)

        return self.round(what, work)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Requests a second of pilots at a server")
    parser.add_argument("--pilots", type=int, default=64)
    parser.add_argument("--held", type=int, default=1, help="bundles that each holds")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--ready", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--no-fsync", action="store_true", help="only this round")
    asked = parser.parse_args()
    with ExitStack() as stack:
        site = Site(stack, fsync=not asked.no_fsync)
        print(f"pgbench: {plain_transactions(site.postgres, 2):,.0f} transactions/s", flush=True)
        site.mixed(asked, 0.0, min(asked.ready))
        for ready in sorted(asked.ready):
            site.mixed(asked, asked.rate, ready)
        rss = psutil.Process(site.server.pid).memory_info().rss
        print(f"server: {rss / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
