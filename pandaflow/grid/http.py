"""A client of the pool's server, for executors and people: one method for each route."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pandaflow.grid.calls import Calls, parse, sent, word
from pandaflow.grid.messages import (
    BATCH,
    Acquire,
    Acquired,
    Bundle,
    Cancellation,
    Outcome,
    Outcomes,
    PilotCommand,
    PilotUpdate,
    Submission,
    Updated,
)
from pandaflow.grid.places import Demand, Queue, QueueBody

#: Bytes of bundles in one request; the server takes more.
REQUEST_BYTES = 16_000_000
_JSON = {"Content-Type": "application/json"}


class GridClient(Calls):
    """A client of one server's pool; takes what :class:`Calls` takes."""

    # --- drivers ------------------------------------------------------------------------

    def open_run(self, run: str, owner: str = "") -> None:
        """Make a run known to the pool; it is the owner's, or one's own."""
        query = {"owner": owner} if owner else {}
        self.call("PUT", f"/pool/{word(run)}", params=query)

    def put_payload(self, run: str, digest: str, data: bytes) -> None:
        """Leave what a run's functions need, by its SHA-256."""
        media = {"Content-Type": "application/octet-stream"}
        path = f"/pool/{word(run)}/payloads/{word(digest)}"
        self.call("PUT", path, content=data, headers=media)

    def submit(self, run: str, bundles: Sequence[Bundle]) -> dict[int, str]:
        """Put bundles into the pool, in as many requests as are needed; may be repeated.

        Returns
        -------
        dict of int to str
            By number of the bundle: why it was refused.
        """
        refused: dict[int, str] = {}
        for body in _bodies(bundles):
            path = f"/pool/{word(run)}/bundles"
            told = self.json("POST", path, content=body, headers=_JSON, repeat=True)
            found = told.get("refused", {}) if isinstance(told, dict) else {}
            refused.update({int(number): str(why) for number, why in found.items()})
        return refused

    def cancel(self, run: str, bundles: Sequence[int] | None = None) -> int:
        """Cancel bundles, None: all of the run; return how many were not over."""
        body = Cancellation(bundles=None if bundles is None else tuple(bundles))
        path = f"/pool/{word(run)}/cancel"
        told = self.json("POST", path, **sent(body), repeat=True)
        return int(told["cancelled"])

    def outcomes(self, run: str, after: int = 0, wait: float = 0.0, limit: int = BATCH) -> Outcomes:
        """Return what happened after outcome number `after`; acknowledges those up to it."""
        query = {"after": after, "wait": min(wait, 60.0), "limit": limit}
        path = f"/pool/{word(run)}/outcomes"
        return self.message(Outcomes, "GET", path, params=query, wait=wait)

    def forget_run(self, run: str) -> None:
        """Cancel what a run has in the pool, and forget it; one that is not there is fine."""
        self.call("DELETE", f"/pool/{word(run)}", missing=True)

    def runs(self) -> list[dict[str, Any]]:
        """Return the runs that have something in the pool."""
        return self.rows("/pool")

    def bundles(self, run: str) -> list[int]:
        """Return the numbers of a run's bundles in the pool that were not cancelled."""
        rows = self.bundle_rows(run, limit=1_000_000)
        return [int(row["bundle"]) for row in rows if row.get("state") != "cancelled"]

    def bundle_rows(
        self, run: str, state: str | None = None, limit: int = 1_000
    ) -> list[dict[str, Any]]:
        """Return a run's bundles in the pool with their states, by number."""
        query = {"limit": limit, **({} if state is None else {"state": state})}
        return self.rows(f"/pool/{word(run)}/bundles", params=query)

    def log(self, run: str, bundle: int) -> str:
        """Return what there is of a bundle's log."""
        return self.call("GET", f"/pool/{word(run)}/bundles/{bundle}/log").text

    def ask_tail(self, run: str, bundle: int) -> bool:
        """Ask for the end of a bundle's log; False: nobody runs it now."""
        told = self.json("POST", f"/pool/{word(run)}/bundles/{bundle}/tail", repeat=True)
        return bool(told["asked"])

    def events(self, run: str, after: int = 0, seconds: float = 3_600.0) -> Iterator[Outcome]:
        """Yield outcomes of a run as they happen, without acknowledging any.

        Raises
        ------
        SiteError
            Also when the stream breaks: ask again after the last number that was seen.
        """
        path, query = f"/pool/{word(run)}/events", {"after": after, "seconds": seconds}
        with self.stream(path, params=query) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield parse(Outcome, line[5:].encode())

    # --- pilots -------------------------------------------------------------------------

    def acquire(self, question: Acquire) -> Acquired:
        """Ask for work; not repeated after it may have been heard: bundles would be lost."""
        return self.message(
            Acquired, "POST", "/pilot/acquire", **sent(question), wait=question.wait
        )

    def update(self, told: PilotUpdate) -> Updated:
        """Report on bundles."""
        return self.message(Updated, "POST", "/pilot/update", **sent(told))

    def payload(self, run: str, digest: str) -> bytes:
        """Return what a run's functions need."""
        return self.call("GET", f"/pilot/payloads/{word(run)}/{word(digest)}").content

    def put_log(self, id: int, lease: str, text: str) -> None:
        """Leave the log of a bundle."""
        headers = {"Content-Type": "text/plain; charset=utf-8", "X-Pandaflow-Lease": lease}
        self.call("PUT", f"/pilot/logs/{id}", content=text.encode(), headers=headers)

    # --- queues and pilots, for people ----------------------------------------------------

    def queues(self) -> list[Queue]:
        """Return all queues that one may see."""
        return [parse(Queue, json.dumps(row).encode()) for row in self.rows("/queues")]

    def queue(self, name: str) -> Queue:
        """Return a queue."""
        return self.message(Queue, "GET", f"/queues/{word(name)}")

    def put_queue(self, name: str, body: QueueBody) -> Queue:
        """Make a queue, or change it."""
        return self.message(Queue, "PUT", f"/queues/{word(name)}", **sent(body))

    def delete_queue(self, name: str) -> None:
        """Delete a queue."""
        self.call("DELETE", f"/queues/{word(name)}")

    def close_queue(self, name: str, reason: str = "") -> Queue:
        """Give out no more bundles at a queue."""
        path = f"/queues/{word(name)}/close"
        return self.message(Queue, "POST", path, params={"reason": reason}, repeat=True)

    def open_queue(self, name: str) -> Queue:
        """Open a queue that is closed or held."""
        return self.message(Queue, "POST", f"/queues/{word(name)}/open", repeat=True)

    def demand(self, name: str) -> Demand:
        """Return what a queue is wanted for: counts of bundles by what they need."""
        return self.message(Demand, "GET", f"/queues/{word(name)}/demand")

    def pilots(self, queue: str = "") -> list[dict[str, Any]]:
        """Return pilots, of one queue or of all, those heard of last first."""
        return self.rows("/pilots", params={"queue": queue} if queue else {})

    def command_pilot(self, name: str, command: PilotCommand) -> None:
        """Tell a pilot to drain or to stop."""
        self.call("POST", f"/pilots/{word(name)}/{command}", repeat=True)

    # --- about the server -----------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Return how the server is; an error if its database does not answer."""
        return dict(self.json("GET", "/health"))

    def whoami(self) -> dict[str, Any]:
        """Return who one is to the server."""
        return dict(self.json("GET", "/whoami"))

    def pilot_archive(self) -> bytes:
        """Return the pilot as one file."""
        return self.call("GET", "/pilot.pyz").content


def _bodies(bundles: Sequence[Bundle]) -> Iterator[str]:
    """Yield bundles as bodies that the server takes."""
    group: list[Bundle] = []
    size = 0
    for bundle in bundles:
        # A guess will do: the server takes twice as much.
        size += 500 + len(bundle.work or b"") * 4 // 3 + _length(bundle)
        if group and (size > REQUEST_BYTES or len(group) == BATCH):
            yield _body(group)
            group, size = [], 0
        group.append(bundle)
    if group:
        yield _body(group)


def _length(bundle: Bundle) -> int:
    commands = sum(
        len(job.line) + 300 * len(job.inputs) + 100 * len(job.outputs) for job in bundle.commands
    )
    return commands + 8 * len(bundle.jobs)


def _body(group: Sequence[Bundle]) -> str:
    return Submission(bundles=tuple(group)).model_dump_json(exclude_defaults=True)
