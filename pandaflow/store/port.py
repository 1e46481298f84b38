"""What handles of runs need of a store, wherever it is: a database, or a server before one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pandaflow.core.model import WorkflowSpec
    from pandaflow.data.results import ResultStore
    from pandaflow.ports import RunState

Row = dict[str, Any]


class RunReader(Protocol):
    """Read access for people. Rows are plain dicts with JSON-ready values.

    All methods raise ``RunNotFound``, and ``NotInRun`` where they name a task, a bundle or a
    state. What each returns is told at :class:`pandaflow.store.reader.SqlReader`.
    """

    def runs(self, limit: int = 100) -> list[Row]:
        """Runs, newest first."""
        ...

    def run(self, run_id: str) -> Row:
        """One run with its tasks."""
        ...

    def counts(self, run_id: str) -> dict[str, int]:
        """Jobs of the run by state."""
        ...

    def jobs(
        self,
        run_id: str,
        *,
        task: str | None = None,
        status: str | None = None,
        index: int | None = None,
        limit: int | None = None,
    ) -> Iterator[Row]:
        """Jobs by task and index."""
        ...

    def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Row]:
        """The event log from sequence number ``after`` on (exclusive)."""
        ...

    def noted(self, run_id: str, kind: str, after: int = 0) -> tuple[list[Row], int]:
        """Events of one kind, and the number of the newest of any."""
        ...

    def story(self, run_id: str, task: str, index: int) -> list[Row]:
        """Events that touched one job."""
        ...

    def upstream(self, run_id: str, task: str) -> set[int] | None:
        """Ids of the tasks before a task."""
        ...

    def sites(self, run_id: str) -> list[str]:
        """Sites that jobs were given."""
        ...

    def attempts(self, run_id: str, task: str, index: int) -> list[Row]:
        """Attempts of one job that have ended."""
        ...

    def bundle(self, run_id: str, bundle: int) -> Row:
        """One bundle."""
        ...

    def timeline(self, run_id: str, limit: int = 20000) -> list[Row]:
        """Attempts that have ended, for charts."""
        ...

    def open_requests(self, run_id: str) -> list[Row]:
        """Requests not carried out yet."""
        ...


class RunStore(Protocol):
    """Where runs are looked at and steered."""

    @property
    def url(self) -> str:
        """Opens it again."""
        ...

    def reader(self) -> RunReader:
        """Return read access."""
        ...

    def state(self, run_id: str) -> RunState:
        """Return a run as last committed."""
        ...

    def driven(self, run_id: str) -> bool:
        """Tell whether a live process drives the run."""
        ...

    def request(self, run_id: str, kind: str, body: Mapping[str, Any]) -> int:
        """Leave a wish for whoever drives the run; return its id."""
        ...


@runtime_checkable
class Serving(Protocol):
    """What a store also offers if it is a server: runs are left there, and driven by others."""

    def leave(self, spec: WorkflowSpec, blobs: Mapping[str, bytes], run_id: str) -> None:
        """Leave a run with the server; may be repeated after an error."""
        ...

    def results(self, run_id: str) -> ResultStore:
        """Return the results of a run, as seen through the server."""
        ...

    def live_log(self, run_id: str, bundle: int) -> str:
        """Return the end of the log of a bundle that runs; empty if nobody can tell."""
        ...
