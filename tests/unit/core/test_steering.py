"""Event scripts: what the engine makes of wishes: cancel, pause, resume, retry, restart."""

from __future__ import annotations

from typing import Any

import pandaflow as pf
from pandaflow.core import events as ev
from pandaflow.core.model import Input, Resources, Source, SourceSpec, TaskSpec, WorkflowSpec
from pandaflow.core.policy import Retry
from pandaflow.testing.engine import Outcome, World
from tests.unit.core.scripts import bundled, chain, double, failing, inc, one_task, total


def stream_spec(**options: Any) -> WorkflowSpec:
    task = TaskSpec(id=0, name="t", token="t", payload="p", inputs=(Input(Source(0)),), **options)
    return WorkflowSpec(
        name="w", tasks=(task,), sources=(SourceSpec(id=0, name="s", kind="stream"),)
    )


def test_cancel_the_run() -> None:
    world = World.of(chain, 4)
    world.end(1)
    world.begin(world.runnable()[0])
    world.cancel()
    assert world.engine.status == "aborted"
    assert not world.given
    assert set(world.states("inc")) == {"finished", "cancelled"}
    world.retry()
    assert world.play().engine.status == "done"
    assert world.values("double") == [2, 4, 6, 8]


def test_cancelled_attempt_is_not_used_again() -> None:
    world = World.of(one_task, 1)
    world.begin(1)
    world.cancel()
    world.retry()
    assert [g.emit.attempt for g in world.given.values()] == [2]


def test_cancel_after_a_failure_is_aborted() -> None:
    world = World.of(one_task, 3)
    world.end(1, Outcome(fail={0: "bad"}))
    world.cancel()
    assert world.engine.status == "aborted"


def test_cancel_one_job() -> None:
    world = World.of(chain, 4)
    world.cancel(world.task("inc").spec.id, 2)
    assert world.states("inc")[2] == "cancelled"
    assert world.play().states("double") == ["finished", "finished", "closed", "finished"]
    assert world.task("inc").status == "aborted"
    world.retry()
    assert world.play().engine.status == "done"


def test_cancel_one_job_of_a_bundle() -> None:
    world = World.of(chain, 100)
    big = bundled(world)
    world.begin(big.bundle)
    world.cancel(0, big.jobs[1])
    world.play()
    assert world.states("inc").count("finished") == 99
    assert world.states("double").count("closed") == 1


def test_cancel_a_task() -> None:
    def flow():
        return double(inc(pf.items(range(4)))), inc.options(name="other")(pf.items(range(2)))

    world = World.of(flow)
    world.cancel(world.task("inc").spec.id)
    world.play()
    assert world.states("inc") == ["cancelled"] * 4
    assert world.states("double") == ["closed"] * 4
    assert world.states("other") == ["finished"] * 2
    assert [world.task(n).status for n in ("inc", "double", "other")] == [
        "aborted",
        "failed",
        "done",
    ]


def test_cancelled_task_of_a_stream_takes_no_more_items() -> None:
    world = World(stream_spec())
    world.tell(ev.RunStarted(world.at, world.slots))
    world.append(0, range(2))
    world.play()
    world.cancel(0)
    assert world.task("t").status == "aborted"
    world.append(0, range(3))
    assert world.task("t").n == 2
    assert world.over


def test_cancel_a_task_that_is_not_bound_is_no_branch_not_taken() -> None:
    def flow():
        return total(pf.scatter(listed(pf.items([2]))))

    world = World.of(flow)
    world.cancel(world.task("total").spec.id)
    assert world.play().engine.status == "finished"


@pf.task
def listed(n):
    return list(range(n))


def test_pause_takes_back_what_has_not_begun() -> None:
    world = World.of(chain, 6)
    first = world.runnable()[0]
    world.begin(first)
    world.pause()
    assert list(world.given) == [first]
    assert world.engine.status == "paused"
    world.end(first)
    assert not world.given
    assert {task.status for task in world.engine.tasks.values()} == {"paused"}
    world.resume()
    assert world.play().engine.status == "done"
    assert world.values("double") == [2, 4, 6, 8, 10, 12]
    assert set(world.task("inc").table.ended) == {0}


def test_pause_while_a_bundle_blocks_its_dependents() -> None:
    world = World.of(chain, 2)
    first = world.runnable()[0]
    world.begin(first)
    world.pause()
    world.end(first, Outcome(fail={0: "bad"}))
    world.resume()
    assert world.play().states("double") == ["closed", "finished"]


def test_the_last_jobs_of_a_paused_run_end_it() -> None:
    world = World.of(one_task, 1)
    world.begin(1)
    world.pause()
    world.end(1)
    assert world.engine.status == "done"


def test_retry_with_changed_options() -> None:
    world = World.of(one_task, 3, memory="1 GiB").play(failing("inc", 1))
    more = Resources(memory=2 * 2**30)
    world.retry(0, memory=2 * 2**30, retry=Retry(retries=1))
    (given,) = world.given.values()
    assert (given.emit.resources, given.emit.attempt, given.emit.jobs) == (more, 2, range(1, 2))
    assert world.task("inc").status == "running"
    assert world.play().engine.status == "done"


