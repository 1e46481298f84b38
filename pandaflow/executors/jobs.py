"""The job loop: the jobs of a bundle run one after the other, each with an outcome of its own."""

from __future__ import annotations

import getpass
import os
import pickle
import re
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import blake2b
from time import perf_counter, thread_time
from typing import Any

from pandaflow.core.bundle import Blocked, BundleSpec, BundleValues, JobInputs, Missing
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Failure
from pandaflow.data.results import Claim, ResultStore
from pandaflow.executors import cache, capture, channel
from pandaflow.executors.command import CommandPayload, Measures, Surroundings, run_command
from pandaflow.executors.outcome import JobFailed, Skip, failure_of, one_line
from pandaflow.executors.supervise import JobStopped, Track
from pandaflow.executors.template import Fill, bind, load_payload, node_of, slot_of, unloadable


@dataclass(frozen=True, slots=True)
class JobContext:
    """The running job, as its payload sees it.

    Attributes
    ----------
    run : str
    task : str
        Name of the task.
    index, attempt : int
    name : str
        ``task[index]``, or the node's name in a job graph.
    seed : int
        63 bits that depend on run, task and index only: the same in every attempt.
    """

    run: str
    task: str
    index: int
    attempt: int
    name: str
    seed: int
    _root: str
    _bundle: int = field(default=-1, repr=False, compare=False)
    _outbox: channel.Outbox | None = field(default=None, repr=False, compare=False)

    @property
    def stopping(self) -> str:
        """Why the driver wants this job to stop; empty while it does not.

        A job that sees this should end soon, as it likes (:class:`pandaflow.Skip`, say):
        shortly afterwards it is stopped by force, and counts as skipped.
        """
        ask = channel.asked.get((self.run, self._bundle, self.index))
        return ask.reason if ask is not None else ""

    def send(self, body: Mapping[str, Any]) -> bool:
        """Send a small message to those who listen to the run; never waits.

        Parameters
        ----------
        body : dict
            JSON values, at most 8 KiB as text.

        Returns
        -------
        bool
            False if nobody can be reached, or too many messages wait already. True is no
            promise: messages may get lost, but never arrive twice, and arrive in order.

        Raises
        ------
        WorkflowError
            ``body`` is no dict of plain values, or too large.
        """
        text = channel.encode_body(body)
        if self._outbox is None:
            return False
        message = (self.task, self._bundle, self.index, self.attempt, time.time(), text)
        return self._outbox.put(message)

    @property
    def workdir(self) -> str:
        """A directory for this attempt alone, made when first asked for."""
        path = os.path.join(self._root, f"{self.index}.{self.attempt}")
        os.makedirs(path, exist_ok=True)
        return path


_running: ContextVar[JobLoop | None] = ContextVar("pandaflow_job", default=None)


def current_job() -> JobContext:
    """Return the job that this code runs in.

    Raises
    ------
    WorkflowError
        This code does not run in a job.
    """
    loop = _running.get()
    if loop is None:
        raise WorkflowError(
            "current_job() was called outside a job: it works in what a task's payload calls, "
            "and in threads only if they were started with the payload's contextvars"
        )
    return loop.context()


