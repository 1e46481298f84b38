"""From what a call shows (a bearer token, a client certificate) to who makes it.

Tokens are JWTs (RFC 7519) of an issuer that the policy names, checked as RFC 8725 and RFC 9068
say. What was proved once is remembered by the digest of the token until it expires or its key is
withdrawn, so that most calls cost a digest and a look into a table.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jwt

from pandaflow.grid.auth import x509
from pandaflow.grid.auth.errors import Unauthenticated, plain
from pandaflow.grid.auth.keys import KeySet, PublicKey
from pandaflow.grid.auth.policy import Identity, Issuer, Policy, choose
from pandaflow.grid.identity import Actor

#: Seconds by which clocks may differ.
LEEWAY = 10.0
#: Characters of a token at most.
LONGEST = 16_000
#: Proofs that are remembered.
REMEMBERED = 20_000
_TYPES = frozenset({"", "jwt", "at+jwt"})
_OPTIONS: Any = {
    "enforce_minimum_key_length": True,
    "verify_exp": False,  # by our own clock, below
    "verify_nbf": False,
    "verify_iat": False,
    "require": ["exp", "iss", "aud", "sub"],
}
_AGAIN = "sign in again: pandaflow login"


@dataclass(frozen=True, slots=True)
class _Proof:
    """What was proved, and for how long.

    Attributes
    ----------
    subject, name : str
    roles : dict of str to frozenset of str
        By VO.
    expires : float
        Seconds since the epoch.
    keys : KeySet or None
        Of the issuer; None: it was a certificate.
    thumb : str
        Of the key that signed.
    """

    subject: str
    name: str
    roles: Mapping[str, frozenset[str]]
    expires: float
    keys: KeySet | None = None
    thumb: str = ""

    def stands(self, now: float) -> bool:
        """Tell whether it is still good."""
        return now < self.expires and (self.keys is None or self.keys.holds(self.thumb))


@dataclass(frozen=True, slots=True)
class _Trust:
    """A policy, made ready."""

    policy: Policy
    issuers: Mapping[str, Issuer]
    keys: Mapping[str, KeySet]
    denied: frozenset[str]


class Authenticator:
    """Tells who makes a call; may be used by several threads.

    Parameters
    ----------
    policy : Policy
    """

    def __init__(self, policy: Policy) -> None:
        self._lock = threading.Lock()
        self._proofs: dict[bytes, _Proof] = {}
        self._trust = _prepare(policy, {})

    def replace(self, policy: Policy) -> None:
        """Go on with another policy: it was edited. Keys are kept, proofs are not."""
        with self._lock:
            self._trust = _prepare(policy, self._trust.keys)
            self._proofs = {}

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._trust.policy

    def offers(self) -> dict[str, list[dict[str, Any]]]:
        """Return where people sign in: the answer to ``GET /api/v1/auth``."""
        return self._trust.policy.offers()

    def known(
        self,
        authorization: str | None,
        origin: str | None,
        certificate: Sequence[bytes] | None,
        now: float,
    ) -> Actor | None:
        """Return who makes a call if that is remembered; never waits for anybody.

        None says to call :meth:`authenticate` instead, which may ask an issuer: in a thread.

        Raises
        ------
        Forbidden
            As :meth:`authenticate`.
        """
        token = bearer(authorization)
        proof = self._proofs.get(_key(token, certificate)) if token or certificate else None
        if proof is None or not proof.stands(now) or (proof.keys and proof.keys.due(now)):
            return None
        return _actor(proof, origin)

    def authenticate(
        self,
        authorization: str | None,
        origin: str | None,
        certificate: Sequence[bytes] | None,
        now: float,
    ) -> Actor:
        """Return who makes a call.

        Parameters
        ----------
        authorization : str or None
            Value of that header; it counts before the certificate.
        origin : str or None
            The VO that they act for, ``vo`` or ``vo.role``; None: their only one.
        certificate : sequence of bytes or None
            The chain that TLS has verified, DER, the client's own first.
        now : float
            Seconds since the epoch.

        Raises
        ------
        Unauthenticated
            Says what is wrong, and what to do; never holds the token.
        Forbidden
            They are known, but may not act for that VO, or for any.
        IssuerUnavailable
            The issuer's keys cannot be had: nobody can tell (503).
        """
        token = bearer(authorization)
        if not token and not certificate:
            _refuse_silence(authorization)
        key = _key(token, certificate)
        proof = self._proofs.get(key)
        if proof is not None and proof.keys is not None:
            proof.keys.refresh(now)
        if proof is None or not proof.stands(now):
            trust = self._trust
            proof = _prove_token(trust, token, now) if token else _prove(trust, certificate, now)
            self._remember(trust, key, proof, now)
        return _actor(proof, origin)

    def _remember(self, trust: _Trust, key: bytes, proof: _Proof, now: float) -> None:
        with self._lock:
            if trust is not self._trust:
                return  # proved by a policy that is gone
            if len(self._proofs) >= REMEMBERED:
                self._forget(now)
            self._proofs[key] = proof

    def _forget(self, now: float) -> None:
        """Drop what is no more good; if nothing is, the older half."""
        kept = [item for item in self._proofs.items() if item[1].stands(now)]
        if len(kept) >= REMEMBERED:
            kept = kept[REMEMBERED // 2 :]
        self._proofs = dict(kept)


def _prepare(policy: Policy, keys: Mapping[str, KeySet]) -> _Trust:
    issuers = {one.issuer: one for one in policy.issuers}
    sets = {url: keys.get(url) or KeySet(url) for url in issuers}
    return _Trust(policy, issuers, sets, frozenset(policy.deny.subjects))


def bearer(authorization: str | None) -> str:
    """Return the token of a header ``Authorization``; empty: it shows none."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _refuse_silence(authorization: str | None) -> NoReturn:
    if authorization:
        raise Unauthenticated(
            "this server takes bearer tokens only: 'Authorization: Bearer ...'", "invalid_request"
        )
    raise Unauthenticated(
        "this server needs to know who you are: pandaflow login, or set PANDAFLOW_TOKEN"
    )


