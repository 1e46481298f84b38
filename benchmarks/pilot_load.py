"""Simulated pilots over HTTP, as cheap as Python can, and how long their requests took.

Each has a connection of its own and does as real ones: asks for bundles, says that they run,
sends heartbeats, says that they have ended. Requests are due at given times, whatever became of
those before; the time of one counts from when it was due, so that a server that stands still for
a while is charged for all that it kept waiting (no "coordinated omission").
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

ACQUIRE, START, BEAT, END = "acquire", "start", "heartbeat", "end"
KINDS = (ACQUIRE, START, BEAT, END)
#: Heartbeats between a bundle's beginning and its end.
BEATS = 2
#: Connections that are opened at a time.
_OPENED = 200
#: Seconds between two looks at what is due.
_TICK = 0.001
#: Seconds for what is still under way at the end.
_PATIENCE = 60.0
#: Requests a second while many pilots arrive.
_ARRIVALS = 2_000.0
#: Seconds over which those that wait for work begin to: real ones do not come back all at once.
_SPREAD = 5.0
_LEASED = re.compile(rb'"id":(\d+),"lease":"([^"]+)"')
_HEAD = (
    b"POST /api/v1/pilot/%b HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: "
)
_HEADS = {kind: _HEAD % (b"acquire" if kind == ACQUIRE else b"update") for kind in KINDS}
_RUNNING = b'{"id":%b,"lease":"%b","seq":%d,"state":"running"}'
_JOB = b'{"position":%d,"code":0,"began":1.0,"ended":2.0,"out":"aGVsbG8K"}'
_ENDED = (
    b'{"id":%b,"lease":"%b","seq":%d,"state":"ended","results":[%b],'
    b'"metrics":{"cpu":1.0,"wall":1.0}}'
)


@dataclass(slots=True)
class Load:
    """What the pilots did.

    Attributes
    ----------
    seconds : dict of str to array
        By kind of request: from when it was due to the end of its answer.
    bundles : int
        That were acquired.
    wall : float
    """

    seconds: dict[str, array[float]] = field(
        default_factory=lambda: {kind: array("d") for kind in KINDS}
    )
    bundles: int = 0
    wall: float = 0.0

    @property
    def requests(self) -> int:
        """That were answered."""
        return sum(map(len, self.seconds.values()))

    def late(self, share: float) -> float:
        """Return the seconds within which a share of the requests were answered."""
        ordered = sorted(one for each in self.seconds.values() for one in each)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def shares(self) -> str:
        """Return how much of each kind there was, in words."""
        parts = (f"{kind} {len(each) / self.requests:.0%}" for kind, each in self.seconds.items())
        return ", ".join(parts)


class Pilot(asyncio.Protocol):
    """A pilot and its connection.

    Parameters
    ----------
    name : str
    load : Load
    held : int
        Bundles that it asks for.
    beats : int
        Heartbeats of a bundle.
    wait : float
        Seconds that the server may keep a question for work.
    answered : callable or None
        Is called with this pilot after each answer.
    """

    def __init__(
        self,
        name: str,
        load: Load,
        *,
        held: int = 1,
        beats: int = BEATS,
        wait: float = 0.0,
        answered: Callable[[Pilot], None] | None = None,
    ) -> None:
        self._load, self._beats, self._answered = load, beats, answered
        ask = b'{"pilot":"%b","queue":"bench","cores":%d,"count":%d,"wait":%g}'
        self._name = name.encode()
        self._ask = ask % (self._name, held, held, wait)
        self._transport: asyncio.Transport | None = None
        self._late: deque[float] = deque()
        self._data, self._since, self._kind, self._seq = b"", 0.0, "", 0
        self._leased: list[tuple[bytes, bytes]] = []
        self.error: str = ""

    @property
    def busy(self) -> bool:
        """Whether it waits for an answer."""
        return bool(self._kind)

    @property
    def holds(self) -> bool:
        """Whether it has bundles."""
        return bool(self._leased)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's are no subclass.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Note an end that came too early."""
        if self._kind and not self.error:
            self.error = f"the connection was lost: {error}"

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def due(self, at: float) -> None:
        """Make its next request, which is due at a time, as soon as the last one is answered."""
        if self._kind:
            self._late.append(at)
        else:
            self._send(at)

    def data_received(self, data: bytes) -> None:
        """Take an answer, when it is whole."""
        self._data = data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        at = data.find(b"content-length: ", 0, end) + 16
        if len(data) < end + int(data[at : data.find(b"\r", at)]):
            return
        self._data = b""
        self._load.seconds[self._kind].append(time.perf_counter() - self._since)
        self._take(data, end)
        self._kind = ""
        if self._late:
            self._send(self._late.popleft())
        if self._answered is not None:
            self._answered(self)

    def _take(self, data: bytes, end: int) -> None:
        if data[9:12] != b"200":
            self.error = f"{self._kind}: {data!r}"
        elif self._kind == ACQUIRE:
            self._leased, self._seq = _LEASED.findall(data, end), 0
            self._load.bundles += len(self._leased)
        elif data.count(b'"accepted":true', end) != len(self._leased):
            self.error = f"{self._kind}: {data!r}"
        elif self._kind == END:
            self._leased = []

    def _send(self, at: float) -> None:
        self._since, self._kind = at, self._next()
        body = self._ask if self._kind == ACQUIRE else self._reports()
        assert self._transport is not None
        self._transport.write(b"%b%d\r\n\r\n%b" % (_HEADS[self._kind], len(body), body))

    def _next(self) -> str:
        if not self._leased:
            return ACQUIRE
        self._seq += 1
        if self._seq == 1:
            return START
        return BEAT if self._seq <= self._beats + 1 else END

    def _reports(self) -> bytes:
        seq = self._seq
        if self._kind == END:
            told = [_ENDED % (id, lease, seq, _JOB % 0) for id, lease in self._leased]
        else:
            told = [_RUNNING % (id, lease, seq) for id, lease in self._leased]
        return b'{"pilot":"%b","reports":[%b]}' % (self._name, b",".join(told))


