"""The few routes of Globus Auth that client credentials need; any scope is granted."""

from __future__ import annotations

import base64
import binascii
import secrets
import threading
from typing import Any

from pandaflow.testing.globus.http import Call, Refused

#: Who everybody is.
IDENTITY = "6f1d9f0a-6a3e-4b0c-9d5e-2f1c5b7a4d10"
USERNAME = "tester@pandaflow.example"
#: Credentials of the one client that may sign in.
CLIENT_ID = "0c6e2b52-9a55-4d0e-8f0b-7d6a3c1e5f21"
CLIENT_SECRET = "not-a-secret"
#: Of the scopes of Globus Compute.
_COMPUTE_SCOPE = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"
_LIFETIME = 172_800


class Tokens:
    """Access tokens that were issued and not revoked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, str] = {}

    def issue(self, client: str = CLIENT_ID) -> str:
        """Return a new access token."""
        token = secrets.token_hex(24)
        with self._lock:
            self._clients[token] = client
        return token

    def issued(self) -> list[str]:
        """Return the access tokens that are valid."""
        with self._lock:
            return list(self._clients)

    def revoke_all(self) -> None:
        """Make every token invalid: the next request with one is answered with 401."""
        with self._lock:
            self._clients.clear()

    def client(self, call: Call) -> str:
        """Return the client that a request comes from; refuse it with 401 without a token."""
        token = call.headers.get("Authorization", "").removeprefix("Bearer ")
        with self._lock:
            client = self._clients.get(token)
        if client is None:
            raise Refused(401, "USER_UNAUTHENTICATED", "no valid access token")
        return client

    def grant(self, call: Call) -> dict[str, Any]:
        """Answer a request for tokens: one for each server that owns some of the scopes."""
        client = _authenticated(call)
        by_server: dict[str, list[str]] = {}
        for scope in str(call.data.get("scope", "openid")).split():
            server = "funcx_service" if _COMPUTE_SCOPE in scope else "auth.globus.org"
            by_server.setdefault(server, []).append(scope)
        first, *others = (self._document(client, *item) for item in by_server.items())
        return first | {"other_tokens": others}

    def _document(self, client: str, server: str, scopes: list[str]) -> dict[str, Any]:
        return {
            "access_token": self.issue(client),
            "scope": " ".join(scopes),
            "resource_server": server,
            "expires_in": _LIFETIME,
            "token_type": "Bearer",
        }


def userinfo() -> dict[str, Any]:
    """Return what OpenID Connect says of everybody."""
    identity = {"sub": IDENTITY, "username": USERNAME}
    about = {"preferred_username": USERNAME, "name": "Tester", "email": USERNAME}
    return {"sub": IDENTITY, **about, "identity_set": [identity]}


def identities() -> dict[str, Any]:
    """Return the one identity there is, as the look-up of identities does."""
    one = {"id": IDENTITY, "username": USERNAME, "name": "Tester", "email": USERNAME}
    return {"identities": [one]}


def _authenticated(call: Call) -> str:
    given = call.headers.get("Authorization", "").removeprefix("Basic ")
    try:
        client, _, secret = base64.b64decode(given).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        client, secret = "", ""
    if (client, secret) != (CLIENT_ID, CLIENT_SECRET):
        raise Refused(401, "invalid_client", "unknown client or wrong secret")
    return client
