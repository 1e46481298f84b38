"""The items of a run's sources, read from what was stored when the workflow was submitted.

Values are kept pickled one by one and are never unpickled here: only jobs do that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pandaflow.core.bundle import SourceSlice
from pandaflow.core.errors import DataError
from pandaflow.core.model import SourceSpec
from pandaflow.data import plain
from pandaflow.data.results import ResultStore


def stream_blob(source: int, start: int) -> str:
    """Return the name under which the items of a stream from number ``start`` on are kept."""
    return f"stream-{source}-{start}"


class StoredItems:
    """Gives slices of sources.

    Parameters
    ----------
    sources : mapping of int to SourceSpec
    results : ResultStore
        Of the run.
    """

    def __init__(self, sources: Mapping[int, SourceSpec], results: ResultStore) -> None:
        self._sources, self._results = dict(sources), results
        self._frames: dict[int, list[bytes]] = {}

    def add(self, sources: Iterable[SourceSpec]) -> None:
        """Know more sources: a run may take them in while it goes on."""
        self._sources.update({source.id: source for source in sources})

    def items(self, source: int, lo: int, hi: int) -> SourceSlice:
        """Return items ``[lo, hi)`` of a source.

        Raises
        ------
        DataError
            They cannot be read.
        """
        spec = self._sources[source]
        if spec.kind == "files":
            return SourceSlice(lo, spec.files[lo:hi])
        if spec.kind == "range":
            return SourceSlice(lo, range(*spec.bounds)[lo:hi])
        return SourceSlice(lo, tuple(self._pickled(spec, hi)[lo:hi]), pickled=True)

    def _pickled(self, spec: SourceSpec, upto: int) -> list[bytes]:
        frames = self._frames.get(spec.id)
        if frames is None:
            frames = self._frames[spec.id] = self._load(spec.blob)
        while len(frames) < upto:
            frames += self._load(stream_blob(spec.id, len(frames)))
        return frames

    def _load(self, name: str) -> list[bytes]:
        try:
            return plain.frames(self._results.get(name))
        except DataError as error:
            raise DataError(f"{name} in {self._results.url}: {error}") from error
