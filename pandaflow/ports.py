"""The seams: small protocols between the runner and the world.

Every port says who owns what, which calls may be repeated, and what is fresh. Conformance kits
for those who write adapters are in ``pandaflow.testing``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.commands import EmitBundle, Record
from pandaflow.core.events import Event
from pandaflow.core.model import Jobs, WorkflowSpec

# --- the state store --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """Who drives a run: enough to tell, on the same host, whether it still lives.

    ``started`` is the process's start time, so that a re-used pid is not mistaken for it.
    """

    host: str
    pid: int
    started: float
    token: str


@dataclass(frozen=True, slots=True)
class Submitter:
    """Who left a run with a server, and in which VO; both are empty where all are trusted."""

    subject: str = ""
    vo: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A wish that reached a run from outside its driver (``cancel``, ``pause``, ...)."""

    id: int
    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task as the store has it.

    Attributes
    ----------
    spec : TaskSpec as JSON-ready dict is kept by the store; here parsed.
    jobs : iterator of (index, status, attempt, bundle, not_before)
        Only jobs to which something happened; all others are as ``initial`` says.
    failures : mapping of int to int
        Charged failures so far, by job; jobs without any are left out.
    losses : mapping of int to int
        Uncharged losses so far, by job.
    arrivals : sequence of (job, count)
        For scattering tasks: its items in order of arrival.
    """

    id: int
    spec: Any
    status: str
    n: int
    closed: bool
    initial: str
    jobs: Iterable[tuple[int, str, int, int | None, float]] = ()
    failures: Mapping[int, int] = field(default_factory=dict)
    losses: Mapping[int, int] = field(default_factory=dict)
    arrivals: Sequence[tuple[int, int]] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BundleState:
    """A bundle as the store has it; ``location`` is empty until it has ended."""

    id: int
    task: int
    jobs: Jobs
    attempt: int
    executor: str
    location: str = ""


@dataclass(frozen=True, slots=True)
class RunState:
    """All that a driver needs to go on with a run."""

    id: str
    spec: WorkflowSpec
    status: str
    results: str
    tasks: Sequence[TaskState]
    bundles: Sequence[BundleState]
    next_bundle: int
    streams: Mapping[int, tuple[int, bool]] = field(default_factory=dict)


class RunDriver(Protocol):
    """Write access to one run, held under a lease by one process at a time.

    Not thread-safe: only the runner's loop calls it. ``commit`` is atomic and in order; once it
    returns, its records survive the death of this process.
    """

    def load(self) -> RunState:
        """Return the run as last committed."""
        ...

    def commit(self, records: Sequence[Record], done: Sequence[int] = ()) -> None:
        """Append ``records`` and mark the requests ``done`` as carried out, in one transaction.

        Raises
        ------
        RunLocked
            The lease was lost to another driver; nothing was written.
        StoreError
            The database refused (read-only, full, locked for too long, corrupt); nothing was
            written.
        """
        ...

    def renew(self) -> Sequence[Request]:
        """Extend the lease and return requests not carried out yet, oldest first."""
        ...

    def release(self) -> None:
        """Give the lease back. May be called twice."""
        ...


class StateReader(Protocol):
    """Read access for people: run handles, the command line, the monitor.

    Rows are plain dicts with JSON-ready values. May be used while a driver writes; what it
    returns is what was committed when the call began.
    """

    def runs(self, limit: int = 100) -> list[dict[str, Any]]:
        """Newest first: ``id, name, status, created, started, ended, jobs`` (counts by state)."""
        ...

    def run(self, run_id: str) -> dict[str, Any]:
        """One run with ``tasks``: ``id, name, status, reason, n, closed, jobs`` (counts by state).

        ``run_id`` may be a unique prefix or ``"last"``.
        """
        ...

    def jobs(
        self,
        run_id: str,
        *,
        task: str | None = None,
        status: str | None = None,
        index: int | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Jobs by task and index, those without a row of their own included.

        Each: ``task, index, status, attempt, reason, failure, bundle, worker, executor, site,
        started, wall, cpu, max_pss``.
        """
        ...

    def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """The event log from sequence number ``after`` on (exclusive), oldest first."""
        ...


