"""Runs that people leave with the server: whose they are, what is kept of them and shown.

Nothing of a run is executed or unpickled here: payloads, items, values and logs are bytes.
Methods run in threads.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from pandaflow import explain as stories
from pandaflow import places
from pandaflow.core.errors import NotInRun, PandaflowError, RunNotFound, StoreError, WorkflowError
from pandaflow.core.model import WorkflowSpec
from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.pool import NotThere, Pool
from pandaflow.grid.runs.codec import dump_state
from pandaflow.grid.runs.messages import AnyWish, WishState
from pandaflow.ports import Submitter
from pandaflow.server.checking import blobs_of, parse_left
from pandaflow.server.files import open_inside
from pandaflow.server.problems import Refusal
from pandaflow.server.settings import Limits
from pandaflow.server.uploads import Blob, Uploads, check_run
from pandaflow.store.reader import SqlReader
from pandaflow.store.sql import SqlStore

#: Bytes of one attempt's log that are shown: its end.
_LOG_BYTES = 1_000_000
#: Bytes of an account of a run that stay in memory; more waits in a file.
_IN_MEMORY = 4_000_000
_NAMED = 10

Row = dict[str, Any]


class RunDesk:
    """Where people leave runs, look at them and ask for changes.

    Parameters
    ----------
    store : SqlStore
    pool : Pool
        Has the logs of bundles that pilots run.
    limits : Limits
    results : str
        Folder or fsspec URL; empty: where runs of the store keep their results.
    """

    def __init__(self, store: SqlStore, pool: Pool, limits: Limits, results: str = "") -> None:
        self._store, self._pool = store, pool
        self.root = results.rstrip("/") or places.results_root(store)
        self._uploads = Uploads(self.root, limits)

    # --- who may --------------------------------------------------------------------------

    def reader(self, actor: Actor) -> SqlReader:
        """Return read access to the runs that somebody may see: those of their VO.

        In anonymous mode the VO is empty, as it is of runs that nobody left with a server.

        Raises
        ------
        Forbidden
            They are a pilot.
        """
        actor.require("user", "production", "operator")
        return self._store.reader(actor.vo)

    def see(self, actor: Actor, run: str) -> Row:
        """Return whose a run is that somebody may see.

        Raises
        ------
        RunNotFound, Forbidden
        """
        return self.reader(actor).whose(run)

    def change(self, actor: Actor, run: str) -> Row:
        """Return whose a run is that somebody may change.

        Raises
        ------
        RunNotFound, Forbidden
        """
        found = self.see(actor, run)
        if not actor.may_change(found["vo"], found["submitter"]):
            raise Forbidden(
                f"run {found['id']!r} is another user's: {actor.name or actor.subject} needs the "
                "role production or operator"
            )
        return found

    # --- leaving --------------------------------------------------------------------------

    def blob(self, actor: Actor, run: str, name: str, now: float) -> tuple[Blob, bool]:
        """Return a blob to write, and whether it may replace another of its name.

        Before a run exists whoever uploads it may; afterwards only new ones come, of streams.

        Raises
        ------
        WorkflowError, Forbidden, Refusal
        """
        check_run(run)
        try:
            folder, new = self._left_folder(actor, run), False
        except RunNotFound:
            folder, new = self._uploads.folder(actor, run), True
            self._uploads.begin(folder, now)
        return self._uploads.blob(folder, name), new

    def _left_folder(self, actor: Actor, run: str) -> str:
        found = self.change(actor, run)
        if found["id"] != run:  # a prefix of another one
            raise RunNotFound(run)
        return str(found["results"])

    def leave(self, actor: Actor, run: str, spec: Row, now: float) -> None:
        """Make a run of a workflow and what was uploaded for it; nothing if it is there already.

        Raises
        ------
        WorkflowError
            Something is wrong with it, or missing.
        Refusal
            There is another run of that id (409).
        """
        actor.require("user", "production", "operator")
        check_run(run)
        parsed = parse_left(spec, run)
        folder = self._uploads.folder(actor, run)
        if self._is_left(actor, run, parsed):
            self._uploads.finish(folder)
            return
        missing = sorted(blobs_of(parsed) - self._uploads.names(folder))
        if missing:
            more = ", ..." if len(missing) > _NAMED else ""
            raise WorkflowError(f"upload first: {', '.join(missing[:_NAMED])}{more}")
        self._create(actor, run, parsed, now)
        self._uploads.finish(folder)

    def _create(self, actor: Actor, run: str, spec: WorkflowSpec, now: float) -> None:
        whose = Submitter(actor.subject, actor.vo)
        folder = self._uploads.folder(actor, run)
        try:
            self._store.create_run(spec, run_id=run, created=now, results=folder, served=whose)
        except StoreError:
            # The same call may have come twice at once, here or through another instance.
            if not self._is_left(actor, run, spec):
                raise

    def _is_left(self, actor: Actor, run: str, spec: WorkflowSpec) -> bool:
        """Tell whether the very run is there; refuse if another one is."""
        try:
            found = self._store.reader().whose(run)
        except RunNotFound:
            return False
        if found["id"] != run:
            return False
        mine = (found["submitter"], found["vo"]) == (actor.subject, actor.vo)
        if not (mine and found["served"] and self._store.state(run).spec == spec):
            raise Refusal(409, f"there is another run {run!r}: choose another id")
        return True

    def purge(self, before: float) -> int:
        """Throw uploads away that were begun before a time and became no run; return how many."""
        count = 0
        for run, folder in self._uploads.abandoned(before):
            if self._results_of(run) == folder:
                self._uploads.finish(folder)  # the server stopped in between
            else:
                self._uploads.forget(folder)
                count += 1
        return count

    def _results_of(self, run: str) -> str | None:
        try:
            found = self._store.reader().whose(run)
        except RunNotFound:
            return None
        return str(found["results"]) if found["id"] == run else None

    # --- steering -------------------------------------------------------------------------

    def wish(self, actor: Actor, run: str, wish: AnyWish) -> int:
        """Leave a wish for whoever drives a run; return its number.

        Raises
        ------
        RunNotFound, Forbidden
        """
        found = self.change(actor, run)
        body = wish.model_dump(exclude={"kind"})
        return self._store.request(
            found["id"], wish.kind, {**body, "by": actor.name or actor.subject}
        )

    def wish_state(self, actor: Actor, run: str, number: int) -> WishState:
        """Tell what became of a wish.

        Raises
        ------
        RunNotFound, NotInRun
        """
        return WishState.model_validate(self.reader(actor).request(run, number))

    # --- looking --------------------------------------------------------------------------

    def run(self, actor: Actor, run: str) -> Row:
        """Return a run with its tasks; where its results are is nobody's business but ours."""
        return {**self.reader(actor).run(run), "results": ""}

    def look(self, actor: Actor, run: str, method: str, *arguments: Any) -> Any:
        """Return what a method of the reader tells of a run."""
        ask: Callable[..., Any] = getattr(self.reader(actor), method)
        return ask(run, *arguments)

    def driven(self, actor: Actor, run: str) -> bool:
        """Tell whether somebody drives a run."""
        return self._store.driven(self.see(actor, run)["id"])

    def explain(self, actor: Actor, run: str, task: str, index: int) -> str:
        """Tell in words why a job is where it is."""
        try:
            return stories.explain(self.reader(actor), run, task, index)
        except WorkflowError as error:  # there is no such job
            raise NotInRun(str(error)) from error

    def state(self, actor: Actor, run: str) -> IO[bytes]:
        """Return a file with the account of a run that handles need; compressed by gzip."""
        found = self.see(actor, run)
        # Not sent as it is read: a slow client would keep the database's snapshot open.
        file = tempfile.SpooledTemporaryFile(_IN_MEMORY)
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=3, mtime=0) as packed:
            for line in dump_state(self._store.state(found["id"])):
                packed.write(line.encode() + b"\n")
        file.seek(0)
        return file

    def file(self, actor: Actor, run: str, name: str) -> tuple[IO[bytes], int]:
        """Open a file of a run's results; return it with its size.

        Raises
        ------
        RunNotFound, NotInRun, Refusal
        """
        return open_inside(self.see(actor, run)["results"], name)

    def log(self, actor: Actor, run: str, task: str, index: int) -> str:
        """Return what a job wrote, attempt by attempt, and the end of what it writes now."""
        found, reader = self.see(actor, run), self.reader(actor)
        attempts = reader.attempts(found["id"], task, index)
        job = next(reader.jobs(found["id"], task=task, index=index), None)
        if job is None:
            raise NotInRun(f"task {task!r} has no job {index}")
        parts = list(_logs(found["results"], attempts))
        if job["status"] == "running":
            parts.append(self.tail(actor, found["id"], job["bundle"])[0])
        return "\n".join(part for part in parts if part)

    def tail(self, actor: Actor, run: str, bundle: int) -> tuple[str, bool]:
        """Return the end of a bundle's log as a pilot sent it last, and ask for it anew.

        The second value tells whether a pilot was asked: it sends it with its next report.
        """
        found = self.see(actor, run)
        try:
            text = self._pool.log(actor, found["id"], bundle)
            return text, self._pool.ask_tail(actor, found["id"], bundle)
        except NotThere:  # it runs elsewhere
            return "", False


def _logs(folder: str, attempts: list[Row]) -> Iterator[str]:
    for attempt in attempts:
        if attempt["log"] is not None:
            head = f"--- attempt {attempt['attempt']} ---\n" if len(attempts) > 1 else ""
            yield head + _log(folder, attempt["bundle"], *attempt["log"])


def _log(folder: str, bundle: int, offset: int, length: int) -> str:
    skipped = max(0, length - _LOG_BYTES)
    try:
        file, _ = open_inside(folder, f"logs/{bundle}.log")
        with file:
            file.seek(offset + skipped)
            return file.read(length - skipped).decode(errors="replace")
    except PandaflowError as error:
        return f"(its log cannot be had: {error})\n"
