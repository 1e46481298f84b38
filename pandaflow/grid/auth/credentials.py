"""Where a client's token comes from: the environment, a file, a secret of its own, a sign-in.

:func:`find_credentials` looks for what was made for this server first:

1. ``PANDAFLOW_TOKEN``, or ``PANDAFLOW_TOKEN_FILE``;
2. a client of its own: ``PANDAFLOW_CLIENT_ID`` with ``PANDAFLOW_ISSUER`` and
   ``PANDAFLOW_CLIENT_SECRET`` or ``PANDAFLOW_CLIENT_SECRET_FILE`` (``PANDAFLOW_AUDIENCE`` and
   ``PANDAFLOW_SCOPES`` if its issuer wants them);
3. the sign-in that ``pandaflow login`` has made at this server;
4. the token of this session or batch job, where WLCG's Bearer Token Discovery has it:
   ``BEARER_TOKEN``, ``BEARER_TOKEN_FILE``, ``$XDG_RUNTIME_DIR/bt_u$ID``, ``/tmp/bt_u$ID``.

``PANDAFLOW_VO`` (``vo`` or ``vo.role``) says for which VO they act.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pandaflow.core.errors import PandaflowError
from pandaflow.grid.auth import oauth
from pandaflow.grid.auth.cache import TokenCache, server_address
from pandaflow.grid.auth.errors import IssuerUnavailable, SignInFailed
from pandaflow.grid.auth.secret import Secret
from pandaflow.grid.auth.signin import SignIn
from pandaflow.grid.auth.web import VO_HEADER, BadAnswer


class Credentials(Protocol):
    """Shows a server who calls."""

    def header(self) -> dict[str, str]:
        """Return the headers of the next call; for each call anew, from any thread."""
        ...


class CredentialsError(PandaflowError, ValueError):
    """A variable or a file that should give a token is no good."""


class Nobody:
    """No credentials: fit for anonymous servers only."""

    def header(self) -> dict[str, str]:
        """Return no header."""
        return {}


class BearerToken:
    """A token as it is, until it expires.

    Parameters
    ----------
    token : Secret
    source : str
        Where it is from, for messages.

    Raises
    ------
    CredentialsError
        It cannot be a token.
    """

    def __init__(self, token: Secret, source: str = "the token") -> None:
        self._token = _checked(token, source)

    def header(self) -> dict[str, str]:
        """Return the header with the token."""
        return {"Authorization": f"Bearer {self._token.reveal()}"}


class TokenFile:
    """A token in a file that somebody else renews.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._token = Secret("")

    def header(self) -> dict[str, str]:
        """Return the header with the token; the file is read again when it has changed.

        Raises
        ------
        CredentialsError
        """
        with self._lock:
            try:
                status = self._path.stat()
                stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
                if stamp != self._stamp:
                    self._token = _checked(Secret(_read(self._path)), str(self._path))
                    self._stamp = stamp
            except OSError as error:
                raise CredentialsError(f"cannot read {self._path}: {error.strerror}") from error
            return {"Authorization": f"Bearer {self._token.reveal()}"}


class ClientCredentials:
    """A service or a pilot with a client of its own (RFC 6749, 4.4).

    Parameters
    ----------
    issuer, client_id : str
    secret : Secret or Path
        A path is read whenever a token is asked for: secrets are replaced.
    audience : str
        Whom the token shall be meant for; empty: the issuer knows.
    scopes : str
        Separated by spaces.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        secret: Secret | Path,
        audience: str = "",
        scopes: str = "",
    ) -> None:
        self._issuer, self._client, self._secret = issuer, client_id, secret
        self._form = {"grant_type": "client_credentials", **oauth.targets(audience)}
        if scopes:
            self._form["scope"] = scopes
        self._lock = threading.Lock()
        self._token: Secret | None = None
        self._renew = self._expires = 0.0

    def header(self) -> dict[str, str]:
        """Return the header of a call, with a token that is good for a while.

        Raises
        ------
        SignInFailed
            The issuer gives none: a wrong secret, a scope it does not know, ...
        IssuerUnavailable
            It does not answer, and the last token has expired.
        BadAnswer, CredentialsError, UnsafeAddress
        """
        with self._lock:
            if self._token is None or time.time() >= self._renew:
                self._token = self._fresh()
            return {"Authorization": f"Bearer {self._token.reveal()}"}

    def _fresh(self) -> Secret:
        try:
            tokens = self._ask()
        except (IssuerUnavailable, BadAnswer):
            if self._token is not None and time.time() < self._expires:
                return self._token  # it is still good; the next call tries again
            raise
        now = time.time()
        self._expires = now + tokens.lifetime
        self._renew = self._expires - min(60.0, tokens.lifetime / 4)
        return tokens.access

    def _ask(self) -> oauth.Tokens:
        url = oauth.endpoint(oauth.discover(self._issuer), "token_endpoint")
        try:
            return oauth.ask_tokens(url, self._form, self._client, self._current_secret())
        except oauth.Refused as error:
            raise SignInFailed(
                f"{error}: check the client {self._client!r}, its secret, audience and scopes"
            ) from error

    def _current_secret(self) -> Secret:
        if isinstance(self._secret, Secret):
            return self._secret
        try:
            return Secret(_read(self._secret))
        except OSError as error:
            raise CredentialsError(f"cannot read {self._secret}: {error.strerror}") from error


class ActingFor:
    """Credentials of somebody who says for which VO they act.

    Parameters
    ----------
    credentials : Credentials
    vo : str
        ``vo`` or ``vo.role``.
    """

    def __init__(self, credentials: Credentials, vo: str) -> None:
        self._credentials, self._vo = credentials, vo

    def header(self) -> dict[str, str]:
        """Return the headers, the VO's among them."""
        return {**self._credentials.header(), VO_HEADER: self._vo}


