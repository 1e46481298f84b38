"""A virtual organisation on a pool, for the pool's conformance kit: its people, run and clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from pandaflow.grid.identity import Actor, Forbidden, Role
from pandaflow.grid.messages import (
    Acquire,
    Acquired,
    Bundle,
    CommandJob,
    Leased,
    Needs,
    Outcome,
    PilotUpdate,
    Report,
    Trouble,
    Updated,
    Verdict,
)
from pandaflow.grid.places import QueueBody
from pandaflow.grid.pool import Pool
from pandaflow.store.database import Database

T0 = 1_700_000_000.0
HEARTBEAT, START = 300.0, 600.0
SITE_TROUBLE = Trouble(source="pilot", code=1305, kind="input", message="no such replica")


class Scene:
    """A virtual organisation with a run, a queue and a clock, on a pool.

    Attributes
    ----------
    pool : Pool
    vo, run, queue : str
    now : float
    heard : list of Outcome
        What the driver has read.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool, self.now = pool, T0
        name = uuid4().hex
        self.vo, self.run, self.queue = f"vo-{name}", f"run-{name}", f"queue-{name}"
        self.user = self.actor("user")
        self.operator = self.actor("operator")
        self.pilot = self.actor("pilot")
        self.heard: list[Outcome] = []
        self._last = 0
        self.add_queue(self.queue)
        pool.open_run(self.user, self.run, self.now)

    def actor(self, *roles: Role, subject: str = "", vo: str | None = None) -> Actor:
        """Return somebody of the VO, or of another one."""
        who = subject or f"the {' '.join(roles)}"
        return Actor(who, who, self.vo if vo is None else vo, frozenset(roles))

    def add_queue(self, name: str, **body: Any) -> str:
        """Make a queue of the VO; return its name."""
        told = {"vos": (self.vo,), "heartbeat": HEARTBEAT, "start": START, **body}
        self.pool.put_queue(self.operator, name, QueueBody(**told), self.now)
        return name

    def called(self, pilot: str) -> str:
        """Return the full name of a pilot of this scene."""
        return f"{pilot}-{self.vo}"

    def submit(self, numbers: Sequence[int], **fields: Any) -> dict[int, str]:
        """Put bundles of commands into the pool; return the refused ones."""
        return self.pool.submit(
            self.user, self.run, [bundle(n, **fields) for n in numbers], self.now
        )

    def answer(self, pilot: str = "p1", count: int = 1, **fields: Any) -> Acquired | Forbidden:
        """Let a pilot ask for work."""
        name = self.called(pilot)
        told = {"pilot": name, "queue": self.queue, "cores": count, "count": count, **fields}
        (answer,) = self.pool.acquire([(self.pilot, Acquire(**told))], self.now)
        return answer

    def ask(self, pilot: str = "p1", count: int = 1, **fields: Any) -> tuple[Leased, ...]:
        """Return what a pilot gets."""
        answer = self.answer(pilot, count, **fields)
        assert isinstance(answer, Acquired), answer
        return answer.bundles

    def numbers(self, pilot: str = "p1", count: int = 1, **fields: Any) -> list[int]:
        """Return the numbers of the bundles that a pilot gets."""
        return [each.bundle for each in self.ask(pilot, count, **fields)]

    def tell(self, *reports: Report, pilot: str = "p1", actor: Actor | None = None) -> Updated:
        """Let a pilot report."""
        told = PilotUpdate(pilot=self.called(pilot), reports=reports)
        (answer,) = self.pool.update([(actor or self.pilot, told)], self.now)
        return answer

    def report(
        self, leased: Leased, seq: int, state: str = "running", pilot: str = "p1", **fields: Any
    ) -> Verdict:
        """Let a pilot report of a bundle; return the verdict."""
        (verdict,) = self.tell(report(leased, seq, state, **fields), pilot=pilot).verdicts
        return verdict

    def hear(self) -> list[tuple[int, int, str]]:
        """Read what is new, as the driver: bundle, attempt, kind; acknowledges what was before."""
        told = self.pool.outcomes(self.user, self.run, self._last, 1000, self.now).outcomes
        self.heard += told
        self._last = told[-1].seq if told else self._last
        return [(each.bundle, each.attempt, each.kind) for each in told]

    def state(self) -> str:
        """Return the state of the queue."""
        return self.pool.queue(self.operator, self.queue, self.now).state

    def spoil(self, numbers: Sequence[int], error: Trouble | None = SITE_TROUBLE) -> None:
        """Submit bundles and let them end with an error."""
        self.submit(numbers)
        for each in self.ask(count=len(numbers)):
            assert self.report(each, 1, "ended", error=error).accepted


def bundle(number: int, **fields: Any) -> Bundle:
    """Return a bundle of one command; what may be one of its needs is."""
    names = set(Bundle.model_fields) - set(Needs.model_fields)
    own = {name: fields.pop(name) for name in list(fields) if name in names}
    command = CommandJob(position=0, line=f"run {number}")
    told = {"task": "t", "jobs": (number,), "kind": "command", "commands": (command,), **own}
    return Bundle(bundle=number, needs=Needs(**fields), **told)


def report(leased: Leased, seq: int, state: str = "running", **fields: Any) -> Report:
    """Return a report of a bundle."""
    told = {"id": leased.id, "lease": leased.lease, "seq": seq, "state": state, **fields}
    return Report(**told)


class PoolBase:
    """Fixtures. The subclass brings ``database``."""

    @pytest.fixture
    def pool(self, database: Database) -> Pool:
        """A pool on the database."""
        return Pool(database)

    @pytest.fixture
    def scene(self, pool: Pool) -> Scene:
        """A virtual organisation of the test's own."""
        return Scene(pool)
