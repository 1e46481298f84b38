"""A bundle as a worker sees it: which jobs, which items, and how arguments are put together.

A bundle is several jobs of one task carried by one Dask graph node. Its
:class:`BundleSpec` is a small picklable value: chunk arithmetic, the slice of each source that
its jobs read, and the places of upstream results. :class:`JobInputs` turns it, together with the
upstream values, into the arguments of each job.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pandaflow.core.model import (
    Concat,
    Cross,
    CrossPart,
    Dataset,
    Input,
    Jobs,
    Output,
    PayloadKind,
    Resources,
    Scattered,
    Source,
)


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands for the value of a job that has none.

    Attributes
    ----------
    reason : str
    absent : bool
        Left out on purpose (skipped, or failed within its task's goal): lists go without it.
        Otherwise whoever needs it is blocked.
    """

    reason: str
    absent: bool = False


class Blocked(Exception):
    """An input of the job does not exist (yet); carries the name of the input."""


@dataclass(frozen=True, slots=True)
class BundleValues:
    """What a bundle leaves in memory: one value (or :class:`Missing`) per job."""

    jobs: Jobs
    values: list[Any]


@dataclass(frozen=True, slots=True)
class SourceSlice:
    """Items ``[offset, offset + len(items))`` of a source.

    ``blob`` set: the items are pickled; they are ``items``-many frames of bytes.
    """

    offset: int
    items: Sequence[Any]
    pickled: bool = False