class StateStore(Protocol):
    """Where runs live. Safe to use from several threads and processes."""

    def create_run(self, spec: WorkflowSpec, *, run_id: str, created: float, results: str) -> None:
        """Record a new run with all its tasks, status ``defined``."""
        ...

    def drive(self, run_id: str, owner: Owner, ttl: float) -> RunDriver:
        """Take the lease.

        Raises
        ------
        RunLocked
            Another live owner has it. A lease is void when it has expired, or when its owner
            was a process of this host that is gone.
        RunNotFound
        """
        ...

    def request(self, run_id: str, kind: str, body: Mapping[str, Any]) -> int:
        """Leave a wish for whoever drives the run; return its id."""
        ...

    def reader(self) -> StateReader:
        """Return read access."""
        ...


# --- studies ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of a study's log.

    Attributes
    ----------
    seq : int
        1, 2, ... without gaps.
    at : float
        When it happened, seconds since the epoch, by the writer's clock.
    kind : str
        ``ask``, ``tell`` or what else the study notes.
    trial : int or None
        The trial it is about; an ``ask`` and a ``tell`` always have one.
    body : mapping
        JSON values; floats are exact.
    """

    seq: int
    at: float
    kind: str
    trial: int | None
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StudyState:
    """A study as lists show it, without its log.

    Attributes
    ----------
    created, changed : float
        Seconds since the epoch; ``changed`` is that of the last append, by the store's clock.
    status : {'running', 'stopped', 'done', 'failed'}
    head : mapping
        The definition.
    summary : mapping
        What the writer last told of its progress.
    run : str or None
        Id of the run that carries its trials.
    """

    name: str
    created: float
    changed: float
    status: str
    head: Mapping[str, Any]
    summary: Mapping[str, Any]
    run: str | None


class StudyWriter(Protocol):
    """Write access to one study, held under a lease by one process at a time.

    Not thread-safe. ``append`` is atomic and in order; once it returns, its records survive the
    death of this process.
    """

    @property
    def next_seq(self) -> int:
        """The number that the next record gets."""
        ...

    def append(
        self,
        records: Sequence[tuple[float, str, int | None, Mapping[str, Any]]],
        *,
        summary: Mapping[str, Any] | None = None,
        status: str | None = None,
        head: Mapping[str, Any] | None = None,
        run: str | None = None,
    ) -> int:
        """Append records (at, kind, trial, body) in one transaction; extend the lease.

        What is None stays as it is. Returns the number of the log's last record.

        Raises
        ------
        RunLocked
            The lease was lost to another writer; nothing was written.
        StoreError
            A trial is asked or told twice, a body is not JSON (NaN is not), or the database
            refused; nothing was written.
        """
        ...

    def renew(self) -> None:
        """Extend the lease."""
        ...

    def release(self) -> None:
        """Give the lease back. May be called twice."""
        ...


class StudyStore(Protocol):
    """Where studies live: for each a row for lists and a log that is only appended to."""

    def create_study(self, name: str, head: Mapping[str, Any], created: float) -> None:
        """Record a new study, status ``running``; ``StoreError`` if there is one of that name."""
        ...

    def study(self, name: str) -> StudyState | None:
        """Return a study without its log; None if there is none of that name."""
        ...

    def studies(self, limit: int = 100) -> list[StudyState]:
        """Return the newest studies, newest first."""
        ...

    def study_log(self, name: str, after: int = 0) -> Iterator[LogRecord]:
        """Return the records after number ``after`` that were there when the call began."""
        ...

    def write_study(self, name: str, owner: Owner, ttl: float) -> StudyWriter:
        """Take the lease, by the rules of :meth:`StateStore.drive`."""
        ...

    def delete_study(self, name: str) -> None:
        """Forget a study and its log; ``RunLocked`` while a live process writes it."""
        ...


# --- executors --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assignment:
    """A bundle with all that is needed to run it.

    Attributes
    ----------
    emit : EmitBundle
    spec : BundleSpec
    payload : str
        Name of the pickled payload in the run's results.
    code : bytes
        The pickled payload itself.
    deps : tuple of (int, str)
        For each dependency, in the order that ``spec.outputs`` counts them: the bundle and
        the place of its persisted values ("" while it is still in flight on this executor).
    """

    emit: EmitBundle
    spec: BundleSpec
    payload: str
    code: bytes
    deps: tuple[tuple[int, str], ...] = ()


Report = Callable[[Event], None]


class Session(Protocol):
    """One run's use of an executor.

    ``submit``, ``cancel`` and ``release`` return soon and are called from one thread only;
    outcomes come back through ``report`` (thread-safe) as ``BundleStarted``, ``BundleEnded`` or
    ``BundleLost`` events, at least one ending for every bundle submitted and not cancelled
    (later ones are ignored). One with several sites says by ``BundlePlaced`` which of them may
    take a bundle, or has it. What its jobs send comes as ``JobSaid`` events, each at most once,
    in order for each job, and before the ``BundleEnded`` that tells how the job ended.
    """

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Run bundles as their dependencies come to exist, highest priority first."""
        ...

    def cancel(self, bundles: Sequence[int]) -> None:
        """Stop bundles: drop those that wait, stop the payloads of those that run."""
        ...

    def release(self, bundles: Sequence[int]) -> None:
        """Forget values kept in memory; they stay in the result store."""
        ...

    def close(self, *, kill: bool = False) -> None:
        """The run has ended. ``kill``: payloads may still run; none does when this returns."""
        ...


