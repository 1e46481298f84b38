"""Conformance of executors, part two: whole runs."""

# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.testing import payloads
from pandaflow.testing.probe import PATIENCE, still


class RunTests:
    """Whole runs. The subclass brings a fixture ``executor``."""

    asynchronous = True
    survives_death = False

    def test_failures_retries_and_logs(self, executor: Any, tmp_path: Path) -> None:
        once = pf.task(payloads.fail_once).options(retries=1)
        bad = pf.task(payloads.fate).options(name="bad")
        told = pf.task(payloads.say).options(name="told")

        @pf.workflow
        def flow() -> Any:
            first = once(pf.items([str(tmp_path / name) for name in "abc"]))
            return first, bad(pf.items([1, "raise"])), told(pf.items(["hello"]))

        run = flow().run(executor=executor, store=_store(tmp_path))
        assert run.status == "failed"
        with pytest.raises(pf.RunFailed, match="told to raise"):
            run.result()
        attempts = [job["attempt"] for job in run.jobs(task="fail_once")]
        assert attempts == [2, 2, 2]
        assert run.logs("told[0]") == "payload says hello\n"

    def test_values_travel_through_stages(self, executor: Any, tmp_path: Path) -> None:
        twice = pf.task(payloads.double)
        summed = pf.task(payloads.total).options(items_per_job=10)
        merged = pf.task(payloads.total).options(n_jobs=1, name="merged")
        lists = pf.task(payloads.listed)

        @pf.workflow
        def flow(n: int) -> Any:
            chunks = summed(twice(pf.items(range(n))))
            return merged(chunks), merged.options(name="flat")(pf.scatter(lists(chunks)))

        run = flow(30).run(executor=executor, store=_store(tmp_path))
        chunks = [2 * sum(range(k, k + 10)) for k in (0, 10, 20)]
        assert run.result() == (sum(chunks), sum(sum(range(c)) for c in chunks))

    def test_cancel_stops_everything(self, executor: Any, tmp_path: Path) -> None:
        if not self.asynchronous:
            pytest.skip("a bundle has run when submit returns")
        beats = [tmp_path / name for name in "ab"]
        beat = pf.task(payloads.heartbeat)
        after = pf.task(payloads.touch)

        @pf.workflow
        def flow() -> Any:
            return after(beat(pf.items([str(path) for path in beats])))

        run = flow().submit(executor=executor, store=_store(tmp_path))
        deadline = time.monotonic() + PATIENCE
        while not any(path.exists() for path in beats):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.cancel()
        assert run.wait(PATIENCE) == "aborted"
        assert all(still(path) for path in beats if path.exists())

    def test_two_runs_at_once(self, executor: Any, tmp_path: Path) -> None:
        nap = pf.task(payloads.nap)
        merged = pf.task(payloads.total).options(n_jobs=1)

        @pf.workflow
        def flow(seconds: float) -> Any:
            return merged(nap(pf.items([seconds] * 4)))

        runs = [
            flow(seconds).submit(executor=executor, store=_store(tmp_path))
            for seconds in (0.05, 0.1)
        ]
        results = [run.result(timeout=PATIENCE) for run in runs]
        assert results == [pytest.approx(0.2), pytest.approx(0.4)]

    def test_poisonous_job_is_singled_out(self, executor: Any, tmp_path: Path) -> None:
        if not self.survives_death:
            pytest.skip("its workers are not processes that may die")
        deadly = pf.task(payloads.die)

        @pf.workflow
        def flow() -> Any:
            return deadly(pf.items(["fine"] * 5 + ["die"] + ["fine"] * 5))

        run = flow().run(executor=executor, store=_store(tmp_path))
        assert [job["index"] for job in run.jobs(status="failed")] == [5]
        assert run.result(partial=True)[:5] == ["fine"] * 5


def _store(folder: Path) -> str:
    return f"sqlite:///{folder}/store.db"
