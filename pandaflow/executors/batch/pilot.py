"""What runs in an allocation: keeps Dask workers going until its time is up.

``python -m pandaflow.executors.batch.pilot CONTACT --slots 4 --walltime 7200``: reads where the
scheduler is from the contact file and starts one worker process a slot, so that a payload that
crashes takes no other with it and Python code runs on all cores. When the scheduler vanishes the
pilot waits a while for another driver of the same run to write a new contact: allocations survive
their driver.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pandaflow.executors.node import PILOT_UNTIL

#: Seconds between looks at the contact file, the workers and the clock.
_LOOK_S = 0.5
#: Worker processes that may die in a minute before the pilot gives up: something is wrong there.
_DEATHS = 50
#: Seconds before the end of the allocation at which workers that still run are ended.
_LAST_S = 2.0


def read_contact(path: Path) -> Mapping[str, Any] | None:
    """Return what the driver wrote, ``{"id": ..., "address": ...}``; None if nothing is there."""
    try:
        contact = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(contact, dict) and {"id", "address"} <= contact.keys()
    return contact if known else None


def _answers(address: str) -> bool:
    """Whether somebody listens where the scheduler is, ``tcp://10.0.0.1:8786``."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


class Pilot:
    """One pilot.

    Parameters
    ----------
    contact : Path
        File on a disk that driver and nodes share.
    slots : int
        Worker processes.
    until : float
        Seconds since the epoch at which it must have ended.
    margin : float
        Seconds before that, from which on it takes no more work.
    patience : float
        Seconds that it waits for a driver.
    folder : str
        For the workers' files.
    """

    def __init__(
        self,
        contact: Path,
        *,
        slots: int,
        until: float,
        margin: float,
        patience: float,
        folder: str,
    ) -> None:
        self._contact, self._slots, self._folder = contact, slots, folder
        self._until, self._margin, self._patience = until, margin, patience
        self._name = f"pilot-{os.environ.get('PANDAFLOW_BATCH_ID') or os.getpid()}"
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._leave, self._starts = False, 0
        self._deaths: list[float] = []

    def run(self) -> None:
        """Serve one driver after the other until the time is up."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._told)
        served, alone = "", time.monotonic()
        try:
            while not self._leave and time.time() < self._until - self._margin:
                contact = read_contact(self._contact)
                if contact is not None and contact.get("over"):
                    return
                if contact is not None and contact["id"] != served:
                    served = contact["id"]
                    self._end()
                    self._serve(contact["address"])
                self._mend(contact)
                if contact is not None and self._workers and _answers(contact["address"]):
                    alone = time.monotonic()
                if time.monotonic() - alone > self._patience or len(self._deaths) > _DEATHS:
                    return
                time.sleep(_LOOK_S)
            self._drain()
        finally:
            self._end()

    def _told(self, *_: object) -> None:
        self._leave = True

    def _serve(self, address: str) -> None:
        for slot in range(self._slots):
            self._start(slot, address)

    def _start(self, slot: int, address: str) -> None:
        self._starts += 1
        command = [
            *(sys.executable, "-m", "pandaflow.executors.worker", address),
            *("--nthreads", "1", "--name", f"{self._name}-{slot}.{self._starts}"),
            *("--local-directory", self._folder, "--memory-limit", "0"),
        ]
        self._workers[slot] = subprocess.Popen(
            command, stdin=subprocess.PIPE, env={**os.environ, PILOT_UNTIL: repr(self._stop_at)}
        )

    @property
    def _stop_at(self) -> float:
        return self._until - self._margin

    def _mend(self, contact: Mapping[str, Any] | None) -> None:
        """Start workers again that a payload took along; not those whose scheduler has gone."""
        for slot, process in list(self._workers.items()):
            code = process.poll()
            if code is None:
                continue
            del self._workers[slot]
            if code != 0 and contact is not None:
                now = time.monotonic()
                self._deaths = [at for at in self._deaths if now - at < 60.0] + [now]
                self._start(slot, contact["address"])

    def _drain(self) -> None:
        """Let jobs that run end, as long as there is time; workers that are idle go at once."""
        for process in self._workers.values():
            process.send_signal(signal.SIGUSR1)
        while self._workers and time.time() < self._until - _LAST_S:
            self._workers = {s: p for s, p in self._workers.items() if p.poll() is None}
            time.sleep(_LOOK_S)

    def _end(self) -> None:
        for process in self._workers.values():
            process.kill()
        for process in self._workers.values():
            process.wait()
        self._workers.clear()


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
    with tempfile.TemporaryDirectory(prefix="pandaflow-pilot-", dir=options.scratch) as folder:
        Pilot(
            options.contact,
            slots=options.slots,
            until=time.time() + options.walltime,
            margin=options.margin,
            patience=options.patience,
            folder=folder,
        ).run()


if __name__ == "__main__":
    main()
