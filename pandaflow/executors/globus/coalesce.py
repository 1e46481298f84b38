"""Which calls go together in one request, and when: functions of their arguments.

The service takes requests of a limited size, and so many of them in a time; each may hold calls
of several functions, but for one endpoint with one configuration only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


def first_group(sizes: Sequence[int], limit: int, most: int) -> int:
    """Return how many calls, from the first on, go into one request; at least one.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each call as it travels.
    limit : int
        Bytes of a request.
    most : int
        Calls in a request.
    """
    total = 0
    for count, size in enumerate(sizes[:most]):
        total += size
        if total > limit and count:
            return count
    return min(len(sizes), most)


@dataclass(slots=True)
class Pace:
    """Keeps requests below a rate.

    Parameters
    ----------
    requests : int
    seconds : float
        So many requests in any window of so many seconds.
    """

    requests: int
    seconds: float
    _made: deque[float] = field(default_factory=deque)

    def wait(self, now: float) -> float:
        """Return the seconds until a request may be made."""
        while self._made and self._made[0] <= now - self.seconds:
            self._made.popleft()
        if len(self._made) < self.requests:
            return 0.0
        return self._made[-self.requests] + self.seconds - now

    def made(self, now: float) -> None:
        """Note a request."""
        self._made.append(now)
