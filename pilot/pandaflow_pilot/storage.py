"""How grid storage is read: by the credentials that the grid's tools find in the environment.

============================================  =====================================
variable
============================================  =====================================
``X509_USER_PROXY``                           certificate and key in one file
``X509_USER_CERT``, ``X509_USER_KEY``         in two
``X509_CERT_DIR``                             folder of authorities that are trusted, too
``BEARER_TOKEN``, ``BEARER_TOKEN_FILE``       a token, if there is no certificate
============================================  =====================================

``xrdcp`` reads them by itself.
"""

from __future__ import annotations

import os
import ssl
import urllib.request
from typing import Any

from pandaflow_pilot import transfer
from pandaflow_pilot.transfer import Check, Http, Scheme, TransferError

_SECURE = {"davs": "https", "https": "https"}


def scheme_of(pfn: str) -> Scheme:
    """Return what reads a URL of a storage element.

    Raises
    ------
    TransferError
    """
    name = pfn.partition("://")[0]
    if name in _SECURE:
        return WebDav()
    return transfer.scheme_of(pfn)


class WebDav:
    """WebDAV and HTTP over TLS, with what proves who asks."""

    def get(self, url: str, path: str, check: Check) -> None:
        """Get a file."""
        name, _, rest = url.partition("://")
        Http(_Opener().open).get(f"{_SECURE[name]}://{rest}", path, check)

    def put(self, path: str, url: str, check: Check) -> None:
        """Put a file."""
        name, _, rest = url.partition("://")
        Http(_Opener().open).put(path, f"{_SECURE[name]}://{rest}", check)


class _Opener:
    """Opens requests with a certificate or a token."""

    def __init__(self) -> None:
        context = ssl.create_default_context()
        if os.environ.get("X509_CERT_DIR"):
            context.load_verify_locations(capath=os.environ["X509_CERT_DIR"])
        pair = _certificate()
        try:
            if pair is not None:
                context.load_cert_chain(*pair)
        except OSError as error:  # of ssl's, too; neither tells what is in the file
            text = f"the certificate {pair and pair[0]} cannot be used: {error}"
            raise TransferError(text, transient=False) from None
        self._token = "" if pair is not None else _token()
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))

    def open(self, request: urllib.request.Request, timeout: float) -> Any:
        """Open a request; where the store sends it on to, the token does not follow."""
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        return self._opener.open(request, timeout=timeout)


def _certificate() -> tuple[str, str] | None:
    proxy = os.environ.get("X509_USER_PROXY", "")
    if proxy:
        return proxy, proxy
    pair = os.environ.get("X509_USER_CERT", ""), os.environ.get("X509_USER_KEY", "")
    return pair if all(pair) else None


def _token() -> str:
    if os.environ.get("BEARER_TOKEN"):
        return os.environ["BEARER_TOKEN"].strip()
    path = os.environ.get("BEARER_TOKEN_FILE", "")
    if not path:
        return ""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        text = f"BEARER_TOKEN_FILE cannot be read: {error}"
        raise TransferError(text, transient=False) from None
