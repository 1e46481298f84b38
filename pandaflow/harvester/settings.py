"""``harvester.toml``: which queues a harvester serves, and by what. Read strictly.

docs/reference/harvester.md describes it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pandaflow.core.brokerage import Site
from pandaflow.core.errors import PandaflowError, WorkflowError
from pandaflow.core.quantities import parse_bytes, parse_seconds
from pandaflow.grid.auth.web import safe
from pandaflow.grid.places import Queue
from pandaflow.harvester.kinds import KINDS, settings_of
from pandaflow.harvester.submitter import Order, Shape, SubmitterSettings
from pandaflow.harvester.toml import place

EXAMPLE = """\
# A harvester: it keeps pilots at the queues of a server, as their provisioning says there
# ('pandaflow queues put NAME --max-pilots 20').

[harvester]
name = "main"                                # one harvester of a name for a server
server = "https://pandaflow.example.org"
# ca = "/etc/pandaflow/ca.pem"               # whom to trust; the pilots as well
# state = "/var/lib/pandaflow/harvester"     # its notes; default: below ~/.local/state
# pilot_token_file = "/etc/pandaflow/pilot"  # what pilots show to the server
every = "10 s"                               # between two looks at a queue
ghost = "5 min"                              # silence of a pilot that its system says runs
backoff = "30 s"                             # first pause after pilots that did not come to life

# A table for each queue, by its name on the server; in it one table that names the submitter:
# local, slurm, sge, pbs, htcondor or lsf.
[queues.here]
[queues.here.local]

[queues.CERN]
program = ["/opt/pandaflow/bin/pandaflow-pilot"]   # what starts a pilot there
options = ["--looping", "4h"]                      # more options of the pilot
workdir = "/scratch"
tags = ["ssd"]
env = { LANG = "C.UTF-8" }

# What pilots ask for; the smallest that holds a bundle is taken. Default: what the queue's
# site says on the server.
[[queues.CERN.shapes]]
cores = 8
memory = "16 GB"
walltime = "12 h"

[[queues.CERN.shapes]]
cores = 64
memory = "128 GB"
walltime = "48 h"
gpus = 2

[queues.CERN.slurm]
partition = "main"
account = "physics"
folder = "/shared/pandaflow/harvester"       # scripts and logs: the nodes must see it
prologue = ["module load python"]
"""
_MOMENTS = re.compile(r" ?\(at line (\d+), column \d+\)| ?\(at end of document\)")


class ConfigError(WorkflowError):
    """A configuration that is no good; says where."""


def _seconds(value: Any) -> float:
    return _positive(parse_seconds(value))


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("give a time above 0")
    return seconds


def _address(url: str) -> str:
    try:
        return safe(url.rstrip("/"))
    except PandaflowError as error:
        raise ValueError(str(error)) from None


Seconds = Annotated[float, BeforeValidator(_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
#: One line without control characters: it becomes part of a script.
Line = Annotated[str, Field(min_length=1, max_length=4_000, pattern=r"^[^\x00-\x1f\x7f]+$")]
Url = Annotated[str, AfterValidator(_address)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapeSettings(_Table):
    """What pilots may ask for; zero: what the site gives.

    Attributes
    ----------
    cores, gpus : int
    memory : int
        Bytes.
    walltime : float
        Seconds.
    """

    cores: int = Field(default=1, ge=1, le=100_000)
    gpus: int = Field(default=0, ge=0, le=10_000)
    memory: Bytes = 0
    walltime: Seconds = Field(default=0.0, validate_default=False)

    def shape(self) -> Shape:
        """Return it as sizing knows it."""
        return Shape(cores=self.cores, gpus=self.gpus, memory=self.memory, walltime=self.walltime)


class HarvesterSettings(_Table):
    """What is said of the harvester itself.

    Attributes
    ----------
    name : str
    server : str
    ca, state, pilot_token_file : Path or None
    every, ghost, backoff : float
        Seconds.
    """

    name: str = Field(default="main", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,49}$")
    server: Url
    ca: Path | None = None
    state: Path | None = None
    pilot_token_file: Path | None = None
    every: Seconds = 10.0
    ghost: Seconds = 300.0
    backoff: Seconds = 30.0

    @property
    def folder(self) -> Path:
        """Where the notes are."""
        if self.state is not None:
            return self.state.expanduser().absolute()
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        server = sha256(self.server.encode()).hexdigest()[:8]
        return Path(home) / "pandaflow" / "harvester" / f"{self.name}-{server}"


class QueueSettings(_Table):
    """What is said of a queue.

    Attributes
    ----------
    program, options : tuple of str or None
    workdir : str
    tags : tuple of str
    env : dict of str to str
    pilot_token_file : Path or None
    shapes : tuple of ShapeSettings
    kind : str
        Of its submitter.
    submitter : SubmitterSettings
    """

    program: tuple[Line, ...] | None = Field(default=None, min_length=1)
    options: tuple[Line, ...] = ()
    workdir: Line | None = None
    tags: tuple[Line, ...] = ()
    env: dict[Variable, Line] = Field(default_factory=dict)
    pilot_token_file: Path | None = None
    shapes: tuple[ShapeSettings, ...] = ()
    kind: str
    submitter: SubmitterSettings


class Settings(_Table):
    """A harvester and its queues.

    Attributes
    ----------
    harvester : HarvesterSettings
    queues : dict of str to QueueSettings
    """

    harvester: HarvesterSettings
    queues: dict[str, QueueSettings] = Field(min_length=1)

    def label(self, queue: str) -> str:
        """Return what marks the pilots of a queue; see :class:`Order`."""
        return label_of(self.harvester.server, self.harvester.name, queue)

    def order(self, queue: Queue, shape: Shape) -> Order:
        """Return what is ordered for a queue, as the server tells it."""
        here, own = self.harvester, self.queues[queue.name]
        token = own.pilot_token_file or here.pilot_token_file
        return Order(
            server=here.server,
            queue=queue.name,
            label=self.label(queue.name),
            shape=shape,
            tags=own.tags,
            idle=queue.provision.idle,
            program=own.program or type(own.submitter).program,
            options=own.options,
            workdir=own.workdir or "",
            token_file=str(token.expanduser().absolute()) if token else "",
            ca=str(here.ca.expanduser().absolute()) if here.ca else "",
            env=own.env,
        )

    def shapes(self, queue: Queue) -> tuple[Shape, ...]:
        """Return the shapes of a queue's pilots; by default one, as its site on the server."""
        own = self.queues[queue.name].shapes
        if own:
            return tuple(sorted(each.shape() for each in own))
        fields: dict[str, Any] = dict(queue.site)
        site = Site(queue.name, **fields)
        return (
            Shape(
                cores=site.cores or 1,
                gpus=site.gpus or 0,
                memory=site.memory or 0,
                walltime=site.walltime or 0.0,
            ),
        )


