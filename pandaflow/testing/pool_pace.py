"""The part of the pool's conformance kit on what makes it fast: nothing of it may change the rules.

Heartbeats leave alone when the pool's care looks at a bundle next; submissions are not serialised
but for a run's counts; statements travel together with the commit.
"""

# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from pandaflow.core.errors import StoreError
from pandaflow.grid.messages import Acquired, Leased, PilotUpdate
from pandaflow.grid.pool import NotThere, Pool
from pandaflow.grid.pool.holdings import KEPT
from pandaflow.grid.pool.session import reading, writing
from pandaflow.store.database import Database
from pandaflow.testing.pool_scene import HEARTBEAT, START, PoolBase, Scene, bundle, report


class PaceTests(PoolBase):
    """Short cuts of the pool, and what they must not cost."""

    def test_heartbeats_keep_a_bundle_for_as_long_as_they_come(self, scene: Scene) -> None:
        (leased,) = _held(scene)
        scene.report(leased, 1)
        for seq in range(2, 12):
            scene.now += HEARTBEAT - 1
            assert _lost(scene) == 0
            assert scene.report(leased, seq).accepted
            assert _lost(scene) == 0
        scene.now += HEARTBEAT - 1
        assert _lost(scene) == 0
        scene.now += 2
        assert _lost(scene) == 1, "found as soon as it is silent too long"
        assert scene.hear() == [(1, 1, "started"), (1, 1, "lost")]
        assert "not heard of for 301 s" in scene.report(leased, 20).why

    def test_what_was_sent_has_its_own_time_to_start(self, scene: Scene) -> None:
        assert HEARTBEAT < START
        scene.submit([1, 2])
        first, second = scene.ask(count=2)
        scene.now += HEARTBEAT + 1
        assert _lost(scene) == 0
        scene.report(first, 1)
        scene.now += HEARTBEAT - 2
        assert _lost(scene) == 0
        scene.now += 3  # START is over for the second, the heartbeat for the first
        assert _lost(scene) == 2
        assert "did not start it within 602 s" in scene.report(second, 1).why

    def test_neither_a_start_nor_heartbeats_move_when_care_looks(
        self, scene: Scene, database: Database
    ) -> None:
        (leased,) = _held(scene)
        before = _due(database, leased)
        for seq in range(1, 5):
            scene.now += 1
            assert scene.report(leased, seq).accepted
        # An index would have to be written for each.
        assert _due(database, leased) == before
        late = scene.report(leased, 4)
        assert not late.accepted and "late" in late.why, "and yet each report is remembered"

    def test_a_life_in_one_call_is_told_in_order_and_forgotten(self, scene: Scene) -> None:
        (leased,) = _held(scene)
        told = scene.tell(report(leased, 1), report(leased, 2), report(leased, 3, "ended"))
        assert [verdict.accepted for verdict in told.verdicts] == [True, True, True]
        assert scene.hear() == [(1, 1, "started"), (1, 1, "ended")]
        assert [each.seq for each in scene.heard] == [1, 2]
        scene.now += KEPT + 1
        scene.pool.care(scene.now)
        assert scene.report(leased, 3, "ended").accepted, "its driver has not acknowledged it"
        assert scene.hear() == []
        scene.now += KEPT + 1
        scene.pool.care(scene.now)
        assert "there is no bundle" in scene.report(leased, 3, "ended").why

    def test_many_pilots_in_one_call_number_their_outcomes_once_each(self, scene: Scene) -> None:
        scene.submit(range(30))
        held = {f"p{i}": scene.ask(f"p{i}", 10) for i in range(3)}
        for seq, state in ((1, "running"), (2, "ended")):
            told = [
                (
                    scene.pilot,
                    PilotUpdate(
                        pilot=scene.called(pilot),
                        reports=tuple(report(each, seq, state) for each in some),
                    ),
                )
                for pilot, some in held.items()
            ]
            answers = scene.pool.update(told, scene.now)
            assert all(verdict.accepted for answer in answers for verdict in answer.verdicts)
        assert len(scene.hear()) == 60
        assert [each.seq for each in scene.heard] == list(range(1, 61))
        (run,) = scene.pool.runs(scene.user)
        assert (run["ready"], run["held"]) == (0, 0)

    def test_a_queue_counts_what_its_pilots_hold(self, scene: Scene) -> None:
        def running() -> int:
            return scene.pool.queue(scene.operator, scene.queue, scene.now).running

        scene.submit([1, 2, 3, 4])
        ended, cancelled, lost, kept = scene.ask(count=4)
        assert running() == 4
        for each in (ended, cancelled, lost, kept):
            scene.report(each, 1)
        scene.report(ended, 2, "ended")
        scene.pool.cancel(scene.user, scene.run, [cancelled.bundle], scene.now)
        assert running() == 2
        scene.now += HEARTBEAT - 1
        scene.report(kept, 2)
        scene.now += 2
        scene.pool.care(scene.now)
        assert running() == 1

    def test_drivers_that_submit_the_same_at_once_submit_it_once(self, scene: Scene) -> None:
        def submit(first: int) -> None:
            told = [bundle(n, memory=1) for n in range(first, first + 100)]
            assert scene.pool.submit(scene.user, scene.run, told, scene.now) == {}

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(submit, [0, 50, 0, 50, 100, 100]))
        (run,) = scene.pool.runs(scene.user)
        assert run["ready"] == 200
        given = [n for _ in range(3) for n in scene.numbers(count=100)]
        assert sorted(given) == list(range(200))

    def test_nothing_stays_of_a_submission_to_a_run_that_is_gone(self, scene: Scene) -> None:
        scene.pool.forget_run(scene.user, scene.run, scene.now)
        with pytest.raises(NotThere):
            scene.submit([1])
        with pytest.raises(NotThere):
            scene.pool.put_payload(scene.user, scene.run, sha256(b"").hexdigest(), b"", scene.now)
        scene.pool.open_run(scene.user, scene.run, scene.now)
        assert scene.numbers(count=9) == []

    def test_a_pilot_that_moves_is_written_down(self, scene: Scene) -> None:
        other = scene.add_queue(f"{scene.queue}-b")
        assert isinstance(scene.answer(), Acquired)
        assert isinstance(scene.answer(queue=other, host="elsewhere"), Acquired)
        (pilot,) = scene.pool.pilots(scene.operator, scene.now)
        assert (pilot["queue"], pilot["host"]) == (other, "elsewhere")

    def test_of_statements_that_fail_together_nothing_stays(
        self, scene: Scene, database: Database, pool: Pool
    ) -> None:
        add = "INSERT INTO pool_payloads (run, digest, data) VALUES (-1, :digest, :data)"
        with pytest.raises(StoreError), writing(database) as session:
            with session.together(last=True):
                for digest in (scene.run, scene.vo, scene.run):
                    session.later(add, digest=digest, data=b"x")
        with reading(database) as session:
            query = "SELECT count(*) FROM pool_payloads WHERE digest AMONG :some[text]"
            assert session.one(query, some=[scene.run, scene.vo]) == (0,)
        assert pool.load()["ready"] >= 0, "the connection is of use"

    def test_statements_that_go_together_give_their_rows(self, database: Database) -> None:
        with writing(database) as session:
            with session.together(last=True):
                one = session.later("SELECT 1")
                many = session.later("SELECT name FROM pool_queues WHERE name = :n", n="nowhere")
        assert (one.rows, many.rows) == ([(1,)], [])


def _held(scene: Scene) -> tuple[Leased, ...]:
    scene.submit([1])
    return scene.ask()


def _lost(scene: Scene) -> int:
    """Let the pool care; return how many bundles of the run are lost."""
    scene.pool.care(scene.now)
    return len(scene.pool.bundles(scene.user, scene.run, "lost"))


def _due(database: Database, leased: Leased) -> float:
    with reading(database) as session:
        row = session.one("SELECT due FROM pool_bundles WHERE id = :id", id=leased.id)
    assert row is not None
    return float(row[0])
