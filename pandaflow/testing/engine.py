"""Event scripts for the engine: a tiny world that plays runner, store and executor in memory.

:class:`World` hands an engine's bundles out like an executor, computes their values with the very
code that workers use, and keeps the engine's records in a :class:`Ledger`, from which the run can
be restored at any point. After every step it checks what must always hold, so that a test that
drives a run also watches over it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pandaflow.authoring.trace import trace_workflow
from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.bundle import (
    Blocked,
    BundleSpec,
    BundleValues,
    JobInputs,
    Missing,
    SourceSlice,
)
from pandaflow.core.engine import Engine
from pandaflow.core.model import Failure, SourceSpec, WorkflowSpec
from pandaflow.core.slices import bundle_spec
from pandaflow.core.status import RUN_TERMINAL
from pandaflow.core.taskrun import BundleRun, TaskRun
from pandaflow.executors.outcome import Skip, failure_of
from pandaflow.executors.template import bind, node_of, slot_of
from pandaflow.restore import restore
from pandaflow.testing.invariants import violations
from pandaflow.testing.ledger import Ledger, differences

__all__ = ["Ledger", "Outcome", "World", "differences", "violations"]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How a bundle is to end, by position; positions in none of these run their payload.

    Attributes
    ----------
    fail : mapping of int to str or Failure
        A text stands for an exception with that message.
    skip : sequence of int
    unstarted : sequence of int
    detached : int or None
    wall : float
        Seconds reported for each job.
    """

    fail: Mapping[int, str | Failure] = field(default_factory=dict)
    skip: Sequence[int] = ()
    unstarted: Sequence[int] = ()
    detached: int | None = None
    wall: float = 0.01


Rule = Callable[[str, cmd.EmitBundle], Outcome]


@dataclass(slots=True)
class Given:
    """A bundle that the engine gave to the executor."""

    emit: cmd.EmitBundle
    spec: BundleSpec
    started: bool = False
    doomed: bool = False


