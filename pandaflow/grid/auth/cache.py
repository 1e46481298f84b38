"""Files that keep sign-ins: one a server, for their user's eyes only.

They are in ``~/.config/pandaflow/tokens`` (``$XDG_CONFIG_HOME`` is respected), mode 0600 in a
folder of mode 0700, and written to another name first: a reader sees the old one or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pandaflow.core.errors import PandaflowError
from pandaflow.grid.auth.secret import Secret
from pandaflow.grid.auth.web import safe


class CacheError(PandaflowError, OSError):
    """The files of sign-ins cannot be read or written, or others could read them."""


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A sign-in at a server.

    Attributes
    ----------
    server : str
        Its address: the token goes nowhere else.
    issuer, client_id, audience : str
        Where the token is from, and whom it is meant for.
    access : Secret
    refresh : Secret or None
        Gives the next one; good for one use.
    obtained, expires : float
        Seconds since the epoch.
    """

    server: str
    issuer: str
    client_id: str
    audience: str
    access: Secret
    refresh: Secret | None
    obtained: float
    expires: float

    def lasts(self, now: float) -> bool:
        """Tell whether the token is good for a while: a minute, or a quarter of its time."""
        return now < self.expires - min(60.0, (self.expires - self.obtained) / 4)


def server_address(url: str) -> str:
    """Return a server's address in the one form that sign-ins are kept by.

    Raises
    ------
    UnsafeAddress
    """
    parts = urlsplit(safe(url.strip()))
    return urlunsplit((parts.scheme, parts.netloc.lower(), parts.path.rstrip("/"), "", ""))


class TokenCache:
    """The sign-ins of this user.

    Parameters
    ----------
    folder : Path, optional
        Default: as the module says.
    environ : mapping of str to str, optional
        Default: ``os.environ``.
    """

    def __init__(
        self, folder: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder or _default(os.environ if environ is None else environ)

    def read(self, server: str) -> SignedIn | None:
        """Return the sign-in at a server; None: there is none.

        Raises
        ------
        CacheError
            Others could read it, or it is damaged.
        """
        path = self._path(server)
        try:
            with path.open(encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                if status.st_mode & 0o077 or status.st_uid != os.geteuid():
                    raise CacheError(
                        f"others can use {path}: remove it, and sign in again with pandaflow login"
                    )
                found = _parse(file.read())
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise CacheError(f"cannot read {path}: {error.strerror}") from error
        if found is None:
            raise CacheError(f"{path} is damaged: remove it, and sign in again: pandaflow login")
        return found if found.server == server else None

    def write(self, signed: SignedIn) -> None:
        """Keep a sign-in; it replaces the one at the same server.

        Raises
        ------
        CacheError
        """
        self._prepare()
        try:
            _replace(self._path(signed.server), _text(signed))
        except OSError as error:
            raise CacheError(f"cannot write into {self.folder}: {error.strerror}") from error

    def remove(self, server: str) -> None:
        """Forget a sign-in; one that is not there is fine."""
        self._path(server).unlink(missing_ok=True)

    def servers(self) -> list[str]:
        """Return the addresses of the servers with a sign-in, sorted."""
        found = (_parse(path.read_text("utf-8")) for path in self.folder.glob("*.json"))
        return sorted(one.server for one in found if one is not None)

    @contextmanager
    def locked(self, server: str) -> Iterator[None]:
        """Keep other processes from renewing the sign-in at a server meanwhile."""
        self._prepare()
        # The lock file stays: whoever waits for it holds it open.
        path = self._path(server).with_suffix(".lock")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _path(self, server: str) -> Path:
        digest = hashlib.sha256(server.encode()).hexdigest()[:24]
        return self.folder / f"{digest}.json"

    def _prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise CacheError(f"cannot make {self.folder}: {error.strerror}") from error


def _default(environ: Mapping[str, str]) -> Path:
    config = environ.get("XDG_CONFIG_HOME") or ""
    base = Path(config) if os.path.isabs(config) else Path.home() / ".config"
    return base / "pandaflow" / "tokens"


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # The old refresh token is spent: losing this one would lose the sign-in.
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:  # also Ctrl-C: no token is left lying about
        os.unlink(name)
        raise


def _text(signed: SignedIn) -> str:
    return json.dumps(
        {
            "server": signed.server,
            "issuer": signed.issuer,
            "client_id": signed.client_id,
            "audience": signed.audience,
            "access_token": signed.access.reveal(),
            "refresh_token": signed.refresh.reveal() if signed.refresh else None,
            "obtained": signed.obtained,
            "expires": signed.expires,
        }
    )


def _parse(text: str) -> SignedIn | None:
    try:
        found: dict[str, Any] = json.loads(text)
        refresh = found["refresh_token"]
        return SignedIn(
            server=str(found["server"]),
            issuer=str(found["issuer"]),
            client_id=str(found["client_id"]),
            audience=str(found["audience"]),
            access=Secret(str(found["access_token"])),
            refresh=Secret(refresh) if isinstance(refresh, str) else None,
            obtained=float(found["obtained"]),
            expires=float(found["expires"]),
        )
    except (ValueError, TypeError, KeyError):
        return None
