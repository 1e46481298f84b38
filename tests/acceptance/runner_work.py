"""Runs that are left for runners, and runners as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandaflow as pf
from pandaflow.data.results import ResultStore
from pandaflow.places import new_run_id
from pandaflow.ports import Submitter
from pandaflow.store.sql import SqlStore, open_store

ROOT = Path(__file__).resolve().parents[2]


def leave(workflow: Any, store: str, folder: Path, whose: Submitter | None = None) -> pf.Run:
    """Leave a workflow for runners, as a server does with what it is sent."""
    opened: SqlStore = open_store(store)
    run_id = new_run_id(workflow.name)
    results = ResultStore(f"{folder}/results/{run_id}")
    for name, data in workflow._trace.blobs.items():
        results.put(name, data)
    opened.create_run(
        workflow._spec,
        run_id=run_id,
        created=time.time(),
        results=results.url,
        served=whose or Submitter(),
    )
    return pf.attach(run_id, store=store)


class RunnerProcess:
    """``pandaflow runner`` as a child process. Use it as a context manager.

    It ends with this process, however that ends: it reads from a pipe of ours.
    """

    def __init__(self, store: str, server: str, *options: str, lease: float = 3.0) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="pandaflow-runner-")
        own = {k: v for k, v in os.environ.items() if not k.startswith("PANDAFLOW_")}
        paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'pilot'}"}
        command = [sys.executable, "-m", "pandaflow.cli", "--store", store, "runner"]
        self.process = subprocess.Popen(
            [*command, "--server", server, "--stop-with-stdin", *options],
            env=own | paths | {"PANDAFLOW_LEASE_SECONDS": str(lease)},
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """What it has said."""
        return Path(self._log.name).read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._log.close()
