"""Which site may run a job that reads data, which does best, and whether to move the data.

Filters first, then a weight that is a product of parts, as in :mod:`pandaflow.core.brokerage`,
whose filters and parts are the first ones here. Every part lies between 0 and 1 except the
turnover, and is 1 where data is no hindrance: for a job without inputs the weight is that of
:func:`pandaflow.core.brokerage.weight`. PanDA's formulae and ours stand side by side in
``docs/where-a-job-goes.md``.

Nothing here looks anything up: replicas, loads and distances are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pandaflow.core import brokerage
from pandaflow.core.brokerage import Load, Ranking, Site, misfit
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Resources
from pandaflow.core.network import Network, Route
from pandaflow.core.quantities import time_text, volume_text

#: What a byte on tape counts against one on disk (PanDA's analysis broker adds 1 for a site that
#: has a dataset on disk and 0.001 for one that has it on tape only).
TAPE_SHARE = 0.001
#: A site is avoided when it has spoiled more than this, and more than twice what it finished
#: (PanDA's analysis broker, MIN_BAD_JOBS_TO_SKIP_PQ).
MOST_LOST = 5
#: Seconds that a job is taken to run when nothing is known.
RUN_S = 3600.0
#: Answers that are kept for jobs that ask the same again: each has a line for every site.
_KEPT = 256


class Block(NamedTuple):
    """Files with the same replicas.

    Attributes
    ----------
    size : int
        Bytes together.
    files : int
        How many.
    disk, tape : frozenset of str
        Storage elements that have all of them, on disk and on tape.
    name : str
        The dataset they belong to.
    """

    size: int
    files: int = 1
    disk: frozenset[str] = frozenset()
    tape: frozenset[str] = frozenset()
    name: str = ""


def blocks(files: Iterable[Block]) -> tuple[Block, ...]:
    """Add up files of the same dataset with the same replicas; in order of first appearance."""
    found: dict[tuple[str, frozenset[str], frozenset[str]], list[int]] = {}
    for file in files:
        sums = found.setdefault((file.name, file.disk, file.tape), [0, 0])
        sums[0] += file.size
        sums[1] += file.files
    return tuple(
        Block(size, count, disk, tape, name) for (name, disk, tape), (size, count) in found.items()
    )


@dataclass(frozen=True, slots=True)
class Request:
    """What a job needs, as brokerage sees it. Jobs with equal requests are scored once.

    Attributes
    ----------
    resources : Resources
    blocks : tuple of Block
        Its input files; see :func:`blocks`.
    seconds : float
        How long it runs, as measured or guessed, without waiting for data.
    """

    resources: Resources
    blocks: tuple[Block, ...] = ()
    seconds: float = RUN_S

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise WorkflowError(f"seconds={self.seconds!r}: give a number above 0")


class Parts(NamedTuple):
    """What a weight is made of; all are better when larger.

    Attributes
    ----------
    turnover : float
        (max(running, slots) + 1) / (running + waiting + 1).
    success : float
        Share of attempts that the site did not spoil.
    data : float
        Half for data that is elsewhere, whole for data that is on disk here.
    distance : float
        The same for how far it is: half for the farthest.
    transfer : float
        Run time / (run time + time to fetch what is missing).
    """

    turnover: float
    success: float
    data: float
    distance: float
    transfer: float

    @property
    def weight(self) -> float:
        """Their product."""
        return math.prod(self)


class Score(NamedTuple):
    """A site that may run a job.

    Attributes
    ----------
    site : Site
    load : Load
    slots : int
        Such jobs that it runs at once.
    parts : Parts
    total, disk, tape : int
        Bytes of input, and how many are at the site on disk, or on tape only.
    fetch : float
        Seconds until what is missing on disk is there.
    wait : float
        Seconds until the job would find a free slot.
    """

    site: Site
    load: Load
    slots: int
    parts: Parts
    total: int
    disk: int
    tape: int
    fetch: float
    wait: float

    @property
    def weight(self) -> float:
        """How well the site would do; larger is better."""
        return self.parts.weight

    def describe(self) -> str:
        """Return it in a few words: ``"CERN (weight 1.5: 80 % of 2 GiB there, ...)"``."""
        return f"{self.site.name} (weight {self.weight:.2g}{self._data()})"

    def _data(self) -> str:
        if not self.total:
            return ""
        said = f": {_percent(self.disk, self.total)} of {volume_text(self.total)} on disk"
        if self.tape:
            said += f", {_percent(self.tape, self.total)} on tape"
        if self.fetch:
            said += f", the rest in {time_text(self.fetch)}"
        return said

    def row(self) -> dict[str, object]:
        """Return it as a row of a table: numbers, sizes in bytes, times in seconds."""
        return {
            "site": self.site.name,
            "weight": self.weight,
            **self.parts._asdict(),
            "input_bytes": self.total,
            "disk_bytes": self.disk,
            "tape_bytes": self.tape,
            "fetch_s": self.fetch,
            "wait_s": self.wait,
        }


@dataclass(frozen=True, slots=True)
class Placement:
    """What brokerage says of a job that reads data.

    Attributes
    ----------
    scores : tuple of Score
        Sites that may run it, best first.
    refused : mapping of str to str
        By site: why it may not run there now.
    """

    scores: tuple[Score, ...]
    refused: Mapping[str, str]

    @property
    def ranking(self) -> Ranking:
        """The same without its parts, for who asks for no more."""
        return Ranking(tuple((each.site, each.weight) for each in self.scores), self.refused)

    def describe(self, most: int = 10) -> str:
        """Return it in one line for people, with at most so many sites of each kind."""
        said = []
        if self.scores:
            shown = ", ".join(score.describe() for score in self.scores[:most])
            said.append(f"may run at {shown}{_more(len(self.scores) - most)}")
        said += [f"not at {name}: {why}" for name, why in list(self.refused.items())[:most]]
        if len(self.refused) > most:
            said.append(f"not at {len(self.refused) - most} more")
        return "; ".join(said) or "no site is known"


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _percent(part: int, whole: int) -> str:
    """Write a share that is 0 or 100 only if it is exactly that."""
    if part in (0, whole):
        return "0 %" if not part else "100 %"
    return f"{min(max(round(100 * part / whole), 1), 99)} %"


class _Fit(NamedTuple):
    """What a site offers jobs that ask for the same, whatever they read."""

    site: Site
    load: Load
    slots: int
    turnover: float
    success: float


class _Data(NamedTuple):
    """What the data of a job means for sites with the same storage elements."""

    disk: int
    tape: int
    share: float
    closeness: float
    fetch: float
    unreachable: str


@dataclass(frozen=True, slots=True)
class Broker:
    """Scores sites for many jobs in one round of decisions.

    Parameters
    ----------
    sites : sequence of Site
        With numbers filled in; among equals the earlier one is preferred.
    loads : mapping of str to Load
        By name of the site; none: nothing is there yet.
    network : Network
        Distances and rates between storage elements.
    held : mapping of str to str
        Sites that get nothing now, with the reason (offline, closed, draining).
    transfers : bool
        False: a job runs only where all its data is, on disk or tape.

    Raises
    ------
    WorkflowError
        Two sites have the same name.

    Notes
    -----
    Equal questions are answered once: what depends on the resources is kept by resources, what
    depends on data by blocks and storage elements. Make a new one when loads have changed.
    """

    sites: Sequence[Site]
    loads: Mapping[str, Load] = field(default_factory=dict)
    network: Network = field(default_factory=Network)
    held: Mapping[str, str] = field(default_factory=dict)
    transfers: bool = True
    _fits: dict[Resources, tuple[list[_Fit], dict[str, str]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _routes: dict[tuple[frozenset[str], tuple[str, ...]], tuple[Route, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise WorkflowError(f"sites: {twice!r} is there twice; give each its own name")

    def place(self, request: Request) -> Placement:
        """Score every site for a job; those that may not run it are refused with the reason."""
        fits, misfits = self._fitting(request.resources)
        refused = dict(misfits)
        scores = []
        total = sum(block.size for block in request.blocks)
        data: dict[tuple[str, ...], _Data] = {}
        for fit in fits:
            rses = fit.site.rses
            found = data.get(rses)
            if found is None:
                found = data[rses] = self._data(request, rses, total)
            why = found.unreachable or _overflow(request, fit.site, total)
            if why:
                refused[fit.site.name] = why
            else:
                scores.append(_score(request, fit, found, total))
        # Told in the order in which sites were given.
        told = {site.name: refused[site.name] for site in self.sites if site.name in refused}
        return Placement(tuple(sorted(scores, key=lambda score: -score.weight)), told)

    def place_all(self, requests: Iterable[Request]) -> Iterator[Placement]:
        """Score every site for each job, once for those that ask for the same."""
        known: dict[Request, Placement] = {}
        for request in requests:
            placement = known.get(request)
            if placement is None:
                if len(known) == _KEPT:
                    del known[next(iter(known))]
                placement = known[request] = self.place(request)
            yield placement

    def _fitting(self, resources: Resources) -> tuple[list[_Fit], dict[str, str]]:
        known = self._fits.get(resources)
        if known is None:
            known = self._fits[resources] = self._sorted_out(resources)
        return known

    def _sorted_out(self, resources: Resources) -> tuple[list[_Fit], dict[str, str]]:
        refused: dict[str, str] = {}
        fits = []
        for site in self.sites:
            why = self.held.get(site.name) or misfit(resources, site)
            if why:
                refused[site.name] = why
            else:
                fits.append(self._fit(resources, site))
        good = [fit for fit in fits if not _spoils(fit.load)]
        if good:  # else one that spoils much is better than none
            refused |= {fit.site.name: _spoils(fit.load) for fit in fits if _spoils(fit.load)}
        return good or fits, refused

    def _fit(self, resources: Resources, site: Site) -> _Fit:
        load = self.loads.get(site.name, Load())
        slots = brokerage.room(resources, site)
        return _Fit(site, load, slots, brokerage.turnover(load, slots), brokerage.success(load))

    def _data(self, request: Request, rses: tuple[str, ...], total: int) -> _Data:
        here = set(rses)
        disk = tape = 0
        near = fetch = 0.0
        from_tape = False
        for block in request.blocks:
            if not block.disk.isdisjoint(here):
                disk += block.size
                near += block.size
                continue
            if not block.tape.isdisjoint(here):
                tape += block.size
            elif not self.transfers:
                return _lacking(f"{_named(block)} is not there, and transfers are off")
            routes = self._routes_of(block, rses)
            if not routes:
                return _lacking(self._no_way(block, rses))
            near += block.size * max(route.closeness for route in routes)
            fetch += min(route.seconds(block.size) for route in routes)
            from_tape = from_tape or not block.disk
        fetch += self.network.tape if from_tape else 0.0
        if not total:  # no inputs, or empty ones
            return _Data(0, 0, 1.0, 1.0, fetch, "")
        share = (total + disk + TAPE_SHARE * tape) / (2 * total)
        return _Data(disk, tape, share, near / total, fetch, "")

    def _routes_of(self, block: Block, rses: tuple[str, ...]) -> tuple[Route, ...]:
        # Rucio takes a file from tape only if no disk has it.
        key = (block.disk or block.tape, rses)
        known = self._routes.get(key)
        if known is None:
            known = self._routes[key] = self.network.routes(*key)
        return known

    def _no_way(self, block: Block, rses: tuple[str, ...]) -> str:
        sources = sorted(block.disk or block.tape)
        if not sources:
            return f"no replica of {_named(block)} is known"
        there = " or ".join(rses) or "it"
        return f"no transfer path from {', '.join(sources)} to {there} for {_named(block)}"


def _named(block: Block) -> str:
    files = "a file" if block.files == 1 else f"{block.files} files"
    return f"{files} of {block.name}" if block.name else files


def _lacking(why: str) -> _Data:
    return _Data(0, 0, 0.0, 0.0, math.inf, why)


def _spoils(load: Load) -> str:
    """Say why a site is avoided for what it has spoiled lately; empty if it is not."""
    if load.lost <= max(2 * load.finished, MOST_LOST):
        return ""
    return f"it has spoiled {load.lost:.0f} of the last {load.lost + load.finished:.0f} attempts"


def _overflow(request: Request, site: Site, total: int) -> str:
    """Say why inputs do not fit onto a node beside what the job itself writes."""
    asked = total + (request.resources.disk or 0)
    if site.disk is None or not total or asked <= site.disk:
        return ""
    return (
        f"needs {volume_text(asked)} of disk, {volume_text(total)} of it for inputs, "
        f"and it has {volume_text(site.disk)}"
    )


def _score(request: Request, fit: _Fit, data: _Data, total: int) -> Score:
    transfer = request.seconds / (request.seconds + data.fetch)
    parts = Parts(fit.turnover, fit.success, data.share, data.closeness, transfer)
    wait = wait_seconds(fit.load, fit.slots, request.seconds)
    return Score(
        fit.site, fit.load, fit.slots, parts, total, data.disk, data.tape, data.fetch, wait
    )


def wait_seconds(load: Load, slots: int, seconds: float, jobs: int = 1) -> float:
    """Return how long the last of some jobs of equal length waits for a slot.

    Parameters
    ----------
    load : Load
    slots : int
        Such jobs that run there at once; more, if more do.
    seconds : float
        Length of a job.
    jobs : int
        How many come.

    Notes
    -----
    Jobs run in rounds of as many as there are slots. Those that run now are taken to be at their
    beginning: an upper estimate.
    """
    slots = max(slots, load.running, 1)
    rounds = -(-(load.running + load.waiting + jobs) // slots)
    return (rounds - 1) * seconds