class Chunks(Protocol):
    """What a worker asks of a chunk map."""

    def items(self, job: int) -> tuple[int, int]:
        """Return the items ``[lo, hi)`` that ``job`` reads."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """All that a worker needs to know of a bundle, but payload and upstream values.

    Attributes
    ----------
    run : str
    bundle : int
    task : int
    name : str
        The task's name.
    token : str
        The task's code token.
    kind : {'function', 'command', 'graph'}
    jobs : Jobs
    attempt : int
    lists : bool
        Mapped slots get lists.
    inputs : tuple of Input
        Slot ``k`` is filled from ``inputs[k]``.
    chunks : Chunks
        job -> items.
    lengths : mapping of Dataset to int
        Lengths of the parts of products and concatenations, and of whole inputs.
    sources : mapping of int to SourceSlice
    outputs : mapping of int to tuple of int
        Upstream task -> the numbers of the dependencies that hold values of its jobs, those
        of later attempts behind those of earlier ones.
    scattered : mapping of int to tuple
        Scattering task -> (item offset, (job, position in its list) pairs): what each
        item of the open dataset is.
    absent : frozenset of (int, int)
        (task, job) pairs that are left out on purpose.
    edges : mapping of int to tuple of int
        For job graphs: the jobs each job waits for.
    node_names : mapping of int to str
        For job graphs: names of the jobs here and of those they wait for.
    resources : Resources
    container : str
        Image that its jobs run in; empty: none.
    requirements : tuple of str
        Packages that functions need besides, where an executor installs them.
    cache : {'', 'mtime', 'checksum'}
    scatters, gate : bool
        The report must tell list lengths, or the truth of the value.
    join : int or None
        Bundle whose detached job is to be joined instead of run.
    seconds : float
        After so long the bundle returns what it has; the job still running is detached.
        0: no limit.
    results : str
        fsspec URL of the run's folder in the result store.
    """

    run: str
    bundle: int
    task: int
    name: str
    token: str
    kind: PayloadKind
    jobs: Jobs
    attempt: int
    lists: bool
    inputs: tuple[Input, ...]
    chunks: Chunks
    lengths: Mapping[Dataset, int] = field(default_factory=dict)
    sources: Mapping[int, SourceSlice] = field(default_factory=dict)
    outputs: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    scattered: Mapping[int, tuple[int, tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    absent: frozenset[tuple[int, int]] = frozenset()
    edges: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    node_names: Mapping[int, str] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    container: str = ""
    requirements: tuple[str, ...] = ()
    cache: Literal["", "mtime", "checksum"] = ""
    scatters: bool = False
    gate: bool = False
    join: int | None = None
    seconds: float = 0.0
    results: str = ""


Getter = Callable[[int], Any]


class JobInputs:
    """Arguments of the jobs of a bundle.

    Parameters
    ----------
    spec : BundleSpec
    deps : sequence of BundleValues
        Upstream values, in the order that ``spec.outputs`` counts them.
    loads : callable
        Unpickles one source item (bytes in, value out).
    """

    def __init__(
        self, spec: BundleSpec, deps: Sequence[BundleValues], loads: Callable[[bytes], Any]
    ) -> None:
        self._spec, self._deps, self._loads = spec, deps, loads
        self._slots = [self._slot(slot) for slot in spec.inputs]

    def slots(self, job: int) -> list[Any]:
        """Return the value of each slot for ``job``.

        Raises
        ------
        Blocked
            An input does not exist.
        """
        return [slot(job) for slot in self._slots]

    def upstream(self, job: int) -> dict[str, Any]:
        """Return ``{name: value}`` of the jobs that ``job`` of a job graph waits for."""
        get = self._leaf_output(self._spec.task)
        out = {}
        for upstream in self._spec.edges.get(job, ()):
            value = get(upstream)
            if type(value) is Missing:
                raise Blocked(f"{self._spec.node_names[upstream]}: {value.reason}")
            out[self._spec.node_names[upstream]] = value
        return out

    def _slot(self, slot: Input) -> Getter:
        get = self._getter(slot.dataset)
        if slot.mode == "whole":
            length = self._spec.lengths[slot.dataset]
            cached: list[list[Any]] = []

            def whole(job: int) -> list[Any]:
                if not cached:
                    cached.append(_present(get, 0, length))
                return list(cached[0])

            return whole
        if slot.mode == "single":
            return lambda job: _one(get, 0)
        items = self._spec.chunks.items
        if self._spec.lists:
            return lambda job: _present(get, *items(job))
        return lambda job: _one(get, items(job)[0])

    def _getter(self, dataset: Dataset) -> Getter:
        match dataset:
            case Source(id=source):
                return self._leaf_source(source)
            case Output(task=task):
                return self._leaf_output(task)
            case Scattered(task=task):
                return self._leaf_scattered(task)
            case Cross(parts=parts):
                getters = [self._getter(CrossPart(dataset, k)) for k in range(len(parts))]
                return lambda item: _tuple([get(item) for get in getters])
            case CrossPart(cross=cross, part=part):
                get = self._getter(cross.parts[part])
                stride = 1
                for later in cross.parts[part + 1 :]:
                    stride *= self._spec.lengths[later]
                length = self._spec.lengths.get(cross.parts[part], 0)
                if part == 0:
                    return lambda item: get(item // stride)
                return lambda item: get(item // stride % length)
            case Concat(parts=parts):
                return self._concat(parts)
        raise TypeError(f"no items can be read from {dataset!r}")

    def _concat(self, parts: tuple[Dataset, ...]) -> Getter:
        getters = [self._getter(part) for part in parts]
        starts = [0]
        for part in parts[:-1]:
            starts.append(starts[-1] + self._spec.lengths[part])

        def get(item: int) -> Any:
            part = bisect_right(starts, item) - 1
            return getters[part](item - starts[part])

        return get

    def _leaf_source(self, source: int) -> Getter:
        piece = self._spec.sources.get(source)
        if piece is None:
            return lambda item: Missing(f"item {item} of source {source} did not travel")
        items, offset, loads = piece.items, piece.offset, self._loads
        if piece.pickled:
            return lambda item: loads(items[item - offset])
        return lambda item: items[item - offset]

    def _leaf_output(self, task: int) -> Getter:
        deps = [self._deps[dep] for dep in self._spec.outputs.get(task, ())]
        find = _by_range(deps) or _by_job(deps)
        absent, name = self._spec.absent, self._spec.names.get(task, str(task))

        def get(job: int) -> Any:
            if absent and (task, job) in absent:
                return Missing(f"{name}[{job}] gave nothing", absent=True)
            value = find(job)
            if type(value) is Missing:
                return Missing(f"{name}[{job}]: {value.reason}", value.absent)
            return value

        return get

    def _leaf_scattered(self, task: int) -> Getter:
        offset, pairs = self._spec.scattered.get(task, (0, ()))
        output = self._leaf_output(task)

        def get(item: int) -> Any:
            job, place = pairs[item - offset]
            value = output(job)
            return value if type(value) is Missing else value[place]

        return get


_NOWHERE = Missing("its value did not travel")


def _by_range(deps: Sequence[BundleValues]) -> Getter | None:
    """Find values by bisection, where bundles are ranges of jobs that do not overlap."""
    deps = sorted(deps, key=lambda dep: dep.jobs[0])
    if not all(isinstance(dep.jobs, range) for dep in deps):
        return None
    if any(one.jobs[-1] >= other.jobs[0] for one, other in itertools.pairwise(deps)):
        return None
    firsts = [dep.jobs[0] for dep in deps]

    def find(job: int) -> Any:
        at = bisect_right(firsts, job) - 1
        if at < 0 or job not in deps[at].jobs:
            return _NOWHERE
        return deps[at].values[job - firsts[at]]

    return find


def _by_job(deps: Sequence[BundleValues]) -> Getter:
    """Find values one by one; a later attempt's value stands for an earlier one's gap."""
    places: dict[int, Any] = {}
    for dep in deps:
        for job, value in zip(dep.jobs, dep.values, strict=True):
            if type(value) is not Missing or job not in places:
                places[job] = value
    return lambda job: places.get(job, _NOWHERE)


def _one(get: Getter, item: int) -> Any:
    value = get(item)
    if type(value) is Missing:
        raise Blocked(value.reason)
    return value


def _present(get: Getter, lo: int, hi: int) -> list[Any]:
    """Values of the items ``[lo, hi)``, without the absent; blocked by any other gap."""
    values = [get(item) for item in range(lo, hi)]
    if Missing not in set(map(type, values)):
        return values
    for value in values:
        if type(value) is Missing and not value.absent:
            raise Blocked(value.reason)
    return [value for value in values if type(value) is not Missing]


def _tuple(values: list[Any]) -> Any:
    for value in values:
        if type(value) is Missing:
            return value
    return tuple(values)
