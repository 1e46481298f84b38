"""The policy is read again when its file changes, or on SIGHUP; a broken one changes nothing."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from pandaflow.grid.auth.errors import PolicyError
from pandaflow.grid.auth.policy import load_policy
from pandaflow.grid.auth.verify import Authenticator

_log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int] | None


class PolicyFile:
    """The file of a policy that is in force; may be read by several threads.

    Parameters
    ----------
    path : Path or None
        None: an anonymous server, which has none.
    authenticator : Authenticator or None
        Gets the policy.
    """

    def __init__(self, path: Path | None, authenticator: Authenticator | None) -> None:
        self._path, self._authenticator = path, authenticator
        self._lock = threading.Lock()
        self._stamp = self._look()

    def read(self, *, always: bool = False) -> bool:
        """Read the file again if it has changed; tell whether there is a new policy.

        Parameters
        ----------
        always : bool
            Also if it looks as before.
        """
        if self._path is None or self._authenticator is None:
            return False
        with self._lock:
            stamp = self._look()
            if stamp == self._stamp and not always:
                return False
            self._stamp = stamp  # what is broken is told once, and not again each time
            try:
                policy = load_policy(self._path)
            except PolicyError as error:
                _log.error("the policy in force stays, the new one is broken: %s", error)
                return False
            self._authenticator.replace(policy)
        _log.warning("%s was read again: its policy is in force now", self._path)
        return True

    def _look(self) -> _Stamp:
        """Return what changes with the file; None: it is away, perhaps for a moment."""
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size
