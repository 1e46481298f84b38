"""Every state and every legal transition, in tables.

Rule 1: everything that decides whether a state may change is in this file.
Rule 2: this file does not know why a state changes; the engine does.
Rule 3: the diagrams in ``docs/states.md`` are drawn from these tables, and a test fails
when they drift.

The words are PanDA's. Mind the trap: a *task* that is ``done`` has all its jobs, one that
is ``finished`` has only part of them; a *job* that is ``finished`` has succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job is."""

    PENDING = "pending"
    READY = "ready"
    SENT = "sent"
    RUNNING = "running"
    HOLDING = "holding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CLOSED = "closed"


class TaskStatus(StrEnum):
    """Where a task is."""

    DEFINED = "defined"
    READY = "ready"
    SCOUTING = "scouting"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FINISHED = "finished"
    FAILED = "failed"
    EXHAUSTED = "exhausted"
    ABORTED = "aborted"


class RunStatus(StrEnum):
    """Where a workflow's run is."""

    DEFINED = "defined"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FINISHED = "finished"
    FAILED = "failed"
    ABORTED = "aborted"


JOB_MEANING: Mapping[JobStatus, str] = {
    JobStatus.PENDING: "waits for its inputs; the reason is kept",
    JobStatus.READY: "its inputs exist (or it waits out a back-off) and a slot may take it",
    JobStatus.SENT: "handed to an executor, perhaps ahead of its inputs; not started yet",
    JobStatus.RUNNING: "its payload runs",
    JobStatus.HOLDING: "the payload has ended, its outputs are being committed",
    JobStatus.FINISHED: "succeeded, outputs committed",
    JobStatus.FAILED: "gave up: no tries left, or a rule said so",
    JobStatus.CANCELLED: "stopped by a person",
    JobStatus.CLOSED: "never ran and never will (its inputs failed), or had nothing to give",
}

TASK_MEANING: Mapping[TaskStatus, str] = {
    TaskStatus.DEFINED: "its inputs are not known yet (an open dataset, a condition, a loop)",
    TaskStatus.READY: "its jobs are known, none has been sent",
    TaskStatus.SCOUTING: "its first jobs run to measure what the rest will need",
    TaskStatus.RUNNING: "jobs are sent as slots allow",
    TaskStatus.PAUSED: "nothing new starts until resumed",
    TaskStatus.DONE: "all jobs finished",
    TaskStatus.FINISHED: "the goal is reached, but not all jobs finished",
    TaskStatus.FAILED: "the goal was missed",
    TaskStatus.EXHAUSTED: "stopped by a rate or sizing rule; waits for a person",
    TaskStatus.ABORTED: "cancelled, or its branch was not taken",
}

RUN_MEANING: Mapping[RunStatus, str] = {
    RunStatus.DEFINED: "recorded, not driven yet",
    RunStatus.RUNNING: "driven; its tasks progress",
    RunStatus.PAUSED: "nothing new starts until resumed",
    RunStatus.DONE: "every task is done (or its branch was not taken)",
    RunStatus.FINISHED: "every task reached its goal, not all are done",
    RunStatus.FAILED: "a task failed or is exhausted",
    RunStatus.ABORTED: "cancelled",
}

_J, _T, _R = JobStatus, TaskStatus, RunStatus

#: (start, finish) -> what causes it.
JOB_TRANSITIONS: Mapping[tuple[JobStatus, JobStatus], str] = {
    (_J.PENDING, _J.READY): "inputs exist",
    (_J.PENDING, _J.SENT): "sent ahead of inputs that are being made",
    (_J.PENDING, _J.CLOSED): "inputs will never exist",
    (_J.PENDING, _J.CANCELLED): "cancel",
    (_J.READY, _J.SENT): "given to an executor",
    (_J.READY, _J.PENDING): "an input was lost and is made again",
    (_J.READY, _J.CLOSED): "goal reached without it",
    (_J.READY, _J.FAILED): "no site can ever run it",
    (_J.READY, _J.CANCELLED): "cancel",
    (_J.SENT, _J.RUNNING): "payload started",
    (_J.SENT, _J.PENDING): "blocked: an input failed and is tried again",
    (_J.SENT, _J.READY): "taken back (pause, lost executor)",
    (_J.SENT, _J.HOLDING): "start report missed; payload ended",
    (_J.SENT, _J.FAILED): "lost before it started",
    (_J.SENT, _J.CANCELLED): "cancel",
    (_J.RUNNING, _J.HOLDING): "payload ended",
    (_J.RUNNING, _J.READY): "attempt failed, tries left; or handed back unstarted",
    (_J.RUNNING, _J.PENDING): "blocked: an input failed and is tried again",
    (_J.RUNNING, _J.FAILED): "attempt failed, no tries left",
    (_J.RUNNING, _J.CANCELLED): "cancel",
    (_J.RUNNING, _J.CLOSED): "ended its branch early: nothing to give",
    (_J.HOLDING, _J.FINISHED): "outputs committed",
    (_J.HOLDING, _J.READY): "outputs could not be committed, tries left",
    (_J.HOLDING, _J.FAILED): "outputs could not be committed, no tries left",
    (_J.HOLDING, _J.CANCELLED): "cancel",
    (_J.FAILED, _J.READY): "retry by a person: a new attempt",
    (_J.CANCELLED, _J.READY): "retry by a person: a new attempt",
    (_J.CLOSED, _J.PENDING): "retry by a person: its inputs are made again",
    (_J.FINISHED, _J.PENDING): "restart from this task by a person",
    (_J.FAILED, _J.PENDING): "restart from an upstream task by a person",
    (_J.CANCELLED, _J.PENDING): "restart from an upstream task by a person",
}

