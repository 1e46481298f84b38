"""HTTP connections that have only so much patience, and only so many of them."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pandaflow.server.problems import MEDIA, problem
from pandaflow.server.settings import Limits

#: Seconds for which the rest of a body that nobody wants is read and dropped: a connection that
#: is cut at once would lose the answer on its way.
_LINGER = 5.0


class Patient(HttpToolsProtocol):
    """A connection of uvicorn that keeps to limits of connections, heads and idle bodies.

    Bodies that somebody reads are limited there (:class:`..limits.Bodies`).
    """

    limits = Limits()
    _timer: asyncio.TimerHandle | None = None
    _head = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections: come again in a moment")
        else:
            self._arm(self.limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was going on."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; count what belongs to a head."""
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head += len(data)
            if self._timer is None:
                self._arm(self.limits.head_seconds)
        super().data_received(data)
        # What a first part of the body adds to the head, `on_headers_complete` takes off.
        if self._head > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse(431, f"at most {self.limits.head_bytes:,} bytes of headers")

    def on_headers_complete(self) -> None:
        """Begin the request: its head came in time."""
        self._in_head = False
        self._head = 0
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the body is whole."""
        self._in_head = True
        if self.cycle is not None and self.cycle.response_complete:
            self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give a client some time for the rest of a body that nobody read."""
        super().on_response_complete()
        if self.cycle is not None and self.cycle.more_body and not self._in_head:
            self._arm(_LINGER)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, "this is not HTTP as the server understands it")

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._in_head and self._head:
            self._refuse(408, "the request's headers came too slowly")
        else:
            self.transport.abort()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer by a problem and close; the application never hears of it."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_raw(status, detail))
        self.transport.close()


def patient(limits: Limits) -> type[Patient]:
    """Return the class of connections with these limits, for ``uvicorn.Config(http=...)``."""
    return type("PatientWithin", (Patient,), {"limits": limits})


def _raw(status: int, detail: str) -> bytes:
    """Return a whole answer as it travels."""
    body = bytes(problem(status, detail).body)
    again = b"retry-after: 1\r\n" if status == 503 else b""
    head: list[Any] = [
        STATUS_LINE[status],
        b"content-type: %s\r\n" % MEDIA.encode(),
        b"content-length: %d\r\nconnection: close\r\n" % len(body),
        again,
        b"\r\n",
    ]
    return b"".join([*head, body])
