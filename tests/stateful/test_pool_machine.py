"""A pool whose pilots come, report, repeat themselves, lie, fall silent, in any order.

The model says of each bundle who has it and what its driver is to hear: one start at most and one
end at most for each lease, in order, whatever else is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pandaflow.grid.identity import Actor
from pandaflow.grid.messages import Acquire, Acquired, PilotUpdate, Report
from pandaflow.grid.places import QueueBody
from pandaflow.grid.pool import Pool
from pandaflow.grid.pool.holdings import KEPT
from pandaflow.store.database import Database
from pandaflow.testing.pool_scene import bundle
from pandaflow.testing.postgres import PostgresServer

HEARTBEAT, START = 50.0, 100.0
PILOTS = ("a", "b", "c")
OVER = {"ended", "lost", "cancelled"}


@dataclass
class Modelled:
    """A bundle of the model."""

    bundle: int
    attempt: int
    cores: int
    priority: int
    state: str = "ready"
    id: int = 0
    pilot: str = ""
    lease: str = ""
    seq: int = 0
    due: float = 0.0
    by_server: bool = False
    outcome: int = 0
    purged: bool = False
    let_go: bool = False
    #: It was cancelled, and its payload may end by itself.
    soft: bool = False

    @property
    def held(self) -> bool:
        return self.state in ("sent", "running")


class PoolMachine(RuleBasedStateMachine):
    """A run, a queue, three pilots, a driver, and the model of all."""

    database: ClassVar[Database]

    @initialize()
    def set_up(self) -> None:
        name = uuid4().hex
        roles = frozenset({"user", "operator", "pilot"})
        self.pool, self.now, self.run = Pool(self.database), 1e9, f"run-{name}"
        self.actor, self.queue = Actor("all", "all", name, roles), f"queue-{name}"
        body = QueueBody(vos=(name,), heartbeat=HEARTBEAT, start=START)
        self.pool.put_queue(self.actor, self.queue, body, self.now)
        self.pool.open_run(self.actor, self.run, self.now)
        self.model: dict[tuple[int, int], Modelled] = {}
        self.outcomes: list[tuple[int, int, str]] = []
        self.acked = 0

    # --- drivers ------------------------------------------------------------------------

    @rule(
        numbers=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
        attempt=st.integers(1, 2),
        cores=st.integers(1, 2),
        priority=st.integers(0, 1),
    )
    def submit(self, numbers: list[int], attempt: int, cores: int, priority: int) -> None:
        sent = [bundle(n, attempt=attempt, cores=cores, priority=priority) for n in numbers]
        assert self.pool.submit(self.actor, self.run, sent, self.now) == {}
        for number in sorted(numbers):
            old = self.model.get((number, attempt))
            if old is None or old.purged:
                new = Modelled(number, attempt, cores, priority)
                self.model.pop((number, attempt), None)
                self.model[number, attempt] = new

    @rule(numbers=st.none() | st.lists(st.integers(0, 9), max_size=3), kill=st.booleans())
    def cancel(self, numbers: list[int] | None, kill: bool) -> None:
        live = [
            each
            for each in self.model.values()
            if each.state not in OVER and (numbers is None or each.bundle in numbers)
        ]
        told = self.pool.cancel(self.actor, self.run, numbers, self.now, kill=kill)
        assert told == len(live)
        for each in self.model.values():
            if kill and (numbers is None or each.bundle in numbers):
                each.soft = False
        for each in live:
            each.let_go, each.soft = each.held, each.held and not kill
            patience = HEARTBEAT if each.held else KEPT
            each.state, each.due = "cancelled", self.now + patience

    @rule(limit=st.integers(1, 5))
    def driver_reads(self, limit: int) -> None:
        told = self.pool.outcomes(self.actor, self.run, self.acked, limit, self.now).outcomes
        got = [(each.bundle, each.attempt, each.kind) for each in told]
        assert got == self.outcomes[self.acked : self.acked + limit]
        assert [each.seq for each in told] == [self.acked + i + 1 for i in range(len(told))]
        if told:
            self.acked = told[-1].seq
            self.pool.outcomes(self.actor, self.run, self.acked, 1, self.now)

    # --- pilots -------------------------------------------------------------------------

    @rule(
        asked=st.lists(
            st.tuples(st.sampled_from(PILOTS), st.integers(0, 4), st.integers(1, 3)),
            min_size=1,
            max_size=3,
        )
    )
    def acquire(self, asked: list[tuple[str, int, int]]) -> None:
        self.pool.open_queue(self.actor, self.queue, self.now)
        asks = [
            Acquire(pilot=self.called(p), queue=self.queue, cores=cores, count=count)
            for p, cores, count in asked
        ]
        answers = self.pool.acquire([(self.actor, ask) for ask in asks], self.now)
        for (pilot, cores, count), answer in zip(asked, answers, strict=True):
            assert isinstance(answer, Acquired)
            got = [self.lease(pilot, each) for each in answer.bundles]
            left = cores - sum(each.cores for each in got)
            assert left >= 0 and len(got) <= count
            waiting = [each for each in self.model.values() if each.state == "ready"]
            if len(got) < count:
                assert all(each.cores > left for each in waiting)
            for one in got:
                better = [w for w in waiting if w.cores == one.cores and w.priority > one.priority]
                assert better == []

    def lease(self, pilot: str, leased: Any) -> Modelled:
        """Give a bundle of the model to a pilot."""
        each = self.model[leased.bundle, leased.attempt]
        assert each.state == "ready", "it is somebody else's"
        each.state, each.pilot, each.seq = "sent", pilot, 0
        each.id, each.lease, each.due = leased.id, leased.lease, self.now + START
        return each

    @precondition(lambda self: any(each.lease for each in self.model.values()))
    @rule(
        data=st.data(),
        step=st.sampled_from([1, 1, 1, 1, 2, 0, -1]),
        state=st.sampled_from(["running", "running", "ended", "lost"]),
        honest=st.sampled_from([True, True, True, True, False]),
        again=st.booleans(),
    )
    def report(self, data: st.DataObject, step: int, state: str, honest: bool, again: bool) -> None:
        leased = [each for each in self.model.values() if each.lease]
        each = data.draw(st.sampled_from(leased))
        pilot = each.pilot if honest else data.draw(st.sampled_from(PILOTS))
        lease = each.lease if honest else data.draw(st.sampled_from([each.lease, "guessed"]))
        told = Report(id=each.id, lease=lease, seq=max(1, each.seq + step), state=state)
        reports = (told, told) if again else (told,)
        update = PilotUpdate(pilot=self.called(pilot), reports=reports)
        (answer,) = self.pool.update([(self.actor, update)], self.now)
        for verdict in answer.verdicts:
            mine = pilot == each.pilot and lease == each.lease
            assert verdict.accepted == (mine and self.judge(each, told)), verdict
            assert verdict.accepted or verdict.why
            gone = not mine or (each.state in OVER and not (each.let_go and each.soft))
            assert ("kill" in verdict.commands) == (not verdict.accepted and gone)

    def judge(self, each: Modelled, told: Report) -> bool:
        """Tell whether the holder's report counts, and let it."""
        if each.let_go and told.state != "running":
            each.let_go, each.seq, each.due = False, told.seq, self.now + KEPT
            return True
        if each.let_go and each.soft and told.seq > each.seq:
            each.seq, each.due = told.seq, self.now + HEARTBEAT
            return True
        if each.purged or each.state == "cancelled":
            return False
        if not each.held:
            return (each.state, each.seq) == (told.state, told.seq) and not each.by_server
        if told.seq <= each.seq:
            return False
        each.seq = told.seq
        if told.state == "running":
            if each.state == "sent":
                self.happens(each, "started")
            each.state, each.due = "running", self.now + HEARTBEAT
        else:
            each.state, each.due = told.state, self.now + KEPT
            self.happens(each, told.state)
        return True

    def happens(self, each: Modelled, kind: str) -> None:
        """Note what the driver is to hear."""
        self.outcomes.append((each.bundle, each.attempt, kind))
        each.outcome = len(self.outcomes)

    # --- time ---------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 30.0, 60.0, 120.0, KEPT + 1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.pool.care(self.now)
        # Those that are lost at once are told in order of their ids.
        for each in sorted(self.model.values(), key=lambda each: each.id):
            if each.purged or each.state == "ready" or each.due >= self.now:
                continue
            if each.held:
                each.state, each.due, each.by_server = "lost", self.now + KEPT, True
                self.happens(each, "lost")
            elif each.state == "cancelled" or each.outcome <= self.acked:
                each.purged, each.let_go = True, False
            else:
                each.due = self.now + KEPT

    def called(self, pilot: str) -> str:
        """Return a pilot's full name."""
        return f"{pilot}-{self.run}"

    # --- what always holds --------------------------------------------------------------

    @invariant()
    def the_pool_is_as_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        rows = self.pool.bundles(self.actor, self.run)
        got = {(r["bundle"], r["attempt"]): (r["state"], r["pilot"] or "") for r in rows}
        assert got == {
            key: (each.state, each.pilot and self.called(each.pilot))
            for key, each in self.model.items()
            if not each.purged
        }

    @invariant()
    def its_counts_are_right(self) -> None:
        if not hasattr(self, "model"):
            return
        (run,) = self.pool.runs(self.actor)
        states = [each.state for each in self.model.values()]
        assert run["ready"] == states.count("ready")
        letting_go = sum(each.let_go for each in self.model.values())
        assert run["held"] == states.count("sent") + states.count("running") + letting_go
        assert run["unread"] == len(self.outcomes) - self.acked

    @invariant()
    def each_lease_has_one_end(self) -> None:
        if not hasattr(self, "model"):
            return
        told = self.pool.outcomes(self.actor, self.run, 0, 10_000, self.now).outcomes
        kinds = [(each.bundle, each.attempt, each.kind) for each in told]
        assert kinds == self.outcomes[self.acked :]

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.pool.forget_run(self.actor, self.run, self.now)
            self.pool.delete_queue(self.actor, self.queue, self.now)


class SqliteMachine(PoolMachine):
    """On SQLite."""


class PostgresMachine(PoolMachine):
    """On PostgreSQL."""


SqliteMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
PostgresMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=40, deadline=None)


@pytest.fixture(scope="module")
def sqlite_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    SqliteMachine.database = Database(str(tmp_path_factory.mktemp("machine") / "pool.db"), 30.0)
    yield
    SqliteMachine.database.dispose()


@pytest.fixture(scope="module")
def postgres_machine(postgres: PostgresServer) -> Iterator[None]:
    PostgresMachine.database = Database(postgres.create_database(), 30.0)
    yield
    PostgresMachine.database.dispose()


@pytest.mark.usefixtures("sqlite_machine")
class TestSqlitePool(SqliteMachine.TestCase):
    pass


@pytest.mark.postgres
@pytest.mark.usefixtures("postgres_machine")
class TestPostgresPool(PostgresMachine.TestCase):
    pass
