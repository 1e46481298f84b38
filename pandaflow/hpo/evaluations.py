"""How the trials of a study are evaluated by a run, and how their outcomes come back."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from pandaflow.authoring.fragments import trace_fragment
from pandaflow.core import commands as cmd
from pandaflow.core.errors import DataError, WorkflowError
from pandaflow.core.model import SourceSpec
from pandaflow.core.status import JobStatus, RunStatus
from pandaflow.data.items import StoredItems
from pandaflow.hpo.book import Book
from pandaflow.hpo.engine import Outcome
from pandaflow.hpo.objective import Trial, ticket_of, wants_trial
from pandaflow.hpo.searching import SearchPlan, evaluating, read_value
from pandaflow.workflows import WorkflowFunction

#: A trial's number, which repeat of it, the objective's arguments, a seed.
Work = tuple[int, int, Mapping[str, Any], int]
Found = Iterator[tuple[int, Outcome]]

#: Why a job of a trial that was given up was stopped.
PRUNED = "the study's pruner has given it up"

_ENDED = (JobStatus.FAILED, JobStatus.CLOSED, JobStatus.CANCELLED)


class Evaluations(Protocol):
    """Sends trials into a run and tells their outcomes."""

    def send(self, work: Sequence[Work]) -> None:
        """Have trials evaluated; what the run has already is left out."""
        ...

    def earlier(self) -> Found:
        """Yield what ended while nobody drove the study, in the order in which it ended."""
        ...

    def concerns(self, record: cmd.Record) -> bool:
        """Whether a record may be about a trial; quick, called for every record."""
        ...

    def outcomes(self, records: Sequence[cmd.Record]) -> Found:
        """Yield the trials that ended with these records."""
        ...

    def is_trial(self, task: str) -> bool:
        """Whether a task evaluates trials."""
        ...

    def stop(self, number: int, reason: str) -> bool:
        """Stop the evaluation of a trial; False if it cannot be reached."""
        ...

    def close(self) -> None:
        """Say that no more trials will come."""
        ...


def evaluations(run: Any, plan: SearchPlan, book: Book) -> Evaluations:
    """Return how ``plan`` has its trials evaluated."""
    return JobsOfOneTask(run, plan, book) if plan.task is not None else OwnTasks(run, plan, book)


def _failed(number: int, repeat: int, why: str) -> dict[str, Any]:
    state = "pruned" if why == PRUNED else "failed"
    return {"n": number, "r": repeat, "s": state, "v": [], "why": why}


def _value(gatherer: Any, task: int, job: int, ticket: tuple[int, int]) -> dict[str, Any]:
    """Read the outcome of a job that finished; one that cannot be read is a failure."""
    try:
        return dict(gatherer.value(task, job))
    except DataError as error:
        return _failed(*ticket, str(error))


def aborted(records: Sequence[cmd.Record]) -> bool:
    """Whether the run itself was cancelled: its trials are then nobody's failure."""
    return any(isinstance(r, cmd.RunMoved) and r.finish is RunStatus.ABORTED for r in records)


