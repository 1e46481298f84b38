"""Bring an engine back to where the store says the run was.

The inverse of the engine's records: jobs without a row are as their task's ``initial`` says,
finished jobs keep their bundle, attempts in flight come back as bundles for which somebody must
report (the runner adopts what finished meanwhile and declares the rest lost).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Mapping

from pandaflow.core.datasets import Size, size
from pandaflow.core.engine import Engine
from pandaflow.core.jobtable import QUEUED, JobTable
from pandaflow.core.loops import LoopRun
from pandaflow.core.model import TaskSpec, compact
from pandaflow.core.status import JOB_CODE, JOB_LIVE, JobStatus, RunStatus, TaskStatus
from pandaflow.core.taskrun import BundleRun, TaskRun
from pandaflow.ports import BundleState, RunState, TaskState


def restore(state: RunState) -> Engine:
    """Return an engine that continues a run."""
    engine = Engine(state.spec)
    engine.status = RunStatus(state.status)
    engine.next_bundle = state.next_bundle
    for source, (n, closed) in state.streams.items():
        engine._sources[source] = Size(n, closed)
    _grow(engine, state)
    rows = {row.id: row for row in state.tasks}
    for task in engine.tasks.values():
        _restore_task(task, rows[task.spec.id])
    _bind_all(engine, rows)
    bundles = {bundle.id: bundle for bundle in state.bundles}
    live: dict[int, list[int]] = {}
    for task in engine.tasks.values():
        for bundle, jobs in _restore_jobs(task, rows[task.spec.id]).items():
            live[bundle] = jobs
    for number, jobs in sorted(live.items()):
        _fly(engine, bundles[number], jobs)
    _hold(engine, bundles)
    engine._reorder()
    engine._out = []
    return engine


def _grow(engine: Engine, state: RunState) -> None:
    """Repeat iterations that were begun and fragments that joined, by their tasks' ids."""
    added = sorted((row for row in state.tasks if row.id not in engine.tasks), key=lambda r: r.id)
    seen: set[tuple[int, int]] = set()
    for row in added:
        iteration = row.spec.iteration
        if iteration is None:
            _rejoin(engine, row.spec)
            continue
        if iteration in seen:
            continue
        seen.add(iteration)
        while iteration[0] not in engine._loops:
            _repeat(engine, _maker_of(engine, row.spec.name))
        loop: LoopRun = engine._loops[iteration[0]]
        _repeat(engine, loop)


def _rejoin(engine: Engine, spec: TaskSpec) -> None:
    loops = spec.brings.loops if spec.brings is not None else ()
    while loops and loops[0].id > len(engine._loops):
        _repeat(engine, _maker_of(engine, ""))  # it had begun before the fragment came
    engine._enter(spec)


def _repeat(engine: Engine, loop: LoopRun) -> None:
    engine._iterate(loop, loop.spec.state if loop.current is None else loop.current)


def _maker_of(engine: Engine, task: str) -> LoopRun:
    """Find the loop behind a task's loop: one whose iterations have no tasks of their own."""
    bare = [loop for loop in engine._loops.values() if not loop.spec.body and loop.spec.loops]
    for loop in bare:
        names = [spec.name for inner in loop.spec.loops for spec in inner.body]
        if any(task.startswith(f"{name}@{loop.iteration + 1}@") for name in names):
            return loop
    return bare[0]


def _restore_task(task: TaskRun, row: TaskState) -> None:
    task.spec = row.spec
    task.status = TaskStatus(row.status)
    task.initial = JobStatus(row.initial)
    task.charged = dict(row.failures)
    task.lost = dict(row.losses)
    for job, count in row.arrivals:
        task.arrivals.add(job, count)
    if task.spec.gate and task.status is TaskStatus.DONE:
        task.truth = {"true": True, "false": False}.get(row.reason)


