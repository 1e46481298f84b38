"""How many pilots of which shape a queue shall have: decisions with reasons, no I/O.

Ready bundles are seated first in what pilots have free, then in pilots on their way, then in new
ones, of the smallest shape that holds them. What limits allow of the new ones is submitted; what
nothing is seated in any more is cancelled or drained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal, NamedTuple

from pandaflow.grid.messages import Needs
from pandaflow.harvester.submitter import Shape

#: Seconds for which a pilot may wait in a batch system although nothing wants it: demand comes
#: and goes, and a place in a queue is worth something.
LINGER = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Bundles of equal needs that wait.

    Attributes
    ----------
    needs : Needs
    ready : int
    probe : bool
        Pilots of this queue did not take such bundles before: one pilot at most is begun for them.
    """

    needs: Needs
    ready: int
    probe: bool = False


#: ``ordered``: submitted, but its system has not told of it yet. ``busy``, ``idle``: the server
#: has heard of it.
Stage = Literal["ordered", "waiting", "starting", "busy", "idle"]


@dataclass(frozen=True, slots=True)
class Seat:
    """A pilot that is there or on its way.

    Attributes
    ----------
    name : str
    shape : Shape
    stage : str
    cores : int
        That are free, of a pilot that was heard of.
    since : float
        Seconds that it has been in this stage; of an idle one: without work.
    left : float
        Seconds of walltime that are left.
    ours : bool
        This harvester's own; others only take work away.
    leaving : bool
        It was told to go: it takes no more, but it is still there.
    """

    name: str
    shape: Shape
    stage: Stage
    cores: int = 0
    since: float = 0.0
    left: float = inf
    ours: bool = True
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What a queue allows.

    Attributes
    ----------
    min_pilots, max_pilots, max_waiting : int
    pilots_a_minute : float
    idle : float
        Seconds.
    recent : int
        Pilots that were submitted within the last :func:`window`.
    credit : int or None
        Pilots that may be on their way at once, after others have failed; None: no such limit.
    shut : str
        Why the queue gets no pilots at all; empty: it does.
    """

    min_pilots: int = 0
    max_pilots: int = 10
    max_waiting: int = 10
    pilots_a_minute: float = 60.0
    idle: float = 300.0
    recent: int = 0
    credit: int | None = None
    shut: str = ""


class Submit(NamedTuple):
    """Pilots to submit."""

    shape: Shape
    pilots: int


class Leave(NamedTuple):
    """A pilot to end; ``cancel``: by its batch system, ``drain``: by the server."""

    name: str
    how: Literal["cancel", "drain"]
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do at a queue.

    Attributes
    ----------
    submit : tuple of Submit
    leave : tuple of Leave
    wanted : int
        New pilots that the demand would justify, were there no limits.
    unserved : int
        Ready bundles that no pilot of this queue could run.
    why : str
        Why fewer are submitted than wanted; empty: they are not.
    """

    submit: tuple[Submit, ...] = ()
    leave: tuple[Leave, ...] = ()
    wanted: int = 0
    unserved: int = 0
    why: str = ""

    @property
    def count(self) -> int:
        """Pilots to submit."""
        return sum(each.pilots for each in self.submit)


def plan(
    wanted: Iterable[Wanted],
    seats: Sequence[Seat],
    shapes: Sequence[Shape],
    limits: Limits,
    tags: frozenset[str] = frozenset(),
) -> Plan:
    """Decide what to do at a queue.

    Parameters
    ----------
    wanted : iterable of Wanted
        Bundles that wait.
    seats : sequence of Seat
        Pilots that are there or on their way.
    shapes : sequence of Shape
        Those that new pilots may have; at least one.
    limits : Limits
    tags : frozenset of str
        Of pilots and queue.
    """
    hall = _Hall(seats)
    # Large ones first: small ones fit into what they leave.
    for each in sorted(wanted, key=lambda each: (-each.needs.cores, -(each.needs.memory or 0))):
        hall.seat(each, shapes, tags)
    ours = [seat for seat in seats if seat.ours]
    leave = tuple(_leaving(ours, hall.used, limits))
    if limits.shut:
        return Plan(leave=leave, why=limits.shut)
    short = limits.min_pilots - sum(not seat.leaving for seat in ours) - hall.wanted
    if short > 0:
        hall.new[shapes[0]] += short
    allowed, why = _allowed(ours, limits)
    submit = _share(hall.new, allowed)
    fewer = hall.wanted > sum(each.pilots for each in submit)
    return Plan(submit, leave, hall.wanted, hall.unserved, why if fewer else "")


