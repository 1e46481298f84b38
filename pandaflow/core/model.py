"""The nouns: resources, datasets, tasks, workflows, files, failures.

Everything here is a frozen value. A workflow as the author wrote it compiles to a
:class:`WorkflowSpec`, which is all an engine needs and all a store keeps: user code and user
values are referred to by name and never unpickled outside a job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pandaflow.core.policy import Retry, SplitRule

#: Indices of jobs of one task, ascending: a range when they are contiguous.
Jobs: TypeAlias = range | tuple[int, ...]


def compact(indices: Sequence[int]) -> Jobs:
    """Return ascending ``indices`` as a range where they are contiguous, else a tuple."""
    if isinstance(indices, range):
        return indices
    if indices and indices[-1] - indices[0] + 1 == len(indices):
        return range(indices[0], indices[-1] + 1)
    return tuple(indices)


def runs_of(jobs: Jobs) -> list[range]:
    """Cut ``jobs`` into its maximal contiguous ranges."""
    if isinstance(jobs, range):
        return [jobs] if jobs else []
    out: list[range] = []
    start = previous = None
    for job in jobs:
        if previous is None or job != previous + 1:
            if start is not None and previous is not None:
                out.append(range(start, previous + 1))
            start = job
        previous = job
    if start is not None and previous is not None:
        out.append(range(start, previous + 1))
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one job needs.

    Attributes
    ----------
    cores : int
        Of each rank; a job of one rank: of the job.
    memory : int or None
        Bytes for the whole process tree (PSS) on a node; the job is stopped above it.
    walltime : float or None
        Seconds; the job is stopped after it.
    disk : int or None
        Bytes of scratch space.
    gpus : int
        On each node.
    nodes : int
        More than one: an MPI job, whose command starts its own ranks (``srun``, ``mpirun``).
    ranks_per_node : int
        MPI ranks on each node.
    """

    cores: int = 1
    memory: int | None = None
    walltime: float | None = None
    disk: int | None = None
    gpus: int = 0
    nodes: int = 1
    ranks_per_node: int = 1

    @property
    def parallel(self) -> bool:
        """Whether a job has more than one rank: only a batch system can run it."""
        return self.nodes > 1 or self.ranks_per_node > 1


@dataclass(frozen=True, slots=True)
class File(os.PathLike[str]):
    """A file as an item of a dataset; usable wherever a path is.

    Attributes
    ----------
    path : str
        Local path or fsspec URL.
    size : int or None
        Bytes.
    checksum : str or None
        ``"adler32:..."`` or ``"md5:..."``, as Rucio writes them.
    events : int or None
    replicas : tuple of str
        Other places of the same content.
    mtime : float or None
        Seconds since the epoch, when the source tells.
    """

    path: str
    size: int | None = None
    checksum: str | None = None
    events: int | None = None
    replicas: tuple[str, ...] = ()
    mtime: float | None = None

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The last part of the path; of ``rucio://SCOPE:NAME``, of the name."""
        scheme, _, rest = self.path.partition("://")
        path = rest.partition(":")[2] if scheme == "rucio" else self.path
        return path.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed.

    Attributes
    ----------
    kind : str
        ``exception``, ``exit``, ``signal``, ``memory``, ``walltime``, ``unserializable``,
        ``input``, ``output``, ``lost`` (its worker vanished), ``cancelled``, ``site`` (where it
        was to run refused it) or ``unfit`` (no site can run it as it is).
    message : str
        One line for people.
    type : str
        Qualified exception type, where there is one; used by retry rules.
    mro : tuple of str
        Names of the exception's base classes, so that a rule for a base class applies.
    code : int or None
        Exit code of a command, or the signal's number.
    traceback : str
    charged : bool
        Whether it counts against the job's retries: faults of the infrastructure do not.
    """

    kind: str
    message: str
    type: str = ""
    mro: tuple[str, ...] = ()
    code: int | None = None
    traceback: str = ""
    charged: bool = True


# --- datasets: where a task's items come from -------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Items known to the workflow (files, values) or appended while it runs (a stream)."""

    id: int
    tag: Literal["source"] = "source"


@dataclass(frozen=True, slots=True)
class Output:
    """One item per job of a task: what the job returned."""

    task: int
    tag: Literal["output"] = "output"


