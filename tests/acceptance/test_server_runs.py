"""Runs left with several servers that share one PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow.grid.runs.store import ServerStore
from pandaflow.testing.grid import GridServer
from pandaflow.testing.postgres import PostgresServer

PATIENCE = 60.0


@pf.task
def double(x):
    return {2 * x}


@pf.workflow
def doubles(n: int = 3):
    return double(pf.items(list(range(n))))


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


@pytest.mark.postgres
def test_a_run_left_at_one_server_is_seen_and_steered_at_the_other(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url, options = postgres.create_database(), ["--results", str(tmp_path / "results")]
    with GridServer(url, options) as one, GridServer(url, options) as other:
        run = doubles().submit(server=one.url)
        there = pf.attach(run.id, store=other.url)
        there.pause()
        driving = pf.resume(run.id, store=url, executor="threads")
        eventually(lambda: run.status == "paused")
        there.resume()
        assert run.wait(PATIENCE) == "done"
        driving.wait(PATIENCE)
        one.kill()
        assert there.result() == [{0}, {2}, {4}]
        assert list((tmp_path / "results").glob(f"*/{run.id}/values"))


@pytest.mark.postgres
def test_the_same_run_left_at_both_at_once_is_one_run(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url, options = postgres.create_database(), ["--results", str(tmp_path / "results")]
    with GridServer(url, options) as one, GridServer(url, options) as other:
        made = doubles()
        stores = [ServerStore(server.url) for server in (one, other, one, other)]
        with ThreadPoolExecutor(len(stores)) as threads:
            leave = lambda store: store.leave(made._spec, made._trace.blobs, "twice")  # noqa: E731
            assert list(threads.map(leave, stores)) == [None] * 4
        assert [row["id"] for row in stores[0].reader().runs()] == ["twice"]
        assert pf.resume("twice", store=url, executor="threads").wait(PATIENCE) == "done"
