"""What tasks are called on: stand-ins for the items of datasets while a workflow is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import (
    Concat,
    Cross,
    CrossPart,
    Dataset,
    File,
    Source,
    SourceSpec,
)
from pandaflow.core.signature import UNKNOWN

if TYPE_CHECKING:
    from pandaflow.authoring.trace import Trace


class Collection(ABC):
    """Stands for the items of a dataset while a workflow is written.

    Attributes
    ----------
    length : int or None
        Number of items, where it is known before the run.
    single : bool
        One item by construction: a value, which is broadcast when zipped with collections.
    type : type
        What the items are annotated to be, or ``inspect.Parameter.empty``.
    """

    def __init__(self, label: str, *, length: int | None, single: bool = False) -> None:
        self.label, self.length, self.single = label, length, single
        self.type: Any = UNKNOWN

    @abstractmethod
    def dataset(self, trace: Trace) -> Dataset:
        """Return the dataset within ``trace``."""

    def files(self) -> Sequence[File] | None:
        """Return the items, where they are files that are known now."""
        return None

    def all(self) -> Whole:
        """Hand the whole collection, as a list, to each job."""
        return Whole(self)

    def __repr__(self) -> str:
        size = (
            "1 value"
            if self.single
            else f"{self.length} items"
            if self.length is not None
            else "open"
        )
        return f"<{self.label}: {size}>"

    def __iter__(self) -> Iterator[Any]:
        raise WorkflowError(
            f"{self.label} has no items while the workflow is written; pass it to a task, "
            "which maps over it (pf.scatter flattens lists, pf.loop iterates)"
        )

    def __bool__(self) -> bool:
        raise WorkflowError(
            f"the value of {self.label} is not known while the workflow is written; "
            "use pf.when(condition, then, otherwise)"
        )


@dataclass(frozen=True)
class Whole:
    """A collection that each job gets whole."""

    of: Collection


@dataclass(frozen=True)
class After:
    """A barrier: jobs wait until all of these exist."""

    collections: tuple[Collection, ...]


class SourceCollection(Collection):
    """Items that the workflow brings along (see ``pf.files``, ``pf.items``, ``pf.stream``)."""

    def __init__(
        self,
        spec: SourceSpec,
        items: Sequence[Any] | None = None,
        *,
        length: int | None,
        single: bool = False,
    ) -> None:
        super().__init__(spec.name, length=length, single=single)
        self.spec, self.items = spec, items
        if spec.kind == "files":
            self.type = File
        elif spec.kind == "range":
            self.type = int

    def dataset(self, trace: Trace) -> Dataset:
        """Return the source, adopted by the workflow."""
        return Source(trace.adopt(self))

    def files(self) -> Sequence[File] | None:
        """Return the files themselves, where the source has them."""
        return self.spec.files if self.spec.kind == "files" else None

    def _repr_html_(self) -> str:
        from pandaflow.display.html import dataset_html

        sample = [str(item) for item in list(self.spec.files or self.items or ())[:5]]
        return dataset_html(self.spec.name, self.spec.kind, self.length, sample)


class Placed(Collection):
    """A collection whose dataset is known: a task's output and what is made of outputs."""

    def __init__(
        self,
        label: str,
        place: Dataset,
        *,
        length: int | None,
        single: bool = False,
        type: Any = UNKNOWN,
    ) -> None:
        super().__init__(label, length=length, single=single)
        self._place, self.type = place, type

    def dataset(self, trace: Trace) -> Dataset:
        """Return the place that was given."""
        return self._place


class CrossCollection(Collection):
    """A product; unpack it (``a, b = pf.cross(x, y)``) or map over its tuples."""

    def __init__(self, parts: tuple[Collection, ...]) -> None:
        length: int | None = 1
        for part in parts:
            length = None if length is None or part.length is None else length * part.length
        super().__init__(f"cross({', '.join(p.label for p in parts)})", length=length)
        self.parts = parts
        types = [part.type for part in parts]
        self.type = UNKNOWN if UNKNOWN in types else tuple.__class_getitem__(tuple(types))

    def dataset(self, trace: Trace) -> Dataset:
        """Return the product of the parts' datasets."""
        return Cross(tuple(part.dataset(trace) for part in self.parts))

    def __iter__(self) -> Iterator[Any]:
        return iter([CrossComponent(self, k) for k in range(len(self.parts))])


class CrossComponent(Collection):
    """One side of a product."""

    def __init__(self, of: CrossCollection, part: int) -> None:
        super().__init__(f"{of.label}.{part}", length=of.length)
        self._of, self._part = of, part
        self.type = of.parts[part].type

    def dataset(self, trace: Trace) -> Dataset:
        """Return this part of the product."""
        return CrossPart(cast(Cross, self._of.dataset(trace)), self._part)


class ConcatCollection(Collection):
    """Collections one after the other."""

    def __init__(self, parts: tuple[Collection, ...]) -> None:
        lengths = [part.length for part in parts]
        length = None if None in lengths else sum(cast(list[int], lengths))
        super().__init__(f"concat({', '.join(p.label for p in parts)})", length=length)
        self.parts = parts

    def dataset(self, trace: Trace) -> Dataset:
        """Return the parts' datasets in a row."""
        return Concat(tuple(part.dataset(trace) for part in self.parts))
