"""Calls of the server: connections, credentials, repetition, errors.

Answers are parsed here; what a newer server adds to them is left alone. Errors become
:class:`ServerRefused` with the server's own words, or :class:`SiteError` where it does not answer.
No token ever goes into a message or a log.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from pandaflow.core.errors import PandaflowError, SiteError
from pandaflow.grid.auth.credentials import Credentials, find_credentials
from pandaflow.grid.auth.errors import IssuerUnavailable
from pandaflow.grid.auth.web import VO_HEADER, is_loopback, safe

API = "/api/v1"
#: Seconds before the first repetition, and the longest pause.
_PAUSES = (0.1, 5.0)
#: The server, or something before it, was not able: nothing was done or it may be done again.
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
#: It was refused before anything was done.
_UNTOUCHED = frozenset({429, 503})
_JSON = {"Content-Type": "application/json"}
#: Characters of somebody else's words that a message repeats at most.
_REPEATED = 1_000

Content = TypeVar("Content", bound=BaseModel)


class ServerRefused(SiteError):
    """The server answered by an error.

    Attributes
    ----------
    status : int
        Of HTTP.
    error : str
        Name of the error that a state store would have raised; empty: none.
    detail : str
        The server's words.
    """

    def __init__(self, status: int, detail: str, error: str = "") -> None:
        super().__init__(f"{detail} ({status})", transient=status in _AGAIN)
        self.status, self.detail, self.error = status, detail, error


class Calls:
    """A client of one server; may be used by several threads. Use it as a context manager.

    Parameters
    ----------
    url : str
        Of the server, without ``/api``: ``https://``, or ``http://`` on this machine.
    credentials : Credentials, optional
        Default: what ``pandaflow login`` or the environment has for this server.
    ca : str or Path, optional
        Certificates that the server's is checked with, PEM; default: the system's.
    timeout : float
        Seconds for an answer, besides those for which a question may wait.
    vo : str
        Virtual organisation to act for; empty: the only one.
    retries : int
        Times that a call is repeated which may be, after pauses that grow.

    Raises
    ------
    SiteError
        The address is no good, or the certificates are.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials | None = None,
        ca: str | Path | None = None,
        timeout: float = 30.0,
        vo: str = "",
        retries: int = 4,
    ) -> None:
        try:
            self.url = safe(url.rstrip("/"))
            self._credentials = credentials or find_credentials(self.url)
        except PandaflowError as error:
            raise SiteError(str(error)) from error
        self._timeout, self._vo, self._retries = timeout, vo, retries
        self._http = httpx.Client(
            base_url=f"{self.url}{API}",
            verify=_trust(self.url, ca),
            # Proxies of the environment are for other machines.
            trust_env=not is_loopback(urlsplit(self.url).hostname or ""),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=8),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections. May be called twice."""
        self._http.close()

    # --- calls ------------------------------------------------------------------------------

    def message(self, kind: type[Content], method: str, path: str, **more: Any) -> Content:
        """Make a call; return its answer as a message."""
        return parse(kind, self.call(method, path, **more).content)

    def rows(self, path: str, **more: Any) -> list[dict[str, Any]]:
        """Return a list of JSON objects."""
        return [dict(row) for row in self.json("GET", path, **more)]

    def json(self, method: str, path: str, **more: Any) -> Any:
        """Make a call; return its answer as JSON says."""
        try:
            return self.call(method, path, **more).json()
        except ValueError as error:
            raise SiteError(f"{self.url} does not answer as a PandaFlow server") from error

    def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        repeat: bool | None = None,
        missing: bool = False,
        **more: Any,
    ) -> httpx.Response:
        """Make a call; repeat it after what may pass, if it may be made twice.

        ``repeat`` says whether it may be; None: as HTTP says of its method. ``wait``: seconds
        for which the server may think. ``missing``: 404 is an answer, too.

        Raises
        ------
        ServerRefused
        SiteError
            It does not answer, or there are no credentials.
        """
        may = method in ("GET", "PUT", "DELETE") if repeat is None else repeat
        timeout = httpx.Timeout(self._timeout, read=self._timeout + wait)
        for tried in range(self._retries + 1):
            pause: float | None = None
            try:
                answer = self._http.request(
                    method, path, headers=self._headers(headers or {}), timeout=timeout, **more
                )
            except httpx.TransportError as error:
                failure = _unreachable(self.url, error)
                again = may or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            else:
                if answer.is_success or (missing and answer.status_code == 404):
                    return answer
                failure, pause = _refusal(answer), _retry_after(answer)
                again = answer.status_code in (_AGAIN if may else _UNTOUCHED)
            if not again or tried == self._retries:
                raise failure
            time.sleep(_pause(tried, pause))
        raise AssertionError("unreachable")

    @contextmanager
    def stream(self, path: str, silence: float = 30.0, **more: Any) -> Iterator[httpx.Response]:
        """Give the answer to a GET whose body is read bit by bit; not repeated.

        Parameters
        ----------
        path : str
        silence : float
            Seconds, besides the usual, for which nothing may come.

        Raises
        ------
        ServerRefused
        SiteError
            Also when the stream breaks.
        """
        timeout = httpx.Timeout(self._timeout, read=self._timeout + silence)
        more["headers"] = self._headers(more.get("headers", {}))
        try:
            with self._http.stream("GET", path, timeout=timeout, **more) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _refusal(answer)
                yield answer
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        try:
            shown = self._credentials.header()
        except PandaflowError as error:
            passing = isinstance(error, IssuerUnavailable)
            raise SiteError(str(error), transient=passing) from error
        own = {VO_HEADER: self._vo} if self._vo else {}
        return {**shown, **own, **more}


def _trust(url: str, ca: str | Path | None) -> ssl.SSLContext | bool:
    if not url.startswith("https:"):
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise SiteError(f"{ca} cannot be used to check the server: {error}") from error


def word(name: str) -> str:
    """Return a name as one step of a path.

    Raises
    ------
    SiteError
        It could be taken for several, or for a way up.
    """
    if not name or "/" in name or name in (".", ".."):
        raise SiteError(f"{name!r} cannot be part of an address: leave out slashes")
    return quote(name, safe="")


def sent(body: BaseModel) -> dict[str, Any]:
    """Return a message as the body of a call."""
    return {"content": body.model_dump_json(exclude_defaults=True), "headers": _JSON}


def parse(kind: type[Content], data: bytes) -> Content:
    """Return an answer as a message; what it does not know is left alone.

    Raises
    ------
    SiteError
    """
    try:
        return kind.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = "/".join(map(str, first["loc"]))
        raise SiteError(
            f"the server's answer is no {kind.__name__} ({where}: {first['msg']}): is it a "
            "PandaFlow server of this version?"
        ) from None


def _pause(tried: int, asked: float | None) -> float:
    """Return seconds until the next try: never all at once, and not before the server said."""
    longest = min(_PAUSES[1], _PAUSES[0] * 3.0**tried)
    return (asked or 0.0) + random.uniform(0.5, 1.0) * longest


def _retry_after(answer: httpx.Response) -> float | None:
    text = str(answer.headers.get("retry-after", ""))
    return min(float(text), 60.0) if text.isascii() and text.isdigit() and len(text) < 6 else None


def _refusal(answer: httpx.Response) -> ServerRefused:
    """Return what a server's error says."""
    status = answer.status_code
    try:
        told = answer.json()
    except ValueError:
        told = None
    detail = told.get("detail") or told.get("title") if isinstance(told, dict) else None
    words = "".join(c if c.isprintable() else " " for c in str(detail or answer.reason_phrase))
    error = told.get("error") if isinstance(told, dict) else None
    return ServerRefused(status, words[:_REPEATED], error if isinstance(error, str) else "")


def _unreachable(url: str, error: httpx.HTTPError) -> SiteError:
    said = str(error) or type(error).__name__
    wrong = "certificate" in said.lower()
    remedy = "give its authority's certificate by ca=" if wrong else "is it running?"
    return SiteError(f"{url} does not answer ({said}): {remedy}", transient=not wrong)
