"""Conformance kit for executors: subclass it, give it an ``executor`` fixture, run pytest.

Examples
--------
>>> class TestMyExecutor(ExecutorTests):
...     @pytest.fixture(scope="class")
...     @classmethod
...     def executor(cls):
...         return MyExecutor("the-site")

Half of the tests open sessions and hand out bundles themselves (:class:`Probe`), the other half
run workflows. The results and the state store lie in the test's temporary folder, which the
executor's workers must be able to reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core.chunking import Fixed
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted, JobSaid, SlotsChanged
from pandaflow.ports import Channel, Executor
from pandaflow.testing import payloads
from pandaflow.testing.executor_runs import RunTests
from pandaflow.testing.probe import PATIENCE, Probe, still

__all__ = ["ExecutorTests", "Probe"]


def messages(probe: Probe, bundle: int) -> list[Any]:
    """Return what the jobs of a bundle have sent so far, in order of arrival."""
    return [event.body for event in probe.of(bundle) if isinstance(event, JobSaid)]


class SessionTests:
    """What a session must do. The subclass brings a fixture ``executor``."""

    #: ``submit`` returns before the bundles have run (else there is nothing to cancel).
    asynchronous = True
    #: A worker is a process of its own: a payload may end it, and the run goes on.
    survives_death = False
    #: A bundle that takes too long returns what it has.
    detaches = True
    #: How often to cancel a bundle at the moment when it begins.
    moments = 20

    @pytest.fixture
    def probe(self, executor: Executor, tmp_path: Path) -> Iterator[Probe]:
        """A session of the test's own."""
        probe = Probe(executor, tmp_path)
        yield probe
        probe.session.close(kill=True)

    # --- outcomes -------------------------------------------------------------------------------

    def test_slots_are_reported_before_anything_else(self, probe: Probe) -> None:
        assert probe.at_once >= 1
        first = probe.events[0]
        assert isinstance(first, SlotsChanged)
        assert first.executor == ""
        assert probe.slots() >= 1

    def test_mixed_bundle(self, probe: Probe) -> None:
        probe.submit(probe.bundle(1, payloads.fate, [1, "raise", "unpicklable", "skip", "x"]))
        report = probe.ended(1)
        assert {p: failure.kind for p, failure in report.failures.items()} == {
            1: "exception",
            2: "unserializable",
        }
        assert report.failures[1].type == "ValueError"
        assert report.failures[1].message == "ValueError: told to raise"
        assert "told to raise" in report.failures[1].traceback
        assert report.skipped == {3: "told to skip"}
        assert (report.blocked, report.unstarted, report.detached) == ({}, (), None)
        assert len(report.wall) == len(report.cpu) == 5
        values = probe.values(1)
        assert (values[0], values[4]) == (1, "x")

    def test_order_of_events(self, probe: Probe) -> None:
        probe.submit(*(probe.bundle(n, payloads.double, range(3)) for n in range(1, 6)))
        for number in range(1, 6):
            assert probe.ended(number).bundle == number
            kinds = [type(event) for event in probe.of(number)]
            assert kinds[0] is BundleStarted
            assert kinds.index(BundleEnded) == len(kinds) - 1
            (started, *_) = (e for e in probe.of(number) if isinstance(e, BundleStarted))
            assert started.at <= probe.ended(number).at
            assert probe.ended(number).worker

    def test_values_are_stored_before_the_report(self, probe: Probe) -> None:
        probe.submit(probe.bundle(1, payloads.double, [1, 2]))
        report = probe.ended(1)
        assert report.location
        assert probe.results.load(report.location).values == [2, 4]

    def test_code_that_cannot_be_loaded_fails_the_jobs(self, probe: Probe) -> None:
        given = probe.bundle(1, payloads.double, [1, 2])
        probe.submit(replace(given, payload="broken", code=b"no pickle"))
        report = probe.ended(1)
        assert sorted(report.failures) == [0, 1]

    def test_prints_are_kept_job_by_job(self, probe: Probe) -> None:
        probe.submit(probe.bundle(1, payloads.say, ["a", "b"]))
        report = probe.ended(1)
        assert probe.results.read_log(1, report.logs[0]) == "payload says a\n"
        assert probe.results.read_log(1, report.logs[1]) == "payload says b\n"

    # --- dependencies -----------------------------------------------------------------------------

    def test_dependency_in_the_same_slice(self, probe: Probe) -> None:
        first = probe.bundle(1, payloads.double, [1, 2])
        probe.submit(first, probe.dependent(2, payloads.double, first))
        assert probe.values(2) == [4, 8]

    def test_dependency_in_flight_from_an_earlier_slice(self, probe: Probe) -> None:
        first = probe.bundle(1, payloads.nap, [0.3])
        probe.submit(first)
        probe.submit(probe.dependent(2, payloads.double, first))
        assert probe.values(2) == [0.6]

    def test_dependency_from_the_store(self, executor: Executor, tmp_path: Path) -> None:
        earlier = Probe(executor, tmp_path)
        first = earlier.bundle(1, payloads.double, [1, 2])
        earlier.submit(first)
        place = earlier.ended(1).location
        earlier.session.close()
        later = Probe(executor, tmp_path, earlier.run)
        later.submit(later.dependent(2, payloads.double, first, place))
        assert later.values(2) == [4, 8]
        later.session.close()

    def test_released_values_are_read_from_the_store(self, probe: Probe) -> None:
        first = probe.bundle(1, payloads.double, [1, 2])
        probe.submit(first)
        place = probe.ended(1).location
        probe.session.release([1])
        probe.session.release([1, 99])
        probe.submit(probe.dependent(2, payloads.double, first, place))
        assert probe.values(2) == [4, 8]

    def test_values_that_are_gone_are_reported(self, probe: Probe) -> None:
        gone = probe.bundle(1, payloads.double, [1])
        probe.submit(probe.dependent(2, payloads.double, gone, probe.results.place(1)))
        assert isinstance(probe.end(2), BundleLost)

    def test_dependents_of_failed_jobs_are_blocked(self, probe: Probe) -> None:
        first = probe.bundle(1, payloads.fate, ["raise", 5])
        probe.submit(first, probe.dependent(2, payloads.double, first))
        report = probe.ended(2)
        assert list(report.blocked) == [0]
        assert "probe[0]" in report.blocked[0]
        assert probe.values(2)[1] == 10

    # --- stopping -------------------------------------------------------------------------------

    def test_cancel_of_a_running_bundle_stops_its_payload(
        self, probe: Probe, tmp_path: Path
    ) -> None:
        self._only_asynchronous()
        beat = tmp_path / "beat"
        probe.submit(probe.bundle(1, payloads.heartbeat, [str(beat)]))
        probe.until(beat.exists)
        probe.session.cancel([1])
        assert still(beat)
        probe.submit(probe.bundle(2, payloads.double, [1]))  # the slot is free again
        assert probe.values(2) == [2]

    def test_cancel_the_moment_a_bundle_begins(self, probe: Probe, tmp_path: Path) -> None:
        self._only_asynchronous()
        beats = [tmp_path / f"beat{n}" for n in range(self.moments)]
        for number, beat in enumerate(beats, 1):
            probe.submit(probe.bundle(number, payloads.heartbeat, [str(beat)]))
            probe.started(number)
            probe.session.cancel([number])
        assert all(still(beat, 0.1) for beat in beats if beat.exists())

    def test_cancel_of_a_waiting_bundle_keeps_it_from_running(
        self, probe: Probe, tmp_path: Path
    ) -> None:
        self._only_asynchronous()
        gate = tmp_path / "gate"
        first = probe.bundle(1, payloads.wait_for, [str(gate)])
        waiting = probe.dependent(2, payloads.touch, first)
        probe.submit(first, waiting, probe.dependent(3, payloads.double, first))
        probe.started(1)
        probe.session.cancel([2])
        gate.touch()
        assert probe.values(3) == [2 * str(gate)]
        assert not any(isinstance(event, BundleStarted) for event in probe.of(2))

    def test_dependents_of_a_cancelled_bundle_come_to_an_end(
        self, probe: Probe, tmp_path: Path
    ) -> None:
        self._only_asynchronous()
        first = probe.bundle(1, payloads.wait_for, [str(tmp_path / "never")])
        probe.submit(first, probe.dependent(2, payloads.double, first))
        probe.started(1)
        probe.session.cancel([1])
        event = probe.end(2)
        if isinstance(event, BundleLost):
            assert not event.charged, "nobody's job is to blame"
        else:
            assert list(event.blocked) == [0]

    def test_cancel_of_what_nobody_knows(self, probe: Probe) -> None:
        probe.session.cancel([77])
        probe.submit(probe.bundle(1, payloads.double, [1]))
        assert probe.values(1) == [2]
        probe.session.cancel([1])

    def test_close_with_kill_leaves_nothing_running(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        self._only_asynchronous()
        probe, beat = Probe(executor, tmp_path), tmp_path / "beat"
        first = probe.bundle(1, payloads.heartbeat, [str(beat)])
        probe.submit(first, probe.dependent(2, payloads.touch, first))
        probe.until(beat.exists)
        probe.session.close(kill=True)
        size = beat.stat().st_size
        time.sleep(0.3)
        assert beat.stat().st_size == size, "none runs when close returns"
        probe.session.close(kill=True)

    def test_others_work_on_after_a_kill(self, executor: Executor, tmp_path: Path) -> None:
        first, second = Probe(executor, tmp_path), Probe(executor, tmp_path)
        if self.asynchronous:
            first.submit(first.bundle(1, payloads.nap, [payloads.LONGEST]))
            first.started(1)
        first.session.close(kill=True)
        second.submit(second.bundle(1, payloads.double, [4]))
        assert second.values(1) == [8]
        second.session.close()

    def test_two_runs_at_once_do_not_mix(self, executor: Executor, tmp_path: Path) -> None:
        one, two = Probe(executor, tmp_path), Probe(executor, tmp_path)
        one.submit(*(one.bundle(n, payloads.double, [n]) for n in range(1, 5)))
        two.submit(*(two.bundle(n, payloads.double, [10 * n]) for n in range(1, 5)))
        assert [one.values(n) for n in range(1, 5)] == [[2], [4], [6], [8]]
        assert [two.values(n) for n in range(1, 5)] == [[20], [40], [60], [80]]
        one.session.close()
        two.submit(two.bundle(5, payloads.double, [1]))
        assert two.values(5) == [2]
        two.session.close()

    # --- the channel, of sessions that have one ---------------------------------------------------

    def test_messages_arrive_in_order_and_before_the_end(self, probe: Probe) -> None:
        self._channel(probe)

        def talk(n: int) -> int:
            job = pf.current_job()
            return sum(job.send({"step": step}) for step in range(n))

        probe.submit(probe.bundle(1, talk, [3, 2_000, 1]), probe.bundle(2, talk, [4]))
        assert (probe.values(1), probe.values(2)) == ([3, 2_000, 1], [4])
        events = probe.of(1)
        said = [event for event in events if isinstance(event, JobSaid)]
        expected = [(job, step) for job, n in enumerate((3, 2_000, 1)) for step in range(n)]
        assert [(event.job, event.body["step"]) for event in said] == expected
        assert {(event.task, event.attempt) for event in said} == {("probe", 1)}
        kinds = [type(event) for event in events]
        assert kinds.index(BundleEnded) == len(kinds) - 1
        assert messages(probe, 2) == [{"step": step} for step in range(4)]

    def test_a_message_that_cannot_be_sent_fails_its_job_only(self, probe: Probe) -> None:
        self._channel(probe)

        def talk(x: int) -> int:
            pf.current_job().send({"x": object() if x == 1 else x})
            return x

        probe.submit(probe.bundle(1, talk, [0, 1, 2]))
        report = probe.ended(1)
        assert list(report.failures) == [1]
        assert "JSON" in report.failures[1].message
        assert messages(probe, 1) == [{"x": 0}, {"x": 2}]

    def test_one_job_of_a_bundle_is_stopped_by_force(self, probe: Probe) -> None:
        channel = self._channel(probe, stop=True)
        work = _endless_if("deaf")
        probe.submit(probe.bundle(1, work, ["a", "b", "deaf", "d", "e"]))
        probe.until(lambda: len(messages(probe, 1)) == 3)
        channel.stop([("probe", 2), ("other", 4)], "no hope", 0.1)
        report = probe.ended(1)
        assert report.skipped == {2: "no hope"}
        assert (report.failures, report.unstarted) == ({}, ())
        values = probe.values(1)
        assert values[:2] + values[3:] == ["a", "b", "d", "e"]
        assert len(messages(probe, 1)) == 5

    def test_a_job_that_polls_ends_as_it_likes(self, probe: Probe) -> None:
        channel = self._channel(probe, stop=True)
        probe.submit(probe.bundle(1, _endless_if("polite"), ["polite"]))
        probe.until(lambda: len(messages(probe, 1)) == 1)
        channel.stop([("probe", 0)], "no hope", 2 * PATIENCE)
        report = probe.ended(1)
        assert (report.skipped, report.failures) == ({}, {})
        assert probe.values(1) == ["no hope"]

    def test_a_job_that_waits_in_its_bundle_never_begins(self, probe: Probe) -> None:
        channel = self._channel(probe, stop=True)
        probe.submit(probe.bundle(1, _endless_if("polite"), ["polite", "not wanted", "after"]))
        probe.until(lambda: len(messages(probe, 1)) == 1)
        # The first goes on until the request is there, so the second is asked before it begins.
        channel.stop([("probe", 1), ("probe", 0)], "too late", 2 * PATIENCE)
        assert probe.ended(1).skipped == {1: "too late"}
        assert probe.values(1)[0] == "too late"
        assert messages(probe, 1) == [{"begun": "polite"}, {"begun": "after"}]

    def test_a_bundle_that_waits_for_a_slot_is_asked_as_well(self, probe: Probe) -> None:
        channel = self._channel(probe, stop=True)
        holders = range(1, probe.slots() + 1)
        given = [probe.bundle(n, _endless_if("polite"), ["polite"]) for n in holders]
        waiting = probe.dependent(99, _endless_if("not wanted"), given[0])
        probe.submit(*given, replace(waiting, spec=replace(waiting.spec, name="waiting")))
        # A job that has not begun when it is asked never does.
        probe.until(lambda: all(messages(probe, number) for number in holders))
        # A holder leaves its slot when the request is there, so no slot is free before.
        channel.stop([("waiting", 0), ("probe", 0)], "not wanted", 2 * PATIENCE)
        assert [probe.values(number) for number in holders] == [["not wanted"]] * len(holders)
        assert probe.ended(99).skipped == {0: "not wanted"}
        assert messages(probe, 99) == []

    def test_a_stop_is_about_the_attempts_that_are_out(self, probe: Probe) -> None:
        channel = self._channel(probe, stop=True)
        work = _endless_if("deaf")
        probe.submit(probe.bundle(1, work, ["a"]))
        probe.ended(1)
        channel.stop([("probe", 0)], "it has ended", 0.0)
        probe.submit(probe.bundle(2, work, ["b"], attempt=2))
        assert probe.values(2) == ["b"]
        assert probe.ended(2).skipped == {}
        probe.submit(probe.bundle(3, work, ["deaf"], attempt=3))
        probe.until(lambda: len(messages(probe, 3)) == 1)
        channel.stop([("probe", 0)], "this one", 0.0)
        probe.submit(probe.bundle(4, work, ["c"], attempt=4))
        assert probe.ended(3).skipped == {0: "this one"}
        assert probe.values(4) == ["c"]
        channel.stop([("probe", 0), ("nobody", 7)], "nobody is there", 0.0)

    def _channel(self, probe: Probe, *, stop: bool = False) -> Channel:
        if not isinstance(probe.session, Channel):
            pytest.skip("its jobs cannot be reached while they run")
        if stop:
            self._only_asynchronous()
        return probe.session

    # --- patience and loss ------------------------------------------------------------------------

    def test_slow_job_is_detached_and_joined(self, probe: Probe, tmp_path: Path) -> None:
        if not self.detaches:
            pytest.skip("its bundles take as long as they take")
        gate = str(tmp_path / "gate")
        items = [str(tmp_path), gate, str(tmp_path)]  # there is no gate yet, but the folder is
        probe.submit(probe.bundle(1, payloads.wait_for, items, seconds=1.0))
        report = probe.ended(1)
        assert (report.detached, report.unstarted) == (1, (2,))
        probe.submit(
            probe.bundle(2, payloads.wait_for, [gate], jobs=range(1, 2), chunks=Fixed(3), join=1)
        )
        probe.started(2)
        Path(gate).touch()
        joined = probe.ended(2)
        assert joined.failures == {}
        assert probe.values(2) == [gate]

    def test_cancel_of_a_join_stops_the_job(self, probe: Probe, tmp_path: Path) -> None:
        if not self.detaches:
            pytest.skip("its bundles take as long as they take")
        beat = tmp_path / "beat"
        items = [str(beat), str(tmp_path / "other")]
        probe.submit(probe.bundle(1, payloads.heartbeat, items, seconds=0.2))
        assert probe.ended(1).detached == 0
        probe.submit(probe.bundle(2, payloads.heartbeat, items[:1], chunks=Fixed(2), join=1))
        probe.started(2)
        probe.session.cancel([2])
        assert still(beat)

    def test_death_of_a_worker_is_reported_with_the_position(self, probe: Probe) -> None:
        if not self.survives_death:
            pytest.skip("its workers are not processes that may die")
        probe.submit(probe.bundle(1, payloads.die, ["fine", "die", "fine"]))
        event = probe.end(1)
        assert isinstance(event, BundleLost)
        assert (event.position, event.charged) == (1, True)
        probe.submit(probe.bundle(2, payloads.double, [1]))
        assert probe.values(2) == [2]

    def _only_asynchronous(self) -> None:
        if not self.asynchronous:
            pytest.skip("a bundle has run when submit returns")


class ExecutorTests(SessionTests, RunTests):
    """What every executor must do. The subclass brings a fixture ``executor``."""


def _endless_if(what: str) -> Callable[[str], str]:
    """Return a payload that says that it begins, and goes on until it is stopped if told so."""

    def work(x: str) -> str:
        job = pf.current_job()
        job.send({"begun": x})
        end = time.monotonic() + payloads.LONGEST
        while x == what and time.monotonic() < end:
            if x == "polite" and job.stopping:
                return job.stopping
            time.sleep(0.005)
        return x

    return work
