"""A run's outcomes as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from pandaflow.core.errors import PandaflowError
from pandaflow.grid.identity import Actor
from pandaflow.grid.messages import BATCH, Outcome
from pandaflow.server.service import LOOK, Service

#: What is not for watching: it may be large, and belongs to the driver.
_LEFT_OUT: Any = {
    "reply": True,
    "results": {"__all__": {"out": True, "err": True, "files": {"__all__": {"data"}}}},
}
#: Seconds of silence after which a comment tells proxies that the stream is alive.
_SILENCE = 15.0


async def stream(
    service: Service, actor: Actor, run: str, after: int, seconds: float, receive: Receive
) -> AsyncIterator[bytes]:
    """Yield outcomes of a run from number `after` on, as they happen.

    Those that its driver has not acknowledged are read in the database; those that it fetches at
    this instance meanwhile are handed on. What it fetched at another one before anybody looked is
    told as ``missed``, by number.
    """
    loop = asyncio.get_running_loop()
    end, spoken = loop.time() + seconds, loop.time()
    yield b": outcomes of the run\n\n"
    with service.watch(run) as queue:
        while True:
            unread = await _unread(service, actor, run)
            # While the database is away, nobody knows what lies between.
            found = [queue.get_nowait() for _ in range(queue.qsize())] if unread is not None else []
            for outcome in _later([*found, *(unread or ())], after):
                if outcome.seq > after + 1:
                    yield as_gap(after + 1, outcome.seq - 1)
                yield as_event(outcome)
                after, spoken = outcome.seq, loop.time()
            if service.runs.closed or loop.time() >= end:
                return
            if loop.time() - spoken > _SILENCE:
                spoken = loop.time()
                yield b": nothing new\n\n"
            try:
                await service.runs.wait(run, min(LOOK, end - loop.time()), receive)
            except ClientDisconnect:
                return


async def _unread(service: Service, actor: Actor, run: str) -> Sequence[Outcome] | None:
    """Return outcomes that wait for the driver; None while the database is away."""
    try:
        # After number 0: acknowledges nothing.
        found = await service.call(service.pool.outcomes, actor, run, 0, BATCH, service.now())
    except PandaflowError:
        return None
    return found.outcomes


def _later(outcomes: Iterable[Outcome], after: int) -> list[Outcome]:
    """Return those after a number, each once and in order."""
    return [one for seq, one in sorted({o.seq: o for o in outcomes}.items()) if seq > after]


def as_gap(first: int, last: int) -> bytes:
    """Return what tells that outcomes were acknowledged before anybody here saw them."""
    return f'event: missed\ndata: {{"first":{first},"last":{last}}}\n\n'.encode()


def as_event(outcome: Outcome) -> bytes:
    """Return an outcome as it travels: JSON has no line breaks that could end it early."""
    data = outcome.model_dump_json(exclude=_LEFT_OUT, exclude_defaults=True)
    return f"id: {outcome.seq}\nevent: {outcome.kind}\ndata: {data}\n\n".encode()