def _key(token: str, certificate: Sequence[bytes] | None) -> bytes:
    """Return what a proof is remembered by: no token is kept."""
    if token:
        return hashlib.sha256(b"token" + token.encode("utf-8", "replace")).digest()
    digest = hashlib.sha256(b"certificates")
    for one in certificate or ():
        digest.update(hashlib.sha256(one).digest())
    return digest.digest()


def _actor(proof: _Proof, origin: str | None) -> Actor:
    vo, roles = choose(proof.roles, (origin or "").strip() or None, proof.subject)
    return Actor(proof.subject, proof.name, vo, roles)


def _granted(
    trust: _Trust, who: Identity, expires: float, keys: KeySet | None = None, thumb: str = ""
) -> _Proof:
    if who.subject in trust.denied:
        raise Unauthenticated(
            "this server refuses you by name (its deny list): ask its operator", "invalid_token"
        )
    return _Proof(who.subject, who.name, trust.policy.roles(who), expires, keys, thumb)


# --- tokens -----------------------------------------------------------------------------


def _prove_token(trust: _Trust, token: str, now: float) -> _Proof:
    header, issuer = _first_look(trust, token)
    algorithm = header.get("alg")
    if algorithm not in issuer.algorithms:
        raise _bad(
            f"the token is signed by {plain(algorithm, 20)!r}, which this server does not take: "
            f"its issuer must sign by one of {', '.join(issuer.algorithms)}"
        )
    if str(header.get("typ", "")).lower().removeprefix("application/") not in _TYPES:
        raise _bad(f"the token is of type {plain(header.get('typ'), 40)!r}: use an access token")
    keys = trust.keys[issuer.issuer]
    key = keys.find(str(header.get("kid", "")), algorithm, now)
    if key is None:
        raise _bad(f"no key of {issuer.issuer} fits the token (its key was withdrawn?); {_AGAIN}")
    claims = _claims(token, issuer, key, algorithm)
    expires = _check_times(claims, now)
    return _granted(trust, _identity(claims, issuer), expires, keys, key.thumb)


