"""Public keys of an issuer: fetched when needed, kept for a while, rotated.

A fetch happens when the keys are older than ``FRESH`` seconds, and when a token names a key that
is not among them; in either case at most once in ``PAUSE`` seconds, so that made-up tokens do not
make the server a nuisance to the issuer. An issuer that does not answer may be away for ``KEEP``
seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from pandaflow.grid.auth.errors import IssuerUnavailable
from pandaflow.grid.auth.oauth import discover, endpoint
from pandaflow.grid.auth.web import BadAnswer, UnsafeAddress, get_json

logger = logging.getLogger(__name__)

FRESH = 300.0
PAUSE = 60.0
KEEP = 3_600.0
#: Seconds between attempts as long as there are no keys at all.
_FIRST_PAUSE = 5.0
#: Keys of one issuer that are looked at.
_MOST = 100
_SMALLEST_RSA = 2_048
#: Algorithms that a kind of key is for.
_KINDS = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key.

    Attributes
    ----------
    kid : str
        Its id; empty: it has none.
    kind : str
        ``RSA``, ``EC`` or ``OKP``.
    algorithm : str
        The only one that it is for; empty: all of its kind.
    thumb : str
        Digest of all of it.
    value : object
        For PyJWT.
    """

    kid: str
    kind: str
    algorithm: str
    thumb: str
    value: Any

    def suits(self, algorithm: str) -> bool:
        """Tell whether signatures by an algorithm may be this key's."""
        if self.algorithm:
            return algorithm == self.algorithm
        return algorithm.startswith(_KINDS[self.kind])


@dataclass(frozen=True, slots=True)
class _Fetched:
    keys: tuple[PublicKey, ...] = ()
    at: float = float("-inf")
    thumbs: Mapping[str, PublicKey] = field(default_factory=lambda: MappingProxyType({}))


def fetch_keys(issuer: str) -> tuple[PublicKey, ...]:
    """Ask an issuer for its keys.

    Raises
    ------
    BadAnswer, IssuerUnavailable, UnsafeAddress
    """
    return parse_keys(get_json(endpoint(discover(issuer), "jwks_uri")))


def parse_keys(document: Mapping[str, Any]) -> tuple[PublicKey, ...]:
    """Return the keys of a JWK set (RFC 7517) that are fit to check signatures.

    Raises
    ------
    BadAnswer
        It is no JWK set.
    """
    found = document.get("keys")
    if not isinstance(found, list):
        raise BadAnswer("the answer is no set of keys (RFC 7517)")
    keys = (_parse_key(one) for one in found[:_MOST] if isinstance(one, dict))
    return tuple(key for key in keys if key is not None)


def _parse_key(given: dict[str, Any]) -> PublicKey | None:
    """Return a key; None: a secret, private, too weak, unknown, or not for signatures."""
    kind = given.get("kty")
    if kind not in _KINDS or given.get("use", "sig") != "sig" or "d" in given:
        return None
    try:
        value = jwt.PyJWK(given).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(value, RSAPublicKey) and value.key_size < _SMALLEST_RSA:
        return None
    text = json.dumps(given, sort_keys=True)
    thumb = hashlib.sha256(text.encode()).hexdigest()
    return PublicKey(str(given.get("kid", "")), kind, str(given.get("alg", "")), thumb, value)


class KeySet:
    """The keys of one issuer; may be used by several threads.

    Parameters
    ----------
    issuer : str
        Its address.
    fetch : callable
        Asks it.
    """

    def __init__(
        self, issuer: str, fetch: Callable[[str], tuple[PublicKey, ...]] = fetch_keys
    ) -> None:
        self._issuer, self._fetch = issuer, fetch
        self._lock = threading.Lock()
        self._now = _Fetched()
        self._tried = float("-inf")
        self._trouble = ""

    def holds(self, thumb: str) -> bool:
        """Tell whether a key is still among them."""
        return thumb in self._now.thumbs

    def due(self, now: float) -> bool:
        """Tell whether somebody should call :meth:`refresh`, which takes time."""
        return now - self._now.at > FRESH and self._may_try(now) and not self._lock.locked()

    def refresh(self, now: float) -> None:
        """Fetch the keys if they are old.

        Raises
        ------
        IssuerUnavailable
            There are none, or they are older than ``KEEP`` seconds, and no new ones to be had.
        """
        if now - self._now.at > FRESH:
            # As long as the old ones will do, one caller asks and nobody waits.
            self._ask(now, wait=now - self._now.at > KEEP)
        if now - self._now.at > KEEP:
            raise IssuerUnavailable(
                f"the keys of {self._issuer} cannot be had: {self._trouble}; try again later"
            )

    def find(self, kid: str, algorithm: str, now: float) -> PublicKey | None:
        """Return the key that a token names; None: the issuer has none such.

        Parameters
        ----------
        kid : str
            Empty: the only one that suits the algorithm.
        algorithm : str
        now : float
            Seconds since the epoch.

        Raises
        ------
        IssuerUnavailable
        """
        self.refresh(now)
        found = self._match(kid, algorithm)
        if found is None and self._may_try(now):
            self._ask(now, wait=True)
            found = self._match(kid, algorithm)
        return found

    def _match(self, kid: str, algorithm: str) -> PublicKey | None:
        suits = [key for key in self._now.keys if key.suits(algorithm)]
        if kid:
            return next((key for key in suits if key.kid == kid), None)
        return suits[0] if len(suits) == 1 else None

    def _may_try(self, now: float) -> bool:
        return now - self._tried >= (PAUSE if self._now.keys else _FIRST_PAUSE)

    def _ask(self, now: float, *, wait: bool) -> None:
        if not self._lock.acquire(blocking=wait):
            return
        try:
            if self._may_try(now):  # nobody did while we waited
                self._tried = now
                self._take(now)
        finally:
            self._lock.release()

    def _take(self, now: float) -> None:
        try:
            keys = self._fetch(self._issuer)
        except (BadAnswer, IssuerUnavailable, UnsafeAddress) as error:
            self._trouble = str(error)
            logger.warning("keys of %s: %s", self._issuer, error)
            return
        thumbs = MappingProxyType({key.thumb: key for key in keys})
        self._now = _Fetched(keys, now, thumbs)
