"""Errors as ``application/problem+json`` (RFC 9457): which status, and what is said.

No answer holds what was sent (it may hold a lease) nor a traceback.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from pandaflow.core.errors import (
    NotInRun,
    PandaflowError,
    RunNotFound,
    StoreError,
    StoreUnavailable,
    WorkflowError,
)
from pandaflow.grid.auth.errors import IssuerUnavailable, Unauthenticated
from pandaflow.grid.identity import Forbidden
from pandaflow.grid.pool import NotThere

MEDIA = "application/problem+json"
#: Seconds after which to come again when the database or an issuer is away.
RETRY = 2
#: Mistakes of one body that are told.
_TOLD = 20
_log = logging.getLogger(__name__)


class Refusal(PandaflowError):
    """A request that is answered by an error.

    Parameters
    ----------
    status : int
    detail : str
    retry : float, optional
        Seconds after which to come again.
    """

    def __init__(self, status: int, detail: str, *, retry: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.retry = status, retry


def problem(
    status: int,
    detail: str = "",
    *,
    path: str = "",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Response:
    """Return an error's answer.

    Parameters
    ----------
    status : int
    detail : str
        What happened, and what to do.
    path : str
        Of the request.
    headers : mapping of str to str, optional
    **more
        Further members of the document.
    """
    body = {
        "type": "about:blank",
        "title": title(status),
        "status": status,
        "detail": detail,
        "instance": path,
        **more,
    }
    text = json.dumps({name: value for name, value in body.items() if value != ""})
    return Response(text, status, headers, media_type=MEDIA)


def title(status: int) -> str:
    """Return the phrase of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def answer_to(error: BaseException, path: str = "") -> Response:
    """Return the answer that an error makes; what nobody foresaw is logged and answered by 500."""
    if isinstance(error, ValidationError | RequestValidationError):
        return _invalid(error.errors(), path)
    if isinstance(error, HTTPException):
        said = "" if error.detail == title(error.status_code) else str(error.detail)
        said = said or _SAID.get(error.status_code, "")
        return problem(error.status_code, said, path=path, headers=error.headers)
    if isinstance(error, ClientDisconnect):
        return problem(400, "the client went away before its request was whole", path=path)
    known = _known(error, path)
    return known if known is not None else _unforeseen(error, path)


_SAID = {
    404: "there is no such address; /api/v1/docs lists all",
    405: "the address is right, the method is not",
}


def _known(error: BaseException, path: str) -> Response | None:
    """Return the answer to an error of ours."""
    detail = " ".join(str(error).split())
    if isinstance(error, Refusal):
        return problem(error.status, detail, path=path, headers=retry_after(error.retry))
    if isinstance(error, Unauthenticated):
        return problem(401, detail, path=path, headers={"WWW-Authenticate": error.challenge})
    if isinstance(error, StoreUnavailable | IssuerUnavailable):
        return problem(503, _without_place(error), path=path, headers=retry_after(RETRY))
    if _out_of_range(error):
        return problem(422, "a number or a text is out of the database's range", path=path)
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return problem(status, detail, path=path, error=kind.__name__)
    return None


def _out_of_range(error: BaseException) -> bool:
    """Tell whether a database refused a value: an integer of 65 bits, a NUL in a text."""
    causes = (error, error.__cause__, getattr(error.__cause__, "orig", None))
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    return isinstance(error, OverflowError) or (
        isinstance(error, StoreError) and "DataError" in kinds
    )


_STATUS: Sequence[tuple[type[BaseException], int]] = (
    (Forbidden, 403),
    (NotThere, 404),
    (RunNotFound, 404),
    (NotInRun, 404),
    (WorkflowError, 422),
)


def _without_place(error: BaseException) -> str:
    """Say that something is away, not where the database is."""
    if isinstance(error, IssuerUnavailable):
        return str(error)
    return "the server's database does not answer now: come again in a moment"


def retry_after(seconds: float | None) -> dict[str, str]:
    """Return the header that says when to come again."""
    return {} if seconds is None else {"Retry-After": str(max(1, round(seconds)))}


def _invalid(errors: Sequence[Any], path: str) -> Response:
    """Return 422 with the place of each mistake, and not what was there."""
    told = [
        {"place": _place(one["loc"]), "message": _printable(one["msg"])} for one in errors[:_TOLD]
    ]
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    first = told[0]
    detail = f"{first['place'] or 'the body'}: {first['message']}{more}"
    return problem(422, detail, path=path, errors=told)


def _place(loc: Sequence[int | str]) -> str:
    return "/".join(_printable(str(step))[:200] for step in loc)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:1_000]


def _unforeseen(error: BaseException, path: str) -> Response:
    """Log what nobody foresaw under a word by which the operator finds it again."""
    word = secrets.token_hex(4)
    _log.error("request to %r failed (%s)", path, word, exc_info=error)
    whose = "its database" if isinstance(error, StoreError) else "it"
    detail = f"the server failed, {whose} or the code; its operator finds why under {word}"
    return problem(500, detail, path=path, reference=word)
