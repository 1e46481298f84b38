"""Conformance of state stores: what records do to jobs, tasks, datasets and events."""
# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import pytest

from pandaflow.core import commands as cmd
from pandaflow.core.errors import StoreError
from pandaflow.core.model import Resources, TaskSpec
from pandaflow.core.status import JobStatus, RunStatus, TaskStatus
from pandaflow.ports import Owner, RunDriver, StateStore
from pandaflow.testing.records import T0, bundle_records, failure, moved, opening_records
from pandaflow.testing.store_fixtures import StoreFixtures

_J, _T, _R = JobStatus, TaskStatus, RunStatus


class RecordTests(StoreFixtures):
    """What each record does."""

    # --- the smooth path -----------------------------------------------------------------

    def test_smooth_path(self, store: StateStore, run: str, driver: RunDriver) -> None:
        sent, running, ended = bundle_records(1, range(10))
        for record, status in ((sent, "sent"), (running, "running"), (ended, "finished")):
            driver.commit([record])
            assert self.statuses(store, run) == [status] * 10
            assert self.counts(store, run) == {status: 10}
        assert self.rows(driver) == {job: ("finished", 1, 1) for job in range(10)}
        state = driver.load()
        assert [(b.id, b.jobs, b.location) for b in state.bundles] == [(1, range(10), "bundles/1")]
        assert state.next_bundle == 2

    def test_jobs_without_a_row_are_as_their_task_says(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        driver.commit([bundle_records(1, range(3, 5))[0]])
        assert sorted(self.rows(driver)) == [3, 4]
        assert self.statuses(store, run) == ["ready"] * 3 + ["sent"] * 2 + ["ready"] * 5
        assert self.counts(store, run) == {"ready": 8, "sent": 2}

    def test_scattered_indices(self, store: StateStore, run: str, driver: RunDriver) -> None:
        jobs = (0, 2, 3, 9)
        driver.commit(bundle_records(1, jobs, wall=[1.0, 2.0, 3.0, 4.0]))
        assert sorted(self.rows(driver)) == list(jobs)
        assert driver.load().bundles[0].jobs == jobs
        walls = {row["index"]: row["wall"] for row in store.reader().jobs(run, status="finished")}
        assert walls == {0: 1.0, 2: 2.0, 3: 3.0, 9: 4.0}

    def test_sites(self, store: StateStore, run: str, driver: RunDriver) -> None:
        sent, running, ended = bundle_records(1, range(10))
        sited = cmd.BundleSited(T0 + 1, 1, 0, range(10), 1, "", "may run at long, short")
        driver.commit([sent, sited])
        assert {job["site"] for job in store.reader().jobs(run)} == {None}
        driver.commit([replace(sited, site="long", reason="most room")])
        assert {job["site"] for job in store.reader().jobs(run)} == {"long"}
        assert self.statuses(store, run) == ["sent"] * 10
        driver.commit([running])  # tells no site: the placement stands
        driver.commit([ended])
        assert {job["site"] for job in store.reader().jobs(run)} == {"long"}
        told = [
            (event["bundle"], event["first"], event["last"], event["reason"])
            for event in store.reader().events(run)
            if event["kind"] == "bundle_placed"
        ]
        assert told == [(1, 0, 9, "may run at long, short"), (1, 0, 9, "most room")]

    def test_site_of_a_start(self, store: StateStore, run: str, driver: RunDriver) -> None:
        sent, running, _ = bundle_records(1, range(10))
        sited = cmd.BundleSited(T0 + 1, 1, 0, range(10), 1, "long")
        driver.commit([sent, sited, replace(running, site="short")])
        assert {job["site"] for job in store.reader().jobs(run)} == {"short"}

    def test_no_placement_of_a_bundle_that_is_over(self, run: str, driver: RunDriver) -> None:
        driver.commit(bundle_records(1, range(10)))
        for bundle in (1, 2):
            with pytest.raises(StoreError, match=f"bundle {bundle} is not live"):
                driver.commit([cmd.BundleSited(T0 + 4, bundle, 0, range(10), 1, "long")])

    def test_notes_are_events_and_nothing_else(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        before = store.reader().run(run)
        request = store.request(run, "retry", {"by": "me"})
        driver.commit([cmd.ExecutorNoted(T0 + 1, "slurm", 4, "2 pilot(s) wait")])
        refused = cmd.RequestRefused(T0 + 2, request, "retry", "no such option", "me")
        driver.commit([refused, cmd.ExecutorNoted(T0 + 3, "slurm", 4, "")], [request])
        told = store.reader().events(run)[-3:]
        assert [(event["at"], event["kind"], event["reason"]) for event in told] == [
            (T0 + 1, "executor_noted", "2 pilot(s) wait"),
            (T0 + 2, "request_refused", "no such option"),
            (T0 + 3, "executor_noted", ""),
        ]
        assert told[0]["detail"] == told[2]["detail"] == {"executor": "slurm", "slots": 4}
        assert told[1]["detail"] == {"request": request, "kind": "retry", "by": "me"}
        assert store.reader().run(run) == before
        assert not driver.renew()

    def test_start_report_may_be_missed(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        sent, _, ended = bundle_records(1, range(10))
        driver.commit([sent])
        driver.commit([ended])
        assert self.counts(store, run) == {"finished": 10}

    @pytest.mark.parametrize("kind", [list, tuple, lambda v: array("d", v)])
    def test_measures(self, store: StateStore, run: str, driver: RunDriver, kind: Any) -> None:
        wall = [0.5 + job for job in range(10)]
        driver.commit(
            bundle_records(
                1,
                range(10),
                wall=kind(wall),
                cpu=kind(wall),
                max_pss=array("q", [2**33 + job for job in range(10)]),
                cached=(4,),
                logs={5: (100, 20)},
            )
        )
        rows = list(store.reader().jobs(run, task="select"))
        assert [row["wall"] for row in rows] == wall
        assert [row["max_pss"] for row in rows] == [2**33 + job for job in range(10)]
        assert [row["started"] for row in rows][:3] == [T0 + 2, T0 + 2.5, T0 + 4.0]
        assert {row["worker"] for row in rows} == {"w1"}

    def test_measures_may_be_missing(self, store: StateStore, run: str, driver: RunDriver) -> None:
        driver.commit(bundle_records(1, range(10)))
        row = next(iter(store.reader().jobs(run, task="select", index=3)))
        assert (row["wall"], row["cpu"], row["max_pss"], row["failure"]) == (None,) * 4

    def test_large_bundle(self, store: StateStore, owner: Owner) -> None:
        run = self.new_run(store)
        driver, n = store.drive(run, owner, 60.0), 1234
        driver.commit(opening_records(n))
        wall = [float(job) for job in range(n)]
        driver.commit(bundle_records(1, range(n), wall=wall))
        driver.release()
        assert [row["wall"] for row in store.reader().jobs(run, task="select")] == wall

    # --- off the smooth path -------------------------------------------------------------

    def test_failed_attempt_goes_back_and_counts(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        done = tuple(job for job in range(10) if job != 4)
        sent, running, ended = bundle_records(
            1, range(10), finished=done, wall=[1.0] * 10, max_pss=list(range(10))
        )
        back = moved(
            range(4, 5),
            _J.RUNNING,
            _J.READY,
            attempt=1,
            bundle=1,
            failure=failure(),
            not_before=T0 + 60,
            wall=2.5,
            log=(7, 9),
            reason="tried again",
        )
        driver.commit([sent, running, ended, back])
        assert self.counts(store, run) == {"finished": 9, "ready": 1}
        task = driver.load().tasks[0]
        assert (dict(task.failures), dict(task.losses)) == ({4: 1}, {})
        assert [row for row in task.jobs if row[0] == 4] == [(4, "ready", 1, 1, T0 + 60)]
        row = next(iter(store.reader().jobs(run, task="select", index=4)))
        assert (row["reason"], row["wall"], row["max_pss"]) == ("tried again", 2.5, 4)
        assert row["failure"]["message"] == "no such branch"
        assert row["failure"]["mro"] == ["KeyError", "LookupError", "Exception"]

    def test_second_attempt(self, store: StateStore, run: str, driver: RunDriver) -> None:
        for attempt in (1, 2):
            sent, running, ended = bundle_records(attempt, range(1), attempt=attempt, finished=())
            back = moved(
                range(1),
                _J.RUNNING,
                _J.READY,
                attempt=attempt,
                bundle=attempt,
                failure=failure(charged=attempt == 1),
            )
            driver.commit([sent, running, ended, back])
        driver.commit(bundle_records(3, range(1), attempt=3))
        task = driver.load().tasks[0]
        assert (dict(task.failures), dict(task.losses)) == ({0: 1}, {0: 1})
        assert self.rows(driver)[0] == ("finished", 3, 3)

    def test_lost_range_goes_back_without_an_attempt(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        sent, running, _ = bundle_records(1, range(10))
        driver.commit([sent, running])
        driver.commit([moved(range(10), _J.RUNNING, _J.READY, bundle=1, reason="worker died")])
        state = driver.load()
        assert list(state.bundles) == []  # nobody has to report on it
        assert state.next_bundle == 2  # and its number is not used again
        # Jobs that never began keep their attempt number.
        driver.commit(bundle_records(2, range(10)))
        assert self.counts(store, run) == {"finished": 10}

    def test_half_a_bundle_taken_back_stays_in_flight(self, driver: RunDriver) -> None:
        driver.commit([bundle_records(1, range(10))[0]])
        driver.commit([moved(range(5), _J.SENT, _J.CANCELLED, reason="cancel")])
        assert [b.id for b in driver.load().bundles] == [1]
        driver.commit([moved(range(5, 10), _J.SENT, _J.READY, reason="taken back")])
        assert list(driver.load().bundles) == []

    def test_detached_job_keeps_its_bundle_until_joined(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        sent, running, ended = bundle_records(1, range(3), finished=range(2), detached=2)
        again = cmd.BundleSent(T0 + 5, 2, 0, range(2, 3), 1, _J.READY, "local")
        back = moved(range(2, 3), _J.RUNNING, _J.READY, bundle=1)
        driver.commit([sent, running, ended])
        assert self.statuses(store, run)[:3] == ["finished", "finished", "running"]
        assert [row["index"] for row in store.reader().jobs(run, status="running")] == [2]
        driver.commit([back, again])
        assert [b.id for b in driver.load().bundles] == [1, 2]
        driver.commit(list(bundle_records(2, range(2, 3))[1:]))
        assert self.counts(store, run)["finished"] == 3

    def test_persons_retry_forgives(self, store: StateStore, run: str, driver: RunDriver) -> None:
        sent, running, ended = bundle_records(1, range(2), finished=range(1))
        failed = moved(range(1, 2), _J.RUNNING, _J.FAILED, attempt=1, bundle=1, failure=failure())
        driver.commit([sent, running, ended, failed])
        assert dict(driver.load().tasks[0].failures) == {1: 1}
        assert [row["index"] for row in store.reader().jobs(run, status="failed")] == [1]
        driver.commit([moved(range(1, 2), _J.FAILED, _J.READY, reason="retry")])
        assert dict(driver.load().tasks[0].failures) == {}
        driver.commit(bundle_records(2, range(1, 2), attempt=2))
        assert self.rows(driver)[1] == ("finished", 2, 2)

    def test_restart_of_finished_jobs(self, store: StateStore, run: str, driver: RunDriver) -> None:
        driver.commit(bundle_records(1, range(10)))
        driver.commit([moved(range(10), _J.FINISHED, _J.PENDING, reason="restart")])
        driver.commit(bundle_records(2, range(10), attempt=2, start=_J.PENDING))
        assert self.rows(driver) == {job: ("finished", 2, 2) for job in range(10)}

    def test_moves_of_jobs_without_rows(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        driver.commit([moved(range(2, 4), _J.READY, _J.CLOSED, not_before=-1.0, reason="skip")])
        driver.commit([moved((5, 7), _J.READY, _J.CANCELLED, reason="by hand")])
        assert self.counts(store, run) == {"ready": 6, "closed": 2, "cancelled": 2}
        closed = list(store.reader().jobs(run, status="closed"))
        assert [(row["index"], row["reason"], row["attempt"]) for row in closed] == [
            (2, "skip", 0),
            (3, "skip", 0),
        ]
        rows = {row[0]: row for row in driver.load().tasks[0].jobs}
        assert rows[2] == (2, "closed", 0, None, -1.0)

    def test_odd_text_is_kept(self, store: StateStore, run: str, driver: RunDriver) -> None:
        sent, running, ended = bundle_records(1, range(1), finished=())
        odd = failure("nul \0, lone surrogate \udc80, µ ✓")
        failed = moved(
            range(1), _J.RUNNING, _J.FAILED, attempt=1, bundle=1, failure=odd, reason="a\0b"
        )
        driver.commit([sent, running, ended, failed])
        row = next(iter(store.reader().jobs(run, status="failed")))
        assert row["failure"]["message"].endswith("µ ✓")
        assert row["reason"].startswith("a")

    # --- tasks, datasets, events ---------------------------------------------------------

    def test_task_grows(self, store: StateStore, run: str, owner: Owner) -> None:
        driver = store.drive(run, owner, 60.0)
        driver.commit([cmd.TaskGrew(T0, 0, 3, False, _J.READY)])
        assert self.counts(store, run) == {"ready": 3}
        driver.commit([cmd.TaskGrew(T0, 0, 5, True, _J.READY)])
        task = driver.load().tasks[0]
        driver.release()
        assert (task.n, task.closed, task.initial) == (5, True, "ready")

    def test_growth_in_another_state_leaves_old_jobs_alone(
        self, store: StateStore, run: str, owner: Owner
    ) -> None:
        driver = store.drive(run, owner, 60.0)
        driver.commit([cmd.TaskGrew(T0, 0, 3, False, _J.PENDING)])
        driver.commit([cmd.TaskGrew(T0, 0, 5, True, _J.READY)])
        driver.release()
        assert self.statuses(store, run) == ["pending"] * 3 + ["ready"] * 2
        assert self.counts(store, run) == {"pending": 3, "ready": 2}

    def test_task_cannot_shrink(self, driver: RunDriver) -> None:
        with pytest.raises(StoreError, match="select"):
            driver.commit([cmd.TaskGrew(T0, 0, 9, True, _J.READY)])

    def test_task_added_and_changed(self, store: StateStore, run: str, driver: RunDriver) -> None:
        added = TaskSpec(id=3, name="body[0]", token="t3", payload="p3", iteration=(0, 1))
        driver.commit([cmd.TaskAdded(T0, added)])
        changed = added.changed(resources=Resources(memory=2**31))
        driver.commit([cmd.TaskChanged(T0, changed), cmd.TaskGrew(T0, 3, 2, True, _J.PENDING)])
        task = driver.load().tasks[3]
        assert (task.spec, task.status, task.n) == (changed, "defined", 2)
        with pytest.raises(StoreError):
            driver.commit([cmd.TaskAdded(T0, replace(added, id=4))])  # the name is taken

    def test_task_states(self, store: StateStore, run: str, driver: RunDriver) -> None:
        driver.commit([cmd.TaskMoved(T0, 0, _T.RUNNING, _T.DONE, "all jobs finished")])
        found = store.reader().run(run)["tasks"][0]
        assert (found["status"], found["reason"]) == ("done", "all jobs finished")
        assert driver.load().tasks[0].reason == "all jobs finished"
        with pytest.raises(StoreError, match="select is done"):
            driver.commit([cmd.TaskMoved(T0, 0, _T.RUNNING, _T.FAILED)])

    def test_run_states(self, store: StateStore, run: str, driver: RunDriver) -> None:
        driver.commit([cmd.RunMoved(T0 + 9, _R.RUNNING, _R.DONE)])
        found = store.reader().run(run)
        assert (found["status"], found["started"], found["ended"]) == ("done", T0, T0 + 9)
        driver.commit([cmd.RunMoved(T0 + 10, _R.DONE, _R.RUNNING, "retry")])
        found = store.reader().run(run)
        assert (found["status"], found["started"], found["ended"]) == ("running", T0, None)
        with pytest.raises(StoreError, match="not paused"):
            driver.commit([cmd.RunMoved(T0, _R.PAUSED, _R.RUNNING)])

    def test_arrivals_keep_their_order(self, driver: RunDriver) -> None:
        arrivals = [(3, 2), (0, 5), (1, 0)]
        driver.commit([cmd.ItemsRecorded(T0, 0, *arrival) for arrival in arrivals[:2]])
        driver.commit([cmd.ItemsRecorded(T0, 0, *arrivals[2])])
        assert [tuple(pair) for pair in driver.load().tasks[0].arrivals] == arrivals

    def test_streams(self, driver: RunDriver) -> None:
        driver.commit([cmd.StreamGrew(T0, 1, 7, False)])
        assert driver.load().streams == {1: (7, False)}
        driver.commit([cmd.StreamGrew(T0, 1, 7, True)])
        assert driver.load().streams == {1: (7, True)}
        with pytest.raises(StoreError):
            driver.commit([cmd.StreamGrew(T0, 99, 1, False)])

    def test_one_event_a_record_in_order(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        driver.commit(bundle_records(1, range(10)))
        driver.commit([moved((1, 3), _J.FINISHED, _J.PENDING, reason="restart")])
        found = store.reader().events(run)
        assert [event["seq"] for event in found] == list(range(1, 9))
        assert [event["kind"] for event in found[4:]] == [
            *("bundle_sent", "bundle_running", "bundle_finished", "jobs_moved")
        ]
        assert (found[4]["task"], found[4]["start"], found[4]["finish"]) == (
            *("select", "ready", "sent"),
        )
        assert (found[7]["first"], found[7]["last"], found[7]["jobs"]) == (1, 3, [1, 3])
        assert [event["seq"] for event in store.reader().events(run, after=3, limit=2)] == [4, 5]
