"""Runs bundles on this machine: worker processes, threads, or the caller itself.

Dask does the scheduling; :mod:`pandaflow.executors.cluster` keeps its workers.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pandaflow.core.bundle import BundleValues
from pandaflow.core.errors import DataError, WorkflowError
from pandaflow.core.events import BundleLost, BundleStarted, SlotsChanged
from pandaflow.data.results import ResultStore
from pandaflow.executors import channel
from pandaflow.executors import payload as payloads
from pandaflow.ports import Assignment, Report, Session

if TYPE_CHECKING:
    from pandaflow.executors.cluster import Cluster


class Local:
    """An executor on this machine.

    Parameters
    ----------
    workers : int, optional
        Worker processes; default: the cores this process may use. 0: jobs run in the caller's
        thread, one after the other, so that a debugger stops where it should.
    threads : int
        Jobs at once in each worker.
    processes : bool
        False: ``workers`` x ``threads`` threads of this process. Quick to start and no copies
        between processes, but a payload that cannot be interrupted cannot be stopped.

    Examples
    --------
    >>> import pandaflow as pf
    >>> pf.executors.Local(workers=2)
    Local(workers=2, threads=1, processes=True)
    """

    def __init__(
        self, workers: int | None = None, threads: int = 1, processes: bool = True
    ) -> None:
        if workers is not None and (isinstance(workers, bool) or workers < 0):
            raise WorkflowError(f"Local(workers={workers!r}): give a number of processes, or 0")
        if isinstance(threads, bool) or threads < 1:
            raise WorkflowError(f"Local(threads={threads!r}): give at least 1")
        self.workers = _cores() if workers is None else workers
        self.threads, self.processes = threads, processes
        self._lock = threading.Lock()
        self._cluster: Cluster | None = None

    def __repr__(self) -> str:
        return f"Local(workers={self.workers}, threads={self.threads}, processes={self.processes})"

    def open(self, run_id: str, results: str, report: Report) -> Session:
        """Begin to work for a run; workers are started once and kept for later runs."""
        if self.workers == 0:
            return CallerSession(run_id, results, report)
        from pandaflow.executors.cluster import Cluster
        from pandaflow.executors.dask import DaskSession

        with self._lock:
            if self._cluster is None or not self._cluster.alive():
                self._cluster = Cluster(self.workers, self.threads, self.processes)
            cluster = self._cluster
        return DaskSession(
            cluster.client,
            run_id,
            results,
            report,
            cause_of=cluster.cause_of,
            on_kill=cluster.kill if self.processes else None,
        )

    def close(self) -> None:
        """Stop the workers. The next run starts new ones."""
        with self._lock:
            if self._cluster is not None:
                self._cluster.close()
                self._cluster = None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CallerSession:
    """Runs bundles in the caller's thread, at once and one after the other."""

    def __init__(self, run_id: str, results: str, report: Report) -> None:
        self._run, self._report = run_id, report
        self._results = ResultStore(results)
        self._values: dict[int, BundleValues] = {}
        self._dropped: set[int] = set()
        self._roll = channel.Roll()
        report(SlotsChanged(time.time(), "", 1))

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Run bundles."""
        for assignment in assignments:
            self._roll.add(assignment.spec)
        for assignment in assignments:
            bundle = assignment.emit.bundle
            if bundle in self._dropped:
                continue
            try:
                deps = [self._value(need, location) for need, location in assignment.deps]
            except DataError as error:
                self._report(BundleLost(time.time(), bundle, str(error)))
                continue
            self._values[bundle] = payloads.run_bundle(
                assignment.spec,
                assignment.code,
                deps,
                report=self._hear,
                worker="caller",
                isolation="caller",
            )

    def _value(self, bundle: int, location: str) -> BundleValues:
        if bundle not in self._values:
            self._values[bundle] = self._results.load(location or self._results.place(bundle))
        return self._values[bundle]

    def _hear(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "started":
                self._report(BundleStarted(message["at"], message["bundle"], message["worker"]))
            case "ended":
                ended = payloads.unpack_ended(message)
                self._roll.ended(ended)
                self._report(ended)
            case "said":
                for said in payloads.unpack_said(message):
                    self._report(said)
            case "lost":
                reason = "an earlier execution of the bundle left no result"
                self._report(
                    BundleLost(time.time(), message["bundle"], reason, message["position"])
                )

    def cancel(self, bundles: Sequence[int]) -> None:
        """Do not begin bundles."""
        self._dropped.update(bundles)
        self._roll.drop(bundles)

    def stop(self, jobs: Sequence[tuple[str, int]], reason: str, grace: float) -> None:
        """Ask jobs to stop. Nothing can be stopped by force in the caller's thread."""
        request = channel.Ask(reason, time.monotonic() + grace)
        channel.ask(self._run, self._roll.ask(jobs, request), reason, grace)

    def release(self, bundles: Sequence[int]) -> None:
        """Forget values."""
        for bundle in bundles:
            self._values.pop(bundle, None)

    def close(self, *, kill: bool = False) -> None:
        """Forget everything."""
        channel.forget(self._run)
        self._values.clear()
