"""What pilots ask. Their bodies are parsed by hand: these are the requests that come by thousands.

A pilot may touch only what it has a lease of; the pool sees to that.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from pandaflow.grid.messages import (
    Acquire,
    Acquired,
    PilotToken,
    PilotUpdate,
    TokenRequest,
    Updated,
)
from pandaflow.server.problems import Refusal
from pandaflow.server.routes.common import (
    API,
    LARGE,
    MIDDLE,
    SMALL,
    WITH_BODY,
    Caller,
    Digest,
    RunName,
    Server,
    actor_of,
    message,
    nothing,
    read_body,
    reads,
    reads_plain,
    refusals,
    service_of,
)

router = APIRouter(prefix="/pilot", tags=["pilots"])
_ACQUIRE = {"pilot": "cern-0042", "queue": "CERN", "cores": 8, "count": 4, "wait": 20}
_UPDATE = {"pilot": "cern-0042", "reports": [{"id": 7, "lease": "w", "seq": 1, "state": "running"}]}


@router.post(
    "/acquire",
    response_model=Acquired,
    responses=refusals(404, *WITH_BODY),
    openapi_extra=reads(Acquire, _ACQUIRE),
)
async def acquire(request: Request) -> Response:
    """Ask for work: several bundles at once, and with `wait` for as long as there is none."""
    service, actor = service_of(request), await actor_of(request)
    actor.require("pilot")
    question = await read_body(service, request, Acquire, SMALL)
    actor.check_bound(question.pilot, question.queue)
    return message(await service.acquire(actor, question, request.receive))


@router.post(
    "/update",
    response_model=Updated,
    responses=refusals(*WITH_BODY),
    openapi_extra=reads(PilotUpdate, _UPDATE),
)
async def update(request: Request) -> Response:
    """Report on bundles; each report is answered, and may bring commands. Also the heartbeat."""
    service, actor = service_of(request), await actor_of(request)
    actor.require("pilot")
    told = await read_body(service, request, PilotUpdate, LARGE)
    actor.check_bound(told.pilot)
    return message(await service.update(actor, told))


#: What is called most often goes past the router.
HOT = {("POST", f"{API}/pilot/acquire"): acquire, ("POST", f"{API}/pilot/update"): update}


@router.post(
    "/token",
    response_model=PilotToken,
    responses=refusals(404, 409, *WITH_BODY),
    openapi_extra=reads(TokenRequest, {"pilot": "cern-0042", "queue": "CERN"}),
)
async def token(request: Request, service: Server, actor: Caller) -> Response:
    """Get a token of the pilot's own, or renew it: it is good for this pilot and queue only."""
    actor.require("pilot")
    if service.authenticator is None:
        raise Refusal(409, "this server is anonymous: pilots need no tokens here")
    asked = await read_body(service, request, TokenRequest, SMALL)
    pool = service.pool
    return message(
        await service.call(pool.issue_token, actor, asked.pilot, asked.queue, service.now())
    )


@router.get(
    "/payloads/{run}/{sha256}",
    response_class=Response,
    responses={
        200: {
            "description": "The payload",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
        **refusals(404),
    },
)
async def payload(service: Server, actor: Caller, run: RunName, sha256: Digest) -> Response:
    """Fetch what a run's functions need; a pilot keeps it for later bundles."""
    data = await service.call(service.pool.payload, actor, run, sha256)
    return Response(data, media_type="application/octet-stream")


@router.put(
    "/logs/{id}",
    status_code=204,
    response_class=Response,
    responses=refusals(404, *WITH_BODY),
    openapi_extra=reads_plain("text/plain"),
)
async def put_log(
    request: Request,
    service: Server,
    actor: Caller,
    id: int,
    lease: Annotated[str, Query(max_length=200, description="As leased; or in the header.")] = "",
) -> Response:
    """Leave the log of a bundle. The lease goes better by the header `X-Pandaflow-Lease`."""
    actor.require("pilot")
    word = request.headers.get("x-pandaflow-lease", lease)
    if not (0 < len(word) <= 200 and word.isprintable()) or not 0 <= id < 2**63:
        raise Refusal(422, "give the lease of the bundle")
    body = await service.bodies.read(request, MIDDLE)
    # Logs hold what payloads printed: a database takes no NUL.
    text = body.decode("utf-8", "replace").replace("\0", "\ufffd")
    await service.call(service.pool.put_log, actor, id, word, text, service.now())
    return nothing()