# --- who sits where -----------------------------------------------------------------------


@dataclass(slots=True)
class _Room:
    """What is free of ``count`` equal pilots."""

    cores: int
    gpus: int
    memory: float
    walltime: float

    def takes(self, needs: Needs) -> int:
        """Return how many bundles fit at once."""
        if (needs.walltime or 0.0) > self.walltime:
            return 0
        most = self.cores // needs.cores
        if needs.gpus:
            most = min(most, self.gpus // needs.gpus)
        if needs.memory and self.memory != inf:
            most = min(most, int(self.memory // needs.memory))
        return max(0, most)

    def give(self, needs: Needs, count: int) -> None:
        self.cores -= count * needs.cores
        self.gpus -= count * needs.gpus
        self.memory -= count * (needs.memory or 0)


def _room(shape: Shape, cores: int | None = None, left: float = inf) -> _Room:
    """Return what a pilot has free; memory goes with cores, as nothing more is known of it."""
    free = shape.cores if cores is None else cores
    share = min(1.0, free / shape.cores)
    return _Room(
        free,
        shape.gpus if share == 1 else 0,
        shape.memory * share if shape.memory else inf,
        min(left, shape.walltime or inf),
    )


def holds(shape: Shape, needs: Needs, tags: frozenset[str]) -> bool:
    """Tell whether a pilot of a shape could run a bundle, were it empty."""
    return _room(shape).takes(needs) > 0 and tags.issuperset(needs.tags)


_ORDER: Mapping[Stage, int] = {"idle": 0, "busy": 1, "starting": 2, "waiting": 3, "ordered": 4}


class _Hall:
    """Pilots, and the bundles seated in them."""

    def __init__(self, seats: Iterable[Seat]) -> None:
        staying = [seat for seat in seats if not seat.leaving]
        staying.sort(key=lambda seat: (_ORDER[seat.stage], -seat.since, seat.name))
        self._rooms = [(seat.name, _seated(seat)) for seat in staying]
        self._open: list[tuple[int, _Room]] = []
        self.used: set[str] = set()
        self.new: Counter[Shape] = Counter()
        self.unserved = 0

    @property
    def wanted(self) -> int:
        """Pilots that are needed besides those that there are."""
        return sum(self.new.values())

    def seat(self, each: Wanted, shapes: Sequence[Shape], tags: frozenset[str]) -> None:
        """Seat all bundles of a class, in new pilots if need be."""
        fit = [shape for shape in shapes if holds(shape, each.needs, tags)]
        left = each.ready
        if tags.issuperset(each.needs.tags):
            for name, room in self._rooms:
                taken = _take(room, each.needs, left)
                left -= taken
                if taken:
                    self.used.add(name)
        left = self._seat_in_new(each.needs, left)
        if left and fit:
            self._begin(min(fit), each, left)
        elif left:
            self.unserved += left

    def _begin(self, shape: Shape, each: Wanted, left: int) -> None:
        count = 1 if each.probe else -(-left // _room(shape).takes(each.needs))
        self.new[shape] += count
        self._open.append((count, _room(shape)))
        self._seat_in_new(each.needs, left)

    def _seat_in_new(self, needs: Needs, left: int) -> int:
        """Seat bundles in new pilots; return how many are left. Equal pilots are one entry."""
        rooms: list[tuple[int, _Room]] = []
        for count, room in self._open:
            each = room.takes(needs)
            full = min(count, left // each) if each else 0
            rest = left - full * each if each and full < count else 0
            left -= full * each + min(rest, each)
            parts = ((full, each), (1 if rest else 0, min(rest, each)))
            rooms += [(number, _less(room, needs, taken)) for number, taken in parts if number]
            if count > full + parts[1][0]:
                rooms.append((count - full - parts[1][0], room))
        self._open = rooms
        return left


def _less(room: _Room, needs: Needs, taken: int) -> _Room:
    smaller = replace(room)
    smaller.give(needs, taken)
    return smaller


def _seated(seat: Seat) -> _Room:
    heard = seat.stage in ("busy", "idle")
    return _room(seat.shape, seat.cores if heard else None, seat.left)


def _take(room: _Room, needs: Needs, left: int) -> int:
    taken = min(left, room.takes(needs)) if left else 0
    if taken:
        room.give(needs, taken)
    return taken


# --- limits -------------------------------------------------------------------------------


def window(pilots_a_minute: float) -> float:
    """Return the seconds over which submissions are counted, a minute if more than one is due."""
    return max(60.0, 60.0 / pilots_a_minute)


def _allowed(ours: Sequence[Seat], limits: Limits) -> tuple[int, str]:
    """Return how many pilots may be submitted now, and which limit says so."""
    coming = sum(seat.stage in ("ordered", "waiting", "starting") for seat in ours)
    queued = sum(seat.stage in ("ordered", "waiting") for seat in ours)
    seconds = window(limits.pilots_a_minute)
    rate = round(limits.pilots_a_minute * seconds / 60)
    bounds = [
        (limits.max_pilots - len(ours), f"max_pilots={limits.max_pilots} is reached"),
        (limits.max_waiting - queued, f"{queued} wait in the batch system already"),
        (rate - limits.recent, f"{limits.recent} were submitted within {seconds:g} s"),
    ]
    if limits.credit is not None:
        bounds.append((limits.credit - coming, "pilots have failed: few at a time are tried"))
    least, why = min(bounds, key=lambda bound: bound[0])
    return max(0, least), why


def _share(new: Mapping[Shape, int], allowed: int) -> tuple[Submit, ...]:
    """Give out what is allowed in turns, so that no shape keeps the others waiting."""
    left, given = dict(new), Counter[Shape]()
    while allowed > 0 and any(left.values()):
        for shape in [shape for shape, count in left.items() if count][:allowed]:
            given[shape] += 1
            left[shape] -= 1
            allowed -= 1
    return tuple(Submit(shape, count) for shape, count in sorted(given.items()))


# --- who goes -----------------------------------------------------------------------------


def _leaving(ours: Sequence[Seat], used: set[str], limits: Limits) -> Iterable[Leave]:
    staying = [seat for seat in ours if not seat.leaving]
    staying.sort(key=_loss)
    spare, over = len(staying) - limits.min_pilots, len(staying) - limits.max_pilots
    for seat in staying:
        why = _why(seat, seat.name in used, over, limits)
        if why and (over > 0 or spare > 0 or limits.shut):
            over, spare = over - 1, spare - 1
            unheard = seat.stage in ("waiting", "starting")
            yield Leave(seat.name, "cancel" if unheard else "drain", why)


def _loss(seat: Seat) -> tuple[int, float, str]:
    """Order pilots by what is lost with them: what waits shortest, then who is idle longest."""
    rank = {"waiting": 0, "starting": 1, "idle": 2}.get(seat.stage, 3)
    return rank, -seat.since if seat.stage == "idle" else seat.since, seat.name


def _why(seat: Seat, used: bool, over: int, limits: Limits) -> str:
    """Say why a pilot is to go; empty: it stays."""
    if seat.stage == "ordered":
        return ""  # its system does not know it yet
    if over > 0:
        return f"max_pilots={limits.max_pilots}"
    if seat.stage == "waiting" and limits.shut:
        return limits.shut
    if seat.stage == "waiting" and not used and seat.since > LINGER:
        return "nothing waits for it any more"
    if seat.stage == "idle" and not used and seat.since > limits.idle:
        return f"idle for {seat.since:.0f} s"
    return ""


def told(seats: Iterable[Seat]) -> dict[Stage, int]:
    """Return how many of this harvester's pilots are in each stage."""
    counts = Counter(seat.stage for seat in seats if seat.ours)
    return {stage: counts[stage] for stage in _ORDER}
