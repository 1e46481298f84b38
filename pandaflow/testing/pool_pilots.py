"""What a pool must do about pilots: soft ends, goodbyes, and tokens of their own."""

# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

from dataclasses import replace

import pytest

from pandaflow.grid.identity import Forbidden
from pandaflow.grid.messages import Acquire, Leased, PilotUpdate, Verdict
from pandaflow.grid.pool import NotThere, Pool
from pandaflow.grid.pool.leasing import AVOIDED
from pandaflow.grid.pool.tokens import LIFE, OVERLAP, PREFIX, RENEWED, digest
from pandaflow.testing.pool_scene import HEARTBEAT, PoolBase, Scene


def begun(scene: Scene) -> Leased:
    """Return a bundle that a pilot runs."""
    scene.submit([1])
    (leased,) = scene.ask()
    assert scene.report(leased, 1).commands == ()
    return leased


class EndTests(PoolBase):
    """Bundles that are cancelled while a pilot runs them."""

    def test_a_cancelled_payload_may_end_by_itself(self, scene: Scene) -> None:
        leased = begun(scene)
        assert scene.pool.cancel(scene.user, scene.run, [1], scene.now) == 1
        for seq in (2, 3):  # said again with each report: an answer may be lost
            scene.now += 0.9 * HEARTBEAT
            verdict = scene.report(leased, seq)
            assert (verdict.accepted, verdict.commands) == (True, ("soft_kill",))
            scene.pool.care(scene.now)
            assert self._held(scene) == 1
        assert not scene.report(leased, 3).accepted, "late"
        scene.pool.put_log(scene.pilot, leased.id, leased.lease, "what was left", scene.now)
        assert scene.report(leased, 4, "ended").accepted
        assert self._held(scene) == 0
        assert scene.hear() == [(1, 1, "started")]
        assert scene.pool.log(scene.user, scene.run, 1) == "what was left"

    def test_one_that_does_not_end_is_killed(self, scene: Scene) -> None:
        leased = begun(scene)
        scene.pool.cancel(scene.user, scene.run, [1], scene.now)
        assert scene.report(leased, 2).commands == ("soft_kill",)
        assert scene.pool.cancel(scene.user, scene.run, [1], scene.now, kill=True) == 0
        self._is_killed(scene, scene.report(leased, 3))
        assert scene.report(leased, 4, "lost").accepted

    @pytest.mark.parametrize("which", [None, [1]])
    def test_one_may_be_killed_at_once(self, scene: Scene, which: list[int] | None) -> None:
        leased = begun(scene)
        assert scene.pool.cancel(scene.user, scene.run, which, scene.now, kill=True) == 1
        self._is_killed(scene, scene.report(leased, 2))

    def test_a_pilot_that_is_silent_does_not_hold_it_for_ever(self, scene: Scene) -> None:
        leased = begun(scene)
        scene.pool.cancel(scene.user, scene.run, None, scene.now)
        scene.report(leased, 2)
        scene.now += HEARTBEAT + 1
        scene.pool.care(scene.now)
        assert self._held(scene) == 0
        self._is_killed(scene, scene.report(leased, 3))

    def _is_killed(self, scene: Scene, verdict: Verdict) -> None:
        assert (verdict.accepted, verdict.commands) == (False, ("kill",))

    def _held(self, scene: Scene) -> int:
        (row,) = scene.pool.runs(scene.user)
        return int(row["held"])


class GoodbyeTests(PoolBase):
    """Pilots that end."""

    def test_a_pilot_that_says_goodbye_is_not_alive(self, scene: Scene) -> None:
        scene.ask("p1", cores=4)
        scene.ask("p2", cores=4)
        assert scene.pool.queue(scene.user, scene.queue, scene.now).pilots == 2
        self._leaves(scene, "p1")
        assert scene.pool.queue(scene.user, scene.queue, scene.now).pilots == 1
        alive = {row["pilot"]: row["alive"] for row in scene.pool.pilots(scene.user, scene.now)}
        assert alive == {scene.called("p1"): False, scene.called("p2"): True}
        slots = scene.pool.outcomes(scene.user, scene.run, 0, 1, scene.now).slots
        assert slots == 4, "its cores are not offered any more"

    def test_a_question_that_comes_after_its_goodbye_gets_nothing(self, scene: Scene) -> None:
        scene.ask("p1")
        self._leaves(scene, "p1")
        scene.submit([1])
        assert scene.ask("p1") == ()
        assert scene.numbers("p2") == [1]

    def test_nobody_says_goodbye_for_another(self, scene: Scene) -> None:
        scene.ask("p1")
        thief = scene.actor("pilot", subject="somebody else")
        told = PilotUpdate(pilot=scene.called("p1"), gone=True)
        scene.pool.update([(thief, told)], scene.now)
        assert scene.pool.queue(scene.user, scene.queue, scene.now).pilots == 1

    def _leaves(self, scene: Scene, pilot: str) -> None:
        told = PilotUpdate(pilot=scene.called(pilot), gone=True)
        scene.pool.update([(scene.pilot, told)], scene.now)


