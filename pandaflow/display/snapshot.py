"""What a store's reader tells of a run, parsed once for all that show it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.core.status import RUN_TERMINAL, TASK_TERMINAL

#: Said of a run that was left with a server when nobody drives it.
WAITS = "it waits for a runner of its server"
_RUN_ENDED = frozenset(str(status) for status in RUN_TERMINAL)
_TASK_ENDED = frozenset(str(status) for status in TASK_TERMINAL)
#: A task of one of many numbered sub-workflows: ``label/17.0/simulate``.
_NUMBERED = re.compile(r"(.+)/\d+\.\d+/(.+)")


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as it stands.

    Attributes
    ----------
    name, status, reason : str
    n : int
        Jobs known so far.
    closed : bool
        Whether no more jobs will come.
    jobs : mapping of str to int
        Jobs by state; states without jobs may be left out.
    internal : bool
        Made by the compiler; shown only when it is in trouble.
    """

    name: str
    status: str = "defined"
    reason: str = ""
    n: int = 0
    closed: bool = True
    jobs: Mapping[str, int] = field(default_factory=dict)
    internal: bool = False

    def count(self, *states: str) -> int:
        """Return the number of jobs in any of ``states``."""
        return sum(self.jobs.get(state, 0) for state in states)

    @property
    def ended(self) -> bool:
        """Whether only a person can make it go on."""
        return self.status in _TASK_ENDED

    @property
    def total_text(self) -> str:
        """``"1,200"``, ``"1,200+"`` while jobs can still come, ``"?"`` while none is known."""
        if self.closed:
            return f"{self.n:,}"
        return f"{self.n:,}+" if self.n else "?"


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as it stands; times in seconds since the epoch, None where not known.

    ``notes`` tell what holds jobs up now, one line for an executor, and that a run that was
    left with a server has no runner.
    """

    id: str
    name: str = ""
    status: str = "defined"
    tasks: tuple[TaskRow, ...] = ()
    slots: int | None = None
    busy: int | None = None
    started: float | None = None
    ended_at: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether only a person can make it go on."""
        return self.status in _RUN_ENDED

    @property
    def shown(self) -> tuple[TaskRow, ...]:
        """The tasks for people: internal ones only when they are in trouble."""
        return tuple(
            task
            for task in self.tasks
            if not task.internal or task.status in ("failed", "exhausted")
        )

    def jobs(self) -> dict[str, int]:
        """Jobs of all shown tasks by state."""
        counts: dict[str, int] = {}
        for task in self.shown:
            for state, number in task.jobs.items():
                counts[state] = counts.get(state, 0) + number
        return counts

    @property
    def total(self) -> int:
        """Jobs known so far."""
        return sum(task.n for task in self.shown)

    def elapsed(self, now: float | None = None) -> float | None:
        """Return the seconds since the start, up to its end or ``now``; None if not known."""
        until = self.ended_at if self.ended_at is not None else now
        if self.started is None or until is None:
            return None
        return max(until - self.started, 0.0)


def parse_task(row: TaskRow | Mapping[str, Any]) -> TaskRow:
    """Read a task of a run's dict.

    Raises
    ------
    WorkflowError
        It has no name, or counts that are no numbers.
    """
    if isinstance(row, TaskRow):
        return row
    try:
        jobs = {str(state): int(number) for state, number in (row.get("jobs") or {}).items()}
        number = row.get("n")
        return TaskRow(
            str(row["name"]),
            str(row.get("status") or "defined"),
            str(row.get("reason") or ""),
            sum(jobs.values()) if number is None else int(number),
            bool(row.get("closed", True)),
            jobs,
            bool(row.get("internal", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkflowError(f"not a task of a run: {error!r}") from error


def family(name: str) -> str:
    """Return the name under which a task is shown.

    Tasks of numbered sub-workflows, which can be thousands, share one: ``label/17.0/simulate``
    becomes ``label/*/simulate``. Other names stay.
    """
    return _NUMBERED.sub(r"\1/*/\2", name) if "." in name else name


def fold(tasks: Sequence[TaskRow], ended: bool) -> tuple[TaskRow, ...]:
    """Put the tasks of a family into one row, at the place of the first.

    Parameters
    ----------
    tasks : sequence of TaskRow
    ended : bool
        No more tasks can join the run; until then a family's number of jobs is open.
    """
    families: dict[str, list[TaskRow]] = {}
    for task in tasks:
        families.setdefault(family(task.name), []).append(task)
    return tuple(
        members[0] if members[0].name == name else _folded(name, members, ended)
        for name, members in families.items()
    )


def _folded(name: str, members: Sequence[TaskRow], ended: bool) -> TaskRow:
    jobs: dict[str, int] = {}
    for task in members:
        for state, number in task.jobs.items():
            jobs[state] = jobs.get(state, 0) + number
    status = _common_status([task.status for task in members], ended)
    troubled = [task for task in members if task.reason and task.status != "done"]
    return TaskRow(
        name,
        status,
        f"{troubled[0].name}: {troubled[0].reason}" if troubled else "",
        sum(task.n for task in members),
        ended and all(task.closed for task in members),
        jobs,
        all(task.internal for task in members),
    )


def _common_status(found: Sequence[str], ended: bool) -> str:
    """Return the state of several tasks; some done and some failed are together finished."""
    states = set(found)
    if len(states) == 1 and (ended or not states <= _TASK_ENDED):
        return found[0]
    if not ended:  # between two sub-workflows too: more of them come
        return "running"
    return "finished" if states & {"done", "finished"} else found[0]


def parse_run(snapshot: RunRow | Mapping[str, Any]) -> RunRow:
    """Read a run's dict; keys that are not known are ignored.

    Raises
    ------
    WorkflowError
        It has no id, or something in it has the wrong type.
    """
    if isinstance(snapshot, RunRow):
        return snapshot
    try:
        status = str(snapshot.get("status") or "defined")
        tasks = [parse_task(task) for task in snapshot.get("tasks") or ()]
        return RunRow(
            str(snapshot["id"]),
            str(snapshot.get("name") or ""),
            status,
            fold(tasks, status in _RUN_ENDED),
            _number(snapshot.get("slots")),
            _number(snapshot.get("busy")),
            _time(snapshot.get("started") or snapshot.get("created")),
            _time(snapshot.get("ended")),
            () if status in _RUN_ENDED else _notes(snapshot),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkflowError(f"not a run: {error!r}") from error


def note(executor: str, reason: str) -> str:
    """Return what an executor says, with its name where that tells something."""
    named = executor not in ("", "default") and not reason.startswith(f"{executor}:")
    return f"{executor}: {reason}" if named else reason


def _notes(snapshot: Mapping[str, Any]) -> tuple[str, ...]:
    executors = snapshot.get("executors") or ()
    said = ((str(row["name"]), str(row.get("reason") or "")) for row in executors)
    alone = (WAITS,) if snapshot.get("unattended") else ()
    return (*alone, *(note(name, reason) for name, reason in said if reason))


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _time(value: Any) -> float | None:
    return None if value is None else float(value)
