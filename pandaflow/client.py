"""Handles of runs: watch, steer and collect, from the process that drives a run or any other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import (
    RunFailed,
    StoreError,
    StoreUnavailable,
    WorkflowError,
)
from pandaflow.core.events import RetryRequested
from pandaflow.core.status import RUN_TERMINAL, JobStatus, RunStatus, TaskStatus
from pandaflow.driving import Driving
from pandaflow.places import open_store, pick_executors
from pandaflow.views import JobsView, RunStream, TaskView

if TYPE_CHECKING:
    from pandaflow.authoring.collections import SourceCollection
    from pandaflow.core.engine import Engine
    from pandaflow.display.drawing import Picture
    from pandaflow.gather import Gatherer

#: Failures that an error names.
_NAMED = 1000
#: Seconds between two pictures of a run that others drive.
_POLL_SHOWN_S = 1.0
#: Seconds for which a server that was there may be away while somebody waits.
_AWAY_S = 300.0
#: Seconds that a cancelled or paused run without a driver may need to be noticed.
_GRACE_S = 5.0

JobName = str | tuple[str, int]


# --- finding runs -----------------------------------------------------------------------


def runs(store: Any = None, limit: int = 100) -> list[Run]:
    """Return handles of the newest runs."""
    opened = open_store(store)
    return [Run(row["id"], opened) for row in opened.reader().runs(limit)]


def attach(run_id: str = "last", store: Any = None) -> Run:
    """Return a handle of a run by id, unique prefix or ``"last"``.

    Raises
    ------
    RunNotFound
    """
    opened = open_store(store)
    return Run(opened.reader().run(run_id)["id"], opened)


def resume(
    run_id: str = "last",
    store: Any = None,
    executor: Any = None,
    executors: Mapping[str, Any] | None = None,
) -> Run:
    """Continue a run whose driver died; jobs that were committed do not run again.

    Raises
    ------
    RunLocked
        Another live process drives it.
    """
    run = attach(run_id, store)
    run._drive(pick_executors(executor, executors))
    return run


# --- a run ------------------------------------------------------------------------------


class Run(Driving):
    """A run of a workflow.

    All that it tells is read from the store, so a handle works the same in the process that
    drives the run, in another, and after the run's end.
    """

    # --- looking ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name it was given, or the workflow's."""
        return str(self.summary()["name"])

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Tasks with state and counts of their jobs; each is a dict that notebooks draw."""
        return [TaskView(task) for task in self.summary()["tasks"] if not task["internal"]]

    def jobs(
        self, task: str | None = None, status: str | None = None, limit: int | None = None
    ) -> JobsView:
        """Return jobs by task and index, of one task or in one state where asked.

        Raises
        ------
        StoreError
            No task or no state of that name.
        """
        view = JobsView(lambda: self._reader.jobs(self.id, task=task, status=status, limit=limit))
        iter(view)  # refuses a wrong name now, not when somebody begins to iterate
        return view

    def events(self, after: int = 0, follow: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the event log from number ``after`` on; ``follow``: until the run ends."""
        while True:
            over = not follow or self.status in RUN_TERMINAL
            while page := self._reader.events(self.id, after):
                yield from page
                after = page[-1]["seq"]
            if over:
                return
            time.sleep(max(0.2, self._poll_s))

    def explain(self, job: JobName) -> str:
        """Tell why a job is where it is, from its story."""
        from pandaflow.explain import explain

        task, index = parse_job(job)
        return explain(self._reader, self.id, task, index)

    def logs(self, job: JobName) -> str:
        """Return what a job printed and logged, all its attempts one after the other.

        Of a run that was left with a server also what a job that runs now has written so far:
        the end of it, with that of the jobs that share its bundle.
        """
        task, index = parse_job(job)
        row = self._row(task, index)
        results = self._results()
        parts = []
        attempts = self._reader.attempts(self.id, task, index)
        for attempt in attempts:
            if attempt["log"] is not None:
                text = results.read_log(attempt["bundle"], tuple(attempt["log"]))
                head = f"--- attempt {attempt['attempt']} ---\n" if len(attempts) > 1 else ""
                parts.append(head + text)
        if self._server and row["status"] == JobStatus.RUNNING:
            parts.append(self._server.live_log(self.id, row["bundle"]))
        return "".join(parts)

    def reproduce(self, job: JobName) -> str:
        """Return a small script that runs one job alone, with the inputs it had."""
        from pandaflow.reproduce import script

        task, index = parse_job(job)
        self._row(task, index)
        return script(self._engine(), self._results(), self.id, task, index)

    def timeline(self) -> Picture:
        """Draw jobs on slots over time."""
        from pandaflow.display.timeline import timeline_picture

        rows = self._reader.timeline(self.id)
        return timeline_picture(rows, title=self.id, tasks=[task["name"] for task in self.tasks])

    def failed_items(self, task: str) -> SourceCollection:
        """Return the items of a task's failed jobs as a dataset to run again."""
        from pandaflow.authoring.sources import items

        engine, gather = self._engine(), self._gatherer()
        return items(_items_of_failed(engine, gather, task), name=f"failed items of {task}")

    # --- waiting ------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> RunStatus:
        """Wait until the run ends; return its state.

        Raises
        ------
        TimeoutError
            It did not within ``timeout`` seconds.
        StoreError
            Nobody drives it any more. One that was left with a server waits for a runner.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        quiet = away = time.monotonic()
        while True:
            self._raise_error()
            try:
                summary = self._reader.run(self.id)
                status, driven = RunStatus(summary["status"]), summary["served"] or self._driven()
                away = time.monotonic()
            except StoreUnavailable:
                if not self._may_come_back(away):
                    raise
                self._pause(deadline)
                continue
            if status in RUN_TERMINAL and not (self._thread and self._thread.is_alive()):
                return status
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"run {self.id} is still {status} after {timeout} s")
            quiet = time.monotonic() if driven else quiet
            if time.monotonic() - quiet > _GRACE_S:
                raise StoreError(
                    f"run {self.id} is {status} but nobody drives it: pf.resume({self.id!r})"
                )
            self._pause(deadline)

    def _may_come_back(self, away: float) -> bool:
        """Tell whether to wait for a store that does not answer: its driver does, or a server."""
        if self._thread is not None and self._thread.is_alive():
            return True
        return self._server is not None and time.monotonic() - away < _AWAY_S

    def _watched(self, mode: str) -> Run:
        """Show how the run goes that others drive, until it ends; ctrl-C leaves it running."""
        from pandaflow.display.progress import watch

        with watch(self.summary, mode=mode) as view:
            while True:
                try:
                    self.wait(timeout=_POLL_SHOWN_S)
                    return self
                except TimeoutError:
                    view.refresh()

    def _pause(self, deadline: float | None) -> None:
        most = max(0.2, self._poll_s)
        left = most if deadline is None else min(most, max(0.0, deadline - time.monotonic()))
        if self._thread is not None:
            self._thread.join(left)
        else:
            time.sleep(min(left, 2 * self._poll_s))

    def result(self, partial: bool = False, timeout: float | None = None) -> Any:
        """Wait, and return the value of what the workflow function returned.

        Parameters
        ----------
        partial : bool
            Return what there is, instead of raising, when jobs failed; now, if the run goes on.

        Raises
        ------
        RunFailed
            Jobs failed; names them and their causes.
        """
        if partial:
            self._raise_error()
        else:
            status = self.wait(timeout)
            if status in (RunStatus.FAILED, RunStatus.ABORTED):
                raise self._failure(status)
        gatherer = self._gatherer()
        return gatherer.shaped(gatherer.spec.result)

    def _failure(self, status: str) -> RunFailed:
        failed = list(self.jobs(status="failed", limit=_NAMED))
        named = [(row["task"], row["index"], _cause(row)) for row in failed]
        total = sum(task["jobs"].get("failed", 0) for task in self.summary()["tasks"])
        for task in self.tasks if not named else ():
            if task["status"] in (TaskStatus.FAILED, TaskStatus.EXHAUSTED):
                named.append((task["name"], 0, task["reason"]))
        return RunFailed(self.id, status, named, max(total, len(named)))

    # --- steering -----------------------------------------------------------------------

    def cancel(self, task: str | None = None) -> None:
        """Stop the run (or one task), payloads that run included, and wait until it is.

        Raises
        ------
        WorkflowError
            There is no such task, or the run's driver refuses, and why.
        """
        if task is None and self.status in RUN_TERMINAL:
            return
        self._answer(self._ask("cancel", {"task": self._known(task)}))
        if task is None:
            self._until(lambda: self.status in RUN_TERMINAL)
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join(_GRACE_S)

    def pause(self) -> None:
        """Start nothing new until :meth:`resume`; what runs goes on."""
        self._answer(self._ask("pause", {}))
        self._until(lambda: self.status is not RunStatus.RUNNING)

    def resume(self) -> None:
        """Go on after a pause; take over a run that nobody drives.

        A run that was left with a server is taken over by a runner of that server.
        """
        if not self._is_left() and not self._driven() and self.status not in RUN_TERMINAL:
            self._drive(pick_executors())
        if self.status is RunStatus.PAUSED:
            self._answer(self._ask("resume", {}))
            self._until(lambda: self.status is not RunStatus.PAUSED)

    def retry(
        self,
        task: str | None = None,
        restart: bool = False,
        executor: Any = None,
        executors: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Run:
        """Run again what failed, was cancelled or closed.

        Parameters
        ----------
        task : str, optional
            Only this task and what depends on it.
        restart : bool
            Also jobs that finished: the task and all downstream of it run again.
        executor, executors : optional
            Where to run, when nobody drives the run; as for ``wf.run``. A run that was left with
            a server waits for a runner instead.
        **options
            Changed options of the task, without ``task`` of each that failed or was cancelled:
            what a job needs (``memory="4 GiB"``, ``cores=8``, ...) and ``retries``. What is not
            named stays as each task has it.

        Raises
        ------
        WorkflowError
            There is no such task or option, or the run's driver refuses, and why.
        """
        if restart and task is None:
            raise WorkflowError("retry(restart=True) needs the task to restart from")
        body = {"task": self._known(task), "restart": restart, "options": options}
        self._check_retry(body)
        ended = self.status in RUN_TERMINAL
        if self._thread is not None and ended:
            self._thread.join()
        request = self._ask("retry", body)
        if not self._is_left() and not self._driven():
            self._drive(pick_executors(executor, executors), ended=ended)
        self._answer(request)
        return self

    def _answer(self, request: int) -> None:
        """Wait until a request was carried out; raise if it was refused."""
        self._until(lambda: self._is_answered(request))
        self._raise_refusal(request)

    def _check_retry(self, body: Mapping[str, Any]) -> None:
        """Refuse here what the driver would refuse there."""
        from pandaflow.wishes import wish

        engine = self._engine()
        event = wish(engine, "retry", dict(body), time.time())
        if isinstance(event, RetryRequested) and event.restart and event.task is not None:
            engine.check_restart(event.task)

    def _until(self, condition: Callable[[], bool]) -> None:
        if self._thread is threading.current_thread():
            return  # a callback: the driver, which is to do it, must not wait for itself
        deadline = time.monotonic() + _GRACE_S
        while not condition() and time.monotonic() < deadline:
            self._raise_error()
            time.sleep(self._poll_s / 2)

    def _known(self, task: str | None) -> str | None:
        if task is not None and task not in {row["name"] for row in self.summary()["tasks"]}:
            known = ", ".join(row["name"] for row in self.tasks)
            raise WorkflowError(f"run {self.id} has no task {task!r}; it has {known}")
        return task

    # --- feeding ------------------------------------------------------------------------

    def stream(self, name: str) -> RunStream:
        """Return a handle to feed an open stream of the run, also from another process.

        Raises
        ------
        WorkflowError
            The run has no stream of that name, or it is closed.
        """
        state, waiting = self._store.state(self.id), self._reader.open_requests(self.id)
        return RunStream(name, state, waiting, self._results(), self._request)

    @property
    def orphaned(self) -> bool:
        """Whether the run has not ended and nobody drives it: :func:`pandaflow.resume` does."""
        going = self.status in (RunStatus.RUNNING, RunStatus.PAUSED)
        return going and not self._is_left() and not self._driven()

    def _is_left(self) -> bool:
        """Whether runners of a server drive it, or will."""
        return bool(self._reader.run(self.id)["served"])

    # --- pieces -------------------------------------------------------------------------

    def _row(self, task: str, index: int) -> dict[str, Any]:
        for row in self._reader.jobs(self.id, task=task, index=index):
            return row
        raise WorkflowError(f"run {self.id}: task {task!r} has no job {index}")

    def _engine(self) -> Engine:
        from pandaflow.restore import restore

        return restore(self._store.state(self.id))

    def _gatherer(self) -> Gatherer:
        from pandaflow.gather import gatherer

        return gatherer(self._store.state(self.id), self._results())

    def progress(self) -> None:
        """Show live progress until the run ends (in a terminal or a notebook)."""
        from pandaflow.display.progress import watch

        with watch(self.summary) as view:
            while self.status not in RUN_TERMINAL and (self._is_left() or self._driven()):
                view.update(self.summary())
                time.sleep(max(0.25, self._poll_s))
            view.update(self.summary())

    def __repr__(self) -> str:
        from pandaflow.display.text import run_line

        return f"<{run_line(self.summary())}>"

    def __str__(self) -> str:
        from pandaflow.display.text import run_text

        return run_text(self.summary())

    def _repr_html_(self) -> str:
        from pandaflow.display.html import run_html

        return run_html(self.summary())


def parse_job(job: JobName) -> tuple[str, int]:
    """Parse ``"task[3]"``, ``"task:3"`` or ``("task", 3)``.

    Raises
    ------
    WorkflowError
    """
    if isinstance(job, tuple) and len(job) == 2 and isinstance(job[1], int):
        return str(job[0]), job[1]
    if isinstance(job, Mapping):
        return str(job["task"]), int(job["index"])
    text = str(job).strip()
    task, bracket, rest = text.removesuffix("]").rpartition("[" if text.endswith("]") else ":")
    if not bracket or not rest.isdigit():
        raise WorkflowError(f"{job!r} names no job: write 'task[3]'")
    return task, int(rest)


def _cause(row: Mapping[str, Any]) -> str:
    failure = row.get("failure") or {}
    return str(failure.get("message") or row.get("reason") or "no cause known")


def _items_of_failed(engine: Engine, gather: Gatherer, name: str) -> list[Any]:
    from pandaflow.core.jobtable import CLOSED, FAILED
    from pandaflow.wishes import task_id

    task = engine.tasks[task_id(engine, name)]
    if not task.mapped or task.chunks is None:
        raise WorkflowError(f"task {name!r} maps over nothing, so it has no failed items")
    values = gather.items(task.mapped[0].dataset)
    out: list[Any] = []
    for piece in task.table.jobs_in((FAILED, CLOSED)):
        for job in piece:
            lo, hi = task.chunks.items(job)
            out += [value for value in values[lo:hi] if value is not None]
    return out
