"""What Dask runs: the functions behind the nodes of a run's graph.

A node carries one bundle. It never raises for a job's sake: it returns the values of the jobs
that finished and reports all outcomes over the worker's own stream to the scheduler, on the
run's topic, so that values stay on the workers and only outcomes reach the driver.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from pandaflow.core.bundle import BundleSpec, BundleValues, Missing
from pandaflow.executors import channel, supervise
from pandaflow.executors import payload as payloads
from pandaflow.executors.supervise import is_cancelled

#: A task that nobody holds may vanish before its end.
_LEAVING: set[asyncio.Future[None]] = set()
#: Set in worker processes that PandaFlow starts for itself: they may end to stop a job.
OWN_WORKER = "PANDAFLOW_WORKER"
#: Set in pilots: seconds since the epoch after which no job should run any more.
PILOT_UNTIL = "PANDAFLOW_PILOT_UNTIL"
#: A resource that workers have who turned a job down because they have too little time left.
CUT_SHORT = "cut_short"


def run_node(spec: BundleSpec, topic: str, payload: bytes, *deps: BundleValues) -> BundleValues:
    """Run a bundle on a Dask worker."""
    from distributed import get_worker

    worker = get_worker()
    _check_time(worker, spec)
    if is_cancelled(spec.run, spec.bundle):
        return BundleValues(spec.jobs, [Missing("cancelled")] * len(spec.jobs))
    return payloads.run_bundle(
        spec,
        payload,
        deps,
        report=lambda message: worker.log_event(topic, message),
        worker=worker.address,
        isolation="process" if _expendable(worker) else "thread",
        on_stuck=lambda: _leave(worker),
        workdir=os.path.join(worker.local_directory, "work"),
    )


def _check_time(worker: Any, spec: BundleSpec) -> None:
    """Send a job elsewhere that cannot end before its pilot must; shorter ones may still come."""
    until, wanted = os.environ.get(PILOT_UNTIL), spec.resources.walltime
    if until is None or wanted is None:
        return
    left = float(until) - time.time()
    if left >= wanted:
        return
    from distributed import Reschedule
    from distributed.utils import sync

    # Only the scheduler is told: nodes that it has sent here already come by and are sent on.
    less = {"walltime": left, CUT_SHORT: 1.0}
    sync(worker.loop, worker.scheduler.set_resources, worker=worker.address, resources=less)
    raise Reschedule


async def leave(worker: Any, reason: str) -> None:
    """Take no more nodes on a worker, and end when those that run have ended."""
    from distributed.core import Status

    if worker.status == Status.running:
        worker.status = Status.paused
    while worker.state.executing_count:
        await asyncio.sleep(0.1)
    await worker.close(timeout=2, reason=reason)


def begin_leaving(worker: Any, reason: str) -> None:
    """Make a worker leave soon; called in its event loop."""
    task = asyncio.ensure_future(leave(worker, reason))
    _LEAVING.add(task)
    task.add_done_callback(_LEAVING.discard)


def load_node(results: str, location: str) -> BundleValues:
    """Read the values of a bundle that is in nobody's memory."""
    from pandaflow.data.results import ResultStore

    return ResultStore(results).load(location)


async def cancel_on_worker(run: str, bundles: list[int]) -> None:
    """Stop bundles on this worker; the scheduler calls it in the worker's event loop."""
    for bundle in bundles:
        payloads.cancel(run, bundle)


async def stop_on_worker(
    run: str, jobs: Sequence[channel.Begun], reason: str, grace: float
) -> None:
    """Ask jobs to stop, those that this worker may get later included."""
    channel.ask(run, jobs, reason, grace)
    supervise.look()


async def forget_on_worker(run: str) -> None:
    """Drop what this worker keeps for a run that has ended."""
    payloads.forget(run)


def _expendable(worker: Any) -> bool:
    """Tell whether the process may end: somebody will start it again."""
    return OWN_WORKER in os.environ or getattr(worker, "nanny", None) is not None


def _leave(worker: Any) -> None:
    # Reports travel through the event loop, so it gets a moment to send them.
    worker.loop.add_callback(_expire, worker)


def _expire(worker: Any) -> None:
    """End in a moment and begin nothing until then: it would be lost, of a later run too."""
    from distributed.core import Status

    # Not paused: Dask's memory monitor makes a paused worker go on.
    worker.status = Status.closing_gracefully
    worker.loop.call_later(0.2, os._exit, 1)
