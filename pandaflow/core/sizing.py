"""How many jobs go into one bundle, and how far ahead jobs are sent.

A Dask node costs milliseconds whatever it does, so short jobs share one; a bundle is aimed at
a fifth of a second of work, because a bundle is also the unit of stealing, of loss and of
partial chaining. Jobs that are long against a node's cost are one per node, so that what depends
on them starts at once. Nothing is assumed: until a job of the
task has been measured its bundles hold one job.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Seconds of work aimed at in one bundle.
TARGET_S = 0.2
#: Jobs that take longer than this do not share a node: its cost is a tenth of theirs.
LONG_S = 0.03
#: Jobs in one bundle at most: they share one report and one file.
MAX_JOBS = 1000
#: A bundle that takes longer than this returns what it has.
PATIENCE_S = 1.0
#: Seconds of work below which splitting a tail over more slots does not pay.
WORTH_S = 0.02
#: Weight of the newest bundle in the running mean.
_WEIGHT = 0.3
#: Nodes in flight at most, those included that wait for others.
MAX_OUTSTANDING = 5000


@dataclass(slots=True)
class Pace:
    """Measured duration of a task's jobs.

    Attributes
    ----------
    mean : float
        Running mean in seconds; 0 until measured.
    measured : int
        Jobs measured.
    """

    mean: float = 0.0
    measured: int = 0

    def add(self, walls: Sequence[float]) -> None:
        """Take in the durations of the jobs of one bundle, in seconds."""
        if not walls:
            return
        mean = max(math.fsum(walls) / len(walls), 1e-7)
        weight = (
            1.0 if not self.measured else max(_WEIGHT, len(walls) / (self.measured + len(walls)))
        )
        self.mean += weight * (mean - self.mean)
        self.measured += len(walls)


def bundle_size(pace: Pace, remaining: int, slots: int) -> int:
    """Return how many of ``remaining`` jobs the next bundle takes.

    Aims at ``TARGET_S`` seconds, and towards the end at an even share for each slot (guided
    self-scheduling: remaining / (2 x slots)).
    """
    if not pace.measured:
        return 1
    if pace.mean >= LONG_S:
        return 1
    aimed = int(min(MAX_JOBS, max(1.0, TARGET_S / pace.mean)))
    share = -(-remaining // (2 * max(1, slots)))
    worth = int(min(MAX_JOBS, max(1.0, WORTH_S / pace.mean)))
    return max(1, min(aimed, max(share, worth), remaining))


def bundle_seconds(pace: Pace) -> float:
    """Return what the next bundles take, in seconds; 0: nobody knows."""
    return max(pace.mean, TARGET_S) if pace.measured else 0.0


def window(slots: int, ahead: float = 0.0, seconds: float = 0.0) -> int:
    """Return how many runnable nodes are kept at an executor.

    Parameters
    ----------
    slots : int
    ahead : float
        Seconds of work for each slot that the executor wants at hand.
    seconds : float
        What a node takes; 0: nobody knows.
    """
    each = ahead / seconds if seconds else 0.0
    return int(max(3.0, min(MAX_JOBS, each)) * slots) + 4


def refill_below(slots: int, ahead: float = 0.0, seconds: float = 0.0) -> int:
    """Return at how many runnable nodes the window is filled again: all slots still busy."""
    return window(slots, ahead, seconds) * 2 // 3
