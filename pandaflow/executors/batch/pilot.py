"""What runs in an allocation: a Dask worker that knows when its time is up.

``python -m pandaflow.executors.batch.pilot CONTACT --slots 4 --until 1767225600``: reads where
the scheduler is from the contact file, serves it until told to go or until its time comes, and
when the scheduler vanishes waits a while for another driver of the same run to write a new
contact, so that allocations survive their driver.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pandaflow.executors.node import PILOT_UNTIL, drain
from pandaflow.executors.worker import QUIET

#: Seconds between looks at the contact file and at the clock.
_LOOK_S = 0.5
#: Seconds that a scheduler may take to answer a new worker.
_JOIN_S = 30.0


def read_contact(path: Path) -> Mapping[str, Any] | None:
    """Return what the driver wrote, ``{"id": ..., "address": ...}``; None if nothing is there."""
    try:
        contact = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(contact, dict) and {"id", "address"} <= contact.keys()
    return contact if known else None


class PilotProcess:
    """One pilot.

    Parameters
    ----------
    contact : Path
        File on a disk that driver and nodes share.
    name : str
        The worker's name.
    slots : int
    until : float
        Seconds since the epoch at which it must have ended.
    margin : float
        Seconds before that, from which on it takes no more work.
    patience : float
        Seconds that it waits for a driver.
    folder : str
        For the worker's files.
    """

    def __init__(
        self,
        contact: Path,
        name: str,
        *,
        slots: int,
        until: float,
        margin: float,
        patience: float,
        folder: str,
    ) -> None:
        self._contact, self._name, self._slots = contact, name, slots
        self._until, self._margin, self._patience = until, margin, patience
        self._folder = folder
        self._leave = False

    async def run(self) -> None:
        """Serve one driver after the other until the time is up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            loop.add_signal_handler(number, self._told)
        served, alone = "", time.time()
        while not self._leave and time.time() < self._until - self._margin:
            contact = read_contact(self._contact)
            if contact is not None and contact.get("over"):
                return
            if contact is not None and contact["id"] != served:
                served = contact["id"]
                await self._serve(contact["address"])
                alone = time.time()
            elif time.time() - alone > self._patience:
                return
            else:
                await asyncio.sleep(_LOOK_S)

    def _told(self) -> None:
        self._leave = True

    async def _serve(self, address: str) -> None:
        from distributed import Worker

        try:
            worker = await Worker(
                address,
                nthreads=self._slots,
                name=self._name,
                local_directory=self._folder,
                death_timeout=_JOIN_S,
                memory_limit=0,
                dashboard=False,
                dashboard_address=None,
            )
        except (OSError, TimeoutError, RuntimeError) as error:
            sys.stderr.write(f"pandaflow: no scheduler at {address}: {error}\n")
            return
        watch = asyncio.ensure_future(self._watch(worker))
        try:
            await worker.finished()
        finally:
            watch.cancel()

    async def _watch(self, worker: Any) -> None:
        """Let the worker go when its time comes: first no more work, then the end."""
        while not self._leave and time.time() < self._until - self._margin:
            await asyncio.sleep(_LOOK_S)
        drain(worker)
        while worker.state.executing_count and time.time() < self._until - 2.0:
            await asyncio.sleep(_LOOK_S / 2)
        await worker.close(timeout=2, reason="its time is up")


def main(arguments: list[str] | None = None) -> None:
    """Run a pilot until its time is up."""
    parser = argparse.ArgumentParser(prog="python -m pandaflow.executors.batch.pilot")
    parser.add_argument("contact", type=Path)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--walltime", type=float, required=True, help="seconds from now")
    parser.add_argument("--margin", type=float, default=30.0)
    parser.add_argument("--patience", type=float, default=300.0)
    parser.add_argument("--scratch", default=None)
    options = parser.parse_args(arguments)
    import dask

    dask.config.set(QUIET)
    until = time.time() + options.walltime
    os.environ[PILOT_UNTIL] = repr(until - options.margin)
    name = f"pilot-{os.environ.get('PANDAFLOW_BATCH_ID', os.getpid())}"
    with tempfile.TemporaryDirectory(prefix="pandaflow-pilot-", dir=options.scratch) as folder:
        pilot = PilotProcess(
            options.contact,
            name,
            slots=options.slots,
            until=until,
            margin=options.margin,
            patience=options.patience,
            folder=folder,
        )
        asyncio.run(pilot.run())
    os._exit(0)  # payload threads that cannot be stopped must not keep the allocation


if __name__ == "__main__":
    main()
