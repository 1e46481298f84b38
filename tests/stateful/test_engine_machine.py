"""Random workflows, random fates: whatever happens, the engine keeps its rules and comes to an end.

The world checks its invariants after every step (``pandaflow.testing``): states against counters
and records, one live attempt a job, inputs before dependents, the same commands from a second
engine, and restored engines equal to live ones. Here events come in any order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import pandaflow as pf
from pandaflow.authoring.collections import Placed
from pandaflow.authoring.fragments import trace_fragment
from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.model import Failure, Output
from pandaflow.core.policy import Retry
from pandaflow.testing.engine import Outcome, World


@pf.task
def inc(x):
    return x + 1


@pf.task
def double(x):
    return 2 * x


@pf.task
def listed(x):
    return [x + k for k in range(x % 3)]


@pf.task(items_per_job=2)
def group(xs):
    return sum(xs)


@pf.task(n_jobs=1)
def total(xs):
    return sum(xs)


@pf.task
def add(a, b):
    return a + b


@pf.task
def counted(x, xs):
    return x + len(xs)


def odd(x):
    return x % 2 == 1


def fifth(x):
    return x % 5 == 0


@dataclass
class Stage:
    """A collection of the workflow, with the values that it must come to."""

    collection: Any
    values: list[int]
    single: bool = False
    ordered: bool = True
    name: str = ""


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "retries": st.sampled_from([1, 2, Retry(retries=2, delay=5.0)]),
        "goal": st.just(0.5),
        "scouts": st.just(2),
        "max_failure_rate": st.just(0.2),
        "priority": st.integers(0, 1),
        "executor": st.just("b"),
    },
)
STEPS = st.tuples(
    st.sampled_from(
        [
            "inc",
            "group",
            "total",
            "cross",
            "scatter",
            "whole",
            "after",
            "loop",
            "when",
            "concat",
            "graph",
        ]
    ),
    st.integers(0, 100),
    st.integers(0, 100),
    OPTIONS,
)


@dataclass
class Plan:
    """Builds a workflow from drawn steps."""

    n: int
    stream: bool
    first: dict[str, Any]
    steps: list[tuple[str, int, int, dict[str, Any]]]
    stages: list[Stage] = field(default_factory=list)

    def build(self, numbers: Any) -> list[Any]:
        """Call tasks; the body of a workflow function."""
        first = inc.options(name="first", **self.first)(numbers)
        self.stages = [Stage(first, [x + 1 for x in range(self.n)], name="first")]
        for number, (kind, first, second, options) in enumerate(self.steps):
            stage = self.stages[first % len(self.stages)]
            other = self.stages[second % len(self.stages)]
            made = getattr(self, f"_{kind}")(stage, other, {**options, "name": f"{kind}{number}"})
            if made is not None:
                self.stages.append(made)
        return [stage.collection for stage in self.stages]

    def _inc(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage:
        values = [x + 1 for x in stage.values]
        return self._made(inc.options(**options), stage, values, options)

    def _made(self, task: Any, stage: Stage, values: list[int], options: Any, *more: Any) -> Stage:
        return Stage(
            task(stage.collection, *more), values, stage.single, stage.ordered, options["name"]
        )

    def _group(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        if stage.single or not stage.ordered:
            return None
        values = [sum(stage.values[k : k + 2]) for k in range(0, len(stage.values), 2)]
        return self._made(group.options(**options), stage, values, options)

    def _total(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        if stage.single:
            return None
        made = total.options(**options)(stage.collection)
        return Stage(made, [sum(stage.values)], single=True, name=options["name"])

    def _cross(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        if stage.single or other.single or len(stage.values) * len(other.values) > 30:
            return None
        if self.stream and stage is not other:
            return None  # only the first part of a product may be open
        made = add.options(**options)(*pf.cross(stage.collection, other.collection))
        return Stage(
            made, [a + b for a in stage.values for b in other.values], False, False, options["name"]
        )

    def _scatter(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        if stage.single or sum(x % 3 for x in stage.values) > 20:
            return None
        lists = listed.options(**options)(stage.collection)
        made = inc.options(name=f"of-{options['name']}")(pf.scatter(lists))
        values = [x + k + 1 for x in stage.values for k in range(x % 3)]
        return Stage(made, values, False, False, f"of-{options['name']}")

    def _whole(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        if stage.single or other.single:
            return None
        values = [x + len(other.values) for x in stage.values]
        task = counted.options(**options)
        return self._made(task, stage, values, options, other.collection.all())

    def _after(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        values = [x + 1 for x in stage.values]
        barrier = pf.after(other.collection)
        return self._made(inc.options(**options), stage, values, options, barrier)

    def _loop(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        if not stage.single:
            return None
        (value,) = stage.values
        for _ in range(3):
            value += 1
            if fifth(value):
                break
        body = inc.options(**options)
        made = pf.loop(body, stage.collection, until=fifth, max_iterations=3)
        return Stage(made, [value], single=True)

    def _when(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        if not stage.single:
            return None
        (value,) = stage.values
        test = inc.options(name=f"test-{options['name']}")(stage.collection)
        made = pf.when(
            test,
            lambda: inc.options(**options)(stage.collection),
            lambda: double.options(name=f"not-{options['name']}")(stage.collection),
        )
        return Stage(made, [value + 1 if value + 1 else 2 * value], single=True)

    def _graph(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage:
        nodes = {
            "a": (abs, (-1,)),
            "b": (max, (pf.ref("a"), 5)),
            "c": (min, (pf.ref("a"), pf.ref("b"))),
            "d": (abs, (7,)),
            "e": (max, (pf.ref("c"), pf.ref("d"))),
        }
        made = pf.job_graph(nodes, edges=[("b", "d")], **options)
        return Stage(made, [1, 5, 1, 7, 7], ordered=False, name=options["name"])

    def _concat(self, stage: Stage, other: Stage, options: dict[str, Any]) -> Stage | None:
        if stage.single or other.single or self.stream:
            return None
        both = Stage(
            pf.concat(stage.collection, other.collection),
            [*stage.values, *other.values],
            ordered=stage.ordered and other.ordered,
        )
        return self._inc(both, other, options)


def joining(shape: str, n: int, given: Any) -> Any:
    """A sub-workflow that joins a run; ``given`` is a value, or what a task of the run returned."""
    numbers = pf.items(range(n))
    if shape == "chain":
        return total(double(inc(numbers)).all())
    if shape == "scatter":
        return total(inc(pf.scatter(listed(numbers))).all())
    if shape == "loop":
        return pf.loop(inc, given, until=fifth, max_iterations=3)
    if shape == "when":
        return pf.when(inc(given), lambda: inc(given), lambda: double(given))
    return counted(given, inc(numbers).all())


class EngineMachine(RuleBasedStateMachine):
    """A run under all sorts of fates."""

    world: World

    @initialize(
        n=st.integers(0, 5),
        stream=st.booleans(),
        first=OPTIONS,
        steps=st.lists(STEPS, min_size=1, max_size=5),
    )
    def begin_run(self, n: int, stream: bool, first: Any, steps: Any) -> None:
        self.plan = Plan(n, stream, first, steps)
        self.late: list[ev.BundleEnded] = []
        self.told: list[ev.Event] = []
        self.appended, self.closed, self.excused = 0, not stream, False
        numbers = pf.stream("numbers") if stream else pf.items(range(n))
        self.world = World.of(self.plan.build, numbers, slots={"a": 2, "b": 1})

    def choose(self, data: st.DataObject, bundles: list[int]) -> int:
        return data.draw(st.sampled_from(sorted(bundles)))

    def outcome(self, data: st.DataObject, bundle: int) -> Outcome:
        emit = self.world.given[bundle].emit
        size = len(emit.jobs)
        fates = st.sampled_from(["ok", "ok", "ok", "fail", "lost", "skip", "unstarted", "detach"])
        drawn = data.draw(st.lists(fates, min_size=size, max_size=size))
        fail: dict[int, str | Failure] = {
            p: "bad" for p, fate in enumerate(drawn) if fate == "fail"
        }
        for position, fate in enumerate(drawn):
            if fate == "lost":
                fail[position] = Failure(kind="lost", message="its process died", charged=False)
        skip = [p for p, fate in enumerate(drawn) if fate == "skip"]
        self.excused = self.excused or bool(skip)
        later = [p for p, fate in enumerate(drawn) if fate == "unstarted" and p > 0]
        detached = next((p for p, fate in enumerate(drawn) if fate == "detach"), None)
        if emit.join is not None:
            fail, skip, later, detached = {}, [], [], None
        wall = data.draw(st.sampled_from([1e-4, 1e-4, 0.01, 1.0]))
        return Outcome(fail=fail, skip=skip, unstarted=later, detached=detached, wall=wall)

    # --- reports ---

    @precondition(lambda self: self.world.runnable())
    @rule(data=st.data())
    def begins(self, data: st.DataObject) -> None:
        idle = [b for b in self.world.runnable() if not self.world.given[b].started]
        if idle:
            self.world.begin(self.choose(data, idle))

    @precondition(lambda self: self.world.given)
    @rule(data=st.data(), site=st.sampled_from(["", "long", "short"]))
    def is_placed(self, data: st.DataObject, site: str) -> None:
        bundle = self.choose(data, sorted(self.world.given))
        moves = self.world.place(bundle, site, "why not elsewhere")
        assert not any(isinstance(record, cmd.JobsMoved | cmd.BundleRunning) for record in moves)

    @precondition(lambda self: self.world.runnable())
    @rule(data=st.data(), late=st.sampled_from([False, False, True]))
    def ends(self, data: st.DataObject, late: bool) -> None:
        bundle = self.choose(data, self.world.runnable())
        report = self.world.ended(bundle, self.outcome(data, bundle))
        self.told.append(report)
        if late:
            self.late.append(report)
        else:
            self.world.tell(report)

    @precondition(lambda self: self.world.runnable())
    @rule(count=st.integers(1, 12))
    def goes_well(self, count: int) -> None:
        self.world.play(lambda name, emit: Outcome(wall=1e-4), steps=count)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def arrives_late(self, data: st.DataObject) -> None:
        self.world.tell(self.late.pop(data.draw(st.integers(0, len(self.late) - 1))))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def arrives_twice(self, data: st.DataObject) -> None:
        report = data.draw(st.sampled_from(self.told))
        if report not in self.late:
            bundle = report.bundle
            at = self.world.at
            self.world.tell(report, ev.BundleStarted(at, bundle), ev.BundleLost(at, bundle, "late"))

    @precondition(lambda self: self.world.runnable())
    @rule(data=st.data(), charged=st.booleans(), known=st.booleans())
    def is_lost(self, data: st.DataObject, charged: bool, known: bool) -> None:
        bundle = self.choose(data, self.world.runnable())
        size = len(self.world.given[bundle].emit.jobs)
        position = data.draw(st.integers(0, size - 1)) if known else None
        self.world.lose(bundle, position, charged=charged)

    @precondition(lambda self: self.world.wake < float("inf"))
    @rule()
    def time_passes(self) -> None:
        self.world.at = max(self.world.at, self.world.wake)
        self.world.tell(ev.Ticked(self.world.at))

    @rule(executor=st.sampled_from("ab"), slots=st.integers(0, 3))
    def slots_change(self, executor: str, slots: int) -> None:
        self.world.tell(ev.SlotsChanged(self.world.at, executor, slots))

    # --- wishes ---

    @precondition(lambda self: not self.closed and self.appended < self.plan.n)
    @rule(count=st.integers(1, 3))
    def grows(self, count: int) -> None:
        upto = min(self.plan.n, self.appended + count)
        self.world.append(0, range(self.appended, upto))
        self.appended = upto

    @precondition(lambda self: self.world.engine.next_bundle < 30)
    @rule(
        shape=st.sampled_from(["chain", "scatter", "loop", "when", "reads"]),
        n=st.integers(0, 3),
        task=st.none() | st.integers(0, 30),
    )
    def fragment_joins(self, shape: str, n: int, task: int | None) -> None:
        engine, items = self.world.engine, self.world.items
        given: Any = n
        if task is not None and task in engine.tasks and engine.tasks[task].spec.single:
            given = Placed("given", Output(task), length=1, single=True)
        prefix = f"{len(engine.tasks)}/"
        fragment, blobs, _ = trace_fragment(joining, (shape, n, given), {}, prefix)
        first = len(engine.spec.sources)
        sources = [replace(s, id=first + k) for k, s in enumerate(fragment.sources)]
        self.world._blobs.update(blobs)
        more = type(items)(sources, blobs)
        items._sources |= more._sources
        items._frames |= more._frames
        self.world.released.clear()  # who joins late reads values from where they are kept
        self.world.tell(ev.FragmentAppended(self.world.at, fragment))

    def finish_stream(self) -> None:
        if not self.closed:
            self.world.append(0, range(self.appended, self.plan.n), closed=True)
            self.closed = True

    @precondition(lambda self: not self.closed)
    @rule()
    def closes(self) -> None:
        self.finish_stream()

    @rule()
    def pauses(self) -> None:
        self.world.pause()

    @rule()
    def resumes(self) -> None:
        self.world.resume()

    @rule(data=st.data(), what=st.sampled_from(["job", "job", "task", "run"]))
    def is_cancelled(self, data: st.DataObject, what: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.engine.tasks)))
        n = self.world.engine.tasks[number].n
        if what == "run":
            self.world.cancel()
        elif what == "task":
            self.world.cancel(number)
        elif n:
            self.world.cancel(number, data.draw(st.integers(0, n - 1)))

    @rule(data=st.data(), whole=st.booleans(), restart=st.booleans())
    def is_retried(self, data: st.DataObject, whole: bool, restart: bool) -> None:
        numbers = sorted(self.world.engine.tasks)
        number = None if whole else data.draw(st.sampled_from(numbers))
        self.world.retry(number, restart=restart)

    @rule(data=st.data())
    def driver_dies(self, data: st.DataObject) -> None:
        able = self.world.runnable()
        finished = [b for b in able if data.draw(st.booleans())]
        self.world.restart(finished, self.late)
        self.late = []

    # --- the end ---

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.tell(*self.late)
        for executor, slots in world.slots.items():
            world.tell(ev.SlotsChanged(world.at, executor, slots))
        world.resume()
        self.finish_stream()
        world.play(steps=5000)
        assert world.over, "everything reported, and the run has not ended"
        self.come_to_good()

    def come_to_good(self) -> None:
        """With no more trouble, retrying brings every value that the workflow must give."""
        for _ in range(3):
            self.world.retry()
            self.world.play(steps=5000)
            assert self.world.over
        limited = any("goal" in o or "max_failure_rate" in o for *_, o in self.plan.steps)
        limited = limited or bool({"goal", "max_failure_rate"} & self.plan.first.keys())
        if self.excused or limited:
            return
        assert self.world.engine.status == "done"
        for stage in self.plan.stages:
            if stage.name:
                found = self.world.values(stage.name)
                assert Counter(found) == Counter(stage.values), stage.name
                assert found == stage.values or not stage.ordered, stage.name


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