class World:
    """A run in memory.

    Parameters
    ----------
    spec : WorkflowSpec
    blobs : mapping of str to bytes, optional
        Payloads and items by name, as the author's side made them. A task without a payload
        returns the job's index.
    slots : mapping of str to int
        Of each executor; the first is the default.
    shadow : bool
        Feed a second engine the same events and compare its commands.
    checked : bool
        Look at every job after every step; leave it out where there are very many.

    Attributes
    ----------
    engine : Engine
    ledger : Ledger
    given : dict of int to Given
        What the executors have and have not reported on.
    released : set of int
        Bundles that the executors were told to forget.
    emitted : list of EmitBundle
        All that was ever given out, in order.
    """

    def __init__(
        self,
        spec: WorkflowSpec,
        blobs: Mapping[str, bytes] | None = None,
        *,
        slots: Mapping[str, int] | None = None,
        shadow: bool = True,
        checked: bool = True,
    ) -> None:
        self.spec, self._blobs = spec, dict(blobs or {})
        self.slots = dict(slots or {"local": 2})
        self.engine = Engine(spec)
        self._shadow = Engine(spec) if shadow else None
        self._checked = checked
        self.ledger = Ledger(spec)
        self.items = _Items(spec.sources, self._blobs)
        self.at, self.wake = 1.0, float("inf")
        self.given: dict[int, Given] = {}
        self.stored: dict[int, BundleValues] = {}
        self.released: set[int] = set()
        self.emitted: list[cmd.EmitBundle] = []
        self._left: dict[int, Any] = {}

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        *args: Any,
        slots: Mapping[str, int] | None = None,
        shadow: bool = True,
        checked: bool = True,
        **kwargs: Any,
    ) -> World:
        """Trace a plain workflow function with arguments, and start its run."""
        spec, trace = trace_workflow(function.__name__, function, args, kwargs)
        world = cls(spec, trace.blobs, slots=slots, shadow=shadow, checked=checked)
        world.tell(ev.RunStarted(world.at, world.slots))
        return world

    # --- the runner's part ------------------------------------------------------------------

    def tell(self, *events: ev.Event) -> list[cmd.Command]:
        """Give the engine events; keep its records, carry out its actions, check everything."""
        commands = list(self.engine.handle(events))
        if self._shadow is not None:
            assert self._shadow.handle(events) == commands, "same events, other commands"
        asked = any(isinstance(event, ev.RetryRequested) for event in events)
        self.wake = float("inf")
        self.ledger.take([c for c in commands if isinstance(c, cmd.Record)], revive=asked)
        if asked:
            self.released.clear()
        for command in commands:
            self._carry_out(command)
        if self._checked:
            emits = [given.emit for given in self.given.values()]
            problems = violations(self.engine, self.ledger, emits)
            assert not problems, "\n".join(problems)
        return commands

    def _carry_out(self, command: cmd.Command) -> None:
        match command:
            case cmd.EmitBundle():
                self._give(command)
            case cmd.CancelBundle(bundle=bundle):
                given = self.given.pop(bundle, None)
                if given is not None and given.emit.join is not None:
                    self._left.pop(given.emit.join, None)
                self._doom(bundle)
            case cmd.ReleaseBundle(bundle=bundle):
                self.released.add(bundle)
            case cmd.WakeAt(at=at):
                assert at > self.at, "the engine asks to be woken in the past: that would spin"
                self.wake = min(self.wake, at)

    def _give(self, emit: cmd.EmitBundle) -> None:
        if not self.engine.in_flight(emit.bundle):
            return
        assert emit.executor in self.slots, f"no executor {emit.executor!r}"
        for need in emit.needs:
            other = self.given.get(need)
            assert need in self.stored or (other and other.emit.executor == emit.executor), (
                f"bundle {emit.bundle} was sent, and {need}, which it reads, neither exists nor is "
                "in flight on the same executor"
            )
        again = self.released & set(emit.needs)
        assert not again, f"bundle {emit.bundle} reads {again}, which were released"
        spec = bundle_spec(self.engine, emit, self.items, run="run", results="memory://run")
        self.given[emit.bundle] = Given(emit, spec)
        self.emitted.append(emit)

    # --- the executor's part ----------------------------------------------------------------

    def runnable(self) -> list[int]:
        """Return the bundles whose inputs exist, the most urgent first."""
        able = [
            given
            for given in self.given.values()
            if not given.doomed and not any(need in self.given for need in given.emit.needs)
        ]
        able.sort(key=lambda given: given.emit.priority, reverse=True)
        return [given.emit.bundle for given in able]

    def place(self, bundle: int, site: str, reason: str = "") -> list[cmd.Command]:
        """Report where a bundle will run, or may run (``site`` is empty)."""
        return self.tell(ev.BundlePlaced(self._tick(), bundle, site, reason))

    def begin(self, bundle: int, site: str = "") -> None:
        """Report that a bundle began."""
        self.given[bundle].started = True
        self.tell(ev.BundleStarted(self._tick(), bundle, "worker", site))

    def ended(self, bundle: int, outcome: Outcome | None = None) -> ev.BundleEnded:
        """Run a bundle and return its report, without telling the engine."""
        given, outcome = self.given.pop(bundle), outcome or Outcome()
        values, report = self._run(given, outcome)
        self.stored[bundle] = BundleValues(given.emit.jobs, values)
        count = len(given.emit.jobs)
        at, wall = self._tick(), [outcome.wall] * count
        return ev.BundleEnded(
            at=at, bundle=bundle, location=f"bundles/{bundle}", wall=wall, cpu=wall, **report
        )

    def end(self, bundle: int, outcome: Outcome | None = None) -> list[cmd.Command]:
        """Run a bundle and report how it ended."""
        return self.tell(self.ended(bundle, outcome))

    def lose(
        self, bundle: int, position: int | None = None, *, charged: bool = True
    ) -> list[cmd.Command]:
        """Report that a bundle's worker died; what waits for it in flight is lost with it."""
        self.given.pop(bundle)
        self._doom(bundle)
        return self.tell(
            ev.BundleLost(self._tick(), bundle, "its worker died", position, charged),
            *self._lost_with_it(),
        )

    def _doom(self, bundle: int) -> None:
        """Bundles that wait for one that will never end will not end either."""
        for other in self.given.values():
            if bundle in other.emit.needs and bundle not in self.stored and not other.doomed:
                other.doomed = True
                self._doom(other.emit.bundle)

    def _lost_with_it(self) -> list[ev.Event]:
        doomed = [bundle for bundle, given in self.given.items() if given.doomed]
        for bundle in doomed:
            del self.given[bundle]
        reason = "its Dask node was cancelled"
        return [ev.BundleLost(self._tick(), b, reason, None, charged=False) for b in doomed]

    def _tick(self) -> float:
        self.at += 0.01
        return self.at

    def _run(self, given: Given, outcome: Outcome) -> tuple[list[Any], dict[str, Any]]:
        emit, report = given.emit, _Report()
        deps = [self.stored[need] for need in emit.needs]
        inputs = JobInputs(given.spec, deps, pickle.loads)
        call = self._payload(given.spec)
        values: list[Any] = []
        for position, job in enumerate(emit.jobs):
            if position in outcome.unstarted:
                values.append(report.note("unstarted", position, "handed back"))
                continue
            if emit.join is not None:
                value = self._joined(emit.join, position, report)
            else:
                value = self._job(call, inputs, job, position, outcome, report)
            if position == outcome.detached and type(value) is not Missing:
                self._left[emit.bundle] = value
                value = report.note("detached", position, "goes on")
            values.append(value)
        return values, report.fields(self.engine.tasks[emit.task], values)

    def _joined(self, bundle: int, position: int, report: _Report) -> Any:
        if bundle in self._left:
            return self._left.pop(bundle)
        return report.failed(position, Failure(kind="lost", message="is gone", charged=False))

    def _job(
        self,
        call: Callable[[JobInputs, int], Any],
        inputs: JobInputs,
        job: int,
        position: int,
        outcome: Outcome,
        report: _Report,
    ) -> Any:
        try:
            if position in outcome.fail:
                _arguments(inputs, job)  # blocked goes before failed
                return report.failed(position, outcome.fail[position])
            if position in outcome.skip:
                _arguments(inputs, job)
                raise Skip("nothing to give")
            return call(inputs, job)
        except Blocked as error:
            return report.note("blocked", position, str(error))
        except Skip as error:
            return report.note("skipped", position, str(error), absent=True)
        except Exception as error:  # noqa: BLE001 - a test's payload may raise anything
            return report.failed(position, failure_of(error))

    def _payload(self, spec: BundleSpec) -> Callable[[JobInputs, int], Any]:
        data = self._blobs.get(self.engine.tasks[spec.task].spec.payload)
        if data is None:
            return lambda inputs, job: (_arguments(inputs, job), job)[1]
        loaded = pickle.loads(data)
        if spec.kind == "graph":

            def node(inputs: JobInputs, job: int) -> Any:
                function, args, kwargs = pickle.loads(loaded[job])
                return bind(function, args, kwargs, node_of)(inputs.upstream(job))

            return node
        fill = bind(loaded.function, loaded.args, loaded.kwargs or {}, slot_of)
        return lambda inputs, job: fill(inputs.slots(job))

    # --- a person's part, and the driver's ------------------------------------------------------

    def append(self, source: int, values: Iterable[Any], *, closed: bool = False) -> None:
        """Let a stream grow."""
        count = self.items.append(source, values)
        self.tell(ev.ItemsAppended(self._tick(), source, count, closed))

    def cancel(self, task: int | None = None, job: int | None = None) -> None:
        """Cancel the run, a task or a job."""
        self.tell(ev.CancelRequested(self._tick(), task, job))

    def pause(self) -> None:
        """Pause the run."""
        self.tell(ev.PauseRequested(self._tick()))

    def resume(self) -> None:
        """Resume the run."""
        self.tell(ev.ResumeRequested(self._tick()))

    def retry(self, task: int | None = None, *, restart: bool = False, **changes: Any) -> None:
        """Ask to try again, with changed options: fields of ``Resources`` or ``TaskSpec``."""
        at = self._tick()
        self.tell(ev.RetryRequested(at=at, task=task, restart=restart, changes=changes))

    def restart(self, finished: Sequence[int] = (), late: Sequence[ev.BundleEnded] = ()) -> None:
        """Let the driver die and another go on.

        Parameters
        ----------
        finished : sequence of int
            Bundles that ended in between.
        late : sequence of BundleEnded
            Reports of bundles that had ended, which the driver never read.
        """
        restored = restore(self.ledger.state())
        problems = differences(self.engine, restored)
        assert not problems, "\n".join(problems)
        self.engine = restored
        if self._shadow is not None:
            self._shadow = restore(self.ledger.state())
        ended = [*late, *(self.ended(bundle) for bundle in finished)]
        # A bundle that left a job running is begun again as a whole, as the runner does.
        reports: list[ev.Event] = [report for report in ended if report.detached is None]
        known = {report.bundle for report in ended if report.detached is None}
        flying = [b.id for b in restored.bundles_in_flight() if b.id not in known]
        reason = "its driver ended"
        reports += [ev.BundleLost(self._tick(), b, reason, None, False) for b in flying]
        self.given.clear()
        self._left.clear()
        self.released.clear()
        self.tell(ev.RunStarted(self._tick(), self.slots), *reports)

    # --- driving --------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.engine.status in RUN_TERMINAL

    def step(self, rule: Rule | None = None) -> bool:
        """Run the next bundle, or let time pass; False if nothing is left to happen."""
        lost = self._lost_with_it()
        if lost:
            self.tell(*lost)
        elif able := self.runnable():
            emit = self.given[able[0]].emit
            name = self.engine.tasks[emit.task].spec.name
            if not self.given[able[0]].started:
                self.begin(able[0])
            self.end(able[0], rule(name, emit) if rule else None)
        elif self.wake < float("inf"):
            self.at = self.wake
            self.tell(ev.Ticked(self.at))
        else:
            return False
        return True

    def play(self, rule: Rule | None = None, *, steps: int = 100_000) -> World:
        """Let everything happen, in order of priority, until the run ends or stands still."""
        for _ in range(steps):
            if self.over or not self.step(rule):
                break
        return self

    # --- looking --------------------------------------------------------------------------------

    def task(self, name: str) -> TaskRun:
        """Return a task by name."""
        return next(task for task in self.engine.tasks.values() if task.spec.name == name)

    def states(self, name: str) -> list[str]:
        """Return the states of a task's jobs."""
        table = self.task(name).table
        return [str(table.status(job)) for job in range(len(table))]

    def flying(self, name: str) -> list[BundleRun]:
        """Return a task's bundles in flight, in order of number."""
        number = self.task(name).spec.id
        return [bundle for bundle in self.engine.bundles_in_flight() if bundle.task == number]

    def values(self, name: str) -> list[Any]:
        """Return what the finished jobs of a task returned, in order."""
        table, found = self.task(name).table, []
        for job in range(len(table)):
            if table.status(job) == "finished":
                held = self.stored[table.bundle[job]]
                found.append(held.values[held.jobs.index(job)])
        return found