@dataclass(frozen=True, slots=True)
class Scattered:
    """The items of the lists that a task's jobs return; open until the task ends."""

    task: int
    tag: Literal["scattered"] = "scattered"


@dataclass(frozen=True, slots=True)
class Cross:
    """The product of datasets; an item is a tuple, the last part varying fastest."""

    parts: tuple[Dataset, ...]
    tag: Literal["cross"] = "cross"


@dataclass(frozen=True, slots=True)
class CrossPart:
    """One component of the items of a product."""

    cross: Cross
    part: int
    tag: Literal["cross_part"] = "cross_part"


@dataclass(frozen=True, slots=True)
class Concat:
    """Datasets one after the other."""

    parts: tuple[Dataset, ...]
    tag: Literal["concat"] = "concat"


@dataclass(frozen=True, slots=True)
class Choice:
    """``then`` or ``otherwise``, decided by the truth of a gate task's value."""

    gate: int
    then: Dataset
    otherwise: Dataset
    tag: Literal["choice"] = "choice"


@dataclass(frozen=True, slots=True)
class LoopEnd:
    """The state of a loop after its last iteration."""

    loop: int
    tag: Literal["loop_end"] = "loop_end"


Dataset: TypeAlias = Source | Output | Scattered | Cross | CrossPart | Concat | Choice | LoopEnd


@dataclass(frozen=True, slots=True)
class Input:
    """One dataset among a task's arguments.

    Attributes
    ----------
    dataset : Dataset
    mode : {'mapped', 'whole', 'single'}
        ``mapped``: cut into jobs together with the other mapped inputs (zip). ``whole``: each
        job gets all of it as a list. ``single``: it has one item by construction and each
        job gets that item.
    """

    dataset: Dataset
    mode: Literal["mapped", "whole", "single"] = "mapped"


