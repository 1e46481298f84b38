"""Runs bundles on this machine: worker processes, threads, or the caller itself.

Dask does the scheduling and the communication. What is here starts its worker processes, says
why one died, and starts another in its place.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from pandaflow.core.bundle import BundleValues
from pandaflow.core.errors import SiteError, WorkflowError
from pandaflow.core.events import BundleLost, BundleStarted, SlotsChanged
from pandaflow.data.results import ResultStore
from pandaflow.executors import payload as payloads
from pandaflow.ports import Assignment, Report, Session

logger = logging.getLogger("pandaflow.executors")

_START_S = 60.0
#: More deaths than this within the time below, and workers are not started any more.
_DEATHS, _DEATHS_S = 50, 60.0


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
        self._cluster: _Cluster | None = None

    def __repr__(self) -> str:
        return f"Local(workers={self.workers}, threads={self.threads}, processes={self.processes})"

    def open(self, run_id: str, results: str, report: Report) -> Session:
        """Begin to work for a run; workers are started once and kept for later runs."""
        if self.workers == 0:
            return CallerSession(run_id, results, report)
        from pandaflow.executors.dask import DaskSession

        with self._lock:
            if self._cluster is None or not self._cluster.alive():
                self._cluster = _Cluster(self.workers, self.threads, self.processes)
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


class _Cluster:
    """A Dask scheduler in this process, and its workers."""

    def __init__(self, workers: int, threads: int, processes: bool) -> None:
        import dask
        from distributed import Client, LocalCluster

        self._processes: list[_Worker] = []
        self._deaths: dict[str, str] = {}
        self._recent: deque[float] = deque(maxlen=_DEATHS)
        self._closing = False
        settings = {
            # A bundle whose worker died is looked at by the engine, not tried again blindly.
            "distributed.scheduler.allowed-failures": 0,
            "distributed.worker.daemon": True,
            "distributed.comm.timeouts.connect": "30s",
            "distributed.admin.low-level-log-length": 100,
            "distributed.admin.large-graph-warning-threshold": "100MB",
        }
        with dask.config.set(settings):
            self._dask = LocalCluster(
                n_workers=0 if processes else 1,
                threads_per_worker=threads if processes else threads * workers,
                processes=processes,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                memory_limit=None,
            )
            self.client = Client(self._dask, set_as_default=False)
        self._folder = tempfile.mkdtemp(prefix="pandaflow-workers-") if processes else ""
        if processes:
            self._start(workers, threads)
        atexit.register(self.close)

    def _start(self, workers: int, threads: int) -> None:
        for number in range(workers):
            self._processes.append(self._worker(number, threads))
        deadline = time.monotonic() + _START_S
        while len(self._addresses()) < workers:
            if time.monotonic() > deadline or any(w.given_up for w in self._processes):
                self.close()
                raise SiteError(
                    "the local worker processes did not start; "
                    f"try: {sys.executable} -m pandaflow.executors.worker --help"
                )
            time.sleep(0.01)

    def _worker(self, number: int, threads: int) -> _Worker:
        limit = max(1, _memory() // max(1, self._wanted(number)))
        command = [
            *(sys.executable, "-m", "pandaflow.executors.worker", self._dask.scheduler_address),
            *("--nthreads", str(threads), "--name", f"local-{number}"),
            *("--local-directory", self._folder, "--memory-limit", str(limit)),
        ]
        return _Worker(command, self._died)

    def _wanted(self, number: int) -> int:
        return max(number + 1, len(self._processes))

    def _addresses(self) -> dict[str, str]:
        return {
            str(state.name): address
            for address, state in list(self._dask.scheduler.workers.items())
        }

    def _died(self, worker: _Worker, code: int) -> bool:
        """Note why a worker died; tell whether it is to be started again."""
        if self._closing:
            return False
        self._deaths[worker.pid_text] = describe_exit(code)
        self._recent.append(time.monotonic())
        crowded = len(self._recent) == _DEATHS and time.monotonic() - self._recent[0] < _DEATHS_S
        if crowded:
            logger.error("workers die as fast as they are started; giving up on one")
        return not crowded

    def cause_of(self, address: str) -> str:
        """Return why the worker that had this address died."""
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            if self._deaths:
                return list(self._deaths.values())[-1]
            time.sleep(0.02)
        return ""

    def kill(self, addresses: Sequence[str]) -> None:
        """End the processes behind some workers; others are started."""
        names = {address: name for name, address in self._addresses().items()}
        for address in addresses:
            name = names.get(address, "")
            if name.startswith("local-"):
                self._processes[int(name.removeprefix("local-"))].kill()

    def alive(self) -> bool:
        """Whether the scheduler still runs."""
        return not self._closing and self.client.status == "running"

    def close(self) -> None:
        """Stop everything. May be called twice."""
        if self._closing:
            return
        self._closing = True
        atexit.unregister(self.close)
        for worker in self._processes:
            worker.stop()
        self.client.close(timeout=5)
        self._dask.close(timeout=5)
        if self._folder:
            import shutil

            shutil.rmtree(self._folder, ignore_errors=True)


class _Worker:
    """A worker process that is started again when it dies."""

    def __init__(self, command: Sequence[str], died: Any) -> None:
        self._command, self._died = list(command), died
        self._stopped = threading.Event()
        self.given_up = False
        self.pid_text = ""
        self._process = self._launch()
        self._watcher = threading.Thread(target=self._watch, name="pandaflow-worker", daemon=True)
        self._watcher.start()

    def _launch(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if not os.environ.get("PANDAFLOW_DEBUG") else None,
            start_new_session=True,  # ctrl-C in a terminal is the driver's to handle
        )
        self.pid_text = str(process.pid)
        return process

    def _watch(self) -> None:
        while True:
            code = self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            if self._stopped.is_set() or not self._died(self, code):
                self.given_up = not self._stopped.is_set()
                return
            time.sleep(0.05)
            if self._stopped.is_set():
                return
            self._process = self._launch()

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        self._stopped.set()
        self._process.kill()
        self._watcher.join(timeout=5)


def describe_exit(code: int) -> str:
    """Return how a process ended, in words."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        hint = " - perhaps the kernel, for want of memory" if -code == signal.SIGKILL else ""
        return f"signal {-code}, {name}{hint}"
    return f"exit code {code}"


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


class CallerSession:
    """Runs bundles in the caller's thread, at once and one after the other."""

    def __init__(self, run_id: str, results: str, report: Report) -> None:
        self._run, self._report = run_id, report
        self._results = ResultStore(results)
        self._values: dict[int, BundleValues] = {}
        self._dropped: set[int] = set()
        report(SlotsChanged(time.time(), "", 1))

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Run bundles."""
        for assignment in assignments:
            bundle = assignment.emit.bundle
            if bundle in self._dropped:
                continue
            deps = [self._value(need, location) for need, location in assignment.deps]
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
                self._report(payloads.unpack_ended(message))
            case "lost":
                reason = "an earlier execution of the bundle left no result"
                self._report(
                    BundleLost(time.time(), message["bundle"], reason, message["position"])
                )

    def cancel(self, bundles: Sequence[int]) -> None:
        """Do not begin bundles."""
        self._dropped.update(bundles)

    def release(self, bundles: Sequence[int]) -> None:
        """Forget values."""
        for bundle in bundles:
            self._values.pop(bundle, None)

    def close(self, *, kill: bool = False) -> None:
        """Forget everything."""
        self._values.clear()
