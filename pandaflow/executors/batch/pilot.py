"""What runs in an allocation: keeps Dask workers going until its time is up.

``python -m pandaflow.executors.batch.pilot CONTACT --slot '{"count": 4}' --walltime 7200``: reads
where the scheduler is from the contact file and forks one worker process a slot, so that a
payload that crashes takes no other with it and Python code runs on all cores. When the scheduler
vanishes the pilot waits a while for another driver of the same run to write a new contact:
allocations survive their driver. A driver may have the node cut otherwise when other jobs wait.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from pandaflow.core.errors import DataError
from pandaflow.executors import tls, worker
from pandaflow.executors.batch.contact import Contact, answering, read_contact, read_order
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

#: What people call this machine: virtual nodes of Slurm share one.
_NODE = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
#: Variables that say how many threads libraries use.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


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
        Seconds before that, from which on it takes no more work; up to twice as many, so that
        not all pilots go at once.
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
        self._id = os.environ.get("PANDAFLOW_BATCH_ID") or str(os.getpid())
        self._until, self._patience = until, patience
        self._stop_at = until - margin * (1.0 + stagger(self._id))
        self._nursery = worker.Nursery()
        self._workers: dict[int, BaseProcess] = {}
        self._served: Contact | None = None
        self._address = ""
        self._leave, self._starts = threading.Event(), 0
        self._deaths: list[float] = []
        self._met = time.monotonic()

    def run(self) -> Slot | None:
        """Serve one driver after the other until the time is up.

        Returns
        -------
        Slot or None
            How the driver wants the node to be cut from now on; None: the pilot is to end.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, lambda *_: self._leave.set())
        knocked = 0.0
        try:
            while not self._leave.is_set() and time.time() < self._stop_at:
                contact = self._read()
                if contact is not None and contact.over:
                    return None
                wanted = read_order(self._contact, self._id) or self._slot
                if wanted != self._slot:
                    self._drain()
                    return None if self._leave.is_set() else wanted
                if time.monotonic() - knocked > _KNOCK_S or contact != self._served:
                    knocked = time.monotonic()
                    self._knock(contact)
                self._mend()
                if self._unwanted():
                    return None
                self._leave.wait(_LOOK_S)
            self._drain()
            return None
        finally:
            self._end()

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
        keys = os.path.join(self._folder, f"tls-{self._served.id}")
        options = worker.Options(
            scheduler=self._address,
            name=f"pilot-{self._id}-{self._slot.tag}-{number}.{self._starts}@{_NODE}",
            local_directory=self._folder,
            memory_limit="0",
            resources=offers(self._slot, self._stop_at - time.time()),
            tls=tls.keep(self._served.tls, keys) if self._served.tls else None,
        )
        env = devices(os.environ, number, self._slot.gpus)
        env |= {PILOT_UNTIL: repr(self._stop_at), TEMPORARY: "1"}
        self._workers[number] = self._nursery.fork(options, env)

    def _mend(self) -> None:
        """Start workers again that a payload took along; not those that ended as they should."""
        for number, process in list(self._workers.items()):
            if process.exitcode is None:
                continue
            del self._workers[number]
            if process.exitcode != 0:
                now = time.monotonic()
                self._deaths = [at for at in self._deaths if now - at < 60.0] + [now]
                self._start(number)

    def _drain(self) -> None:
        """Let jobs that run end, as long as there is time; workers that are idle go at once."""
        while time.time() < self._until - _LAST_S:
            self._workers = {n: p for n, p in self._workers.items() if p.exitcode is None}
            if not self._workers:
                return
            contact = self._read()
            if contact is not None and contact.over:
                return
            for process in self._workers.values():
                os.kill(process.pid or 0, signal.SIGUSR1)
            time.sleep(_LOOK_S / 2)

    def _end(self) -> None:
        for process in self._workers.values():
            process.kill()
        for process in self._workers.values():
            process.join()
        self._workers.clear()


def stagger(pilot: str) -> float:
    """Return a share of the margin, another one for each pilot.

    Pilots that began together would all end together, and the run would stand still until others
    are there.
    """
    return zlib.crc32(pilot.encode()) % 1000 / 1000


def devices(env: Mapping[str, str], number: int, each: int) -> dict[str, str]:
    """Return the variables that give slot ``number`` its ``each`` GPUs of those in ``env``."""
    found = {}
    for name in _DEVICES:
        known = [one for one in env.get(name, "").split(",") if one]
        if each and known:
            found[name] = ",".join(known[number * each : (number + 1) * each])
    return found


def limit_threads(cores: int) -> None:
    """Let libraries use the cores of a slot and not those of the node, unless somebody said more.

    They count cores when they are imported, and every slot of a node would get threads for all.
    """
    for name in _THREADS:
        os.environ.setdefault(name, str(cores))


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
    parser.add_argument("--walltime", type=float, default=3600.0, help="seconds from now")
    parser.add_argument("--until", type=float, help="the same as seconds since the epoch")
    parser.add_argument("--margin", type=float, default=30.0)
    parser.add_argument("--patience", type=float, default=300.0)
    parser.add_argument("--scratch", default=None)
    options = parser.parse_args(arguments)
    until = options.until or time.time() + options.walltime
    limit_threads(options.slot.cores)
    with tempfile.TemporaryDirectory(
        prefix="pandaflow-pilot-", dir=_root(options.scratch)
    ) as folder:
        again = Pilot(
            options.contact,
            slot=options.slot,
            until=until,
            margin=options.margin,
            patience=options.patience,
            folder=folder,
        ).run()
    if again is not None:
        # A new program: libraries of mathematics have counted their threads in this one.
        words = [*sys.argv[1:], "--slot", again.dump(), "--until", repr(until)]
        os.execv(sys.executable, [sys.executable, "-m", __spec__.name, *words])


if __name__ == "__main__":
    main()
