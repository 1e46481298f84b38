"""Questions that arrive together are answered together, by one transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from pandaflow.core.errors import StoreUnavailable
from pandaflow.server.problems import Refusal

Question = TypeVar("Question")
Answer = TypeVar("Answer")
#: Less than such a part of a batch may wait for more to come.
_FEW = 10
_Waiting = tuple[Question, "asyncio.Future[Answer]"]


class Gatherer(Generic[Question, Answer]):
    """Collects questions and hands them on in batches; one batch is under way at a time.

    While a batch is under way the next one collects, so that batches grow with the load by
    themselves. Where there is little to do a question is handed on at once. Use it in one event
    loop.

    Parameters
    ----------
    work : callable
        Answers a batch, in order; runs in a thread.
    threads : Executor
    seconds : float
        Between the beginnings of two batches at least, unless many wait: a transaction costs as
        much for one.
    most : int
        Questions in a batch.
    bound : int
        Questions that wait; more are refused.

    Attributes
    ----------
    batches, asked : int
        So far.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Question]], Sequence[Answer]],
        threads: Executor,
        seconds: float = 0.01,
        most: int = 500,
        bound: int = 10_000,
    ) -> None:
        self._work, self._threads = work, threads
        self._seconds, self._most, self._bound = seconds, most, bound
        self._few = most // _FEW
        self._waiting: deque[_Waiting[Question, Answer]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._next = 0.0
        self.batches = self.asked = 0

    async def ask(self, question: Question) -> Answer:
        """Return the answer to a question.

        Raises
        ------
        Refusal
            Too many wait already (503).
        PandaflowError
            What the work raised for this question.
        """
        if len(self._waiting) >= self._bound:
            raise Refusal(503, "the server is busy: come again in a moment", retry=1)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    @property
    def waiting(self) -> int:
        """Questions that wait now."""
        return len(self._waiting)

    async def _run(self) -> None:
        """Answer batches until nobody waits."""
        try:
            while self._waiting:
                await self._collect()
                batch = self._take()
                if batch:
                    await self._answer(batch)
        finally:
            self._task = None
            # Only if this was cancelled: nobody may wait for ever.
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()

    async def _collect(self) -> None:
        """Wait until it is time for the next batch."""
        now = asyncio.get_running_loop().time
        pause = self._next - now()
        if pause > 0 and len(self._waiting) < self._few:
            await asyncio.sleep(pause)
        self._next = now() + self._seconds

    def _take(self) -> list[_Waiting[Question, Answer]]:
        """Return the next batch, without those that were given up meanwhile."""
        count = min(len(self._waiting), self._most)
        taken = [self._waiting.popleft() for _ in range(count)]
        return [item for item in taken if not item[1].done()]

    async def _answer(self, batch: list[_Waiting[Question, Answer]]) -> None:
        self.batches += 1
        self.asked += len(batch)
        try:
            answers = await self._call([question for question, _ in batch])
        except asyncio.CancelledError:
            _fail(batch, Refusal(503, "the server is going down", retry=1))
            raise
        except BaseException as error:  # noqa: BLE001 - it is those people's answer
            await self._apart(batch, error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _apart(self, batch: list[_Waiting[Question, Answer]], error: BaseException) -> None:
        """Try questions one by one, so that one of them does not spoil the others."""
        if len(batch) == 1 or isinstance(error, StoreUnavailable):
            _fail(batch, error)
            return
        for item in batch:
            await self._answer([item])

    async def _call(self, questions: list[Question]) -> Sequence[Answer]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._work, questions)


def _fail(batch: Sequence[_Waiting[Question, Answer]], error: BaseException) -> None:
    """Tell everybody in a batch what went wrong; an error of their own each."""
    for _, future in batch:
        if not future.done():
            future.set_exception(_like(error))


def _like(error: BaseException) -> BaseException:
    # One exception raised in many tasks would collect all their tracebacks.
    if isinstance(error, StoreUnavailable):
        return StoreUnavailable(str(error))
    if isinstance(error, Refusal):
        return Refusal(error.status, str(error), retry=error.retry)
    return error