def job_seed(run: str, task: str, index: int) -> int:
    """Return a job's seed: a stable 63-bit hash of run, task name and index."""
    digest = blake2b(f"{run}/{task}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class JobLoop:
    """Runs the jobs of a bundle one after the other and keeps their outcomes.

    Parameters
    ----------
    spec : BundleSpec
    payload : bytes
    deps : sequence of BundleValues
    store : ResultStore
    sink : capture.Sink
    claim : Claim
    caller : bool
        Runs in the caller's thread, so that ctrl-C is the caller's.
    workdir : str
        Root of the work directories.
    """

    def __init__(
        self,
        spec: BundleSpec,
        payload: bytes,
        deps: Sequence[BundleValues],
        *,
        store: ResultStore,
        sink: capture.Sink,
        claim: Claim,
        caller: bool,
        workdir: str,
    ) -> None:
        self.spec, self.store, self.sink = spec, store, sink
        self._slot, self._caller = claim.slot, caller
        self.track = Track(
            soft=spec.kind == "command", memory=spec.resources.memory, asked=self._asked
        )
        self.root = os.path.join(workdir or _default_workdir(), spec.run, _folder(spec.name))
        #: Takes what the jobs send; None: nobody does.
        self.outbox: channel.Outbox | None = None
        self._described: dict[int, JobContext] = {}
        size = len(spec.jobs)
        self.values: list[Any] = [None] * size
        self.wall, self.cpu = array("f", bytes(4 * size)), array("f", bytes(4 * size))
        self.done, self.started = 0, 0.0
        self.failures: dict[int, Failure] = {}
        self.blocked: dict[int, str] = {}
        self.skipped: dict[int, str] = {}
        self.sizes: dict[int, int] = {}
        self.logs: dict[int, tuple[int, int]] = {}
        self.measures: dict[int, Measures] = {}
        self.keys: dict[int, str] = {}
        self.cached: list[int] = []
        self.truth: bool | None = None
        self._gather, self._apply = self._calls(payload, deps)

    def run(self) -> None:
        """Run the jobs from the first that has not ended; the body of a payload thread."""
        token = _running.set(self)
        self.started = time.time()
        try:
            with capture.routed(self.sink):
                while self._again():
                    pass
        finally:
            _running.reset(token)

    def context(self) -> JobContext:
        """Describe the running job."""
        position = self.track.position
        context = self._described.get(position)
        if context is None:
            context = self._describe(self.spec.jobs[position])
            self._described = {position: context}  # of the running job only
        return context

    def _describe(self, index: int) -> JobContext:
        spec = self.spec
        name = spec.node_names.get(index) or f"{spec.name}[{index}]"
        seed = job_seed(spec.run, spec.name, index)
        return JobContext(
            spec.run,
            spec.name,
            index,
            spec.attempt,
            name,
            seed,
            self.root,
            spec.bundle,
            self.outbox,
        )

    def _again(self) -> bool:
        """Run jobs; True if one was stopped and the next may begin."""
        try:
            return self._jobs()
        except JobStopped:
            return self._settled(self.track.position, None)

    def _jobs(self) -> bool:
        track, running, jobs = self.track, self.track.running, self.spec.jobs
        gather, apply, sink, slot = self._gather, self._apply, self.sink, self._slot
        values, walls, cpus, asked = self.values, self.wall, self.cpu, channel.asked
        began, used, said = perf_counter(), thread_time(), sink.heard
        for position in range(self.done, len(jobs)):
            if track.halt:
                return False
            if track.weighed:
                track.weigh()
                began = perf_counter()
            slot[0] = position
            # In this order, for the supervisor reads them in the other: no job is charged with
            # the time of the one before.
            track.began = began
            track.position = position
            if asked and self._unwanted(position):
                continue
            running[position] = True
            try:
                value = apply(gather(jobs[position]))
            except BaseException as error:  # noqa: BLE001 - user code may raise anything
                value = self._unusual(position, error)
            if running.pop(position, None) is None:
                return self._settled(position, value)
            values[position] = value
            now, cpu = perf_counter(), thread_time()
            walls[position], cpus[position] = now - began, cpu - used
            began, used = now, cpu
            if sink.heard != said:
                self.logs[position] = sink.mark()
                said = sink.heard
            self.done = position + 1
        return False

    def _settled(self, position: int, value: Any) -> bool:
        """Close a job that was stopped or detached while it ran; True if others may begin."""
        verdict = self.track.settle()
        if verdict.failure is not None:
            value = self._stopped(position, verdict.failure)
        self.values[position] = value
        self.wall[position] = perf_counter() - self.track.began
        if self.sink.pending:
            self.logs[position] = self.sink.mark()
        self.done = position + 1
        return not verdict.leave

    def _stopped(self, position: int, failure: Failure) -> Missing:
        """Forget what came of a job, for it was stopped before."""
        for outcomes in (self.failures, self.blocked, self.skipped, self.sizes):
            outcomes.pop(position, None)
        if failure.kind == channel.STOPPED:
            self.skipped[position] = failure.message
        else:
            self.failures[position] = failure
        return Missing(failure.message, absent=failure.kind == channel.STOPPED)

    def _asked(self, position: int) -> channel.Ask | None:
        """Return whether and how the driver wants a job of this loop to stop."""
        if not channel.asked:
            return None
        spec = self.spec
        return channel.asked.get((spec.run, spec.bundle, spec.jobs[position]))

    def _unwanted(self, position: int) -> bool:
        """Skip a job that was asked to stop before it began."""
        ask = self._asked(position)
        if ask is None:
            return False
        self.skipped[position] = ask.reason
        self.values[position] = Missing(ask.reason, absent=True)
        self.done = position + 1
        return True

    def _unusual(self, position: int, error: BaseException) -> Missing:
        """Sort out what came instead of a value."""
        if isinstance(error, Blocked):
            self.blocked[position] = str(error)
            return Missing(str(error))
        if isinstance(error, Skip):
            self.skipped[position] = one_line(error)
            return Missing(self.skipped[position], absent=True)
        if self._caller and isinstance(error, KeyboardInterrupt):
            raise error
        if isinstance(error, JobStopped):
            return Missing("stopped")
        self.failures[position] = failure = failure_of(error)
        return Missing(failure.message)

    # --- what a job calls ---

    def _calls(self, data: bytes, deps: Sequence[BundleValues]) -> tuple[Fill, Fill]:
        """Return how to get the inputs of a job (by index), and what to do with them."""
        spec = self.spec
        try:
            payload = load_payload(data)
        except JobFailed as error:
            return _refusal(error.failure), _refusal(error.failure)
        inputs = JobInputs(spec, deps, _load_item)
        if spec.kind == "graph":
            return (lambda job: (payload[job], inputs.upstream(job))), self._finish(_call_node)
        function = self._command(payload) if spec.kind == "command" else payload.function
        apply = bind(function, payload.args, payload.kwargs or {}, slot_of)
        return inputs.slots, self._finish(apply)

    def _finish(self, apply: Fill) -> Fill:
        if self.spec.cache:
            apply = self._cached(apply, self.spec.cache)
        if self.spec.scatters:
            apply = self._scattering(apply)
        return self._judging(apply) if self.spec.gate else apply

    def _command(self, payload: CommandPayload) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            position, context = self.track.position, self.context()
            around = Surroundings(
                job=context,
                workdir=os.path.join(self.root, f"{context.index}.{context.attempt}"),
                files=f"files/{_folder(context.task)}/{context.index}.{context.attempt}",
                resources=self.spec.resources,
                store=self.store,
                write=self.sink.write,
                wanted=lambda: self.track.wanted,
                measured=lambda measures: self.measures.__setitem__(position, measures),
            )
            return run_command(payload, args, kwargs, around)

        return call

    def _cached(self, apply: Fill, mode: cache.Mode) -> Fill:
        root, token = self.store.url.rpartition("/")[0], self.spec.token
        opened: cache.Opened = {}

        def call(inputs: Any) -> Any:
            position = self.track.position
            key = cache.job_key(token, inputs, mode)
            hit = cache.lookup(root, key, opened) if key else None
            if hit is not None:
                self.cached.append(position)
                return hit.value
            if key:
                self.keys[position] = key
            return apply(inputs)

        return call

    def _scattering(self, apply: Fill) -> Fill:
        def call(inputs: Any) -> Any:
            value = apply(inputs)
            if not isinstance(value, list | tuple):
                text = (
                    f"returned {type(value).__name__}, but its items are mapped over: return a list"
                )
                raise JobFailed(Failure(kind="output", message=text))
            self.sizes[self.track.position] = len(value)
            return value

        return call

    def _judging(self, apply: Fill) -> Fill:
        def call(inputs: Any) -> Any:
            value = apply(inputs)
            self.truth = bool(value)
            return value

        return call


def _refusal(failure: Failure) -> Fill:
    def refuse(inputs: Any) -> Any:
        raise JobFailed(failure)

    return refuse


def _call_node(inputs: Any) -> Any:
    """Run one node of a job graph: its pickled call, and the values of the nodes it reads."""
    data, upstream = inputs
    try:
        function, args, kwargs = pickle.loads(data)
    except BaseException as error:  # noqa: BLE001 - unpickling imports and runs user code
        raise JobFailed(unloadable(error)) from None
    return bind(function, args, kwargs, node_of)(upstream)


def _load_item(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except BaseException as error:  # noqa: BLE001 - as above
        raise JobFailed(failure_of(error, "input")) from None


def _folder(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def _default_workdir() -> str:
    return os.path.join(tempfile.gettempdir(), f"pandaflow-{getpass.getuser()}")
