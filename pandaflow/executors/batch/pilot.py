"""What runs in an allocation: keeps Dask workers going until its time is up.

``python -m pandaflow.executors.batch.pilot CONTACT --slot '{"count": 4}' --walltime 7200``: reads
where the scheduler is from the contact file and starts one worker process a slot, so that a
payload that crashes takes no other with it and Python code runs on all cores. When the scheduler
vanishes the pilot waits a while for another driver of the same run to write a new contact:
allocations survive their driver.
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

from pandaflow.core.errors import DataError
from pandaflow.executors import tls
from pandaflow.executors.batch.contact import Contact, answering, read_contact
from pandaflow.executors.batch.slots import Slot, offers
from pandaflow.executors.command import TEMPORARY
from pandaflow.executors.node import PILOT_UNTIL

#: Seconds between looks at the contact file, the workers and the clock.
_LOOK_S = 0.5
#: Seconds between knocks at the scheduler's door, which it does not hear.
_KNOCK_S = 5.0
#: Worker processes that may die in a minute before the pilot gives up: something is wrong there.
_DEATHS = 50
#: Seconds before the end of the allocation at which workers that still run are ended.
_LAST_S = 2.0
#: Variables in which batch systems and vendors say which GPUs a process may use.
_DEVICES = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
)


class Pilot:
    """One pilot.

    Parameters
    ----------
    contact : Path
        File on a disk that driver and nodes share.
    slot : Slot
        How the node is cut.
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
        slot: Slot,
        until: float,
        margin: float,
        patience: float,
        folder: str,
    ) -> None:
        self._contact, self._slot, self._folder = contact, slot, folder
        self._until, self._margin, self._patience = until, margin, patience
        self._name = f"pilot-{os.environ.get('PANDAFLOW_BATCH_ID') or os.getpid()}"
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._served: Contact | None = None
        self._address = ""
        self._leave, self._starts = False, 0
        self._deaths: list[float] = []
        self._met = time.monotonic()

    def run(self) -> None:
        """Serve one driver after the other until the time is up."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._told)
        knocked = 0.0
        try:
            while not self._leave and time.time() < self._until - self._margin:
                contact = self._read()
                if contact is not None and contact.over:
                    return
                if time.monotonic() - knocked > _KNOCK_S or contact != self._served:
                    knocked = time.monotonic()
                    self._knock(contact)
                self._mend()
                if self._unwanted():
                    return
                time.sleep(_LOOK_S)
            self._drain()
        finally:
            self._end()

    def _told(self, *_: object) -> None:
        self._leave = True

    def _read(self) -> Contact | None:
        try:
            return read_contact(self._contact)
        except DataError as error:
            sys.stderr.write(f"{error}\n")
            return self._served

    # --- drivers ------------------------------------------------------------------------

    def _knock(self, contact: Contact | None) -> None:
        """See whether the driver is there; serve it if it is a new one."""
        address = answering(contact.addresses) if contact is not None else ""
        if not address or contact is None:
            return
        self._met = time.monotonic()
        if self._served is None or contact.id != self._served.id:
            self._end()
            self._served, self._address = contact, address
            for number in range(self._slot.count):
                self._start(number)

    def _unwanted(self) -> bool:
        """Whether to go: nobody is there, workers only die, or the driver has sent them away."""
        alone = time.monotonic() - self._met > self._patience
        dismissed = self._served is not None and not self._workers and self._answers()
        return alone or dismissed or len(self._deaths) > _DEATHS

    def _answers(self) -> bool:
        return bool(answering([self._address]))

    # --- workers ------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        assert self._served is not None
        self._starts += 1
        left = self._until - self._margin - time.time()
        secret = []
        if self._served.tls:
            keys = os.path.join(self._folder, f"tls-{self._served.id}")
            secret = ["--tls", tls.keep(self._served.tls, keys)]
        command = [
            *(sys.executable, "-m", "pandaflow.executors.worker", self._address),
            *("--nthreads", "1", "--name", f"{self._name}-{number}.{self._starts}"),
            *("--local-directory", self._folder, "--memory-limit", "0"),
            *("--resources", json.dumps(offers(self._slot, left))),
            *secret,
        ]
        env = {**os.environ, **devices(os.environ, number, self._slot.gpus)}
        env |= {PILOT_UNTIL: repr(self._until - self._margin), TEMPORARY: "1"}
        self._workers[number] = subprocess.Popen(command, stdin=subprocess.PIPE, env=env)

    def _mend(self) -> None:
        """Start workers again that a payload took along; not those that ended as they should."""
        for number, process in list(self._workers.items()):
            code = process.poll()
            if code is None:
                continue
            del self._workers[number]
            if code != 0:
                now = time.monotonic()
                self._deaths = [at for at in self._deaths if now - at < 60.0] + [now]
                self._start(number)

    def _drain(self) -> None:
        """Let jobs that run end, as long as there is time; workers that are idle go at once."""
        for process in self._workers.values():
            process.send_signal(signal.SIGUSR1)
        while self._workers and time.time() < self._until - _LAST_S:
            self._workers = {n: p for n, p in self._workers.items() if p.poll() is None}
            time.sleep(_LOOK_S)

    def _end(self) -> None:
        for process in self._workers.values():
            process.kill()
        for process in self._workers.values():
            process.wait()
        self._workers.clear()


def devices(env: Mapping[str, str], number: int, each: int) -> dict[str, str]:
    """Return the variables that give slot ``number`` its ``each`` GPUs of those in ``env``."""
    found = {}
    for name in _DEVICES:
        known = [one for one in env.get(name, "").split(",") if one]
        if each and known:
            found[name] = ",".join(known[number * each : (number + 1) * each])
    return found


def _root(scratch: str | None) -> str | None:
    """Return the folder for files on this node; the variables in its name are the node's."""
    if scratch is None:
        return None
    folder = os.path.expandvars(scratch)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        sys.exit(f"{socket.gethostname()}: scratch={folder!r} is no folder that can be written")
    return folder


def main(arguments: list[str] | None = None) -> None:
    """Run a pilot until its time is up."""
    parser = argparse.ArgumentParser(prog="python -m pandaflow.executors.batch.pilot")
    parser.add_argument("contact", type=Path)
    parser.add_argument("--slot", type=Slot.parse, default=Slot(1))
    parser.add_argument("--walltime", type=float, required=True, help="seconds from now")
    parser.add_argument("--margin", type=float, default=30.0)
    parser.add_argument("--patience", type=float, default=300.0)
    parser.add_argument("--scratch", default=None)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(
        prefix="pandaflow-pilot-", dir=_root(options.scratch)
    ) as folder:
        Pilot(
            options.contact,
            slot=options.slot,
            until=time.time() + options.walltime,
            margin=options.margin,
            patience=options.patience,
            folder=folder,
        ).run()


if __name__ == "__main__":
    main()
