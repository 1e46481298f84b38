"""The token that pilots show, written where they read it, and written again before it expires."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pandaflow.core.errors import PandaflowError
from pandaflow.grid.auth.credentials import ClientCredentials

logger = logging.getLogger("pandaflow.harvester")


class PilotClient(BaseModel):
    """A client of an issuer that gets tokens for pilots.

    Attributes
    ----------
    issuer, client_id : str
    secret_file : Path
        Read whenever a token is asked for.
    audience, scopes : str
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str = Field(min_length=1)
    client_id: str = Field(min_length=1)
    secret_file: Path
    audience: str = ""
    scopes: str = ""


class PilotToken:
    """Keeps a token in a file that only this user may read. May be used by several threads.

    Parameters
    ----------
    client : PilotClient
    path : Path
    """

    def __init__(self, client: PilotClient, path: Path) -> None:
        secret = client.secret_file.expanduser()
        more = (client.audience, client.scopes)
        self._credentials = ClientCredentials(client.issuer, client.client_id, secret, *more)
        self._path, self._lock = path, threading.Lock()
        self._written = self._trouble = ""

    def renew(self) -> None:
        """Write a token if the one that is there will not do for long; a trouble is told once."""
        with self._lock:
            try:
                token = self._credentials.header()["Authorization"].removeprefix("Bearer ")
                if token != self._written:
                    self._write(token)
                    self._written = token
                self._trouble = ""
            except (PandaflowError, OSError) as error:
                if str(error) != self._trouble:
                    logger.warning("pilots get no new token: %s", error)
                self._trouble = str(error)

    def _write(self, token: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token + "\n")
        part.replace(self._path)
