"""What the server says of itself, and hands out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from pandaflow import __version__
from pandaflow.server.metrics import MEDIA
from pandaflow.server.problems import Refusal
from pandaflow.server.routes.common import Caller, Server, refusals

router = APIRouter(tags=["about"])


class Health(BaseModel):
    """The server and its database answer."""

    status: str
    version: str


class Identity(BaseModel):
    """Who asks, as the server sees them."""

    subject: str
    name: str
    vo: str
    roles: list[str]


@router.get("/health", responses={503: refusals()[503]})
async def health(service: Server) -> Health:
    """Tell whether this instance and its database work; for load balancers."""
    await service.call(service.pool.load)
    return Health(status="ok", version=__version__)


@router.get("/whoami", responses=refusals())
async def whoami(actor: Caller) -> Identity:
    """Tell who asks: their VO and what they may do there."""
    return Identity(subject=actor.subject, name=actor.name, vo=actor.vo, roles=sorted(actor.roles))


@router.get("/auth")
async def auth(service: Server) -> dict[str, Any]:
    """Tell where people sign in; for everybody."""
    judge = service.authenticator
    return {"issuers": []} if judge is None else dict(judge.offers())


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Metrics", "content": {MEDIA: {"schema": {"type": "string"}}}},
        **refusals(),
    },
)
async def metrics(service: Server, actor: Caller) -> Response:
    """Give numbers to Prometheus; for operators, as they count all VOs."""
    actor.require("operator")
    load = await service.call(service.pool.load)
    gauges = {f"pool_{name}": float(value) for name, value in load.items()}
    gauges["waiting_pilots"] = float(len(service.work))
    gauges["held_body_bytes"] = float(service.bodies.held)
    counters: dict[str, float] = {}
    for name, gatherer in (("acquires", service.acquires), ("updates", service.updates)):
        gauges[f"{name}_waiting"] = float(gatherer.waiting)
        counters[f"{name}_total"] = float(gatherer.asked)
        counters[f"{name}_batches_total"] = float(gatherer.batches)
    return Response(service.metrics.text(gauges, counters), media_type=MEDIA)


@router.get(
    "/pilot.pyz",
    response_class=Response,
    responses={
        200: {
            "description": "A pilot in one file: python pandaflow-pilot.pyz --server URL ...",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        404: refusals(404)[404],
    },
)
async def pilot_archive(request: Request) -> Response:
    """Hand out the pilot as one file; it holds no secrets."""
    archive: bytes | None = request.app.state.pilot_archive
    if archive is None:
        raise Refusal(404, "this server was installed without the pilot")
    name = 'attachment; filename="pandaflow-pilot.pyz"'
    return Response(archive, media_type="application/zip", headers={"Content-Disposition": name})
