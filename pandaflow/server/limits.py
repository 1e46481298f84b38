"""Limits of rates and bodies."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from pandaflow.server.problems import Refusal

#: Bytes of a body for which a client may take one second more.
_SLOWEST = 20_000.0
_HELD = "pandaflow.held"


class TokenBuckets:
    """Rates by key: each has a bucket that fills with time, a request takes one out.

    Parameters
    ----------
    rate : float
        That come back each second; 0: there is no limit.
    burst : float
        That a bucket holds.
    keys : int
        Buckets that are kept; of more, those that were used last.
    """

    def __init__(self, rate: float, burst: float, keys: int = 20_000) -> None:
        self._rate, self._burst, self._keys = rate, max(burst, 1.0), keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> float:
        """Take one; return 0, or the seconds after which there is one again.

        Parameters
        ----------
        key : str
        now : float
            Seconds of a clock that never goes back.
        """
        if not self._rate:
            return 0.0
        left = self._left(key, now)
        self._buckets[key] = (max(left - 1.0, left if left < 1.0 else 0.0), now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return 0.0 if left >= 1.0 else (1.0 - left) / self._rate

    def empty(self, key: str, now: float) -> float:
        """Return 0 if one may be taken, else the seconds until then."""
        left = self._left(key, now) if self._rate else 1.0
        return 0.0 if left >= 1.0 else (1.0 - left) / self._rate

    def _left(self, key: str, now: float) -> float:
        left, then = self._buckets.get(key, (self._burst, now))
        return min(self._burst, left + (now - then) * self._rate)


class Bodies:
    """Reads bodies within limits, and knows how much of them is in memory.

    Parameters
    ----------
    most : int
        Bytes of all bodies together.
    seconds : float
        For a body to arrive.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self.held = 0

    async def read(self, request: Request, limit: int) -> bytes:
        """Return a request's body.

        Parameters
        ----------
        request : Request
        limit : int
            Bytes.

        Raises
        ------
        Refusal
            It is too large (413, before all of it is read), too slow (408), there is no room
            for it now (503), or its length is no number (400).
        starlette.requests.ClientDisconnect
        """
        parts = [part async for part in self.parts(request, limit)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def parts(
        self, request: Request, limit: int, *, keep: bool = True
    ) -> AsyncIterator[bytes]:
        """Yield a request's body as it comes; ``keep``: parts stay in memory to its end.

        Raises
        ------
        Refusal, starlette.requests.ClientDisconnect
            As :meth:`read`.
        """
        self._announced(request, limit)
        deadline = asyncio.get_running_loop().time() + self._seconds
        size, more = 0, True
        while more:
            part, more = await self._next(request, deadline + size / _SLOWEST)
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            self._hold(request.scope, len(part))
            yield part
            if not keep:
                self.release(request.scope)

    async def _next(self, request: Request, deadline: float) -> tuple[bytes, bool]:
        """Return the next part of a body, and whether there is more."""
        try:
            async with asyncio.timeout_at(deadline):
                message = await request.receive()
        except TimeoutError:
            raise Refusal(408, "the body came too slowly") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return message.get("body", b""), message.get("more_body", False)

    def release(self, scope: Scope) -> None:
        """Forget what a request held, at its end."""
        self.held -= scope.pop(_HELD, 0)

    def _hold(self, scope: Scope, size: int) -> None:
        if self.held + size > self._most:
            raise Refusal(503, "the server holds as much as it can: come again", retry=2)
        self.held += size
        scope[_HELD] = scope.get(_HELD, 0) + size

    def _announced(self, request: Request, limit: int) -> None:
        text = request.headers.get("content-length")
        if text is None:
            return
        if not (text.isascii() and text.isdigit()):
            raise Refusal(400, "Content-Length is no number")
        if len(text) > 18 or int(text) > limit:
            raise _too_large(limit)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"at most {limit:,} bytes here: send it in parts, or by an object store")
