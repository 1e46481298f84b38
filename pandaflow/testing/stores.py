"""Conformance kit for state stores: subclass it, give it a ``store`` fixture, run pytest.

Examples
--------
>>> class TestMyStore(StateStoreTests):
...     @pytest.fixture
...     def store(self, tmp_path):
...         return MyStore(tmp_path)

A store's reader may offer more than :class:`pandaflow.ports.StateReader`; what the kit asks of
it is in its tests. Every test makes its own runs, so that one store may serve them all.
"""

# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from uuid import uuid4

import pytest

from pandaflow.core import commands as cmd
from pandaflow.core.errors import RunLocked, RunNotFound, StoreError
from pandaflow.core.status import JobStatus, RunStatus
from pandaflow.ports import Owner, RunDriver, StateStore
from pandaflow.testing.records import (
    T0,
    bundle_records,
    example_spec,
    failure,
    moved,
    opening_records,
)
from pandaflow.testing.store_fencing import FencingTests
from pandaflow.testing.store_records import RecordTests

__all__ = ["StateStoreTests"]

_J, _R = JobStatus, RunStatus


class StateStoreTests(RecordTests, FencingTests):
    """What every state store must do. The subclass brings a fixture ``store``."""

    # --- runs ----------------------------------------------------------------------------

    def test_new_run_is_defined_and_loads_as_written(
        self, store: StateStore, run: str, owner: Owner
    ) -> None:
        driver = store.drive(run, owner, 60.0)
        state = driver.load()
        driver.release()
        assert state.id == run
        assert state.spec == example_spec()
        assert [task.spec for task in state.tasks] == list(example_spec().tasks)
        assert (state.status, state.results) == ("defined", "file:///results")
        assert {task.status for task in state.tasks} == {"defined"}
        assert (list(state.bundles), state.streams) == ([], {1: (0, False)})

    def test_run_id_is_unique(self, store: StateStore, run: str) -> None:
        with pytest.raises(StoreError, match=run):
            store.create_run(example_spec(), run_id=run, created=T0, results="")

    def test_unknown_run(self, store: StateStore, owner: Owner) -> None:
        with pytest.raises(RunNotFound, match="nowhere"):
            store.drive("nowhere", owner, 60.0)
        with pytest.raises(RunNotFound):
            store.request("nowhere", "cancel", {})
        for read in (store.reader().run, store.reader().events, store.reader().jobs):
            with pytest.raises(RunNotFound):
                read("nowhere")

    def test_prefix_and_last(self, store: StateStore) -> None:
        stem = uuid4().hex
        for name in ("a1", "a2", "b_"):
            store.create_run(
                example_spec(), run_id=f"{stem}{name}", created=time.time(), results=""
            )
        assert store.reader().run(f"{stem}b")["id"] == f"{stem}b_"
        assert store.reader().run("last")["id"] == f"{stem}b_"
        with pytest.raises(RunNotFound, match=f"{stem}a2, {stem}a1"):
            store.reader().run(f"{stem}a")
        with pytest.raises(RunNotFound):  # no wildcards
            store.reader().run(f"{stem}_1")

    def test_runs_are_listed_newest_first(self, store: StateStore) -> None:
        created = [self.new_run(store) for _ in range(3)]
        listed = [row["id"] for row in store.reader().runs(limit=3)]
        assert listed == created[::-1]

    # --- leases --------------------------------------------------------------------------

    def test_lease_keeps_others_out(
        self, store: StateStore, run: str, driver: RunDriver, owner: Owner
    ) -> None:
        for other in (replace(owner, token="other"), Owner("elsewhere", 1, 0.0, "x")):
            with pytest.raises(RunLocked, match=str(os.getpid())):
                store.drive(run, other, 60.0)

    def test_lease_of_another_host_holds(self, store: StateStore, run: str, owner: Owner) -> None:
        far = store.drive(run, Owner("elsewhere", 1, 0.0, "x"), 60.0)
        with pytest.raises(RunLocked, match="elsewhere"):
            store.drive(run, owner, 60.0)
        far.release()

    def test_released_lease_is_free(self, store: StateStore, run: str, owner: Owner) -> None:
        first = store.drive(run, owner, 60.0)
        first.release()
        first.release()
        second = store.drive(run, replace(owner, token="other"), 60.0)
        with pytest.raises(RunLocked):
            first.commit(opening_records())
        second.release()

    def test_lease_of_a_dead_process_is_void(
        self, store: StateStore, run: str, owner: Owner
    ) -> None:
        store.drive(run, replace(owner, pid=2**22 + 1, token="dead"), 3600.0)
        store.drive(run, owner, 60.0).release()

    def test_lease_of_a_reused_pid_is_void(self, store: StateStore, run: str, owner: Owner) -> None:
        store.drive(run, replace(owner, started=owner.started - 100, token="dead"), 3600.0)
        store.drive(run, owner, 60.0).release()

    def test_expired_lease_is_void_and_its_driver_fenced_off(
        self, store: StateStore, run: str, owner: Owner
    ) -> None:
        late = store.drive(run, Owner("elsewhere", 1, 0.0, "x"), 0.05)
        time.sleep(0.2)
        driver = store.drive(run, owner, 60.0)
        with pytest.raises(RunLocked, match=str(os.getpid())):
            late.commit(opening_records())
        with pytest.raises(RunLocked):
            late.renew()
        late.release()  # gives back nothing that is not its own
        driver.commit(opening_records())
        driver.release()
        assert self.counts(store, run) == {"ready": 10}

    def test_expired_lease_goes_on_if_nobody_took_it(
        self, store: StateStore, run: str, owner: Owner
    ) -> None:
        driver = store.drive(run, owner, 0.05)
        time.sleep(0.2)
        driver.commit(opening_records())
        driver.renew()
        driver.release()
        assert self.counts(store, run) == {"ready": 10}

    def test_commits_and_renewals_extend_the_lease(
        self, store: StateStore, run: str, owner: Owner
    ) -> None:
        driver = store.drive(run, owner, 0.05)
        driver.renew()
        other = store.drive(run, replace(owner, token=owner.token), 60.0)
        time.sleep(0.2)
        other.commit([])
        with pytest.raises(RunLocked):
            store.drive(run, replace(owner, token="third"), 60.0)
        other.release()

    # --- requests ------------------------------------------------------------------------

    def test_requests(self, store: StateStore, run: str, driver: RunDriver) -> None:
        first = store.request(run, "cancel", {"task": "select", "by": "me"})
        second = store.request(run, "pause", {})
        found = driver.renew()
        assert [(r.id, r.kind, dict(r.body)) for r in found] == [
            (first, "cancel", {"task": "select", "by": "me"}),
            (second, "pause", {}),
        ]
        driver.commit([], [first])
        assert [r.id for r in driver.renew()] == [second]
        driver.commit([cmd.RunMoved(T0, _R.RUNNING, _R.PAUSED)], [second])
        assert list(driver.renew()) == []

    def test_requests_wait_for_a_driver(self, store: StateStore, run: str, owner: Owner) -> None:
        number = store.request(run, "pause", {})
        driver = store.drive(run, owner, 60.0)
        assert [r.id for r in driver.renew()] == [number]
        driver.release()

    # --- reading -------------------------------------------------------------------------

    def test_every_filter_agrees_with_the_full_list(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        self.mixed(driver)
        reader = store.reader()
        everything = list(reader.jobs(run, task="select"))
        assert [row["index"] for row in everything] == list(range(10))
        for status in JobStatus:
            expected = [row for row in everything if row["status"] == status]
            assert list(reader.jobs(run, task="select", status=status)) == expected
            assert list(reader.jobs(run, status=status, limit=1)) == expected[:1]
        for index, row in enumerate(everything):
            assert list(reader.jobs(run, index=index, task="select")) == [row]
            other = next(s for s in JobStatus if s != row["status"])
            assert list(reader.jobs(run, index=index, status=other)) == []
        assert list(reader.jobs(run, limit=3)) == everything[:3]
        assert list(reader.jobs(run, index=10)) == []

    def test_counts_agree_with_the_jobs(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        self.mixed(driver)
        listed = [row["status"] for row in store.reader().jobs(run)]
        found = store.reader().run(run)
        assert found["jobs"] == {s: listed.count(s) for s in JobStatus if s in listed}
        assert store.reader().runs(limit=1)[0]["jobs"] == found["jobs"]

    def test_what_the_compiler_made_is_left_out(
        self, store: StateStore, run: str, driver: RunDriver
    ) -> None:
        driver.commit([cmd.TaskGrew(T0, 2, 1, True, _J.READY)])
        assert store.reader().run(run)["jobs"] == {"ready": 10}
        assert {row["task"] for row in store.reader().jobs(run)} == {"select"}
        assert len(list(store.reader().jobs(run, task="fill-gate"))) == 1
        sent, running, ended = bundle_records(1, range(1), task=2, finished=())
        failed = moved(
            range(1), _J.RUNNING, _J.FAILED, task=2, attempt=1, bundle=1, failure=failure()
        )
        driver.commit([sent, running, ended, failed])
        found = list(store.reader().jobs(run, status="failed"))
        assert [row["task"] for row in found] == ["fill-gate"]

    def test_bad_filters(self, store: StateStore, run: str) -> None:
        with pytest.raises(StoreError, match="select"):
            store.reader().jobs(run, task="nobody")
        with pytest.raises(StoreError, match="finished"):
            store.reader().jobs(run, status="perfect")

    def test_reader_sees_one_state(self, store: StateStore, run: str, driver: RunDriver) -> None:
        driver.commit([bundle_records(1, range(5))[0]])
        rows = store.reader().jobs(run, task="select")
        seen = list(itertools.islice(rows, 2))
        driver.commit([bundle_records(1, range(5))[1]])
        seen += list(rows)
        assert [row["status"] for row in seen] == ["sent"] * 5 + ["ready"] * 5
        assert self.counts(store, run) == {"running": 5, "ready": 5}
