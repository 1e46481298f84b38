from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pandaflow.core.errors import StoreUnavailable, WorkflowError
from pandaflow.server.gathering import Gatherer
from pandaflow.server.problems import Refusal


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


class Doubler:
    """Doubles numbers; refuses -13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        if -13 in numbers:
            raise WorkflowError("-13 brings bad luck")
        return [2 * number for number in numbers]


def test_questions_that_come_together_are_one_batch(threads: ThreadPoolExecutor) -> None:
    work = Doubler()

    async def ask() -> list[int]:
        gatherer = Gatherer(work, threads)
        return await asyncio.gather(*(gatherer.ask(n) for n in range(50)))

    assert asyncio.run(ask()) == [2 * n for n in range(50)]
    assert work.batches == [list(range(50))]


def test_a_batch_has_so_many_at_most(threads: ThreadPoolExecutor) -> None:
    work = Doubler()

    async def ask() -> list[int]:
        gatherer = Gatherer(work, threads, most=20)
        return await asyncio.gather(*(gatherer.ask(n) for n in range(50)))

    assert asyncio.run(ask()) == [2 * n for n in range(50)]
    assert [len(batch) for batch in work.batches] == [20, 20, 10]


def test_one_bad_question_does_not_spoil_its_neighbours(threads: ThreadPoolExecutor) -> None:
    async def ask() -> list[int | BaseException]:
        gatherer = Gatherer(Doubler(), threads)
        return await asyncio.gather(*(gatherer.ask(n) for n in (1, -13, 2)), return_exceptions=True)

    first, bad, last = asyncio.run(ask())
    assert (first, last) == (2, 4)
    assert isinstance(bad, WorkflowError)


def test_a_database_that_is_away_is_not_asked_for_each_one(threads: ThreadPoolExecutor) -> None:
    calls = []

    def away(numbers: Sequence[int]) -> list[int]:
        calls.append(numbers)
        raise StoreUnavailable("it restarts")

    async def ask() -> list[int | BaseException]:
        gatherer = Gatherer(away, threads)
        return await asyncio.gather(*(gatherer.ask(n) for n in range(9)), return_exceptions=True)

    answers = asyncio.run(ask())
    assert len(calls) == 1
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    assert len({id(answer) for answer in answers}) == 9


def test_more_than_may_wait_are_told_to_come_again(threads: ThreadPoolExecutor) -> None:
    async def ask() -> list[int | BaseException]:
        gatherer = Gatherer(Doubler(), threads, bound=3)
        return await asyncio.gather(*(gatherer.ask(n) for n in range(5)), return_exceptions=True)

    answers = asyncio.run(ask())
    assert answers[:3] == [0, 2, 4]
    assert all(isinstance(a, Refusal) and a.status == 503 and a.retry for a in answers[3:])


def test_a_question_that_was_given_up_is_not_asked(threads: ThreadPoolExecutor) -> None:
    work, begun, go = Doubler(), threading.Event(), threading.Event()

    def slow(numbers: Sequence[int]) -> list[int]:
        begun.set()
        go.wait(10)
        return work(numbers)

    async def ask() -> int:
        gatherer = Gatherer(slow, threads, seconds=0)
        first = asyncio.create_task(gatherer.ask(1))
        await asyncio.to_thread(begun.wait, 10)
        given_up = asyncio.create_task(gatherer.ask(2))
        last = asyncio.create_task(gatherer.ask(3))
        await asyncio.sleep(0)
        given_up.cancel()
        go.set()
        await first
        return await last

    assert asyncio.run(ask()) == 6
    assert work.batches == [[1], [3]]


def test_it_begins_again_after_a_pause(threads: ThreadPoolExecutor) -> None:
    async def ask() -> list[int]:
        gatherer = Gatherer(Doubler(), threads)
        return [await gatherer.ask(n) for n in range(3)]

    assert asyncio.run(ask()) == [0, 2, 4]
