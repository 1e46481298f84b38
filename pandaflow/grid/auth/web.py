"""JSON from issuers and servers: over HTTPS (or from this machine), bounded, no redirections."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import httpx

from pandaflow.core.errors import PandaflowError
from pandaflow.grid.auth.errors import IssuerUnavailable, plain
from pandaflow.grid.auth.secret import Secret

#: What is posted.
Form: TypeAlias = Mapping[str, str | Secret]
#: The header by which somebody says for which VO they act: ``vo`` or ``vo.role``.
VO_HEADER = "X-Pandaflow-VO"
#: Seconds that an issuer may take.
PATIENCE = 10.0
#: Bytes of a document that are read.
LARGEST = 1_000_000


class BadAnswer(PandaflowError, ValueError):
    """A server answered with something else than what it should."""


class UnsafeAddress(PandaflowError, ValueError):
    """Secrets would travel in clear, or keys come from nobody in particular."""


def is_loopback(host: str) -> bool:
    """Tell whether a host name is this machine by its very form, without asking anybody."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def safe(url: str) -> str:
    """Return an address that is fit for secrets: ``https``, or ``http`` to this machine.

    Raises
    ------
    UnsafeAddress
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise UnsafeAddress(f"{plain(url)} is no address") from None
    if host and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        if parts.username is not None:
            raise UnsafeAddress(f"leave names and passwords out of the address of {host}")
        return url
    raise UnsafeAddress(f"{plain(url)}: give an address that begins with https://")


def get_json(
    url: str, headers: Mapping[str, str] | None = None, ca: Path | None = None
) -> dict[str, Any]:
    """Return the JSON object at an address.

    Parameters
    ----------
    url : str
    headers : mapping of str to str, optional
    ca : Path, optional
        Certificates that the server's is checked with, PEM; default: the system's.

    Raises
    ------
    UnsafeAddress
        Also where the certificates cannot be used.
    IssuerUnavailable
        No answer, or not now (5xx, 429).
    BadAnswer
        An answer, but no JSON object.
    """
    status, body = _ask("GET", url, headers=headers, ca=ca)
    if status != 200:
        said = body.get("detail") or body.get("title")  # RFC 9457
        raise BadAnswer(
            f"{plain(url)} answered with {status}" + (f": {plain(said)}" if said else "")
        )
    return body


def post_form(
    url: str, form: Form, auth: tuple[str, Secret] | None = None
) -> tuple[int, dict[str, Any]]:
    """Post a form; return the status and the JSON object of the answer, empty if it is none.

    Raises
    ------
    UnsafeAddress
    IssuerUnavailable
    """
    return _ask("POST", url, form=form, auth=auth)


def _ask(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    form: Form | None = None,
    auth: tuple[str, Secret] | None = None,
    ca: Path | None = None,
) -> tuple[int, dict[str, Any]]:
    safe(url)
    trust = _trust(ca)
    request = {"accept": "application/json", **(headers or {})}
    try:
        with (
            httpx.Client(timeout=PATIENCE, follow_redirects=False, verify=trust) as client,
            client.stream(
                method, url, headers=request, data=_open(form), auth=_opened(auth)
            ) as answer,
        ):
            body = _read(answer)
    # `from None`: the error knows the request, and the request the secret.
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = plain(error) or type(error).__name__
        raise IssuerUnavailable(f"no answer from {plain(url)}: {reason}") from None
    if answer.status_code == 429 or answer.status_code >= 500:
        raise IssuerUnavailable(f"{plain(url)} answered with {answer.status_code}: try again later")
    return answer.status_code, _parse(body, url, answer.status_code)


def _trust(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UnsafeAddress(f"{ca} cannot be used to check the server: {error}") from error


# Secrets are opened on their way out: a traceback with variables would show them.
def _open(form: Form | None) -> dict[str, str] | None:
    if form is None:
        return None
    return {k: v.reveal() if isinstance(v, Secret) else v for k, v in form.items()}


def _opened(auth: tuple[str, Secret] | None) -> tuple[str, str] | None:
    return None if auth is None else (auth[0], auth[1].reveal())


def _read(answer: httpx.Response) -> bytes:
    body, deadline = bytearray(), time.monotonic() + 3 * PATIENCE
    for piece in answer.iter_bytes():
        body += piece
        if time.monotonic() > deadline:
            raise IssuerUnavailable(f"{plain(answer.url)} answers too slowly: try again later")
        if len(body) > LARGEST:
            raise BadAnswer(f"{plain(answer.url)} sends more than {LARGEST} bytes")
    return bytes(body)


def _parse(body: bytes, url: str, status: int) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    if status == 200 and body:
        raise BadAnswer(f"{plain(url)} answered with something else than a JSON object")
    return {}
