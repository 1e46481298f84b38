"""Conformance of state stores: late and wrong records are refused, commits whole or nothing."""
# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from pandaflow.core import commands as cmd
from pandaflow.core.errors import StoreError
from pandaflow.core.status import JobStatus, RunStatus, TaskStatus
from pandaflow.ports import Owner, RunDriver, StateStore
from pandaflow.testing.records import T0, bundle_records, failure, moved, opening_records
from pandaflow.testing.store_fixtures import StoreFixtures

_J, _T, _R = JobStatus, TaskStatus, RunStatus


class FencingTests(StoreFixtures):
    """What a store keeps out, and that it keeps nothing of a commit that it refuses."""

    @pytest.mark.parametrize(
        "late",
        [
            cmd.BundleRunning(T0, 1, 0, range(10), 1, "late"),
            bundle_records(1, range(10))[2],
            moved(range(10), _J.RUNNING, _J.FAILED, attempt=1, bundle=1, failure=failure()),
        ],
    )
    def test_late_report_of_an_old_attempt(
        self, store: StateStore, run: str, driver: RunDriver, late: cmd.Record
    ) -> None:
        driver.commit([bundle_records(1, range(10))[0]])
        driver.commit([moved(range(10), _J.SENT, _J.READY, bundle=1)])
        sent, running, _ = bundle_records(2, range(10), attempt=2)
        driver.commit([sent, running])
        before = store.reader().events(run)
        with pytest.raises(StoreError, match=r"job 0 of select|bundle 1"):
            driver.commit([late])
        assert self.rows(driver) == {job: ("running", 2, 2) for job in range(10)}
        assert store.reader().events(run) == before

    def test_no_two_live_attempts(self, store: StateStore, run: str, driver: RunDriver) -> None:
        driver.commit([bundle_records(1, range(5))[0]])
        with pytest.raises(StoreError, match="job 4 of select is sent"):
            driver.commit([bundle_records(2, range(4, 8))[0]])
        assert self.statuses(store, run) == ["sent"] * 5 + ["ready"] * 5

    def test_attempt_number_never_goes_down(self, driver: RunDriver) -> None:
        driver.commit([bundle_records(1, range(1), attempt=3)[0]])
        driver.commit([moved(range(1), _J.SENT, _J.READY)])
        with pytest.raises(StoreError, match="job 0 of select is ready at attempt 3"):
            driver.commit([bundle_records(2, range(1), attempt=2)[0]])

    def test_attempt_ends_once(self, driver: RunDriver) -> None:
        driver.commit(bundle_records(1, range(1)))
        driver.commit([moved(range(1), _J.FINISHED, _J.PENDING)])
        with pytest.raises(StoreError):
            driver.commit(bundle_records(2, range(1), attempt=1, start=_J.PENDING))
        assert self.rows(driver)[0] == ("pending", 1, 1)

    def test_live_job_has_an_attempt(self, driver: RunDriver) -> None:
        with pytest.raises(StoreError):
            driver.commit([bundle_records(1, range(1), attempt=0)[0]])

    def test_jobs_beyond_the_task(self, driver: RunDriver) -> None:
        with pytest.raises(StoreError, match="select has 10 jobs"):
            driver.commit([bundle_records(1, range(8, 11))[0]])

    def test_bundle_number_is_used_once(self, driver: RunDriver) -> None:
        driver.commit([bundle_records(1, range(1))[0]])
        with pytest.raises(StoreError):
            driver.commit([bundle_records(1, range(1, 2))[0]])

    def test_commit_is_all_or_nothing(self, store: StateStore, run: str, driver: RunDriver) -> None:
        request = store.request(run, "pause", {})
        before = store.reader().run(run), store.reader().events(run)
        good = bundle_records(1, range(10))
        bad = cmd.TaskMoved(T0, 0, _T.PAUSED, _T.RUNNING)
        more = cmd.RunMoved(T0, _R.RUNNING, _R.DONE)
        with pytest.raises(StoreError):
            driver.commit([*good, cmd.ItemsRecorded(T0, 0, 1, 1), bad, more], [request])
        assert (store.reader().run(run), store.reader().events(run)) == before
        assert self.rows(driver) == {}
        assert [r.id for r in driver.renew()] == [request]
        driver.commit(good)  # the driver is as good as new
        assert self.counts(store, run) == {"finished": 10}

    def test_runs_do_not_touch_each_other(
        self, store: StateStore, run: str, driver: RunDriver, owner: Owner
    ) -> None:
        other = self.new_run(store)
        second = store.drive(other, replace(owner, token=uuid4().hex), 60.0)
        second.commit(opening_records(4))
        driver.commit(bundle_records(1, range(10)))
        second.commit([bundle_records(1, range(2))[0]])
        second.release()
        assert self.counts(store, run) == {"finished": 10}
        assert self.counts(store, other) == {"sent": 2, "ready": 2}
