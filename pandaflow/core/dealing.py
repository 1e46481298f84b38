"""Jobs dealt out over sites: the next one goes where the weight is largest, which lowers it.

PanDA's splitter draws a site at random in proportion to the weights for each block of 25 jobs, and
lowers the weight of the site by (queued + 1) / (queued + 25 + 1). Here each job goes to the best
site of the moment and counts there as waiting, so that the same jobs and loads always give the
same deal, and sites fill in proportion to their weights.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pandaflow.core.brokerage import turnover
from pandaflow.core.locality import Broker, Placement, Request, Score

#: Scores that are kept of each request: a thousand sites times all requests would fill memory.
SHOWN = 100


@dataclass(frozen=True, slots=True)
class Dealt:
    """Where jobs with equal requests go.

    Attributes
    ----------
    request : Request
    counts : dict of str to int
        Jobs by name of the site, the best site first; none if no site may run them.
    placement : Placement
        The best scores before any of them was dealt out: the reason that ``explain`` shows.
    """

    request: Request
    counts: dict[str, int]
    placement: Placement


def deal(broker: Broker, wanted: Iterable[tuple[Request, int]]) -> list[Dealt]:
    """Deal jobs out over the sites that may run them.

    Parameters
    ----------
    broker : Broker
        With the loads before the deal.
    wanted : iterable of (Request, int)
        How many jobs ask for the same, in the order in which they are served.

    Returns
    -------
    list of Dealt
        One for each request, in their order.

    Notes
    -----
    Takes time in proportion to different requests times sites, plus jobs times the logarithm of
    the sites.
    """
    added: Counter[str] = Counter()
    dealt = []
    asked = list(wanted)
    placements = broker.place_all(request for request, _ in asked)
    for (request, count), placement in zip(asked, placements, strict=True):
        told = replace(placement, scores=placement.scores[:SHOWN])
        dealt.append(Dealt(request, _deal(placement, count, added), told))
    return dealt


def _deal(placement: Placement, count: int, added: Counter[str]) -> dict[str, int]:
    """Deal jobs with one request; ``added`` is what sites got before, and is brought up to date."""
    heap = [
        (-_weight(score, added[score.site.name]), at) for at, score in enumerate(placement.scores)
    ]
    heapq.heapify(heap)
    counts: Counter[str] = Counter()
    for _ in range(count if heap else 0):
        _, at = heap[0]
        score = placement.scores[at]
        name = score.site.name
        added[name] += 1
        counts[name] += 1
        heapq.heapreplace(heap, (-_weight(score, added[name]), at))
    return {score.site.name: n for score in placement.scores if (n := counts[score.site.name])}


def _weight(score: Score, added: int) -> float:
    load = replace(score.load, waiting=score.load.waiting + added) if added else score.load
    return score.parts._replace(turnover=turnover(load, score.slots)).weight
