"""What the next driver of a run must know: task group, user endpoints, tasks of each bundle.

It lies beside the run's results. In a folder it is a file of lines, only appended to; a line cut
short by a power cut is left out. In an object store, where nothing can be appended, each note is an
object of its own.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pandaflow.core.bundle import BundleSpec
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus import wire
from pandaflow.executors.globus.flights import Commands, Flight, Place


@dataclass(frozen=True, slots=True)
class Entry:
    """A bundle that was accepted by the service.

    Attributes
    ----------
    spec : BundleSpec
        Without items: it has been sent.
    place : str
        Name of the endpoint.
    tasks : tuple of str
        Ids of its calls.
    commands : Commands or None
        How its calls go together, if they are commands.
    """

    spec: BundleSpec
    place: str
    tasks: tuple[str, ...]
    commands: Commands | None


class Journal:
    """The journal of one run.

    Parameters
    ----------
    results : ResultStore
        Of the run.

    Attributes
    ----------
    group : str or None
        The task group that was noted last.
    user_endpoints : dict of str to str
        Ids of the user endpoints that do the work, by name of endpoint.
    entries : dict of int to Entry
        What earlier sessions have noted, by bundle.
    """

    def __init__(self, results: ResultStore) -> None:
        folder = results.local
        self._path = Path(folder, "globus", "journal") if folder is not None else None
        self._url = f"{results.url}/globus/journal"
        self._written = 0
        self.group: str | None = None
        self.user_endpoints: dict[str, str] = {}
        self.entries: dict[int, Entry] = {}
        with suppress(OSError):  # nothing is known: what was sent is sent again
            for line in self._lines():
                self._take(line)

    def _lines(self) -> Iterator[bytes]:
        if self._path is not None:
            yield from self._path.read_bytes().splitlines()
            return
        there = sorted(wire.names(self._url))
        self._written = len(there)
        for name in there:
            yield from wire.read(wire.Ref(f"{self._url}/{name}", 0)).splitlines()

    def _take(self, line: bytes) -> None:
        with suppress(ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError):
            told = json.loads(line)
            if "group" in told:
                self.group = str(told["group"])
            elif "user_endpoint" in told:
                self.user_endpoints[str(told["endpoint"])] = str(told["user_endpoint"])
            else:
                entry: Entry = pickle.loads(base64.b64decode(told["entry"]))
                self.entries[entry.spec.bundle] = entry

    def note(self, group: str | None, flights: Sequence[Flight]) -> None:
        """Note that the service has accepted bundles; they survive the driver, not the machine.

        Raises
        ------
        OSError
            It cannot be written.
        """
        lines: list[Mapping[str, Any]] = []
        if group != self.group:
            self.group = group
            lines.append({"group": group})
        lines += [_entry(flight) for flight in flights if flight.place is not None]
        self._append(lines)

    def note_user_endpoints(self, places: Iterable[Place]) -> None:
        """Note the user endpoints that have become known: the next driver sees if they are dead.

        Raises
        ------
        OSError
            It cannot be written.
        """
        told = {place.name: place.user_endpoint for place in places if place.user_endpoint}
        new = [name for name, user in told.items() if self.user_endpoints.get(name) != user]
        self.user_endpoints |= told
        self._append([{"endpoint": name, "user_endpoint": told[name]} for name in new])

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if lines:
            self._write(b"".join(b"\n" + json.dumps(line).encode() for line in lines))

    def _write(self, data: bytes) -> None:
        if self._path is None:
            # In the order of writing; a driver that was taken for dead must not write over it.
            name = f"{self._written:08d}-{secrets.token_hex(4)}"
            wire.write(f"{self._url}/{name}", data)
            self._written += 1
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        try:
            file = os.open(self._path, flags, 0o644)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True)
            file = os.open(self._path, flags, 0o644)
        try:
            os.write(file, data)
        finally:
            os.close(file)


def _entry(flight: Flight) -> dict[str, Any]:
    assert flight.place is not None
    spec = replace(flight.spec, sources={})
    entry = Entry(spec, flight.place.name, tuple(flight.tasks), flight.commands)
    data = pickle.dumps(entry, protocol=5)
    return {"bundle": flight.number, "entry": base64.b64encode(data).decode()}
