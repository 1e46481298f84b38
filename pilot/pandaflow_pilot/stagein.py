"""Inputs: brought into the work directory, checked, from the first replica that is right."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from pandaflow_pilot import transfer
from pandaflow_pilot.api import Pauses
from pandaflow_pilot.checksums import checksum
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.leases import Input, inside
from pandaflow_pilot.log import LOGGER
from pandaflow_pilot.transfer import Check, TransferError

#: Rounds through the replicas that may still go well.
ROUNDS = 3
#: A replica that begins like this is a name, which a catalogue knows the replicas of.
RUCIO = "rucio://"

Sleep = Callable[[float], None]


class Catalogue(Protocol):
    """Knows where files are that have a name of their own."""

    def bring(self, given: Input, url: str, target: str, check: Check) -> None:
        """Copy the file ``url`` to ``target`` from any of its replicas, and check it.

        Raises
        ------
        PilotError, Aborted
        """


def stage_in(
    given: Input, folder: str, check: Check, sleep: Sleep, catalogue: Catalogue | None = None
) -> None:
    """Bring a file into ``folder``.

    Parameters
    ----------
    given : Input
    folder : str
        The job's work directory.
    check : callable
        Raises ``Aborted`` when the file is no more wanted.
    sleep : callable
        Waits; between two rounds.
    catalogue : Catalogue, optional
        For replicas ``rucio://SCOPE:NAME``.

    Raises
    ------
    PilotError
        Names each replica with what was wrong.
    Aborted
    """
    target = os.path.join(folder, inside(given.name))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    worst: dict[str, PilotError] = {}
    replicas, pauses = list(given.replicas), Pauses(1.0, 20.0)
    for number in range(ROUNDS):
        if number:
            sleep(pauses.next())
        for url in list(replicas):
            error = _tried(given, url, target, check, catalogue)
            if error is None:
                return
            LOGGER.warning("%s: %s", given.name, error)
            worst[url] = error
            if not error.transient:
                replicas.remove(url)
        if not replicas:
            break
    raise _together(given, list(worst.values()))


def _tried(
    given: Input, url: str, target: str, check: Check, catalogue: Catalogue | None
) -> PilotError | None:
    """Try one replica; return what was wrong with it."""
    try:
        if catalogue is not None and url.startswith(RUCIO):
            catalogue.bring(given, url, target, check)
        else:
            transfer.fetch(url, target, check)
        verify(given, url, target)
    except TransferError as error:
        return failed(url, error)
    except PilotError as error:
        with suppress(OSError):
            os.unlink(target)
        return error
    return None


def failed(place: str, error: TransferError) -> PilotError:
    """Return the error of a replica that could not be read."""
    name = "stage_in_timeout" if error.timeout else "stage_in"
    name = "input_missing" if error.missing else name
    return PilotError(name, f"{place}: {error}", transient=error.transient)


def verify(given: Input, url: str, path: str) -> None:
    """Check size and checksum of a file that has come.

    Raises
    ------
    PilotError
    """
    size = os.path.getsize(path)
    if given.size is not None and size != given.size:
        text = f"{url}: has {size} bytes, not {given.size}"
        raise PilotError("input_size", text, transient=True)
    kind = given.checksum.partition(":")[0]
    if not given.checksum:
        return
    try:
        found = checksum(path, kind)
    except ValueError as error:
        raise PilotError("protocol", str(error)) from None
    if found != given.checksum.lower():
        text = f"{url}: its checksum is {found}, not {given.checksum}"
        raise PilotError("input_checksum", text, transient=True)


def _together(given: Input, errors: list[PilotError]) -> PilotError:
    names = {error.code.name for error in errors}
    name = names.pop() if len(names) == 1 else "stage_in"
    return PilotError(name, f"input {given.name}: " + "; ".join(map(str, errors)))
