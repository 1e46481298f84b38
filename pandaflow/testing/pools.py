"""Conformance kit for the grid's pool: subclass it, give it a ``database`` fixture, run pytest.

Examples
--------
>>> class TestMyDatabase(PoolTests):
...     @pytest.fixture
...     def database(self, my_database):
...         return my_database

Every test has a virtual organisation, a run and queues of its own, so that one database may serve
them all. Time is what the tests say it is.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import chain
from typing import Any

import pytest

from pandaflow.grid.identity import Forbidden
from pandaflow.grid.messages import (
    Acquire,
    Acquired,
    Bundle,
    JobResult,
    Needs,
    OutputFile,
    Verdict,
)
from pandaflow.grid.pool import NotThere, Pool
from pandaflow.testing.pool_pace import PaceTests
from pandaflow.testing.pool_reports import QueueTests, ReportTests
from pandaflow.testing.pool_scene import (
    HEARTBEAT,
    T0,
    PoolBase,
    Scene,
    bundle,
    report,
)

__all__ = ["PoolTests", "Scene"]


class _DriverTests(PoolBase):
    """What drivers ask of a pool."""

    def test_what_was_submitted_is_leased_and_what_was_reported_is_heard(
        self, scene: Scene
    ) -> None:
        digest = sha256(b"code").hexdigest()
        scene.pool.put_payload(scene.user, scene.run, digest, b"code", scene.now)
        sent = Bundle(
            bundle=7,
            task="fit",
            jobs=(3, 5),
            attempt=2,
            priority=9,
            needs=Needs(memory=2**40, tags=("b", 'a"\\,{}')),
            kind="function",
            work=bytes(range(256)),
            code=digest,
            requirements=("numpy",),
            walltime=60.0,
            data="s3://x",
        )
        assert scene.pool.submit(scene.user, scene.run, [sent], scene.now) == {}
        (leased,) = scene.ask(tags=("c", 'a"\\,{}', "b"))
        for name in set(Bundle.model_fields) - {"priority"}:
            assert getattr(leased, name) == getattr(sent, name), name
        assert (leased.run, leased.heartbeat) == (scene.run, HEARTBEAT)
        assert scene.pool.payload(scene.pilot, leased.run, leased.code) == b"code"
        assert scene.report(leased, 1) == Verdict(id=leased.id, accepted=True)
        result = JobResult(
            position=0,
            code=0,
            began=1.5,
            ended=2.25,
            out=b"\x00\xff",
            files=(OutputFile(name="a/b", size=1, checksum="adler32:00000001", data=b"x"),),
        )
        done: dict[str, Any] = {
            "reply": b"\x00reply",
            "results": (result,),
            "metrics": {"cpu": 0.1},
        }
        scene.now += 1
        assert scene.report(leased, 2, "ended", **done).accepted
        assert scene.hear() == [(7, 2, "started"), (7, 2, "ended")]
        ended = scene.heard[1]
        assert (ended.seq, ended.at, ended.queue, ended.pilot) == (
            *(2, T0 + 1, scene.queue),
            scene.called("p1"),
        )
        assert {name: getattr(ended, name) for name in done} == done

    def test_submitting_again_changes_nothing(self, scene: Scene) -> None:
        scene.submit([1, 2])
        (held,) = scene.ask()
        assert scene.submit([1, 2, 3]) == {}
        assert [row["state"] for row in self.rows(scene)] == ["sent", "ready", "ready"]
        scene.report(held, 1, "ended")
        scene.submit([1])
        assert scene.numbers(count=9) == [2, 3]
        scene.submit([1], attempt=2)
        assert scene.numbers(count=9) == [1]

    def test_what_no_queue_can_run_is_refused_with_the_reason(self, scene: Scene) -> None:
        small = scene.add_queue(f"{scene.queue}-small", site={"cores": 2, "memory": "1 GB"})
        scene.add_queue(scene.queue, site={"cores": 4})
        assert scene.submit([1], cores=4, memory=2**40) == {}
        (why,) = scene.submit([2], cores=8).values()
        assert f"{scene.queue} asks for 8 cores and it has 4" in why
        assert f"{small} asks for 8 cores and it has 2" in why
        (why,) = scene.submit([3], queue=small, memory=2**40).values()
        assert "1 TiB of memory" in why and f"{scene.queue} " not in why
        (why,) = scene.submit([4], queue="nowhere").values()
        assert "no queue 'nowhere'" in why and small in why
        (why,) = scene.submit([5], code="0" * 64).values()
        assert "put it first" in why
        (why,) = scene.submit([6], kind="function").values()
        assert "without its work" in why
        assert scene.numbers(count=9, cores=99) == [1]

    def test_a_vo_without_queues_cannot_submit(self, scene: Scene) -> None:
        scene.pool.delete_queue(scene.operator, scene.queue, scene.now)
        assert "there is no queue for VO" in scene.submit([1])[1]

    def test_cancelled_bundles_are_not_given_and_holders_told_to_kill(self, scene: Scene) -> None:
        scene.submit([1, 2, 3, 4])
        held = scene.ask(count=2)
        cancel = scene.pool.cancel
        assert cancel(scene.user, scene.run, [1, 3, 77], scene.now) == 2
        assert cancel(scene.user, scene.run, [1, 3], scene.now) == 0
        assert scene.numbers(count=9) == [4]
        verdict = scene.report(held[0], 1)
        assert (verdict.accepted, verdict.commands) == (False, ("kill",))
        assert "cancelled" in verdict.why
        assert cancel(scene.user, scene.run, None, scene.now) == 2
        assert cancel(scene.user, scene.run, [], scene.now) == 0
        assert scene.hear() == []
        assert scene.pool.runs(scene.user)[0]["ready"] == 0
        assert scene.pool.runs(scene.user)[0]["held"] == 3, "pilots have not let go yet"
        assert scene.report(held[0], 2, "lost").accepted
        assert not scene.report(held[0], 2, "lost").accepted
        assert scene.pool.runs(scene.user)[0]["held"] == 2
        scene.pool.care(scene.now + 10_000)
        assert scene.pool.runs(scene.user)[0]["held"] == 0, "that pilot is gone itself"

    def test_outcomes_stay_until_they_are_acknowledged(self, scene: Scene) -> None:
        scene.submit(range(1, 5))
        for each in scene.ask(count=4):
            scene.report(each, 1, "ended")

        def read(after: int, limit: int = 100) -> list[int]:
            told = scene.pool.outcomes(scene.user, scene.run, after, limit, scene.now)
            return [each.seq for each in told.outcomes]

        assert read(0, 3) == read(0, 3) == [1, 2, 3]
        assert read(2) == [3, 4]
        assert read(0) == [3, 4]  # another driver, which has not heard what was acknowledged
        assert read(99) == []
        assert read(0) == []
        assert scene.pool.runs(scene.user)[0]["unread"] == 0

    def test_counts_and_why_bundles_wait(self, scene: Scene) -> None:
        def told() -> tuple[int, int, str]:
            answer = scene.pool.outcomes(scene.user, scene.run, 0, 9, scene.now)
            return answer.ready, answer.running, answer.waiting

        assert told() == (0, 0, "")
        scene.submit([1, 2], tags=("gpu-node",))
        assert told()[:2] == (2, 0) and "no pilot has asked" in told()[2]
        scene.ask()
        assert "have not what the bundles need" in told()[2]
        scene.pool.close_queue(scene.operator, scene.queue, scene.now, "a broken fan")
        assert "closed: a broken fan" in told()[2]
        scene.pool.open_queue(scene.operator, scene.queue, scene.now)
        scene.ask(tags=("gpu-node",))
        assert told() == (1, 1, "")

    def test_payloads_are_checked(self, scene: Scene) -> None:
        digest = sha256(b"code").hexdigest()
        with pytest.raises(ValueError, match="SHA-256"):
            scene.pool.put_payload(scene.user, scene.run, digest, b"other", scene.now)
        with pytest.raises(ValueError, match="16000000 at most"):
            large = bytes(16_000_001)
            scene.pool.put_payload(scene.user, scene.run, digest, large, scene.now)
        with pytest.raises(NotThere):
            scene.pool.payload(scene.pilot, scene.run, digest)
        for _ in range(2):
            scene.pool.put_payload(scene.user, scene.run, digest, b"code", scene.now)

    def test_a_forgotten_run_leaves_nothing(self, scene: Scene) -> None:
        scene.submit(range(1, 4))
        held, other = scene.ask(count=2)
        scene.report(other, 1, "ended")
        scene.pool.put_log(scene.pilot, held.id, held.lease, "text", scene.now)
        scene.pool.forget_run(scene.user, scene.run, scene.now)
        assert scene.numbers(count=9) == []
        verdict = scene.report(held, 1)
        assert (verdict.accepted, verdict.commands) == (False, ("kill",))
        with pytest.raises(NotThere):
            scene.submit([9])
        scene.pool.open_run(scene.user, scene.run, scene.now)
        assert self.rows(scene) == [] and scene.hear() == []

    @staticmethod
    def rows(scene: Scene) -> list[dict[str, Any]]:
        return scene.pool.bundles(scene.user, scene.run)


class _MatchingTests(PoolBase):
    """Who gets what."""

    def test_near_then_priority_then_number(self, scene: Scene) -> None:
        scene.submit([1, 2])
        scene.submit([3], priority=5)
        scene.submit([4], near=("elsewhere", scene.queue))
        scene.submit([5], priority=5, cores=2)
        scene.submit([6], priority=-1)
        assert scene.numbers(count=9, cores=99) == [4, 3, 5, 1, 2, 6]

    def test_a_priority_order_holds_over_many_classes_and_pages(self, scene: Scene) -> None:
        for number in range(60):
            scene.submit([number], priority=number * 7 % 60, memory=number % 5)
        got = scene.numbers(count=60, memory=1000)
        assert [number * 7 % 60 for number in got] == list(range(59, -1, -1))

    @pytest.mark.parametrize(
        ("needs", "has"),
        [
            ({"cores": 3}, {"cores": 3}),
            ({"gpus": 1}, {"gpus": 1}),
            ({"memory": 100}, {"memory": 100}),
            ({"disk": 100}, {"disk": 100}),
            ({"walltime": 60.0}, {"walltime": 60.0}),
            ({"python": "3.11"}, {"python": "3.11"}),
            ({"pandaflow": "1.0"}, {"pandaflow": "1.0"}),
            ({"container": "image"}, {"containers": ("podman",)}),
            ({"tags": ("x", "y")}, {"tags": ("y", "z", "x")}),
        ],
    )
    def test_needs_are_met(self, scene: Scene, needs: dict[str, Any], has: dict[str, Any]) -> None:
        (name, most), *_ = has.items()
        less = most * 0.5 if isinstance(most, float) else most - 1 if isinstance(most, int) else ""
        scene.submit([1], **needs)
        has_less: dict[str, Any] = {name: () if isinstance(most, tuple) else less}
        assert scene.numbers(**has_less) == []
        assert scene.numbers(**has) == [1]

    def test_no_demand_is_met_by_anything(self, scene: Scene) -> None:
        scene.submit([1])
        assert scene.numbers(memory=0, disk=0, walltime=0.0, gpus=0) == [1]

    def test_what_a_pilot_does_not_tell_turns_nothing_away(self, scene: Scene) -> None:
        scene.submit([1], memory=2**50, disk=2**50, walltime=1e9)
        assert scene.numbers() == [1]

    @pytest.mark.parametrize("what", ["cores", "gpus", "memory", "disk"])
    def test_a_pilot_never_gets_more_than_it_has(self, scene: Scene, what: str) -> None:
        for number in range(1, 7):
            scene.submit([number], **{what: 2 + number % 2})
        free: dict[str, Any] = {"cores": 99, what: 8}
        assert scene.numbers(count=9, **free) == [1, 2, 3]  # 3 + 2 + 3

    def test_only_as_many_as_asked_for(self, scene: Scene) -> None:
        scene.submit(range(1, 6))
        assert scene.numbers(count=2, cores=9) == [1, 2]
        assert scene.numbers(cores=0) == []

    def test_a_queue_asked_for_is_the_only_one(self, scene: Scene) -> None:
        other = scene.add_queue(f"{scene.queue}-other", tags=("big",))
        scene.submit([1], queue=other)
        scene.submit([2], tags=("big",))
        assert scene.numbers(count=9) == []
        assert scene.numbers("p2", count=9, queue=other) == [1, 2]

    def test_several_pilots_in_one_call_share_what_there_is(self, scene: Scene) -> None:
        scene.submit(range(1, 6))
        asks = [
            (scene.pilot, Acquire(pilot=scene.called(f"p{i}"), queue=scene.queue, cores=2, count=2))
            for i in range(4)
        ]
        answers = scene.pool.acquire(asks, scene.now)
        got = [[b.bundle for b in each.bundles] for each in answers if isinstance(each, Acquired)]
        assert got == [[1, 2], [3, 4], [5], []]
        assert isinstance(answers[3], Acquired) and answers[3].retry > 0

    def test_nothing_of_another_vo(self, scene: Scene, pool: Pool) -> None:
        other = Scene(pool)
        shared = scene.add_queue(f"{scene.queue}-shared", vos=(scene.vo, other.vo))
        other.submit([1])
        assert scene.numbers(count=9, queue=shared) == []
        assert other.numbers(count=9, queue=shared) == [1]
        refused = scene.answer(queue=other.queue)
        assert isinstance(refused, Forbidden) and "runs nothing of VO" in str(refused)

    def test_who_may_not_ask(self, scene: Scene) -> None:
        nowhere = scene.answer(queue="nowhere")
        assert isinstance(nowhere, Forbidden) and "no queue 'nowhere'" in str(nowhere)
        ask = Acquire(pilot="p9", queue=scene.queue)
        (refused,) = scene.pool.acquire([(scene.user, ask)], scene.now)
        assert isinstance(refused, Forbidden) and "role pilot" in str(refused)
        scene.ask()
        thief = scene.actor("pilot", subject="somebody else")
        ask = Acquire(pilot=scene.called("p1"), queue=scene.queue)
        (refused,) = scene.pool.acquire([(thief, ask)], scene.now)
        assert isinstance(refused, Forbidden) and "another pilot's" in str(refused)

    def test_threads_never_share_a_bundle_and_nothing_hangs(self, scene: Scene) -> None:
        n, errors = 240, list[BaseException]()
        scene.submit(range(n))
        got: list[list[int]] = [[] for _ in range(4)]
        barrier = threading.Barrier(4)

        def work(me: int) -> None:
            barrier.wait(60)
            while leased := scene.ask(f"p{me}", count=7):
                got[me] += [each.bundle for each in leased]
                ended = [report(each, 2, "ended") for each in reversed(leased)]
                started = [report(each, 1) for each in leased]
                verdicts = scene.tell(*started, *ended, pilot=f"p{me}").verdicts
                assert all(verdict.accepted for verdict in verdicts)

        with ThreadPoolExecutor(4) as threads:
            # A thread may find nothing while others hold what they only look at.
            for _ in range(2):
                done = [threads.submit(work, me) for me in range(4)]
                errors += [error for each in done if (error := each.exception(100))]
        assert errors == []
        assert sorted(chain.from_iterable(got)) == list(range(n))
        kinds = [kind for _, _, kind in scene.hear()]
        assert (kinds.count("started"), kinds.count("ended")) == (n, n)
        assert [each.seq for each in scene.heard] == list(range(1, 2 * n + 1))


class _VisibilityTests(PoolBase):
    """Who sees and changes what."""

    def test_a_foreign_run_is_not_there(self, scene: Scene, pool: Pool) -> None:
        stranger = Scene(pool)
        who, run, now = stranger.user, scene.run, scene.now
        scene.submit([1])
        digest = sha256(b"").hexdigest()
        for call in (
            lambda: pool.submit(who, run, [bundle(2)], now),
            lambda: pool.cancel(who, run, None, now),
            lambda: pool.outcomes(who, run, 0, 9, now),
            lambda: pool.forget_run(who, run, now),
            lambda: pool.put_payload(who, run, digest, b"", now),
            lambda: pool.payload(who, run, digest),
            lambda: pool.bundles(who, run),
            lambda: pool.log(who, run, 1),
            lambda: pool.ask_tail(who, run, 1),
        ):
            with pytest.raises(NotThere, match="there is no run"):
                call()
        with pytest.raises(Forbidden, match="not yours"):
            pool.open_run(who, run, now)
        assert [each["run"] for each in pool.runs(who)] == [stranger.run]
        assert pool.pilots(who, now) == []

    def test_colleagues_see_and_operators_change(self, scene: Scene) -> None:
        scene.submit([1])
        colleague = scene.actor("user", subject="colleague")
        assert len(scene.pool.bundles(colleague, scene.run)) == 1
        with pytest.raises(Forbidden, match="another user's"):
            scene.pool.cancel(colleague, scene.run, None, scene.now)
        with pytest.raises(Forbidden):
            scene.pool.open_run(colleague, scene.run, scene.now)
        with pytest.raises(Forbidden):
            scene.pool.open_run(scene.pilot, "new", scene.now)
        production = scene.actor("production", subject="robot")
        assert scene.pool.cancel(production, scene.run, None, scene.now) == 1

    def test_services_put_runs_into_the_pool_for_others(self, scene: Scene) -> None:
        robot = scene.actor("production", subject="robot")
        name = f"{scene.run}-left"
        scene.pool.open_run(robot, name, scene.now, scene.user.subject)
        scene.pool.open_run(robot, name, scene.now, scene.user.subject)
        (row,) = [each for each in scene.pool.runs(scene.user) if each["run"] == name]
        assert row["owner"] == scene.user.subject
        assert scene.pool.cancel(scene.user, name, None, scene.now) == 0
        assert scene.pool.cancel(robot, name, None, scene.now) == 0
        stranger = scene.actor("user", subject="stranger")
        with pytest.raises(Forbidden, match="another user's"):
            scene.pool.cancel(stranger, name, None, scene.now)
        with pytest.raises(Forbidden, match="production or operator"):
            scene.pool.open_run(stranger, f"{name}-2", scene.now, scene.user.subject)
        scene.pool.open_run(stranger, f"{name}-2", scene.now, "stranger")

    def test_text_that_a_database_cannot_take(self, scene: Scene) -> None:
        with pytest.raises(ValueError, match="zero byte"):
            scene.pool.bundles(scene.user, "a\0b")
        scene.submit([1])
        assert scene.numbers(host="a\0b") == [1]

    def test_counts_of_all(self, scene: Scene) -> None:
        before = scene.pool.load()
        scene.submit(range(5))
        first, *_ = scene.ask(count=3)
        scene.report(first, 1, "ended")
        after = scene.pool.load()
        new = {name: after[name] - before[name] for name in ("ready", "held", "unread", "pilots")}
        assert new == {"ready": 2, "held": 2, "unread": 1, "pilots": 1}


class PoolTests(_DriverTests, _MatchingTests, ReportTests, QueueTests, PaceTests, _VisibilityTests):
    """What the pool must do on every database. The subclass brings a fixture ``database``."""
