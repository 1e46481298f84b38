"""From datasets to jobs: openness, products, scatter, conditions, loops, barriers."""

from __future__ import annotations

from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
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


@pf.task(items_per_job=3)
def group(xs):
    return list(xs)


@pf.task
def pair(a, b):
    return (a, b)


@pf.task
def listed(n):
    return list(range(n))


@pf.task
def with_all(x, xs):
    return (x, list(xs))


def failing(*names: str):
    """Let every job of some tasks fail."""

    def rule(name: str, emit: cmd.EmitBundle) -> Outcome:
        bad = range(len(emit.jobs)) if name in names else ()
        return Outcome(fail=dict.fromkeys(bad, "bad"))

    return rule


def statuses(world: World) -> dict[str, str]:
    return {task.spec.name: str(task.status) for task in world.engine.tasks.values()}


# --- known datasets ---


def test_no_items() -> None:
    def flow():
        none = inc(pf.items([]))
        return none, double(none), total(none), group(none)

    world = World.of(flow).play()
    assert world.engine.status == "done"
    assert world.values("total") == [0]
    assert [world.task(name).n for name in ("inc", "double", "group", "total")] == [0, 0, 0, 1]


def test_zipped_inputs_must_be_alike() -> None:
    def flow(stream):
        return total(pair(stream, inc(pf.items(range(3)))))

    # Known lengths are refused when the workflow is written; a stream's only when it closes.
    numbers = pf.stream("numbers")
    world = World.of(flow, numbers)
    (source,) = (s.id for s in world.spec.sources if s.kind == "stream")
    world.append(source, [1, 2])
    world.play()
    assert world.values("pair") == [(1, 1), (2, 2)]
    world.append(source, [], closed=True)
    assert world.play().engine.status == "failed"
    assert "2, 3 items" in world.ledger.tasks[world.task("pair").spec.id].reason
    assert statuses(world)["total"] == "failed"
    world.restart()


def test_product() -> None:
    def flow():
        return pair(*pf.cross(inc(pf.items(range(3))), double(pf.items(range(4)))))

    world = World.of(flow).play()
    assert world.values("pair") == [(a + 1, 2 * b) for a in range(3) for b in range(4)]


def test_concatenation_and_whole() -> None:
    def flow():
        first, second = inc(pf.items(range(2))), double(pf.items(range(3)))
        return with_all(pf.concat(first, second), second.all())

    world = World.of(flow).play()
    everything = [0, 2, 4]
    assert world.values("with_all") == [(x, everything) for x in (1, 2, 0, 2, 4)]


# --- open datasets ---


def stream_id(world: World) -> int:
    return next(s.id for s in world.spec.sources if s.kind == "stream")


def test_stream_by_and_by() -> None:
    def flow(numbers):
        made = inc(numbers)
        return group(made), total(made)

    world = World.of(flow, pf.stream("numbers"))
    source = stream_id(world)
    assert world.task("inc").status == "ready"
    world.append(source, range(4))
    world.play()
    assert world.values("group") == [[1, 2, 3]]
    assert world.states("total") == []
    world.append(source, [4], closed=True)
    assert world.play().engine.status == "done"
    assert world.values("group") == [[1, 2, 3], [4, 5]]
    assert world.values("total") == [15]
    world.append(source, [9])  # closed is closed
    assert world.task("inc").n == 5


def test_stream_closed_empty() -> None:
    def flow(numbers):
        return total(inc(numbers))

    world = World.of(flow, pf.stream("numbers"))
    world.append(stream_id(world), [], closed=True)
    assert world.play().engine.status == "done"
    assert world.values("total") == [0]


def test_whole_of_an_open_dataset_waits_for_its_end() -> None:
    def flow(numbers):
        return with_all(pf.items(["a", "b"]), inc(numbers).all())

    world = World.of(flow, pf.stream("numbers"))
    world.append(stream_id(world), [1])
    world.play()
    assert world.states("with_all") == []
    world.append(stream_id(world), [2], closed=True)
    world.play()
    assert world.values("with_all") == [("a", [2, 3]), ("b", [2, 3])]


def test_scattered_lists() -> None:
    def flow():
        flat = pf.scatter(listed(pf.items([3, 0, 2])))
        return total(inc(flat)), group(flat)

    world = World.of(flow).play()
    assert world.engine.status == "done"
    assert world.values("total") == [6 + 3]
    assert sorted(world.values("group")) == [[0, 1], [0, 1, 2]]  # chunks stay within a list


def test_scattered_items_that_come_with_a_retry_are_not_lost() -> None:
    def flow():
        return total(inc(pf.scatter(listed(pf.items([3, 2])))))

    fails = {1}

    def rule(name, emit):
        bad = {k: "bad" for k, job in enumerate(emit.jobs) if name == "listed" and job in fails}
        return Outcome(fail=bad)

    world = World.of(flow).play(rule)
    assert world.engine.status == "failed"
    assert world.values("inc") == [1, 2, 3]
    assert statuses(world) == {"listed": "failed", "inc": "failed", "total": "failed"}
    world.restart()
    fails.clear()
    world.retry()
    world.restart()
    assert world.play(rule).engine.status == "done"
    assert world.values("total") == [1 + 2 + 3 + 1 + 2]


