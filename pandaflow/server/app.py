"""The ASGI application: routes, errors, the document that describes them, and what wraps it all."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pandaflow import __version__
from pandaflow.core.errors import PandaflowError
from pandaflow.grid.messages import Acquire, Cancellation, PilotUpdate, Submission
from pandaflow.grid.places import QueueBody
from pandaflow.grid.runs.messages import Left, Wish
from pandaflow.server.problems import answer_to
from pandaflow.server.routes import about, pilot, places, pool, runs
from pandaflow.server.routes.common import API, PROBLEM
from pandaflow.server.service import Service

Handler = Callable[[Request], Awaitable[Response]]
_BODIES = (Acquire, Cancellation, Left, PilotUpdate, QueueBody, Submission, Wish, PROBLEM)
_SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "Access token of an issuer that the server trusts (`pandaflow login`).",
    },
    "certificate": {
        "type": "mutualTLS",
        "description": "X.509 certificate or RFC 3820 proxy, where the server takes them.",
    },
}
_ABOUT = """\
Runs that people leave with PandaFlow's server, and its pool of jobs: drivers of runs put bundles
of jobs into it, pilots pull them.

Errors are `application/problem+json` (RFC 9457). `X-Pandaflow-VO: vo` or `vo.role` says for which
VO somebody acts who belongs to several.
"""


def make_app(service: Service, pilot_archive: bytes | None = None) -> Front:
    """Return the application.

    Parameters
    ----------
    service : Service
    pilot_archive : bytes, optional
        The pilot as one file.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="PandaFlow",
        summary="Runs of workflows, and a pool of jobs that pilots pull from",
        description=_ABOUT,
        version=__version__,
        openapi_url=f"{API}/openapi.json",
        docs_url=f"{API}/docs",
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        lifespan=life,
    )
    app.state.service, app.state.pilot_archive = service, pilot_archive
    _add_routes(app)
    for kind in (PandaflowError, RequestValidationError, ValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _explain)
    _describe(app)
    return Front(app, service, pilot.HOT)


def _add_routes(app: FastAPI) -> None:
    api = APIRouter(prefix=API)
    people = (runs.router, places.queues, places.pilots)
    for router in (*people, pool.router, pilot.router, about.router):
        api.include_router(router)
    app.include_router(api)
    # Where load balancers and Prometheus look by habit.
    for path, route in (("/health", about.health), ("/metrics", about.metrics)):
        app.add_api_route(path, route, response_model=None, include_in_schema=False)


async def _explain(request: Request, error: Exception) -> Response:
    return answer_to(error, request.url.path)


def _describe(app: FastAPI) -> None:
    """Add what FastAPI cannot see: bodies that are parsed by hand, and who may call."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in _BODIES], ref_template="#/components/schemas/{model}"
    )
    components = document.setdefault("components", {})
    known = components.setdefault("schemas", {})
    for name, schema in schemas["$defs"].items():
        known.setdefault(name, schema)
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    components["securitySchemes"] = _SECURITY
    document["security"] = [{"bearer": []}, {"certificate": []}, {}]
    return document


class Front:
    """What every request passes first: counts it, guards the server against surprises.

    The routes that pilots call by thousands are called from here: the router and the layers
    around it would cost more than they do.

    Parameters
    ----------
    app : FastAPI
    service : Service
    hot : mapping of (str, str) to callable
        Routes by method and path.
    """

    def __init__(
        self, app: FastAPI, service: Service, hot: Mapping[tuple[str, str], Handler]
    ) -> None:
        self.app, self.service, self._hot = app, service, hot
        self._inner: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the life of the application."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        began, answer = time.perf_counter(), _Answer(send)
        hot = self._hot.get((scope["method"], scope["path"]))
        try:
            if hot is None:
                await self._inner(scope, receive, answer)
            else:
                await self._serve(hot, scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - the edge: a server goes on, whatever it was
            await self._surprise(error, scope, receive, answer)
        finally:
            self.service.bodies.release(scope)
            route = scope["path"] if hot else _route(scope)
            self.service.metrics.served(
                scope["method"], route, answer.status, time.perf_counter() - began
            )

    async def _serve(self, hot: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self.app
        try:
            response = await hot(Request(scope, receive))
        except Exception as error:  # noqa: BLE001 - the edge: each becomes an answer
            response = answer_to(error, scope["path"])
        await response(scope, receive, send)

    async def _surprise(
        self, error: Exception, scope: Scope, receive: Receive, answer: _Answer
    ) -> None:
        """Answer what no handler did; one that did raises again afterwards."""
        if not answer.status:
            await answer_to(error, scope["path"])(scope, receive, answer)


class _Answer:
    """Sends on what is answered, with headers that all answers have; notes the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self._send(message)


def _route(scope: Scope) -> str:
    """Return the pattern of a request's path; whoever makes up addresses makes no new ones."""
    return str(getattr(scope.get("route"), "path", "none"))