def test_a_retry_changes_what_is_named_and_leaves_the_rest_to_each_task() -> None:
    def flow():
        numbers = pf.items(range(2))
        wide = inc.options(name="wide", cores=8, memory="1 GiB")(numbers)
        fine = inc.options(name="fine", cores=2)(numbers)
        return inc.options(name="narrow", walltime=60.0)(numbers), wide, fine

    rules = {"narrow": failing("narrow", 0), "wide": failing("wide", 0, 1), "fine": failing("")}
    world = World.of(flow).play(lambda name, emit: rules[name](name, emit))
    world.retry(memory=4 * 2**30)
    asked = {world.task(n).spec.name: world.task(n).spec.resources for n in ("narrow", "wide")}
    assert asked["narrow"] == Resources(memory=4 * 2**30, walltime=60.0)
    assert asked["wide"] == Resources(cores=8, memory=4 * 2**30)
    assert world.task("fine").spec.resources == Resources(cores=2)
    assert {given.emit.resources.cores for given in world.given.values()} == {1, 8}
    assert world.play().engine.status == "done"


def test_a_retry_takes_an_option_back() -> None:
    world = World.of(one_task, 2, walltime=5.0, executor="local").play(failing("inc", 1))
    world.retry(walltime=None, executor=None)
    spec = world.task("inc").spec
    assert (spec.resources.walltime, spec.executor) == (None, None)
    assert world.play().engine.status == "done"


def test_retry_of_jobs_failed_and_closed_side_by_side() -> None:
    """A root task that was exhausted: failed jobs are ready again, closed ones pending."""
    world = World.of(one_task, 50, scouts=4)
    world.cancel(0, 5)
    world.play(failing("inc", 0, 1, 2, 3))
    assert set(world.states("inc")) == {"failed", "closed", "cancelled"}
    world.retry()
    assert world.play().engine.status == "done"


def test_retry_runs_only_what_is_needed() -> None:
    world = World.of(chain, 4).play(failing("inc", 2))
    before = world.engine.next_bundle
    world.retry()
    assert world.play().engine.status == "done"
    assert world.engine.next_bundle == before + 2
    assert world.values("double") == [2, 4, 6, 8]


def test_restart_runs_a_task_and_all_below_again() -> None:
    def flow():
        return total(double(inc(pf.items(range(3)))))

    world = World.of(flow).play()
    world.retry(world.task("double").spec.id, restart=True)
    assert world.engine.status == "running"
    assert world.task("inc").status == "done"
    assert world.play().engine.status == "done"
    assert [list(world.task(n).table.ended) for n in ("inc", "double", "total")] == [
        [0, 0, 0],
        [1, 1, 1],
        [1],
    ]
    assert world.values("total") == [12]


def test_restart_is_refused_where_the_workflow_grows_or_goes_on() -> None:
    def flow():
        return total(inc(pf.scatter(listed(pf.items([1, 2])))))

    world = World.of(flow).play()
    before = len(world.ledger.records)
    world.retry(world.task("listed").spec.id, restart=True)
    assert len(world.ledger.records) == before
    assert "decides how the workflow grows" in world.engine.refused[0][1]
    world = World.of(chain, 3)
    world.play(steps=2)
    world.retry(world.task("inc").spec.id, restart=True)
    assert "has not ended" in world.engine.refused[0][1]
    assert world.play().engine.status == "done"


def test_a_refused_wish_does_not_swallow_what_came_with_it() -> None:
    world = World.of(chain, 2)
    report = world.ended(1)
    world.tell(report, ev.RetryRequested(at=world.at, task=0, restart=True))
    assert world.states("inc")[0] == "finished"
    assert world.engine.refused
    wrong = ev.ItemsAppended(world.at, 77, 1)
    world.tell(wrong)
    ((event, reason),) = world.engine.refused
    assert event is wrong
    assert "77" in reason
    assert world.play().engine.status == "done"


def test_requests_after_the_end_change_nothing() -> None:
    world = World.of(one_task, 1).play()
    before = len(world.ledger.records)
    world.cancel()
    world.pause()
    world.resume()
    world.retry()
    assert len(world.ledger.records) == before


def test_blocked_jobs_of_a_graph_are_stopped_with_the_others() -> None:
    """Stopping one closes what hangs on it, while the others are still being stopped."""

    def flow():
        nodes = {"a": (abs, (1,)), "p": (abs, (2,)), "q": (abs, (pf.ref("p"),))}
        nodes["b"] = (max, (pf.ref("a"), pf.ref("q")))
        return pf.job_graph(nodes, retries=pf.Retry(retries=1, delay=60))

    world = World.of(flow)
    spec = world.engine.tasks[0].spec
    a, q, b = (spec.node_names.index(node) for node in "aqb")
    assert a < q < b
    while able := world.runnable():
        first = world.given[able[0]].emit.jobs[0]
        world.end(able[0], Outcome(fail={0: "bad"} if first == a else {}))
    assert [world.states(spec.name)[job] for job in (a, q, b)] == ["ready", "finished", "pending"]
    world.cancel()
    assert world.engine.status == "aborted"
    assert world.states(spec.name)[a] == "cancelled"
    world.restart()
    world.retry()
    assert world.play().engine.status == "done"
