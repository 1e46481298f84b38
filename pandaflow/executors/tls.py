"""Keys for a Dask cluster of one's own: whoever has not got them can send its workers nothing.

A Dask scheduler runs what it is sent. On a machine that is shared with others its port must not
be open to them, so the driver makes a certificate for the run, hands it to its workers through a
file that only their user may read, and everybody asks everybody for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pandaflow.core.errors import SiteError

if TYPE_CHECKING:
    from distributed.security import Security

_CERT, _KEY = "cert.pem", "key.pem"


def available() -> bool:
    """Tell whether keys can be made here: the package ``cryptography`` does it."""
    return find_spec("cryptography") is not None


def make() -> tuple[Security, dict[str, str]]:
    """Make keys for a cluster.

    Returns
    -------
    security : Security
        For scheduler and client.
    texts : dict of str to str
        For :func:`keep` on the workers' side: keep them secret.

    Raises
    ------
    SiteError
        ``cryptography`` is missing.
    """
    from distributed.security import Security

    if not available():
        raise SiteError("keys for TLS need the package cryptography: pip install 'pandaflow[hpc]'")
    security = Security.temporary()
    return security, {_CERT: security.tls_ca_file, _KEY: security.tls_client_key}


def keep(texts: Mapping[str, str], folder: str) -> str:
    """Write keys into a folder that only this user can read; return it."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in (_CERT, _KEY):
        path = Path(folder, name)
        path.touch(mode=0o600)
        path.write_text(texts[name], encoding="ascii")
    return folder


def load(folder: str) -> Security:
    """Return what a worker needs that has its keys in ``folder``."""
    from distributed.security import Security

    cert, key = os.path.join(folder, _CERT), os.path.join(folder, _KEY)
    return Security(
        tls_ca_file=cert, tls_worker_cert=cert, tls_worker_key=key, require_encryption=True
    )
