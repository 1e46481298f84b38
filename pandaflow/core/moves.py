"""Changes of jobs' states and what follows for those downstream; every change leaves a record."""

from __future__ import annotations

from collections.abc import Sequence

from pandaflow.core import commands as cmd
from pandaflow.core.errors import InvalidTransition
from pandaflow.core.growth import Growth
from pandaflow.core.jobtable import (
    BLOCKED,
    CLOSED,
    QUEUED,
    STATUS_OF,
)
from pandaflow.core.model import Jobs, compact, runs_of
from pandaflow.core.status import (
    JOB_TERMINAL,
    RUN_TRANSITIONS,
    JobStatus,
    RunStatus,
)
from pandaflow.core.taskrun import TaskRun


class Moves(Growth):
    """Moves jobs and the run."""

    def _unlock(self, task: TaskRun, finished: Jobs) -> None:
        """Jobs downstream that were blocked may go now."""
        for consumer in self._consumers_of(task):
            if consumer.table.counts[BLOCKED] and finished:
                self._reconsider_range(consumer, task.spec.id, finished)

    def _gone(self, task: TaskRun, jobs: Jobs) -> None:
        """Jobs that will never finish: those that need them must hear of it.

        Closing these brings more bad news, which waits its turn: chains may be of any length.
        """
        self._bad_news.append((task, jobs))
        if len(self._bad_news) > 1:
            return
        while self._bad_news:
            upstream, gone = self._bad_news[0]
            for consumer in self._consumers_of(upstream):
                if consumer.table.counts[BLOCKED]:
                    self._reconsider_range(consumer, upstream.spec.id, gone)
            self._bad_news.popleft()

    def _reconsider_range(self, consumer: TaskRun, number: int, jobs: Jobs) -> None:
        for piece in runs_of(jobs):
            for a, b in self._reading(consumer, number, piece.start, piece.stop):
                for blocked in consumer.table.jobs_in((BLOCKED,), a, b):
                    for job in blocked:
                        self._reconsider(consumer, job)

    def _reconsider(self, task: TaskRun, job: int) -> None:
        """Look again at a blocked job: send it, close it, or leave it."""
        if task.table.state[job] != BLOCKED:
            return
        verdict, reason = self._evaluate(task, job)
        if verdict == "go":
            task.table.move((job,), QUEUED)
            task.queue.append(job)
            self._moved(
                task, range(job, job + 1), JobStatus.PENDING, JobStatus.READY, reason="inputs exist"
            )
        elif verdict in ("close", "excuse"):
            self._close(task, range(job, job + 1), reason, excused=verdict == "excuse")

    def _close(self, task: TaskRun, jobs: Jobs, reason: str, *, excused: bool = False) -> None:
        for start, group in by_state(task, jobs):
            if start in JOB_TERMINAL:
                continue  # closed for want of another that was closed before
            task.end_attempts(group, start)
            task.table.move(group, CLOSED)
            self._moved(task, group, start, JobStatus.CLOSED, reason=reason, excused=excused)
            if excused:
                task.excused.update(group)
        self._gone(task, jobs)

    def _moved(
        self,
        task: TaskRun,
        jobs: Jobs,
        start: JobStatus,
        finish: JobStatus,
        *,
        reason: str = "",
        bundle: int | None = None,
        excused: bool = False,
    ) -> None:
        if jobs:
            self._out.append(
                cmd.JobsMoved(
                    self._now,
                    task.spec.id,
                    jobs,
                    start,
                    finish,
                    bundle=bundle,
                    reason=reason,
                    not_before=-1.0 if excused else 0.0,
                )
            )

    def _move_run(self, finish: RunStatus, reason: str) -> None:
        if (self.status, finish) not in RUN_TRANSITIONS:
            raise InvalidTransition("the run", self.status, finish)
        self._out.append(cmd.RunMoved(self._now, self.status, finish, reason))
        self.status = finish


def by_state(task: TaskRun, jobs: Jobs) -> Sequence[tuple[JobStatus, Jobs]]:
    """Group jobs by the state they are in."""
    state = task.table.state
    if isinstance(jobs, range):
        codes = set(state[jobs.start : jobs.stop])
    else:
        codes = {state[job] for job in jobs}
    if len(codes) == 1:
        return [(STATUS_OF[codes.pop()], jobs)]
    groups: dict[JobStatus, list[int]] = {}
    for job in jobs:
        groups.setdefault(STATUS_OF[state[job]], []).append(job)
    return [(status, compact(group)) for status, group in groups.items()]
