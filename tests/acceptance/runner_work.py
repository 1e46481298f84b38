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
from tests.acceptance.grid_work import note

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

    #: All that it has said, once it has ended.
    said = ""

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
        self.said = self.log
        self._log.close()


# --- objects that tell who unpickles them ---------------------------------------------------


class Traced:
    """Tells the process that unpickles it."""

    def __init__(self, folder: str, what: str) -> None:
        self.folder, self.what = folder, what

    def __reduce__(self) -> Any:
        return (_unpickled, (self.folder, self.what))

    def __str__(self) -> str:
        return self.what


def _unpickled(folder: str, what: str) -> Traced:
    note(Path(folder, "unpickled"), f"{os.getpid()} {what}")
    return Traced(folder, what)


@pf.task
def made(x: Any, held: Traced) -> Traced:
    note(Path(held.folder, "ran"), os.getpid())
    return Traced(held.folder, "upstream")


@pf.task
def is_fine(x: Any, held: Traced) -> bool:
    note(Path(held.folder, "ran"), os.getpid())
    return True


@pf.task
def shown(x: Any) -> str:
    note(Path(x.folder, "ran"), os.getpid())
    return str(x)


@pf.task
def onward(x: Traced) -> Traced:
    note(Path(x.folder, "ran"), os.getpid())
    return Traced(x.folder, "next")


def enough(x: Traced) -> bool:
    note(Path(x.folder, "ran"), os.getpid())
    return False


def node(x: Traced) -> Traced:
    note(Path(x.folder, "ran"), os.getpid())
    return Traced(x.folder, "node")


echo = pf.command("echo %IN %{more}", name="echo")
wrote = pf.command("echo %IN > %OUT{out.txt}", name="wrote")


@pf.workflow
def everything(folder: str) -> Any:
    """Objects of a user's in all places where a run keeps any."""

    def held(what: str) -> Traced:
        return Traced(folder, what)

    upstream = made(pf.items([held("item")]), held("argument"))
    chosen = pf.when(is_fine(1, held("condition")), lambda: shown(held("branch")), "no")
    looped = pf.loop(onward, held("loop"), until=enough, max_iterations=3)
    graph = pf.job_graph({"a": (node, (held("graph"),)), "b": (node, (pf.ref("a"),))})
    said = echo(upstream, more=held("command argument"))
    return {
        "made": upstream,
        "chosen": chosen,
        "looped": looped,
        "graph": graph,
        "said": said,
        "wrote": wrote(upstream),
    }


@pf.task
def opened(path: str) -> str:
    return Path(path).open().name.rpartition("/")[2]


@pf.workflow
def needs_a_file(path: str) -> Any:
    return opened(path)
