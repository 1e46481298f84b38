"""Who comes in: anonymous servers, pilots' own tokens, and a policy that is read again."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="no Starlette: extra 'server'")

from pandaflow.grid.auth.errors import Unauthenticated
from pandaflow.grid.auth.policy import load_policy
from pandaflow.grid.auth.verify import Authenticator
from pandaflow.grid.identity import ANYBODY, Actor, Bound, Forbidden
from pandaflow.grid.pool.tokens import PREFIX, digest
from pandaflow.server.gate import Gate
from pandaflow.server.limits import TokenBuckets
from pandaflow.server.pilot_tokens import FRESH
from pandaflow.server.policy_file import PolicyFile
from pandaflow.server.problems import Refusal

POLICY = """
[[rules]]
certificates = ["/O=grid/CN=otto"]
vo = "atlas"
roles = ["pilot"]
"""
TOKEN = PREFIX + "a-word"
PILOT = Actor("/O=grid/CN=otto", "otto", "atlas", frozenset({"pilot"}), Bound("p", "q", 1e9))


def request(path: str = "/api/v1/pilot/acquire", **headers: str) -> dict[str, Any]:
    """Return the scope of a request."""
    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "path": path,
        "headers": told,
        "client": ("127.0.0.1", 5),
        "extensions": {},
    }


class Desk:
    """A gate, a clock, and a book of tokens that counts who looks into it."""

    def __init__(self, path: Path, threads: ThreadPoolExecutor) -> None:
        path.write_text(POLICY)
        self.now, self.looked = 1_000.0, 0
        self.book = {digest(TOKEN): (PILOT, 5_000.0)}
        self.judge = Authenticator(load_policy(path))
        self.file = PolicyFile(path, self.judge)
        self.gate = Gate(self.judge, TokenBuckets(0, 1), threads, lambda: self.now, self._holder)

    def _holder(self, key: str, now: float) -> tuple[Actor, float] | None:
        self.looked += 1
        held = self.book.get(key)
        return held if held and held[1] > now else None

    def admit(self, token: str = TOKEN, **more: Any) -> Actor:
        scope = request(authorization=f"Bearer {token}", **more)
        return asyncio.run(self.gate.admit(scope))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with ThreadPoolExecutor(1) as threads:
        yield Desk(tmp_path / "policy.toml", threads)


def test_a_token_is_looked_up_and_remembered_for_a_moment(desk: Desk) -> None:
    assert [desk.admit() for _ in range(5)] == [PILOT] * 5
    assert desk.looked == 1
    desk.book.clear()  # another instance has withdrawn it
    desk.now += FRESH - 1
    assert desk.admit() == PILOT
    desk.now += 2
    with pytest.raises(Unauthenticated, match="expired or was withdrawn"):
        desk.admit()


def test_it_is_not_remembered_beyond_its_end(desk: Desk) -> None:
    desk.now = 4_999.0
    assert desk.admit() == PILOT
    desk.now = 5_000.5
    with pytest.raises(Unauthenticated):
        desk.admit()


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/queues/q/close", "/metrics", "/"])
def test_it_opens_nothing_that_pilots_do_not_ask(desk: Desk, path: str) -> None:
    with pytest.raises(Forbidden, match="what pilots ask only"):
        desk.admit(path=path)


@pytest.mark.parametrize(
    "denied", ['subjects = ["/O=grid/CN=otto"]', 'pilots = ["p"]'], ids=["subject", "pilot"]
)
def test_a_new_policy_counts_at_once(desk: Desk, tmp_path: Path, denied: str) -> None:
    assert desk.admit() == PILOT
    (tmp_path / "policy.toml").write_text(f"{POLICY}\n[deny]\n{denied}\n")
    assert desk.file.read()
    with pytest.raises(Unauthenticated, match="deny list"):
        desk.admit()


def test_a_vo_without_pilots_has_no_tokens(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY.replace('["pilot"]', '["user"]'))
    assert desk.file.read()
    with pytest.raises(Unauthenticated, match="no rule"):
        desk.admit()


def test_a_broken_policy_changes_nothing_and_is_told_once(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy, path = desk.judge.policy, tmp_path / "policy.toml"
    with caplog.at_level(logging.ERROR):
        path.write_text("[[rules]]\nvo = 3\n")
        assert [desk.file.read() for _ in range(3)] == [False] * 3
        path.unlink()
        assert not desk.file.read()
    assert desk.judge.policy is policy
    assert len([each for each in caplog.messages if "stays" in each]) == 2
    path.write_text(POLICY)
    assert desk.file.read() and not desk.file.read()
    assert desk.judge.policy == policy


def test_a_policy_that_looks_as_before_is_read_when_told_to(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    status = path.stat()
    path.write_text(POLICY.replace("otto", "eric"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not desk.file.read()
    assert desk.file.read(always=True)
    assert desk.judge.policy.rules[0].certificates == ("/O=grid/CN=eric",)


def test_an_anonymous_server_knows_no_vos(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        gate = Gate(None, TokenBuckets(0, 1), threads)
        assert asyncio.run(gate.admit(request())) == ANYBODY
        with pytest.raises(Refusal, match="knows no VOs") as caught:
            asyncio.run(gate.admit(request(x_pandaflow_vo="atlas")))
    assert caught.value.status == 403
    assert PolicyFile(None, None).read(always=True) is False