TASK_TRANSITIONS: Mapping[tuple[TaskStatus, TaskStatus], str] = {
    (_T.DEFINED, _T.READY): "inputs known",
    (_T.DEFINED, _T.DONE): "no inputs, nothing to do",
    (_T.DEFINED, _T.FAILED): "its inputs will never be known",
    (_T.DEFINED, _T.ABORTED): "cancel, or branch not taken",
    (_T.DEFINED, _T.PAUSED): "pause",
    (_T.READY, _T.SCOUTING): "first jobs sent to measure",
    (_T.READY, _T.RUNNING): "first jobs sent",
    (_T.READY, _T.DONE): "no inputs, nothing to do",
    (_T.READY, _T.FAILED): "every job is closed",
    (_T.READY, _T.PAUSED): "pause",
    (_T.READY, _T.ABORTED): "cancel",
    (_T.SCOUTING, _T.RUNNING): "scouts measured",
    (_T.SCOUTING, _T.PAUSED): "pause",
    (_T.SCOUTING, _T.DONE): "all jobs finished",
    (_T.SCOUTING, _T.FINISHED): "goal reached, not all",
    (_T.SCOUTING, _T.FAILED): "goal missed",
    (_T.SCOUTING, _T.EXHAUSTED): "scouts failed, or asked too much",
    (_T.SCOUTING, _T.ABORTED): "cancel",
    (_T.RUNNING, _T.PAUSED): "pause",
    (_T.RUNNING, _T.DONE): "all jobs finished",
    (_T.RUNNING, _T.FINISHED): "goal reached, not all",
    (_T.RUNNING, _T.FAILED): "goal missed",
    (_T.RUNNING, _T.EXHAUSTED): "failure rate over its limit",
    (_T.RUNNING, _T.ABORTED): "cancel",
    (_T.PAUSED, _T.DEFINED): "resume",
    (_T.PAUSED, _T.READY): "resume",
    (_T.PAUSED, _T.RUNNING): "resume",
    (_T.PAUSED, _T.DONE): "the last running jobs finished",
    (_T.PAUSED, _T.FINISHED): "the last running jobs ended",
    (_T.PAUSED, _T.FAILED): "the last running jobs ended",
    (_T.PAUSED, _T.ABORTED): "cancel",
    (_T.FINISHED, _T.RUNNING): "retry",
    (_T.FAILED, _T.RUNNING): "retry",
    (_T.EXHAUSTED, _T.RUNNING): "retry",
    (_T.ABORTED, _T.RUNNING): "retry",
    (_T.DONE, _T.RUNNING): "restart from this task",
    (_T.DONE, _T.DEFINED): "restart from an upstream task",
    (_T.FINISHED, _T.DEFINED): "restart from an upstream task",
    (_T.FAILED, _T.DEFINED): "restart from an upstream task",
    (_T.EXHAUSTED, _T.DEFINED): "restart from an upstream task",
    (_T.ABORTED, _T.DEFINED): "retry: its inputs may come to exist",
}

RUN_TRANSITIONS: Mapping[tuple[RunStatus, RunStatus], str] = {
    (_R.DEFINED, _R.RUNNING): "driven",
    (_R.DEFINED, _R.ABORTED): "cancel",
    (_R.RUNNING, _R.PAUSED): "pause",
    (_R.PAUSED, _R.RUNNING): "resume",
    (_R.RUNNING, _R.DONE): "all tasks done",
    (_R.RUNNING, _R.FINISHED): "all tasks reached their goals",
    (_R.RUNNING, _R.FAILED): "a task failed",
    (_R.RUNNING, _R.ABORTED): "cancel",
    (_R.PAUSED, _R.DONE): "the last running jobs finished",
    (_R.PAUSED, _R.FINISHED): "the last running jobs ended",
    (_R.PAUSED, _R.FAILED): "the last running jobs ended",
    (_R.PAUSED, _R.ABORTED): "cancel",
    (_R.DONE, _R.RUNNING): "restart from a task",
    (_R.FINISHED, _R.RUNNING): "retry",
    (_R.FAILED, _R.RUNNING): "retry",
    (_R.ABORTED, _R.RUNNING): "retry",
}

#: States in which an attempt is live: an executor has it.
JOB_LIVE = frozenset({_J.SENT, _J.RUNNING, _J.HOLDING})
#: States that only a person can leave.
JOB_TERMINAL = frozenset({_J.FINISHED, _J.FAILED, _J.CANCELLED, _J.CLOSED})
TASK_TERMINAL = frozenset({_T.DONE, _T.FINISHED, _T.FAILED, _T.EXHAUSTED, _T.ABORTED})
RUN_TERMINAL = frozenset({_R.DONE, _R.FINISHED, _R.FAILED, _R.ABORTED})

#: Job states as small numbers, for arrays with one byte a job (index = code).
JOB_CODES: tuple[JobStatus, ...] = tuple(JobStatus)
JOB_CODE: Mapping[JobStatus, int] = {status: code for code, status in enumerate(JOB_CODES)}
