"""What users say about their batch system, checked once."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pandaflow.core.brokerage import Site
from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.model import Backend, BatchRequest

Mode = Literal["pilots", "batch"]
_MODES = ("pilots", "batch")
#: Seconds that a pilot may need until its workers take work: the prologue, imports.
_BEGIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """A batch system, and what may be asked of it.

    Attributes
    ----------
    backend : Backend
    queue, account : str or None
        Partition or queue, and whom to charge; None leaves it to the system.
    walltime : float
        Seconds that a batch job asks for, and that none may exceed.
    cores : int
        Per node.
    memory : int or None
        Bytes per node; None: what the site gives by default.
    gpus : int
        Per node.
    max_nodes, min_nodes : int
        Nodes to use at most, and to keep although nothing waits.
    mode : {'pilots', 'batch'}
        Workers in allocations, or one batch job per bundle of jobs.
    prologue : tuple of str
        Lines of shell that go before everything else: ``module load python``.
    env : mapping of str to str
        Variables that the batch jobs export.
    python : str
        The interpreter that the nodes run; it needs PandaFlow and what payloads import.
    scratch : str or None
        Folder on the nodes for the work directories of jobs; None: their temporary directory.
    extra : tuple of str
        More directives as the system writes them, without its prefix.
    poll_seconds : float
        Between two looks at the queue.
    submit_rate : float
        Submissions per minute at most.
    container : str or None
        A command that runs what follows it inside an image: ``apptainer exec image.sif``.
    idle_seconds : float
        Without work for so long, a pilot is given back.
    margin : float
        Seconds before the end of its walltime from which on a pilot takes no more work; up to
        twice as many, another number for each pilot, so that not all go at once.
    patience : float
        Seconds that a pilot waits for another driver of the run when its own is gone.
    host : str or None
        Address at which the compute nodes reach this machine; None: all that it has are tried.
    encrypt : bool or None
        Whether driver and pilots talk by TLS; None: if ``cryptography`` is installed.
    queue_seconds : float
        Pilots that have waited longer in a queue are not counted on: other sites are asked too.
    sites : tuple of Site
        Partitions or queues to choose from; what one does not say is as above. None given: one
        site, as above.
    disk : int or None
        Bytes of scratch space per node.
    commands_env : mapping of str to str
        Variables for the system's own commands (``SLURM_CONF``), besides those of this process.
    site_name : str
        Which of the sites these settings are about, if they are made for one.

    Raises
    ------
    WorkflowError
        A number that cannot be, or a line break where one line is wanted.
    """

    backend: Backend
    queue: str | None = None
    account: str | None = None
    walltime: float = 3600.0
    cores: int = 1
    memory: int | None = None
    gpus: int = 0
    max_nodes: int = 1
    min_nodes: int = 0
    mode: Mode = "pilots"
    prologue: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable
    scratch: str | None = None
    extra: tuple[str, ...] = ()
    poll_seconds: float = 2.0
    submit_rate: float = 60.0
    container: str | None = None
    idle_seconds: float = 60.0
    margin: float = 30.0
    patience: float = 300.0
    host: str | None = None
    encrypt: bool | None = None
    queue_seconds: float = 300.0
    sites: tuple[Site, ...] = ()
    disk: int | None = None
    commands_env: Mapping[str, str] = field(default_factory=dict)
    site_name: str = ""

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise WorkflowError(f"mode={self.mode!r}: one of {', '.join(_MODES)}")
        _number("max_nodes", self.max_nodes, least=1)
        _number("min_nodes", self.min_nodes, least=0)
        if self.min_nodes > self.max_nodes:
            raise WorkflowError(f"min_nodes={self.min_nodes} is above max_nodes={self.max_nodes}")
        for name in (
            *("poll_seconds", "submit_rate", "idle_seconds", "margin", "patience"),
            "queue_seconds",
        ):
            _positive(name, getattr(self, name))
        for name in ("python", "scratch", "container"):
            _one_line(name, getattr(self, name))
        names = [site.name for site in self.sites]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise WorkflowError(f"sites: {min(twice)!r} is there twice")
        for place in self.places().values():
            place.request("check")  # refuses what no batch job may ask for

    @property
    def site(self) -> Site:
        """The one site that these settings are about, every number filled in."""
        return Site(
            self.name,
            queue=self.queue,
            account=self.account,
            cores=self.cores,
            memory=self.memory,
            walltime=self.walltime,
            gpus=self.gpus,
            disk=self.disk,
            nodes=self.max_nodes,
            scratch=self.scratch,
            extra=self.extra,
        )

    @property
    def last_call(self) -> float:
        """The margin (s) of a pilot: never more than a quarter of its walltime."""
        return min(self.margin, self.walltime / 4)

    @property
    def longest(self) -> float:
        """Walltime (s) of the longest job that every pilot can take when it begins."""
        return self.walltime - 2 * self.last_call - min(_BEGIN_S, self.walltime / 10)

    @property
    def name(self) -> str:
        """Name of the site that these settings are about."""
        return self.site_name or self.queue or self.backend.name

    def places(self) -> dict[str, BatchSettings]:
        """Return the settings of each site by its name, in the order of preference."""
        if not self.sites:
            return {self.name: self}
        return {site.name: self._at(site) for site in self.sites}

    def _at(self, site: Site) -> BatchSettings:
        said = {
            name: getattr(site, name)
            for name in ("account", "cores", "memory", "walltime", "gpus", "disk", "scratch")
            if getattr(site, name) is not None
        }
        return replace(
            self,
            sites=(),
            site_name=site.name,
            queue=site.queue or site.name,
            max_nodes=site.nodes or self.max_nodes,
            min_nodes=min(self.min_nodes, site.nodes or self.max_nodes),
            extra=(*self.extra, *site.extra),
            **said,
        )

    def request(self, name: str) -> BatchRequest:
        """Return what a batch job of one whole node asks for."""
        return BatchRequest(
            name=name,
            queue=self.queue,
            account=self.account,
            walltime=self.walltime,
            cores=self.cores,
            memory=self.memory,
            gpus=self.gpus,
            env=self.env,
            extra=self.extra,
        )


def _number(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WorkflowError(f"{name}={value!r}: give a number of at least {least}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise WorkflowError(f"{name}={value!r}: give a number above 0")


def _one_line(name: str, value: str | None) -> None:
    if value is not None and not (value and value.isprintable()):
        raise WorkflowError(f"{name}={value!r}: give one line of printable text")
