"""Which ready bundles a pilot gets: functions of what it has and what they need."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from pandaflow.grid.messages import Acquire, Needs


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of ``pool_classes``: bundles of one VO with equal needs."""

    no: int
    vo: str
    needs: Needs


@dataclass(frozen=True, slots=True)
class Ready:
    """A bundle that waits; those of lower rank, then of lower id, go first."""

    rank: int
    id: int
    run: int


#: Fetches up to so many more of a class, after this one.
More = Callable[[int, Ready], list[Ready]]


class Shelf:
    """Ready bundles of a class, first one first; more are fetched when they run out.

    Parameters
    ----------
    kind : Kind
    rows : sequence of Ready
        The first of them.
    size : int
        How many were asked for; fewer rows: there are no more.
    more : callable
        Fetches more of them.
    """

    def __init__(self, kind: Kind, rows: Sequence[Ready], size: int, more: More) -> None:
        self.kind = kind
        self._rows = deque(rows)
        self._size, self._more = size, more
        self._dry = len(rows) < size

    def head(self) -> Ready | None:
        """Return the first, if there is one."""
        return self._rows[0] if self._rows else None

    def take(self) -> Ready:
        """Take the first away."""
        first = self._rows.popleft()
        if not self._rows and not self._dry:
            self._size *= 2
            self._rows.extend(self._more(self._size, first))
            self._dry = len(self._rows) < self._size
        return first


def suits(kind: Kind, vo: str, ask: Acquire, tags: frozenset[str]) -> bool:
    """Tell whether a pilot could run bundles of a class, were it empty.

    Parameters
    ----------
    kind : Kind
    vo : str
        The pilot's.
    ask : Acquire
    tags : frozenset of str
        The pilot's and its queue's.
    """
    needs = kind.needs
    return (
        kind.vo == vo
        and needs.queue in ("", ask.queue)
        and needs.python in ("", ask.python)
        and needs.pandaflow in ("", ask.pandaflow)
        and (not needs.container or bool(ask.containers))
        and tags.issuperset(needs.tags)
        and not _over(needs.walltime, ask.walltime)
        and Room(ask).holds(needs)
    )


def _over(asked: float | None, there: float | None) -> bool:
    return asked is not None and there is not None and asked > there


class Room:
    """What a pilot has left; None: it does not say."""

    def __init__(self, ask: Acquire) -> None:
        self.cores, self.gpus = ask.cores, ask.gpus
        self._memory, self._disk = ask.memory, ask.disk

    def holds(self, needs: Needs) -> bool:
        """Tell whether there is room for one more."""
        return (
            needs.cores <= self.cores
            and needs.gpus <= self.gpus
            and not _over(needs.memory, self._memory)
            and not _over(needs.disk, self._disk)
        )

    def give(self, needs: Needs) -> None:
        """Take away what one needs."""
        self.cores -= needs.cores
        self.gpus -= needs.gpus
        if self._memory is not None:
            self._memory -= needs.memory or 0
        if self._disk is not None:
            self._disk -= needs.disk or 0


def serve(ask: Acquire, shelves: Sequence[Shelf], count: int) -> tuple[list[Ready], int]:
    """Take what a pilot gets from the shelves that suit it.

    First what is near to its queue, then by rank, then by id. What finds no room any more lets
    others pass.

    Returns
    -------
    list of Ready
        At most ``count``.
    int
        Cores that are still free.
    """
    room, taken = Room(ask), list[Ready]()
    far = [ask.queue not in shelf.kind.needs.near for shelf in shelves]
    heads = [
        (far[at], head.rank, head.id, at)
        for at, shelf in enumerate(shelves)
        if (head := shelf.head())
    ]
    heapify(heads)
    while heads and len(taken) < count:
        at = heappop(heads)[-1]
        shelf = shelves[at]
        if not room.holds(shelf.kind.needs):
            continue
        room.give(shelf.kind.needs)
        taken.append(shelf.take())
        if head := shelf.head():
            heappush(heads, (far[at], head.rank, head.id, at))
    return taken, room.cores
