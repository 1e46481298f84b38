"""Verdicts: when a task and the run have ended, and how."""

from __future__ import annotations

from pandaflow.core import commands as cmd
from pandaflow.core.emission import Emission
from pandaflow.core.jobtable import (
    BLOCKED,
    CANCELLED,
    CLOSED,
    FAILED,
    FINISHED,
    LIVE_CODES,
    WAITING_CODES,
)
from pandaflow.core.status import (
    RunStatus,
    TaskStatus,
)
from pandaflow.core.taskrun import TaskRun

#: Jobs of a task that must have ended before its failure rate is judged.
RATE_SAMPLE = 10
#: A goal of 0.55 is 55 jobs of 100, although 0.55 * 100 is a little more.
_ROUNDING = 1e-9


class Verdicts(Emission):
    """Judges tasks and the run."""

    def _judge(self, task: TaskRun) -> bool:
        """End a task whose jobs have all ended. Return whether anything changed."""
        if task.terminal or task.chunks is None:
            return False
        if not task.closed or task.table.terminal() < task.n:
            return self._judge_scouts(task)
        finish, reason = self._verdict_of(task)
        self._move_task(task, finish, reason)
        return True

    def _follow_ends(self) -> bool:
        """Draw the conclusions of tasks that have just ended. Return whether any had."""
        ended = bool(self._just_ended)
        while self._just_ended:
            task = self._just_ended.popleft()
            self._sweep(task)
            for consumer in self._consumers_of(task):
                for blocked in consumer.table.jobs_in((BLOCKED,)):
                    for job in blocked:
                        self._reconsider(consumer, job)
        return ended

    def _verdict_of(self, task: TaskRun) -> tuple[TaskStatus, str]:
        counts = task.table.counts
        wanted, finished = task.n - len(task.excused), counts[FINISHED]
        if task.spec.gate and task.truth is not None:
            return TaskStatus.DONE, "true" if task.truth else "false"
        if finished == wanted:
            return TaskStatus.DONE, "" if task.n else "no inputs, nothing to do"
        if counts[CANCELLED]:
            return TaskStatus.ABORTED, f"{counts[CANCELLED]} job(s) cancelled"
        if finished >= task.spec.goal * wanted - _ROUNDING:
            return TaskStatus.FINISHED, f"{finished} of {wanted} jobs finished"
        why = f"{counts[FAILED]} job(s) failed, {counts[CLOSED]} closed, {finished} finished"
        return TaskStatus.FAILED, why

    def _judge_scouts(self, task: TaskRun) -> bool:
        if task.status is not TaskStatus.SCOUTING:
            return False
        scouts = min(task.spec.scouts, task.n)
        states = task.table.state[:scouts]
        finished = states.count(FINISHED)
        # JEDI's early avalanche: half of the scouts are enough to know the rest.
        if 2 * finished >= scouts:
            self._move_task(task, TaskStatus.RUNNING, f"{finished} of {scouts} scouts finished")
            return True
        if all(states.count(code) == 0 for code in (*LIVE_CODES, *WAITING_CODES)):
            self._exhaust(task, f"only {finished} of {scouts} scouts finished")
            return True
        return False

    def _judge_run(self) -> None:
        if self.status not in (RunStatus.RUNNING, RunStatus.PAUSED) or self._bundles:
            return
        if self._active or self._loops_go_on():
            return
        statuses = {task.status for task in self.tasks.values() if self._counts(task)}
        if self._cancelled:
            self._move_run(RunStatus.ABORTED, self._cancelled)
        elif statuses & {TaskStatus.FAILED, TaskStatus.EXHAUSTED}:
            self._move_run(RunStatus.FAILED, self._blame())
        elif statuses & {TaskStatus.FINISHED, TaskStatus.ABORTED}:
            self._move_run(RunStatus.FINISHED, "not all jobs finished")
        else:
            self._move_run(RunStatus.DONE, "")

    def _blame(self) -> str:
        bad = (TaskStatus.FAILED, TaskStatus.EXHAUSTED)
        return "; ".join(
            f"{task.spec.name} is {task.status}"
            for task in self.tasks.values()
            if task.status in bad and not task.spec.optional
        )

    def _counts(self, task: TaskRun) -> bool:
        return not task.spec.optional and not self._not_taken(task)

    def _not_taken(self, task: TaskRun) -> bool:
        return task.status is TaskStatus.ABORTED and task.chunks is None and self._guarded_out(task)

    def _check_rate(self, task: TaskRun) -> None:
        limit = task.spec.max_failure_rate
        failed = task.table.counts[FAILED]
        ended = failed + task.table.counts[FINISHED]
        if task.status is TaskStatus.PAUSED or limit is None:
            return  # a paused task is judged when it goes on
        if ended >= RATE_SAMPLE and failed > limit * ended:
            self._exhaust(task, f"{failed} of {ended} jobs failed, more than {limit:.0%}")

    def _exhaust(self, task: TaskRun, reason: str) -> None:
        if task.terminal:
            return
        self._move_task(task, TaskStatus.EXHAUSTED, reason)
        self._withdraw(task, reason)

    def _withdraw(self, task: TaskRun, reason: str) -> None:
        """Nothing of the task that waits will run."""
        task.queue.clear()
        task.backoff.clear()
        for piece in task.table.jobs_in(WAITING_CODES):
            self._close(task, piece, reason)

    def _sweep(self, task: TaskRun) -> None:
        """See that no job of a task that has ended waits: nobody would ever send it."""
        if task.terminal and any(task.table.counts[code] for code in WAITING_CODES):
            self._withdraw(task, f"{task.spec.name} is {task.status}")

    def _wake(self) -> None:
        due = [task.backoff[0][0] for task in self._active if task.backoff]
        if due:
            self._out.append(cmd.WakeAt(min(due)))
