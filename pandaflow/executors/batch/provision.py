"""How many nodes of which site, cut into which slots: from what runs and what waits.

Everything here is a function of its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pandaflow.core.brokerage import Load, Site, rank
from pandaflow.core.model import Resources
from pandaflow.executors.batch.slots import Slot, serves, slot_of


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
    there: Mapping[Kind, int] | None = None,
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
    there : mapping of Kind to int, optional
        Pilots that are there or on their way.

    Notes
    -----
    Nodes that run something are kept. What is left is given out a node at a time, in turns: each
    kind of job takes slots that are spare, also larger ones, then a pilot that was asked for
    already, and else the next node of the site that is best for it and has one. So a pilot on
    its way does not send the jobs it was asked for elsewhere, although it lowers the weight of
    its site for others. For jobs that no node can run the kind with the most gives one up.
    """
    left = {asked: count for asked, count in waiting.items() if count > 0}
    own = {asked: kinds(asked, sites, loads) for asked in left}
    share = _Share(busy, room, there or {})
    while left:
        for asked in list(left):
            taken = share.take(asked, own[asked], left[asked])
            left[asked] -= taken
            if not taken or not left[asked]:
                del left[asked]
    for asked, wanted in own.items():
        share.make_room(asked, wanted)
    return share.nodes


class _Share:
    """What has been given out."""

    def __init__(
        self, busy: Mapping[Kind, int], room: Mapping[str, int], there: Mapping[Kind, int]
    ) -> None:
        self._there = there
        self.nodes = {kind: -(-count // kind.slot.count) for kind, count in busy.items() if count}
        self._spare = {kind: n * kind.slot.count - busy[kind] for kind, n in self.nodes.items()}
        self._room = dict(room)
        for kind, number in self.nodes.items():
            self._room[kind.site] = self._room.get(kind.site, 0) - number

    def _usable(self, asked: Resources, own: Sequence[Kind]) -> list[Kind]:
        """Return kinds that have nodes and can run such jobs; those made for them first."""
        sites = {kind.site for kind in own}
        others = [
            kind
            for kind in self.nodes
            if kind not in own and kind.site in sites and serves(kind.slot, asked)
        ]
        return [kind for kind in (*own, *others) if self.nodes.get(kind)]

    def take(self, asked: Resources, own: Sequence[Kind], jobs: int) -> int:
        """Take slots of one kind: those that are spare, or those of a new node; say how many."""
        spare = (kind for kind in self._usable(asked, own) if self._spare[kind] > 0)
        kind = next(spare, None) or self._new_node(own)
        if kind is None:
            return 0
        taken = min(self._spare[kind], jobs)
        self._spare[kind] -= taken
        return taken

    def _new_node(self, own: Sequence[Kind]) -> Kind | None:
        free = [kind for kind in own if self._room.get(kind.site, 0) > 0]
        asked_for = (kind for kind in free if self._there.get(kind, 0) > self.nodes.get(kind, 0))
        kind = next(asked_for, free[0] if free else None)
        if kind is not None:
            self.nodes[kind] = self.nodes.get(kind, 0) + 1
            self._spare[kind] = self._spare.get(kind, 0) + kind.slot.count
            self._room[kind.site] -= 1
        return kind

    def make_room(self, asked: Resources, own: Sequence[Kind]) -> None:
        """Take a node from the kind that has the most, for jobs that no node can run."""
        if self._usable(asked, own):
            return
        for kind in own:
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
