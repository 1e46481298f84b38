"""The pool, as drivers use it for the bundles of their runs and people look at it."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from pandaflow.grid.messages import BATCH, PAYLOAD_BYTES, Cancellation, Outcomes, Submission
from pandaflow.server.events import stream
from pandaflow.server.problems import Refusal
from pandaflow.server.routes.common import (
    LARGE,
    MIDDLE,
    WITH_BODY,
    BundleNumber,
    Caller,
    Digest,
    RunName,
    Server,
    message,
    nothing,
    read_body,
    reads,
    reads_plain,
    refusals,
)

router = APIRouter(prefix="/pool", tags=["pool"])
_SUBMISSION = {
    "bundles": [
        {
            "bundle": 1,
            "task": "hello",
            "jobs": [0],
            "kind": "command",
            "commands": [{"position": 0, "line": "echo hello"}],
        }
    ]
}
State = Literal["ready", "sent", "running", "ended", "lost", "cancelled"]


class Refused(BaseModel):
    """Bundles that the pool does not take, and why."""

    refused: dict[int, str] = Field(default_factory=dict)


class Cancelled(BaseModel):
    """How many bundles were cancelled."""

    cancelled: int


class Asked(BaseModel):
    """Whether a pilot was asked."""

    asked: bool


@router.get("", responses=refusals())
async def runs(service: Server, actor: Caller) -> list[dict[str, Any]]:
    """List runs that have something in the pool."""
    return await service.call(service.pool.runs, actor)


@router.put("/{run}", status_code=204, response_class=Response, responses=refusals())
async def open_run(
    service: Server,
    actor: Caller,
    run: RunName,
    owner: Annotated[str, Query(max_length=500, description="Whose it is, if not yours.")] = "",
) -> Response:
    """Make a run known to the pool; it belongs to whoever says so first, or to its owner.

    Another owner may be named by the roles `production` and `operator`.
    """
    actor.require("user", "production", "operator")
    await service.call(service.pool.open_run, actor, run, service.now(), owner)
    return nothing()


@router.delete("/{run}", status_code=204, response_class=Response, responses=refusals(404))
async def forget_run(service: Server, actor: Caller, run: RunName) -> Response:
    """Cancel what a run has in the pool, and forget it."""
    await service.call(service.pool.forget_run, actor, run, service.now())
    return nothing()


@router.put(
    "/{run}/payloads/{sha256}",
    status_code=204,
    response_class=Response,
    responses=refusals(404, *WITH_BODY),
    openapi_extra=reads_plain("application/octet-stream"),
)
async def put_payload(
    request: Request, service: Server, actor: Caller, run: RunName, sha256: Digest
) -> Response:
    """Leave what a run's functions need, once for all its bundles."""
    data = await service.bodies.read(request, PAYLOAD_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Refusal(422, "the body's SHA-256 is not the one in the address")
    await service.call(service.pool.put_payload, actor, run, sha256, data, service.now())
    return nothing()


@router.post(
    "/{run}/bundles",
    response_model=Refused,
    responses=refusals(404, *WITH_BODY),
    openapi_extra=reads(Submission, _SUBMISSION),
)
async def submit(request: Request, service: Server, actor: Caller, run: RunName) -> Response:
    """Put bundles into the pool; those that are there already stay as they are."""
    body = await read_body(service, request, Submission, LARGE)
    return _json(Refused(refused=await service.submit(actor, run, body.bundles)))


@router.post(
    "/{run}/cancel",
    response_model=Cancelled,
    responses=refusals(404, *WITH_BODY),
    openapi_extra=reads(Cancellation, {"bundles": [1]}),
)
async def cancel(request: Request, service: Server, actor: Caller, run: RunName) -> Response:
    """Cancel bundles; pilots that hold them hear it with their next report."""
    body = await read_body(service, request, Cancellation, MIDDLE)
    return _json(Cancelled(cancelled=await service.cancel(actor, run, body.bundles)))


@router.get("/{run}/outcomes", response_model=Outcomes, responses=refusals(404))
async def outcomes(
    request: Request,
    service: Server,
    actor: Caller,
    run: RunName,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Acknowledges those up to it.")] = 0,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for some.")] = 0.0,
    limit: Annotated[int, Query(ge=1, le=BATCH)] = BATCH,
) -> Response:
    """Fetch what happened since outcome number `after`, for the run's driver alone."""
    found = await service.outcomes(actor, run, after, limit, wait, request.receive)
    return message(found)


@router.get(
    "/{run}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Outcomes as they happen: `event` is their kind, `id` their number",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **refusals(404),
    },
)
async def events(
    request: Request,
    service: Server,
    actor: Caller,
    run: RunName,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Only later ones.")] = 0,
    seconds: Annotated[float, Query(ge=0, le=86_400, description="Of the stream.")] = 3_600.0,
) -> Response:
    """Watch a run by server-sent events; acknowledges nothing."""
    last = request.headers.get("last-event-id", "")
    begin = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else after
    await service.call(service.pool.bundles, actor, run, None, 1)  # may they see it?
    body = stream(service, actor, run, begin, seconds, request.receive)
    return StreamingResponse(body, media_type="text/event-stream")


@router.get("/{run}/bundles", responses=refusals(404))
async def bundles(
    service: Server,
    actor: Caller,
    run: RunName,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=1_000_000)] = 1_000,
) -> list[dict[str, Any]]:
    """List a run's bundles in the pool, by number."""
    return await service.call(service.pool.bundles, actor, run, state, limit)


@router.get(
    "/{run}/bundles/{bundle}/log",
    response_class=Response,
    responses={
        200: {"description": "The log", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **refusals(404),
    },
)
async def log(service: Server, actor: Caller, run: RunName, bundle: BundleNumber) -> Response:
    """Read what there is of a bundle's log."""
    text = await service.call(service.pool.log, actor, run, bundle)
    return Response(text, media_type="text/plain; charset=utf-8")


@router.post("/{run}/bundles/{bundle}/tail", responses=refusals(404))
async def tail(service: Server, actor: Caller, run: RunName, bundle: BundleNumber) -> Asked:
    """Ask for the end of a running bundle's log: it is there after the pilot's next report."""
    return Asked(asked=await service.call(service.pool.ask_tail, actor, run, bundle))


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(), media_type="application/json")
