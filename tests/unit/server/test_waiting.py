from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from pandaflow.server.waiting import Bell, Leases, RunBells


async def _there() -> dict[str, str]:
    """A client that stays."""
    await asyncio.sleep(3_600)
    return {}


async def _left() -> dict[str, str]:
    return {"type": "http.disconnect"}


async def _begun(count: int, bell: Bell, seconds: float = 60.0) -> list[asyncio.Task[bool]]:
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(bell.wait(seconds, _there)))
        await asyncio.sleep(0)
    return tasks


def test_those_who_came_first_are_woken_first() -> None:
    async def play() -> list[bool]:
        bell = Bell()
        tasks = await _begun(3, bell)
        bell.ring(2)
        assert await asyncio.wait_for(asyncio.gather(*tasks[:2]), 10) == [True, True]
        assert len(bell) == 1
        bell.ring()
        return [await asyncio.wait_for(tasks[2], 10)]

    assert asyncio.run(play()) == [True]


def test_time_runs_out() -> None:
    bell = Bell()
    assert asyncio.run(bell.wait(0.01, _there)) is False
    assert len(bell) == 0


def test_a_client_that_left_is_not_waited_for() -> None:
    bell = Bell()
    with pytest.raises(ClientDisconnect):
        asyncio.run(bell.wait(60, _left))
    assert len(bell) == 0


def test_a_closed_bell_lets_nobody_wait() -> None:
    async def play() -> list[bool]:
        bell = Bell()
        tasks = await _begun(2, bell)
        bell.close()
        return [*await asyncio.gather(*tasks), await bell.wait(60, _there)]

    assert asyncio.run(asyncio.wait_for(play(), 10)) == [False, False, False]


def test_a_run_wakes_its_own() -> None:
    async def play() -> None:
        bells = RunBells()
        mine = asyncio.create_task(bells.wait("mine", 60, _there))
        other = asyncio.create_task(bells.wait("other", 60, _there))
        await asyncio.sleep(0)
        bells.ring(["mine", "nobody's"])
        assert await asyncio.wait_for(mine, 10) is True
        assert not other.done()
        bells.close()
        assert await asyncio.wait_for(other, 10) is False
        assert bells._bells == {}

    asyncio.run(play())


def test_leases_are_forgotten_when_they_are_over_or_too_many() -> None:
    leases = Leases(most=2)
    for number in (1, 2, 3):
        leases.add(number, f"run{number}")
    assert leases.run_of(1, over=False) is None
    assert leases.run_of(2, over=False) == "run2"
    assert leases.run_of(2, over=True) == "run2"
    assert leases.run_of(2, over=True) is None
