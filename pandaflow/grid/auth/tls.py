"""TLS for a server that takes client certificates, and shows them to the application.

Uvicorn tells an application nothing of the client's certificate. :func:`with_certificates` makes
of one of its protocol classes one that does, as the ASGI extension ``tls`` has it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import PandaflowError

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Scope = MutableMapping[str, Any]
#: An ASGI 3 application.
App = Callable[[Any, Any, Any], Awaitable[None]]


class TlsError(PandaflowError, ValueError):
    """A certificate, a key or a list of authorities is no good; names the file."""


def server_context(
    cert: str | Path,
    key: str | Path | None = None,
    client_ca: str | Path | None = None,
    crls: str | Path | None = None,
) -> ssl.SSLContext:
    """Return what a server needs for TLS.

    Parameters
    ----------
    cert : str or Path
        The server's own chain, PEM.
    key : str or Path, optional
        Its key, PEM; None: in the same file.
    client_ca : str or Path, optional
        Authorities whose client certificates are taken, and proxies of those (RFC 3820): a PEM
        file, or a folder with names by hash, as grids keep them. None: no certificates are asked
        for. Clients without one are let in, to show a token.
    crls : str or Path, optional
        Lists of withdrawn certificates, one of each authority, PEM in one file.

    Raises
    ------
    TlsError
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A resumed session would bring no chain along.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    _load(cert, lambda: context.load_cert_chain(cert, key))
    if client_ca is not None:
        _trust(context, Path(client_ca))
    if crls is not None:
        _load(crls, lambda: context.load_verify_locations(cafile=crls))
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    return context


def _trust(context: ssl.SSLContext, authorities: Path) -> None:
    if authorities.is_dir():
        _load(authorities, lambda: context.load_verify_locations(capath=authorities))
    else:
        _load(authorities, lambda: context.load_verify_locations(cafile=authorities))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags.VERIFY_ALLOW_PROXY_CERTS


def _load(path: str | Path, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"{path} cannot be used for TLS: {error}") from error


def with_certificates(
    base: type[HttpToolsProtocol] | type[H11Protocol],
) -> type[asyncio.Protocol]:
    """Return a uvicorn protocol that puts the client's chain into each request's scope.

    ``scope["extensions"]["tls"]["client_cert_chain"]`` is a tuple of bytes (DER), the client's
    own certificate first; empty without one. :func:`client_chain` reads it. Give the class to
    ``uvicorn.Config(http=...)``.
    """

    class WithCertificates(base):  # type: ignore[valid-type, misc]
        app: App

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            chain = _chain(transport.get_extra_info("ssl_object"))
            if chain is not None:
                self.app = _showing(self.app, chain)

    return WithCertificates


def client_chain(scope: Scope) -> tuple[bytes, ...] | None:
    """Return the chain that a client showed, for the authenticator; None: none."""
    found = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain")
    return tuple(found) if found else None


def _showing(app: App, chain: tuple[bytes, ...]) -> App:
    async def show(scope: Scope, receive: Any, send: Any) -> None:
        extensions = {**scope.get("extensions", {}), "tls": {"client_cert_chain": chain}}
        await app({**scope, "extensions": extensions}, receive, send)

    return show


def _chain(connection: ssl.SSLObject | None) -> tuple[bytes, ...] | None:
    if connection is None:
        return None
    # Public from Python 3.13 on; before, on the object inside.
    inner: Any = getattr(connection, "_sslobj", connection)
    source = connection if hasattr(connection, "get_verified_chain") else inner
    if connection.getpeercert(binary_form=True) is None:
        return ()
    found: Sequence[Any] = source.get_verified_chain() or ()
    return tuple(map(_der, found))


def _der(certificate: Any) -> bytes:
    if isinstance(certificate, bytes):
        return certificate
    return bytes(certificate.public_bytes(ssl._ssl.ENCODING_DER))  # type: ignore[attr-defined]