class Failed(RuntimeError):
    """A pilot was refused, or lost its connection."""


async def connect(url: str, pilots: list[Pilot]) -> None:
    """Open a connection for each pilot."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    loop = asyncio.get_running_loop()
    for begin in range(0, len(pilots), _OPENED):
        some = pilots[begin : begin + _OPENED]
        await asyncio.gather(
            *(loop.create_connection(lambda p=p: p, host, int(port)) for p in some)  # type: ignore[misc]
        )


def check(pilots: list[Pilot]) -> None:
    """Raise what went wrong with any."""
    for pilot in pilots:
        if pilot.error:
            raise Failed(pilot.error)


async def settle(pilots: list[Pilot], patience: float = _PATIENCE) -> None:
    """Wait until all are answered, and end."""
    deadline = time.perf_counter() + patience
    while any(pilot.busy and not pilot.error for pilot in pilots):
        if time.perf_counter() > deadline:
            raise Failed(f"no answer within {patience:g} s")
        await asyncio.sleep(0.01)
    check(pilots)


async def _paced(pilots: list[Pilot], rate: float, seconds: float) -> None:
    """Let requests be due evenly, ``rate`` a second, by turns."""
    began, sent, count = time.perf_counter(), 0, int(rate * seconds)
    while sent < count:
        now = time.perf_counter()
        until = min(count, int((now - began) * rate) + 1)
        for number in range(sent, until):
            pilots[number % len(pilots)].due(began + number / rate)
        sent = until
        check(pilots[:1])
        await asyncio.sleep(_TICK)


async def _flat_out(pilots: list[Pilot], seconds: float) -> None:
    for pilot in pilots:
        pilot.due(time.perf_counter())
    await asyncio.sleep(seconds)


async def _mixed(url: str, number: int, rate: float, seconds: float, held: int) -> Load:
    load, end = Load(), float("inf")

    def again(pilot: Pilot) -> None:
        if not rate and time.perf_counter() < end and not pilot.error:
            pilot.due(time.perf_counter())

    name = f"pilot-{os.getpid()}-{time.monotonic_ns()}"
    pilots = [Pilot(f"{name}-{n}", load, held=held, answered=again) for n in range(number)]
    await connect(url, pilots)
    began = time.perf_counter()
    end = began + seconds
    try:
        await (_paced(pilots, rate, seconds) if rate else _flat_out(pilots, seconds))
        await settle(pilots)
        load.wall = time.perf_counter() - began
    finally:
        for pilot in pilots:
            pilot.close()
    return load


def mixed(url: str, pilots: int, rate: float, seconds: float, held: int = 1) -> Load:
    """Let pilots work: of five requests one acquires, one starts, two beat, one ends.

    Parameters
    ----------
    url : str
        Of the server, ``http://host:port``.
    pilots : int
    rate : float
        Requests a second of all together; 0: as fast as it goes, each its next at once.
    seconds : float
    held : int
        Bundles that each asks for.

    Raises
    ------
    Failed
    """
    return uvloop.run(_mixed(url, pilots, rate, seconds, held))


# --- many that are connected ------------------------------------------------------------


async def _connected(
    url: str, number: int, idle: int, period: float, seconds: float, begin: Callable[[], None]
) -> Load:
    load, waits = Load(), Load()
    name = f"many-{os.getpid()}-{time.monotonic_ns()}"
    # So many heartbeats that none ends meanwhile.
    busy = [Pilot(f"{name}-{n}", load, beats=1_000_000) for n in range(number - idle)]

    def again(pilot: Pilot) -> None:
        if pilot.holds:
            pilot.error = "there was work left for a pilot that was to wait"
        elif time.perf_counter() < end:
            pilot.due(time.perf_counter())

    end = float("inf")
    waiting = [Pilot(f"{name}-w{n}", waits, wait=20.0, answered=again) for n in range(idle)]
    try:
        await connect(url, busy)
        # Each asks for a bundle and starts it: not all at once.
        await _paced(busy, _ARRIVALS, 2 * len(busy) / _ARRIVALS)
        await settle(busy)
        await connect(url, waiting)
        await _paced(waiting, idle / _SPREAD, _SPREAD)
        for each in load.seconds.values():
            del each[:]
        load.bundles = 0
        begin()
        began = time.perf_counter()
        await _paced(busy, len(busy) / period, seconds)
        await settle(busy)
        load.wall, end = time.perf_counter() - began, 0.0
        check(waiting)
    finally:
        for pilot in (*busy, *waiting):
            pilot.close()
    return load


def connected(
    url: str, pilots: int, idle: int, period: float, seconds: float, begin: Callable[[], None]
) -> Load:
    """Let many pilots be connected: some wait for work, the others send heartbeats.

    The pool has as many ready bundles as pilots that do not wait.

    Parameters
    ----------
    url : str
    pilots : int
    idle : int
        Of them that wait for work, by long polls.
    period : float
        Seconds between two heartbeats of a pilot.
    seconds : float
    begin : callable
        Is called when all are connected, and heartbeats begin to count.

    Returns
    -------
    Load
        Of the heartbeats.

    Raises
    ------
    Failed
    """
    return uvloop.run(_connected(url, pilots, idle, period, seconds, begin))
