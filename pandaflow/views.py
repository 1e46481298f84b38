"""Views of a run's parts: its jobs, its tasks, its streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.data.feed import feeder
from pandaflow.data.results import ResultStore
from pandaflow.ports import RunState


class JobsView:
    """Jobs of a run as the store has them now: iterable, with a length, by number.

    Iterating reads row by row, so that a million jobs are no list.
    """

    def __init__(self, read: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._read()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, place: int | slice) -> Any:
        return list(self)[place]

    def __repr__(self) -> str:
        shown = [f"{row['task']}[{row['index']}] {row['status']}" for row in islice(self, 11)]
        more = ", ..." if len(shown) > 10 else ""
        return f"<jobs: {', '.join(shown[:10]) or 'none'}{more}>"

    def _repr_html_(self) -> str:
        from pandaflow.display.html import jobs_html

        return jobs_html(list(islice(self, 51)))


class TaskView(dict[str, Any]):
    """A task of a run as a plain dict, with a picture of its jobs for notebooks."""

    def _repr_html_(self) -> str:
        from pandaflow.display.html import task_html

        return task_html(self)


class RunStream:
    """Feeds a stream of a run through the store, whoever drives it.

    Parameters
    ----------
    name : str
    state : RunState
    waiting : sequence of dict
        Requests that the run's driver has not carried out yet.
    results : ResultStore
    tell : callable
        Leaves a request.
    """

    def __init__(
        self,
        name: str,
        state: RunState,
        waiting: Sequence[Mapping[str, Any]],
        results: ResultStore,
        tell: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        streams = {s.name: s for s in state.spec.sources if s.kind == "stream"}
        if name not in streams:
            known = ", ".join(streams) or "none"
            raise WorkflowError(f"run {state.id} has no stream {name!r}; it has {known}")
        source = streams[name]
        n, self.closed = state.streams.get(source.id, (source.n, False))
        appends = [r["body"] for r in waiting if r["kind"] == "append"]
        mine = [body for body in appends if body["source"] == source.id]
        self.closed = self.closed or any(body["closed"] for body in mine)
        sent = n + sum(body["count"] for body in mine)
        self._feed = feeder(results, tell, source.id, sent)

    def append(self, *values: Any) -> None:
        """Add items; they are durable when this returns."""
        self._check_open()
        self._feed(values, False)

    def close(self) -> None:
        """Say that no more items will come."""
        self._check_open()
        self._feed((), True)
        self.closed = True

    def _check_open(self) -> None:
        if self.closed:
            raise WorkflowError("the stream is closed")
