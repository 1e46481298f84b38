"""A run's event log as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from pandaflow.core.errors import PandaflowError
from pandaflow.core.status import RUN_TERMINAL
from pandaflow.grid.identity import Actor
from pandaflow.server.service import LOOK, Service

#: Events that are read at once.
_PAGE = 1_000
#: Seconds of silence after which a comment tells proxies that the stream is alive.
_SILENCE = 15.0


async def history(
    service: Service, actor: Actor, run: str, after: int, seconds: float, receive: Receive
) -> AsyncIterator[bytes]:
    """Yield a run's events after a number, until it has ended or for some seconds.

    Each ``id`` is the event's number, so that a browser goes on where it was cut off.
    """
    loop = asyncio.get_running_loop()
    end, spoken = loop.time() + seconds, loop.time()
    yield b": events of the run\n\n"
    while True:
        found, over = await _later(service, actor, run, after)
        for row in found:
            yield _as_event(row)
            after, spoken = row["seq"], loop.time()
        if found and loop.time() < end:
            continue
        if over or service.runs.closed or loop.time() >= end:
            return
        if loop.time() - spoken > _SILENCE:
            spoken = loop.time()
            yield b": nothing new\n\n"
        try:
            await service.runs.wait(run, min(LOOK, end - loop.time()), receive)
        except ClientDisconnect:
            return


async def _later(
    service: Service, actor: Actor, run: str, after: int
) -> tuple[list[dict[str, Any]], bool]:
    """Return later events, and whether the run had ended before they were read."""
    look = service.desk.look
    try:
        whose = await service.at_desk(look, actor, run, "whose")
        found = await service.at_desk(look, actor, run, "events", after, _PAGE)
    except PandaflowError:  # the database is away: later perhaps
        return [], False
    return found, whose["status"] in RUN_TERMINAL


def _as_event(row: dict[str, Any]) -> bytes:
    # JSON has no line breaks that could end it early.
    return f"id: {row['seq']}\nevent: {row['kind']}\ndata: {json.dumps(row)}\n\n".encode()
