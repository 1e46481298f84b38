"""Random legal records against a naive model: the store must say what the model says."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pandaflow.core import commands as cmd
from pandaflow.core.errors import RunLocked, StoreError
from pandaflow.core.model import Jobs, compact
from pandaflow.core.status import JOB_LIVE, JOB_TERMINAL, JobStatus
from pandaflow.store.sql import SqlStore, this_process
from pandaflow.testing.postgres import PostgresServer
from pandaflow.testing.records import T0, bundle_records, example_spec, failure, moved

J = JobStatus
IDLE = (J.PENDING, J.READY)


@dataclass
class Job:
    """One job, the naive way: an object with a state."""

    status: JobStatus
    attempt: int = 0
    bundle: int | None = None
    not_before: float = 0.0
    touched: bool = False
    ended: list[tuple[int, str]] = field(default_factory=list)
    charged: int = 0
    lost: int = 0


@dataclass
class Bundle:
    jobs: Jobs
    attempt: int
    started: bool = False


class StoreMachine(RuleBasedStateMachine):
    """One task of one run; every rule is a commit."""

    store: SqlStore

    @initialize(n=st.integers(1, 12), first=st.sampled_from(IDLE))
    def begin(self, n: int, first: JobStatus) -> None:
        self.run = uuid4().hex
        self.store.create_run(example_spec(), run_id=self.run, created=T0, results="")
        self.driver = self.store.drive(self.run, this_process(), 60.0)
        self.jobs: list[Job] = []
        self.live: dict[int, Bundle] = {}
        self.numbers, self.events = count(1), 0
        self.last_bundle, self.arrivals, self.requests = 0, [], []
        self.grow(n, first)

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.same_in_loaded_state()
            self.driver.release()

    def commit(self, *records: cmd.Record, done: tuple[int, ...] = ()) -> None:
        self.driver.commit(records, done)
        self.events += len(records)

    def any_in(self, states: Iterable[JobStatus]) -> bool:
        """Whether any job is in one of ``states``."""
        return any(job.status in states for job in self.jobs)

    def pick(self, data: st.DataObject, states: Iterable[JobStatus]) -> Jobs:
        """Draw jobs that are all in one of ``states``."""
        here = {s: [k for k, job in enumerate(self.jobs) if job.status is s] for s in states}
        found = here[data.draw(st.sampled_from([s for s, jobs in here.items() if jobs]))]
        if data.draw(st.booleans()):
            first = data.draw(st.integers(0, len(found) - 1))
            found = found[first : first + data.draw(st.integers(1, len(found)))]
        else:
            found = sorted(data.draw(st.sets(st.sampled_from(found), min_size=1)))
        return compact(found)

    def put(self, jobs: Jobs, status: JobStatus, **more: Any) -> None:
        for k in jobs:
            job = self.jobs[k]
            job.status, job.touched = status, True
            job.not_before = more.get("not_before", 0.0)

    # --- legal records ---------------------------------------------------------------

    @rule(more=st.integers(0, 4), initial=st.sampled_from(IDLE))
    def grow(self, more: int, initial: JobStatus) -> None:
        n = len(self.jobs) + more
        self.commit(cmd.TaskGrew(T0, 0, n, False, initial))
        if self.jobs and initial != self.initial:
            for job in self.jobs:
                job.touched = True
        self.initial = initial
        self.jobs += [Job(initial) for _ in range(more)]

    @precondition(lambda self: self.any_in(IDLE))
    @rule(data=st.data(), skip=st.integers(0, 2), started=st.booleans())
    def send(self, data: st.DataObject, skip: int, started: bool) -> None:
        jobs = self.pick(data, IDLE)
        number = next(self.numbers)
        attempt = max(max(self.jobs[k].attempt + bool(self.jobs[k].ended) for k in jobs), 1) + skip
        start = self.jobs[jobs[0]].status
        self.commit(*bundle_records(number, jobs, attempt=attempt, start=start)[: 1 + started])
        self.put(jobs, J.RUNNING if started else J.SENT)
        for k in jobs:
            self.jobs[k].attempt, self.jobs[k].bundle = attempt, number
        self.live[number], self.last_bundle = Bundle(jobs, attempt, started), number

    @precondition(lambda self: any(not b.started for b in self.live.values()))
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        fresh = [number for number, b in self.live.items() if not b.started]
        number = data.draw(st.sampled_from(fresh))
        bundle = self.live[number]
        jobs = self.in_bundle(number)
        self.commit(bundle_records(number, jobs, attempt=bundle.attempt)[1])
        self.put(jobs, J.RUNNING)
        bundle.started = True

    @precondition(lambda self: self.live)
    @rule(finish=st.sampled_from(IDLE), revived=st.booleans())
    def fail_all(self, finish: JobStatus, revived: bool) -> None:
        """The oldest bundle fails as a whole, and a person may want its jobs tried again."""
        number = min(self.live)
        bundle, jobs = self.live.pop(number), self.in_bundle(number)
        start = J.RUNNING if bundle.started else J.SENT
        ended = bundle_records(number, bundle.jobs, attempt=bundle.attempt, finished=())[2]
        why = failure()
        gone = moved(jobs, start, J.FAILED, attempt=bundle.attempt, bundle=number, failure=why)
        self.commit(ended, gone)
        self.settle(gone)
        if revived:
            self.commit(moved(jobs, J.FAILED, finish, reason="retry"))
            self.forgive(jobs, finish)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """A bundle ends: some jobs finish, the others fail, wait, or go back."""
        number = data.draw(st.sampled_from(sorted(self.live)))
        bundle = self.live.pop(number)
        jobs = self.in_bundle(number)
        start = J.RUNNING if bundle.started else J.SENT
        done = compact([k for k in jobs if data.draw(st.booleans())])
        wall = [float(k) for k in bundle.jobs]
        _, _, ended = bundle_records(
            number, bundle.jobs, attempt=bundle.attempt, finished=done, wall=wall
        )
        records: list[cmd.Record] = [ended]
        for k in sorted({*jobs} - {*done}):
            records.append(self.leftover(data, number, bundle, k, start))
        self.commit(*records)
        self.put(done, J.FINISHED)
        for k in done:
            self.jobs[k].ended.append((bundle.attempt, "finished"))
        for record in records[1:]:
            self.settle(record)

    def leftover(
        self, data: st.DataObject, number: int, bundle: Bundle, k: int, start: JobStatus
    ) -> cmd.JobsMoved:
        one = range(k, k + 1)
        if start is J.RUNNING and data.draw(st.booleans()):
            return moved(one, start, J.PENDING, bundle=number, reason="blocked")
        finish = data.draw(st.sampled_from((J.FAILED, J.READY)))
        why = failure(charged=data.draw(st.booleans()))
        later = T0 + 60 if finish is J.READY else 0.0
        return moved(
            one, start, finish, attempt=bundle.attempt, bundle=number, failure=why, not_before=later
        )

    def settle(self, record: cmd.JobsMoved) -> None:
        self.put(record.jobs, record.finish, not_before=record.not_before)
        for k in record.jobs:
            if record.failure is not None:
                self.jobs[k].ended.append((record.attempt, "failed"))
                if record.failure.charged:
                    self.jobs[k].charged += 1
                else:
                    self.jobs[k].lost += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data(), finish=st.sampled_from((J.READY, J.CANCELLED)))
    def take_back(self, data: st.DataObject, finish: JobStatus) -> None:
        jobs = self.pick(data, (J.SENT, J.RUNNING))
        self.commit(moved(jobs, self.jobs[jobs[0]].status, finish, reason="taken back"))
        self.put(jobs, finish)
        for number in list(self.live):
            if not self.in_bundle(number):
                del self.live[number]

    @precondition(lambda self: self.any_in(IDLE))
    @rule(data=st.data(), finish=st.sampled_from((J.CLOSED, J.CANCELLED, J.READY, J.PENDING)))
    def move_idle(self, data: st.DataObject, finish: JobStatus) -> None:
        jobs = self.pick(data, IDLE)
        if self.jobs[jobs[0]].status is finish:
            finish = J.CLOSED
        self.commit(moved(jobs, self.jobs[jobs[0]].status, finish, not_before=-1.0))
        self.put(jobs, finish, not_before=-1.0)

    @precondition(lambda self: self.any_in(JOB_TERMINAL))
    @rule(data=st.data(), finish=st.sampled_from(IDLE))
    def revive(self, data: st.DataObject, finish: JobStatus) -> None:
        jobs = self.pick(data, (J.FAILED, J.FINISHED, J.CANCELLED, J.CLOSED))
        self.commit(moved(jobs, self.jobs[jobs[0]].status, finish, reason="retry"))
        self.forgive(jobs, finish)

    def forgive(self, jobs: Jobs, finish: JobStatus) -> None:
        self.put(jobs, finish)
        for k in jobs:
            self.jobs[k].charged = self.jobs[k].lost = 0

    @rule(data=st.data(), items=st.integers(0, 9))
    def arrive_and_answer(self, data: st.DataObject, items: int) -> None:
        """Items arrive; people wish for something; what they wished before is done."""
        job = data.draw(st.integers(0, len(self.jobs) - 1))
        done, self.requests = self.requests[:1], self.requests[1:]
        self.commit(done=tuple(done))
        self.commit(cmd.ItemsRecorded(T0, 0, job, items))
        self.arrivals.append((job, items))
        self.requests.append(self.store.request(self.run, "pause", {}))
        self.requests.append(self.store.request(self.run, "resume", {"by": "me"}))

    @rule()
    def change_drivers(self) -> None:
        """Another process goes on; the old driver cannot write any more."""
        self.same_in_loaded_state()
        old = self.driver
        old.release()
        self.driver = self.store.drive(self.run, this_process(), 60.0)
        with pytest.raises(RunLocked):
            old.commit([cmd.ItemsRecorded(T0, 0, 0, 1)])

    # --- illegal ones: refused as a whole --------------------------------------------

    @precondition(lambda self: self.last_bundle > len(self.live))
    @rule(data=st.data())
    def late_report(self, data: st.DataObject) -> None:
        """A bundle that is not in flight reports, after something that is all right."""
        over = [k for k in range(1, self.last_bundle + 1) if k not in self.live]
        number = data.draw(st.sampled_from(over))
        last = len(self.jobs) - 1
        fine = cmd.ItemsRecorded(T0, 0, last, 1)
        which = data.draw(st.sampled_from((1, 2)))
        with pytest.raises(StoreError):
            self.driver.commit([fine, bundle_records(number, range(last + 1), attempt=1)[which]])

    @rule(data=st.data())
    def wrong_start(self, data: st.DataObject) -> None:
        """A job is not where the record says it is."""
        k = data.draw(st.integers(0, len(self.jobs) - 1))
        wrong = data.draw(st.sampled_from([s for s in J if s is not self.jobs[k].status]))
        one, late = range(k, k + 1), self.jobs[k].attempt + 1
        with pytest.raises(StoreError, match=f"job {k} of select is {self.jobs[k].status}"):
            self.driver.commit([moved(one, wrong, J.CLOSED)])
        with pytest.raises(StoreError, match=f"job {k} of select is {self.jobs[k].status}"):
            self.driver.commit([bundle_records(10**6, one, attempt=late, start=wrong)[0]])

    # --- the store says what the model says --------------------------------------------

    def in_bundle(self, number: int) -> Jobs:
        """Jobs that are live in a bundle."""
        return compact(
            [
                k
                for k, job in enumerate(self.jobs)
                if job.bundle == number and job.status in JOB_LIVE
            ]
        )

    @invariant()
    def same_in_reader(self) -> None:
        if not hasattr(self, "driver"):
            return
        reader = self.store.reader()
        rows = list(reader.jobs(self.run, task="select"))
        assert [row["status"] for row in rows] == [job.status for job in self.jobs]
        assert [row["attempt"] for row in rows] == [job.attempt for job in self.jobs]
        expected = Counter(job.status for job in self.jobs)
        assert reader.counts(self.run) == expected
        for state in expected:
            found = [row["index"] for row in reader.jobs(self.run, status=state)]
            assert found == [k for k, job in enumerate(self.jobs) if job.status is state]
        events = reader.events(self.run)
        assert [event["seq"] for event in events] == list(range(1, self.events + 1))
        ended: list[list[tuple[int, str]]] = [[] for _ in self.jobs]
        for row in sorted(reader.timeline(self.run), key=lambda row: int(row["attempt"])):
            ended[row["index"]].append((row["attempt"], row["status"]))
        assert ended == [job.ended for job in self.jobs]

    def same_in_loaded_state(self) -> None:
        state = self.driver.load()
        task = state.tasks[0]
        assert (task.n, task.initial) == (len(self.jobs), self.initial)
        rows = {k: row for k, *row in task.jobs}
        assert {k for k, job in enumerate(self.jobs) if job.touched} <= set(rows)
        for k, row in rows.items():
            job = self.jobs[k]
            assert row == [job.status, job.attempt, job.bundle, job.not_before]
        charged = {k: job.charged for k, job in enumerate(self.jobs) if job.charged}
        lost = {k: job.lost for k, job in enumerate(self.jobs) if job.lost}
        assert (dict(task.failures), dict(task.losses)) == (charged, lost)
        assert [tuple(pair) for pair in task.arrivals] == self.arrivals
        in_flight = {bundle.id for bundle in state.bundles if not bundle.location}
        assert in_flight == set(self.live)
        assert state.next_bundle == self.last_bundle + 1
        assert [request.id for request in self.driver.renew()] == self.requests


@contextmanager
def opened(url: str) -> Iterator[SqlStore]:
    store = SqlStore(url)
    try:
        yield store
    finally:
        store.close()


def explore(store: SqlStore, examples: int) -> None:
    machine = type("Machine", (StoreMachine,), {"store": store})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            # Shrinking a failure would take minutes of commits; the steps are printed anyway.
            phases=[Phase.generate],
        ),
    )


def test_sqlite_agrees_with_the_model() -> None:
    with tempfile.TemporaryDirectory() as folder, opened(str(Path(folder) / "s.db")) as store:
        explore(store, examples=12)


@pytest.mark.postgres
def test_postgres_agrees_with_the_model(postgres: PostgresServer) -> None:
    with opened(postgres.create_database()) as store:
        explore(store, examples=3)


@pytest.mark.very_slow
@pytest.mark.postgres
def test_postgres_agrees_with_the_model_for_long(postgres: PostgresServer) -> None:
    with opened(postgres.create_database()) as store:
        explore(store, examples=30)