def find_credentials(
    server: str, environ: Mapping[str, str] | None = None, cache: TokenCache | None = None
) -> Credentials:
    """Return what this process has to show to a server; :class:`Nobody` if it has nothing.

    Parameters
    ----------
    server : str
        Its address.
    environ : mapping of str to str, optional
        Default: ``os.environ``.
    cache : TokenCache, optional
        Of sign-ins.

    Raises
    ------
    UnsafeAddress
        The token would travel in clear.
    CredentialsError
        A variable is no good.
    CacheError
    """
    address = server_address(server)
    source = os.environ if environ is None else environ
    kept = cache or TokenCache(environ=source)
    found = _own(source) or _client(source)
    if found is None and kept.read(address) is not None:
        found = SignIn(address, kept)
    found = found or _discovered(source) or Nobody()
    vo = source.get("PANDAFLOW_VO")
    return ActingFor(found, vo) if vo else found


def find_certificate(environ: Mapping[str, str] | None = None) -> tuple[Path, Path] | None:
    """Return the client certificate that this process has, where grid tools look for it.

    Parameters
    ----------
    environ : mapping of str to str, optional
        Default: ``os.environ``.

    Returns
    -------
    tuple of Path or None
        Certificate with its chain, and key, both PEM, for ``ssl.SSLContext.load_cert_chain``: of
        ``X509_USER_PROXY``; of ``X509_USER_CERT`` and ``X509_USER_KEY``; of ``/tmp/x509up_u$ID``,
        if it is this user's.
    """
    source = os.environ if environ is None else environ
    if proxy := source.get("X509_USER_PROXY"):
        return Path(proxy), Path(proxy)
    cert, key = source.get("X509_USER_CERT"), source.get("X509_USER_KEY")
    if cert and key:
        return Path(cert), Path(key)
    usual = Path(f"/tmp/x509up_u{os.geteuid()}")
    return (usual, usual) if _is_mine(usual) else None


def _own(environ: Mapping[str, str]) -> Credentials | None:
    if token := environ.get("PANDAFLOW_TOKEN"):
        return BearerToken(Secret(token), "PANDAFLOW_TOKEN")
    path = environ.get("PANDAFLOW_TOKEN_FILE")
    return TokenFile(path) if path else None


def _client(environ: Mapping[str, str]) -> ClientCredentials | None:
    client = environ.get("PANDAFLOW_CLIENT_ID")
    if not client:
        return None
    issuer = environ.get("PANDAFLOW_ISSUER")
    text = environ.get("PANDAFLOW_CLIENT_SECRET")
    path = environ.get("PANDAFLOW_CLIENT_SECRET_FILE")
    if not issuer or not (text or path):
        raise CredentialsError(
            "with PANDAFLOW_CLIENT_ID set PANDAFLOW_ISSUER, and PANDAFLOW_CLIENT_SECRET_FILE "
            "or PANDAFLOW_CLIENT_SECRET"
        )
    secret = Secret(text) if text else Path(path or "")
    more = (environ.get("PANDAFLOW_AUDIENCE", ""), environ.get("PANDAFLOW_SCOPES", ""))
    return ClientCredentials(issuer, client, secret, *more)


def _discovered(environ: Mapping[str, str]) -> Credentials | None:
    """Return the token that WLCG's Bearer Token Discovery finds (doi:10.5281/zenodo.3937438)."""
    if token := environ.get("BEARER_TOKEN"):
        return BearerToken(Secret(token), "BEARER_TOKEN")
    if path := environ.get("BEARER_TOKEN_FILE"):
        return TokenFile(path)
    name = f"bt_u{os.geteuid()}"
    folders = [folder for folder in (environ.get("XDG_RUNTIME_DIR"), "/tmp") if folder]
    paths = (Path(folder, name) for folder in folders)
    return next((TokenFile(path) for path in paths if _is_mine(path)), None)


def _is_mine(path: Path) -> bool:
    """Tell whether a file is there and this user's: anybody may write into /tmp."""
    try:
        return path.lstat().st_uid == os.geteuid() and path.is_file()
    except OSError:
        return False


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _checked(token: Secret, source: str) -> Secret:
    text = token.reveal().strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise CredentialsError(f"{source} holds no token")
    return Secret(text)
