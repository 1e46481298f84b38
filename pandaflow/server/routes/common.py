"""What routes of all themes share: who asks, bodies in, messages out, and words for the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Request
from pydantic import BaseModel
from starlette.responses import Response

from pandaflow.grid.identity import Actor
from pandaflow.grid.places import Problem
from pandaflow.server.problems import MEDIA, Refusal
from pandaflow.server.service import Service

API = "/api/v1"
JSON = "application/json"
#: Bytes of bodies, by kind.
SMALL, MIDDLE, LARGE = 64_000, 2_000_000, 32_000_000
#: No control characters: a database takes no NUL, and a log no line breaks.
_PLAIN = r"^[^\x00-\x1f\x7f]+$"

Content = TypeVar("Content", bound=BaseModel)
RunName = Annotated[
    str, Path(min_length=1, max_length=200, pattern=_PLAIN, description="The run's id.")
]
QueueName = Annotated[
    str, Path(min_length=1, max_length=200, pattern=_PLAIN, description="The queue's name.")
]
PilotName = Annotated[
    str, Path(min_length=1, max_length=200, pattern=_PLAIN, description="The pilot's name.")
]
Digest = Annotated[
    str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the payload, hexadecimal.")
]
BundleNumber = Annotated[int, Path(ge=0, lt=2**31, description="The bundle's number in its run.")]


def service_of(request: Request) -> Service:
    """Return the service of the application."""
    found: Service = request.app.state.service
    return found


async def actor_of(request: Request) -> Actor:
    """Return who makes a request, or refuse it."""
    return await service_of(request).gate.admit(request.scope)


Server = Annotated[Service, Depends(service_of)]
Caller = Annotated[Actor, Depends(actor_of)]


async def read_body(service: Service, request: Request, kind: type[Content], limit: int) -> Content:
    """Return a request's JSON body as a message.

    Raises
    ------
    Refusal
        Too large, too slow, or said not to be JSON (415).
    pydantic.ValidationError
    """
    media = request.headers.get("content-type", JSON)
    if media.partition(";")[0].strip().lower() != JSON:
        raise Refusal(415, f"send the body as {JSON}")
    return kind.model_validate_json(await service.bodies.read(request, limit))


def message(content: BaseModel) -> Response:
    """Return a message as an answer, without what has its default."""
    return Response(content.model_dump_json(exclude_defaults=True), media_type=JSON)


def nothing() -> Response:
    """Return an answer without a body."""
    return Response(status_code=204)


# --- documentation ------------------------------------------------------------------------

_WORDS = {
    400: "Not a whole request",
    401: "Nobody knows who asks",
    403: "Not allowed",
    404: "Not there, or not to be seen by those who ask",
    408: "The body came too slowly",
    409: "Something is in the way",
    413: "The body is too large",
    416: "The file has no such part",
    415: "The body is not of the right kind",
    422: "The body or a parameter is no good; `errors` says where",
    429: "Too many requests; `Retry-After` says when to come again",
    503: "Busy, or without its database; `Retry-After` says when to come again",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of errors, besides those that any request may meet."""
    return {
        status: {
            "description": _WORDS[status],
            "content": {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({401, 403, 422, 429, 503, *statuses})
    }


def reads(kind: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """Return the documentation of a JSON body."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return _body(JSON, {"schema": schema, "example": dict(example)})


def reads_plain(media: str) -> dict[str, Any]:
    """Return the documentation of a body that is text or bytes."""
    return _body(media, {"schema": {"type": "string", "format": "binary"}})


def _body(media: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media: content}}}


#: Statuses that a request with a body may meet.
WITH_BODY = (400, 408, 413, 415)
#: Documented as a component of its own.
PROBLEM = Problem
