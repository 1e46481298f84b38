"""A run goes on from what was kept, whenever its driver dies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.model import Failure
from pandaflow.ports import Owner, RunDriver
from pandaflow.restore import restore
from pandaflow.store.sql import SqlStore
from pandaflow.testing.engine import Outcome, World, differences


@pf.task
def inc(x):
    return x + 1


@pf.task
def double(x):
    return 2 * x


@pf.task
def listed(x):
    return list(range(x))


@pf.task(items_per_job=2)
def pairs(xs):
    return sum(xs)


@pf.task(n_jobs=1)
def total(xs):
    return sum(xs)


def merged():
    return total(pairs(inc(pf.items(range(9)))))


def scattered():
    return total(inc(pf.scatter(listed(pf.items([3, 0, 2, 4])))))


def looping():
    return double(pf.loop(inc, 0, until=lambda x: x >= 3, max_iterations=9))


def choosing():
    return pf.when(inc(0), lambda: inc(10), lambda: double(10))


def tolerant():
    return total(inc.options(goal=0.5, retries=1)(pf.items(range(6))))


FLOWS = {
    "merged": (merged, [45]),
    "scattered": (scattered, [6 + 3 + 10]),
    "looping": (looping, [6]),
    "choosing": (choosing, [11]),
    "tolerant": (tolerant, [21]),
}
LAST = {"looping": "double", "choosing": "inc-2"}


def trouble(name: str, emit: cmd.EmitBundle) -> Outcome:
    """Every first attempt of every third job fails."""
    bad = {p: "bad" for p, job in enumerate(emit.jobs) if job % 3 == 1 and emit.attempt == 1}
    return Outcome(fail=bad if name == "inc" else {}, wall=0.01)


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("name", FLOWS)
def test_the_driver_dies_again_and_again(name: str, every: int) -> None:
    flow, expected = FLOWS[name]
    world, steps = World.of(flow), 0
    while not world.over and steps < 2000:
        world.step(trouble if name == "tolerant" else None)
        steps += 1
        if steps % every == 0:
            world.restart(world.runnable()[: steps % 3])
    assert world.engine.status == "done"
    last = LAST.get(name, "total")
    found = next(
        world.values(t.spec.name) for t in world.engine.tasks.values() if t.spec.name == last
    )
    assert found == expected


def test_nothing_finished_is_run_again() -> None:
    world = World.of(merged)
    world.play(steps=10)
    finished = [job for job, state in enumerate(world.states("inc")) if state == "finished"]
    world.restart()
    world.play()
    number = world.task("inc").spec.id
    runs = [
        r for r in world.ledger.records if isinstance(r, cmd.BundleRunning) and r.task == number
    ]
    ran = [job for record in runs for job in record.jobs]
    assert finished
    assert all(ran.count(job) == 1 for job in finished)


def test_bundles_in_flight_come_back_and_what_ended_meanwhile_is_adopted() -> None:
    world = World.of(merged)
    before = {bundle.id for bundle in world.engine.bundles_in_flight()}
    assert before
    restored = restore(world.ledger.state())
    assert {bundle.id for bundle in restored.bundles_in_flight()} == before
    done = world.runnable()[:2]
    world.restart(done)
    assert world.states("inc").count("finished") == 2


def test_back_off_survives() -> None:
    def flow():
        return inc.options(retries=pf.Retry(retries=2, delay=60))(pf.items(range(2)))

    world = World.of(flow)
    world.end(1, Outcome(fail={0: "bad"}))
    due = world.wake
    world.restart()
    assert world.wake == pytest.approx(due)
    assert {job for g in world.given.values() for job in g.emit.jobs} == {1}
    assert world.play().engine.status == "done"


def test_tries_are_counted_on() -> None:
    def flow():
        return inc.options(retries=2)(pf.items(range(1)))

    world = World.of(flow)
    for _ in range(3):
        world.restart()
        world.end(world.runnable()[0], Outcome(fail={0: "bad"}))
    assert world.engine.status == "failed"
    assert world.task("inc").charged == {0: 3}


def test_losses_are_counted_on() -> None:
    world = World.of(merged)
    for _ in range(3):
        able = next(b for b, g in world.given.items() if list(g.emit.jobs) == [0])
        world.lose(able, 0)
        world.restart()
    assert world.states("inc")[0] == "failed"


def test_paused_stays_paused() -> None:
    world = World.of(merged)
    world.pause()
    world.restart()
    assert world.engine.status == "paused"
    assert not world.given
    world.resume()
    assert world.play().engine.status == "done"


def test_ended_runs_can_be_retried_by_another_driver() -> None:
    world = World.of(merged).play(
        lambda name, emit: Outcome(fail={0: "bad"} if name == "inc" else {})
    )
    assert world.engine.status == "failed"
    world.restart()
    world.retry()
    world.restart()
    assert world.play().engine.status == "done"
    assert world.values("total") == [45]


def test_changed_options_survive() -> None:
    world = World.of(merged).play(lambda name, emit: Outcome(fail={0: "bad"}))
    world.retry(0, retry=pf.Retry(retries=7))
    world.restart()
    assert world.task("inc").spec.retry.retries == 7


def test_driver_dies_before_its_first_step() -> None:
    world = World.of(merged)
    fresh = World(world.spec, world._blobs)
    fresh.restart()
    assert fresh.play().engine.status == "done"


def test_stream_goes_on() -> None:
    def flow(numbers):
        return total(inc(numbers))

    world = World.of(flow, pf.stream("numbers"))
    world.append(0, [1, 2])
    world.play()
    world.restart()
    world.append(0, [3])
    world.restart()
    world.append(0, [], closed=True)
    world.restart()
    assert world.play().values("total") == [9]


# --- the same through a real store --------------------------------------------------------------


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    """Begin a run of a spec in a store, and return its driver."""
    store = SqlStore(str(tmp_path / "state.db"))
    opened: list[RunDriver] = []

    def begin(world: World) -> RunDriver:
        store.create_run(world.spec, run_id="run", created=1.0, results="memory://run")
        opened.append(store.drive("run", Owner("here", 1, 1.0, "me"), 60.0))
        return opened[0]

    yield begin
    for one in opened:
        one.release()
    store.close()


@pytest.mark.parametrize("name", FLOWS)
def test_the_store_keeps_what_the_ledger_keeps(name: str, driver: Any) -> None:
    """After every step the engine restored from SQL equals the one that goes on."""
    world = World.of(FLOWS[name][0])
    kept, written = driver(world), 0
    for step in range(500):
        if step == 3 and world.runnable():
            world.lose(world.runnable()[0], charged=True)
        elif step == 6 and world.runnable():
            uncharged = Failure(kind="lost", message="gone", charged=False)
            world.end(world.runnable()[0], Outcome(fail={0: uncharged}))
        elif world.over or not world.step(trouble):
            break
        kept.commit(world.ledger.records[written:])
        written = len(world.ledger.records)
        # The store counts an attempt that was handed back, so its number is not used again.
        problems = differences(world.engine, restore(kept.load()))
        problems = [problem for problem in problems if ": attempts is" not in problem]
        assert not problems, "\n".join(problems)
    assert world.over
    assert [t.status for t in kept.load().tasks] == [t.status for t in world.ledger.state().tasks]


def test_the_store_takes_cancel_pause_retry_and_restart(driver: Any) -> None:
    world = World.of(merged)
    kept, written = driver(world), 0

    def save() -> None:
        nonlocal written
        kept.commit(world.ledger.records[written:])
        written = len(world.ledger.records)

    save()
    world.begin(world.runnable()[0])
    for wish in (world.pause, world.resume):
        wish()
        save()
    world.play(steps=4)
    world.cancel(0, 8)
    world.cancel()
    save()
    assert kept.load().status == "aborted"
    world.retry()
    world.play(lambda name, emit: Outcome(skip=[0] if name == "inc" else ()))
    save()
    world.retry(0, restart=True)
    world.play()
    save()
    assert kept.load().status == "done"
    loaded = restore(replace(kept.load(), id="run"))
    assert {str(task.status) for task in loaded.tasks.values()} == {"done"}


def test_ended_again_by_a_late_report() -> None:
    """A report that the dead driver never read is read by the next one, once."""
    world = World.of(merged)
    report = world.ended(world.runnable()[0])
    world.restart(late=[report])
    before = len(world.ledger.records)
    world.tell(report, ev.BundleLost(world.at, report.bundle, "late"))
    assert len(world.ledger.records) == before
    assert world.play().engine.status == "done"
