"""A run's state as lines of JSON: what a handle needs to gather results and to judge a retry.

Jobs that follow each other with the same state, attempt and bundle are one entry, so that a
million jobs that have run in bundles are some thousand. Lines are written and read one by one::

    {"version": 1, "id": ..., "spec": ..., "status": ..., "next_bundle": ..., "streams": ...}
    {"task": {"id": ..., "spec": ..., ...}}
    {"jobs": [[first, count, state, attempt, bundle, not before], ...]}    of the task above
    {"bundles": [[id, task, first, last, jobs or null, attempt, executor, location], ...]}
    {"end": true}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

from pandaflow.core.errors import StoreError
from pandaflow.core.status import JOB_CODE, JOB_CODES, JobStatus
from pandaflow.ports import BundleState, RunState, TaskState
from pandaflow.store.spec import dump_task, dump_workflow, parse_task, parse_workflow

VERSION = 1
#: Entries of one line.
_LINE = 2_000

#: Index, state, attempt, bundle and earliest time of a job.
JobRow: TypeAlias = tuple[int, str, int, int | None, float]
#: First index, count, code of the state, attempt, bundle, earliest time.
Stretch: TypeAlias = tuple[int, int, int, int, int | None, float]


# --- writing ------------------------------------------------------------------------------


def dump_state(state: RunState) -> Iterator[str]:
    """Yield a run's state as lines, without line breaks; jobs are read while it goes on."""
    yield _line(
        version=VERSION,
        id=state.id,
        spec=dump_workflow(state.spec),
        status=str(state.status),
        next_bundle=state.next_bundle,
        streams={source: list(size) for source, size in state.streams.items()},
    )
    for task in state.tasks:
        yield _line(task=_task(task))
        for entries in _lines(stretches(task.jobs)):
            yield _line(jobs=entries)
    for bundles in _lines(map(_bundle, state.bundles)):
        yield _line(bundles=bundles)
    yield _line(end=True)


def stretches(rows: Iterable[JobRow]) -> Iterator[Stretch]:
    """Put jobs that follow each other and are alike together."""
    first, count = 0, 0
    same: tuple[Any, ...] = ()
    for index, *rest in rows:
        if count and index == first + count and tuple(rest) == same:
            count += 1
            continue
        if count:
            yield _stretch(first, count, same)
        first, count, same = index, 1, tuple(rest)
    if count:
        yield _stretch(first, count, same)


def _stretch(first: int, count: int, same: tuple[Any, ...]) -> Stretch:
    status, attempt, bundle, not_before = same
    return first, count, JOB_CODE[JobStatus(status)], attempt, bundle, not_before


def _lines(entries: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(entries)
    while part := list(islice(rest, _LINE)):
        yield part


def _line(**content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))


def _task(task: TaskState) -> dict[str, Any]:
    return {
        "id": task.id,
        "spec": dump_task(task.spec),
        "status": str(task.status),
        "n": task.n,
        "closed": task.closed,
        "initial": str(task.initial),
        "failures": dict(task.failures),
        "losses": dict(task.losses),
        "arrivals": [list(segment) for segment in task.arrivals],
        "reason": task.reason,
    }


def _bundle(bundle: BundleState) -> list[Any]:
    jobs = bundle.jobs
    listed = None if isinstance(jobs, range) else list(jobs)
    ends = (jobs[0], jobs[-1]) if jobs else (0, -1)
    return [
        *(bundle.id, bundle.task, *ends, listed),
        *(bundle.attempt, bundle.executor, bundle.location),
    ]


# --- reading ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Jobs:
    """The jobs of a task, made from their stretches whenever they are iterated."""

    entries: list[Stretch] = field(default_factory=list)

    def __iter__(self) -> Iterator[JobRow]:
        for first, count, code, attempt, bundle, not_before in self.entries:
            for index in range(first, first + count):
                yield index, JOB_CODES[code].value, attempt, bundle, not_before


def parse_state(lines: Iterable[str], results: str) -> RunState:
    """Return the state that :func:`dump_state` wrote.

    Parameters
    ----------
    lines : iterable of str
    results : str
        Where the reader finds the run's results.

    Raises
    ------
    StoreError
        The lines end early, are of another version or are something else.
    """
    rest = iter(lines)
    try:
        return _parse(rest, results)
    except (StopIteration, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"the server's account of the run cannot be read ({type(error).__name__}: {error}): "
            "is it a PandaFlow server of this version?"
        ) from error


def _parse(lines: Iterator[str], results: str) -> RunState:
    head = json.loads(next(lines))
    if head["version"] != VERSION:
        raise ValueError(f"version {head['version']}, this PandaFlow reads {VERSION}")
    run = str(head["id"])
    tasks: list[TaskState] = []
    bundles: list[BundleState] = []
    jobs = _Jobs()
    while "end" not in (line := json.loads(next(lines))):
        if "task" in line:
            jobs = _Jobs()
            tasks.append(_parse_task(line["task"], run, jobs))
        jobs.entries += [tuple(entry) for entry in line.get("jobs", ())]
        bundles += [_parse_bundle(*entry) for entry in line.get("bundles", ())]
    return RunState(
        id=run,
        spec=parse_workflow(head["spec"], run),
        status=head["status"],
        results=results,
        tasks=tasks,
        bundles=bundles,
        next_bundle=head["next_bundle"],
        streams={int(source): (n, closed) for source, (n, closed) in head["streams"].items()},
    )


def _parse_task(row: dict[str, Any], run: str, jobs: _Jobs) -> TaskState:
    return TaskState(
        id=row["id"],
        spec=parse_task(row["spec"], run),
        status=row["status"],
        n=row["n"],
        closed=row["closed"],
        initial=row["initial"],
        jobs=jobs,
        failures={int(job): count for job, count in row["failures"].items()},
        losses={int(job): count for job, count in row["losses"].items()},
        arrivals=[(job, count) for job, count in row["arrivals"]],
        reason=row["reason"],
    )


def _parse_bundle(
    id: int, task: int, first: int, last: int, jobs: list[int] | None, *rest: Any
) -> BundleState:
    attempt, executor, location = rest
    return BundleState(
        id=id,
        task=task,
        jobs=tuple(jobs) if jobs is not None else range(first, last + 1),
        attempt=attempt,
        executor=executor,
        location=location,
    )
