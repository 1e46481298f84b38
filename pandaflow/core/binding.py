"""From datasets to jobs: when inputs are known, how many jobs there are, who waits for whom.

One idea serves everything dynamic: a task's inputs are a dataset that may still be open.
Partial chaining, streams, scattered lists, conditions and loops all come down to
:meth:`Binding._bind`, which is the one job generator.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Literal

from pandaflow.core import chunking
from pandaflow.core import commands as cmd
from pandaflow.core.chunking import Bounds, Even, NoItems
from pandaflow.core.datasets import (
    Arrivals,
    Leaf,
    Size,
    atoms,
    leaves,
    loops_in,
    makers,
    readers,
    resolve,
    size,
)
from pandaflow.core.errors import InvalidTransition, WorkflowError
from pandaflow.core.jobtable import (
    CANCELLED,
    CLOSED,
    FAILED,
    NOT_COMING,
    NOT_FINISHED,
    PENDING,
    READY,
)
from pandaflow.core.loops import LoopRun, read_by
from pandaflow.core.model import (
    Choice,
    Dataset,
    File,
    Input,
    Jobs,
    LoopEnd,
    Output,
    Scattered,
    Source,
    TaskSpec,
    WorkflowSpec,
)
from pandaflow.core.status import TASK_TRANSITIONS, JobStatus, RunStatus, TaskStatus
from pandaflow.core.taskrun import BundleRun, TaskRun

_SUCCEEDED = (TaskStatus.DONE, TaskStatus.FINISHED)
Verdict = Literal["go", "wait", "close", "excuse"]


def urgency(task: TaskRun) -> tuple[int, int, int]:
    """Order tasks by priority, then deepest first."""
    return -task.spec.priority, -task.depth, task.spec.id


class Binding:
    """The tasks of a run and what is known of their inputs."""

    def __init__(self, spec: WorkflowSpec) -> None:
        self.spec = spec
        self.status = RunStatus.DEFINED
        self.tasks: dict[int, TaskRun] = {}
        self._out: list[cmd.Command] = []
        self._now = 0.0
        self._default = ""
        self._cancelled = ""
        self._slots: dict[str, int] = {}
        self._ahead: dict[str, float] = {}
        self._bundles: dict[int, BundleRun] = {}
        self._dependents: dict[int, list[int]] = {}
        self._runnable: dict[str, int] = defaultdict(int)
        self._filling: set[str] = set()
        self._readers: dict[int, int] = defaultdict(int)
        self._held: dict[int, tuple[int, Jobs]] = {}
        self._bad_news: deque[tuple[TaskRun, Jobs]] = deque()
        self._just_ended: deque[TaskRun] = deque()
        self.next_bundle = 1
        self._active: list[TaskRun] = []
        self._order: list[TaskRun] = []
        self._names: set[str] = set()
        self._after_loops: list[TaskRun] = []
        self._loops: dict[int, LoopRun] = {loop.id: LoopRun(loop) for loop in spec.loops}
        self._open_loops = list(self._loops.values())
        self._files = {s.id: s.files for s in spec.sources if s.kind == "files"}
        self._sources = {s.id: Size(s.n, s.kind != "stream") for s in spec.sources}
        for task in spec.tasks:
            self._add(task)
        self._reorder()

    # --- what the arithmetic of datasets asks (datasets.World) --------------------------------

    def source_size(self, source: int) -> Size:
        """Size of a source."""
        return self._sources[source]

    def task_size(self, task: int) -> Size:
        """Jobs of a task."""
        run = self.tasks[task]
        return Size(run.n, run.closed, known=run.chunks is not None)

    def arrivals(self, task: int) -> Arrivals:
        """Items of a scattering task."""
        return self.tasks[task].arrivals

    def ended(self, task: int) -> bool:
        """Whether a task has succeeded, so that it will bring no more items."""
        return self.tasks[task].status in _SUCCEEDED

    def verdict(self, gate: int) -> bool | None:
        """What a gate said."""
        return self.tasks[gate].truth

    def loop_result(self, loop: int) -> Dataset | None:
        """A loop's last state."""
        return self._loops[loop].result

    def in_flight(self, bundle: int) -> bool:
        """Whether somebody still has to report on a bundle."""
        return bundle in self._bundles

    def bundles_in_flight(self) -> list[BundleRun]:
        """Return the bundles that somebody still has to report on."""
        return list(self._bundles.values())

    # --- tasks --------------------------------------------------------------------------

    def _add(self, spec: TaskSpec) -> TaskRun:
        run = TaskRun(spec)
        self.tasks[spec.id] = run
        self._names.add(spec.name)
        if spec.edges:
            run.consumers.append(spec.id)
        if any(True for dataset in read_by(spec) for _ in loops_in(dataset)):
            self._after_loops.append(run)
        self._subscribe(run)
        return run

    def _subscribe(self, task: TaskRun) -> None:
        """Note a task as a consumer of those that it reads or waits for."""
        for maker in {m for dataset in read_by(task.spec) for m in self._makers(dataset)}:
            if task.spec.id not in self.tasks[maker].consumers:
                self.tasks[maker].consumers.append(task.spec.id)
            task.depth = max(task.depth, self.tasks[maker].depth + 1)

    def _makers(self, dataset: Dataset) -> set[int]:
        """Return the tasks whose outputs a dataset may hold, by way of loops so far too."""
        found = set(makers(dataset))
        for number in loops_in(dataset):
            current = self._loops[number].current if number in self._loops else None
            found |= set() if current is None else self._makers(current)
        return found

    def _reorder(self) -> None:
        """Put the tasks that may have something to do in order: priority, then deepest first."""
        self._active = [task for task in self.tasks.values() if not task.terminal]
        self._order = sorted(self._active, key=urgency)

    def _move_task(self, task: TaskRun, finish: TaskStatus, reason: str = "") -> None:
        start = task.status
        if (start, finish) not in TASK_TRANSITIONS:
            raise InvalidTransition(f"task {task.spec.name}", start, finish)
        task.status = finish
        self._out.append(cmd.TaskMoved(self._now, task.spec.id, start, finish, reason))
        if task.terminal:
            self._active.remove(task)
            self._order.remove(task)
            self._just_ended.append(task)

    def _consumers_of(self, task: TaskRun) -> list[TaskRun]:
        """Return the tasks that read a task's outputs, by way of choices and loops too."""
        return [self.tasks[number] for number in task.consumers]

    def _downstream(self, number: int) -> set[int]:
        seen: set[int] = set()
        todo = [number]
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += self.tasks[one].consumers
        return seen

    # --- binding ------------------------------------------------------------------------

    def _bind(self, task: TaskRun) -> bool:
        """Learn what can be learnt of a task's inputs. Return whether anything changed."""
        if task.closed or task.terminal:
            return False
        if task.chunks is None:
            if self._guarded_out(task):
                self._move_task(task, TaskStatus.ABORTED, "its branch was not taken")
                return True
        try:
            if self._guards_hold(task) and self._cut(task):
                return True
        except WorkflowError as error:
            self._move_task(task, TaskStatus.FAILED, str(error))
            return True
        dead = self._dead(task)
        if dead and task.table.terminal() == task.n:
            self._move_task(task, TaskStatus.FAILED, dead)
            return True
        return False

    def _guarded_out(self, task: TaskRun) -> bool:
        return any(
            self.tasks[gate].truth not in (None, wanted) for gate, wanted in task.spec.guards
        )

    def _guards_hold(self, task: TaskRun) -> bool:
        return all(self.tasks[gate].truth is wanted for gate, wanted in task.spec.guards)

    def _dead(self, task: TaskRun) -> str:
        """Return why a task's inputs will never be complete, or nothing."""
        for gate, _ in task.spec.guards:
            if self.tasks[gate].terminal and self.tasks[gate].truth is None:
                return f"{self.tasks[gate].spec.name} came to no decision"
        for slot in task.spec.inputs:
            reason = self._dead_dataset(slot.dataset)
            if reason:
                return reason
        return ""

    def _dead_dataset(self, dataset: Dataset) -> str:
        return next(filter(None, map(self._dead_atom, atoms(dataset))), "")

    def _dead_atom(self, dataset: Dataset) -> str:
        if isinstance(dataset, LoopEnd):
            loop = self._loops[dataset.loop]
            if loop.result is not None:
                return self._dead_dataset(loop.result)
            dead = loop.dead or self._loop_skipped(loop)
            return f"{loop.spec.name} came to no end" if dead else ""
        if isinstance(dataset, Choice):
            gate = self.tasks[dataset.gate]
            if gate.truth is not None:
                return self._dead_dataset(dataset.then if gate.truth else dataset.otherwise)
            return f"{gate.spec.name} came to no decision" if gate.terminal else ""
        if isinstance(dataset, Output | Scattered):
            upstream = self.tasks[dataset.task]
            partial = isinstance(dataset, Scattered) and upstream.status not in _SUCCEEDED
            if upstream.terminal and (partial or not upstream.closed):
                return f"{upstream.spec.name} is {upstream.status}"
        return ""

    def _cut(self, task: TaskRun) -> bool:
        """Cut the items known so far into jobs."""
        spec = task.spec
        if not self._others_known(task):
            return False
        if not task.mapped:
            return self._cut_static(task)
        sizes = [size(self, slot.dataset) for slot in task.mapped]
        if not all(s.known for s in sizes):
            return False
        closed, n = all(s.closed for s in sizes), min(s.n for s in sizes)
        if closed and len({s.n for s in sizes}) > 1:
            raise WorkflowError(
                f"task {spec.name!r}: zipped inputs have {', '.join(str(s.n) for s in sizes)} items"
            )
        if task.chunks is None and closed and not self._lists_of(task):
            chunks = chunking.split(spec.split, n, self._weighing(task), task=spec.name)
            if spec.single and n == 0:
                chunks = Even(0, 1)  # "one job, gets the list of everything": an empty one
            task.chunks = chunks
            return self._grew(task, chunks.n_jobs, closed=True)
        return self._cut_open(task, n, closed)

    def _others_known(self, task: TaskRun) -> bool:
        """Whether the inputs that every job gets are known: lists to their end."""
        for slot in task.spec.inputs:
            if slot.mode != "mapped":
                known = size(self, slot.dataset)
                if not known.known or (slot.mode == "whole" and not known.closed):
                    return False
        return True

    def _cut_static(self, task: TaskRun) -> bool:
        n = task.spec.n_static or 0
        task.chunks = NoItems(n)
        return self._grew(task, n, closed=True)

    def _lists_of(self, task: TaskRun) -> Arrivals | None:
        """Return the arrivals a task maps over directly: its chunks stay within one list."""
        places = {resolve(self, slot.dataset) for slot in task.mapped}
        rule = task.spec.split
        if len(places) == 1 and isinstance(place := places.pop(), Scattered):
            if rule.n_jobs is None or rule.items_per_job is not None:
                return self.tasks[place.task].arrivals
        return None

    def _cut_open(self, task: TaskRun, n: int, closed: bool) -> bool:
        rule = task.spec.split
        step = rule.items_per_job or (None if rule.given else 1)
        if step is None:
            return closed and self._cut_late(task, n)
        if task.chunks is None:
            task.chunks = Bounds()
        made = 0
        arrivals = self._lists_of(task)
        if arrivals is not None:
            while task.cut_at < len(arrivals.jobs):
                task.cut_at += 1
                made += chunking.grow(task.bounds, arrivals.starts[task.cut_at], step, closed=True)
        else:
            made = chunking.grow(task.bounds, n, step, closed=closed)
        if made or closed or task.status is TaskStatus.DEFINED:
            return self._grew(task, task.bounds.n_jobs, closed=closed)
        return False

    def _cut_late(self, task: TaskRun, n: int) -> bool:
        """Cut by a rule that had to wait for the dataset's end."""
        chunks = chunking.split(task.spec.split, n, self._weighing(task), task=task.spec.name)
        task.chunks = Even(0, 1) if task.spec.single and n == 0 else chunks
        return self._grew(task, task.chunks.n_jobs, closed=True)

    def _weighing(self, task: TaskRun) -> Sequence[File] | None:
        for slot in task.mapped:
            if isinstance(slot.dataset, Source) and slot.dataset.id in self._files:
                return self._files[slot.dataset.id]
        return None

    def _grew(self, task: TaskRun, n: int, *, closed: bool) -> bool:
        upstream = [m for slot in task.spec.inputs for m in self._makers(slot.dataset)]
        waits = bool(upstream or task.spec.after or task.spec.edges)
        code = PENDING if waits else READY
        task.initial = JobStatus.PENDING if waits else JobStatus.READY
        task.table.grow(n, code)
        task.closed = closed
        self._out.append(cmd.TaskGrew(self._now, task.spec.id, n, closed, task.initial))
        if task.status is TaskStatus.DEFINED:
            self._move_task(task, TaskStatus.READY, f"{n} job(s)" if closed else "open")
        return True

    # --- who waits for whom -----------------------------------------------------------------

    def _items(self, task: TaskRun, slot: Input, first: int, last: int) -> tuple[int, int]:
        """Return the items of a slot that the jobs ``[first, last)`` read."""
        if slot.mode == "mapped":
            assert task.chunks is not None
            return task.chunks.items(first)[0], task.chunks.items(last - 1)[1]
        return 0, size(self, slot.dataset).n

    def leaves_of(self, task: TaskRun, slot: Input, first: int, last: int) -> Iterator[Leaf]:
        """Yield what the jobs ``[first, last)`` read through one slot."""
        return leaves(self, slot.dataset, *self._items(task, slot, first, last))

    def _needs(self, task: TaskRun, first: int, last: int) -> Iterator[tuple[int, int, int, bool]]:
        """Yield (upstream task, lo, hi, lenient) for the jobs ``[first, last)``.

        ``lenient``: the slot takes lists, which may go without absent items.
        """
        for slot in task.spec.inputs:
            lenient = slot.mode == "whole" or (slot.mode == "mapped" and task.spec.lists)
            for leaf in self.leaves_of(task, slot, first, last):
                if isinstance(leaf.of, Output):
                    yield leaf.of.task, leaf.lo, leaf.hi, lenient
        for job in range(first, last) if task.spec.edges else ():
            for upstream in task.spec.edges[job]:
                yield task.spec.id, upstream, upstream + 1, False

    def _reading(
        self, consumer: TaskRun, number: int, lo: int, hi: int
    ) -> Iterator[tuple[int, int]]:
        """Yield ranges of jobs of ``consumer`` that read the jobs ``[lo, hi)`` of a task."""
        if consumer.chunks is None:
            return
        if consumer.spec.id == number:
            followers = (later for job in range(lo, hi) for later in consumer.followers[job])
            yield from ((later, later + 1) for later in followers)
            return
        if any(number in self._makers(barrier) for barrier in consumer.spec.after):
            yield 0, consumer.n
            return
        for slot in consumer.spec.inputs:
            for a, b in readers(self, slot.dataset, number, lo, hi):
                if slot.mode != "mapped":
                    yield 0, consumer.n
                    break
                first, last = consumer.chunks.jobs(a, b)
                yield first, min(last, consumer.n)

    def _barrier(self, task: TaskRun) -> Verdict:
        """Judge the barriers of a task."""
        for barrier in task.spec.after:
            verdict = self._passed(barrier)
            if verdict != "go":
                return verdict
        return "go"

    def _passed(self, dataset: Dataset) -> Verdict:
        """Judge whether all that makes a dataset has succeeded, branches not taken apart."""
        for atom in atoms(dataset):
            decided = resolve(self, atom)
            verdict: Verdict = "go"
            if decided is None:
                verdict = "close" if self._dead_atom(atom) else "wait"
            elif isinstance(decided, Output | Scattered):
                upstream = self.tasks[decided.task]
                if upstream.status not in _SUCCEEDED:
                    verdict = "close" if upstream.terminal else "wait"
            elif decided is not atom or not isinstance(decided, Source):
                verdict = self._passed(decided)
            if verdict != "go":
                return verdict
        return "go"

    def _evaluate(self, task: TaskRun, job: int) -> tuple[Verdict, str]:
        """Judge one job: it can go, must wait, or will never run."""
        barrier = self._barrier(task)
        if barrier != "go":
            return barrier, "a task it must come after did not succeed"
        verdict: Verdict = "go"
        for number, lo, hi, lenient in self._needs(task, job, job + 1):
            one, reason = self._evaluate_need(task, number, lo, hi, lenient)
            if one in ("close", "excuse"):
                return one, reason
            if one == "wait":
                verdict = "wait"
        return verdict, ""

    def _evaluate_need(
        self, task: TaskRun, number: int, lo: int, hi: int, lenient: bool
    ) -> tuple[Verdict, str]:
        upstream = self.tasks[number]
        lacking = self._lacking(task, upstream)
        if upstream.table.first(lacking, lo, hi) is None:
            return "go", ""
        gone = upstream.table.jobs_in((FAILED, CANCELLED, CLOSED), lo, hi)
        if not gone:
            return "wait", ""
        verdict, reason = self._tolerate(task, upstream, gone, lenient)
        if verdict != "go":
            return verdict, reason
        if sum(map(len, gone)) == hi - lo:
            return "excuse", f"none of the jobs of {upstream.spec.name} that it reads gave anything"
        edges = [lo, *(edge for piece in gone for edge in (piece.start, piece.stop)), hi]
        for a, b in zip(edges[::2], edges[1::2], strict=True):
            if upstream.table.first(lacking, a, b) is not None:
                return "wait", ""
        return "go", ""

    def _tolerate(
        self, task: TaskRun, upstream: TaskRun, gone: list[range], lenient: bool
    ) -> tuple[Verdict, str]:
        """Judge whether a job may go without the outputs of the jobs ``gone``."""
        name = upstream.spec.name
        culprit = next((j for piece in gone for j in piece if j not in upstream.excused), None)
        if culprit is None:
            return ("go", "") if lenient else ("excuse", f"{name} ended this branch early")
        why = f"{name}[{culprit}] is {upstream.table.status(culprit)}"
        if upstream.spec.goal >= 1 or upstream is task:  # a job graph cannot wait for its end
            return "close", why
        if not upstream.terminal:
            return "wait", ""
        if upstream.status is TaskStatus.FINISHED:
            return ("go", "") if lenient else ("excuse", f"{why}, within its goal")
        return "close", f"{name} is {upstream.status}"

    def _lacking(self, task: TaskRun, upstream: TaskRun) -> re.Pattern[bytes]:
        """Return the pattern of upstream states that hold a job up.

        Where both run on one executor a job may be sent ahead of inputs that are in flight:
        the edge is in the Dask graph. Elsewhere its inputs must be persisted first.
        """
        return NOT_COMING if self._executor(task) == self._executor(upstream) else NOT_FINISHED

    def _executor(self, task: TaskRun) -> str:
        return task.spec.executor or self._default

    def _loop_skipped(self, loop: LoopRun) -> bool:
        """Whether a loop will never begin: its branch was not taken, or not decided."""
        return loop.iteration < 0 and any(
            self.tasks[gate].terminal and self.tasks[gate].truth is not wanted
            for gate, wanted in loop.spec.guards
        )
