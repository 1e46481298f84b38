"""What must hold after every step of an engine, whatever happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from pandaflow.core.commands import EmitBundle
from pandaflow.core.engine import Engine
from pandaflow.core.status import JOB_LIVE, JOB_TERMINAL, RUN_TERMINAL
from pandaflow.core.taskrun import TaskRun
from pandaflow.testing.ledger import Ledger

__all__ = ["violations"]


def violations(engine: Engine, ledger: Ledger, given: Iterable[EmitBundle]) -> list[str]:
    """Return what is wrong, one line each.

    Parameters
    ----------
    engine : Engine
    ledger : Ledger
        The engine's records so far.
    given : iterable of EmitBundle
        What executors have, and have not reported on.
    """
    out = list(_attempts(engine, list(given)))
    for task in engine.tasks.values():
        out += _counters(task)
        out += _kept(task, ledger)
        if task.terminal and any(_waiting(task)):
            out.append(f"{task.spec.name} is {task.status} and has jobs that wait for ever")
    if engine.status in RUN_TERMINAL:
        out += _ended(engine)
    elif engine.status == "running":
        out += _stands_still(engine)
    return out


def _attempts(engine: Engine, given: list[EmitBundle]) -> Iterator[str]:
    """At most one live attempt of a job, and it is the one that the engine knows."""
    count = Counter((emit.task, job) for emit in given for job in emit.jobs)
    yield from (f"job {job} of task {task} runs twice" for (task, job), n in count.items() if n > 1)
    known = {bundle.id for bundle in engine.bundles_in_flight()}
    for emit in given:
        if emit.bundle not in known:
            yield f"nobody waits for bundle {emit.bundle}, and nobody stopped it"


def _counters(task: TaskRun) -> Iterator[str]:
    state = task.table.state
    counted = [state.count(code) for code in range(len(task.table.counts))]
    if counted != task.table.counts:
        yield f"{task.spec.name} counts {task.table.counts}, its jobs are {counted}"


def _kept(task: TaskRun, ledger: Ledger) -> Iterator[str]:
    """The records say what the engine has in mind."""
    row = ledger.tasks[task.spec.id]
    if (row.status, row.n) != (task.status, task.n):
        yield f"{task.spec.name} is {task.status} of {task.n}, kept {row.status} of {row.n}"
        return
    for job in range(task.n):
        if row.status_of(job) is not task.table.status(job):
            yield (
                f"{task.spec.name}[{job}] is {task.table.status(job)}, kept {row.status_of(job)}"
            )


def _waiting(task: TaskRun) -> Iterator[int]:
    idle = JOB_TERMINAL | JOB_LIVE
    return (job for job in range(task.n) if task.table.status(job) not in idle)


def _ended(engine: Engine) -> Iterator[str]:
    if engine.bundles_in_flight():
        yield f"the run is {engine.status} and has bundles in flight"
    for task in engine.tasks.values():
        if not task.terminal:
            yield f"the run is {engine.status} and {task.spec.name} is {task.status}"


def _stands_still(engine: Engine) -> Iterator[str]:
    """A run with nothing in flight waits for something: a stream, a time or a slot."""
    slots = engine._slots.values()
    if engine.bundles_in_flight() or not slots or not all(slots):
        return
    if all(size.closed for size in engine._sources.values()):
        if not any(task.backoff for task in engine.tasks.values()):
            yield "the run stands still: nothing is in flight and nothing can happen any more"
