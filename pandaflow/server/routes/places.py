"""Queues and pilots, as people and the provisioner see and steer them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from pandaflow.grid.places import Demand, Queue, QueueBody
from pandaflow.server.routes.common import (
    SMALL,
    WITH_BODY,
    Caller,
    PilotName,
    QueueName,
    Server,
    message,
    nothing,
    read_body,
    reads,
    refusals,
)

queues = APIRouter(prefix="/queues", tags=["queues"])
pilots = APIRouter(prefix="/pilots", tags=["pilots"])
_QUEUE = {
    "site": {"cores": 64},
    "vos": ["atlas"],
    "heartbeat": 300,
    "tags": ["ssd"],
    "provision": {"max_pilots": 20},
}


@queues.get("", response_model=list[Queue], responses=refusals())
async def list_queues(service: Server, actor: Caller) -> list[Queue]:
    """List queues, with their states and why."""
    return await service.call(service.pool.queues, actor, service.now())


@queues.get("/{name}", response_model=Queue, responses=refusals(404))
async def get_queue(service: Server, actor: Caller, name: QueueName) -> Response:
    """Show a queue."""
    return message(await service.call(service.pool.queue, actor, name, service.now()))


@queues.get("/{name}/demand", response_model=Demand, responses=refusals(404))
async def get_demand(service: Server, actor: Caller, name: QueueName) -> Response:
    """Count the bundles that the queue may run, by what they need: for harvesters."""
    actor.require("operator", "production")
    return message(await service.call(service.pool.demand, actor, name, service.now()))


@queues.put(
    "/{name}",
    response_model=Queue,
    responses=refusals(404, *WITH_BODY),
    openapi_extra=reads(QueueBody, _QUEUE),
)
async def put_queue(request: Request, service: Server, actor: Caller, name: QueueName) -> Response:
    """Make a queue or change it; its state stays."""
    actor.require("operator")
    body = await read_body(service, request, QueueBody, SMALL)
    made = await service.call(service.pool.put_queue, actor, name, body, service.now())
    service.work.ring()
    return message(made)


@queues.delete("/{name}", status_code=204, response_class=Response, responses=refusals(404))
async def delete_queue(service: Server, actor: Caller, name: QueueName) -> Response:
    """Delete a queue; what runs there goes on."""
    actor.require("operator")
    await service.call(service.pool.delete_queue, actor, name, service.now())
    return nothing()


@queues.post("/{name}/close", response_model=Queue, responses=refusals(404))
async def close_queue(
    service: Server,
    actor: Caller,
    name: QueueName,
    reason: Annotated[str, Query(max_length=1_000, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
) -> Response:
    """Give out no more bundles there; what runs goes on."""
    actor.require("operator")
    pool = service.pool
    return message(await service.call(pool.close_queue, actor, name, service.now(), reason))


@queues.post("/{name}/open", response_model=Queue, responses=refusals(404))
async def open_queue(service: Server, actor: Caller, name: QueueName) -> Response:
    """Open a queue that was closed or is held."""
    actor.require("operator")
    opened = await service.call(service.pool.open_queue, actor, name, service.now())
    service.work.ring()
    return message(opened)


@pilots.get("", responses=refusals())
async def list_pilots(
    service: Server,
    actor: Caller,
    queue: Annotated[
        str, Query(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$", description="Only its pilots.")
    ] = "",
) -> list[dict[str, Any]]:
    """List pilots, those that were heard of last first."""
    return await service.call(service.pool.pilots, actor, service.now(), queue)


@pilots.post("/{name}/drain", status_code=204, response_class=Response, responses=refusals(404))
async def drain_pilot(service: Server, actor: Caller, name: PilotName) -> Response:
    """Let a pilot take no more, and end when what it runs has ended."""
    actor.require("operator")
    await service.command(actor, name, "drain")
    return nothing()


@pilots.post("/{name}/stop", status_code=204, response_class=Response, responses=refusals(404))
async def stop_pilot(service: Server, actor: Caller, name: PilotName) -> Response:
    """End a pilot now; what it runs is lost and given to others."""
    actor.require("operator")
    await service.command(actor, name, "stop")
    return nothing()
