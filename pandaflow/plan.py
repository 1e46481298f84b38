"""What a run would do: jobs of each task, what is cached, and why the rest would run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pandaflow.core.bundle import Blocked, BundleValues, JobInputs
from pandaflow.core.engine import Engine
from pandaflow.core.graph import _Items, bound
from pandaflow.core.model import WorkflowSpec
from pandaflow.core.slices import describe
from pandaflow.core.taskrun import TaskRun
from pandaflow.executors.cache import job_key, lookup

#: Jobs of one task whose cache keys a plan works out at most.
_LOOKED_AT = 20_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do.

    Attributes
    ----------
    rows : list of dict
        ``task, jobs`` (None: known only when the workflow runs), ``cached, run, why``.
    """

    name: str
    rows: list[dict[str, Any]]

    def __str__(self) -> str:
        width = max([4, *(len(row["task"]) for row in self.rows)])
        lines = [f"plan of {self.name}", f"  {'task':<{width}} {'jobs':>9} {'cached':>8}  why"]
        for row in self.rows:
            jobs = "open" if row["jobs"] is None else f"{row['jobs']:,}"
            lines.append(f"  {row['task']:<{width}} {jobs:>9} {row['cached']:>8,}  {row['why']}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from pandaflow.display.html import plan_html

        return plan_html(self.name, self.rows)


def plan(spec: WorkflowSpec, blobs: Mapping[str, bytes], root: str) -> Plan:
    """Work out what a run would do.

    Parameters
    ----------
    spec : WorkflowSpec
    blobs : mapping of str to bytes
        The workflow's payloads and items.
    root : str
        Folder of all results, which holds the cache.
    """
    engine = bound(spec)
    planner = _Planner(engine, _Items(spec, blobs), root)
    return Plan(
        spec.name, [planner.row(task) for task in engine.tasks.values() if not task.spec.internal]
    )


class _Planner:
    def __init__(self, engine: Engine, items: _Items, root: str) -> None:
        self._engine, self._items, self._root = engine, items, root
        self._known: dict[int, list[Any]] = {}

    def row(self, task: TaskRun) -> dict[str, Any]:
        known = task.chunks is not None and task.closed
        jobs = task.n if known else None
        cached, why = self._cached(task) if known else (0, self._unknown(task))
        run = None if jobs is None else jobs - cached
        return {"task": task.spec.name, "jobs": jobs, "cached": cached, "run": run, "why": why}

    def _unknown(self, task: TaskRun) -> str:
        if task.spec.guards:
            gates = " and ".join(
                f"{self._engine.tasks[gate].spec.name} is {str(wanted).lower()}"
                for gate, wanted in task.spec.guards
            )
            return f"runs only if {gates}"
        return "its inputs are known only when the workflow runs"

    def _cached(self, task: TaskRun) -> tuple[int, str]:
        if not task.spec.cache:
            return 0, "no cache: runs every time"
        upstream = self._upstream(task)
        if upstream is None:
            return 0, "its inputs are made anew, so whether they changed is seen then"
        if task.n > _LOOKED_AT:
            return 0, f"cached jobs are found when they run (more than {_LOOKED_AT:,})"
        values = [self._lookup(task, job, upstream) for job in range(task.n)]
        hits = [value for value in values if value is not None]
        if len(hits) == task.n:
            self._known[task.spec.id] = [hit.value for hit in hits]
            return task.n, "code and inputs unchanged"
        return len(hits), "code or inputs are new or changed"

    def _upstream(self, task: TaskRun) -> list[int] | None:
        """Return the tasks whose values it reads, if all of them are known from the cache."""
        needed = (
            {number for number, _, _, _ in self._engine._needs(task, 0, task.n)}
            if task.n
            else set()
        )
        return sorted(needed) if needed <= set(self._known) else None

    def _lookup(self, task: TaskRun, job: int, upstream: list[int]) -> Any:
        places = {number: (dep,) for dep, number in enumerate(upstream)}
        spec = describe(self._engine, task, range(job, job + 1), self._items, places)
        deps = [BundleValues(range(len(self._known[t])), self._known[t]) for t in upstream]
        try:
            slots = JobInputs(spec, deps, pickle.loads).slots(job)
        except Blocked:
            return None
        key = job_key(task.spec.token, slots, task.spec.cache or "mtime")
        return lookup(self._root, key) if key else None
