"""The engine: ``handle(events) -> commands``, and nothing else.

Rule 1: no I/O, clock, randomness or thread: time and ids arrive in events. The same events
give the same commands.
Rule 2: every change of a state goes through a table of ``core/status.py`` and leaves a record.
Rule 3: Dask resolves dependencies. The engine only decides *which* jobs are handed over *now*
(a window ahead, deepest first), in bundles of which size, and what a report means.

How the parts divide: ``taskrun`` holds state, ``binding`` turns datasets into jobs,
``emission`` picks what goes next, this file turns reports and wishes into transitions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core import retry
from pandaflow.core.emission import Emission
from pandaflow.core.errors import InvalidTransition, WorkflowError
from pandaflow.core.jobtable import (
    BLOCKED,
    CANCELLED,
    CLOSED,
    FAILED,
    FINISHED,
    HOLDING,
    LIVE_CODES,
    NOT_TERMINAL,
    PENDING,
    QUEUED,
    READY,
    RUNNING,
    STATUS_OF,
)
from pandaflow.core.model import Failure, Jobs, compact, runs_of
from pandaflow.core.status import (
    RUN_TERMINAL,
    RUN_TRANSITIONS,
    JobStatus,
    RunStatus,
    TaskStatus,
)
from pandaflow.core.taskrun import BundleRun, TaskRun

#: Jobs of a task that must have ended before its failure rate is judged.
RATE_SAMPLE = 10
#: A goal of 0.55 is 55 jobs of 100, although 0.55 * 100 is a little more.
_ROUNDING = 1e-9
_WAITING = (PENDING, READY, BLOCKED, QUEUED)


class Engine(Emission):
    """The state of one run.

    Examples
    --------
    >>> from pandaflow.core.engine import Engine
    >>> from pandaflow.core.events import RunStarted
    >>> from pandaflow.core.model import TaskSpec, WorkflowSpec
    >>> spec = WorkflowSpec(name="w", tasks=(
    ...     TaskSpec(id=0, name="hello", token="t", payload="p", single=True, n_static=1),))
    >>> commands = Engine(spec).handle([RunStarted(0.0, {"local": 2})])
    >>> [type(command).__name__ for command in commands]
    ['RunMoved', 'TaskGrew', 'TaskMoved', 'TaskMoved', 'BundleSent', 'EmitBundle']
    """

    def handle(self, events: Iterable[ev.Event]) -> list[cmd.Command]:
        """Take in facts; return records and actions, in order.

        Late, doubled and foreign reports are ignored: a bundle reports once, under its number.
        A wish that cannot be granted changes nothing; ``refused`` tells why, until the next call.
        """
        self._out: list[cmd.Command] = []
        self.refused: list[str] = []
        for event in events:
            self._now = max(self._now, event.at)
            try:
                self._take_in(event)
            except WorkflowError as error:  # wishes are judged before they change anything
                self.refused.append(str(error))
        self._settle()
        return self._out

    def _take_in(self, event: ev.Event) -> None:
        match event:
            case ev.BundleEnded():
                self._bundle_ended(event)
            case ev.BundleStarted():
                self._bundle_started(event)
            case ev.BundleLost():
                self._bundle_lost(event)
            case ev.RunStarted():
                self._run_started(event)
            case ev.SlotsChanged():
                self._slots[event.executor] = event.slots
            case ev.ItemsAppended():
                self._items_appended(event)
            case ev.CancelRequested():
                self._cancel(event)
            case ev.PauseRequested():
                self._pause(event)
            case ev.ResumeRequested():
                self._resume(event)
            case ev.RetryRequested():
                self._retry(event)
            case ev.Ticked():
                pass

    def _settle(self) -> None:
        """Draw all conclusions: tasks bound, grown and judged; jobs sent; the run judged."""
        if self.status not in (RunStatus.RUNNING, RunStatus.PAUSED):
            return
        closed = True
        while closed:
            self._conclude()
            ended = sum(task.table.terminal() for task in self._active)
            self._emit()
            # Looking for what to send next finds jobs that will never run: judge again.
            closed = sum(task.table.terminal() for task in self._active) != ended
        self._judge_run()
        self._wake()

    def _conclude(self) -> None:
        changed = True
        while changed:
            changed = self._advance_loops()
            for task in list(self._active):
                changed = self._bind(task) or changed
                changed = self._judge(task) or changed
            changed = self._follow_ends() or changed
        for task in self._active:
            task.due(self._now)

    # --- reports ------------------------------------------------------------------------

    def _run_started(self, event: ev.RunStarted) -> None:
        self._slots = dict(event.slots)
        self._default = next(iter(event.slots), "")
        if self.status is RunStatus.DEFINED:
            self._move_run(RunStatus.RUNNING, "driven")

    def _bundle_started(self, event: ev.BundleStarted) -> None:
        bundle = self._bundles.get(event.bundle)
        if bundle is not None and not bundle.started:
            self._start(bundle, event.at, event.worker)

    def _start(self, bundle: BundleRun, at: float, worker: str) -> None:
        bundle.started = True
        task = self.tasks[bundle.task]
        task.table.move(bundle.jobs, RUNNING)
        self._out.append(
            cmd.BundleRunning(at, bundle.id, task.spec.id, bundle.jobs, bundle.attempt, worker)
        )

    def _bundle_ended(self, event: ev.BundleEnded) -> None:
        bundle = self._bundles.get(event.bundle)
        if bundle is None:
            return
        if not bundle.started:
            self._start(bundle, event.started or event.at, event.worker)
        self._forget(bundle)
        task = self.tasks[bundle.task]
        jobs, finished = bundle.jobs, _finished(bundle.jobs, event)
        task.table.move(finished, HOLDING)
        task.table.move(finished, FINISHED)
        self._measure(task, event)
        self._out.append(
            cmd.BundleFinished(
                event.at, bundle.id, task.spec.id, jobs, bundle.attempt, finished, event
            )
        )
        self._scatter(task, event, jobs, finished)
        if task.spec.gate and finished:
            task.truth = bool(event.truth)
        self._unlock(task, finished)
        if len(finished) != len(jobs):
            self._leftovers(task, bundle, event)
        self._sweep(task)
        self._let_go(bundle)

    def _measure(self, task: TaskRun, event: ev.BundleEnded) -> None:
        failed = event.failures or event.blocked or event.unstarted or event.detached is not None
        if not failed and not event.cached:
            task.pace.add(event.wall)
            return
        bad = {*event.failures, *event.blocked, *event.unstarted, *event.cached, event.detached}
        task.pace.add([w for place, w in enumerate(event.wall) if place not in bad])

    def _scatter(
        self, task: TaskRun, event: ev.BundleEnded, jobs: Jobs, finished: Jobs
    ) -> None:
        if not task.spec.scatters:
            return
        done = set(finished)
        for position, count in sorted(event.sizes.items()):
            if jobs[position] in done:
                task.arrivals.add(jobs[position], count)
                self._out.append(
                    cmd.ItemsRecorded(event.at, task.spec.id, jobs[position], count)
                )

    def _leftovers(self, task: TaskRun, bundle: BundleRun, event: ev.BundleEnded) -> None:
        """Deal with the jobs of a bundle that did not finish."""
        jobs, at = bundle.jobs, event.at
        if event.unstarted:
            back = compact([jobs[place] for place in event.unstarted])
            self._hand_back(task, back, bundle.id, "handed back: its bundle ran out of time")
        for position, reason in sorted(event.skipped.items()):
            one = range(jobs[position], jobs[position] + 1)
            self._close(task, one, f"ended its branch early: {reason}", excused=True)
        if event.detached is not None:
            self._join(task, bundle, jobs[event.detached])
        for position, failure in sorted(event.failures.items()):
            self._failed(
                task,
                jobs[position],
                bundle,
                failure,
                at,
                wall=float(event.wall[position]) if len(event.wall) else 0.0,
                cpu=float(event.cpu[position]) if len(event.cpu) else 0.0,
                log=event.logs.get(position),
            )
        if event.blocked:
            self._blocked(task, bundle, {jobs[k]: reason for k, reason in event.blocked.items()})

    def _hand_back(self, task: TaskRun, jobs: Jobs, bundle: int, reason: str) -> None:
        """Jobs that never began are ready again, at the same attempt."""
        if not jobs:
            return
        for start, group in _by_state(task, jobs):
            task.table.move(group, QUEUED)
            self._moved(task, group, start, JobStatus.READY, reason=reason, bundle=bundle)
        task.queue.extend(jobs)

    def _join(self, task: TaskRun, bundle: BundleRun, job: int) -> None:
        """Follow a job that goes on after its bundle returned, under a bundle of its own."""
        one = range(job, job + 1)
        reason = f"goes on alone: it held up bundle {bundle.id}"
        task.table.move(one, QUEUED)
        self._moved(task, one, JobStatus.RUNNING, JobStatus.READY, reason=reason, bundle=bundle.id)
        self._send(task, one, bundle.attempt, task.resources(job), needs=(), join=bundle.id)

    def _blocked(self, task: TaskRun, bundle: BundleRun, reasons: dict[int, str]) -> None:
        jobs = compact(sorted(reasons))
        task.table.move(jobs, PENDING)
        task.table.move(jobs, BLOCKED)
        reason = next(iter(reasons.values()))
        self._moved(
            task, jobs, JobStatus.RUNNING, JobStatus.PENDING, reason=f"blocked by {reason}", bundle=bundle.id
        )
        for job in jobs:
            self._reconsider(task, job)

    def _failed(
        self,
        task: TaskRun,
        job: int,
        bundle: BundleRun,
        failure: Failure,
        at: float,
        *,
        wall: float = 0.0,
        cpu: float = 0.0,
        log: tuple[int, int] | None = None,
    ) -> None:
        """Close an attempt that failed, and decide what follows."""
        task.table.ended[job] += 1
        counter = task.charged if failure.charged else task.lost
        counter[job] = counter.get(job, 0) + 1
        decision = retry.decide(
            failure,
            task.spec.retry,
            task.resources(job),
            charged=task.charged.get(job, 0),
            lost=task.lost.get(job, 0),
        )
        start = task.table.status(job)
        again = isinstance(decision, retry.Again)
        task.table.move((job,), QUEUED if again else FAILED)
        self._out.append(
            cmd.JobsMoved(
                at,
                task.spec.id,
                range(job, job + 1),
                start,
                JobStatus.READY if again else JobStatus.FAILED,
                attempt=bundle.attempt,
                bundle=bundle.id,
                reason=decision.reason,
                failure=failure,
                not_before=at + decision.after if isinstance(decision, retry.Again) else 0.0,
                wall=wall,
                cpu=cpu,
                log=log,
            )
        )
        if isinstance(decision, retry.Again):
            self._again(task, job, at, decision)
        else:
            self._gone(task, range(job, job + 1))
            self._check_rate(task)

    def _again(self, task: TaskRun, job: int, at: float, decision: retry.Again) -> None:
        if decision.resources != task.spec.resources:
            task.overrides[job] = decision.resources
        if decision.after > 0:
            heapq.heappush(task.backoff, (at + decision.after, job))
        else:
            task.queue.append(job)

    def _bundle_lost(self, event: ev.BundleLost) -> None:
        bundle = self._bundles.get(event.bundle)
        if bundle is None:
            return
        self._forget(bundle)
        task, jobs = self.tasks[bundle.task], bundle.jobs
        suspect: int | None = None
        if event.charged and event.position is not None:
            suspect = jobs[event.position] if event.position < len(jobs) else None
        elif event.charged and len(jobs) == 1:
            suspect = jobs[0]
        innocent = compact([job for job in jobs if job != suspect])
        if event.charged and suspect is None:
            # Nobody knows who did it: smaller bundles next time, until the culprit is alone.
            for job in jobs:
                task.limits[job] = max(1, len(jobs) // 4)
        self._hand_back(task, innocent, bundle.id, event.reason)
        if suspect is not None:
            task.limits[suspect] = 1
            failure = Failure(kind="lost", message=event.reason, charged=False)
            self._failed(task, suspect, bundle, failure, event.at)
        self._sweep(task)
        self._let_go(bundle)

    def _forget(self, bundle: BundleRun) -> None:
        """Take a bundle out of flight: whatever it still reports is ignored."""
        del self._bundles[bundle.id]
        self.tasks[bundle.task].nodes -= 1
        if not bundle.waiting:
            self._runnable[bundle.executor] -= 1
        for dependent in self._dependents.pop(bundle.id, ()):
            other = self._bundles.get(dependent)
            if other is not None:
                other.waiting -= 1
                if not other.waiting:
                    self._runnable[other.executor] += 1
        for need in bundle.needs:
            self._readers[need] -= 1

    def _let_go(self, bundle: BundleRun) -> None:
        """Release values that nobody will read from memory again."""
        for need in (*bundle.needs, bundle.id):
            place = self._held.get(need)
            if place is not None and not self._readers.get(need) and not self._wanted(*place):
                del self._held[need]
                self._readers.pop(need, None)
                self._out.append(cmd.ReleaseBundle(need))

    def _wanted(self, number: int, jobs: Jobs) -> bool:
        """Whether some job that is not terminal, or not there yet, reads outputs of these jobs."""
        if self._loops_go_on() and number in self._looping():
            return True
        for consumer in self._consumers_of(self.tasks[number]):
            if consumer.chunks is None and not consumer.terminal:
                return True
            for a, b in self._reading(consumer, number, jobs[0], jobs[-1] + 1):
                if consumer.table.first(NOT_TERMINAL, a, b) is not None:
                    return True
            if not consumer.closed and not consumer.terminal:
                return True
        return False

    # --- consequences -------------------------------------------------------------------

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
        verdict, reason = self._evaluate(task, job)
        if verdict == "go":
            task.table.move((job,), QUEUED)
            task.queue.append(job)
            self._moved(task, range(job, job + 1), JobStatus.PENDING, JobStatus.READY, reason="inputs exist")
        elif verdict in ("close", "excuse"):
            self._close(task, range(job, job + 1), reason, excused=verdict == "excuse")

    def _close(self, task: TaskRun, jobs: Jobs, reason: str, *, excused: bool = False) -> None:
        for start, group in _by_state(task, jobs):
            task.end_attempts(group, start)
            task.table.move(group, CLOSED)
            self._moved(task, group, start, JobStatus.CLOSED, reason=reason, excused=excused)
        if excused:
            task.excused.update(jobs)
        self._gone(task, jobs)

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
        for piece in task.table.jobs_in(_WAITING):
            self._close(task, piece, reason)

    def _sweep(self, task: TaskRun) -> None:
        """See that no job of a task that has ended waits: nobody would ever send it."""
        if task.terminal and any(task.table.counts[code] for code in _WAITING):
            self._withdraw(task, f"{task.spec.name} is {task.status}")

    # --- verdicts -----------------------------------------------------------------------

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
        if all(states.count(code) == 0 for code in (*LIVE_CODES, *_WAITING)):
            self._exhaust(task, f"only {finished} of {scouts} scouts finished")
            return True
        return False

    def _judge_run(self) -> None:
        if self.status not in (RunStatus.RUNNING, RunStatus.PAUSED) or self._bundles:
            return
        if any(not task.terminal for task in self.tasks.values()) or self._loops_go_on():
            return
        statuses = {task.status for task in self.tasks.values() if not self._not_taken(task)}
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
            f"{task.spec.name} is {task.status}" for task in self.tasks.values() if task.status in bad
        )

    def _not_taken(self, task: TaskRun) -> bool:
        return (
            task.status is TaskStatus.ABORTED and task.chunks is None and self._guarded_out(task)
        )

    def _wake(self) -> None:
        due = [task.backoff[0][0] for task in self._active if task.backoff]
        if due:
            self._out.append(cmd.WakeAt(min(due)))

    # --- wishes -------------------------------------------------------------------------

    def _items_appended(self, event: ev.ItemsAppended) -> None:
        size = self._sources.get(event.source)
        if size is None:
            raise WorkflowError(f"no source {event.source} in this run")
        if not size.closed:
            n = size.n + event.count
            self._sources[event.source] = type(size)(n, event.closed)
            self._out.append(cmd.StreamGrew(event.at, event.source, n, event.closed))

    def _cancel(self, event: ev.CancelRequested) -> None:
        if self.status in RUN_TERMINAL:
            return
        by = f"cancelled by {event.by}" if event.by else "cancelled"
        if event.task is None:
            self._cancelled = by
            chosen = list(self.tasks.values())
        else:
            chosen = [self._known(event.task)]
        only = None if event.job is None else range(event.job, event.job + 1)
        for task in chosen:
            self._cancel_task(task, only, by)
        if event.task is None:
            for task in chosen:
                if not task.terminal:
                    self._move_task(task, TaskStatus.ABORTED, by)

    def _cancel_task(self, task: TaskRun, only: range | None, reason: str) -> None:
        """Stop what runs; what waits is cancelled too (all of it, or the jobs ``only``)."""
        for bundle in [b for b in self._bundles.values() if b.task == task.spec.id]:
            hit = bundle.jobs if only is None else compact([j for j in bundle.jobs if j in only])
            if hit:
                self._recall(bundle)
                self._cancel_jobs(task, hit, reason)
                rest = compact([job for job in bundle.jobs if job not in hit])
                self._hand_back(task, rest, bundle.id, "its bundle was stopped for another job")
        lo, hi = (only.start, only.stop) if only is not None else (0, task.n)
        for piece in task.table.jobs_in(_WAITING, lo, hi):
            self._cancel_jobs(task, piece, reason)
        stopped = set(range(lo, hi)) if only is not None else None
        task.queue = type(task.queue)(j for j in task.queue if stopped is not None and j not in stopped)
        task.backoff = [e for e in task.backoff if stopped is not None and e[1] not in stopped]
        if only is None and not task.closed and not task.terminal:
            self._move_task(task, TaskStatus.ABORTED, reason)

    def _cancel_jobs(self, task: TaskRun, jobs: Jobs, reason: str) -> None:
        for start, group in _by_state(task, jobs):
            task.end_attempts(group, start)
            task.table.move(group, CANCELLED)
            self._moved(task, group, start, JobStatus.CANCELLED, reason=reason)
        self._gone(task, jobs)

    def _recall(self, bundle: BundleRun) -> None:
        self._forget(bundle)
        self._held.pop(bundle.id, None)
        self._out.append(cmd.CancelBundle(bundle.id, bundle.executor))

    def _pause(self, event: ev.PauseRequested) -> None:
        if self.status is not RunStatus.RUNNING:
            return
        self._move_run(RunStatus.PAUSED, f"paused by {event.by}" if event.by else "paused")
        # A bundle that joins a job is not new: its job runs already.
        for bundle in [b for b in self._bundles.values() if not (b.started or b.joins)]:
            self._recall(bundle)
            self._hand_back(self.tasks[bundle.task], bundle.jobs, bundle.id, "taken back: paused")
        for task in self._active:
            if task.status is not TaskStatus.PAUSED:
                task.resume_to = task.status
                self._move_task(task, TaskStatus.PAUSED, "the run is paused")

    def _resume(self, event: ev.ResumeRequested) -> None:
        if self.status is not RunStatus.PAUSED:
            return
        self._move_run(RunStatus.RUNNING, f"resumed by {event.by}" if event.by else "resumed")
        for task in list(self._active):
            if task.status is TaskStatus.PAUSED:
                self._move_task(task, self._unpaused(task), "the run goes on")
                self._check_rate(task)

    def _unpaused(self, task: TaskRun) -> TaskStatus:
        if task.chunks is None:
            return TaskStatus.DEFINED
        touched = task.n - task.table.counts[PENDING] - task.table.counts[READY]
        return TaskStatus.RUNNING if touched else TaskStatus.READY

    def _retry(self, event: ev.RetryRequested) -> None:
        chosen = set(self.tasks)
        if event.task is not None:
            chosen = self._downstream(self._known(event.task).spec.id)
        if event.restart:
            self.check_restart(event.task)
        if event.task is not None:
            self._change(self.tasks[event.task], event)
        else:
            for task in self.tasks.values():
                if task.table.counts[FAILED] or task.table.counts[CANCELLED]:
                    self._change(task, event)
        if not any(self._can_retry(self.tasks[number], event) for number in chosen):
            return
        self._cancelled = ""
        if self.status in RUN_TERMINAL:
            self._move_run(RunStatus.RUNNING, "restart" if event.restart else "retry")
        for loop in self._loops.values():
            loop.dead = False
        for number in sorted(chosen, key=lambda k: self.tasks[k].depth):
            if self._can_retry(self.tasks[number], event):
                self._retry_task(self.tasks[number], event)
        self._reorder()

    def _known(self, number: int) -> TaskRun:
        if number not in self.tasks:
            raise WorkflowError(f"no task {number} in this run")
        return self.tasks[number]

    def _change(self, task: TaskRun, event: ev.RetryRequested) -> None:
        changes = {
            "resources": event.resources,
            "retry": event.retry,
            "executor": event.executor,
        }
        given = {key: value for key, value in changes.items() if value is not None}
        if given:
            task.spec = task.spec.changed(**given)
            task.overrides.clear()
            self._out.append(cmd.TaskChanged(event.at, task.spec))

    def check_restart(self, task: int | None) -> None:
        """Refuse to restart where the workflow's growth hangs on what would run again.

        Raises
        ------
        WorkflowError
        """
        for number in sorted(self.tasks if task is None else self._downstream(task)):
            spec = self.tasks[number].spec
            if not self.tasks[number].terminal:
                raise WorkflowError(
                    f"cannot restart here: {spec.name!r} downstream has not ended; wait for it, "
                    "or cancel it"
                )
            if spec.gate or spec.scatters or spec.iteration is not None:
                raise WorkflowError(
                    f"cannot restart here: {spec.name!r} downstream decides how the workflow "
                    "grows (a condition, a loop, scattered items); run it anew with cache=True"
                )

    def _again_jobs(self, task: TaskRun, event: ev.RetryRequested) -> list[range]:
        ended = (FAILED, CANCELLED, CLOSED)
        return task.table.jobs_in((*ended, FINISHED) if event.restart else ended)

    def _can_retry(self, task: TaskRun, event: ev.RetryRequested) -> bool:
        if not task.terminal or self._guarded_out(task):
            return False
        if task.spec.scatters and self.ended(task.spec.id) and not event.restart:
            return False  # its items are complete to those who read them
        return task.chunks is None or not task.closed or bool(self._again_jobs(task, event))

    def _retry_task(self, task: TaskRun, event: ev.RetryRequested) -> None:
        pieces = self._again_jobs(task, event)
        finish = TaskStatus.RUNNING if task.chunks is not None else TaskStatus.DEFINED
        self._move_task(task, finish, "restart" if event.restart else "retry")
        task.charged.clear()
        task.lost.clear()
        task.excused.clear()
        task.cursor, task.waits_on = 0, None
        for piece in pieces:
            for start, group in _by_state(task, piece):
                self._reset(task, group, start)

    def _reset(self, task: TaskRun, jobs: Jobs, start: JobStatus) -> None:
        """Make jobs fresh again; those that ran get a new attempt."""
        if start is JobStatus.FINISHED:
            task.end_attempts(jobs, JobStatus.RUNNING)
        ready = start in (JobStatus.FAILED, JobStatus.CANCELLED) and task.initial is JobStatus.READY
        task.table.move(jobs, READY if ready else PENDING)
        finish = JobStatus.READY if ready else JobStatus.PENDING
        self._moved(task, jobs, start, finish, reason="retry")

    # --- records ------------------------------------------------------------------------

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


def _finished(jobs: Jobs, event: ev.BundleEnded) -> Jobs:
    odd = event.failures or event.blocked or event.unstarted or event.skipped
    if not odd and event.detached is None:
        return jobs
    left = {*event.failures, *event.blocked, *event.unstarted, *event.skipped, event.detached}
    return compact([job for place, job in enumerate(jobs) if place not in left])


def _by_state(task: TaskRun, jobs: Jobs) -> Sequence[tuple[JobStatus, Jobs]]:
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