def test_scattered_within_its_goal() -> None:
    def flow():
        return total(inc(pf.scatter(listed.options(goal=0.5)(pf.items([3, 2])))))

    def rule(name, emit):
        return Outcome(fail={0: "bad"} if name == "listed" and 1 in emit.jobs else {})

    world = World.of(flow).play(rule)
    assert world.engine.status == "finished"
    assert world.values("total") == [6]


def test_exhausted_upstream_of_an_open_dataset() -> None:
    def flow():
        many = listed.options(max_failure_rate=0.1)(pf.items([1] * 40))
        return total(inc(pf.scatter(many)))

    world = World.of(flow).play(failing("listed"))
    assert world.engine.status == "failed"
    assert statuses(world) == {"listed": "exhausted", "inc": "failed", "total": "failed"}


def test_items_after_the_end_of_a_task_are_no_jobs_of_it() -> None:
    def flow(numbers):
        return inc(numbers), double(numbers)

    world = World.of(flow, pf.stream("numbers"))
    source = stream_id(world)
    world.append(source, range(3))
    world.play()
    world.cancel(world.task("inc").spec.id)
    world.append(source, range(3))
    assert (world.task("inc").n, world.task("double").n) == (3, 6)
    world.restart()
    assert world.task("inc").n == 3
    world.append(source, [], closed=True)
    world.play()
    world.retry()
    assert world.play().engine.status == "done"
    assert world.task("inc").n == 6


# --- conditions ---


@pytest.mark.parametrize(("x", "taken", "left"), [(1, "inc", "double"), (-1, "double", "inc")])
def test_when(x: int, taken: str, left: str) -> None:
    def flow(value):
        cond = inc.options(name="cond")(value)
        return pf.when(cond, lambda: inc(10), lambda: double(10))

    world = World.of(flow, x).play()
    assert world.engine.status == "done"
    assert statuses(world)[taken] == "done"
    assert statuses(world)[left] == "aborted"
    assert world.states(left) == []
    world.restart()


def test_input_that_is_decided_later() -> None:
    """A mapped task must not start before a condition among its other inputs is decided."""

    def flow():
        chosen = pf.when(inc.options(name="cond")(0), lambda: inc(10), lambda: double(10))
        return pair(pf.items(["a", "b"]), chosen)

    world = World.of(flow).play()
    assert world.engine.status == "done"
    assert world.values("pair") == [("a", 11), ("b", 11)]


def test_condition_that_fails() -> None:
    def flow():
        return total(
            pf.when(inc.options(name="cond")(0), inc(pf.items([1])), double(pf.items([2])))
        )

    world = World.of(flow).play(failing("cond"))
    assert world.engine.status == "failed"
    assert set(statuses(world).values()) == {"failed"}
    world.retry()
    assert world.play().engine.status == "done"
    assert world.values("total") == [2]


def test_gate_that_skips_came_to_no_decision() -> None:
    def flow():
        return pf.when(inc.options(name="cond")(0), lambda: inc(10), lambda: double(10))

    def rule(name, emit):
        return Outcome(skip=[0] if name.startswith("when") else ())

    world = World.of(flow).play(rule)
    assert statuses(world)["inc"] == statuses(world)["double"] == "failed"
    world.restart()
    assert world.engine.status == "failed"


# --- loops ---


def counting(stop: int, limit: int = 20):
    return double(pf.loop(inc, 0, until=lambda x: x >= stop, max_iterations=limit))


def test_loop() -> None:
    world = World.of(counting, 3).play()
    assert world.engine.status == "done"
    assert world.values("double") == [6]


def test_loop_stops_at_its_limit() -> None:
    assert World.of(counting, 99, 4).play().values("double") == [8]


def test_loop_whose_body_fails_goes_on_after_a_retry() -> None:
    world = World.of(counting, 3).play(failing("inc@1"))
    assert world.engine.status == "failed"
    assert statuses(world)["double"] == "failed"
    world.restart()
    world.retry()
    world.restart()
    assert world.play().engine.status == "done"
    assert world.values("double") == [6]


def test_loop_in_a_loop() -> None:
    def flow():
        def outer(x):
            return pf.loop(inc, double(x), max_iterations=2)

        return total(pf.concat(pf.loop(outer, 1, max_iterations=3), pf.items([100])))

    world = World.of(flow).play()
    assert world.engine.status == "done"
    assert world.values("total") == [122]


def test_loop_whose_body_is_a_loop() -> None:
    def flow():
        def outer(x):
            return pf.loop(inc, x, max_iterations=2)

        return double(pf.loop(outer, 1, max_iterations=3))

    world = World.of(flow)
    while not world.over:
        assert world.step()
        world.restart(world.runnable())
    assert world.engine.status == "done"
    assert world.values("double") == [14]


