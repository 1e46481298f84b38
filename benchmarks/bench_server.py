"""Requests a second that pilots make of a server, mixed, on this machine's loopback.

Simulated pilots hold one connection each and do as real ones: ask for bundles, say that they
run, send heartbeats, say that they have ended. A driver puts as many new bundles in. Two rounds:
one as fast as it goes (requests/s), one at a given rate (times of requests; those that began
late count from when they should have begun). The generator shares the machine with the server
and its database.

    python -m benchmarks.bench_server [--pilots 64] [--seconds 5] [--rate 2000] [--ready 1000]
        [--store URL]

Budget: 2,000 requests/s, and 99 % of them within 100 ms at that rate, on 2 cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count

import psutil
import uvloop

from benchmarks.bench_pool import database_url
from pandaflow.grid.http import GridClient
from pandaflow.grid.messages import BATCH, Bundle, CommandJob
from pandaflow.grid.places import QueueBody
from pandaflow.testing.grid import GridServer

RUN, QUEUE = "bench", "bench"
#: Heartbeats between a bundle's beginning and its end.
BEATS = 2
#: Bundles that a pilot holds.
HELD = 2
_ACQUIRE, _UPDATE = "/api/v1/pilot/acquire", "/api/v1/pilot/update"


@dataclass(slots=True)
class Load:
    """What the pilots did.

    Attributes
    ----------
    times : list of (str, float)
        Kind and seconds of each request.
    """

    times: list[tuple[str, float]] = field(default_factory=list)
    bundles: int = 0
    wall: float = 0.0

    def late(self, share: float) -> float:
        """Return the seconds within which a share of the requests were answered."""
        ordered = sorted(seconds for _, seconds in self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection:
    """A pilot's connection: a request at a time, as cheap as Python can."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, path: str, body: object) -> dict:
        """Make a request; an answer that is no 200 ends the benchmark."""
        data = json.dumps(body).encode()
        self._writer.write(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (path.encode(), len(data), data)
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        if b" 200 " not in head[:20]:
            raise RuntimeError(f"{path}: {head!r} {answer!r}")
        return json.loads(answer)


class Pilots:
    """Pilots that work for some seconds.

    Parameters
    ----------
    url : str
    number : int
    rate : float
        Requests a second of all together; 0: as fast as it goes.
    """

    def __init__(self, url: str, number: int, rate: float) -> None:
        self._host, _, port = url.removeprefix("http://").rpartition(":")
        self._port, self._number, self._rate = int(port), number, rate
        self.load = Load()

    async def work(self, seconds: float) -> Load:
        """Run all pilots."""
        self._end = time.perf_counter() + seconds
        began = time.perf_counter()
        await asyncio.gather(*(self._pilot(n) for n in range(self._number)))
        self.load.wall = time.perf_counter() - began
        return self.load

    async def _pilot(self, number: int) -> None:
        name = f"pilot-{os.getpid()}-{self._rate:g}-{number}"
        reader, writer = await asyncio.open_connection(self._host, self._port)
        connection, turns = Connection(reader, writer), self._turns(number)
        try:
            async for due in turns:
                body = {"pilot": name, "queue": QUEUE, "cores": HELD, "count": HELD}
                got = (await self._ask(connection, "acquire", body, due))["bundles"]
                self.load.bundles += len(got)
                seq = await self._run(connection, name, got, turns)
                done = [_report(one, seq, "ended") for one in got]
                told = {"pilot": name, "reports": done}
                due = await anext(turns, time.perf_counter())
                answer = await self._ask(connection, "end", told, due)
                assert all(verdict["accepted"] for verdict in answer["verdicts"]), answer
        finally:
            writer.close()

    async def _run(
        self, connection: Connection, name: str, got: list[dict], turns: AsyncIterator[float]
    ) -> int:
        for seq in range(1, BEATS + 2):
            due = await anext(turns, None)
            if due is None:
                return seq
            told = {"pilot": name, "reports": [_report(one, seq, "running") for one in got]}
            await self._ask(connection, "start" if seq == 1 else "heartbeat", told, due)
        return BEATS + 2

    async def _ask(self, connection: Connection, kind: str, body: dict, due: float) -> dict:
        answer = await connection.ask(_ACQUIRE if kind == "acquire" else _UPDATE, body)
        self.load.times.append((kind, time.perf_counter() - due))
        return answer

    async def _turns(self, number: int) -> AsyncIterator[float]:
        """Yield when each of a pilot's requests is due, when it is."""
        pause = self._number / self._rate if self._rate else 0.0
        due = time.perf_counter() + pause * number / self._number
        while (now := time.perf_counter()) < self._end:
            if not pause:
                yield now
                continue
            if due > now:
                await asyncio.sleep(due - now)
            yield due
            due += pause


def _report(leased: dict, seq: int, state: str) -> dict:
    report = {"id": leased["id"], "lease": leased["lease"], "seq": seq, "state": state}
    if state == "ended":
        result = {"position": 0, "code": 0, "began": 1.0, "ended": 2.0, "out": "aGVsbG8K"}
        return {**report, "results": [result], "metrics": {"cpu": 1.0, "wall": 1.0}}
    return report


class Driver:
    """Keeps the pool full, and fetches outcomes."""

    def __init__(self, client: GridClient) -> None:
        self._client, self._numbers, self._after = client, count(1), 0

    def fill(self, bundles: int) -> None:
        """Put bundles into the pool."""
        for begin in range(0, bundles, BATCH):
            batch = [self._bundle() for _ in range(min(BATCH, bundles - begin))]
            assert not self._client.submit(RUN, batch)

    def _bundle(self) -> Bundle:
        number = next(self._numbers)
        job = CommandJob(position=0, line="true")
        return Bundle(bundle=number, task="t", jobs=(number,), kind="command", commands=(job,))

    def fetch(self) -> int:
        """Fetch outcomes; return how many have ended."""
        found = self._client.outcomes(RUN, after=self._after, wait=0.2).outcomes
        self._after = found[-1].seq if found else self._after
        return sum(one.kind == "ended" for one in found)


async def _drive(driver: Driver, over: asyncio.Event) -> None:
    while not over.is_set():
        ended = await asyncio.to_thread(driver.fetch)
        await asyncio.to_thread(driver.fill, ended)


async def round_of(pilots: Pilots, driver: Driver, seconds: float) -> Load:
    """Let pilots and a driver work at once."""
    over = asyncio.Event()
    driving = asyncio.create_task(_drive(driver, over))
    try:
        return await pilots.work(seconds)
    finally:
        over.set()
        await driving


def show(what: str, load: Load, server_cpu: float, own_cpu: float) -> None:
    """Print a round."""
    requests = len(load.times)
    kinds = {kind for kind, _ in load.times}
    shares = ", ".join(
        f"{kind} {sum(one == kind for one, _ in load.times) / requests:.0%}"
        for kind in sorted(kinds)
    )
    print(
        f"{what}: {requests / load.wall:,.0f} requests/s, "
        f"{load.bundles / load.wall:,.0f} bundles/s, "
        f"p50 {1e3 * load.late(0.5):.1f} ms, p99 {1e3 * load.late(0.99):.1f} ms, "
        f"worst {1e3 * load.late(1.0):.0f} ms; CPU a request: server "
        f"{1e6 * server_cpu / requests:.0f} µs, generator {1e6 * own_cpu / requests:.0f} µs "
        f"({shares})",
        flush=True,
    )


def measure(
    server: GridServer, asked: argparse.Namespace, rounds: Sequence[tuple[str, float]]
) -> None:
    """Run the rounds against a server."""
    with server.client(timeout=60.0) as client:
        client.put_queue(QUEUE, QueueBody(site={"cores": 100_000}))
        client.open_run(RUN)
        driver = Driver(client)
        driver.fill(asked.ready)
        for what, rate in rounds:
            before = _cpu(server.pid), _cpu(os.getpid())
            pilots = Pilots(server.url, asked.pilots, rate)
            load = uvloop.run(round_of(pilots, driver, asked.seconds))
            show(what, load, _cpu(server.pid) - before[0], _cpu(os.getpid()) - before[1])


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Requests a second of pilots at a server")
    parser.add_argument("--pilots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=2_000.0)
    parser.add_argument("--ready", type=int, default=1_000)
    parser.add_argument("--store", default="postgresql", help="sqlite, postgresql, or a URL")
    asked = parser.parse_args()
    rounds = [("as fast as it goes", 0.0), (f"at {asked.rate:,.0f}/s", asked.rate)]
    with ExitStack() as stack:
        store = stack.enter_context(database_url(asked.store))
        server = stack.enter_context(GridServer(store, ["--rate", "0"]))
        measure(server, asked, rounds)


if __name__ == "__main__":
    main()
