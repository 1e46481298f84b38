"""A Dask cluster on this machine: its scheduler in this process, workers beside or in it.

Dask schedules and communicates. What is here starts worker processes, says why one died, and
starts another in its place.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import dask
import psutil
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

from pandaflow.core.errors import SiteError

logger = logging.getLogger("pandaflow.executors")

_START_S = 60.0
#: More deaths than this within the time below, and workers are not started any more.
_DEATHS, _DEATHS_S = 50, 60.0


class Cluster:
    """A Dask scheduler in this process, and its workers."""

    def __init__(self, workers: int, threads: int, processes: bool) -> None:
        self._processes: list[_Worker] = []
        self._deaths: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._recent: deque[float] = deque(maxlen=_DEATHS)
        self._closing = False
        each = threads if processes else threads * workers
        settings: dict[str, Any] = {
            # Dask blames all nodes that were assigned to a worker when it died. A bundle that had
            # begun reports so when Dask tries it again; the others are innocent.
            "distributed.scheduler.allowed-failures": 1000,
            # A worker of many threads has one node in reserve. One of a single thread has none:
            # the node in reserve would go before a more urgent one that has just become ready.
            "distributed.scheduler.worker-saturation": 1.0 if each == 1 else 1.25,
            "distributed.comm.timeouts.connect": "30s",
            "distributed.admin.low-level-log-length": 100,
            "distributed.admin.tick.interval": "500ms",
            "distributed.worker.profile.enabled": False,
            "distributed.admin.large-graph-warning-threshold": "100MB",
        }
        # Deaths of workers are this module's to tell, in terms of jobs.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        with dask.config.set(settings):
            self._dask = LocalCluster(
                n_workers=0 if processes else 1,
                threads_per_worker=each,
                processes=processes,
                dashboard_address=":0",
                scheduler_kwargs={"dashboard": False},
                silence_logs=logging.CRITICAL,
                memory_limit=None,
            )
            self.client = Client(self._dask, set_as_default=False)
        self._folder = tempfile.mkdtemp(prefix="pandaflow-workers-") if processes else ""
        if processes:
            self._start(workers, threads)
        atexit.register(self.close)

    @property
    def _scheduler(self) -> Any:
        return self._dask.scheduler

    def _start(self, workers: int, threads: int) -> None:
        self._scheduler.add_plugin(_Names(self._names), name="pandaflow-names")
        share = max(1, psutil.virtual_memory().total // workers)
        for number in range(workers):
            command = [
                *(sys.executable, "-m", "pandaflow.executors.worker"),
                *(self._dask.scheduler_address, "--nthreads", str(threads)),
                *("--local-directory", self._folder, "--memory-limit", str(share)),
            ]
            self._processes.append(_Worker(command, f"local-{number}", self._died))
        deadline = time.monotonic() + _START_S
        while len(self._scheduler.workers) < workers:
            if time.monotonic() > deadline or any(w.given_up for w in self._processes):
                self.close()
                raise SiteError(
                    "the local worker processes did not start; "
                    f"try: {sys.executable} -m pandaflow.executors.worker --help"
                )
            time.sleep(0.01)

    def _died(self, worker: _Worker, code: int) -> bool:
        """Note why a worker died; tell whether it is to be started again."""
        if self._closing:
            return False
        self._deaths[worker.name] = describe_exit(code)
        self._recent.append(time.monotonic())
        crowded = len(self._recent) == _DEATHS and time.monotonic() - self._recent[0] < _DEATHS_S
        if crowded:
            logger.error("workers die as fast as they are started; giving up on one")
        return not crowded

    def cause_of(self, address: str) -> str:
        """Return why the worker that had this address died."""
        return self._deaths.get(self._names.get(address, ""), "")

    def kill(self, addresses: Sequence[str]) -> None:
        """End the processes behind some workers; others are started."""
        names = {self._names.get(address) for address in addresses}
        for worker in self._processes:
            if worker.name in names:
                worker.kill()

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
            shutil.rmtree(self._folder, ignore_errors=True)


class _Names(SchedulerPlugin):
    """A scheduler plugin that remembers which worker had which address."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def add_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        self._names[worker] = str(scheduler.workers[worker].name)


class _Worker:
    """A worker process that is started again, under a new name, when it dies."""

    def __init__(
        self, command: Sequence[str], slot: str, died: Callable[[_Worker, int], bool]
    ) -> None:
        self._command, self._slot, self._died = list(command), slot, died
        self._stopped = threading.Event()
        self._starts = 0
        self.given_up = False
        self.name = ""
        self._process = self._launch()
        self._watcher = threading.Thread(target=self._watch, name="pandaflow-worker", daemon=True)
        self._watcher.start()

    def _launch(self) -> subprocess.Popen[bytes]:
        self.name = f"{self._slot}.{self._starts}"
        self._starts += 1
        return subprocess.Popen(
            [*self._command, "--name", self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("PANDAFLOW_DEBUG") else subprocess.DEVNULL,
            start_new_session=True,  # ctrl-C in a terminal is the driver's to handle
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

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
