"""How the arguments of a task's call are read into slots."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import cloudpickle

from pandaflow.authoring.collections import (
    After,
    Collection,
    ConcatCollection,
    CrossCollection,
    Placed,
    Whole,
)
from pandaflow.authoring.trace import Trace
from pandaflow.core import chunking
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Dataset, File, Input, Output, TaskSpec
from pandaflow.core.policy import SplitRule
from pandaflow.core.signature import UNKNOWN, describe, incompatible
from pandaflow.core.template import Slot
from pandaflow.options import Options

if TYPE_CHECKING:
    from pandaflow.authoring.tasks import Task


class Arguments:
    """Reads the arguments of one call into slots, and places the task in the trace."""

    def __init__(self, task: Task, trace: Trace) -> None:
        self._task, self._trace = task, trace
        self._mapped: list[tuple[str, Collection]] = []
        self._inputs: list[Input] = []
        self._after: list[Dataset] = []
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Sort the arguments into slots, barriers and plain values."""
        args, kwargs = self._without_barriers(args, kwargs)
        args = self._unpacked_cross(args, kwargs)
        named = self._task.bind(args, kwargs)
        if named is not None:
            self._check_types(named)
        listed = self._task._options.split.given
        singles_map = listed and not self._any_collection((*args, *kwargs.values()))
        self._args = tuple(
            self._read(f"argument {k + 1}", v, singles_map) for k, v in enumerate(args)
        )
        self._kwargs = {k: self._read(f"argument {k!r}", v, singles_map) for k, v in kwargs.items()}

    def _any_collection(self, values: Iterable[Any]) -> bool:
        return any(
            (isinstance(v, Collection) and not v.single)
            or (isinstance(v, list) and any(isinstance(part, Collection) for part in v))
            for v in values
        )

    def _without_barriers(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        barriers = [v for v in (*args, *kwargs.values()) if isinstance(v, After)]
        for barrier in barriers:
            self._after += [part.dataset(self._trace) for part in barrier.collections]
        return (
            tuple(v for v in args if not isinstance(v, After)),
            {k: v for k, v in kwargs.items() if not isinstance(v, After)},
        )

    def _unpacked_cross(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """``f(pf.cross(a, b))`` for ``def f(a, b)``: a tuple where one fits, else its parts."""
        if not any(isinstance(value, CrossCollection) for value in args):
            return args
        try:
            inspect.signature(self._task.function).bind(*args, **kwargs)
        except (TypeError, ValueError):
            parts: list[Any] = []
            for value in args:
                parts += list(value) if isinstance(value, CrossCollection) else [value]
            return tuple(parts)
        return args

    def _read(self, label: str, value: Any, singles_map: bool) -> Any:
        if isinstance(value, Whole):
            return self._slot(Input(value.of.dataset(self._trace), "whole"))
        if isinstance(value, Collection):
            return self._read_collection(label, value, singles_map)
        if isinstance(value, list) and value and all(isinstance(v, Collection) for v in value):
            if singles_map or not all(v.single for v in value):
                return self._read_collection(label, ConcatCollection(tuple(value)), singles_map)
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(self._read(label, part, False) for part in value)
        if type(value) is dict:
            return {key: self._read(label, part, False) for key, part in value.items()}
        return value

    def _read_collection(self, label: str, value: Collection, singles_map: bool) -> Slot:
        dataset = value.dataset(self._trace)
        if value.single and not singles_map:
            return self._slot(Input(dataset, "single"))
        self._mapped.append((label, value))
        return self._slot(Input(dataset, "mapped"))

    def _slot(self, given: Input) -> Slot:
        self._inputs.append(given)
        return Slot(len(self._inputs) - 1)

    def _check_types(self, named: Mapping[str, Any]) -> None:
        wanted = self._task.annotations()
        listed = self._task._options.split.given
        for name, value in named.items():
            given = _type_of(value, listed=listed)
            if name in wanted and incompatible(given, wanted[name]):
                source = value.of.label if isinstance(value, Whole) else value.label
                raise WorkflowError(
                    f"task {self._task.name!r}, argument {name!r}: {source} gives "
                    f"{describe(given)}, but {describe(wanted[name])} is annotated"
                )

    def place(self) -> Placed:
        """Note the task and return the stand-in for its output."""
        length, single, n_static = self._jobs()
        trace, task, options = self._trace, self._task, self._task._options
        number = trace.next_id()
        name = trace.unique(options.name)
        payload = task.payload(self._args, self._kwargs)
        token = self._token()
        spec = TaskSpec(
            id=number,
            name=name,
            token=token,
            payload=trace.blob(f"payload-{len(trace.blobs)}-{token}", payload),
            kind=task.kind,
            inputs=tuple(self._inputs),
            after=tuple(self._after),
            split=options.split,
            lists=options.split.given and bool(self._mapped),
            single=single,
            n_static=n_static,
            guards=trace.guards,
            **common_fields(options),
        )
        trace.add(spec)
        kind = task.annotations().get("return", UNKNOWN)
        return Placed(name, Output(number), length=length, single=single, type=kind)

    def _token(self) -> str:
        """Hash code and static arguments: what the values depend on besides the items."""
        static = cast(bytes, cloudpickle.dumps((self._args, self._kwargs)))
        return hashlib.blake2b(self._task.token().encode() + static, digest_size=8).hexdigest()

    def _jobs(self) -> tuple[int | None, bool, int | None]:
        """Return (number of jobs or None, whether it is one by construction, static number)."""
        split = self._task._options.split
        if not self._mapped:
            n = split.n_jobs or 1
            return n, n == 1, n
        items = self._zipped()
        only_n = split.n_jobs is not None and split == SplitRule(n_jobs=split.n_jobs)
        if only_n and split.n_jobs == 1:
            return 1, True, None
        if items is None:
            return None, False, None
        jobs = chunking.split(split, items, self._weighing(), task=self._task.name).n_jobs
        return jobs, False, None

    def _weighing(self) -> Sequence[File] | None:
        for _, collection in self._mapped:
            files = collection.files()
            if files is not None:
                return files
        return None

    def _zipped(self) -> int | None:
        split = self._task._options.split
        lengths = {label: c.length for label, c in self._mapped if c.length is not None}
        if len(set(lengths.values())) > 1:
            said = ", ".join(
                f"{label} ({c.label}) has {c.length}"
                for label, c in self._mapped
                if c.length is not None
            )
            raise WorkflowError(
                f"task {self._task.name!r}: mapped arguments are zipped and must be equally long, "
                f"but {said}; use pf.cross for the product or .all() for the whole"
            )
        if (split.events_per_job or (split.gb_per_job and not split.items_per_job)) and (
            self._weighing() is None
        ):
            chunking.split(split, 0, None, task=self._task.name)
        return next(iter(lengths.values()), None)


def common_fields(options: Options) -> dict[str, Any]:
    """Return the options that every kind of task hands on as they are."""
    names = "resources retry priority executor container requirements cache goal scouts"
    return {name: getattr(options, name) for name in (*names.split(), "max_failure_rate")}


def _type_of(value: Any, *, listed: bool) -> Any:
    if isinstance(value, Whole):
        return list if value.of.type is UNKNOWN else list[value.of.type]
    if not isinstance(value, Collection):
        return UNKNOWN
    if not listed:
        return value.type
    return list if value.type is UNKNOWN else list[value.type]
