"""Feeding a stream of a run: items are made durable first, then the driver is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pandaflow.data.items import stream_blob
from pandaflow.data.results import ResultStore

Tell = Callable[[str, Mapping[str, Any]], None]


def feeder(
    results: ResultStore, tell: Tell, source: int, sent: int
) -> Callable[[Sequence[Any], bool], None]:
    """Return a function of (items, closed) that appends to a stream.

    Parameters
    ----------
    results : ResultStore
        Of the run.
    tell : callable
        Leaves a request for the run's driver.
    source : int
        The stream.
    sent : int
        Items that it has already.
    """
    count = sent

    def feed(values: Sequence[Any], closed: bool) -> None:
        import cloudpickle

        nonlocal count
        if values:
            frames = [cloudpickle.dumps(value) for value in values]
            results.put(stream_blob(source, count), cloudpickle.dumps(frames))
        count += len(values)
        tell("append", {"source": source, "count": len(values), "closed": closed})

    return feed