class JobsOfOneTask:
    """Each evaluation is a job of one task, whose items come through a stream."""

    def __init__(self, run: Any, plan: SearchPlan, book: Book) -> None:
        self._run, self._book = run, book
        self._task = cast(int, plan.task)
        state = run._store.state(run.id)
        self._name = next(task.name for task in state.spec.tasks if task.id == plan.task)
        self._results = run._results()
        stream = run.stream(plan.stream("points"))
        self._points = None if stream.closed else stream
        points = stream_items(run, plan.stream("points"))
        self._tickets: list[tuple[int, int]] = [(item["n"], item["r"]) for item in points]
        self._sent = set(self._tickets)
        self._jobs = {ticket: job for job, ticket in enumerate(self._tickets)}

    def send(self, work: Sequence[Work]) -> None:
        """Append items to the stream."""
        fresh = [one for one in work if one[:2] not in self._sent]
        if not fresh:
            return
        if self._points is None:
            raise WorkflowError(f"the stream of {self._name} is closed: its run has ended")
        self._points.append(*(ticket_of(*one) for one in fresh))
        for number, repeat, _, _ in fresh:
            self._jobs[number, repeat] = len(self._tickets)
            self._tickets.append((number, repeat))

    def earlier(self) -> Found:
        """Look at the jobs of trials that the book does not know the end of."""
        gatherer = self._run._gatherer()
        rows = [row for row in self._run.jobs(task=self._name) if self._open(row["index"])]
        rows.sort(key=lambda row: (row["started"] or 0.0) + (row["wall"] or 0.0))
        for row in rows:
            number, repeat = self._tickets[row["index"]]
            if row["status"] == JobStatus.FINISHED:
                ticket = (number, repeat)
                yield number, _value(gatherer, self._task, row["index"], ticket)
            elif row["status"] in _ENDED:
                failure = row["failure"] or {}
                yield number, _failed(number, repeat, failure.get("message") or row["reason"])

    def _open(self, job: int) -> bool:
        trials = self._book.trials
        known = job < len(self._tickets) and self._tickets[job][0] < len(trials)
        return known and trials[self._tickets[job][0]].state == "running"

    def concerns(self, record: cmd.Record) -> bool:
        """Ends of bundles and of jobs of the task."""
        ends = isinstance(record, cmd.BundleFinished | cmd.JobsMoved)
        return ends and record.task == self._task  # type: ignore[union-attr]

    def outcomes(self, records: Sequence[cmd.Record]) -> Found:
        """Read values of finished jobs; name what others failed of."""
        for record in records:
            if not self.concerns(record):
                continue
            if isinstance(record, cmd.BundleFinished):
                yield from self._values(record)
            elif isinstance(record, cmd.JobsMoved) and record.finish in _ENDED:
                if record.finish is not JobStatus.CANCELLED or not aborted(records):
                    yield from self._failures(record)

    def _values(self, record: cmd.BundleFinished) -> Found:
        try:
            loaded = self._results.load(self._results.place(record.bundle))
        except DataError as error:
            for job in record.finished:
                yield self._tickets[job][0], _failed(*self._tickets[job], str(error))
            return
        values = dict(zip(loaded.jobs, loaded.values, strict=True))
        for job in record.finished:
            yield self._tickets[job][0], values[job]

    def _failures(self, record: cmd.JobsMoved) -> Found:
        why = record.failure.message if record.failure is not None else record.reason
        for job in record.jobs:
            yield self._tickets[job][0], _failed(*self._tickets[job], why)

    def is_trial(self, task: str) -> bool:
        """Compare names."""
        return bool(task == self._name)

    def stop(self, number: int, reason: str) -> bool:
        """Stop its jobs where they run."""
        jobs = [job for (n, _), job in list(self._jobs.items()) if n == number]
        return bool(self._run._stop_jobs(self._name, jobs, reason))

    def close(self) -> None:
        """Close the stream."""
        if self._points is not None:
            self._points.close()
            self._points = None


def stream_items(run: Any, stream: str) -> Iterator[Any]:
    """Yield all items that a stream of a run has."""
    state = run._store.state(run.id)
    source: SourceSpec = next(s for s in state.spec.sources if s.name == stream)
    waiting = [r["body"] for r in run._reader.open_requests(run.id) if r["kind"] == "append"]
    n = state.streams.get(source.id, (source.n, False))[0]
    n += sum(body["count"] for body in waiting if body["source"] == source.id)
    for data in StoredItems({source.id: source}, run._results()).items(source.id, 0, n).items:
        yield pickle.loads(data)


