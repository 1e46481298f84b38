"""A task while it runs: its job table and all that the engine keeps beside it."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pandaflow.core.chunking import Bounds, ChunkMap
from pandaflow.core.datasets import Arrivals
from pandaflow.core.jobtable import JobTable
from pandaflow.core.model import Input, Jobs, Resources, TaskSpec
from pandaflow.core.sizing import Pace
from pandaflow.core.status import JOB_LIVE, TASK_TERMINAL, JobStatus, TaskStatus


@dataclass(slots=True, kw_only=True, eq=False)
class BundleRun:
    """A bundle in flight.

    Attributes
    ----------
    needs : tuple of int
        Bundles whose values it reads.
    waiting : int
        How many of them are still in flight.
    started : bool
        Whether its worker said so.
    joins : bool
        Follows a job that an earlier bundle left running.
    """

    id: int
    task: int
    jobs: Jobs
    attempt: int
    executor: str
    needs: tuple[int, ...] = ()
    waiting: int = 0
    started: bool = False
    joins: bool = False


@dataclass(slots=True, eq=False)
class TaskRun:
    """State of a task within a run.

    Attributes
    ----------
    chunks : ChunkMap or None
        None until the task's inputs are known.
    closed : bool
        No more jobs will come.
    cursor : int
        No fresh job (pending or ready, never sent) is below.
    queue : deque of int
        Jobs to send again, first in first out.
    backoff : heap of (float, int)
        Jobs that wait until a time.
    charged, lost : dict of int to int
        Failures of a job that count against its retries, and losses that do not.
    overrides : dict of int to Resources
        Jobs that ask for more than the task does.
    limits : dict of int to int
        Largest bundle a job may travel in, after a bundle with it was lost.
    excused : set of int
        Jobs closed without anybody's fault: a branch ended early (``pandaflow.Skip``).
    waits_on : (int, int) or None
        (task, job) that must be sent before the next fresh job can be.
    nodes : int
        Bundles in flight.
    truth : bool or None
        A gate's verdict.
    followers : list of list of int
        For job graphs: the jobs that wait for each job.
    """

    spec: TaskSpec
    depth: int = 0
    status: TaskStatus = TaskStatus.DEFINED
    table: JobTable = field(init=False)
    chunks: ChunkMap | None = None
    closed: bool = False
    initial: JobStatus = JobStatus.PENDING
    pace: Pace = field(default_factory=Pace)
    cursor: int = 0
    queue: deque[int] = field(default_factory=deque)
    backoff: list[tuple[float, int]] = field(default_factory=list)
    charged: dict[int, int] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    overrides: dict[int, Resources] = field(default_factory=dict)
    limits: dict[int, int] = field(default_factory=dict)
    excused: set[int] = field(default_factory=set)
    arrivals: Arrivals = field(default_factory=lambda: Arrivals([], [0]))
    cut_at: int = 0
    waits_on: tuple[int, int] | None = None
    nodes: int = 0
    truth: bool | None = None
    consumers: list[int] = field(default_factory=list)
    mapped: Sequence[Input] = ()
    followers: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = JobTable(self.spec.name)
        self.mapped = tuple(slot for slot in self.spec.inputs if slot.mode == "mapped")
        self.followers = [[] for _ in self.spec.edges]
        for job, upstream in enumerate(self.spec.edges):
            for other in upstream:
                self.followers[other].append(job)

    @property
    def n(self) -> int:
        """Jobs so far."""
        return len(self.table)

    @property
    def terminal(self) -> bool:
        """Whether only a person can move the task."""
        return self.status in TASK_TERMINAL

    @property
    def bounds(self) -> Bounds:
        """The chunk map of a task that grows."""
        assert isinstance(self.chunks, Bounds)
        return self.chunks

    def resources(self, job: int) -> Resources:
        """Return what a job asks for now."""
        return (
            self.overrides.get(job, self.spec.resources) if self.overrides else self.spec.resources
        )

    def end_attempts(self, jobs: Jobs, start: JobStatus) -> None:
        """Count attempts that end without success, where jobs in the state ``start`` have one."""
        if start in JOB_LIVE:
            for job in jobs:
                self.table.ended[job] += 1

    def due(self, at: float) -> None:
        """Move jobs whose back-off is over into the queue."""
        while self.backoff and self.backoff[0][0] <= at:
            self.queue.append(heapq.heappop(self.backoff)[1])
