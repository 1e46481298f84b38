"""What is sent when, in which bundles, to whom."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.model import (
    Failure,
    Input,
    Resources,
    Source,
    SourceSpec,
    TaskSpec,
    WorkflowSpec,
)
from pandaflow.core.policy import Retry
from pandaflow.core.sizing import MAX_JOBS, MAX_OUTSTANDING, TARGET_S, window
from pandaflow.testing.engine import Outcome, World


@pf.task
def inc(x):
    return x + 1


@pf.task
def double(x):
    return 2 * x


@pf.task(n_jobs=1)
def total(xs):
    return sum(xs)


def one_task(n: int, **options: Any):
    return inc.options(**options)(pf.items(range(n)))


def tiny(name: str, emit: cmd.EmitBundle) -> Outcome:
    return Outcome(wall=1e-5)


def sent(world: World, task: str = "inc") -> list[cmd.BundleSent]:
    number = world.task(task).spec.id
    records = (r for r in world.ledger.records if isinstance(r, cmd.BundleSent))
    return [record for record in records if record.task == number]


# --- sizes and windows ---


def test_the_window_of_an_executor() -> None:
    world = World.of(one_task, 1000, slots={"local": 3})
    assert len(world.given) == window(3)
    world.play(lambda name, emit: Outcome(wall=10.0), steps=5)
    assert 3 < len(world.given) <= window(3)


def test_bundles_grow_with_what_is_measured() -> None:
    world = World.of(one_task, 20_000, slots={"local": 2}, shadow=False, checked=False)
    sizes: list[int] = []
    while not world.over:
        world.step(tiny)
    sizes = [len(record.jobs) for record in sent(world)]
    assert sizes[0] == 1
    assert max(sizes) == MAX_JOBS
    assert sum(sizes) == 20_000


def test_bundles_of_one_second_jobs_hold_one() -> None:
    world = World.of(one_task, 50).play(lambda name, emit: Outcome(wall=1.0))
    assert {len(record.jobs) for record in sent(world)} == {1}


def test_a_bundle_is_about_the_target() -> None:
    world = World.of(one_task, 5000, shadow=False, checked=False)
    world.play(lambda name, emit: Outcome(wall=0.001))
    assert max(len(record.jobs) for record in sent(world)) == pytest.approx(
        TARGET_S / 0.001, rel=0.1
    )


def test_every_job_is_sent_once() -> None:
    world = World.of(one_task, 3000, shadow=False, checked=False).play(tiny)
    jobs = [job for record in sent(world) for job in record.jobs]
    assert sorted(jobs) == list(range(3000))


def test_ten_thousand_dependents_of_one_slow_job() -> None:
    """They wait in flight or behind the limit, and neither blocks the other."""

    def flow():
        return double(pf.items(range(10_000)), pf.after(inc(0))), one_task(3, name="other")

    world = World.of(flow, shadow=False, checked=False)
    other = [b for b in world.runnable() if world.given[b].emit.task == world.task("other").spec.id]
    for bundle in other:
        world.end(bundle)
    assert world.states("other") == ["finished"] * 3
    assert world.play(tiny, steps=100_000).engine.status == "done"


def test_ten_thousand_readers_of_one_slow_job() -> None:
    def flow():
        return pair(pf.items(range(10_000)), inc(0))

    world = World.of(flow, shadow=False, checked=False)
    slow = next(b for b, g in world.given.items() if g.emit.task == world.task("inc").spec.id)
    assert len(world.given) <= MAX_OUTSTANDING
    world.end(slow, Outcome(fail={0: "bad"}, wall=1e-5))
    assert world.play(tiny).engine.status == "failed"
    assert world.states("pair") == ["closed"] * 10_000


@pf.task
def pair(a, b):
    return (a, b)


def test_more_in_flight_than_may_be_and_the_cause_must_run_again() -> None:
    """All that may be outstanding waits for one job, which fails and has to be sent again."""

    def flow():
        return pair(pf.items(range(60)), inc.options(retries=1)(0))

    world = World.of(flow)
    world.play(tiny, steps=1)
    reports = [world.ended(world.runnable()[0])]
    world.tell(*reports)
    assert world.play(tiny).engine.status == "done"


def test_offline_executor_gets_nothing() -> None:
    world = World.of(one_task, 20)
    world.tell(ev.SlotsChanged(world.at, "local", 0))
    before = len(sent(world))
    for bundle in list(world.given):
        world.end(bundle)
    assert len(sent(world)) == before
    assert not world.step()
    world.tell(ev.SlotsChanged(world.at, "local", 4))
    assert world.play().engine.status == "done"


def test_run_without_executors_waits() -> None:
    world = World.of(one_task, 3)
    spec = world.spec
    idle = World(spec, slots={"local": 2})
    idle.tell(ev.RunStarted(1.0, {}))
    assert idle.engine.status == "running"
    assert not idle.given


# --- executors ---


def two_sites(n: int = 4):
    made = inc.options(executor="a")(pf.items(range(n)))
    return double.options(executor="b")(made)


def test_inputs_from_another_executor_must_be_stored_first() -> None:
    world = World.of(two_sites, slots={"a": 2, "b": 2})
    assert {given.emit.executor for given in world.given.values()} == {"a"}
    world.end(world.runnable()[0])
    (given,) = [g for g in world.given.values() if g.emit.executor == "b"]
    assert list(given.emit.jobs) == [0]
    assert world.play().engine.status == "done"
    assert world.values("double") == [2, 4, 6, 8]


def test_one_site_is_down() -> None:
    world = World.of(two_sites, slots={"a": 2, "b": 0})
    world.play()
    assert world.states("inc") == ["finished"] * 4
    assert world.engine.status == "running"
    world.tell(ev.SlotsChanged(world.at, "b", 1))
    assert world.play().engine.status == "done"


def test_failures_are_heard_across_executors() -> None:
    def rule(name, emit):
        return Outcome(fail={0: "bad"} if name == "inc" and 2 in emit.jobs else {})

    world = World.of(two_sites, slots={"a": 2, "b": 2}).play(rule)
    assert world.states("double") == ["finished", "finished", "closed", "finished"]
    world.retry(world.task("inc").spec.id, executor="b")
    assert {given.emit.executor for given in world.given.values()} == {"b"}
    assert world.play().engine.status == "done"


# --- what travels together ---


def test_retries_travel_with_their_like() -> None:
    def flow():
        options = {"retries": Retry(retries=3, memory_factor=2.0), "memory": "1 GiB"}
        return inc.options(**options)(pf.items(range(300)))

    seen: set[int] = set()

    def rule(name, emit):
        bad = {}
        for position, job in enumerate(emit.jobs):
            if job % 7 == 0 and job not in seen:
                seen.add(job)
                kind = "memory" if job % 2 else "exception"
                bad[position] = Failure(kind=kind, message=kind)
        return Outcome(fail=bad, wall=1e-5)

    world = World.of(flow).play(rule)
    assert world.engine.status == "done"
    gib = 2**30
    asked = {job: emit.resources for emit in world.emitted for job in emit.jobs}
    assert asked[7] == Resources(memory=2 * gib)
    assert asked[14] == Resources(memory=gib)
    assert asked[1] == Resources(memory=gib)


def test_jobs_far_apart_do_not_share_a_bundle() -> None:
    """A bundle carries the items between its first and its last job."""
    n = 40_000
    far = {5, n - 5}

    def rule(name, emit):
        bad = {p: "bad" for p, job in enumerate(emit.jobs) if job in far}
        far.difference_update(emit.jobs)
        return Outcome(fail=bad, wall=1e-6)

    retry = Retry(retries=1, delay=1000.0)
    task = TaskSpec(id=0, name="t", token="t", payload="p", inputs=(Input(Source(0)),), retry=retry)
    source = SourceSpec(id=0, name="s", kind="range", n=n, bounds=(0, n, 1))
    spec = WorkflowSpec(name="w", tasks=(task,), sources=(source,))
    world = World(spec, shadow=False, checked=False)
    world.tell(ev.RunStarted(1.0, {"local": 2}))
    while world.runnable():
        world.step(rule)
    world.at += 10_000
    world.tell(ev.Ticked(world.at))  # both are due
    assert world.play(rule).engine.status == "done"
    spans = [record.jobs[-1] - record.jobs[0] for record in sent(world, "t")]
    assert max(spans) < n // 2


def test_priority_within_a_job_graph_follows_what_hangs_on_it() -> None:
    def flow():
        nodes = {f"leaf{k}": (abs, (k,)) for k in range(4)}
        nodes["head"] = (abs, (-1,))
        nodes |= {
            f"tail{k}": (abs, (pf.ref("head" if not k else f"tail{k - 1}"),)) for k in range(4)
        }
        return pf.job_graph(nodes)

    world = World.of(flow, slots={"local": 1})
    names = world.engine.tasks[0].spec.node_names
    order = sorted(world.given.values(), key=lambda g: g.emit.priority, reverse=True)
    assert names[order[0].emit.jobs[0]] == "head"


def test_chains_are_driven_depth_first() -> None:
    def flow():
        return total(double(inc(pf.items(range(40)))))

    world = World.of(flow, slots={"local": 1}).play(lambda name, emit: Outcome(wall=1.0))
    began = [r for r in world.ledger.records if isinstance(r, cmd.BundleRunning)]
    ahead = 0
    for one, other in pairwise(began):
        ahead += one.task == other.task == 0
    assert ahead == 0, "each chunk goes to the end of its chain before the next is begun"


def test_attempts_count_up() -> None:
    world = World.of(one_task, 1, retries=3)
    for attempt in (1, 2, 3):
        (given,) = world.given.values()
        assert given.emit.attempt == attempt
        world.end(given.emit.bundle, Outcome(fail={0: "bad"}))
    assert world.play().engine.status == "done"


def test_a_bundle_never_mixes_attempts() -> None:
    def rule(name, emit):
        bad = {p: "bad" for p, job in enumerate(emit.jobs) if emit.attempt <= job % 3}
        return Outcome(fail=bad, wall=1e-5)

    world = World.of(one_task, 600, retries=2).play(rule)
    assert world.engine.status == "done"
    assert [ended for ended in world.task("inc").table.ended] == [job % 3 for job in range(600)]