def _first_look(trust: _Trust, token: str) -> tuple[dict[str, Any], Issuer]:
    """Return the header and the issuer that a token names: nothing is proved yet."""
    if len(token) > LONGEST:
        raise _bad(f"the token is longer than {LONGEST} characters")
    try:
        seen = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _bad("the token is no JWT: use an access token of an issuer of this server") from None
    named = seen["payload"].get("iss")
    issuer = trust.issuers.get(named) if isinstance(named, str) else None
    if issuer is None:
        trusted = ", ".join(trust.issuers) or "nobody"
        raise _bad(
            f"tokens of {plain(named)!r} are not taken here, those of {trusted} are; {_AGAIN}"
        )
    return seen["header"], issuer


def _claims(token: str, issuer: Issuer, key: PublicKey, algorithm: str) -> dict[str, Any]:
    try:
        return jwt.decode(
            token,
            key.value,
            algorithms=[algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            options=_OPTIONS,
        )
    except jwt.InvalidAudienceError:
        wanted = " or ".join(issuer.audience)
        raise _bad(f"the token is meant for somebody else: ask for the audience {wanted}") from None
    except jwt.MissingRequiredClaimError as error:
        raise _bad(f"the token has no claim {plain(error.claim, 40)!r}") from None
    except (jwt.PyJWTError, ValueError, TypeError):
        raise _bad(f"the token's signature is not its issuer's; {_AGAIN}") from None


def _check_times(claims: Mapping[str, Any], now: float) -> float:
    """Return when a token expires."""
    times = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
    for name, value in times.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _bad(f"the token's claim {name!r} is no time")
        if not math.isfinite(value):
            raise _bad(f"the token's claim {name!r} is no time")
    if now >= times["exp"] + LEEWAY:
        raise _bad(f"the token has expired; {_AGAIN}")
    for name in ("nbf", "iat"):
        if now < times.get(name, now) - LEEWAY:
            raise _bad("the token is not valid yet: set the clocks of both machines")
    return float(times["exp"]) + LEEWAY


def _identity(claims: Mapping[str, Any], issuer: Issuer) -> Identity:
    sub = claims["sub"]
    if not isinstance(sub, str) or not 0 < len(sub) <= 255 or not sub.isprintable():
        raise _bad("the token's claim 'sub' is no name")
    client = _first(claims, "client_id", "azp")
    name = _first(claims, "preferred_username", "name", "email") or client or sub
    return Identity(
        subject=f"{issuer.issuer}#{sub}",
        name="".join(c for c in name if c.isprintable())[:200],
        issuer=issuer.name,
        local=sub,
        groups=tuple(g for claim in issuer.groups_claims for g in _words(claims.get(claim))),
        scopes=(*_split(claims.get("scope")), *_words(claims.get("scp"))),
        client=client,
    )


def _first(claims: Mapping[str, Any], *names: str) -> str:
    found = (claims.get(name) for name in names)
    return next((value for value in found if isinstance(value, str) and value), "")


def _words(value: object) -> Iterator[str]:
    if isinstance(value, list):
        yield from (word for word in value if isinstance(word, str))


def _split(value: object) -> Sequence[str]:
    return value.split() if isinstance(value, str) else ()


def _bad(words: str) -> Unauthenticated:
    return Unauthenticated(words, "invalid_token")


# --- certificates -----------------------------------------------------------------------


def _prove(trust: _Trust, certificate: Sequence[bytes] | None, now: float) -> _Proof:
    found = x509.identify(certificate or (), now)
    return _granted(trust, Identity(found.subject, found.name), found.expires)