class OwnTasks:
    """Each evaluation is a sub-workflow of its own that joins the run."""

    def __init__(self, run: Any, plan: SearchPlan, book: Book) -> None:
        self._run, self._plan, self._book = run, plan, book
        self._results = run._results()
        self._objectives = len(plan.study.directions)
        #: By task id: the trial it belongs to, and whether it gives the trial's result.
        self._tasks: dict[int, tuple[int, int, bool]] = {}
        self._sent: set[tuple[int, int]] = set()
        #: By the number of a request: the trial that it asked the run to take in.
        self._requests: dict[int, tuple[int, int]] = {}
        self._causes: dict[tuple[int, int], str] = {}
        for task in run._store.state(run.id).tasks:
            self._note(task.id, task.spec.name)

    def _prefix(self, number: int, repeat: int) -> str:
        return f"{self._plan.label}/{number}.{repeat}/"

    def _note(self, task: int, name: str) -> None:
        """Know a task by its name, if it is a trial's."""
        head, _, rest = name.removeprefix(f"{self._plan.label}/").partition("/")
        number, dot, repeat = head.partition(".")
        if name.startswith(f"{self._plan.label}/") and dot and number.isdigit():
            self._tasks[task] = (int(number), int(repeat), rest == "outcome")
            self._sent.add((int(number), int(repeat)))

    def send(self, work: Sequence[Work]) -> None:
        """Trace each as a workflow of its own and add it to the run."""
        for number, repeat, arguments, seed in work:
            if (number, repeat) not in self._sent:
                self._sent.add((number, repeat))
                call = self._call(number, repeat, arguments, seed)
                prefix = self._prefix(number, repeat)
                fragment, blobs, _ = trace_fragment(call, (), {}, prefix)
                self._requests[self._run._grow(fragment, blobs)] = (number, repeat)

    def _call(self, number: int, repeat: int, arguments: Mapping[str, Any], seed: int) -> Any:
        from pandaflow.authoring.tasks import Task
        from pandaflow.options import Options

        plan, objectives = self._plan, self._objectives
        options = plan.resources(arguments) if callable(plan.resources) else plan.resources or {}
        fixed = dict(plan.fixed)

        def workflow() -> Any:
            if isinstance(plan.objective, WorkflowFunction):
                if wants_trial(plan.objective.function):
                    fixed["trial"] = Trial(number, arguments, seed=seed, repeat=repeat)
                value = plan.objective.function(**{**fixed, **arguments})
                return Task(_Reading(number, repeat, objectives), Options(name="outcome"))(value)
            task = evaluating(plan.objective, objectives).options(**options)
            task = task.options(name="outcome")
            return task(ticket_of(number, repeat, arguments, seed), **fixed)

        return workflow

    def earlier(self) -> Found:
        """Look at the results that are there already."""
        gatherer = self._run._gatherer()
        rows = {row["name"]: row for row in self._run.summary()["tasks"]}
        for number, repeat in sorted(self._sent):
            name = f"{self._prefix(number, repeat)}outcome"
            if name in rows and self._is_open(number):
                yield from self._row(gatherer, name, rows[name]["id"], number, repeat)

    def _is_open(self, number: int) -> bool:
        return number < len(self._book.trials) and self._book.trials[number].state == "running"

    def _row(self, gatherer: Any, name: str, task: int, number: int, repeat: int) -> Found:
        for row in self._run.jobs(task=name):
            if row["status"] == JobStatus.FINISHED:
                yield number, _value(gatherer, task, row["index"], (number, repeat))
            elif row["status"] in _ENDED:
                yield number, _failed(number, repeat, row["reason"])

    def concerns(self, record: cmd.Record) -> bool:
        """Tasks that joined, ends of jobs of theirs, and requests that were refused."""
        if isinstance(record, cmd.RequestRefused):
            # Whose it is may not be known yet: it is answered while it is being sent.
            return record.kind == "grow"
        if isinstance(record, cmd.TaskAdded):
            self._note(record.spec.id, record.spec.name)
            return False
        ends = isinstance(record, cmd.BundleFinished | cmd.JobsMoved | cmd.TaskMoved)
        return ends and record.task in self._tasks  # type: ignore[union-attr]

    def outcomes(self, records: Sequence[cmd.Record]) -> Found:
        """Read results; remember what the tasks before them failed of."""
        if aborted(records):
            return
        for record in records:
            if not self.concerns(record):
                continue
            if isinstance(record, cmd.RequestRefused):
                yield from self._refusal(record)
                continue
            number, repeat, last = self._tasks[record.task]  # type: ignore[union-attr]
            if isinstance(record, cmd.JobsMoved) and record.failure is not None:
                self._causes[number, repeat] = record.failure.message
            if last:
                yield from self._outcome(record, number, repeat)

    def _refusal(self, record: cmd.RequestRefused) -> Found:
        """Fail a trial that the run does not take in; one that is there was only asked twice."""
        ticket = self._requests.pop(record.request, None)
        if ticket is not None and ticket not in {known[:2] for known in self._tasks.values()}:
            yield ticket[0], _failed(*ticket, record.reason)

    def _outcome(self, record: Any, number: int, repeat: int) -> Found:
        if isinstance(record, cmd.BundleFinished) and len(record.finished):
            try:
                loaded = self._results.load(self._results.place(record.bundle))
            except DataError as error:
                yield number, _failed(number, repeat, str(error))
                return
            values = dict(zip(loaded.jobs, loaded.values, strict=True))
            yield number, values[record.finished[0]]
        elif isinstance(record, cmd.JobsMoved) and record.finish in _ENDED:
            why = self._causes.pop((number, repeat), record.reason)
            yield number, _failed(number, repeat, why)

    def is_trial(self, task: str) -> bool:
        """Compare names."""
        return task.startswith(f"{self._plan.label}/") and task.endswith("/outcome")

    def stop(self, number: int, reason: str) -> bool:
        """Stop the last task of a trial, which is the one that reports."""
        repeats = [r for n, r in self._sent if n == number]
        names = [f"{self._prefix(number, r)}outcome" for r in repeats]
        return all([self._run._stop_jobs(name, [0], reason) for name in names])

    def close(self) -> None:
        """Nothing is open."""


class _Reading:
    """The payload that turns what a trial's workflow returned into an outcome."""

    def __init__(self, number: int, repeat: int, objectives: int) -> None:
        self._where = (number, repeat, objectives)

    def __call__(self, value: Any) -> dict[str, Any]:
        return read_value(value, *self._where)
