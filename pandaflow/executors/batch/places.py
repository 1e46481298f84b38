"""Sites as a session sees them: what they take, what they have refused, how they have done."""

from __future__ import annotations

from dataclasses import dataclass, field

from pandaflow.core.brokerage import Site, cores_on_node
from pandaflow.core.model import Resources
from pandaflow.executors.batch.arrays import MOST_ELEMENTS
from pandaflow.executors.batch.settings import BatchSettings

#: Seconds until a submission that failed is tried again: at first, and at most.
BACK_OFF_S = (1.0, 60.0)


@dataclass(slots=True, eq=False)
class Place:
    """A site in one session.

    Attributes
    ----------
    settings : BatchSettings
        Of this site alone.
    finished, lost : int
        Bundles that ended there, and bundles that the site has spoiled or refused.
    most : int
        Elements that an array may have.
    closed : float
        It gets nothing before (monotonic time).
    delay : float
        Seconds that the next refusal closes it for.
    full : float or None
        Since when it has refused everything for want of room, with no array of ours there.
    """

    settings: BatchSettings
    finished: int = 0
    lost: int = 0
    most: int = MOST_ELEMENTS
    closed: float = 0.0
    delay: float = BACK_OFF_S[0]
    full: float | None = None
    site: Site = field(init=False)

    def __post_init__(self) -> None:
        self.site = self.settings.site

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.site.name

    @property
    def slots(self) -> int:
        """Cores to use there at once."""
        return self.settings.max_nodes * self.settings.cores

    def close(self, now: float) -> None:
        """Send nothing for a while, longer each time."""
        self.closed = now + self.delay
        self.delay = min(2 * self.delay, BACK_OFF_S[1])

    def accept(self) -> None:
        """Note that it has taken an array."""
        self.delay, self.full = BACK_OFF_S[0], None


def cores_of(resources: Resources) -> int:
    """Return the cores that a job takes, on all its nodes."""
    return cores_on_node(resources) * resources.nodes
