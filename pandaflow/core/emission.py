"""What goes next: the jobs to hand over now, in which bundles, to which executor.

Priority first, then deepest first: a chain is driven to its end before its next chunk is begun,
so outputs of intermediate stages live shortly. Root jobs are sent a window ahead; jobs
whose inputs are in flight follow at once, as nodes with edges, and Dask starts them without
asking here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pandaflow.core import commands as cmd
from pandaflow.core.jobtable import (
    BLOCKED,
    CANCELLED,
    CLOSED,
    FAILED,
    FRESH,
    NOT_FRESH,
    PENDING,
    QUEUED,
    READY,
    SENT,
)
from pandaflow.core.model import Jobs, Output, Resources, compact
from pandaflow.core.moves import Moves
from pandaflow.core.sizing import (
    MAX_JOBS,
    MAX_OUTSTANDING,
    bundle_seconds,
    bundle_size,
    refill_below,
    window,
)
from pandaflow.core.status import JobStatus, RunStatus, TaskStatus
from pandaflow.core.taskrun import BundleRun, TaskRun

#: Jobs that lie further apart do not share a bundle: it carries the items between them too.
_SPAN = 10 * MAX_JOBS
_SENDABLE = frozenset({TaskStatus.READY, TaskStatus.SCOUTING, TaskStatus.RUNNING})


@dataclass(frozen=True, slots=True)
class Pick:
    """Jobs that may travel together."""

    jobs: Jobs
    resources: Resources


class Emission(Moves):
    """Picks and sends bundles."""

    def _emit(self) -> None:
        if self.status is not RunStatus.RUNNING:
            return
        for executor, slots in self._slots.items():
            if self._runnable[executor] <= refill_below(slots):
                self._filling.add(executor)
        while any(self._send_next(task) for task in self._order):
            pass

    def _send_next(self, task: TaskRun) -> bool:
        """Send one bundle of a task, if there is one to send and room for it."""
        if task.status not in _SENDABLE or len(self._bundles) >= MAX_OUTSTANDING:
            return False
        executor = self._executor(task)
        slots = self._slots.get(executor, 0)
        if not slots or (not task.pace.measured and task.nodes >= window(slots)):
            return False
        pick = self._pick(task, slots)
        if pick is None:
            return False
        needs = self._bundles_for(task, pick.jobs)
        waiting = sum(1 for need in needs if need in self._bundles)
        if not waiting and not self._has_room(task, executor, slots):
            self._put_back(task, pick)
            return False
        attempt = task.table.ended[pick.jobs[0]] + 1
        self._send(task, pick.jobs, attempt, pick.resources, needs=needs)
        return True

    def _has_room(self, task: TaskRun, executor: str, slots: int) -> bool:
        """Tell whether a runnable node may be sent now.

        The window is filled in one go when it has run low, and then left alone for a while:
        a slice of many nodes costs little more than a slice of one.
        """
        ahead, seconds = self._ahead.get(executor, 0.0), bundle_seconds(task.pace)
        if self._runnable[executor] <= refill_below(slots, ahead, seconds):
            self._filling.add(executor)
        elif self._runnable[executor] >= window(slots, ahead, seconds):
            self._filling.discard(executor)
        return executor in self._filling

    # --- picking ------------------------------------------------------------------------

    def _pick(self, task: TaskRun, slots: int) -> Pick | None:
        if task.queue:
            pick = self._pick_queued(task, slots)
            if pick is not None:
                return pick
        pick = self._pick_fresh(task, slots)
        if pick is None and task.queue:  # it goes without inputs that will never exist
            pick = self._pick_queued(task, slots)
        return pick

    def _put_back(self, task: TaskRun, pick: Pick) -> None:
        if task.table.state[pick.jobs[0]] == QUEUED:
            task.queue.extendleft(reversed(pick.jobs))

    def _pick_queued(self, task: TaskRun, slots: int) -> Pick | None:
        """Take jobs that are tried again: alike in attempt and resources."""
        queue, table = task.queue, task.table
        room = self._bundle_size(task, max(1, len(queue)), slots)
        jobs: list[int] = []
        while queue and len(jobs) < room:
            job = queue[0]
            if table.state[job] != QUEUED:  # cancelled meanwhile
                queue.popleft()
                continue
            if jobs and not (self._alike(task, jobs[0], job) and abs(job - jobs[0]) < _SPAN):
                break
            if not self._can_go(task, job):
                queue.popleft()
                continue
            room = min(room, task.limits.get(job, room))
            if len(jobs) >= room:
                break
            jobs.append(queue.popleft())
        if not jobs:
            return None
        return Pick(compact(sorted(jobs)), task.resources(jobs[0]))

    def _bundle_size(self, task: TaskRun, remaining: int, slots: int) -> int:
        if task.spec.resources.parallel:  # each starts ranks of its own
            return 1
        return bundle_size(task.pace, remaining, slots)

    def _can_go(self, task: TaskRun, job: int) -> bool:
        """Check the inputs of a queued job once more: they may have been lost meanwhile."""
        if not task.spec.inputs and not task.spec.edges:
            return True
        verdict, reason = self._evaluate(task, job)
        if verdict == "go":
            return True
        one = range(job, job + 1)
        task.table.move(one, PENDING)
        task.table.move(one, BLOCKED)
        self._moved(task, one, JobStatus.READY, JobStatus.PENDING, reason="an input is made again")
        if verdict != "wait":
            self._close(task, one, reason, excused=verdict == "excuse")
        return False

    def _alike(self, task: TaskRun, one: int, other: int) -> bool:
        same_attempt = task.table.ended[one] == task.table.ended[other]
        return same_attempt and task.resources(one) == task.resources(other)

    def _pick_fresh(self, task: TaskRun, slots: int) -> Pick | None:
        """Take the next jobs that were never sent and whose inputs exist or are coming."""
        table = task.table
        while True:
            if task.waits_on is not None and self._still_waits(task):
                return None
            first = table.first(FRESH, task.cursor, task.n)
            if first is None:
                task.cursor = task.n
                return None
            task.cursor = first
            if task.status is TaskStatus.SCOUTING and first >= task.spec.scouts:
                return None
            remaining = table.counts[READY] + table.counts[PENDING]
            last = first + (1 if task.spec.edges else self._bundle_size(task, remaining, slots))
            if task.status is TaskStatus.SCOUTING or self._wants_scouts(task):
                last = first + 1
            stop = table.first(NOT_FRESH, first, min(last, task.n))
            last = min(last, task.n) if stop is None else stop
            last = self._alike_from(task, first, last)
            last = self._coming(task, first, last)
            if last > first:
                return Pick(range(first, last), task.resources(first))
            if task.waits_on is not None:
                return None
            if task.table.first(FRESH, first, first + 1) is not None:
                return None

    def _wants_scouts(self, task: TaskRun) -> bool:
        return task.status is TaskStatus.READY and task.spec.scouts > 0

    def _alike_from(self, task: TaskRun, first: int, last: int) -> int:
        """Return up to where jobs are alike in state, attempt and resources."""
        table = task.table
        same_state = table.state.count(table.state[first], first, last) == last - first
        if same_state and not task.overrides and len(set(table.ended[first:last])) == 1:
            return last
        for job in range(first + 1, last):
            if table.state[job] != table.state[first] or not self._alike(task, first, job):
                return job
        return last

    def _still_waits(self, task: TaskRun) -> bool:
        assert task.waits_on is not None
        number, job = task.waits_on
        if FRESH.match(self.tasks[number].table.state, job):
            return True
        task.waits_on = None
        return False

    def _coming(self, task: TaskRun, first: int, last: int) -> int:
        """Return up to where the jobs ``[first, last)`` can go, from the first on.

        Settles the first job when it cannot go: notes what it waits for, blocks or closes it.
        """
        if self._barrier(task) == "wait":
            return first
        if self._all_coming(task, first, last):
            return last
        if last - first > 1:
            # Bisect: the good prefix is usually all or most of it.
            low, high = first, last
            while high - low > 1:
                middle = (low + high) // 2
                if self._all_coming(task, first, middle):
                    low = middle
                else:
                    high = middle
            if low > first:
                return low
        self._settle_first(task, first)
        return first

    def _all_coming(self, task: TaskRun, first: int, last: int) -> bool:
        for number, lo, hi, _ in self._needs(task, first, last):
            upstream = self.tasks[number]
            if upstream.table.first(self._lacking(task, upstream), lo, hi) is not None:
                return False
        return self._barrier(task) == "go"

    def _settle_first(self, task: TaskRun, job: int) -> None:
        verdict, reason = self._evaluate(task, job)
        if verdict in ("close", "excuse"):
            self._close(task, range(job, job + 1), reason, excused=verdict == "excuse")
        elif verdict == "wait":
            task.waits_on = self._unsent_need(task, job)
            if task.waits_on is None:
                task.table.move((job,), BLOCKED)
        else:
            # Within its goal: some inputs are gone, and the job goes with the others.
            task.table.move((job,), QUEUED)
            self._moved(
                task, range(job, job + 1), JobStatus.PENDING, JobStatus.READY, reason="inputs exist"
            )
            task.queue.append(job)

    def _unsent_need(self, task: TaskRun, job: int) -> tuple[int, int] | None:
        for number, lo, hi, _ in self._needs(task, job, job + 1):
            fresh = self.tasks[number].table.first(FRESH, lo, hi)
            if fresh is not None:
                return number, fresh
        return None

    # --- sending ------------------------------------------------------------------------

    def _bundles_for(self, task: TaskRun, jobs: Jobs) -> tuple[int, ...]:
        """Return the bundles that hold, or will hold, what these jobs read."""
        found: set[int] = set()
        spans = [(jobs[0], jobs[-1] + 1)] if isinstance(jobs, range) else [(j, j + 1) for j in jobs]
        for first, last in spans:
            for number, lo, hi, _ in self._needs(task, first, last):
                found |= self.tasks[number].table.bundles(lo, hi)
            for slot in task.spec.inputs:
                for leaf in self.leaves_of(task, slot, first, last):
                    if not isinstance(leaf.of, Output) and hasattr(leaf.of, "task"):
                        upstream = self.tasks[leaf.of.task]
                        for job in upstream.arrivals.jobs_of(leaf.lo, leaf.hi):
                            found.add(upstream.table.bundle[job])
        found.discard(-1)
        return tuple(sorted(found))

    def _send(
        self,
        task: TaskRun,
        jobs: Jobs,
        attempt: int,
        resources: Resources,
        *,
        needs: tuple[int, ...],
        join: int | None = None,
    ) -> None:
        number, executor = self.next_bundle, self._executor(task)
        self.next_bundle += 1
        start = task.table.status(jobs[0])
        task.table.move(jobs, SENT)
        task.table.place(jobs, number)
        waiting = [need for need in needs if need in self._bundles]
        bundle = BundleRun(
            id=number,
            task=task.spec.id,
            jobs=jobs,
            attempt=attempt,
            executor=executor,
            needs=needs,
            waiting=len(waiting),
            joins=join is not None,
        )
        self._bundles[number] = bundle
        self._held[number] = (task.spec.id, jobs)
        task.nodes += 1
        for need in needs:
            self._readers[need] += 1
        for need in waiting:
            self._dependents.setdefault(need, []).append(number)
        if not waiting:
            self._runnable[executor] += 1
        self._begin(task)
        self._out.append(
            cmd.BundleSent(self._now, number, task.spec.id, jobs, attempt, start, executor)
        )
        self._out.append(
            cmd.EmitBundle(
                bundle=number,
                task=task.spec.id,
                jobs=jobs,
                attempt=attempt,
                executor=executor,
                resources=resources,
                needs=needs,
                absent=self._absent(task, jobs),
                join=join,
                priority=(task.spec.priority, task.depth, -jobs[0] if task.spec.edges else 0),
            )
        )

    def _begin(self, task: TaskRun) -> None:
        if task.status is TaskStatus.READY:
            scouting = 0 < task.spec.scouts < task.n
            finish = TaskStatus.SCOUTING if scouting else TaskStatus.RUNNING
            self._move_task(task, finish, "first jobs sent")

    def _absent(self, task: TaskRun, jobs: Jobs) -> tuple[tuple[int, int], ...]:
        """Return upstream jobs that are left out of these jobs' lists."""
        out: set[tuple[int, int]] = set()
        for number, lo, hi, lenient in self._needs(task, jobs[0], jobs[-1] + 1):
            upstream = self.tasks[number]
            if lenient and (upstream.excused or upstream.status is TaskStatus.FINISHED):
                for piece in upstream.table.jobs_in((FAILED, CANCELLED, CLOSED), lo, hi):
                    out |= {(number, job) for job in piece}
        return tuple(sorted(out))
