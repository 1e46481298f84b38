"""What routes share: the pool behind gatherers and threads, and those who wait for it.

An instance keeps nothing that the database has not: hints only, of whom to wake. What other
instances did is seen by looking again each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive

from pandaflow.core.errors import PandaflowError
from pandaflow.grid.auth.policy import Policy
from pandaflow.grid.auth.verify import Authenticator
from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.messages import (
    Acquire,
    Acquired,
    Bundle,
    Outcome,
    Outcomes,
    PilotCommand,
    PilotUpdate,
    Updated,
)
from pandaflow.grid.pool import Pool
from pandaflow.server.desk import RunDesk
from pandaflow.server.gate import Gate
from pandaflow.server.gathering import Gatherer
from pandaflow.server.limits import Bodies, TokenBuckets
from pandaflow.server.metrics import Metrics
from pandaflow.server.problems import Refusal
from pandaflow.server.settings import ServerSettings
from pandaflow.server.waiting import Bell, Leases, RunBells

Result = TypeVar("Result")
#: Seconds between two looks for what other instances did.
LOOK = 1.0
#: Pilots that are woken at a time: all at once would ask for more than there is.
_WOKEN = 500
#: Seconds after which a pilot that waits is asked about again, so that it hears commands that
#: it was given through another instance, and counts as alive.
_ASK_AGAIN = 20.0
_THREADS = 4
#: Seconds between two looks for uploads that became no run.
_PURGE = 600.0
#: Calls that wait for one of those threads.
_CALLS = 1_000
#: Outcomes that a slow watcher may fall behind.
_BEHIND = 10_000
_log = logging.getLogger(__name__)


class Service:
    """The pool, as one instance of the server uses it. Its methods run in the event loop.

    Parameters
    ----------
    pool : Pool
    desk : RunDesk
        For runs that people leave here.
    settings : ServerSettings
    policy : Policy or None
        None: anonymous mode.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        pool: Pool,
        desk: RunDesk,
        settings: ServerSettings,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        limits = settings.limits
        self.pool, self.desk = pool, desk
        self.settings, self.policy, self.now = settings, policy, clock
        self._threads = ThreadPoolExecutor(_THREADS, "pandaflow-call")
        #: Their own: what people look at may be large, and drivers must not wait for it.
        self._desk_threads = ThreadPoolExecutor(_THREADS, "pandaflow-desk")
        self._pilot_threads = ThreadPoolExecutor(2, "pandaflow-batch")
        self.authenticator = None if policy is None else Authenticator(policy)
        rates = TokenBuckets(limits.rate, limits.burst)
        self.gate = Gate(self.authenticator, rates, self._threads, clock)
        self.bodies = Bodies(limits.held_bytes, limits.body_seconds)
        self.metrics = Metrics()
        gathering: dict[str, Any] = {"seconds": settings.gather_seconds, "bound": limits.waiting}
        self.acquires = Gatherer(self._acquire_all, self._pilot_threads, **gathering)
        self.updates = Gatherer(self._update_all, self._pilot_threads, **gathering)
        self.work, self.runs, self._leases = Bell(), RunBells(), Leases()
        self._watchers: dict[str, set[asyncio.Queue[Outcome]]] = {}
        self._calls = 0
        self._chores: list[asyncio.Task[None]] = []

    # --- its life -----------------------------------------------------------------------

    def start(self) -> None:
        """Begin what goes on besides requests: the pool's care, and looks at the database."""
        self._chores = [
            asyncio.create_task(self._repeat(self._care, self.settings.care_seconds)),
            asyncio.create_task(self._repeat(self._look, LOOK)),
            asyncio.create_task(self._repeat(self._purge, _PURGE)),
        ]

    def wake_all(self) -> None:
        """Answer everybody who waits, and let nobody wait again: the server goes down."""
        self.work.close()
        self.runs.close()

    async def stop(self) -> None:
        """End threads and tasks; may be called twice."""
        self.wake_all()
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        self._threads.shutdown(cancel_futures=True)
        self._pilot_threads.shutdown(cancel_futures=True)
        self._desk_threads.shutdown(cancel_futures=True)

    async def call(self, method: Callable[..., Result], *arguments: Any) -> Result:
        """Run a method of the pool in a thread.

        Raises
        ------
        Refusal
            Too many calls wait already (503).
        PandaflowError
        """
        return await self._in(self._threads, method, *arguments)

    async def at_desk(self, method: Callable[..., Result], *arguments: Any) -> Result:
        """Run a method of the desk, or what takes long, in a thread; as :meth:`call`."""
        return await self._in(self._desk_threads, method, *arguments)

    async def _in(
        self, threads: ThreadPoolExecutor, method: Callable[..., Result], *arguments: Any
    ) -> Result:
        if self._calls >= _CALLS:
            raise Refusal(503, "the server is busy: come again in a moment", retry=1)
        self._calls += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(threads, method, *arguments)
        finally:
            self._calls -= 1

    # --- pilots -------------------------------------------------------------------------

    async def acquire(self, actor: Actor, question: Acquire, receive: Receive) -> Acquired:
        """Return bundles for a pilot; waits for them as long as it says.

        Raises
        ------
        Forbidden, Refusal
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + question.wait
        while True:
            answer = await self.acquires.ask((actor, question))
            if isinstance(answer, Forbidden):
                raise answer
            for leased in answer.bundles:
                self._leases.add(leased.id, leased.run)
            left = deadline - loop.time()
            if answer.bundles or answer.commands or left <= 0 or self.work.closed:
                return answer
            woken = await self.work.wait(min(left, _ASK_AGAIN), receive)
            if not woken and loop.time() >= deadline:
                return answer

    async def update(self, actor: Actor, told: PilotUpdate) -> Updated:
        """Take a pilot's reports, and wake those whom they concern.

        Raises
        ------
        Forbidden, Refusal
        """
        answer = await self.updates.ask((actor, told))
        if isinstance(answer, Forbidden):
            raise answer
        self.runs.ring(self._concerned(told, answer))
        return answer

    def _concerned(self, told: PilotUpdate, answer: Updated) -> set[str]:
        """Return the runs for which something has happened."""
        found = (
            self._leases.run_of(report.id, over=report.state != "running")
            for report, verdict in zip(told.reports, answer.verdicts, strict=False)
            if verdict.accepted
        )
        return {run for run in found if run is not None}

    async def command(self, actor: Actor, pilot: str, command: PilotCommand) -> None:
        """Tell a pilot something; it hears it at once if it waits here."""
        await self.call(self.pool.command_pilot, actor, pilot, command)
        self.work.ring()

    # --- drivers ------------------------------------------------------------------------

    async def submit(self, actor: Actor, run: str, bundles: Sequence[Bundle]) -> dict[int, str]:
        """Put bundles into the pool, and wake pilots."""
        refused = await self.call(self.pool.submit, actor, run, bundles, self.now())
        # More than there are bundles: some of those pilots may not fit.
        self.work.ring(4 * (len(bundles) - len(refused)))
        return refused

    async def cancel(self, actor: Actor, run: str, bundles: Sequence[int] | None) -> int:
        """Cancel bundles, and wake the run's driver."""
        count = await self.call(self.pool.cancel, actor, run, bundles, self.now())
        self.runs.ring([run])
        return count

    async def outcomes(
        self, actor: Actor, run: str, after: int, limit: int, wait: float, receive: Receive
    ) -> Outcomes:
        """Return what happened to a run; waits for it as long as is said.

        Raises
        ------
        NotThere, Forbidden, Refusal
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            answer = await self.call(self.pool.outcomes, actor, run, after, limit, self.now())
            left = deadline - loop.time()
            if answer.outcomes or left <= 0 or self.runs.closed:
                self._show(run, answer.outcomes)
                return answer
            await self.runs.wait(run, min(left, LOOK), receive)

    # --- watchers -----------------------------------------------------------------------

    @contextlib.contextmanager
    def watch(self, run: str) -> Any:
        """Give a queue of the outcomes that a run's driver fetches here meanwhile."""
        queue: asyncio.Queue[Outcome] = asyncio.Queue(_BEHIND)
        self._watchers.setdefault(run, set()).add(queue)
        try:
            yield queue
        finally:
            self._watchers[run].discard(queue)
            if not self._watchers[run]:
                del self._watchers[run]

    def _show(self, run: str, outcomes: Iterable[Outcome]) -> None:
        for queue in self._watchers.get(run, ()):
            for outcome in outcomes:
                if queue.full():  # a watcher that does not keep up misses the oldest
                    queue.get_nowait()
                queue.put_nowait(outcome)

    # --- behind the gatherers: in threads -------------------------------------------------

    def _acquire_all(
        self, asked: Sequence[tuple[Actor, Acquire]]
    ) -> Sequence[Acquired | Forbidden]:
        return self.pool.acquire(asked, self.now())

    def _update_all(
        self, told: Sequence[tuple[Actor, PilotUpdate]]
    ) -> Sequence[Updated | Forbidden]:
        return self.pool.update(told, self.now())

    # --- besides requests -----------------------------------------------------------------

    async def _repeat(self, chore: Callable[[], Any], seconds: float) -> None:
        """Do something for ever; what fails is told and tried again."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await chore()
            except PandaflowError as error:
                _log.warning("%s", error)

    async def _care(self) -> None:
        done = await self.call(self.pool.care, self.now())
        if any(done.values()):
            _log.info("care: %s", ", ".join(f"{n} {what}" for what, n in done.items() if n))

    async def _purge(self) -> None:
        before = self.now() - self.settings.upload_seconds
        count = await self.at_desk(self.desk.purge, before)
        if count:
            _log.info("care: %d upload(s) that became no run", count)

    async def _look(self) -> None:
        """Wake pilots if there is something that another instance was given, or time has freed."""
        if len(self.work) and (await self.call(self.pool.load)).get("ready"):
            self.work.ring(_WOKEN)
