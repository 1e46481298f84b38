"""The contact file: where the driver of a run is, for pilots that look for it.

A driver writes it when it begins and when it ends; pilots read it again and again. It may hold
the keys of the run's cluster, so only the user can read it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pandaflow.core.errors import DataError
from pandaflow.executors.batch.slots import Slot

#: Seconds that an address is given to answer.
_KNOCK_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Where a driver is.

    Attributes
    ----------
    id : str
        Another one for each driver.
    addresses : tuple of str
        Of its scheduler, ``tcp://10.0.0.1:8786``: the best first.
    tls : mapping of str to str
        Keys, if it wants to be talked to by TLS.
    over : bool
        The run has ended: pilots are not needed any more.
    """

    id: str
    addresses: tuple[str, ...]
    tls: Mapping[str, str] = field(default_factory=dict)
    over: bool = False

    def write(self, path: Path) -> None:
        """Write it so that it appears whole or not at all, for this user only.

        Raises
        ------
        OSError
            The folder cannot be written.
        """
        scratch = path.with_name(f"{path.name}.part")
        scratch.unlink(missing_ok=True)
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        scratch.replace(path)


def read_contact(path: Path) -> Contact | None:
    """Return what the driver wrote; None if nothing is there.

    Raises
    ------
    DataError
        It is something else.
    """
    try:
        said = path.read_bytes()
    except OSError:
        return None
    try:
        return _parse(json.loads(said.decode("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no contact of a driver: {error!r}") from error


def _parse(said: Mapping[str, Any]) -> Contact:
    return Contact(
        id=str(said["id"]),
        addresses=tuple(str(address) for address in said["addresses"]),
        tls={str(name): str(text) for name, text in said["tls"].items()},
        over=said["over"] is True,
    )


def write_order(contact: Path, pilot: str, slot: Slot) -> None:
    """Tell a pilot how to cut its node from now on.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    path = contact.with_name(f"{pilot}.slot")
    scratch = path.with_name(f"{path.name}.part")
    scratch.write_text(slot.dump(), encoding="utf-8")
    scratch.replace(path)


def read_order(contact: Path, pilot: str) -> Slot | None:
    """Return how a pilot is to cut its node, if the driver has told it."""
    with suppress(OSError, DataError, UnicodeDecodeError):
        return Slot.parse(contact.with_name(f"{pilot}.slot").read_text(encoding="utf-8"))
    return None


def answering(addresses: Iterable[str]) -> str:
    """Return the first address at which somebody listens; empty: none."""
    return next((address for address in addresses if _answers(address)), "")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S):
            return True
    except (OSError, ValueError):
        return False


def own_addresses(url: str) -> tuple[str, ...]:
    """Return the addresses under which other machines may know a listener here.

    Parameters
    ----------
    url : str
        What it listens at, ``tls://0.0.0.0:8786`` or with the address of one network.

    Returns
    -------
    tuple of str
        For a listener on all networks: the addresses of this machine, loopback last.
    """
    scheme, _, place = url.rpartition("://")
    host, _, port = place.rpartition(":")
    if host not in ("0.0.0.0", "[::]", ""):
        return (url,)
    found = [
        address.address
        for each in psutil.net_if_addrs().values()
        for address in each
        if address.family == socket.AF_INET
    ]
    hosts = sorted(set(found), key=lambda one: (one.startswith("127."), found.index(one)))
    return tuple(f"{scheme}://{host}:{port}" for host in hosts)
