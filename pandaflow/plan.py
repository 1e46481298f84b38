"""What a run would do: jobs of each task, what is cached, why the rest would run, and where."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pandaflow.config import read_settings
from pandaflow.core.bundle import Blocked, BundleValues, JobInputs
from pandaflow.core.engine import Engine
from pandaflow.core.errors import WorkflowError
from pandaflow.core.graph import _Items, bound
from pandaflow.core.model import TaskSpec, WorkflowSpec
from pandaflow.core.slices import describe
from pandaflow.core.taskrun import TaskRun
from pandaflow.executors.batch.dry import Draft, Wanted, broker, drafts
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


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do, and what it would submit to batch systems.

    Attributes
    ----------
    plan : Plan
    rows : list of dict
        Those of the plan, with ``executor``; ``sites`` that may run the task, best first;
        ``refused``, by site why it cannot; ``where``, both in words; ``script`` and ``command``,
        the first that would be submitted for it (None: none).
    drafts : tuple of Draft
        All that would be submitted.
    unscripted : tuple of str
        Executors in use that have no batch scripts.
    """

    plan: Plan
    rows: list[dict[str, Any]]
    drafts: tuple[Draft, ...]
    unscripted: tuple[str, ...]

    @property
    def homeless(self) -> list[str]:
        """Names of tasks that fit nowhere."""
        return [row["task"] for row in self.rows if row["refused"] and not row["sites"]]

    def complaint(self) -> str:
        """Say which tasks fit nowhere, and why; empty if all fit."""
        homeless = [row for row in self.rows if row["task"] in self.homeless]
        return "; ".join(f"task {row['task']!r} fits nowhere: {row['where']}" for row in homeless)

    def __str__(self) -> str:
        return "\n".join([str(self.plan), *self._places(), *self._scripts()])

    __repr__ = __str__

    def _places(self) -> Iterator[str]:
        placed = [row for row in self.rows if row["where"]]
        if placed:
            width = max(len(row["task"]) for row in placed)
            yield from ("", "where jobs may run")
            for row in placed:
                yield f"  {row['task']:<{width}}  {row['executor']}: {_where(row)}"

    def _scripts(self) -> Iterator[str]:
        for draft in self.drafts:
            yield from ("", f"# {_title(draft)}")
            for path, text in draft.files.items():
                yield from (f"# {path}", *(f"  {line}".rstrip() for line in text.splitlines()))
            yield f"$ {draft.command}"
        if self.unscripted:
            yield from ("", _without(self.unscripted))

    def _repr_html_(self) -> str:
        return _dry_html(self)


def dry_run(
    spec: WorkflowSpec, blobs: Mapping[str, bytes], executors: Mapping[str, Any], store: Any = None
) -> DryRun:
    """Work out what a run would do and submit; writes nothing.

    Parameters
    ----------
    spec, blobs
        As for :func:`plan`.
    executors : mapping of str to Executor
        The default first.
    store : optional
        URL, path or store of the run.

    Raises
    ------
    WorkflowError
        A task names an executor that is not given.
    """
    root = _results_root(store)
    made = plan(spec, blobs, root)
    jobs = {row["task"]: row["jobs"] for row in made.rows}
    by_executor: dict[str, list[Wanted]] = {name: [] for name in executors}
    for task in spec.tasks:
        if task.name in jobs:
            by_executor[_executor_of(task, executors)].append(Wanted(task, jobs[task.name]))
    used = {name: wanted for name, wanted in by_executor.items() if wanted}
    batch = {
        name: drafts(executors[name].settings, wanted, root, os.getcwd())
        for name, wanted in used.items()
        if _is_batch(executors[name])
    }
    places = {
        one.task.name: _placed(name, one, executors[name], batch.get(name, []))
        for name, wanted in used.items()
        for one in wanted
    }
    plain = [type(executors[name]).__name__.lower() for name in used if name not in batch]
    every = tuple(draft for name in batch for draft in batch[name])
    rows = [row | places[row["task"]] for row in made.rows]
    return DryRun(made, rows, every, tuple(dict.fromkeys(plain)))


def _is_batch(executor: Any) -> bool:
    from pandaflow.executors.batch.settings import BatchSettings

    return isinstance(getattr(executor, "settings", None), BatchSettings)


def _executor_of(task: TaskSpec, executors: Mapping[str, Any]) -> str:
    name = task.executor or next(iter(executors))
    if name not in executors:
        raise WorkflowError(
            f"task {task.name!r} asks for executor {name!r}; given: {', '.join(executors)}. Pass "
            f"executors={{name: executor}}, or --executor {name}=... on the command line"
        )
    return name


def _placed(name: str, wanted: Wanted, executor: Any, made: list[Draft]) -> dict[str, Any]:
    """Return where a task may run, as far as its executor chooses."""
    found: dict[str, Any] = {"executor": name, "sites": [], "refused": {}, "where": ""}
    if _is_batch(executor):
        ranking = broker(executor.settings, wanted.resources)
        found["sites"] = [site.name for site, _ in ranking.sites]
        found |= {"refused": dict(ranking.refused), "where": ranking.describe()}
    mine = [draft for draft in made if wanted.task.name in draft.tasks]
    first = min(mine, key=lambda draft: found["sites"].index(draft.site), default=None)
    shown = {"script": first.script, "command": first.command} if first else {}
    return {**found, "script": None, "command": None, **shown}


def _dry_html(found: DryRun) -> str:
    """Return what a run would do as HTML: the plan, where jobs may run, scripts to unfold."""
    from pandaflow.display.drawing import escape
    from pandaflow.display.html import CARD, TEXT, plan_html, table_html

    wide = TEXT.replace("nowrap", "normal")
    cells = [
        [escape(row["task"]), escape(row["executor"]), escape(_where(row))]
        for row in found.rows
        if row["where"]
    ]
    head = (("task", TEXT), ("executor", TEXT), ("where", wide))
    parts = [table_html(head, cells)] if cells else []
    parts += [_draft_html(draft) for draft in found.drafts]
    if found.unscripted:
        parts.append(f"<div>{escape(_without(found.unscripted))}</div>")
    return f"{plan_html(found.plan.name, found.plan.rows)}{CARD}{''.join(parts)}</div>"


def _draft_html(draft: Draft) -> str:
    from pandaflow.display.drawing import escape

    text = "\n\n".join(f"# {path}\n{text}" for path, text in draft.files.items())
    return (
        f"<details><summary>{escape(_title(draft))}</summary>"
        f'<pre style="overflow-x:auto">{escape(text)}\n$ {escape(draft.command)}</pre></details>'
    )


def _where(row: Mapping[str, Any]) -> str:
    return f"{'' if row['sites'] else 'FITS NOWHERE: '}{row['where']}"


def _title(draft: Draft) -> str:
    return f"{draft.site}, for {', '.join(draft.tasks)}: {draft.note}"


def _without(names: tuple[str, ...]) -> str:
    return f"no batch scripts: {', '.join(names)}"


def _results_root(store: Any) -> str:
    """Return where a store's runs keep their results, without opening (and making) the store."""
    from pandaflow.store.database import parse_url

    settings = read_settings()
    if settings.results is not None:
        return settings.results.rstrip("/")
    given = getattr(store, "url", store)
    url = parse_url(str(given) if given is not None else settings.store)
    if url.get_backend_name() == "sqlite" and url.database:
        return str(Path(url.database).absolute().parent.resolve() / "results")
    return str(Path(".pandaflow").resolve() / "results")


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
