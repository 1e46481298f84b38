"""Pickled payloads: each is fetched once while the pilot lives, and checked."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from urllib.parse import quote

from pandaflow_pilot.api import ApiError, Pauses
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.log import LOGGER
from pandaflow_pilot.transfer import Check
from pandaflow_pilot.workdir import made

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: Seconds for which a server that is away is waited for.
_PATIENCE = 300.0


class Payloads:
    """A folder of payloads by digest.

    Parameters
    ----------
    get : callable
        Returns what lies under a route; raises ApiError.
    folder : str
    """

    def __init__(self, get: Callable[[str], bytes], folder: str) -> None:
        self._get, self._folder, self._lock = get, made(folder), threading.Lock()

    def path(self, run: str, digest: str, check: Check) -> str:
        """Return the file with this payload.

        Raises
        ------
        PilotError
            The server has not got it, or sends another.
        Aborted
        """
        if not _DIGEST.fullmatch(digest):
            raise PilotError("protocol", f"{digest!r} is no digest")
        path = os.path.join(self._folder, digest)
        with self._lock:
            if not os.path.exists(path):
                self._store(self._fetched(run, digest, check), path)
        return path

    def _store(self, data: bytes, path: str) -> None:
        part = f"{path}.part"
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, path)

    def _fetched(self, run: str, digest: str, check: Check) -> bytes:
        pauses, deadline = Pauses(), time.monotonic() + _PATIENCE
        while True:
            check()
            try:
                data = self._get(f"/pilot/payloads/{quote(run, safe='')}/{digest}")
                if hashlib.sha256(data).hexdigest() == digest:
                    return data
                error = ApiError("what the server sent has another digest")
            except ApiError as failed:
                error = failed
            if not error.transient or time.monotonic() > deadline:
                raise PilotError("code_missing", f"the payload cannot be had: {error}")
            LOGGER.warning("payload %s...: %s", digest[:8], error)
            time.sleep(min(5.0, pauses.next(error.retry_after)))
