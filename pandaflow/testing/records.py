"""A small workflow and the records of its life, for the conformance kits."""

from __future__ import annotations

from typing import Any

from pandaflow.core import commands as cmd
from pandaflow.core.events import BundleEnded
from pandaflow.core.model import (
    Failure,
    Input,
    Jobs,
    Output,
    Resources,
    ResultShape,
    Source,
    SourceSpec,
    TaskSpec,
    WorkflowSpec,
)
from pandaflow.core.policy import Retry, RetryRule
from pandaflow.core.status import JobStatus, RunStatus, TaskStatus

_J, _T, _R = JobStatus, TaskStatus, RunStatus

#: What the tests write as time: seconds since the epoch.
T0 = 1_700_000_000.0


def example_spec(name: str = "zmumu") -> WorkflowSpec:
    """Return a workflow of three tasks, a gate among them, over files and a stream."""
    select = TaskSpec(
        id=0,
        name="select",
        token="t0",
        payload="p0",
        inputs=(Input(Source(0)),),
        resources=Resources(cores=2, memory=2**30),
        retry=Retry(retries=2, rules=(RetryRule(match="OSError", action="retry"),)),
        scatters=True,
    )
    fill = TaskSpec(id=1, name="fill", token="t1", payload="p1", inputs=(Input(Output(0)),))
    gate = TaskSpec(id=2, name="fill-gate", token="t2", payload="p2", gate=True, internal=True)
    return WorkflowSpec(
        name=name,
        tasks=(select, fill, gate),
        sources=(
            SourceSpec(id=0, name="numbers", kind="range", n=10, bounds=(0, 10, 1)),
            SourceSpec(id=1, name="arrivals", kind="stream"),
        ),
        result=ResultShape(kind="dataset", dataset=Output(1)),
        params={"bins": "60"},
    )


def opening_records(n: int = 10, task: int = 0) -> list[cmd.Record]:
    """Return the records of a run that begins with ``n`` ready jobs of a task."""
    return [
        cmd.RunMoved(T0, _R.DEFINED, _R.RUNNING, "driven"),
        cmd.TaskGrew(T0, task, n, True, _J.READY),
        cmd.TaskMoved(T0, task, _T.DEFINED, _T.READY, f"{n} jobs"),
        cmd.TaskMoved(T0, task, _T.READY, _T.RUNNING),
    ]


def bundle_records(
    bundle: int,
    jobs: Jobs,
    *,
    task: int = 0,
    attempt: int = 1,
    finished: Jobs | None = None,
    start: JobStatus = JobStatus.READY,
    **report: Any,
) -> tuple[cmd.BundleSent, cmd.BundleRunning, cmd.BundleFinished]:
    """Return the three records of a bundle's smooth path."""
    ended = BundleEnded(
        at=T0 + 3,
        bundle=bundle,
        worker="w1",
        location=f"bundles/{bundle}",
        checksum="adler32:1",
        nbytes=10,
        started=T0 + 2,
        **report,
    )
    return (
        cmd.BundleSent(T0 + 1, bundle, task, jobs, attempt, start, "local"),
        cmd.BundleRunning(T0 + 2, bundle, task, jobs, attempt, "w1"),
        cmd.BundleFinished(
            T0 + 3, bundle, task, jobs, attempt, jobs if finished is None else finished, ended
        ),
    )


def moved(
    jobs: Jobs, start: JobStatus, finish: JobStatus, *, task: int = 0, **more: Any
) -> cmd.JobsMoved:
    """Return the record of jobs that moved together; ``more`` as in :class:`JobsMoved`."""
    return cmd.JobsMoved(T0 + 4, task, jobs, start, finish, **more)


def failure(message: str = "no such branch", *, charged: bool = True) -> Failure:
    """Return why an attempt failed: an exception."""
    return Failure(
        kind="exception",
        message=message,
        type="builtins.KeyError",
        mro=("KeyError", "LookupError", "Exception"),
        traceback="Traceback ...",
        charged=charged,
    )