class _Report:
    """Collects the fields of a :class:`BundleEnded`."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}

    def note(self, name: str, position: int, reason: str, *, absent: bool = False) -> Missing:
        if name == "unstarted":
            self._fields[name] = (*self._fields.get(name, ()), position)
        elif name == "detached":
            self._fields[name] = position
        else:
            self._fields.setdefault(name, {})[position] = reason
        return Missing(reason, absent)

    def failed(self, position: int, what: str | Failure) -> Missing:
        failure = Failure(kind="exception", message=what) if isinstance(what, str) else what
        self._fields.setdefault("failures", {})[position] = failure
        return Missing(failure.message)

    def fields(self, task: TaskRun, values: Sequence[Any]) -> dict[str, Any]:
        present = {p: value for p, value in enumerate(values) if type(value) is not Missing}
        if task.spec.scatters:
            self._fields["sizes"] = {p: len(value) for p, value in present.items()}
        if task.spec.gate and 0 in present:
            self._fields["truth"] = bool(present[0])
        return self._fields


class _Items:
    """Items of sources and streams."""

    def __init__(self, sources: Sequence[SourceSpec], blobs: Mapping[str, bytes]) -> None:
        self._sources = {source.id: source for source in sources}
        self._frames: dict[int, list[bytes]] = {
            s.id: list(pickle.loads(blobs[s.blob])) if s.blob in blobs else [] for s in sources
        }

    def append(self, source: int, values: Iterable[Any]) -> int:
        frames = [pickle.dumps(value) for value in values]
        self._frames[source] += frames
        return len(frames)

    def items(self, source: int, lo: int, hi: int) -> SourceSlice:
        """Return items ``[lo, hi)`` of a source."""
        spec = self._sources[source]
        if spec.kind == "files":
            return SourceSlice(lo, spec.files[lo:hi])
        if spec.kind == "range":
            return SourceSlice(lo, range(*spec.bounds)[lo:hi])
        return SourceSlice(lo, tuple(self._frames[source][lo:hi]), pickled=True)


def _arguments(inputs: JobInputs, job: int) -> list[Any]:
    """Gather a job's arguments for their own sake: blocked if one is missing."""
    inputs.upstream(job)
    return inputs.slots(job)