def test_three_loops_deep() -> None:
    def flow():
        def middle(x):
            return pf.loop(lambda y: pair_sum(y, x), x, max_iterations=2)

        def outer(x):
            return pf.loop(middle, inc(x), max_iterations=2)

        return pf.loop(outer, 0, max_iterations=2)

    @pf.task
    def pair_sum(a, b):
        return a + b

    def expected() -> int:
        x = 0
        for _ in range(2):
            x += 1
            for _ in range(2):
                y = x
                for _ in range(2):
                    y += x
                x = y
        return x

    world = World.of(flow).play()
    assert world.engine.status == "done"
    last = max(world.engine.tasks.values(), key=lambda task: task.spec.id)
    assert world.values(last.spec.name) == [expected()]


def test_dead_loop_inside_a_concatenation() -> None:
    def flow():
        looped = pf.loop(inc, 0, until=lambda x: x > 2, max_iterations=5)
        return total(pf.concat(looped, pf.items([1])))

    world = World.of(flow).play(failing("inc@0"))
    assert world.engine.status == "failed"
    assert statuses(world)["total"] == "failed"


def test_loop_that_never_begins() -> None:
    def flow(x):
        cond = double.options(name="cond")(x)
        return pf.when(cond, lambda: counting(3), lambda: inc.options(name="plain")(10))

    world = World.of(flow, 0).play()
    assert world.engine.status == "done"
    assert world.values("plain") == [11]
    assert World.of(flow, 1).play().values("double") == [6]


def test_what_follows_a_loop_hears_of_retries_in_it() -> None:
    """The consumer of a loop's end is unblocked although it knew nothing of the iteration."""

    def flow():
        def outer(x):
            return pf.loop(inc.options(retries=1), x, max_iterations=2)

        return double.options(executor="b")(pf.loop(outer, 1, max_iterations=2))

    world = World.of(flow, slots={"a": 1, "b": 1}).play()
    assert world.engine.status == "done"
    assert world.values("double") == [10]


def test_cancel_while_a_loop_runs() -> None:
    world = World.of(counting, 10)
    world.play(steps=5)
    world.cancel()
    assert world.engine.status == "aborted"
    world.restart()
    world.retry()
    assert world.play().engine.status == "done"
    assert world.values("double") == [20]


# --- barriers ---


def began(world: World) -> list[str]:
    sent = [r for r in world.ledger.records if isinstance(r, cmd.BundleRunning)]
    return [world.engine.tasks[r.task].spec.name for r in sent]


def test_barrier() -> None:
    def flow():
        first = inc(pf.items(range(3)))
        return double(pf.items(range(2)), pf.after(first))

    assert began(World.of(flow).play()) == ["inc"] * 3 + ["double"] * 2
    world = World.of(flow).play(failing("inc"))
    assert world.states("double") == ["closed"] * 2
    world.retry()
    assert world.play().engine.status == "done"


def test_barrier_on_a_loop() -> None:
    def flow():
        looped = pf.loop(inc, 0, until=lambda x: x >= 3, max_iterations=9)
        return double(pf.items(range(2)), pf.after(looped))

    names = began(World.of(flow).play())
    assert names[-2:] == ["double"] * 2
    assert names.count("inc@2") == 1
    world = World.of(flow).play(failing("inc@1"))
    assert world.states("double") == ["closed"] * 2


@pytest.mark.parametrize("x", [1, -1])
def test_barrier_on_a_condition_waits_for_the_branch_taken(x: int) -> None:
    def flow(value):
        cond = inc.options(name="cond")(value)
        chosen = pf.when(cond, lambda: inc(10), lambda: group(pf.items([1])))
        return double(pf.items(range(2)), pf.after(chosen))

    world = World.of(flow, x).play()
    assert world.engine.status == "done"
    assert began(world)[-2:] == ["double"] * 2


def test_tasks_that_grow_are_numbered_the_same_after_a_restart() -> None:
    def flow():
        def outer(x):
            return pf.loop(inc, double(x), max_iterations=2)

        return pf.loop(outer, 1, until=lambda v: v > 15, max_iterations=5)

    world = World.of(flow)
    while not world.over:
        assert world.step()
        world.restart()
    assert world.engine.status == "done"
    plain = World.of(flow).play()
    assert [t.spec for t in world.engine.tasks.values()] == [
        t.spec for t in plain.engine.tasks.values()
    ]


def test_weights_come_from_files() -> None:
    def flow(files: Any):
        return group.options(gb_per_job=1e-9 * 8, items_per_job=None)(pf.files(files))

    files = [pf.File(f"{k}.root", size=size) for k, size in enumerate([4, 3, 6, 9, 1])]
    world = World.of(flow, files).play()
    assert [[f.size for f in chunk] for chunk in world.values("group")] == [[4, 3], [6], [9], [1]]


def test_slots_appear_later() -> None:
    world = World.of(counting, 2, slots={"local": 0})
    assert not world.given
    assert not world.step()
    world.tell(ev.SlotsChanged(world.at, "local", 1))
    assert world.play().engine.status == "done"
