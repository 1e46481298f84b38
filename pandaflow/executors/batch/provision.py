"""How many nodes of which site, cut into which slots: from what runs and what waits.

Everything here is a function of its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pandaflow.core.brokerage import Load, Site, rank
from pandaflow.core.model import Resources
from pandaflow.executors.batch.slots import Slot, slot_of


class Kind(NamedTuple):
    """Pilots of a site that are cut into equal slots."""

    site: str
    slot: Slot


def provision(
    busy: Mapping[Kind, int],
    waiting: Mapping[Resources, int],
    sites: Mapping[str, Site],
    room: Mapping[str, int],
    loads: Mapping[str, Load],
) -> dict[Kind, int]:
    """Return the pilots to have of each kind.

    Parameters
    ----------
    busy : mapping of Kind to int
        Slots that run something.
    waiting : mapping of Resources to int
        Jobs that could run if there were a slot, by what they ask for.
    sites : mapping of str to Site
        Those that may be used, in the order of preference.
    room : mapping of str to int
        Nodes of each that may be used.
    loads : mapping of str to Load
        For the weights of the sites.

    Notes
    -----
    Nodes that run something are kept. What is left is given out a node at a time, in turns: each
    kind of job gets the next node of the site that is best for it and has one. Where there are
    not enough nodes for all kinds, the kind with the most gives one up.
    """
    choices = {asked: kinds(asked, sites, loads) for asked in waiting}
    share = _Share(busy, room)
    left = {asked: count for asked, count in waiting.items() if count > 0}
    while left:
        for asked in list(left):
            left[asked] -= share.take(choices[asked], left[asked])
            if left[asked] <= 0 or not share.open_to(choices[asked]):
                del left[asked]
    for asked in waiting:
        share.make_room(choices[asked])
    return share.nodes


class _Share:
    """What has been given out."""

    def __init__(self, busy: Mapping[Kind, int], room: Mapping[str, int]) -> None:
        self.nodes = {kind: -(-count // kind.slot.count) for kind, count in busy.items() if count}
        self._spare = {kind: n * kind.slot.count - busy[kind] for kind, n in self.nodes.items()}
        self._room = dict(room)
        for kind, number in self.nodes.items():
            self._room[kind.site] = self._room.get(kind.site, 0) - number

    def _has(self, kind: Kind) -> bool:
        return self._spare.get(kind, 0) > 0 or self._room.get(kind.site, 0) > 0

    def open_to(self, wanted: list[Kind]) -> bool:
        """Whether there is a slot of one of these kinds, or a node for it."""
        return any(map(self._has, wanted))

    def take(self, wanted: list[Kind], jobs: int) -> int:
        """Take slots of a node of the best kind that has one; return how many."""
        kind = next(filter(self._has, wanted), None)
        if kind is None:
            return 0
        if self._spare.get(kind, 0) <= 0:
            self.nodes[kind] = self.nodes.get(kind, 0) + 1
            self._spare[kind] = kind.slot.count
            self._room[kind.site] -= 1
        taken = min(self._spare[kind], jobs)
        self._spare[kind] -= taken
        return taken

    def make_room(self, wanted: list[Kind]) -> None:
        """Take a node from the kind that has the most, for jobs that have none at all."""
        if any(self.nodes.get(kind) for kind in wanted):
            return
        for kind in wanted:
            others = [other for other, n in self.nodes.items() if other.site == kind.site and n > 1]
            if others:
                self.nodes[max(others, key=self.nodes.__getitem__)] -= 1
                self.nodes[kind] = 1
                return


def kinds(resources: Resources, sites: Mapping[str, Site], loads: Mapping[str, Load]) -> list[Kind]:
    """Return the kinds of pilots that are made for such jobs, best site first."""
    found = []
    for site, _ in rank(resources, list(sites.values()), loads).sites:
        slot = slot_of(resources, site)
        if slot is not None:
            found.append(Kind(site.name, slot))
    return found
