"""Calls to the server: HTTP(S) on connections that are kept, with a token or a certificate.

The token never gets into a message or a URL. Answers are bounded in size; what is cut in the
middle, or is no JSON where JSON is due, counts as a failed call.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import ssl
import threading
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pandaflow_pilot import __version__
from pandaflow_pilot.settings import TOKEN_VARIABLE, Server

_PREFIX = "/api/v1"
#: Bytes of an answer at most.
_ANSWER = 256_000_000
#: Carries a lease where no body does: URLs end up in logs.
LEASE_HEADER = "X-Pandaflow-Lease"
#: Names under which a host may be asked in clear with a token.
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: States worth another try.
_TRANSIENT = frozenset({401, 408, 425, 429, 500, 502, 503, 504})


class ApiError(Exception):
    """A call failed.

    Parameters
    ----------
    message : str
    status : int
        0: there was no answer.
    retry_after : float
        Seconds that the server wants to be left alone.
    """

    def __init__(self, message: str, *, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after

    @property
    def transient(self) -> bool:
        """Whether another try may go well."""
        return self.status == 0 or self.status in _TRANSIENT

    @property
    def refused(self) -> bool:
        """Whether the server has turned this pilot away."""
        return 400 <= self.status < 500 and self.status not in (408, 425, 429)


class TokenSource:
    """The pilot's own token, or else one from a file that may change, or from the environment.

    Attributes
    ----------
    lost : threading.Event
        Set when the server does not take the pilot's own token any more.
    """

    def __init__(self, path: str) -> None:
        self._path, self._seen, self._token = path, (0, 0), ""
        self._own, self.lost = "", threading.Event()
        self._lock = threading.Lock()

    def adopt(self, token: str) -> None:
        """Use a token that the server has made for this pilot."""
        with self._lock:
            self._own = token

    def refused(self, token: str) -> None:
        """Drop the pilot's own token if it was this one; read the file again, even unchanged."""
        with self._lock:
            self._seen = (0, 0)
            if token and token == self._own:
                self._own = ""
                self.lost.set()

    def read(self) -> str:
        """Return the token; empty: there is none.

        Raises
        ------
        ApiError
            Its file cannot be read.
        """
        if self._own:
            return self._own
        if not self._path:
            return os.environ.get(TOKEN_VARIABLE, "").strip()
        with self._lock:
            try:
                stat = os.stat(self._path)
                if (stat.st_mtime_ns, stat.st_ino) != self._seen:
                    with open(self._path, encoding="ascii") as file:
                        self._token = file.read().strip()
                    self._seen = (stat.st_mtime_ns, stat.st_ino)
            except (OSError, UnicodeDecodeError) as error:
                raise ApiError(f"the token cannot be read: {error}") from None
            return self._token


@dataclass(frozen=True)
class _Place:
    """Where connections go: the server, or a proxy before it."""

    secure: bool
    host: str
    port: int
    path: str
    proxy: tuple[str, int] | None


def _place(url: str) -> _Place:
    parts = urllib.parse.urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http(s) URL")
    path = parts.path.rstrip("/")
    secure = parts.scheme == "https"
    return _Place(
        secure=secure,
        host=parts.hostname,
        port=parts.port or (443 if secure else 80),
        path=path if path.endswith(_PREFIX) else path + _PREFIX,
        proxy=_proxy(parts.scheme, parts.hostname),
    )


def _proxy(scheme: str, host: str) -> tuple[str, int] | None:
    found = urllib.request.getproxies().get(scheme)
    if not found or host in _LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    parts = urllib.parse.urlsplit(found if "://" in found else f"http://{found}")
    return (parts.hostname, parts.port or 3128) if parts.hostname else None


