"""The part of the pool's conformance kit on what pilots report and how queues fare by it."""

# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

from typing import Any

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.grid.identity import Forbidden
from pandaflow.grid.messages import (
    Acquire,
    Acquired,
    Trouble,
)
from pandaflow.grid.places import Provision, QueueBody
from pandaflow.grid.pool import NotThere, Pool
from pandaflow.grid.pool.circuit import HOLD
from pandaflow.grid.pool.holdings import KEPT
from pandaflow.testing.pool_scene import (
    HEARTBEAT,
    SITE_TROUBLE,
    START,
    PoolBase,
    Scene,
    report,
)


class ReportTests(PoolBase):
    """What pilots say, and whether it counts."""

    def test_reports_of_others_are_refused_and_told_who_has_it(self, scene: Scene) -> None:
        scene.submit([1, 2])
        (leased,) = scene.ask()
        forged = leased.model_copy(update={"lease": "guessed"})
        verdict = scene.report(forged, 1, "ended")
        assert (verdict.accepted, verdict.commands) == (False, ("kill",))
        assert "not the lease" in verdict.why
        verdict = scene.report(leased, 1, pilot="p2")
        assert not verdict.accepted and "held by pilot 'p1-" in verdict.why
        verdict = scene.report(leased.model_copy(update={"id": 2**40}), 1)
        assert not verdict.accepted and "there is no bundle" in verdict.why
        ready = scene.pool.bundles(scene.user, scene.run, "ready")[0]
        verdict = scene.report(leased.model_copy(update={"id": ready["id"]}), 1)
        assert not verdict.accepted and "held by nobody" in verdict.why
        stranger = scene.actor("pilot", vo="another")
        (verdict,) = scene.tell(report(leased, 1), actor=stranger).verdicts
        assert not verdict.accepted and "there is no bundle" in verdict.why
        (verdict,) = scene.tell(report(leased, 1), actor=scene.user).verdicts
        assert not verdict.accepted and "role pilot" in verdict.why
        assert scene.hear() == []
        assert scene.report(leased, 1).accepted

    def test_late_and_repeated_reports(self, scene: Scene) -> None:
        scene.submit([1])
        (leased,) = scene.ask()
        assert scene.report(leased, 5).accepted
        for seq in (5, 4):
            verdict = scene.report(leased, seq, "ended")
            assert (verdict.accepted, verdict.commands) == (False, ())
            assert "report 5 was here before" in verdict.why
        assert scene.report(leased, 6).accepted
        assert scene.report(leased, 7, "ended", reply=b"1").accepted
        assert scene.report(leased, 7, "ended", reply=b"1").accepted  # its answer was lost
        verdict = scene.report(leased, 8, "ended")
        assert not verdict.accepted and "ended since report 7" in verdict.why
        assert not scene.report(leased, 7, "lost").accepted
        assert scene.hear() == [(1, 1, "started"), (1, 1, "ended")]

    def test_a_report_may_come_again_after_its_outcome_was_acknowledged(self, scene: Scene) -> None:
        scene.submit([1, 2])
        (leased, other) = scene.ask(count=2)
        scene.report(leased, 1, "ended")
        assert scene.hear() == [(1, 1, "ended")]
        assert scene.hear() == []  # says that the first was heard
        scene.report(other, 1, "ended")
        scene.now += KEPT - 1
        scene.pool.care(scene.now)
        assert scene.report(leased, 1, "ended").accepted
        scene.now += 2
        scene.pool.care(scene.now)
        # The driver has read the second, but not said so: its row stays.
        assert scene.hear() == [(2, 1, "ended")]
        assert not scene.report(leased, 1, "ended").accepted
        assert scene.report(other, 1, "ended").accepted
        scene.hear()
        scene.now += KEPT + 1
        scene.pool.care(scene.now)
        assert scene.pool.bundles(scene.user, scene.run) == []

    def test_several_reports_of_a_bundle_in_one_call(self, scene: Scene) -> None:
        scene.submit([1])
        (leased,) = scene.ask()
        told = [report(leased, 1), report(leased, 2), report(leased, 3, "ended")]
        verdicts = scene.tell(*told, told[-1]).verdicts
        assert [verdict.accepted for verdict in verdicts] == [True] * 4
        assert scene.hear() == [(1, 1, "started"), (1, 1, "ended")]

    def test_a_pilot_gives_up(self, scene: Scene) -> None:
        scene.submit([1, 2])
        first, second = scene.ask(count=2)
        assert scene.report(first, 1, "lost").accepted
        assert scene.report(first, 1, "lost").accepted
        assert scene.report(second, 1, "lost", error=SITE_TROUBLE).accepted
        assert scene.hear() == [(1, 1, "lost"), (2, 1, "lost")]
        assert scene.heard[0].error is not None and scene.heard[0].error.kind == "site"
        assert scene.heard[1].error == SITE_TROUBLE

    def test_silence_loses_a_bundle_and_later_reports_are_refused(self, scene: Scene) -> None:
        scene.submit([1])
        (leased,) = scene.ask()
        scene.report(leased, 1)
        for seq in range(2, 5):
            scene.now += HEARTBEAT - 1
            scene.pool.care(scene.now)
            assert scene.report(leased, seq).accepted
        scene.now += HEARTBEAT + 1
        scene.pool.care(scene.now)
        scene.pool.care(scene.now)
        for state in ("running", "ended", "lost"):
            for seq in (4, 5):
                verdict = scene.report(leased, seq, state)
                assert (verdict.accepted, verdict.commands) == (False, ("kill",))
                assert "was not heard of for 301 s" in verdict.why
        assert scene.hear() == [(1, 1, "started"), (1, 1, "lost")]
        error = scene.heard[-1].error
        assert error is not None and (error.source, error.kind) == ("server", "site")

    def test_what_never_started_is_taken_back(self, scene: Scene) -> None:
        scene.submit([1])
        (leased,) = scene.ask()
        scene.now += START - 1
        scene.pool.care(scene.now)
        assert scene.hear() == []
        scene.now += 2
        scene.pool.care(scene.now)
        assert scene.hear() == [(1, 1, "lost")]
        assert "did not start" in scene.report(leased, 1).why

    def test_commands_for_pilots(self, scene: Scene) -> None:
        name = scene.called("p1")
        scene.submit([1, 2])
        (leased,) = scene.ask()
        assert scene.tell().commands == ()
        scene.pool.command_pilot(scene.operator, name, "drain")
        (verdict,) = (told := scene.tell(report(leased, 1))).verdicts
        assert verdict.accepted and told.commands == ("drain",)
        answer = scene.answer()
        assert isinstance(answer, Acquired)
        assert (answer.bundles, answer.commands) == ((), ("drain",))
        scene.pool.command_pilot(scene.operator, name, "stop")
        assert scene.tell().commands == ("stop",)
        with pytest.raises(Forbidden):
            scene.pool.command_pilot(scene.user, name, "stop")
        with pytest.raises(NotThere):
            scene.pool.command_pilot(scene.operator, "nobody", "stop")
        (row,) = scene.pool.pilots(scene.user, scene.now)
        assert (row["pilot"], row["running"], row["alive"]) == (name, 1, True)
        scene.now += HEARTBEAT + 1
        assert not scene.pool.pilots(scene.user, scene.now)[0]["alive"]
        scene.tell()
        assert scene.pool.pilots(scene.user, scene.now)[0]["alive"]

    def test_logs(self, scene: Scene) -> None:
        scene.submit([1, 2])
        (leased,) = scene.ask()
        log = scene.pool.log
        assert log(scene.user, scene.run, 1) == ""
        assert scene.pool.ask_tail(scene.user, scene.run, 1)
        assert not scene.pool.ask_tail(scene.user, scene.run, 2)
        assert scene.report(leased, 1).commands == ("tail",)
        assert scene.report(leased, 2, tail="the e\0nd").commands == ()
        assert log(scene.user, scene.run, 1) == "the e\ufffdnd"
        scene.report(leased, 3, "ended", tail="more")
        assert log(scene.user, scene.run, 1) == "more"
        put = scene.pool.put_log
        put(scene.pilot, leased.id, leased.lease, "all", scene.now)
        assert log(scene.user, scene.run, 1) == "all"
        with pytest.raises(Forbidden, match="lease"):
            put(scene.pilot, leased.id, "guessed", "lies", scene.now)
        with pytest.raises(Forbidden, match="role pilot"):
            put(scene.user, leased.id, leased.lease, "lies", scene.now)
        with pytest.raises(NotThere):
            put(scene.actor("pilot", vo="x"), leased.id, leased.lease, "lies", scene.now)
        with pytest.raises(NotThere):
            log(scene.user, scene.run, 99)


