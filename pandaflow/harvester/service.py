"""The harvester as a process: a thread for each queue, until it is told to stop."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pandaflow.grid.auth.credentials import Credentials
from pandaflow.grid.http import GridClient
from pandaflow.harvester.journal import KEPT, Journal, locked
from pandaflow.harvester.keeper import Keeper
from pandaflow.harvester.settings import Settings

logger = logging.getLogger("pandaflow.harvester")


class Harvester:
    """Keeps pilots at several queues.

    Parameters
    ----------
    settings : Settings
    credentials : Credentials, optional
        Of the harvester; default: what ``pandaflow login`` or the environment has.
    """

    def __init__(self, settings: Settings, credentials: Credentials | None = None) -> None:
        self._settings, self._credentials = settings, credentials
        self._stop = threading.Event()

    def stop(self) -> None:
        """End soon; pilots go on. May be called from a signal handler."""
        self._stop.set()

    def run(self, once: bool = False, drain: bool = False) -> int:
        """Keep pilots until :meth:`stop`; return how many were left.

        Parameters
        ----------
        once : bool
            Look, decide and act once at each queue.
        drain : bool
            End all pilots of this harvester, and return when none is left.

        Raises
        ------
        SiteError
            Another harvester has the state folder, or a submitter cannot work here.
        StoreError
            The notes cannot be written.
        """
        with self._opened() as keepers, ThreadPoolExecutor(len(keepers)) as threads:
            doing = [threads.submit(self._keep, keeper, once, drain) for keeper in keepers]
            wait(doing, return_when=FIRST_EXCEPTION)
            self._stop.set()
            return sum(each.result() for each in doing)

    @contextmanager
    def _opened(self) -> Iterator[list[Keeper]]:
        here = self._settings.harvester
        with locked(here.folder):
            journal = Journal(here.folder)
            journal.forget(time.time() - KEPT)
            client = GridClient(here.server, self._credentials, ca=here.ca)
            try:
                yield [self._keeper(name, client, journal) for name in self._settings.queues]
            finally:
                client.close()
                journal.close()

    def _keeper(self, name: str, client: GridClient, journal: Journal) -> Keeper:
        label = self._settings.label(name)
        folder = self._settings.harvester.folder / "queues" / label
        submitter = self._settings.queues[name].submitter.open(label, folder)
        return Keeper(self._settings, name, client, journal, submitter)

    def _keep(self, keeper: Keeper, once: bool, drain: bool) -> int:
        left = 0
        while not self._stop.is_set():
            left = keeper.round(drain)
            if once or (drain and not left):
                break
            # Not all queues at the same moment.
            self._stop.wait(self._settings.harvester.every * random.uniform(0.9, 1.1))
        return left


def status(folder: Path, queues: list[str]) -> list[dict[str, Any]]:
    """Return how queues were when they were looked at for the last time.

    Parameters
    ----------
    folder : Path
        The harvester's state folder.
    queues : list of str

    Returns
    -------
    list of dict
        As :meth:`Keeper.round` has noted it; of a queue that was never looked at only its name.
    """
    if not (folder / "journal.db").exists():
        return [{"queue": name, "reason": "never looked at"} for name in queues]
    journal = Journal(folder)
    try:
        return [journal.queue(name) or {"queue": name} for name in queues]
    finally:
        journal.close()
