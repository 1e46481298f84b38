"""Whether to bring data to where slots are free, or to wait for slots where the data is.

The question is asked for all jobs that read the same data, since it is moved once for all of them.
Sites are seen as queues that open at some time and then take so many jobs a second; the answer
compares when the last job would end with and without one site more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pandaflow.core.locality import Block, Placement, Request, Score
from pandaflow.core.quantities import time_text, volume_text

#: A move must end the jobs sooner by this share of the time, and by so many seconds: estimates
#: err, and a copy takes space that others may need.
LEAST_SHARE, LEAST_S = 0.2, 600.0


@dataclass(frozen=True, slots=True)
class MoveData:
    """Bring data to a site, by a replication rule.

    Attributes
    ----------
    blocks : tuple of Block
        What is to be moved.
    site, to_rse : str
        For which site, and to which of its storage elements.
    size, tape : int
        Bytes to move, and how many of them are on tape only (a carousel brings those).
    seconds : float
        How long the move takes, as estimated.
    waiting, moving : float
        Seconds until the jobs would have ended without and with it; ``inf``: never.
    why : str
        The comparison in words.
    """

    blocks: tuple[Block, ...]
    site: str
    to_rse: str
    size: int
    tape: int
    seconds: float
    waiting: float
    moving: float
    why: str


@dataclass(frozen=True, slots=True)
class StayPut:
    """Leave data where it is.

    Attributes
    ----------
    waiting : float
        Seconds until the jobs will have ended where their data is; ``inf``: nowhere is all of it.
    why : str
        In words.
    """

    waiting: float
    why: str


Decision: TypeAlias = MoveData | StayPut


class Queue(NamedTuple):
    """A site that begins with our jobs after ``opens`` seconds and then does ``rate`` a second."""

    opens: float
    rate: float


def drained(queues: Iterable[Queue], jobs: int) -> float:
    """Return after how many seconds some queues have done so many jobs together.

    The smallest T with sum of rate * max(0, T - opens) = jobs; ``inf`` without a queue.
    """
    volume = rate = 0.0
    soonest = math.inf
    for queue in sorted(queues):
        if queue.opens >= soonest:
            break
        volume += queue.opens * queue.rate
        rate += queue.rate
        soonest = (jobs + volume) / rate
    return soonest


def decide(request: Request, jobs: int, placement: Placement) -> Decision:
    """Decide whether data is moved for some jobs that read it.

    Parameters
    ----------
    request : Request
        What each of them asks for and reads.
    jobs : int
        How many they are.
    placement : Placement
        The scores of the sites for this request.
    """
    homes = [score for score in placement.scores if score.disk == score.total]
    if len(homes) == len(placement.scores):
        return StayPut(
            _ended(homes, (), request, jobs), "its data is at every site that may run it"
        )
    waiting = _ended(homes, (), request, jobs)
    others = [score for score in placement.scores if score.fetch and score.site.rses]
    if score := _best(homes, others, request, jobs):
        moving = _ended(homes, (score,), request, jobs)
        if waiting - moving >= max(LEAST_SHARE * waiting, LEAST_S) or waiting == math.inf:
            return _move(score, request, jobs, (waiting, moving))
        return StayPut(waiting, _too_little(score, waiting - moving))
    return StayPut(waiting, "no site to bring it to has storage")


def _best(homes: list[Score], others: list[Score], request: Request, jobs: int) -> Score | None:
    """Return the site whose help ends the jobs soonest; among equals the best by weight."""
    return min(others, key=lambda it: _ended(homes, (it,), request, jobs), default=None)


def _ended(homes: list[Score], more: tuple[Score, ...], request: Request, jobs: int) -> float:
    queues = [_queue(score, request.seconds, 0.0) for score in homes]
    queues += [_queue(score, request.seconds, score.fetch) for score in more]
    return drained(queues, jobs) + request.seconds


def _queue(score: Score, seconds: float, fetch: float) -> Queue:
    """See a site as a queue; data moves while the jobs of others run."""
    slots = max(score.slots, score.load.running, 1)
    ahead = max(score.load.running + score.load.waiting + 1 - slots, 0)
    rate = slots / seconds
    return Queue(max(ahead / rate, fetch), rate)


def _move(score: Score, request: Request, jobs: int, times: tuple[float, float]) -> MoveData:
    here = set(score.site.rses)
    missing = tuple(block for block in request.blocks if block.disk.isdisjoint(here))
    size = sum(block.size for block in missing)
    tape = sum(block.size for block in missing if not block.disk)
    waiting, moving = times
    without = (
        f"{time_text(waiting)} without" if waiting < math.inf else "it is complete on disk nowhere"
    )
    why = (
        f"{volume_text(size)} to {score.site.rses[0]} in {time_text(score.fetch)}: "
        f"{jobs} jobs end in {time_text(moving)}, {without}"
    )
    return MoveData(
        missing, score.site.name, score.site.rses[0], size, tape, score.fetch, waiting, moving, why
    )


def _too_little(score: Score, saved: float) -> str:
    gain = f"{time_text(saved)} at most" if saved > 0 else "nothing"
    return f"moving it to {score.site.name} would save {gain}"