def label_of(server: str, harvester: str, queue: str) -> str:
    """Return the label of a harvester's pilots at a queue: readable, and nobody else's."""
    plain = re.sub(r"[^a-z0-9]+", "-", queue.lower()).strip("-")[:24].strip("-")
    digest = sha256("\0".join((server, harvester, queue)).encode()).hexdigest()[:10]
    return "-".join(part for part in ("pf", plain, digest) if part)


# --- reading ------------------------------------------------------------------------------


def read_config(path: Path, server: str | None = None) -> Settings:
    """Read a configuration.

    Parameters
    ----------
    path : Path
    server : str, optional
        Instead of the one that the file names.

    Raises
    ------
    ConfigError
        Names the file, the line and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse_config(text, str(path), server)


def parse_config(text: str, name: str = "harvester.toml", server: str | None = None) -> Settings:
    """Parse the text of a configuration; see :func:`read_config`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = _MOMENTS.search(str(error))
        line = (where and where[1]) or len(text.splitlines())
        raise ConfigError(f"{name}, line {line}: {_MOMENTS.sub('', str(error))}") from error
    mistakes: list[str] = []
    queues = raw.get("queues")
    if isinstance(queues, dict):
        for queue, table in queues.items():
            mistakes += _choose(name, text, queue, table)
    if server is not None and isinstance(raw.get("harvester", {}), dict):
        raw["harvester"] = {**raw.get("harvester", {}), "server": server}
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        mistakes += _told(name, text, (), error)
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return settings


def _choose(name: str, text: str, queue: str, table: Any) -> Iterator[str]:
    """Put the parsed table of the submitter where a queue's settings want it."""
    if not isinstance(table, dict):
        return
    path = ("queues", queue)
    kinds = [kind for kind in KINDS if kind in table]
    for key in ("kind", "submitter"):
        if key in table:
            yield f"{name}{place(text, (*path, key))}: unknown setting"
    if len(kinds) != 1:
        said = f"has {' and '.join(kinds)}" if kinds else "has none"
        yield f"{name}{place(text, path)}: name one submitter of {', '.join(KINDS)}; it {said}"
        table.update(kind="", submitter=SubmitterSettings())
        for kind in kinds:
            del table[kind]
        return
    table["kind"] = kind = kinds[0]
    said_of = table.pop(kind)
    table["submitter"] = SubmitterSettings()
    try:
        table["submitter"] = settings_of(kind).model_validate(said_of)
    except ValidationError as error:
        yield from _told(name, text, (*path, kind), error)


def _told(
    name: str, text: str, path: tuple[str | int, ...], error: ValidationError
) -> Iterator[str]:
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        words = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            words = "unknown setting"
        yield f"{name}{place(text, (*path, *each['loc']))}: {words}"
