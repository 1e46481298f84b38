from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.requests import ClientDisconnect, Request

from pandaflow.server.limits import Bodies, TokenBuckets
from pandaflow.server.problems import Refusal


def test_a_bucket_empties_and_fills_again() -> None:
    buckets = TokenBuckets(rate=2.0, burst=3.0)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert buckets.take("a", 0.0) == pytest.approx(0.5)
    assert buckets.take("b", 0.0) == 0.0
    assert buckets.take("a", 0.25) == pytest.approx(0.25)
    assert buckets.take("a", 0.5) == 0.0
    assert buckets.take("a", 100.0) == 0.0
    assert buckets.empty("a", 100.0) == 0.0


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    buckets = TokenBuckets(rate=10.0, burst=2.0)
    buckets.take("a", 0.0)
    assert [buckets.take("a", 1_000.0) == 0.0 for _ in range(3)] == [True, True, False]


def test_no_rate_is_no_limit() -> None:
    buckets = TokenBuckets(rate=0.0, burst=1.0)
    assert {buckets.take("a", 0.0) for _ in range(100)} == {0.0}


def test_buckets_of_many_keys_are_forgotten() -> None:
    buckets = TokenBuckets(rate=0.001, burst=1.0, keys=10)
    for n in range(1_000):
        buckets.take(str(n), 0.0)
    assert len(buckets._buckets) == 10


def _request(parts: Sequence[bytes], length: str | None = None, pause: float = 0.0) -> Request:
    left = list(parts)

    async def receive() -> dict[str, object]:
        if pause:
            await asyncio.sleep(pause)
        if not left:
            return {"type": "http.disconnect"}
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    headers = [] if length is None else [(b"content-length", length.encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def _read(request: Request, limit: int, bodies: Bodies | None = None) -> bytes:
    return asyncio.run((bodies or Bodies(1_000, 5.0)).read(request, limit))


def test_a_body_in_parts_is_one() -> None:
    assert _read(_request([b"ab", b"", b"cd"]), 4) == b"abcd"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (_request([b"abc"], "3"), 413),
        (_request([b"a", b"b", b"c"]), 413),
        (_request([], "9" * 400), 413),
        (_request([b""], "-1"), 400),
        (_request([b""], "１"), 400),
    ],
    ids=["announced", "came", "absurd", "negative", "digits"],
)
def test_a_body_beyond_its_limit_is_refused(request_: Request, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        _read(request_, 2)
    assert caught.value.status == status


def test_a_slow_body_is_refused() -> None:
    with pytest.raises(Refusal) as caught:
        _read(_request([b"a"] * 100, pause=0.02), 1_000, Bodies(1_000, 0.1))
    assert caught.value.status == 408


def test_a_client_that_goes_away_is_noticed() -> None:
    parts = iter(
        [
            {"type": "http.request", "body": b"half", "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> dict[str, object]:
        return next(parts)

    scope = _request([]).scope
    with pytest.raises(ClientDisconnect):
        asyncio.run(Bodies(1_000, 5.0).read(Request(scope, receive), 100))


def test_bodies_together_are_limited_until_they_are_released() -> None:
    bodies = Bodies(10, 5.0)
    first, second = _request([b"x" * 8]), _request([b"y" * 8])
    asyncio.run(bodies.read(first, 100))
    with pytest.raises(Refusal) as caught:
        asyncio.run(bodies.read(second, 100))
    assert caught.value.status == 503
    bodies.release(second.scope)
    bodies.release(first.scope)
    assert bodies.held == 0
    assert asyncio.run(bodies.read(_request([b"z" * 8]), 100)) == b"z" * 8
