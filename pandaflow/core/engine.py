"""The engine: ``handle(events) -> commands``, and nothing else.

Rule 1: no I/O, clock, randomness or thread: time and ids arrive in events. The same events
give the same commands.
Rule 2: every change of a state goes through a table of ``core/status.py`` and leaves a record.
Rule 3: Dask resolves dependencies. The engine only decides *which* jobs are handed over *now*
(a window ahead, deepest first), in bundles of which size, and what a report means.

How the parts divide, each building on those before: ``taskrun`` holds state, ``binding`` turns
datasets into jobs, ``growth`` adds tasks, ``moves`` changes states and follows up downstream,
``emission`` picks what goes next, ``verdicts`` ends tasks and the run, ``steering`` carries out
wishes, this file takes in reports.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core import retry
from pandaflow.core.errors import WorkflowError
from pandaflow.core.jobtable import (
    BLOCKED,
    FAILED,
    FINISHED,
    HOLDING,
    NOT_TERMINAL,
    PENDING,
    QUEUED,
    RUNNING,
)
from pandaflow.core.model import Failure, Jobs, WorkflowSpec, compact
from pandaflow.core.status import (
    JOB_TERMINAL,
    JobStatus,
    RunStatus,
)
from pandaflow.core.steering import Steering
from pandaflow.core.taskrun import BundleRun, TaskRun


class Engine(Steering):
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

    def __init__(self, spec: WorkflowSpec) -> None:
        super().__init__(spec)
        self.refused: list[tuple[ev.Event, str]] = []
        #: What was last recorded of executors.
        self._reasons: dict[str, str] = {}

    def handle(self, events: Iterable[ev.Event]) -> list[cmd.Command]:
        """Take in facts; return records and actions, in order.

        Late, doubled and foreign reports are ignored: a bundle reports once, under its number.
        A wish that cannot be granted changes nothing; ``refused`` has it with the reason, until
        the next call.
        """
        self._out: list[cmd.Command] = []
        self.refused = []
        for event in events:
            self._now = max(self._now, event.at)
            try:
                self._take_in(event)
            except WorkflowError as error:  # wishes are judged before they change anything
                self.refused.append((event, str(error)))
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
            case ev.BundlePlaced():
                self._bundle_placed(event)
            case ev.FragmentAppended():
                self._append(event)
            case ev.RunStarted():
                self._run_started(event)
            case ev.SlotsChanged():
                self._slots_changed(event)
            case ev.Ticked():
                pass
            case _:
                self._wish(event)

    def _settle(self) -> None:
        """Draw all conclusions: tasks bound, grown and judged; jobs sent; the run judged."""
        if self.status not in (RunStatus.RUNNING, RunStatus.PAUSED):
            return
        closed = True
        while closed:
            self._conclude()
            before = len(self._out)
            self._emit()
            # Looking for what to send next finds jobs that will never run: judge again.
            new = (record for record in self._out[before:] if isinstance(record, cmd.JobsMoved))
            closed = any(record.finish in JOB_TERMINAL for record in new)
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

    def _run_started(self, event: ev.RunStarted) -> None:
        self._slots = dict(event.slots)
        self._default = next(iter(event.slots), "")
        # Of a run that goes on the last driver may have recorded anything.
        fresh = self.status is RunStatus.DEFINED
        self._reasons = dict.fromkeys(event.slots, "") if fresh else {}
        if fresh:
            self._move_run(RunStatus.RUNNING, "driven")

    def _slots_changed(self, event: ev.SlotsChanged) -> None:
        self._slots[event.executor] = event.slots
        self._ahead[event.executor] = event.ahead
        if self._reasons.get(event.executor) != event.reason:
            self._reasons[event.executor] = event.reason
            self._out.append(cmd.ExecutorNoted(event.at, event.executor, event.slots, event.reason))

    def _bundle_placed(self, event: ev.BundlePlaced) -> None:
        bundle = self._bundles.get(event.bundle)
        if bundle is None:
            return
        about = (bundle.id, bundle.task, bundle.jobs, bundle.attempt)
        self._out.append(cmd.BundleSited(event.at, *about, event.site, event.reason))

    def _bundle_started(self, event: ev.BundleStarted) -> None:
        bundle = self._bundles.get(event.bundle)
        if bundle is not None and not bundle.started:
            self._start(bundle, event.at, event.worker, event.site)

    def _start(self, bundle: BundleRun, at: float, worker: str, site: str = "") -> None:
        bundle.started = True
        self.tasks[bundle.task].table.move(bundle.jobs, RUNNING)
        about = (bundle.id, bundle.task, bundle.jobs, bundle.attempt)
        self._out.append(cmd.BundleRunning(at, *about, worker, site))

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

    def _scatter(self, task: TaskRun, event: ev.BundleEnded, jobs: Jobs, finished: Jobs) -> None:
        if not task.spec.scatters:
            return
        done = set(finished)
        for position, count in sorted(event.sizes.items()):
            if jobs[position] in done:
                task.arrivals.add(jobs[position], count)
                self._out.append(cmd.ItemsRecorded(event.at, task.spec.id, jobs[position], count))

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
            task,
            jobs,
            JobStatus.RUNNING,
            JobStatus.PENDING,
            reason=f"blocked by {reason}",
            bundle=bundle.id,
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


def _finished(jobs: Jobs, event: ev.BundleEnded) -> Jobs:
    odd = event.failures or event.blocked or event.unstarted or event.skipped
    if not odd and event.detached is None:
        return jobs
    left = {*event.failures, *event.blocked, *event.unstarted, *event.skipped, event.detached}
    return compact([job for place, job in enumerate(jobs) if place not in left])
