"""A Dask worker process that ends when the process that started it does.

``python -m pandaflow.executors.worker tcp://... --nthreads 1``: started by the local executor
instead of Dask's nanny, because it does not import the user's script again (so scripts need no
``if __name__ == "__main__"``), and because its exit code tells why it died. Pilots fork theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from pandaflow.executors.node import OWN_WORKER, begin_leaving

#: The driver, and a person who asks how it goes, come before payloads.
_NICE = 5
#: Dask's own profiler and health checks cost more than a short node.
_QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "500ms",
    "distributed.admin.tick.interval": "500ms",
}

_ASKED = "its pilot has asked it to go"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a worker process is told.

    Attributes
    ----------
    scheduler : str
        Address.
    nthreads : int
    name : str or None
    local_directory : str or None
    memory_limit : str
        As Dask wants it; ``"0"``: none.
    resources : mapping of str to float or None
        What nodes of the graph may ask for.
    tls : str or None
        Folder with keys.
    """

    scheduler: str
    nthreads: int = 1
    name: str | None = None
    local_directory: str | None = None
    memory_limit: str = "auto"
    resources: Mapping[str, float] | None = None
    tls: str | None = None


def _until_input_closes() -> None:
    """Wait until standard input closes: the parent holds the other end while it lives."""
    while os.read(0, 4096):
        pass


async def _serve(options: Options) -> None:
    import dask
    from distributed import Worker

    dask.config.set(_QUIET)
    worker = Worker(
        options.scheduler,
        nthreads=options.nthreads,
        name=options.name,
        local_directory=options.local_directory,
        memory_limit=options.memory_limit,
        resources=dict(options.resources or {}),
        security=_security(options.tls),
        dashboard=False,
        dashboard_address=None,
    )
    async with worker:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, begin_leaving, worker, _ASKED)
        await worker.finished()


def _security(folder: str | None) -> Any:
    """Return how to talk to the scheduler: in clear, or with the certificate in ``folder``."""
    if folder is None:
        return None
    from pandaflow.executors.tls import load

    return load(folder)


def run(options: Options, until: Callable[[], object]) -> NoReturn:
    """Be a worker until its scheduler ends, or ``until`` returns."""
    os.environ[OWN_WORKER] = "1"
    if hasattr(os, "nice"):
        os.nice(_NICE)
    threading.Thread(target=_end_after, args=(until,), daemon=True).start()
    asyncio.run(_serve(options))
    os._exit(0)  # payload threads that cannot be stopped must not keep the process


def _end_after(until: Callable[[], object]) -> NoReturn:
    until()
    os._exit(0)


class Nursery:
    """Makes workers that are copies of this process, which must have no threads.

    Importing takes most of a second of CPU, and on an HPC thousands of accesses to a file system
    that all nodes share: once for a node instead of once for each of its cores.
    """

    def __init__(self) -> None:
        import dask
        import distributed

        import pandaflow.executors.payload

        del dask, distributed, pandaflow  # imported for those that are forked
        self._here, self._there = os.pipe()

    def fork(self, options: Options, env: Mapping[str, str]) -> BaseProcess:
        """Start a worker that ends when this process does."""
        process = get_context("fork").Process(target=self._run, args=(options, env))
        process.start()
        return process

    def _run(self, options: Options, env: Mapping[str, str]) -> NoReturn:
        os.close(self._there)  # nobody but the parent may hold this end
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(env)
        run(options, lambda: os.read(self._here, 1))


def main(arguments: list[str] | None = None) -> None:
    """Run a worker until its parent or its scheduler ends."""
    parser = argparse.ArgumentParser(prog="python -m pandaflow.executors.worker")
    parser.add_argument("scheduler")
    parser.add_argument("--nthreads", type=int, default=1)
    parser.add_argument("--name", default=None)
    parser.add_argument("--local-directory", default=None)
    parser.add_argument("--memory-limit", default="auto")
    run(Options(**vars(parser.parse_args(arguments))), _until_input_closes)


if __name__ == "__main__":
    main()
