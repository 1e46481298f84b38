"""How far storage elements are from each other, and how long data takes between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pandaflow.core.errors import WorkflowError

#: The largest distance that counts; farther is as far (PanDA's MAX_CLOSENESS).
FARTHEST = 11
#: Distance of a pair of which nothing is known, as PanDA takes it: 0.7 of the largest.
UNKNOWN = 0.7 * FARTHEST


class Route(NamedTuple):
    """A way for data from one storage element to another.

    Attributes
    ----------
    source, target : str
    distance : float
        As Rucio says: the smaller, the nearer.
    per_byte : float
        Seconds that a byte takes.
    start : float
        Seconds before the first byte moves: overhead, and what waits on the link already.
    """

    source: str
    target: str
    distance: float
    per_byte: float
    start: float

    @property
    def closeness(self) -> float:
        """1 for distance 0, half for the largest, in equal steps."""
        return 1.0 - min(self.distance, FARTHEST) / (2 * FARTHEST)

    def seconds(self, size: int) -> float:
        """Return how long so many bytes take."""
        return self.start + size * self.per_byte


@dataclass(frozen=True, slots=True)
class Network:
    """What is known of transfers between storage elements.

    Parameters
    ----------
    distances : mapping of (str, str) to int
        From source to target, as Rucio has them.
    rates : mapping of (str, str) to float
        Bytes per second, where transfers have been measured.
    queued : mapping of (str, str) to int
        Bytes that wait for a transfer or move now.
    rate : float
        Bytes per second that are expected over distance 1 where nothing was measured; over
        distance d it is the d-th part.
    overhead : float
        Seconds that a transfer takes before its first byte moves.
    tape : float
        Seconds until a tape system delivers.
    complete : bool
        Whether a pair without a distance has no transfer path, which is what Rucio means by it.
        False: such pairs are taken to be rather far.

    Raises
    ------
    WorkflowError
        A distance or a queue below 0, or a rate that is not above 0.
    """

    distances: Mapping[tuple[str, str], int] = field(default_factory=dict)
    rates: Mapping[tuple[str, str], float] = field(default_factory=dict)
    queued: Mapping[tuple[str, str], int] = field(default_factory=dict)
    rate: float = 100e6
    overhead: float = 30.0
    tape: float = 4 * 3600.0
    complete: bool = False

    def __post_init__(self) -> None:
        for what, numbers in (("distance", self.distances), ("queue", self.queued)):
            for (source, target), number in numbers.items():
                if not number >= 0:
                    raise WorkflowError(f"{what} from {source} to {target} is {number!r}, below 0")
        for (source, target), rate in self.rates.items():
            if not rate > 0:
                raise WorkflowError(f"rate from {source} to {target} is {rate!r}, not above 0")
        if not self.rate > 0 or not self.overhead >= 0 or not self.tape >= 0:
            raise WorkflowError("rate must be above 0, overhead and tape not below")

    def routes(self, sources: Iterable[str], targets: Iterable[str]) -> tuple[Route, ...]:
        """Return every way from one of the sources to one of the targets, in order of names.

        Without a target (a site without storage) data comes from as far as from a pair of which
        nothing is known.
        """
        ends = tuple(targets) or ("",)
        pairs = ((source, target) for source in sorted(sources) for target in ends)
        return tuple(route for pair in pairs if (route := self._route(*pair)) is not None)

    def _route(self, source: str, target: str) -> Route | None:
        pair = (source, target)
        known = self.distances.get(pair)
        # The same element has data on tape and is asked for it on disk: no way is shorter.
        distance = 0.0 if source == target else known
        if distance is None:
            if self.complete and target and pair not in self.rates:
                return None
            distance = UNKNOWN
        rate = self.rates.get(pair) or self.rate / max(distance, 1.0)
        start = self.overhead + self.queued.get(pair, 0) / rate
        return Route(source, target, distance, 1.0 / rate, start)
