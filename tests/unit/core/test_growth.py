"""Sub-workflows that join a run while it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.authoring.collections import Placed
from pandaflow.authoring.fragments import trace_fragment
from pandaflow.authoring.trace import trace_workflow
from pandaflow.core import events as ev
from pandaflow.core.errors import WorkflowError
from pandaflow.core.growth import all_tasks
from pandaflow.core.model import (
    Dataset,
    Fragment,
    Input,
    LoopEnd,
    Output,
    Scattered,
    Source,
    SourceSpec,
    TaskSpec,
)
from pandaflow.store.spec import dump_fragment, parse_fragment
from pandaflow.testing.engine import World
from tests.unit.core.scripts import double, failing, inc, total


class Growing(World):
    """A run that sub-workflows join, sent as requests are: as JSON text."""

    def grow(self, function: Callable[..., Any], *args: Any, prefix: str = "a/") -> str:
        fragment, blobs, result = trace_fragment(function, args, {}, prefix)
        self._blobs.update(blobs)
        self.join(fragment)
        return result

    def join(self, fragment: Fragment) -> None:
        fragment = parse_fragment(json.dumps(dump_fragment(fragment)))
        first = len(self.engine.spec.sources)
        made = [replace(s, id=first + k) for k, s in enumerate(fragment.sources)]
        more = type(self.items)(made, self._blobs)
        self.items._sources |= more._sources
        self.items._frames |= more._frames
        self.released.clear()  # who joins late reads values from where they are kept
        self.tell(ev.FragmentAppended(self._tick(), fragment))


@pf.task
def prepare():
    return 100


@pf.task
def anchor(x):
    return x


@pf.task
def plus(x, y):
    return x + y


@pf.task
def spread(n):
    return list(range(n))


@pf.task
def keep(x):
    return x


@pf.workflow
def inner(x):
    return inc(double(x))


def study():
    """One task of its own, and a stream that holds the run open."""
    made = prepare()
    anchor(pf.stream("anchor"))
    return made


def chain(x):
    return total(double(inc(pf.items([x, x + 1]))))


def prepared() -> Placed:
    return Placed("prepare", Output(0), length=1, single=True)


def growing(**options: Any) -> Growing:
    world = Growing.of(study, **options)
    assert isinstance(world, Growing)
    return world


def finish(world: World) -> str:
    world.play()
    world.append(0, [], closed=True)
    world.play()
    return str(world.engine.status)


def snapshot(world: World) -> tuple[Any, ...]:
    return (len(world.engine.tasks), len(world.engine._sources), len(world.engine._loops))


# --- joining ------------------------------------------------------------------------------------


def test_a_fragment_runs_and_leaves_the_rest_of_the_run_as_it_was():
    world = growing()
    shape = world.engine.spec.result
    name = world.grow(chain, 1, prefix="trial-0/")
    names = [task.spec.name for task in world.engine.tasks.values()]
    assert names == ["prepare", "anchor", "trial-0/inc", "trial-0/double", "trial-0/total"]
    assert finish(world) == "done"
    assert (name, world.values(name)) == ("trial-0/total", [10])
    assert world.engine.spec.result == shape


def test_fragments_interleave_and_some_end_before_others_come():
    world = growing()
    results = [world.grow(chain, k, prefix=f"t{k}/") for k in range(3)]
    for k in range(3, 12):
        world.step()
        world.step()
        results.append(world.grow(chain, k, prefix=f"t{k}/"))
    assert world.values("t0/total") and not world.values("t11/total")
    assert finish(world) == "done"
    assert [world.values(name)[0] for name in results] == [4 * k + 6 for k in range(12)]


def test_tasks_are_sent_in_the_step_in_which_they_join():
    world = growing()
    world.play()
    world.grow(chain, 1)
    assert world.flying("a/inc")


def test_what_is_there_already_is_refused_and_nothing_changes():
    world = growing()
    world.grow(chain, 1)
    before, told = snapshot(world), len(world.ledger.records)
    world.grow(chain, 2)
    assert [reason for _, reason in world.engine.refused] == [
        "a fragment cannot join the run: it has 'a/inc' already"
    ]
    assert (snapshot(world), len(world.ledger.records)) == (before, told)
    world.play()
    assert world.values("a/total") == [10]


@pytest.mark.parametrize("when", ["running", "ended"])
def test_nothing_joins_a_run_that_is_over(when: str):
    world = growing()
    world.play()
    if when == "running":
        world.grow(chain, 1, prefix="first/")
    world.cancel()
    before = snapshot(world)
    world.grow(chain, 1, prefix="late/")
    assert "nothing can join the run" in world.engine.refused[0][1]
    assert snapshot(world) == before
    world.play()
    assert world.engine.status == "aborted"


def test_a_run_that_pauses_takes_fragments_in_and_sends_them_later():
    world = growing()
    world.pause()
    name = world.grow(chain, 1)
    world.play()
    assert not world.values(name)
    world.resume()
    assert finish(world) == "done"
    assert world.values(name) == [10]


@pytest.mark.parametrize(
    "dataset",
    [Output(7), Output(-9), Source(5), Source(-9), LoopEnd(0), LoopEnd(-9), Scattered(0)],
    ids=str,
)
def test_references_to_what_is_not_there_are_refused(dataset: Dataset):
    world = growing()
    before = snapshot(world)
    good = TaskSpec(id=-1, name="x/good", token="t", payload="p", single=True, n_static=1)
    bad = replace(good, id=-2, name="x/bad", inputs=(Input(dataset, "single"),), n_static=None)
    world.join(Fragment(tasks=(good, bad)))
    assert "'x/bad' cannot join the run" in world.engine.refused[0][1]
    assert snapshot(world) == before


@pytest.mark.parametrize(
    "fragment",
    [
        Fragment(tasks=()),
        Fragment(tasks=(TaskSpec(id=3, name="x", token="t", payload="p", n_static=1),)),
        Fragment(tasks=(TaskSpec(id=-1, name="prepare", token="t", payload="p", n_static=1),)),
        Fragment(
            tasks=(TaskSpec(id=-1, name="x", token="t", payload="p", n_static=1),),
            sources=(SourceSpec(id=-2, name="s", kind="stream"),),
        ),
        Fragment(
            tasks=(
                TaskSpec(id=-1, name="x", token="t", payload="p", guards=((0, True),), n_static=1),
            )
        ),
    ],
    ids=["empty", "not local", "a task of the run", "a stream", "guarded by no gate"],
)
def test_fragments_that_make_no_sense_are_refused(fragment: Fragment):
    world = growing()
    before = snapshot(world)
    world.join(fragment)
    assert len(world.engine.refused) == 1
    assert snapshot(world) == before


# --- reading the run ----------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
def test_a_fragment_reads_an_output_of_the_run(late: bool):
    """Whether it is still being made or was made, and let go of, long ago."""
    world = growing()
    if late:
        world.play()
    name = world.grow(lambda x: plus(x, prepared()), 5)
    assert finish(world) == "done"
    assert world.values(name) == [105]


def test_a_fragment_reads_what_another_fragment_made():
    world = growing()
    first = world.task(world.grow(chain, 1, prefix="a/")).spec.id
    made = Placed("first", Output(first), length=1, single=True)
    name = world.grow(lambda x: plus(x, made), 1, prefix="b/")
    assert finish(world) == "done"
    assert world.values(name) == [11]


def test_a_fragment_that_reads_what_failed_fails_alone():
    world = Growing.of(lambda: (keep.options(name="bad")(1), study())[1])
    assert isinstance(world, Growing)
    world.engine.tasks[0].spec = replace(world.engine.tasks[0].spec, optional=True)
    world.play(failing("bad", 0))
    world.grow(keep, Placed("bad", Output(0), length=1, single=True), prefix="a/")
    world.play()
    assert world.states("a/keep") == ["closed"]


# --- failures -----------------------------------------------------------------------------------


def test_a_fragment_that_fails_does_not_touch_the_others_or_the_run():
    world = growing()
    for k in range(3):
        world.grow(chain, k, prefix=f"t{k}/")
    world.play(failing("t1/inc", 0, 1))
    assert finish(world) == "done"
    assert [world.task(f"t{k}/total").status for k in range(3)] == ["done", "failed", "done"]
    assert (world.values("t0/total"), world.values("t2/total")) == ([6], [14])


@pytest.mark.parametrize(("optional", "status"), [(True, "done"), (False, "failed")])
def test_the_verdict_goes_without_optional_tasks(optional: bool, status: str):
    spec, trace = trace_workflow("w", lambda: (inc(1), double(2))[1], (), {})
    spec = replace(spec, tasks=(replace(spec.tasks[0], optional=optional), spec.tasks[1]))
    world = World(spec, trace.blobs)
    world.tell(ev.RunStarted(world.at, world.slots))
    world.play(failing("inc", 0))
    assert (world.engine.status, world.task("inc").status) == (status, "failed")


def test_who_needs_an_optional_task_that_failed_fails_the_run():
    spec, trace = trace_workflow("w", lambda: double(inc(1)), (), {})
    spec = replace(spec, tasks=(replace(spec.tasks[0], optional=True), spec.tasks[1]))
    world = World(spec, trace.blobs)
    world.tell(ev.RunStarted(world.at, world.slots))
    world.play(failing("inc", 0))
    last = world.ledger.records[-1]
    assert (world.engine.status, getattr(last, "reason", "")) == ("failed", "double is failed")


# --- all that a workflow can be -----------------------------------------------------------------


def products(n):
    return total(plus(*pf.cross(pf.items(range(n)), pf.items([10, 20]))))


def choosing(n):
    return pf.when(keep(n > 2), lambda: inc(n), lambda: double(n))


def scattering(n):
    return total(inc(pf.scatter(spread(n))))


def looping(n):
    return pf.loop(inc, n, until=lambda x: x >= 5, max_iterations=10)


def looping_over_more(n):
    """A body with a source and a task of the fragment, and a loop inside."""
    base = keep(n)

    def body(x):
        more = total(plus(pf.items([1, 2]), base))
        return pf.loop(inc, plus(x, more), max_iterations=2)

    return keep(pf.loop(body, n, max_iterations=2))


def bare_loops(n):
    return inc(pf.loop(lambda x: pf.loop(inc, x, max_iterations=2), n, max_iterations=2))


def graphs(n):
    made = pf.job_graph({"a": (inc.function, (n,)), "b": (double.function, (pf.ref("a"),))})
    return total(made)


def inlined(n):
    return plus(inner(n), inner(n + 1))


def structured(n):
    made = inc(n)
    return {"one": made, "two": (double(n), [made, n])}


def by_parameter(n):
    made = pf.items(range(n))
    for _ in range(n):
        made = inc(made)
    return total(made)


SHAPES = [
    products,
    choosing,
    scattering,
    looping,
    looping_over_more,
    bare_loops,
    graphs,
    inlined,
    by_parameter,
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda f: f.__name__)
def test_a_fragment_computes_what_the_workflow_computes(shape: Callable[..., Any]):
    """Three of them at once, and the driver dies after every step."""
    wanted = {}
    for n in (1, 3, 4):
        alone = World.of(lambda n: keep.options(name="last")(shape(n)), n).play()
        wanted[n] = alone.values("last")
    world = growing()
    names = {n: world.grow(shape, n, prefix=f"t{n}/") for n in wanted}
    while world.step():
        if len(world.given) < 2 or len(world.engine.tasks) % 2:
            world.restart()
    assert {n: world.values(name) for n, name in names.items()} == wanted
    assert finish(world) == "done"


@pytest.mark.parametrize("shape", [structured, looping, choosing], ids=lambda f: f.__name__)
def test_there_is_one_task_whose_job_gives_the_result(shape: Callable[..., Any]):
    world = growing()
    name = world.grow(shape, 4)
    finish(world)
    assert (name, world.task(name).n, world.task(name).spec.internal) == ("a/result", 1, True)
    expected = {"structured": {"one": 5, "two": (8, [5, 4])}, "looping": 5, "choosing": 5}
    assert world.values(name) == [expected[shape.__name__]]


def test_all_tasks_of_a_fragment_are_optional_and_named_after_it():
    fragment, _, _ = trace_fragment(looping_over_more, (1,), {}, "trial-3/")
    tasks = list(all_tasks(fragment))
    assert len(tasks) > len(fragment.tasks)
    assert all(task.optional and task.name.startswith("trial-3/") for task in tasks)


def test_a_failing_gate_leaves_the_run_alone():
    world = growing()
    world.grow(looping, 1)
    gate = next(task for task in world.engine.tasks.values() if task.spec.gate)
    world.play(failing(gate.spec.name, 0))
    assert finish(world) == "done"
    assert world.task("a/result").status == "failed"


# --- tracing ------------------------------------------------------------------------------------


def test_equal_payloads_have_one_name():
    parts = [set(trace_fragment(chain, (k,), {}, f"t{k}/")[1]) for k in (1, 2)]
    shared = parts[0] & parts[1]
    assert len(shared) == 3  # the three payloads; the items differ
    assert len(parts[0] - shared) == len(parts[1] - shared) == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: inc(pf.items([1, 2])), "must return one value"),
        (lambda: (inc(1), inc(pf.items([1, 2]))), "must return one value"),
        (lambda: inc(1).all(), "must return one value"),
        (lambda: 3, "calls no task"),
        (lambda: total(inc(pf.stream("s"))), "'s' is a stream"),
        (lambda: total(pf.scatter(prepared())), "outside of the sub-workflow"),
    ],
)
def test_what_cannot_join_says_why(function: Callable[[], Any], message: str):
    with pytest.raises(WorkflowError, match=message):
        trace_fragment(function, (), {}, "t/")
