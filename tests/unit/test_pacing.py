"""Reasons of executors: one a second, the newest wins; slots pass at once."""

from __future__ import annotations

from pandaflow.core.events import SlotsChanged
from pandaflow.pacing import Reasons


def say(at: float, reason: str, slots: int = 2, executor: str = "slurm") -> SlotsChanged:
    return SlotsChanged(at, executor, slots, reason)


def test_the_first_report_and_the_first_reason_pass_at_once() -> None:
    reasons = Reasons()
    for event in (say(10.0, ""), say(10.1, "1 waits")):
        assert reasons.take(event) == event
    assert reasons.take(say(10.2, "1 waits")) is None


def test_the_newest_reason_comes_when_its_second_is_over() -> None:
    reasons = Reasons()
    assert reasons.take(say(10.0, "1 waits")) is not None
    assert reasons.take(say(10.2, "2 wait")) is None
    assert reasons.take(say(10.4, "3 wait")) is None
    assert reasons.due(10.9) == []
    assert reasons.due(11.0) == [say(11.0, "3 wait")]
    assert reasons.due(20.0) == []
    assert reasons.take(say(11.5, "")) is None
    assert reasons.due(12.0) == [say(12.0, "")]


def test_slots_pass_at_once_with_the_reason_that_was_told() -> None:
    reasons = Reasons()
    assert reasons.take(say(10.0, "1 waits", slots=0)) is not None
    assert reasons.take(say(10.1, "2 wait", slots=3)) == say(10.1, "1 waits", slots=3)
    assert reasons.take(say(10.2, "3 wait", slots=3)) is None
    assert reasons.due(11.0) == [say(11.0, "3 wait", slots=3)]


def test_a_reason_that_came_back_is_not_told_again() -> None:
    reasons = Reasons()
    assert reasons.take(say(10.0, "1 waits")) is not None
    assert reasons.take(say(10.1, "2 wait")) is None
    assert reasons.take(say(10.2, "1 waits")) is None
    assert reasons.due(99.0) == []


def test_executors_do_not_wait_for_each_other() -> None:
    reasons = Reasons()
    assert reasons.take(say(10.0, "1 waits")) is not None
    assert reasons.take(say(10.1, "no workers", executor="dask")) is not None
    assert reasons.take(say(10.2, "2 wait")) is None
    assert [event.executor for event in reasons.due(11.0)] == ["slurm"]


def test_however_often_it_reports_one_reason_a_second_passes() -> None:
    reasons, passed = Reasons(), []
    for step in range(1000):
        at = 10.0 + step / 100
        told = [*reasons.due(at), reasons.take(say(at, f"{step} wait", slots=step % 7))]
        passed += [event.reason for event in told if event is not None]
    changes = [reason for k, reason in enumerate(passed) if k == 0 or reason != passed[k - 1]]
    assert len(changes) == 10
    assert reasons.due(99.0)[0].reason == "999 wait"
