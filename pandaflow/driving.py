"""Driving a run from this process: its loop in a thread, those who feed it, the way to its jobs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from pandaflow.config import read_settings
from pandaflow.core import commands as cmd
from pandaflow.core.errors import RunLocked, WorkflowError
from pandaflow.core.status import RUN_TERMINAL, RunStatus
from pandaflow.hooks import Transition, transitions
from pandaflow.store.port import Serving

if TYPE_CHECKING:
    from pandaflow.core.model import Fragment
    from pandaflow.data.results import ResultStore
    from pandaflow.ports import Executor
    from pandaflow.runner import Listener, Runner
    from pandaflow.store.port import RunStore
    from pandaflow.store.sql import SqlStore

#: Seconds between looks at a run in a database, and behind a server.
_POLL_S, _POLL_SERVER_S = 0.05, 0.5


class Driving:
    """A run, as far as this process may drive it; see :class:`pandaflow.Run` for the rest."""

    def __init__(self, run_id: str, store: RunStore) -> None:
        self.id = run_id
        self._store = store
        self._reader = store.reader()
        self._thread: threading.Thread | None = None
        self._runner: Runner | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Transition], None]] = []
        self._listeners: list[Listener] = []
        self._watchers: list[Callable[[Sequence[cmd.Record]], None]] = []
        self._steerers: list[Any] = []
        self._streams: Mapping[int, Any] = {}
        self._kept: set[str] = set()
        self._task_names: dict[int, str] = {}
        self._place: ResultStore | None = None
        #: What executors said last, by name, up to this number of the event log.
        self._notes: dict[str, dict[str, Any]] = {}
        self._noted = 0

    def summary(self) -> dict[str, Any]:
        """Return the run with its tasks and counts as plain values.

        ``executors`` has those that told why jobs wait: ``name``, ``slots`` at that time and
        ``reason``, empty if nothing holds them up any more. In the process that drives the run
        there are also ``slots``, and how many are ``busy``.
        """
        summary = self._reader.run(self.id)
        ended = summary["status"] in RUN_TERMINAL
        summary["executors"] = [] if ended else self._executors()
        runner = self._runner  # another thread clears it when the run ends
        slots, busy = runner.usage() if runner is not None else (0, 0)
        return {**summary, "slots": slots, "busy": busy} if slots else summary

    def _executors(self) -> list[dict[str, Any]]:
        rows, self._noted = self._reader.noted(self.id, "executor_noted", self._noted)
        for row in rows:
            name, slots = row["detail"]["executor"], row["detail"]["slots"]
            self._notes[name] = {"name": name, "slots": slots, "reason": row["reason"]}
        return list(self._notes.values())

    @property
    def status(self) -> RunStatus:
        """Where it is now."""
        return RunStatus(self._reader.run(self.id)["status"])

    def _driven(self) -> bool:
        if self._thread is not None and self._thread.is_alive():
            return True
        return self._store.driven(self.id)

    def _results(self) -> ResultStore:
        from pandaflow.data.results import ResultStore

        if self._place is None:
            server = self._server
            url = "" if server else self.summary()["results"]
            self._place = server.results(self.id) if server else ResultStore(url)
        return self._place

    @property
    def _server(self) -> Serving | None:
        """The server that the run was left with, if it is seen through one."""
        return self._store if isinstance(self._store, Serving) else None

    @property
    def _poll_s(self) -> float:
        return _POLL_SERVER_S if self._server else _POLL_S

    # --- driving ---------------------------------------------------------------------

    def _drive(
        self, executors: Mapping[str, Executor], *, here: bool = False, ended: bool = False
    ) -> None:
        """Take the lease and drive, in a thread of its own or here."""
        from pandaflow.runner import Runner
        from pandaflow.store.sql import this_process

        if not ended and self.status in RUN_TERMINAL:
            return
        store = self._database()
        self._error = None
        self._steerers = self._called_in()
        try:
            self._runner = Runner(
                store,
                self.id,
                executors,
                this_process(),
                callbacks=[self._tell],
                listeners=self._listeners,
                lease=read_settings().lease_seconds,
            )
        except BaseException:
            self._dismiss()
            raise
        for steerer in self._steerers:
            steerer.start()
        if here:
            self._loop()
            self._raise_error()
            return
        self._thread = threading.Thread(target=self._loop, name=f"pandaflow-{self.id}", daemon=True)
        self._thread.start()

    def _database(self) -> SqlStore:
        """Return the store, in which alone a run can be driven.

        Raises
        ------
        RunLocked
            It is a server: its runners drive.
        """
        if self._server is not None:
            raise RunLocked(
                f"run {self.id} was left with {self._store.url}: runners of that server drive it"
            )
        return cast("SqlStore", self._store)

    def _loop(self) -> None:
        assert self._runner is not None
        try:
            self._runner.drive()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._error = error
        finally:
            self._runner = None
            self._dismiss()

    def stop(self) -> None:
        """Stop driving the run here, leaving it to be resumed."""
        runner, thread = self._runner, self._thread
        if runner is not None:
            runner.stop()
        if thread is not None:
            thread.join()

    def _called_in(self) -> list[Any]:
        """Return those who feed the run while it goes on."""
        self._watchers.clear()
        specs = self._store.state(self.id).spec.steerers
        return [import_module(spec.module).steer(self, spec) for spec in specs]

    def _dismiss(self) -> None:
        for steerer in self._steerers:
            steerer.close()

    def _fail(self, error: BaseException) -> None:
        """Stop driving because of a steerer's error, which is raised to whoever waits."""
        runner = self._runner
        if runner is not None:
            runner.stop()
            self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _tell(self, records: Sequence[cmd.Record]) -> None:
        for watcher in self._watchers:
            watcher(records)
        if self._callbacks:
            for transition in self._transitions(records):
                for callback in self._callbacks:
                    callback(transition)

    def _transitions(self, records: Sequence[cmd.Record]) -> Iterator[Transition]:
        # Looked up again only when tasks came: a run may have thousands.
        if not self._task_names or any(isinstance(record, cmd.TaskAdded) for record in records):
            self._task_names = {task["id"]: task["name"] for task in self.summary()["tasks"]}
        for record in records:
            yield from transitions(record, self.id, self._task_names)

    # --- wishes ----------------------------------------------------------------------

    def _request(self, kind: str, body: Mapping[str, Any]) -> None:
        """Leave a request for whoever drives the run."""
        self._post(kind, body)

    def _post(self, kind: str, body: Mapping[str, Any]) -> int:
        """Leave a request; return its number in the inbox."""
        number = self._store.request(self.id, kind, {**body, "by": _me()})
        runner = self._runner
        if runner is not None:
            runner.wake()
        return number

    def _ask(self, kind: str, body: Mapping[str, Any]) -> int:
        number = self._post(kind, body)
        alone = self._server is None and self._runner is None and not self._driven()
        if alone and kind in ("cancel", "pause", "resume"):
            self._carry_out_alone()
        return number

    def _is_answered(self, request: int) -> bool:
        """Tell whether the driver has carried out a request, or refused it."""
        return request not in {row["id"] for row in self._reader.open_requests(self.id)}

    def _raise_refusal(self, request: int) -> None:
        rows, _ = self._reader.noted(self.id, "request_refused")
        for row in rows:
            if row["detail"]["request"] == request:
                kind = row["detail"]["kind"]
                raise WorkflowError(f"run {self.id}: {kind} was refused: {row['reason']}")

    def _carry_out_alone(self) -> None:
        """Nobody drives the run: take the lease for as long as the wish needs."""
        from pandaflow.runner import Runner
        from pandaflow.store.sql import this_process

        try:
            Runner(self._database(), self.id, {}, this_process()).settle()
        except RunLocked:
            return  # somebody does after all, and will find the wish

    def _grow(self, fragment: Fragment, blobs: Mapping[str, bytes]) -> int:
        """Keep what a sub-workflow needs, then ask for it to join; return the request's number."""
        from pandaflow.store.spec import dump_fragment

        results = self._results()
        for name, data in blobs.items():
            if name not in self._kept:  # named after its content: once is enough
                results.put(name, data)
                self._kept.add(name)
        return self._post("grow", {"fragment": dump_fragment(fragment)})

    # --- the channel to running jobs -------------------------------------------------

    def _listen(self, callback: Listener) -> None:
        """Have ``callback(said, task)`` called with what running jobs send, while driven here.

        It is called in a thread of the executor and must not wait. May come before the run is
        driven, and holds for all that this handle drives.
        """
        self._listeners.append(callback)

    def _stop_jobs(self, task: str, jobs: Sequence[int], reason: str, grace: float = 0.5) -> bool:
        """Ask jobs that run to stop, by force after ``grace`` seconds; they count as skipped.

        Thread-safe. False if the run is not driven here, or no executor can reach its jobs.
        """
        runner = self._runner
        return runner is not None and runner.stop_jobs(task, jobs, reason, grace)


def _me() -> str:
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without an account, as in containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
