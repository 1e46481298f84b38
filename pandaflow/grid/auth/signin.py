"""Signing in by OIDC's device flow (RFC 8628): this machine shows an address and a code.

A server tells where its people sign in (``GET /api/v1/auth``). The tokens go into a
:class:`~pandaflow.grid.auth.cache.TokenCache`; :class:`SignIn` takes them from there and renews
them. Refresh tokens are good for one use, so that processes renew one after the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from pandaflow.grid.auth import oauth
from pandaflow.grid.auth.cache import SignedIn, TokenCache, server_address
from pandaflow.grid.auth.errors import IssuerUnavailable, SignInFailed, SignInNeeded, plain
from pandaflow.grid.auth.secret import Secret
from pandaflow.grid.auth.web import BadAnswer, Form, get_json

logger = logging.getLogger(__name__)

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
#: Seconds between questions, and what is added when the issuer says that they are too many.
_INTERVAL, _SLOWER = 5.0, 5.0
_LONGEST_WAIT = 1_800.0


class Offer(BaseModel):
    """Where people of a server sign in.

    Attributes
    ----------
    issuer, client_id, audience : str
    scopes : tuple of str
    """

    issuer: str
    client_id: str = Field(min_length=1)
    audience: str = ""
    scopes: tuple[str, ...] = ("openid", "offline_access")


class Offers(BaseModel):
    """A server's answer to ``GET /api/v1/auth``."""

    issuers: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a person is to do.

    Attributes
    ----------
    url : str
        Where to go, with any browser.
    code : str
        What to enter there.
    complete : str
        An address with the code in it, or empty.
    """

    url: str
    code: str
    complete: str


@dataclass(frozen=True, slots=True)
class Device:
    """A sign-in that was begun.

    Attributes
    ----------
    prompt : Prompt
    code : Secret
        What the issuer knows it by.
    client_id, url : str
        The token endpoint, and who asks there.
    interval, lifetime : float
        Seconds.
    """

    prompt: Prompt
    code: Secret
    client_id: str
    url: str
    interval: float
    lifetime: float


def find_offers(server: str, ca: Path | None = None) -> tuple[Offer, ...]:
    """Ask a server where its people sign in.

    Parameters
    ----------
    server : str
    ca : Path, optional
        Certificates that the server's is checked with, PEM; default: the system's.

    Raises
    ------
    BadAnswer, IssuerUnavailable, UnsafeAddress
    """
    answer = get_json(f"{server_address(server)}/api/v1/auth", ca=ca)
    try:
        return Offers.model_validate(answer).issuers
    except ValidationError:
        raise BadAnswer(f"{plain(server)} does not tell where to sign in") from None


def sign_in(
    server: str,
    offer: Offer,
    show: Callable[[Prompt], None],
    cache: TokenCache | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> SignedIn:
    """Sign in at a server, and keep the tokens.

    Parameters
    ----------
    server : str
        Its address.
    offer : Offer
        One of :func:`find_offers`.
    show : callable
        Tells the person what to do.
    cache : TokenCache, optional
    sleep : callable
        Waits between questions.

    Raises
    ------
    SignInFailed
        It was refused, or took too long.
    BadAnswer, IssuerUnavailable, UnsafeAddress, CacheError
    """
    address, kept = server_address(server), cache or TokenCache()
    device = begin(offer)
    show(device.prompt)
    signed = _signed(address, offer, wait(device, sleep))
    with kept.locked(address):
        kept.write(signed)
    return signed


def begin(offer: Offer) -> Device:
    """Ask an issuer for a code.

    Raises
    ------
    SignInFailed, BadAnswer, IssuerUnavailable, UnsafeAddress
    """
    metadata = oauth.discover(offer.issuer)
    url = oauth.endpoint(metadata, "device_authorization_endpoint")
    form = {"scope": " ".join(offer.scopes), **oauth.targets(offer.audience)}
    status, answer = oauth.ask(url, form, offer.client_id)
    if status != 200:
        raise oauth.refusal(url, status, answer)
    texts = [answer.get(name) for name in ("device_code", "user_code", "verification_uri")]
    if not all(isinstance(text, str) and text for text in texts):
        raise BadAnswer(f"{plain(offer.issuer)} gave no code to sign in with")
    # They are shown on a terminal: no escape sequences.
    code, user, address = map(str, texts)
    complete = plain(answer.get("verification_uri_complete") or "", 2_000)
    return Device(
        prompt=Prompt(plain(address, 2_000), plain(user), complete),
        code=Secret(code),
        client_id=offer.client_id,
        url=oauth.endpoint(metadata, "token_endpoint"),
        interval=_seconds(answer.get("interval"), _INTERVAL),
        lifetime=_seconds(answer.get("expires_in"), _LONGEST_WAIT),
    )


def wait(
    device: Device,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> oauth.Tokens:
    """Ask until the person has approved.

    Raises
    ------
    SignInFailed
        They refused, or it took too long.
    BadAnswer
    """
    pause, deadline = device.interval, clock() + device.lifetime
    form: Form = {"grant_type": DEVICE_GRANT, "device_code": device.code}
    while clock() < deadline:
        sleep(pause)
        try:
            return oauth.ask_tokens(device.url, form, device.client_id)
        except IssuerUnavailable as error:
            logger.debug("asked for the token: %s", error)
            pause = min(2 * pause, 60.0)  # RFC 8628, 3.5
        except oauth.Refused as error:
            pause += _more(error)
    raise SignInFailed("the sign-in took too long: run pandaflow login again")


def _more(refused: oauth.Refused) -> float:
    """Return the seconds by which to ask less often.

    Raises
    ------
    SignInFailed
        There is no use in asking on.
    """
    if refused.code == "authorization_pending":
        return 0.0
    if refused.code == "slow_down":
        return _SLOWER
    if refused.code == "access_denied":
        raise SignInFailed("the sign-in was refused in the browser") from None
    # Some issuers have forgotten a code by the time that it expires.
    if refused.code in ("expired_token", "invalid_grant"):
        raise SignInFailed("the sign-in took too long: run pandaflow login again") from None
    raise refused


def sign_out(server: str, cache: TokenCache | None = None) -> bool:
    """Forget the sign-in at a server and, if its issuer can be reached, withdraw it there.

    Returns
    -------
    bool
        Whether there was one.
    """
    address, kept = server_address(server), cache or TokenCache()
    with kept.locked(address):
        signed = kept.read(address)
        kept.remove(address)
    if signed is not None and signed.refresh is not None:
        with suppress(BadAnswer, IssuerUnavailable):
            url = oauth.endpoint(oauth.discover(signed.issuer), "revocation_endpoint")
            form: Form = {"token": signed.refresh, "token_type_hint": "refresh_token"}
            oauth.ask(url, form, signed.client_id)
    return signed is not None


class SignIn:
    """Credentials from a sign-in that ``pandaflow login`` has made.

    Parameters
    ----------
    server : str
    cache : TokenCache, optional
    """

    def __init__(self, server: str, cache: TokenCache | None = None) -> None:
        self._server = server_address(server)
        self._cache = cache or TokenCache()
        self._lock = threading.Lock()
        self._signed: SignedIn | None = None

    def header(self) -> dict[str, str]:
        """Return the header of a call, with a token that is good for a while.

        Raises
        ------
        SignInNeeded
            There is no sign-in, or it has ended.
        IssuerUnavailable
            The token has expired, and the issuer does not answer.
        CacheError
        """
        with self._lock:
            if self._signed is None or not self._signed.lasts(time.time()):
                self._signed = self._renewed()
            return {"Authorization": f"Bearer {self._signed.access.reveal()}"}

    def _renewed(self) -> SignedIn:
        with self._cache.locked(self._server):
            signed = self._cache.read(self._server)  # another process may have been faster
            if signed is None:
                raise SignInNeeded(f"sign in first: pandaflow login {self._server}")
            if signed.lasts(time.time()):
                return signed
            return self._refreshed(signed)

    def _refreshed(self, signed: SignedIn) -> SignedIn:
        try:
            fresh = refresh(signed)
        except (IssuerUnavailable, BadAnswer):
            if time.time() < signed.expires:
                return signed  # it is still good; the next call tries again
            raise
        except SignInFailed as error:
            raise SignInNeeded(
                f"the sign-in has ended ({error}): pandaflow login {self._server}"
            ) from error
        self._cache.write(fresh)
        return fresh


def refresh(signed: SignedIn) -> SignedIn:
    """Spend a refresh token; return the sign-in with what it gave.

    Raises
    ------
    SignInFailed, BadAnswer, IssuerUnavailable
    """
    if signed.refresh is None:
        raise SignInFailed("the issuer gave no token to renew it with")
    url = oauth.endpoint(oauth.discover(signed.issuer), "token_endpoint")
    form: Form = {
        "grant_type": "refresh_token",
        "refresh_token": signed.refresh,
        **oauth.targets(signed.audience),
    }
    tokens = oauth.ask_tokens(url, form, signed.client_id)
    offer = Offer(issuer=signed.issuer, client_id=signed.client_id, audience=signed.audience)
    return _signed(signed.server, offer, tokens, signed.refresh)


def _signed(
    server: str, offer: Offer, tokens: oauth.Tokens, before: Secret | None = None
) -> SignedIn:
    now = time.time()
    return SignedIn(
        server=server,
        issuer=offer.issuer,
        client_id=offer.client_id,
        audience=offer.audience,
        access=tokens.access,
        refresh=tokens.refresh or before,  # not every issuer gives another
        obtained=now,
        expires=now + tokens.lifetime,
    )


def _seconds(given: object, default: float) -> float:
    if isinstance(given, (int, float)) and 0 < given <= _LONGEST_WAIT:
        return float(given)
    return default
