"""What the conformance tests of state stores stand on: runs, their drivers, their jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

import pytest

from pandaflow.core import commands as cmd
from pandaflow.core.model import WorkflowSpec
from pandaflow.core.status import JobStatus
from pandaflow.ports import Owner, RunDriver, StateStore
from pandaflow.testing.records import bundle_records, example_spec, failure, moved, opening_records


class StoreFixtures:
    """What the tests stand on. The subclass brings a fixture ``store``."""

    @pytest.fixture
    def owner(self) -> Owner:
        """Name this process, as a lease does."""
        from pandaflow.store.owner import this_process

        return this_process()

    @pytest.fixture
    def run(self, store: StateStore) -> str:
        """A new run."""
        return self.new_run(store)

    @pytest.fixture
    def driver(self, store: StateStore, run: str, owner: Owner) -> Iterator[RunDriver]:
        """A driver of ``run``, begun: ten jobs of ``select`` are ready."""
        driver = store.drive(run, owner, 60.0)
        driver.commit(opening_records())
        yield driver
        driver.release()

    def new_run(self, store: StateStore, spec: WorkflowSpec | None = None) -> str:
        """Create a run under a new id; return the id."""
        run_id = f"r-{uuid4().hex}"
        store.create_run(
            spec or example_spec(), run_id=run_id, created=time.time(), results="file:///results"
        )
        return run_id

    def rows(self, driver: RunDriver, task: int = 0) -> dict[int, tuple[str, int, int | None]]:
        """Return status, attempt and bundle of the jobs that have a row."""
        state = driver.load().tasks[task]
        return {
            job: (str(status), attempt, bundle) for job, status, attempt, bundle, _ in state.jobs
        }

    def statuses(self, store: StateStore, run: str, task: str = "select") -> list[str]:
        """Return the state of each job of a task, as the reader tells."""
        return [str(row["status"]) for row in store.reader().jobs(run, task=task)]

    def counts(self, store: StateStore, run: str, task: str = "select") -> dict[str, int]:
        """Return a task's counts by state."""
        found = next(t for t in store.reader().run(run)["tasks"] if t["name"] == task)
        return dict(found["jobs"])

    def mixed(self, driver: RunDriver) -> None:
        """Commit records after which the ten jobs of ``select`` are in many states."""
        sent, running, ended = bundle_records(1, range(2, 6), finished=(2, 4))
        records: Sequence[cmd.Record] = [
            *(sent, running, ended),
            moved(
                range(3, 4),
                JobStatus.RUNNING,
                JobStatus.FAILED,
                attempt=1,
                bundle=1,
                failure=failure(),
            ),
            moved(
                range(5, 6),
                JobStatus.RUNNING,
                JobStatus.READY,
                attempt=1,
                bundle=1,
                failure=failure(),
            ),
            bundle_records(2, range(6, 7))[0],
            *bundle_records(3, range(7, 8))[:2],
            moved(range(8, 9), JobStatus.READY, JobStatus.CLOSED),
        ]
        driver.commit(records)
