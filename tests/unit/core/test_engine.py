"""Event scripts: what the engine makes of reports, losses, limits and time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.model import (
    Failure,
    Input,
    Source,
    SourceSpec,
    TaskSpec,
    WorkflowSpec,
)
from pandaflow.testing.engine import Outcome, World
from tests.unit.core.scripts import bundled, chain, double, failing, inc, one_task, total


@pf.task(items_per_job=2)
def pairs(xs):
    return sum(xs)


def merged(n=4):
    return total(inc(pf.items(range(n))))


# --- reports ---


def test_smooth_path() -> None:
    world = World.of(chain, 5).play()
    assert world.engine.status == "done"
    assert world.values("double") == [2, 4, 6, 8, 10]
    assert {task.status for task in world.engine.tasks.values()} == {"done"}


def test_late_doubled_and_foreign_reports_are_ignored() -> None:
    world = World.of(chain, 2)
    first = world.runnable()[0]
    report = world.ended(first)
    world.tell(report)
    before = len(world.ledger.records)
    started = ev.BundleStarted(world.at, first, "late")
    lost = ev.BundleLost(world.at, first, "late", 0)
    world.tell(report, started, lost, ev.BundleStarted(world.at, 999), ev.BundleLost(1.0, 999, ""))
    assert len(world.ledger.records) == before
    assert world.play().engine.status == "done"


def test_a_placement_is_recorded_and_moves_nothing() -> None:
    world = World.of(chain, 2)
    first = world.runnable()[0]
    before = world.states("inc")
    assert world.place(first, "", "may run at long, short") == [
        cmd.BundleSited(world.at, first, 0, range(1), 1, "", "may run at long, short")
    ]
    (sited,) = world.place(first, "long")
    assert (sited.site, sited.jobs, sited.attempt) == ("long", range(1), 1)
    assert world.states("inc") == before
    world.begin(first, "long")
    running = next(r for r in world.ledger.records if isinstance(r, cmd.BundleRunning))
    assert (running.worker, running.site) == ("worker", "long")
    assert len(world.place(first, "short")) == 1  # it was moved while it ran
    assert world.play().engine.status == "done"


def test_a_placement_of_what_is_not_in_flight_is_ignored() -> None:
    world = World.of(lambda: inc.options(retries=1)(pf.items(range(1))))
    first = world.runnable()[0]
    world.end(first, Outcome(fail={0: "bad"}))
    second = world.runnable()[0]
    assert second != first
    assert world.place(first, "long") == []  # a later attempt is in flight
    assert world.place(999, "long") == []
    world.end(second)
    assert world.place(second, "long") == []
    assert world.engine.status == "done"


def test_what_no_site_can_run_fails_at_once() -> None:
    world = World.of(one_task, 2, retries=5)
    unfit = Failure(kind="unfit", message="not at short: asks for 8 cores and it has 4 cores")
    given = world.given.pop(world.runnable()[0])
    number = given.emit.bundle
    world.tell(ev.BundleEnded(at=world.at, bundle=number, failures={0: unfit}, wall=(0.0,)))
    world.play()
    assert world.states("inc").count("failed") == 1
    (moved,) = (r for r in world.ledger.records if getattr(r, "failure", None) is not None)
    assert (moved.finish, moved.reason, moved.failure) == ("failed", unfit.message, unfit)


def test_report_without_start() -> None:
    world = World.of(one_task, 1)
    world.end(1)
    kinds = [type(record).__name__ for record in world.ledger.records]
    assert kinds[-4:] == ["BundleRunning", "BundleFinished", "TaskMoved", "RunMoved"]


def test_failures_are_retried_and_block_dependents() -> None:
    def flow():
        return total(inc.options(retries=1)(pf.items(range(3))))

    world = World.of(flow).play(failing("inc", 1, times=1))
    assert world.engine.status == "done"
    assert world.values("total") == [6]
    assert list(world.task("inc").table.ended) == [0, 1, 0]
    assert list(world.task("total").table.ended) == [0]  # being blocked is no failure


def test_failure_for_good_closes_dependents() -> None:
    world = World.of(chain, 3).play(failing("inc", 1))
    assert world.engine.status == "failed"
    assert world.states("inc") == ["finished", "failed", "finished"]
    assert world.states("double") == ["finished", "closed", "finished"]


def test_dependents_not_yet_sent_are_closed_and_the_run_ends() -> None:
    """They are closed while looking for what to send next: somebody must judge them then."""
    world = World.of(chain, 3)
    for bundle in world.runnable():
        world.begin(bundle)
    world.pause()  # takes the dependents back
    for bundle in list(world.given):
        world.end(bundle, Outcome(fail={0: "bad"}))
    world.resume()
    assert world.engine.status == "failed"
    assert world.states("double") == ["closed"] * 3


def test_window_holds_back_and_the_closed_tail_is_judged() -> None:
    """Long jobs: dependents are still unsent when what they wait for fails."""

    def flow():
        return double(total(inc(pf.items(range(40)))))

    world = World.of(flow).play(failing("inc", 0, wall=5.0))
    assert world.engine.status == "failed"
    assert world.states("double") == ["closed"]


def test_priority_and_depth() -> None:
    def flow():
        low = double.options(name="deep")(inc.options(name="low")(pf.items(range(3))))
        high = inc.options(name="high", priority=1)(pf.items(range(3)))
        return low, high

    world = World.of(flow, slots={"local": 1})
    sent = [r for r in world.ledger.records if isinstance(r, cmd.BundleSent)]
    names = [world.engine.tasks[record.task].spec.name for record in sent]
    # Priority first; then each chain goes to its end before its next chunk is begun.
    assert names == ["high", "high", "high", "low", "deep", "low", "deep", "low", "deep"]
    assert world.runnable()[0] == 1


def test_detached_job_is_joined() -> None:
    world = World.of(chain, 100)
    big = bundled(world)
    world.begin(big.bundle)
    world.end(big.bundle, Outcome(detached=2, unstarted=range(3, len(big.jobs))))
    emit = next(g.emit for g in world.given.values() if g.emit.join == big.bundle)
    assert emit.jobs == big.jobs[2:3]
    assert emit.attempt == 1
    assert world.play().engine.status == "done"
    assert world.values("double") == [2 * (k + 1) for k in range(100)]
    assert set(world.task("inc").table.ended) == {0}


def detached() -> tuple[World, int]:
    """A run with a job that goes on after its bundle returned; its join waits for a slot."""
    world = World.of(one_task, 100, retries=1)
    big = bundled(world)
    world.begin(big.bundle)
    world.end(big.bundle, Outcome(detached=0))
    return world, next(b for b, g in world.given.items() if g.emit.join == big.bundle)


def test_pause_leaves_a_detached_job_alone() -> None:
    world, join = detached()
    world.pause()
    assert join in world.given, "its job runs: starting it anew later would make two of it"
    world.end(join)
    world.resume()
    assert world.play().engine.status == "done"


def test_detached_job_whose_worker_died_runs_again() -> None:
    world, join = detached()
    job = world.given[join].emit.jobs[0]
    world._left.clear()
    world.begin(join)
    world.end(join)
    assert world.task("inc").table.ended[job] == 1
    assert world.task("inc").charged == {}
    assert world.play().engine.status == "done"


def test_cancel_of_a_detached_job() -> None:
    world, join = detached()
    world.cancel(0, world.given[join].emit.jobs[0])
    assert not world._left
    assert world.play().engine.status == "finished"


# --- losses ---


def lost_until_alone(culprit: int, n: int = 64) -> World:
    world = World.of(one_task, n, slots={"local": 1})
    for _ in range(1000):
        if world.over:
            return world
        bundle = world.runnable()[0]
        world.begin(bundle)
        if culprit in world.given[bundle].emit.jobs:
            world.lose(bundle)
        else:
            world.end(bundle, Outcome(wall=1e-4))
    raise AssertionError("it never ends")


def test_poisonous_job_is_found_by_splitting() -> None:
    world = lost_until_alone(37)
    assert world.engine.status == "failed"
    assert world.states("inc").count("finished") == 63
    assert world.states("inc")[37] == "failed"
    failures = [r.failure for r in world.ledger.records if isinstance(r, cmd.JobsMoved)]
    assert {f.kind for f in failures if f} == {"lost"}


def test_known_position_spares_the_others() -> None:
    world = World.of(one_task, 64, slots={"local": 1})
    big = bundled(world)
    world.lose(big.bundle, 3)  # the start report went astray; the claim tells the position
    suspect = big.jobs[3]
    assert world.task("inc").lost == {suspect: 1}
    assert world.play().engine.status == "done"


def test_losses_without_fault_are_not_counted() -> None:
    world = World.of(chain, 3)
    for _ in range(10):
        world.lose(world.runnable()[0], charged=False)
    assert world.task("inc").lost == {}
    assert world.play().engine.status == "done"


# --- limits and rules ---


def test_failure_rate_exhausts_a_task_and_nothing_hangs() -> None:
    def flow():
        return total(inc.options(max_failure_rate=0.2, retries=1)(pf.items(range(40))))

    world = World.of(flow).play(failing("inc", *range(0, 40, 2), wall=0.4))
    assert world.task("inc").status == "exhausted"
    assert world.engine.status == "failed"
    world.retry()
    assert world.play().engine.status == "done"
    assert world.values("total") == [sum(range(1, 41))]


def test_job_in_flight_when_its_task_is_exhausted() -> None:
    """It fails with tries left; nobody will send it again, and who waits for it must hear."""

    def flow():
        return double(inc.options(max_failure_rate=0.1, retries=3)(pf.items(range(30))))

    world = World.of(flow, slots={"local": 4})
    while world.task("inc").status != "exhausted":
        bundle = world.runnable()[0]
        fatal = Failure(kind="exception", message="no")
        world.end(bundle, Outcome(fail={0: fatal}, wall=1.0))
        assert not world.over
    assert world.flying("inc")
    for bundle in world.runnable():
        if bundle in world.given:
            world.end(bundle, Outcome(fail={0: "no"}))
    assert world.play().engine.status == "failed"


def test_failure_rate_while_paused() -> None:
    world = World.of(one_task, 100, max_failure_rate=0.2, slots={"local": 20})
    for bundle in list(world.given):
        world.begin(bundle)
    world.pause()
    for bundle in list(world.given):
        world.end(bundle, Outcome(fail={0: "no"}, wall=1.0))
    assert world.task("inc").status == "paused"
    world.resume()
    assert world.task("inc").status == "exhausted"


def test_scouts_first() -> None:
    world = World.of(one_task, 50, scouts=4)
    assert world.task("inc").status == "scouting"
    assert [list(g.emit.jobs) for g in world.given.values()] == [[0], [1], [2], [3]]
    world.end(1, Outcome(wall=1e-4))
    world.end(2, Outcome(wall=1e-4))
    assert world.task("inc").status == "running"
    assert max(len(g.emit.jobs) for g in world.given.values()) > 1
    assert world.play().engine.status == "done"


def test_failed_scouts_exhaust() -> None:
    world = World.of(one_task, 50, scouts=4).play(failing("inc", 0, 1, 2, 3))
    assert world.task("inc").status == "exhausted"
    assert world.states("inc").count("closed") == 46
    assert world.engine.status == "failed"


def test_scouts_of_a_stream_are_judged_while_it_is_open() -> None:
    spec = stream_spec(scouts=2)
    world = World(spec)
    world.tell(ev.RunStarted(world.at, world.slots))
    world.append(0, range(6))
    world.play()
    assert world.states("t") == ["finished"] * 6
    world.append(0, [], closed=True)
    assert world.play().engine.status == "done"


def stream_spec(**options: Any) -> WorkflowSpec:
    task = TaskSpec(id=0, name="t", token="t", payload="p", inputs=(Input(Source(0)),), **options)
    return WorkflowSpec(
        name="w", tasks=(task,), sources=(SourceSpec(id=0, name="s", kind="stream"),)
    )


@pytest.mark.parametrize(("goal", "bad", "status"), [(0.5, 2, "finished"), (0.9, 2, "failed")])
def test_goal(goal: float, bad: int, status: str) -> None:
    def flow():
        made = inc.options(goal=goal)(pf.items(range(4)))
        return total(made), double(made)

    world = World.of(flow).play(failing("inc", *range(bad)))
    assert world.engine.status == status
    expected = [7] if status == "finished" else []
    assert world.values("total") == expected
    assert world.states("double") == ["closed", "closed", "finished", "finished"]


@pytest.mark.parametrize(("n", "goal"), [(100, 0.55), (100, 0.07), (10, 0.7), (3, 1 / 3)])
def test_goal_is_not_missed_by_rounding(n: int, goal: float) -> None:
    bad = n - round(goal * n)
    world = World.of(one_task, n, goal=goal).play(failing("inc", *range(bad)))
    assert world.task("inc").status == "finished"


def test_list_of_which_nothing_is_left() -> None:
    def flow():
        return total(pairs(inc.options(goal=0.5)(pf.items(range(6)))))

    world = World.of(flow).play(failing("inc", 0, 1, 2))
    assert world.states("pairs") == ["closed", "finished", "finished"]
    assert world.values("total") == [4 + 5 + 6]
    assert world.engine.status == "finished"


def test_skipped_jobs_excuse() -> None:
    def flow():
        made = inc(pf.items(range(4)))
        return total(made), double(made)

    def rule(name, emit):
        jobs = list(emit.jobs)
        return Outcome(skip=[k for k, j in enumerate(jobs) if name == "inc" and j in (1, 2)])

    world = World.of(flow).play(rule)
    assert world.engine.status == "done"
    assert world.states("inc") == ["finished", "closed", "closed", "finished"]
    assert world.states("double") == ["finished", "closed", "closed", "finished"]
    assert world.values("total") == [5]
    world.restart()
    assert world.engine.status == "done"


# --- time ---


def test_back_off() -> None:
    def flow():
        policy = pf.Retry(retries=3, delay=10, factor=2)
        return inc.options(retries=policy)(pf.items(range(2)))

    world = World.of(flow)
    world.end(1, Outcome(fail={0: "bad"}))
    failed_at = world.at
    assert world.wake == pytest.approx(failed_at + 10)
    world.end(2)
    assert not world.runnable()
    world.tell(ev.Ticked(failed_at + 9))
    assert not world.runnable()
    world.tell(ev.Ticked(failed_at + 10))
    (again,) = world.runnable()
    world.at = failed_at + 10
    world.end(again, Outcome(fail={0: "bad"}))
    assert world.wake == pytest.approx(world.at + 20)
    assert world.play().engine.status == "done"


def test_back_off_that_is_over_while_paused_or_offline_wakes_nobody() -> None:
    def flow():
        return inc.options(retries=pf.Retry(retries=3, delay=1))(pf.items(range(1)))

    world = World.of(flow)
    world.end(1, Outcome(fail={0: "bad"}))
    world.pause()
    world.at += 5
    world.tell(ev.Ticked(world.at))
    assert world.wake == float("inf")
    world.tell(ev.SlotsChanged(world.at, "local", 0))
    world.resume()
    assert world.wake == float("inf")
    world.tell(ev.SlotsChanged(world.at, "local", 1))
    assert world.play().engine.status == "done"


# --- what is released ---


def test_values_are_released_when_nobody_reads_them() -> None:
    world = World.of(chain, 3).play()
    assert world.released == set(world.stored)


def test_values_are_kept_for_who_comes_later() -> None:
    world = World.of(merged, 3)
    while world.flying("inc"):
        world.step()
        if not world.over and world.states("total") != ["finished"]:
            assert not world.released
    assert world.play().released == set(world.stored)


def test_job_graph_keeps_and_reconsiders() -> None:
    def flow():
        nodes = {
            "a": (max, ((1, 2),)),
            "b": (max, (pf.ref("a"), 5)),
            "c": (min, (pf.ref("a"), pf.ref("b"))),
            "d": (max, (pf.ref("c"), 0)),
        }
        return pf.job_graph(nodes, retries=1)

    world = World.of(flow)
    name = world.engine.tasks[0].spec.name
    world.play(failing(name, 0, times=1))
    assert world.engine.status == "done"
    assert world.values(name) == [2, 5, 2, 2]
    failed = World.of(flow).play(failing(name, 0))
    assert failed.states(name) == ["failed", "closed", "closed", "closed"]


def test_job_graph_with_a_goal_does_not_wait_for_itself() -> None:
    def flow():
        nodes = {"a": (abs, (1,)), "b": (abs, (pf.ref("a"),)), "c": (abs, (2,))}
        return pf.job_graph(nodes, goal=0.3)

    world = World.of(flow)
    name = world.engine.tasks[0].spec.name
    world.play(failing(name, world.engine.tasks[0].spec.node_names.index("a")))
    assert world.engine.status == "finished"
    assert sorted(world.states(name)) == ["closed", "failed", "finished"]


def test_a_long_chain_of_blocked_jobs_is_closed() -> None:
    """Bad news travels any distance."""

    def flow(n):
        nodes = {"0": (abs, (1,))}
        nodes |= {str(k): (abs, (pf.ref(str(k - 1)),)) for k in range(1, n)}
        return pf.job_graph(nodes, retries=1)

    world = World.of(flow, 800, shadow=False, slots={"local": 400})
    name = world.engine.tasks[0].spec.name
    reports = [world.ended(world.runnable()[0], Outcome(fail={0: "bad"}))]
    # All that was sent ahead comes back blocked, then the second try fails.
    while able := world.runnable():
        reports.append(world.ended(able[0]))
    world.tell(*reports)
    world.play(failing(name, 0))
    assert world.engine.status == "failed"
    assert world.states(name).count("closed") == 799


def notes(commands: list[cmd.Command]) -> list[tuple[str, int, str]]:
    found = [command for command in commands if isinstance(command, cmd.ExecutorNoted)]
    return [(note.executor, note.slots, note.reason) for note in found]


def test_a_changed_reason_of_an_executor_is_noted_once() -> None:
    world = World.of(one_task, 4)
    say = partial(ev.SlotsChanged, world.at, "local")
    assert notes(world.tell(say(2))) == []
    assert notes(world.tell(say(0, "1 pilot waits"))) == [("local", 0, "1 pilot waits")]
    assert notes(world.tell(say(3, "1 pilot waits"))) == []
    assert world.engine._slots["local"] == 3
    assert notes(world.tell(say(3, "2 wait"), say(4))) == [("local", 3, "2 wait"), ("local", 4, "")]
    assert world.play().engine.status == "done"


def test_a_new_driver_tells_what_holds_for_its_executors() -> None:
    """Its predecessor's last word must not stand for ever."""
    world = World.of(one_task, 4)
    world.tell(ev.SlotsChanged(world.at, "local", 0, "the queue is closed"))
    world.restart()
    assert notes(world.tell(ev.SlotsChanged(world.at, "local", 2))) == [("local", 2, "")]
    assert notes(world.tell(ev.SlotsChanged(world.at, "local", 3))) == []
    assert world.play().engine.status == "done"
