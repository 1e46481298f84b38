"""Read access to runs behind a server; rows are those of a reader on a database."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from pandaflow.grid.calls import API, Calls, word
from pandaflow.grid.runs.errors import store_errors
from pandaflow.grid.runs.messages import JobPage, Noted

Row = dict[str, Any]
#: Jobs of a page.
PAGE = 5_000


class ServerReader:
    """A :class:`pandaflow.store.port.RunReader` over HTTP.

    Parameters
    ----------
    calls : Calls
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def runs(self, limit: int = 100) -> list[Row]:
        """Runs of one's virtual organisation, newest first."""
        with store_errors():
            return self._calls.rows("/runs", params={"limit": limit})

    def run(self, run_id: str) -> Row:
        """One run with its tasks; ``results`` is where they are read through the server."""
        row = dict(self._json(run_id))
        return {**row, "results": f"{self._calls.url}{API}/runs/{row['id']}/files"}

    def counts(self, run_id: str) -> dict[str, int]:
        """Jobs of the run by state, without those of tasks that the compiler made."""
        return dict(self.run(run_id)["jobs"])

    def jobs(
        self,
        run_id: str,
        *,
        task: str | None = None,
        status: str | None = None,
        index: int | None = None,
        limit: int | None = None,
    ) -> Iterator[Row]:
        """Jobs by task and index; fetched in pages, each as of when it is fetched."""
        only = {"task": task, "status": status, "index": index}
        given = {name: value for name, value in only.items() if value is not None}
        rows = islice(self._pages(run_id, given, limit), limit)
        head = list(islice(rows, 1))  # refuses now, not when somebody begins to iterate
        return chain(head, rows)

    def _pages(self, run_id: str, only: Row, limit: int | None) -> Iterator[Row]:
        query = {**only, "limit": PAGE if limit is None else min(limit, PAGE)}
        while True:
            page = self._message(JobPage, run_id, "jobs", query)
            yield from page.jobs
            if page.after is None:
                return
            query["after"] = page.after

    def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Row]:
        """The event log from sequence number ``after`` on (exclusive), oldest first."""
        return self._rows(run_id, "history", after=after, limit=limit)

    def noted(self, run_id: str, kind: str, after: int = 0) -> tuple[list[Row], int]:
        """Events of one kind, and the number of the newest event of any."""
        found = self._message(Noted, run_id, "noted", {"kind": kind, "after": after})
        return found.events, found.newest

    def story(self, run_id: str, task: str, index: int) -> list[Row]:
        """Events that touched one job, oldest first."""
        return self._rows(run_id, "story", task=task, index=index)

    def upstream(self, run_id: str, task: str) -> set[int] | None:
        """Ids of the tasks that a task reads, waits for or is decided by; None: cannot tell."""
        found = self._json(run_id, "upstream", task=task)
        return None if found is None else {int(number) for number in found}

    def sites(self, run_id: str) -> list[str]:
        """Names of the sites that jobs of the run were given."""
        return [str(name) for name in self._json(run_id, "sites")]

    def attempts(self, run_id: str, task: str, index: int) -> list[Row]:
        """Attempts of one job that have ended, oldest first."""
        return self._rows(run_id, "attempts", task=task, index=index)

    def bundle(self, run_id: str, bundle: int) -> Row:
        """One bundle."""
        return dict(self._json(run_id, f"bundles/{bundle}"))

    def timeline(self, run_id: str, limit: int = 20000) -> list[Row]:
        """Attempts that have ended, for charts."""
        return self._rows(run_id, "timeline", limit=limit)

    def open_requests(self, run_id: str) -> list[Row]:
        """Requests not carried out yet, oldest first."""
        return self._rows(run_id, "requests")

    def _json(self, run_id: str, what: str = "", **query: Any) -> Any:
        with store_errors():
            return self._calls.json("GET", _path(run_id, what), params=query)

    def _rows(self, run_id: str, what: str, **query: Any) -> list[Row]:
        return [dict(row) for row in self._json(run_id, what, **query)]

    def _message(self, kind: type[Any], run_id: str, what: str, query: Row) -> Any:
        with store_errors():
            return self._calls.message(kind, "GET", _path(run_id, what), params=query)


def _path(run_id: str, what: str) -> str:
    return f"/runs/{word(run_id)}" + (f"/{what}" if what else "")
