"""Who comes in: identity, rate, and in anonymous mode only programs of this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Scope

from pandaflow.grid.auth.errors import Unauthenticated
from pandaflow.grid.auth.tls import client_chain
from pandaflow.grid.auth.verify import Authenticator
from pandaflow.grid.auth.web import VO_HEADER, is_loopback
from pandaflow.grid.identity import ANYBODY, Actor
from pandaflow.server.limits import TokenBuckets
from pandaflow.server.pilot_tokens import Holder, PilotTokens, check_route, own_token
from pandaflow.server.problems import Refusal

_VO = VO_HEADER.lower().encode()
#: Failed sign-ins from one address: so many at once, then so many a second.
_FAILURES, _FAILURE_RATE = 100.0, 20.0


class Gate:
    """Tells who makes a request, or refuses it.

    Parameters
    ----------
    authenticator : Authenticator or None
        None: anonymous mode.
    rates : TokenBuckets
        Of identities.
    threads : Executor
        In which an issuer is asked.
    clock : callable
        Seconds since the epoch.
    holder : callable, optional
        Tells whose token has a digest, and until when; None: pilots have none of their own.
    """

    def __init__(
        self,
        authenticator: Authenticator | None,
        rates: TokenBuckets,
        threads: Executor,
        clock: Callable[[], float] = time.time,
        holder: Holder | None = None,
    ) -> None:
        self._authenticator, self._rates = authenticator, rates
        self._threads, self._clock = threads, clock
        self._tokens = PilotTokens(authenticator, holder) if authenticator and holder else None
        self._failures = TokenBuckets(_FAILURE_RATE, _FAILURES)

    async def admit(self, scope: Scope) -> Actor:
        """Return who makes a request.

        Raises
        ------
        Unauthenticated, Forbidden, IssuerUnavailable
        Refusal
            Too many requests (429).
        """
        actor = await self._identify(scope)
        wait = self._rates.take(actor.subject, time.monotonic())
        if wait:
            raise Refusal(429, "too many requests of this identity", retry=wait)
        return actor

    async def _identify(self, scope: Scope) -> Actor:
        authorization, origin = _header(scope, b"authorization"), _header(scope, _VO)
        if self._authenticator is None:
            check_near(scope)
            if origin:
                raise Refusal(403, "this server is anonymous and knows no VOs: leave yours out")
            return ANYBODY
        if self._tokens is not None and (token := own_token(authorization)):
            check_route(scope["path"])
            return self._tokens.known(token, self._clock()) or await self._prove(
                scope, self._tokens.prove, token, self._clock()
            )
        chain, judge = client_chain(scope), self._authenticator
        shown = (authorization, origin, chain, self._clock())
        return judge.known(*shown) or await self._prove(scope, judge.authenticate, *shown)

    async def _prove(self, scope: Scope, prove: Callable[..., Actor], *shown: Any) -> Actor:
        """Return who makes a call, in a thread: an issuer or the database may be asked."""
        address = str((scope.get("client") or ("?",))[0])
        wait = self._failures.empty(address, time.monotonic())
        if wait:
            raise Refusal(429, "too many failed sign-ins from this address", retry=wait)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, prove, *shown)
        except Unauthenticated:
            self._failures.take(address, time.monotonic())
            raise


def check_near(scope: Scope) -> None:
    """Refuse what a web page makes a browser on this machine ask of an anonymous server.

    A page of somebody's has another origin, or (by a name that was bound to 127.0.0.1 meanwhile)
    another host.

    Raises
    ------
    Refusal
    """
    if not is_loopback(_host(f"//{_header(scope, b'host') or 'localhost'}")):
        raise Refusal(403, "this server is anonymous: call it by a name of this machine")
    origin = _header(scope, b"origin")
    if origin is not None and not is_loopback(_host(origin)):
        raise Refusal(403, "this server is anonymous: it answers no web pages")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None