class AvoidTests(PoolBase):
    """Queues that have spoiled a bundle before."""

    def test_others_may_take_it_first(self, scene: Scene) -> None:
        other = scene.add_queue(f"{scene.queue}-other")
        scene.submit([1, 2, 3], avoid=(scene.queue,))
        scene.submit([4])
        assert scene.numbers(count=4) == [4]
        assert scene.numbers("p2", queue=other) == [1]
        scene.now += AVOIDED - 1
        assert scene.numbers() == []
        scene.now += 2
        assert scene.numbers() == [2], "better here than nowhere"

    def test_each_that_comes_gives_others_time_again(self, scene: Scene) -> None:
        scene.submit([1], avoid=(scene.queue,))
        scene.now += 0.9 * AVOIDED
        scene.submit([2], avoid=(scene.queue,))
        scene.now += 0.9 * AVOIDED
        assert scene.numbers() == []
        scene.now += 0.2 * AVOIDED
        assert scene.numbers(count=2) == [1, 2]


class TokenTests(PoolBase):
    """Pilots' own tokens."""

    def test_a_token_stands_for_one_pilot_at_one_queue(self, scene: Scene) -> None:
        token = self._made(scene)
        found = scene.pool.token_holder(digest(token), scene.now)
        assert found is not None
        actor, expires = found
        assert actor == replace(scene.pilot, bound=actor.bound)
        assert expires == pytest.approx(scene.now + LIFE)
        actor.check_bound(scene.called("p1"), scene.queue)
        for pilot, queue in ((scene.called("p2"), scene.queue), (scene.called("p1"), "another")):
            with pytest.raises(Forbidden, match="good for pilot"):
                actor.check_bound(pilot, queue)

    def test_it_expires(self, scene: Scene) -> None:
        token = self._made(scene)
        scene.now += LIFE - 1
        assert scene.pool.token_holder(digest(token), scene.now) is not None
        scene.now += 2
        assert scene.pool.token_holder(digest(token), scene.now) is None
        scene.pool.care(scene.now)
        assert scene.pool.token_holder(digest(token), 0.0) is None, "its row is gone"

    def test_the_older_one_is_good_for_a_little_longer(self, scene: Scene) -> None:
        first, second = self._made(scene), self._made(scene)
        assert scene.pool.token_holder(digest(first), scene.now + OVERLAP - 1) is not None
        assert scene.pool.token_holder(digest(first), scene.now + OVERLAP + 1) is None
        assert scene.pool.token_holder(digest(second), scene.now + OVERLAP + 1) is not None

    def test_renewals_end_some_days_after_the_first_proof(self, scene: Scene) -> None:
        token, began = self._made(scene), scene.now
        while (found := scene.pool.token_holder(digest(token), scene.now)) is not None:
            token = scene.pool.issue_token(
                found[0], scene.called("p1"), scene.queue, scene.now
            ).token
            scene.now += 0.6 * LIFE
        assert scene.now >= began + RENEWED
        assert scene.now < began + RENEWED + LIFE

    def test_goodbyes_withdraw_it(self, scene: Scene) -> None:
        scene.ask("p1")
        token = self._made(scene)
        told = PilotUpdate(pilot=scene.called("p1"), gone=True)
        scene.pool.update([(scene.pilot, told)], scene.now)
        assert scene.pool.token_holder(digest(token), scene.now) is None
        with pytest.raises(Forbidden, match="goodbye"):
            self._made(scene)

    def test_who_gets_none(self, scene: Scene, pool: Pool) -> None:
        with pytest.raises(Forbidden, match="role pilot"):
            pool.issue_token(scene.user, scene.called("p1"), scene.queue, scene.now)
        with pytest.raises(NotThere, match="no queue 'nowhere'"):
            pool.issue_token(scene.pilot, scene.called("p1"), "nowhere", scene.now)
        scene.ask("p1")
        thief = scene.actor("pilot", subject="somebody else")
        with pytest.raises(Forbidden, match="another pilot's"):
            pool.issue_token(thief, scene.called("p1"), scene.queue, scene.now)
        found = pool.token_holder(digest(self._made(scene)), scene.now)
        assert found is not None
        with pytest.raises(Forbidden, match="good for pilot"):
            pool.issue_token(found[0], scene.called("p2"), scene.queue, scene.now)

    def test_many_questions_leave_few_rows(self, scene: Scene) -> None:
        tokens = [self._made(scene) for _ in range(25)]
        held = [scene.pool.token_holder(digest(each), scene.now) for each in tokens]
        assert sum(each is not None for each in held) == 10
        assert held[-1] is not None

    def test_a_bound_actor_asks_for_work(self, scene: Scene) -> None:
        scene.ask("p1")
        found = scene.pool.token_holder(digest(self._made(scene)), scene.now)
        assert found is not None
        scene.submit([1])
        ask = Acquire(pilot=scene.called("p1"), queue=scene.queue)
        (answer,) = scene.pool.acquire([(found[0], ask)], scene.now)
        assert not isinstance(answer, (Forbidden, NotThere))
        assert [each.bundle for each in answer.bundles] == [1]
        assert replace(found[0], bound=None) == replace(scene.pilot, bound=None)

    def _made(self, scene: Scene) -> str:
        made = scene.pool.issue_token(scene.pilot, scene.called("p1"), scene.queue, scene.now)
        assert made.token.startswith(PREFIX)
        return made.token
