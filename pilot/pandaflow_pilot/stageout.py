"""Outputs: checked, and reported themselves if they are small, else copied to the store."""

from __future__ import annotations

import hashlib
import os
import stat
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pandaflow_pilot import transfer
from pandaflow_pilot.api import Pauses
from pandaflow_pilot.checksums import checksum
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.leases import Lease, encoded, inside
from pandaflow_pilot.log import LOGGER
from pandaflow_pilot.transfer import Check, TransferError

_TRIES = 3


@dataclass
class Room:
    """Bytes that may still travel in the bundle's report."""

    left: int


@dataclass(frozen=True)
class Shelf:
    """Where the outputs of a job go.

    Attributes
    ----------
    lease : Lease
    position : int
        Of the job.
    room : Room
        Shared by the bundle's jobs.
    check : callable
        Raises ``Aborted`` when the outputs are no more wanted.
    sleep : callable
        Waits, before another try.
    """

    lease: Lease
    position: int
    room: Room
    check: Check
    sleep: Callable[[float], None]


def stage_out(names: tuple[str, ...], folder: str, shelf: Shelf) -> list[dict[str, Any]]:
    """Take care of the outputs of a job; return them as reports carry them.

    Parameters
    ----------
    names : tuple of str
    folder : str
        The job's work directory, in which nothing runs any more.
    shelf : Shelf

    Raises
    ------
    PilotError, Aborted
    """
    paths = [(name, found(folder, name)) for name in names]
    return [_taken(name, path, shelf) for name, path in paths]


def found(folder: str, name: str) -> str:
    """Return where an output really lies.

    Raises
    ------
    PilotError
        It is not there, is no regular file, or lies outside of ``folder``.
    """
    path = os.path.join(folder, inside(name))
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if not os.path.lexists(path):
        raise PilotError("missing_output", f"the output {name} is not there")
    if not real.startswith(root + os.sep):
        raise PilotError("bad_output", f"the output {name} leads out of the work directory")
    try:
        mode = os.lstat(real).st_mode
    except OSError:
        raise PilotError("missing_output", f"the output {name} is a link to nothing") from None
    if not stat.S_ISREG(mode):
        raise PilotError("bad_output", f"the output {name} is no regular file")
    return real


def destination(lease: Lease, position: int, name: str) -> str:
    """Return the URL of an output; the lease's word is in it as a digest only."""
    word = hashlib.sha256(lease.word.encode()).hexdigest()[:12]
    parts = [lease.run, lease.task, f"{lease.bundle}-{lease.attempt}-{word}", str(position)]
    # "." and ".." stay what they are when quoted.
    plain = [urllib.parse.quote(part, safe="").replace(".", "%2E") for part in parts[:2]]
    return "/".join([lease.data.rstrip("/"), *plain, *parts[2:], *map(_quoted, name.split("/"))])


def _quoted(part: str) -> str:
    return urllib.parse.quote(part, safe=" +=,@~")


def _taken(name: str, path: str, shelf: Shelf) -> dict[str, Any]:
    try:
        size = os.path.getsize(path)
        file = {"name": name, "size": size, "checksum": checksum(path)}
        if size <= shelf.room.left:
            shelf.room.left -= size
            with open(path, "rb") as opened:
                return {**file, "data": encoded(opened.read())}
    except OSError as error:
        raise PilotError("bad_output", f"the output {name} cannot be read: {error}") from None
    if not shelf.lease.data:
        raise PilotError(
            "no_store",
            f"the output {name} has {size} bytes; reports of a bundle carry "
            f"{shelf.lease.inline}. Give the executor a store for outputs (data=...)",
        )
    return {**file, "url": _put(name, path, shelf)}


def _put(name: str, path: str, shelf: Shelf) -> str:
    url, pauses = destination(shelf.lease, shelf.position, name), Pauses(1.0, 20.0)
    for number in range(_TRIES):
        try:
            transfer.store(path, url, shelf.check)
            return url
        except TransferError as error:
            LOGGER.warning("output %s: %s", name, error)
            if not error.transient or number == _TRIES - 1:
                code = "stage_out_timeout" if error.timeout else "stage_out"
                raise PilotError(code, f"output {name} to {url}: {error}") from None
            shelf.sleep(pauses.next())
    raise AssertionError("the last try returns or raises")
