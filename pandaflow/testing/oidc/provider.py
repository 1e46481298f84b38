"""A running OpenID Connect provider, with people, clients and keys of the test's making."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as make_ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as make_rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from pandaflow.testing.daemons import PATIENCE, Daemons, wait_until
from pandaflow.testing.oidc.environment import node, provider_module

AUDIENCE = "https://pandaflow.test"
#: The public client of ``pandaflow login``.
CLIENT = "pandaflow-cli"
#: The client of pilots; its secret is made for each provider.
PILOTS = "pandaflow-pilots"
SCOPES = "pf.submit pf.pilot"
#: Who there is: subject, and what their tokens tell.
PEOPLE: dict[str, dict[str, Any]] = {
    "alice": {"name": "Alice", "groups": ["/atlas", "/atlas/production"]},
    "bob": {"name": "Bob", "groups": ["/cms"]},
    "carol": {"name": "Carol", "groups": ["/atlas", "/cms"]},
    "mallory": {"name": "Mallory", "groups": []},
}
_SCRIPT = Path(__file__).with_name("op.mjs")


class SigningKey:
    """A key of the provider: tests hold the private half, too.

    Parameters
    ----------
    algorithm : {'RS256', 'ES256'}
    """

    def __init__(self, algorithm: str = "RS256") -> None:
        self.algorithm = algorithm
        self.kid = secrets.token_hex(6)
        self.private: RSAPrivateKey | EllipticCurvePrivateKey = (
            make_rsa(65537, 2048) if algorithm == "RS256" else make_ec(SECP256R1())
        )

    def jwk(self) -> dict[str, Any]:
        """Return the private key as the provider takes it."""
        if isinstance(self.private, RSAPrivateKey):
            found = RSAAlgorithm.to_jwk(self.private, as_dict=True)
        else:
            found = ECAlgorithm.to_jwk(self.private, as_dict=True)
        found.pop("key_ops", None)
        return {**found, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    def sign(self, claims: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> str:
        """Return a token with these claims, whatever they are."""
        head = {"kid": self.kid, "typ": "at+jwt", **(header or {})}
        body = json.dumps(dict(claims)).encode()  # jwt.encode would refuse some
        return jwt.PyJWS().encode(body, self.private, self.algorithm, head)


class OidcProvider:
    """An OpenID Connect provider that lives as long as a ``with`` statement.

    Attributes
    ----------
    issuer : str
        Its address, on this machine.
    secret : str
        Of the client of pilots.
    key : SigningKey
        That it signs with.

    Raises
    ------
    OidcMissing
        There is no Node.js, or the provider cannot be installed.
    """

    def __init__(self) -> None:
        self._argv = [node(), str(_SCRIPT), str(provider_module())]
        self.key = SigningKey()
        self.secret = secrets.token_urlsafe(24)
        self.issuer = ""
        self._daemons: Daemons | None = None
        self._starts = 0
        self._settings: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._daemons = Daemons("pf-oidc-")
        self._settings = self._first_settings()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._daemons is not None:
            self._daemons.close()

    def start(self) -> None:
        """Start it, after :meth:`stop` at the same address; its grants are gone."""
        daemons = self._running
        self._starts += 1
        name = f"op{self._starts}"
        config = daemons.folder / "config.json"
        config.write_text(json.dumps(self._settings))
        env = {"PATH": os.environ.get("PATH", os.defpath), "NODE_NO_WARNINGS": "1"}
        daemons.start(name, [*self._argv, config], env)
        log = daemons.folder / f"{name}.out"
        wait_until(lambda: bool(self._announced(log)), lambda: f"the provider: {_end(log)}")
        self.issuer = self._announced(log)
        self._settings["port"] = int(self.issuer.rpartition(":")[2])

    def stop(self) -> None:
        """End it: nobody answers at its address."""
        self._running.kill(f"op{self._starts}")

    def set(self, **settings: Any) -> None:
        """Change its settings: ``access``, ``device``, ``refresh`` in seconds, ``slow``, ..."""
        self._settings.update(settings)
        self._control("settings", settings)

    def rotate(self, *, keep: bool = False, algorithm: str = "RS256") -> SigningKey:
        """Give it another key; the old one is withdrawn, unless it is to be kept beside.

        Codes and grants are gone; tokens are not, they need nobody but their key.
        """
        old = [self.key.jwk()] if keep else []
        self.key = SigningKey(algorithm)
        self.set(keys=[self.key.jwk(), *old])
        return self.key

    def reset(self) -> None:
        """Take back what tests have changed by :meth:`set` and :meth:`stop`."""
        if not self._running.alive(f"op{self._starts}"):
            self.start()
        self.set(access=600, device=600, refresh=86_400, slow=0, people=PEOPLE)

    def approve(self, code: str, person: str = "alice") -> None:
        """Do what a person does with a browser: sign in and approve a device's code."""
        self._control("approve", {"code": code, "person": person})

    def deny(self, code: str) -> None:
        """Do what a person does who did not start that."""
        self._control("deny", {"code": code})

    def counts(self) -> dict[str, int]:
        """Return how often each path was asked for."""
        found = httpx.get(f"{self.issuer}/test/counts", timeout=PATIENCE).json()
        return {str(path): int(count) for path, count in found.items()}

    def claims(self, person: str = "alice", **changes: Any) -> dict[str, Any]:
        """Return the claims of a good access token; None takes one away."""
        now = int(time.time())
        found = {
            "iss": self.issuer,
            "sub": person,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 600,
            "client_id": CLIENT,
            "wlcg.groups": PEOPLE[person]["groups"],
            **changes,
        }
        return {name: value for name, value in found.items() if value is not None}

    def token(self, scopes: str = "pf.pilot", audience: str = AUDIENCE) -> str:
        """Return a token of the client of pilots, from the provider itself."""
        form = {"grant_type": "client_credentials", "scope": scopes, "resource": audience}
        answer = httpx.post(
            f"{self.issuer}/token", data=form, auth=(PILOTS, self.secret), timeout=PATIENCE
        )
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    @property
    def _running(self) -> Daemons:
        if self._daemons is None:
            raise RuntimeError("this provider was not started: use it in a with statement")
        return self._daemons

    def _control(self, what: str, body: Mapping[str, Any]) -> None:
        answer = httpx.post(f"{self.issuer}/test/{what}", json=dict(body), timeout=PATIENCE)
        if answer.status_code != 200:
            raise RuntimeError(f"{what}: {answer.text}")

    def _announced(self, log: Path) -> str:
        found = re.search(r"^issuer (\S+)$", _end(log), re.M)
        return found[1] if found else ""

    def _first_settings(self) -> dict[str, Any]:
        return {
            "port": 0,
            "audience": AUDIENCE,
            "scopes": SCOPES,
            "clients": [_command_line(), _pilots(self.secret)],
            "people": PEOPLE,
            "keys": [self.key.jwk()],
            "access": 600,
            "device": 600,
            "refresh": 86_400,
        }


def _command_line() -> dict[str, Any]:
    return {
        "client_id": CLIENT,
        "application_type": "native",
        "token_endpoint_auth_method": "none",
        "grant_types": ["urn:ietf:params:oauth:grant-type:device_code", "refresh_token"],
        "response_types": [],
        "redirect_uris": [],
    }


def _pilots(secret: str) -> dict[str, Any]:
    return {
        "client_id": PILOTS,
        "client_secret": secret,
        "token_endpoint_auth_method": "client_secret_basic",
        "grant_types": ["client_credentials"],
        "response_types": [],
        "redirect_uris": [],
    }


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:] if log.exists() else ""
