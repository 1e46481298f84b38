"""The order in which files are asked of a tape system: in turns between runs, by dataset within.

Turns are deficit round robin (Shreedhar and Varghese, SIGCOMM 1995): in each round a run may ask
for a quantum of bytes more, and what it does not use up it keeps for the next. So runs get equal
shares of the bytes, whatever the sizes of their files, at constant cost a file, and no run waits
longer than a round. Taking always from the run with the least would do the same, but change runs,
and so tapes, with every file.

Within a run files come by priority, then by dataset: a tape system mounts few tapes if it is asked
for what was written together. A group of files takes no more members once it is being served, so
that a dataset that grows without end does not hold up others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

#: Says what a file costs in bytes if it still waits for a run at this place; None if it does not.
Cost: TypeAlias = Callable[[str, "Entry"], int | None]


class Entry(NamedTuple):
    """A file in the queue of a run, in the order in which they are served.

    Attributes
    ----------
    rank : int
        Negative priority.
    group, place : int
        Of its dataset, and its own: both only grow.
    file : str
    """

    rank: int
    group: int
    place: int
    file: str


@dataclass(frozen=True, slots=True)
class QueueRecord:
    """What is kept of a queue besides its entries.

    Attributes
    ----------
    deficits : tuple of (str, int)
        Runs in the order of their turns, with the bytes that they may ask for.
    groups : tuple of (str, str, int, int)
        Run, dataset, rank and number of the groups that take members.
    last_group, last_place : int
    """

    deficits: tuple[tuple[str, int], ...] = ()
    groups: tuple[tuple[str, str, int, int], ...] = ()
    last_group: int = 0
    last_place: int = 0


class TapeQueue:
    """Files that wait for a tape system.

    Entries of files that wait no longer stay until they come to the front; ``cost`` tells them.
    """

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._heaps: dict[str, list[Entry]] = {}
        #: In the order of turns.
        self._deficits: dict[str, int] = {}
        self._groups: dict[tuple[str, str, int], int] = {}
        self._group_keys: dict[int, tuple[str, str, int]] = {}
        self._last_group = self._last_place = 0

    def new_entry(self, run: str, dataset: str, priority: int, file: str) -> Entry:
        """Give a file a place behind its group, or in a new group at the end."""
        key = (run, dataset, -priority)
        group = self._groups.get(key)
        if group is None:
            self._last_group += 1
            group = self._groups[key] = self._last_group
            self._group_keys[group] = key
        self._last_place += 1
        return Entry(-priority, group, self._last_place, file)

    def push(self, run: str, entry: Entry) -> None:
        """Put a file into the queue of a run."""
        heapq.heappush(self._heaps.setdefault(run, []), entry)
        self._deficits.setdefault(run, 0)

    def front(self, cost: Cost) -> tuple[str, Entry] | None:
        """Return whose turn it is, and for which file; None if nothing waits."""
        while self._deficits:
            run = next(iter(self._deficits))
            entry, price = self._head(run, cost)
            if entry is None:
                del self._deficits[run]
                self._heaps.pop(run, None)
            elif price <= self._deficits[run]:
                return run, entry
            else:
                self._deficits[run] = self._deficits.pop(run) + self._quantum
        return None

    def _head(self, run: str, cost: Cost) -> tuple[Entry | None, int]:
        heap = self._heaps.get(run, [])
        while heap:
            price = cost(run, heap[0])
            if price is not None:
                return heap[0], price
            heapq.heappop(heap)
        return None, 0

    def take(self, run: str, price: int) -> Entry:
        """Take the file at the front of a run, and close its group."""
        entry = heapq.heappop(self._heaps[run])
        self._deficits[run] -= price
        key = self._group_keys.pop(entry.group, None)
        if key is not None:
            del self._groups[key]
        return entry

    def order(self, cost: Cost) -> Iterator[str]:
        """Yield files in the order in which they would be asked for, as things are now."""
        ahead = self._copy()
        seen: set[str] = set()

        def price(run: str, entry: Entry) -> int | None:
            return None if entry.file in seen else cost(run, entry)

        while turn := ahead.front(price):
            run, entry = turn
            ahead.take(run, price(run, entry) or 0)
            seen.add(entry.file)
            yield entry.file

    def _copy(self) -> TapeQueue:
        made = TapeQueue(self._quantum)
        made._heaps = {run: list(heap) for run, heap in self._heaps.items()}
        made._deficits = dict(self._deficits)
        return made

    def record(self) -> QueueRecord:
        """Return what :meth:`restore` needs besides the entries."""
        return QueueRecord(
            tuple(self._deficits.items()),
            tuple((*key, group) for key, group in self._groups.items()),
            self._last_group,
            self._last_place,
        )

    @classmethod
    def restore(cls, record: QueueRecord, quantum: int) -> TapeQueue:
        """Return a queue as it was, without its entries: push them."""
        queue = cls(quantum)
        queue._deficits = dict(record.deficits)
        queue._heaps = {run: [] for run in queue._deficits}
        for run, dataset, rank, group in record.groups:
            queue._groups[run, dataset, rank] = group
            queue._group_keys[group] = (run, dataset, rank)
        queue._last_group, queue._last_place = record.last_group, record.last_place
        return queue