def tls_context(server: Server) -> ssl.SSLContext:
    """Return whom to trust, and the client's certificate.

    Raises
    ------
    OSError
        A file cannot be read, or is none.
    """
    context = ssl.create_default_context(cafile=server.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if server.cert:
        context.load_cert_chain(server.cert, server.key or None)
    return context


class Api:
    """The server, for several threads at once.

    Parameters
    ----------
    server : Server
    tokens : TokenSource, optional
        Shared with others; default: one of its own.

    Raises
    ------
    ValueError
        The URL is no good, or a token would travel in clear.
    OSError
        A PEM file is no good.
    """

    def __init__(self, server: Server, tokens: TokenSource | None = None) -> None:
        self._place, self._timeout = _place(server.url), server.timeout
        self._token = tokens or TokenSource(server.token_file)
        self._context = tls_context(server) if self._place.secure else None
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = False
        given = bool(server.token_file) or TOKEN_VARIABLE in os.environ
        if given and not self._place.secure and self._place.host not in _LOOPBACK:
            raise ValueError("a token does not travel in clear: use https")

    def post(
        self, route: str, body: Any, *, wait: float = 0.0, timeout: float | None = None
    ) -> Any:
        """Send JSON, return the JSON that comes back.

        Parameters
        ----------
        route : str
            Behind ``/api/v1``.
        body : object
        wait : float
            Seconds for which the server may hold the call.
        timeout : float, optional
            Seconds without a byte after which it has failed; default: the server's settings.

        Raises
        ------
        ApiError
        """
        data = json.dumps(body, separators=(",", ":")).encode()
        answer = self.call(
            "POST", route, data, {"Content-Type": "application/json"}, wait=wait, timeout=timeout
        )
        try:
            return json.loads(answer)
        except ValueError:
            raise ApiError("the server's answer is no JSON") from None

    def get(self, route: str) -> bytes:
        """Return what lies under a route.

        Raises
        ------
        ApiError
        """
        return self.call("GET", route)

    def put(self, route: str, data: bytes, headers: dict[str, str]) -> None:
        """Send text.

        Raises
        ------
        ApiError
        """
        self.call("PUT", route, data, {"Content-Type": "text/plain", **headers})

    def call(
        self,
        method: str,
        route: str,
        data: bytes = b"",
        more: dict[str, str] | None = None,
        *,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> bytes:
        """Call once, or twice if a kept connection had been closed meanwhile.

        Raises
        ------
        ApiError
        """
        headers = {**self._headers(), **(more or {})}
        while True:
            connection, kept = self._connection((timeout or self._timeout) + wait)
            try:
                return self._exchange(connection, method, route, data, headers)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._drop(connection)
                if kept and isinstance(error, ConnectionError) and not self._closed:
                    continue  # BadStatusLine of a closed connection is a ConnectionError, too
                raise ApiError(f"{type(error).__name__}: {error}") from None

    @property
    def closed(self) -> bool:
        """Whether calls are no more made."""
        return self._closed

    def close(self) -> None:
        """Cut what is under way, and make every further call fail."""
        with self._lock:
            self._closed = True
            connections = [*self._idle, *self._busy]
            self._idle.clear()
        for connection in connections:
            _cut(connection)

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": f"pandaflow-pilot/{__version__}", "Accept": "application/json"}
        token = self._token.read()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        route: str,
        data: bytes,
        headers: dict[str, str],
    ) -> bytes:
        connection.request(method, self._place.path + route, data or None, headers)
        response = connection.getresponse()
        answer = response.read(_ANSWER)
        if response.length or (response.chunked and not response.isclosed() and response.read(1)):
            raise http.client.HTTPException("the server's answer was cut, or is too large")
        self._keep(connection, response.will_close)
        if response.status == 401:
            self._token.refused(headers.get("Authorization", "").partition(" ")[2])
        if response.status >= 300:
            raise _problem(response, answer)
        return answer

    # --- connections ---

    def _connection(self, timeout: float) -> tuple[http.client.HTTPConnection, bool]:
        """Return a connection, and whether it had been kept."""
        with self._lock:
            if self._closed:
                raise ApiError("the pilot ends")
            kept = bool(self._idle)
            connection = self._idle.pop() if kept else self._new()
            self._busy.add(connection)
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection, kept

    def _new(self) -> http.client.HTTPConnection:
        place = self._place
        host, port = place.proxy or (place.host, place.port)
        if self._context is not None:
            secure = http.client.HTTPSConnection(host, port, context=self._context)
            if place.proxy:
                secure.set_tunnel(place.host, place.port)
            return secure
        return http.client.HTTPConnection(host, port)

    def _keep(self, connection: http.client.HTTPConnection, over: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if not over and not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.close()


def _problem(response: http.client.HTTPResponse, answer: bytes) -> ApiError:
    """Return what an answer other than 2xx says."""
    detail = response.reason
    with suppress(ValueError, AttributeError):
        problem = json.loads(answer)
        detail = str(problem.get("detail") or problem.get("title") or detail)
    retry_after = 0.0
    with suppress(ValueError):
        retry_after = float(response.headers.get("Retry-After") or 0.0)
    message = f"{response.status}: {' '.join(detail.split())[:500]}"
    return ApiError(message, status=response.status, retry_after=min(retry_after, 300.0))


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection, also under somebody who waits for its answer."""
    sock = connection.sock
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(2)
    connection.close()


class Pauses:
    """How long to wait before the next try: longer each time, and never quite the same."""

    def __init__(self, first: float = 0.5, longest: float = 30.0) -> None:
        self._first, self._longest, self._tries = first, longest, 0

    def next(self, at_least: float = 0.0) -> float:
        """Return seconds: full jitter, but no less than the server wants."""
        top = min(self._longest, self._first * 2.0**self._tries)
        self._tries = min(self._tries + 1, 20)
        return max(at_least, top * random.uniform(0.5, 1.0))

    def reset(self) -> None:
        """Begin with the shortest again, after a call that went well."""
        self._tries = 0
