"""What the next driver of a run must know to go on with it: task group, tasks of each bundle.

A file of lines in the run's folder, only appended to. A line cut short by a power cut is left out.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pandaflow.core.bundle import BundleSpec
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus.flights import Commands, Flight


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
    """The journal of one run; keeps nothing where the results are no local folder.

    Parameters
    ----------
    results : ResultStore
    """

    def __init__(self, results: ResultStore) -> None:
        folder = results.local
        self._path = Path(folder, "globus", "journal") if folder is not None else None
        self.group: str | None = None
        self.entries: dict[int, Entry] = {}
        for line in self._lines():
            self._take(line)

    def _lines(self) -> list[bytes]:
        with suppress(OSError):
            if self._path is not None:
                return self._path.read_bytes().splitlines()
        return []

    def _take(self, line: bytes) -> None:
        with suppress(ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError):
            told = json.loads(line)
            if "group" in told:
                self.group = str(told["group"])
            else:
                entry: Entry = pickle.loads(base64.b64decode(told["entry"]))
                self.entries[entry.spec.bundle] = entry

    def note(self, group: str | None, flights: Sequence[Flight]) -> None:
        """Note that the service has accepted bundles; they survive the driver, not the machine.

        Raises
        ------
        OSError
            The run's folder cannot be written.
        """
        if self._path is None:
            return
        lines: list[dict[str, Any]] = []
        if group != self.group:
            self.group = group
            lines.append({"group": group})
        lines += [_entry(flight) for flight in flights if flight.place is not None]
        self._append(json.dumps(line).encode() for line in lines)

    def _append(self, lines: Iterable[bytes]) -> None:
        assert self._path is not None
        data = b"".join(b"\n" + line for line in lines)
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True)
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
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