def _bind_all(engine: Engine, rows: Mapping[int, TaskState]) -> None:
    """Cut inputs into jobs as before; the records of it are dropped, the store has them.

    Tasks that were not bound when the last driver ended are left to the engine's first step.
    """
    engine._reorder()
    tasks = [task for task in engine.tasks.values() if task.status is not TaskStatus.DEFINED]
    changed = True
    while changed:
        changed = _settle_loops(engine)
        for task in tasks:
            changed = _rebind(engine, task, rows[task.spec.id]) or changed


def _rebind(engine: Engine, task: TaskRun, row: TaskState) -> bool:
    before = (task.n, task.closed, task.chunks is None)
    if task.terminal and not row.closed:
        _recut_part(engine, task, row)
    elif not task.closed and engine._guards_hold(task):
        engine._cut(task)
    return (task.n, task.closed, task.chunks is None) != before


def _recut_part(engine: Engine, task: TaskRun, row: TaskState) -> None:
    """Cut what a task had cut when it ended, while its inputs were still open."""
    sizes = [size(engine, slot.dataset) for slot in task.mapped]
    known = bool(sizes) and all(one.known for one in sizes)
    if not (known and engine._guards_hold(task) and engine._others_known(task)):
        return
    if task.chunks is not None and task.n >= row.n:
        return
    engine._cut_open(task, min(one.n for one in sizes), closed=False)
    if task.chunks is not None:
        del task.bounds.bounds[row.n + 1 :]
        task.table = JobTable(task.spec.name)
        task.table.grow(row.n, JOB_CODE[task.initial])
        arrivals = engine._lists_of(task)
        if arrivals is not None:
            task.cut_at = bisect_left(arrivals.starts, task.bounds.bounds[-1])


def _settle_loops(engine: Engine) -> bool:
    """Find out which loops had ended."""
    changed = False
    for loop in engine._loops.values():
        if loop.result is None and loop.gate is not None:
            last = loop.iteration + 1 >= loop.spec.max_iterations
            truth = engine.tasks[loop.gate].truth
            if truth or (truth is not None and last):
                loop.result, changed = loop.current, True
        elif loop.result is None and loop.iteration + 1 >= loop.spec.max_iterations:
            loop.result, changed = loop.current, True
    return changed


def _restore_jobs(task: TaskRun, row: TaskState) -> dict[int, list[int]]:
    """Put jobs into their states; return those in flight by bundle."""
    table = task.table
    live: dict[int, list[int]] = {}
    for job, status_text, attempt, bundle, not_before in row.jobs:
        if job >= task.n:
            continue
        status = JobStatus(status_text)
        code = JOB_CODE[status]
        ended = attempt - 1 if status in JOB_LIVE or status is JobStatus.FINISHED else attempt
        table.ended[job] = max(0, ended)
        if bundle is not None and (status in JOB_LIVE or status is JobStatus.FINISHED):
            table.bundle[job] = bundle
        if status is JobStatus.CLOSED and not_before < 0:
            task.excused.add(job)
        elif status is JobStatus.READY:
            code = QUEUED
            heapq.heappush(task.backoff, (not_before, job))
        elif status in JOB_LIVE and bundle is not None:
            live.setdefault(bundle, []).append(job)
        table.counts[table.state[job]] -= 1
        table.state[job] = code
        table.counts[code] += 1
    return live


def _fly(engine: Engine, bundle: BundleState, jobs: list[int]) -> None:
    task = engine.tasks[bundle.task]
    run = BundleRun(
        id=bundle.id,
        task=bundle.task,
        jobs=bundle.jobs if len(bundle.jobs) == len(jobs) else compact(sorted(jobs)),
        attempt=bundle.attempt,
        executor=bundle.executor,
        started=task.table.status(jobs[0]) is not JobStatus.SENT,
    )
    engine._bundles[run.id] = run
    engine._held[run.id] = (bundle.task, run.jobs)
    engine._runnable[run.executor] += 1
    task.nodes += 1


def _hold(engine: Engine, bundles: dict[int, BundleState]) -> None:
    """Know which jobs are in the bundles whose values somebody may still read."""
    for task in engine.tasks.values():
        for number in set(task.table.bundle) - {-1}:
            if number not in engine._held and number in bundles:
                engine._held[number] = (task.spec.id, bundles[number].jobs)