@runtime_checkable
class Channel(Protocol):
    """What a session also offers if the driver can reach jobs that run."""

    def stop(self, jobs: Sequence[tuple[str, int]], reason: str, grace: float) -> None:
        """Ask jobs (task name, index) to stop. Thread-safe, may be repeated, returns soon.

        It is about the attempts submitted and not ended now. Those that run see ``reason`` as
        ``current_job().stopping``, and if they run on are stopped by force after ``grace``
        seconds; those that have not begun never do. Both end as skipped, with the reason,
        and the other jobs of their bundles go on. A job that ends by itself within ``grace``
        ends as it does.
        """
        ...


@runtime_checkable
class Adopting(Protocol):
    """What a session also offers if its workers may outlive their driver."""

    def adopt(self, bundles: Sequence[int]) -> set[int]:
        """Go on with bundles that an earlier session of the run began; return which.

        Called once, before anything is submitted, with the bundles of this executor that are in
        flight. Those returned are as if they had been submitted to this session: it reports how
        they end, and that they have started even if that was reported before. It ends what it
        finds of earlier sessions besides.
        """
        ...


@runtime_checkable
class Lasting(Protocol):
    """What a session also offers if what it began can go on without it."""

    def leave(self) -> None:
        """End the session instead of closing it; a later one may adopt what it began."""
        ...


class Executor(Protocol):
    """Runs bundles somewhere; may serve several runs at once.

    Two attributes are optional, both bool and false where absent. ``containers``: tasks may name
    a container. ``multi_node``: jobs may ask for several nodes, or several ranks on a node. The
    runner refuses a task that asks for what its executor does not have.
    """

    def open(self, run_id: str, results: str, report: Report) -> Session:
        """Begin to work for a run.

        Reports ``SlotsChanged`` (with an empty executor name, which the runner fills in)
        before it returns, and again whenever the number of slots changes or its ``reason``:
        why jobs wait, in one line for people, empty when nothing holds them up. It may report
        often; the runner records one change of the reason a second at most.

        Raises
        ------
        SiteError
            The site cannot be reached.
        """
        ...
