"""What a session has in flight: bundles, and the elements of arrays that carry them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pandaflow.core.bundle import BundleSpec
from pandaflow.executors.batch.model import JobRef
from pandaflow.executors.batch.places import Place
from pandaflow.ports import Assignment


@dataclass(slots=True, eq=False)
class Element:
    """An element of an array.

    Attributes
    ----------
    array : Array
    index : int
        From 0.
    cores : int
        On all its nodes.
    open : list of int
        Its bundles that have not ended.
    current : int or None
        The bundle that it runs.
    here : bool
        It has begun to work.
    offset : int
        Bytes of its report that have been read.
    missing : int
        Looks in a row at which nobody knew it.
    over : bool
        The last look said that it has ended.
    gone : bool
        It has ended, and all that it said has been heard.
    """

    array: Array
    index: int
    cores: int
    open: list[int]
    current: int | None = None
    here: bool = False
    offset: int = 0
    missing: int = 0
    over: bool = False
    gone: bool = False

    @property
    def ref(self) -> JobRef:
        """What the batch system calls it."""
        return self.array.id, self.index if self.array.many else None

    @property
    def report(self) -> Path:
        """The file in which it tells how it goes."""
        return self.array.folder / f"{self.index}.report"


@dataclass(slots=True, eq=False)
class Array:
    """A submission: an array, or a single job if there is one element only (not ``many``).

    ``clean``: nothing has happened that somebody may want to read about in its files.
    """

    id: str
    folder: Path
    many: bool
    place: Place
    elements: list[Element] = field(default_factory=list)
    clean: bool = True


@dataclass(slots=True, eq=False)
class Bundle:
    """A bundle that has not ended.

    Attributes
    ----------
    given : Assignment
    needs : set of int
        Bundles in flight that it waits for.
    element : Element or None
        Which carries it.
    refused : dict of str to str
        Sites that did not take it, and what they said.
    """

    given: Assignment
    needs: set[int]
    element: Element | None = None
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> BundleSpec:
        """Return its description."""
        return self.given.spec

    @property
    def ready(self) -> bool:
        """Whether it can go into an element."""
        return self.element is None and not self.needs


def rank(bundle: Bundle) -> tuple[tuple[int, ...], int]:
    """Order of submission, largest first: by priority, and then as they came."""
    return bundle.given.emit.priority, -bundle.spec.bundle


def shortest(wanted: Iterable[Element]) -> list[JobRef]:
    """Name elements, and arrays as a whole where no other element is left."""
    chosen = set(wanted)
    refs: set[JobRef] = set()
    for each in chosen:
        whole = all(other in chosen or other.gone for other in each.array.elements)
        refs.add((each.array.id, None) if whole else each.ref)
    return sorted(refs, key=str)