class QueueTests(PoolBase):
    """Queues, and their circuit breakers."""

    def test_a_site_that_spoils_bundles_is_held_and_probed(self, scene: Scene) -> None:
        scene.spoil([1, 2, 3, 4])
        assert scene.state() == "open"
        scene.spoil([5])
        queue = scene.pool.queue(scene.user, scene.queue, scene.now)
        assert (queue.state, queue.held_until) == ("held", scene.now + HOLD)
        assert "spoiled 5 of the last 5" in queue.reason and "no such replica" in queue.reason
        scene.submit(range(10, 20))
        assert scene.numbers(count=9) == []
        scene.now += HOLD - 1
        scene.pool.care(scene.now)
        assert scene.state() == "held"
        scene.now += 1
        scene.pool.care(scene.now)
        assert scene.state() == "probing"
        asks = [
            (scene.pilot, Acquire(pilot=scene.called(f"p{i}"), queue=scene.queue, cores=9, count=9))
            for i in range(3)
        ]
        answers = scene.pool.acquire(asks, scene.now)
        (probe,) = [b for each in answers if isinstance(each, Acquired) for b in each.bundles]
        assert scene.numbers(count=9) == []
        assert scene.report(probe, 1, "ended", "p0", error=SITE_TROUBLE).accepted
        queue = scene.pool.queue(scene.user, scene.queue, scene.now)
        assert (queue.state, queue.held_until) == ("held", scene.now + 2 * HOLD)
        scene.now += 2 * HOLD
        scene.pool.care(scene.now)
        (probe,) = scene.ask(count=9)
        scene.report(probe, 1, "ended")
        assert scene.state() == "open"
        assert len(scene.ask(count=9)) == 8

    def test_a_probe_that_is_cancelled_or_lost_makes_way(self, scene: Scene) -> None:
        scene.spoil(range(5))
        scene.now += HOLD
        scene.pool.care(scene.now)
        scene.submit([10, 11])
        scene.ask()
        scene.pool.cancel(scene.user, scene.run, [10], scene.now)
        assert scene.ask() == ()
        scene.pool.care(scene.now)
        assert scene.numbers() == [11]
        scene.now += START + 1
        scene.pool.care(scene.now)
        assert scene.state() == "held"

    def test_what_payloads_do_does_not_count(self, scene: Scene) -> None:
        scene.spoil(range(30), Trouble(source="payload", code=1, kind="exit", message="1"))
        scene.spoil(range(30, 60), Trouble(source="pilot", code=1, kind="memory", message="much"))
        assert scene.state() == "open"

    def test_silence_counts(self, scene: Scene) -> None:
        scene.submit(range(5))
        scene.ask(count=5)
        scene.now += START + 1
        scene.pool.care(scene.now)
        assert scene.state() == "held"
        scene.pool.open_queue(scene.operator, scene.queue, scene.now)
        assert scene.state() == "open"

    def test_a_site_that_is_mostly_well_stays_open(self, scene: Scene) -> None:
        for number in range(0, 60, 2):
            scene.spoil([number], None)
            scene.spoil([number + 1])
        assert scene.state() == "open"

    def test_closed_queues(self, scene: Scene) -> None:
        scene.submit([1, 2])
        (leased,) = scene.ask()
        closed = scene.pool.close_queue(scene.operator, scene.queue, scene.now, "repairs")
        assert (closed.state, closed.reason, closed.running) == ("closed", "repairs", 1)
        assert scene.numbers() == []
        assert scene.report(leased, 1, "ended").accepted
        scene.add_queue(scene.queue, heartbeat=7.0)
        assert scene.state() == "closed"
        scene.pool.open_queue(scene.operator, scene.queue, scene.now)
        assert scene.numbers() == [2]

    def test_who_may_change_queues(self, scene: Scene, pool: Pool) -> None:
        other = Scene(pool)
        body = QueueBody(vos=(scene.vo,))
        with pytest.raises(Forbidden, match="role operator"):
            pool.put_queue(scene.user, scene.queue, body, scene.now)
        with pytest.raises(Forbidden):
            pool.put_queue(scene.operator, other.queue, body, scene.now)
        with pytest.raises(Forbidden):
            pool.put_queue(other.operator, "new", body, scene.now)
        for change in (pool.close_queue, pool.open_queue, pool.delete_queue):
            with pytest.raises(NotThere):
                change(other.operator, scene.queue, scene.now)
            with pytest.raises(Forbidden):
                change(scene.user, scene.queue, scene.now)
        with pytest.raises(NotThere):
            pool.queue(other.user, scene.queue, scene.now)
        mine = {queue.name for queue in pool.queues(scene.user, scene.now)}
        assert scene.queue in mine and other.queue not in mine

    @pytest.mark.parametrize("site", [{"coers": 4}, {"cores": 0}, {"memory": "much"}])
    def test_a_site_that_is_none(self, scene: Scene, site: dict[str, Any]) -> None:
        with pytest.raises(WorkflowError, match=scene.queue):
            scene.add_queue(scene.queue, site=site)

    def test_demand_counts_what_a_queue_may_run(self, scene: Scene, pool: Pool) -> None:
        other = scene.add_queue(f"{scene.queue}-other", site={"cores": 2})
        scene.submit(range(5), memory=100)
        scene.submit([10, 11], cores=4)
        scene.submit([20], queue=other)
        stranger = Scene(pool)
        stranger.submit(range(3))
        assert len(scene.ask(count=2, memory=200)) == 2
        assert self.demand(scene, scene.queue) == {(1, 100): (3, 2), (4, None): (2, 0)}
        assert self.demand(scene, other) == {(1, 100): (3, 0), (1, None): (1, 0)}
        production = scene.actor("production")
        assert pool.demand(production, other, scene.now).queue.provision == Provision()
        with pytest.raises(Forbidden, match="operator or production"):
            pool.demand(scene.user, other, scene.now)
        with pytest.raises(NotThere):
            pool.demand(scene.operator, stranger.queue, scene.now)

    def test_demand_is_counted_up_to_a_bound(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pandaflow.grid.pool.demand.COUNTED", 3)
        scene.submit(range(5))
        assert self.demand(scene, scene.queue) == {(1, None): (3, 0)}

    @staticmethod
    def demand(scene: Scene, queue: str) -> dict[tuple[int, int | None], tuple[int, int]]:
        told = scene.pool.demand(scene.operator, queue, scene.now)
        return {(k.needs.cores, k.needs.memory): (k.ready, k.running) for k in told.classes}

    def test_provisioning_is_kept_with_the_queue(self, scene: Scene) -> None:
        wanted = Provision(min_pilots=1, max_pilots=7, pilots_a_minute=3.5, idle=60.0)
        scene.add_queue(scene.queue, provision=wanted)
        assert scene.pool.queue(scene.user, scene.queue, scene.now).provision == wanted
        with pytest.raises(ValueError, match="above max_pilots=2"):
            Provision(min_pilots=3, max_pilots=2)
