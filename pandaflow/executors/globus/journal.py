"""What the next driver of a run must know to go on with it: task group, tasks of each bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pandaflow.core.bundle import BundleSpec
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus.flights import Commands, Flight, Place
from pandaflow.executors.remote import journal


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
        self._file = journal.Journal(results, "globus")
        self.group: str | None = None
        self.user_endpoints: dict[str, str] = {}
        self.entries: dict[int, Entry] = {}
        for line in self._file.lines():
            with suppress(ValueError, LookupError):
                self._take(line)

    def _take(self, told: Mapping[str, Any]) -> None:
        if "group" in told:
            self.group = str(told["group"])
        elif "user_endpoint" in told:
            self.user_endpoints[str(told["endpoint"])] = str(told["user_endpoint"])
        else:
            entry: Entry = journal.thaw(told["entry"], (Entry, Commands))
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
        self._file.append(lines)

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
        self._file.append([{"endpoint": name, "user_endpoint": told[name]} for name in new])


def _entry(flight: Flight) -> dict[str, Any]:
    assert flight.place is not None
    spec = replace(flight.spec, sources={})
    entry = Entry(spec, flight.place.name, tuple(flight.tasks), flight.commands)
    return {"bundle": flight.number, "entry": journal.freeze(entry)}
