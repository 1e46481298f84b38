"""A Dask worker process that ends when the process that started it does.

``python -m pandaflow.executors.worker tcp://... --nthreads 1``: started by the local executor
instead of Dask's nanny, because it does not import the user's script again (so scripts need no
``if __name__ == "__main__"``), and because its exit code tells why it died.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import threading
from typing import Any

from pandaflow.executors.node import OWN_WORKER, begin_leaving

#: The driver, and a person who asks how it goes, come before payloads.
_NICE = 5
#: Dask's own profiler and health checks cost more than a short node.
_QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "500ms",
    "distributed.admin.tick.interval": "500ms",
}

_TIME_IS_UP = "the time of its pilot is up"


def _end_with_parent() -> None:
    """Wait until standard input closes: the parent holds the other end while it lives."""
    while os.read(0, 4096):
        pass
    os._exit(0)


async def _serve(options: argparse.Namespace) -> None:
    import dask
    from distributed import Worker

    dask.config.set(_QUIET)
    worker = Worker(
        options.scheduler,
        nthreads=options.nthreads,
        name=options.name,
        local_directory=options.local_directory,
        memory_limit=options.memory_limit,
        resources=options.resources,
        security=_security(options.tls),
        dashboard=False,
        dashboard_address=None,
    )
    async with worker:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, begin_leaving, worker, _TIME_IS_UP)
        await worker.finished()


def _security(folder: str | None) -> Any:
    """Return how to talk to the scheduler: in clear, or with the certificate in ``folder``."""
    if folder is None:
        return None
    from pandaflow.executors.tls import load

    return load(folder)


def main(arguments: list[str] | None = None) -> None:
    """Run a worker until its parent or its scheduler ends."""
    parser = argparse.ArgumentParser(prog="python -m pandaflow.executors.worker")
    parser.add_argument("scheduler")
    parser.add_argument("--nthreads", type=int, default=1)
    parser.add_argument("--name", default=None)
    parser.add_argument("--local-directory", default=None)
    parser.add_argument("--memory-limit", default="auto")
    parser.add_argument("--resources", type=json.loads, help="what a node may ask for, as JSON")
    parser.add_argument("--tls", metavar="FOLDER", help="with ca.pem, cert.pem and key.pem")
    options = parser.parse_args(arguments)
    os.environ[OWN_WORKER] = "1"
    if hasattr(os, "nice"):
        os.nice(_NICE)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(options))
    os._exit(0)  # payload threads that cannot be stopped must not keep the process


if __name__ == "__main__":
    main()
