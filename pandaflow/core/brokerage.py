"""Which site may run a job, which does best, and why not the others.

Filters come first, as in PanDA's brokers, and each says in words whom it turns away; what is left
is ranked by a weight. Everything here is a function of its arguments; numbers that a site does
not tell (None) turn nobody away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Resources
from pandaflow.core.quantities import parse_bytes, parse_seconds, size_text


@dataclass(frozen=True, slots=True)
class Site:
    """A partition, a queue: a place that runs jobs, as brokerage sees it.

    Parameters
    ----------
    name : str
        What people call it; also its queue, if that is not given.
    queue, account : str, optional
        Partition or queue there, and whom to charge.
    cores, gpus : int, optional
        Of a node. What is not given is as the executor says.
    memory, disk : int or str, optional
        Of a node, in bytes or as ``"64 GB"``; ``disk`` is scratch space.
    walltime : float or str, optional
        Longest batch job, in seconds or as ``"12:00:00"``.
    nodes : int, optional
        To use at once, at most.
    scratch : str, optional
        Folder on the nodes for work directories.
    extra : sequence of str
        More directives as the batch system writes them.
    rses : sequence of str
        Storage elements whose files jobs there read without a transfer, as Rucio names them;
        data that is brought to the site goes to the first.

    Raises
    ------
    WorkflowError
        Names the site and what is wrong with it.
    """

    name: str
    _: KW_ONLY
    queue: str | None = None
    account: str | None = None
    cores: int | None = None
    memory: int | None = None
    walltime: float | None = None
    gpus: int | None = None
    disk: int | None = None
    nodes: int | None = None
    scratch: str | None = None
    extra: tuple[str, ...] = ()
    rses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Written by people: sizes and durations as text, directives as a list.
        put = object.__setattr__
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise WorkflowError(f"site {self.name!r}: give it a name")
        try:
            for field in ("memory", "disk"):
                if getattr(self, field) is not None:
                    put(self, field, parse_bytes(getattr(self, field), field))
            if self.walltime is not None:
                put(self, "walltime", parse_seconds(self.walltime, "walltime"))
            for field in ("memory", "walltime"):
                if getattr(self, field) == 0:
                    raise WorkflowError(f"{field} is 0: no job could run there")
            for field, least in (("cores", 1), ("nodes", 1), ("gpus", 0)):
                _whole(field, getattr(self, field), least)
            put(self, "extra", _lines(self.extra))
            put(self, "rses", _rses(self.rses))
        except WorkflowError as error:
            raise WorkflowError(f"site {self.name!r}: {error}") from None


def _whole(name: str, value: object, least: int) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < least
    ):
        raise WorkflowError(f"{name}={value!r}: give a whole number of at least {least}")


def _lines(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    lines = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(line, str) for line in lines):
        raise WorkflowError(f"extra={value!r}: give a list of directives")
    return lines


def _rses(value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise WorkflowError(f"rses={value!r}: give a list of storage elements")
    found = tuple(names)
    for name in found:
        # Blanks and operators would make it an RSE expression, which only Rucio can resolve.
        if not isinstance(name, str) or not name or not name.replace("-", "_").isidentifier():
            raise WorkflowError(f"rses={name!r}: give the name of a storage element")
    if len(set(found)) < len(found):
        raise WorkflowError(f"rses={list(found)!r}: name each storage element once")
    return found


@dataclass(frozen=True, slots=True)
class Load:
    """What a site has of one run's jobs.

    Attributes
    ----------
    running, waiting : int
        Jobs that run there, and jobs that were sent there and do not run yet.
    finished, lost : float
        How attempts ended there; ``lost`` are those that the site itself spoiled. Whole numbers,
        or less of what is long ago (:meth:`fade`).
    """

    running: int = 0
    waiting: int = 0
    finished: float = 0
    lost: float = 0

    def fade(self, seconds: float, half_life: float = 6 * 3600.0) -> Load:
        """Return it with endings counted half after each ``half_life``, both in seconds.

        PanDA's analysis broker looks at the endings of the last six hours. Fading forgets as fast
        and needs two numbers a site instead of a window of endings.
        """
        kept = 0.5 ** (max(seconds, 0.0) / half_life)
        return replace(self, finished=self.finished * kept, lost=self.lost * kept)


@dataclass(frozen=True, slots=True)
class Ranking:
    """What brokerage says of a job.

    Attributes
    ----------
    sites : tuple of (Site, float)
        Where it may run, best first, with the weights.
    refused : mapping of str to str
        By site: why it cannot run there.
    """

    sites: tuple[tuple[Site, float], ...]
    refused: Mapping[str, str]

    def describe(self) -> str:
        """Return it in one line for people."""
        said = []
        if self.sites:
            weights = ", ".join(f"{site.name} (weight {weight:.2g})" for site, weight in self.sites)
            said.append(f"may run at {weights}")
        said += [f"not at {name}: {why}" for name, why in self.refused.items()]
        return "; ".join(said) or "no site is known"


def misfit(resources: Resources, site: Site) -> str:
    """Say why no node of a site can take a job; empty if one can.

    A job of several ranks per node needs ``cores`` for each of them.
    """
    pairs = (
        ("nodes at once", resources.nodes, site.nodes),
        ("cores", cores_on_node(resources), site.cores),
        ("memory", resources.memory, site.memory),
        ("s of walltime", resources.walltime, site.walltime),
        ("GPUs", resources.gpus, site.gpus),
        ("disk", resources.disk, site.disk),
    )
    over = [
        f"asks for {_amount(what, asked)} and it has {_amount(what, most)}"
        for what, asked, most in pairs
        if asked is not None and most is not None and asked > most
    ]
    return "; ".join(over)


def _amount(what: str, value: float) -> str:
    return f"{size_text(value)} of {what}" if what in ("memory", "disk") else f"{value:g} {what}"


def cores_on_node(resources: Resources) -> int:
    """Return the cores that a job takes on each of its nodes."""
    return resources.cores * resources.ranks_per_node


def slots_per_node(resources: Resources, site: Site) -> int:
    """Return how many such jobs a node of the site runs at once; 0: it cannot run any."""
    if misfit(resources, site):
        return 0
    counts = [max(1, (site.cores or 1) // cores_on_node(resources))]
    for asked, there in (
        (resources.memory, site.memory),
        (resources.gpus, site.gpus),
        (resources.disk, site.disk),
    ):
        if asked and there:
            counts.append(there // asked)
    return min(counts)


def room(resources: Resources, site: Site) -> int:
    """Return how many such jobs run at a site at once, on all nodes that may be used."""
    return slots_per_node(resources, site) * (site.nodes or 1)


def turnover(load: Load, slots: int) -> float:
    """Return how soon a site with so many slots would start one more job; larger is sooner."""
    return (max(load.running, slots) + 1) / (load.running + load.waiting + 1)


def success(load: Load) -> float:
    """Return the share of attempts that a site did not spoil; one success is taken for granted."""
    return (load.finished + 1) / (load.finished + load.lost + 1)


def weight(resources: Resources, site: Site, load: Load) -> float:
    """Return how well a site would do for one more job; larger is better.

    PanDA's generic broker weighs a queue by (running + 1) / (activated + assigned + 1): where
    jobs run and few wait, the next one runs soon. Here the number of slots stands in for running
    jobs until some run, since batch nodes come when they are asked for, and the weight is
    lessened by the share of attempts that the site has spoiled (both with one added).
    """
    return turnover(load, room(resources, site)) * success(load)


def rank(
    resources: Resources, sites: Sequence[Site], loads: Mapping[str, Load] | None = None
) -> Ranking:
    """Rank the sites for a job.

    Parameters
    ----------
    resources : Resources
    sites : sequence of Site
        With numbers filled in; among equals the earlier one is preferred.
    loads : mapping of str to Load, optional
        By name of the site; none: nothing is there yet.
    """
    loads = loads or {}
    refused = {site.name: why for site in sites if (why := misfit(resources, site))}
    fit = [
        (site, weight(resources, site, loads.get(site.name, Load())))
        for site in sites
        if site.name not in refused
    ]
    return Ranking(tuple(sorted(fit, key=lambda each: -each[1])), refused)