PayloadKind = Literal["function", "command", "graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A job template: payload, inputs, split rule, resources, retry policy.

    Attributes
    ----------
    id : int
        Place in the workflow; upstream tasks have smaller ids.
    name : str
        Unique in the workflow.
    token : str
        Hash of code and static arguments; with the name it makes the task's Dask keys.
    payload : str
        Name of the pickled payload in the result store.
    kind : {'function', 'command', 'graph'}
    inputs : tuple of Input
        Slot ``k`` of the payload is filled from ``inputs[k]``.
    after : tuple of Dataset
        Barriers: all of these must exist before any job starts.
    lists : bool
        Whether mapped slots get lists (a split rule was given).
    single : bool
        One job by construction, so its output is a value and not a collection.
    scatters : bool
        Whether somebody maps over the items of the lists its jobs return.
    gate : bool
        Its one job's truth value steers a condition or a loop.
    guards : tuple of (int, bool)
        (gate task, wanted truth): the task runs only if all of these hold.
    internal : bool
        Made by the compiler (a gate), not by the author; left out of counts for people.
    edges : tuple of (int, ...)
        For ``kind="graph"``: for each job the jobs of this task that it waits for.
    node_names : tuple of str
        For ``kind="graph"``: the name of each job.
    n_static : int or None
        Jobs of a task without mapped inputs.
    iteration : (int, int) or None
        (loop, iteration) of a task that a loop brought into being.
    optional : bool
        Whether the run's verdict goes without it: a failure of this task is somebody else's to
        judge.
    brings : Brought or None
        What the fragment whose first task this is added to the run besides tasks.
    """

    id: int
    name: str
    token: str
    payload: str
    kind: PayloadKind = "function"
    inputs: tuple[Input, ...] = ()
    after: tuple[Dataset, ...] = ()
    split: SplitRule = field(default_factory=SplitRule)
    lists: bool = False
    single: bool = False
    scatters: bool = False
    gate: bool = False
    guards: tuple[tuple[int, bool], ...] = ()
    internal: bool = False
    resources: Resources = field(default_factory=Resources)
    retry: Retry = field(default_factory=Retry)
    priority: int = 0
    executor: str | None = None
    container: str | None = None
    requirements: tuple[str, ...] = ()
    cache: Literal["", "mtime", "checksum"] = ""
    goal: float = 1.0
    scouts: int = 0
    max_failure_rate: float | None = None
    edges: tuple[tuple[int, ...], ...] = ()
    node_names: tuple[str, ...] = ()
    n_static: int | None = None
    iteration: tuple[int, int] | None = None
    optional: bool = False
    brings: Brought | None = None

    def changed(self, **changes: Any) -> TaskSpec:
        """Return a copy with ``changes``."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """A dataset that the workflow brings along.

    Attributes
    ----------
    id : int
    name : str
        What the author wrote, for people: ``data/*.root``.
    kind : {'files', 'items', 'range', 'stream'}
        ``range``: the items are the numbers of ``bounds``. ``items``: pickled values in the
        result store under ``blob``. ``files``: ``files`` itself.
    n : int
        Items known when the workflow was built.
    """

    id: int
    name: str
    kind: Literal["files", "items", "range", "stream"]
    n: int = 0
    files: tuple[File, ...] = ()
    bounds: tuple[int, int, int] = (0, 0, 1)
    blob: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSpec:
    """A body that is run again and again on its own output.

    The body's tasks are a template: their ids are negative, and ``Source(state_id)`` stands for
    the state. Iteration ``k`` becomes real tasks when the gate of iteration ``k - 1`` says "go on".

    Attributes
    ----------
    id : int
    name : str
    state : Dataset
        What the first iteration gets.
    state_id : int
        The (negative) source id that stands for the state in the template.
    body : tuple of TaskSpec
        In topological order.
    loops : tuple of LoopSpec
        Loops inside the body.
    gate : int or None
        The template's task that judges the new state: true stops the loop.
    result : Dataset
        The body's output, in template ids.
    max_iterations : int
    single : bool
        Whether the state is one value.
    """

    id: int
    name: str
    state: Dataset
    state_id: int
    body: tuple[TaskSpec, ...]
    result: Dataset
    max_iterations: int
    gate: int | None = None
    loops: tuple[LoopSpec, ...] = ()
    single: bool = False
    guards: tuple[tuple[int, bool], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """Sources and loops that came into a run with a fragment, under their ids in the run."""

    sources: tuple[SourceSpec, ...] = ()
    loops: tuple[LoopSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultShape:
    """The shape of what the workflow function returned.

    Attributes
    ----------
    kind : {'dataset', 'value', 'list', 'tuple', 'dict'}
    dataset : Dataset or None
        For ``dataset``.
    single : bool
        For ``dataset``: it stands for one value, not for a list.
    value : JSON-native
        For ``value``: a constant that the function returned.
    keys : tuple of str
        For ``dict``.
    parts : tuple of ResultShape
        For containers.
    """

    kind: Literal["dataset", "value", "list", "tuple", "dict"]
    dataset: Dataset | None = None
    single: bool = False
    value: Any = None
    keys: tuple[str, ...] = ()
    parts: tuple[ResultShape, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SteererSpec:
    """Somebody who feeds a run while it goes on, in the process that drives it.

    Attributes
    ----------
    name : str
        For people.
    module : str
        Its ``steer(run, spec)`` is called each time somebody begins to drive the run.
    blob : str
        Name of what it was set up with, in the run's results.
    edges : tuple of (str, str)
        Tasks whose results it hands on, and the streams that it feeds with them, by name; for
        pictures.
    """

    name: str
    module: str
    blob: str
    edges: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowSpec:
    """A compiled workflow, as stores keep it."""

    name: str
    tasks: tuple[TaskSpec, ...]
    sources: tuple[SourceSpec, ...] = ()
    loops: tuple[LoopSpec, ...] = ()
    result: ResultShape = field(default_factory=lambda: ResultShape(kind="value"))
    params: Mapping[str, str] = field(default_factory=dict)
    steerers: tuple[SteererSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A sub-workflow that is to join a run while it goes on.

    Its tasks, sources and loops have negative ids of their own, which become the next free ids of
    the run; ids of at least 0 are those of the run's own tasks, sources and loops.

    Attributes
    ----------
    tasks : tuple of TaskSpec
        In topological order; their names are new to the run.
    sources : tuple of SourceSpec
        No streams.
    loops : tuple of LoopSpec
    result : ResultShape
        What the fragment is there for, in its own ids.
    """

    tasks: tuple[TaskSpec, ...]
    sources: tuple[SourceSpec, ...] = ()
    loops: tuple[LoopSpec, ...] = ()
    result: ResultShape = field(default_factory=lambda: ResultShape(kind="value"))
