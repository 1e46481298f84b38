from __future__ import annotations

import ctypes
import dataclasses
import gc
import mmap
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.bundle import Missing
from pandaflow.core.model import Resources
from pandaflow.data.results import ResultStore
from pandaflow.executors import supervise
from pandaflow.executors.payload import cancel
from pandaflow.executors.supervise import CANCELLED, JobStopped, Track

MIB = 2**20


def spin(seconds: float) -> None:
    """Pass time in Python code, where an exception can arrive."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.002)


def block(seconds: float) -> None:
    """Pass time in C code without the lock of the interpreter."""
    ctypes.CDLL(None).usleep(ctypes.c_uint(int(seconds * 1e6)))


def memory(mib: int) -> mmap.mmap:
    """Use memory that the allocator cannot have kept from an earlier job."""
    pages = mmap.mmap(-1, mib * MIB)
    pages.write(b"x" * (mib * MIB))
    return pages


def with_limits(spec: Any, **limits: Any) -> Any:
    return dataclasses.replace(spec, resources=Resources(**limits))


# --- limits -----------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_job_over_its_walltime_is_stopped_and_the_others_go_on(
    bench: Any, isolation: str
) -> None:
    spec = with_limits(bench.spec([0.0, 30.0, 0.0, 30.0, 0.0]), walltime=0.2)
    out = bench.run(spin, spec, isolation=isolation)
    ended = bench.ended
    assert out.values[0] is None and out.values[2] is None and out.values[4] is None
    assert set(ended.failures) == {1, 3} and ended.unstarted == ()
    assert ended.failures[1].kind == "walltime" and "0.2 s" in ended.failures[1].message
    assert 0.2 <= ended.wall[1] < 30 and ended.failures[1].charged


def test_a_job_that_swallows_its_stop_does_not_break_the_bundle(bench: Any) -> None:
    def stubborn(x: int) -> int:
        try:
            if x == 1:
                spin(30)
        except BaseException:  # noqa: BLE001, S110 - the point of the test
            pass
        return x

    out = bench.run(stubborn, with_limits(bench.spec([0, 1, 2]), walltime=0.1))
    assert out.values[0] == 0 and out.values[2] == 2
    assert bench.ended.failures[1].kind == "walltime" and type(out.values[1]) is Missing


def test_a_stopped_job_may_clean_up(bench: Any, tmp_path: Path) -> None:
    def tidy(x: int) -> None:
        try:
            spin(30)
        finally:
            (tmp_path / "tidied").touch()

    bench.run(tidy, with_limits(bench.spec([0]), walltime=0.1))
    assert bench.ended.failures[0].kind == "walltime" and (tmp_path / "tidied").exists()


def test_a_job_over_its_memory_is_stopped_and_the_others_go_on(bench: Any) -> None:
    def eat(mib: int) -> int:
        kept = []
        for _ in range(mib // 10):
            kept.append(memory(10))
            time.sleep(0.01)
        if mib:
            spin(1.0)
        return mib

    spec = with_limits(bench.spec([0, 400, 0, 50]), memory=150 * MIB)
    out = bench.run(eat, spec)
    assert out.values[0] == 0 and out.values[2] == 0 and out.values[3] == 50
    failure = bench.ended.failures[1]
    assert failure.kind == "memory" and "more than its 150 MiB" in failure.message
    assert bench.ended.max_pss[1] > 150 * MIB
    assert 30 * MIB < bench.ended.max_pss[3] < 150 * MIB


def test_the_memory_of_child_processes_counts(bench: Any) -> None:
    def parent(x: int) -> None:
        child = multiprocessing.get_context("spawn").Process(target=_hungry, daemon=True)
        child.start()
        try:
            spin(30)
        finally:
            child.kill()
            child.join()

    bench.run(parent, with_limits(bench.spec([0]), memory=150 * MIB))
    assert bench.ended.failures[0].kind == "memory"


def test_the_memory_of_older_processes_does_not_count(bench: Any) -> None:
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    child = context.Process(target=_hungry, args=(go,), daemon=True)
    child.start()
    try:
        time.sleep(0.1)

        def work(x: int) -> None:
            spin(1.5)

        go.set()
        bench.run(work, with_limits(bench.spec([0]), memory=150 * MIB))
        assert bench.ended.failures == {}
    finally:
        child.kill()
        child.join()


def _hungry(go: Any = None) -> None:
    if go is not None:
        go.wait()
    kept = b"x" * (300 * MIB)
    time.sleep(60)
    del kept


def test_long_jobs_are_measured_without_any_limit(bench: Any) -> None:
    def eat(mib: int) -> None:
        kept = memory(mib)
        spin(1.0)
        del kept

    bench.run(eat, bench.spec([100]))
    assert 90 * MIB < bench.ended.max_pss[0] < 200 * MIB
    bench.run(lambda x: None, bench.spec([0], bundle=1))
    assert len(bench.ended.max_pss) == 0


# --- cancel -----------------------------------------------------------------------------


def test_cancel_stops_the_running_job_and_begins_no_other(bench: Any, gate: Any) -> None:
    thread = bench.aside(_imported(wait_at_gate), bench.spec([2, 3, 4]), isolation="thread")
    assert gate.began.wait(60)
    assert cancel("run1", 0)
    thread.join(60)
    assert not thread.is_alive()
    assert bench.ended.failures[0].kind == "cancelled" and not bench.ended.failures[0].charged
    assert bench.ended.unstarted == (1, 2)
    assert not cancel("run1", 0) and not cancel("other", 0)


def test_cancel_hits_bundles_of_short_jobs_at_any_moment(bench: Any, until: Any) -> None:
    for bundle in range(10):
        thread = bench.aside(
            lambda x: None, bench.spec(range(50_000), bundle=bundle), isolation="thread"
        )
        until(lambda bundle=bundle: ("run1", bundle) in supervise._live)
        time.sleep(0.001 * bundle)
        assert cancel("run1", bundle)
        thread.join(60)
        ended = bench.ended
        assert ended.bundle == bundle and not thread.is_alive()
        done = 50_000 - len(ended.unstarted)
        assert set(ended.failures) <= {done - 1}
        assert ended.unstarted == tuple(range(done, 50_000)) and ended.unstarted


def test_a_stop_never_hits_the_next_job() -> None:
    """Stops that race with the end of their job: every job is stopped or ends, none is hit."""
    track = Track()
    outcomes: dict[int, str] = {}
    enough = threading.Event()

    def body() -> None:
        position = 0
        while not enough.is_set():
            try:
                while not enough.is_set():
                    track.position = position
                    track.running[position] = True
                    if position % 3:
                        time.sleep(0)  # the other thread may come in
                    if track.running.pop(position, None) is None:
                        raise JobStopped
                    outcomes[position] = "ended"
                    position += 1
            except JobStopped:
                verdict = track.settle()
                assert verdict.failure is not None and position not in outcomes
                outcomes[position] = "stopped"
                position += 1

    asked: set[int] = set()
    end, before = time.monotonic() + 30, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the threads take turns all the time
    try:
        supervise.start(track, body)
        while len(asked) < 300 and time.monotonic() < end and not track.ended.is_set():
            position = track.position
            if track.interrupt(position, CANCELLED):
                asked.add(position)
    finally:
        enough.set()
        sys.setswitchinterval(before)
    assert track.ended.wait(60) and track.crash is None
    assert set(outcomes) == set(range(len(outcomes)))
    assert {p for p, how in outcomes.items() if how == "stopped"} == asked
    assert len(asked) == 300


# --- jobs that cannot be stopped --------------------------------------------------------


def test_a_job_stuck_in_c_ends_its_process(bench: Any) -> None:
    stuck: list[str] = []
    spec = with_limits(bench.spec([0.0, 3.0, 0.0]), walltime=0.1)
    bench.run(block, spec, on_stuck=lambda: stuck.append(bench.reports[-1]["op"]))
    assert stuck == ["ended"]  # the report was out before
    ended = bench.ended
    assert set(ended.failures) == {1} and ended.unstarted == (2,)
    assert ended.failures[1].kind == "walltime" and "process was ended" in ended.failures[1].message
    assert ResultStore(bench.results).load(ended.location).values[0] is None


def test_a_job_stuck_in_c_leaves_its_thread_behind(bench: Any) -> None:
    called: list[str] = []
    spec = with_limits(bench.spec([0.0, 1.5, 0.0]), walltime=0.1)
    bench.run(block, spec, isolation="thread", on_stuck=lambda: called.append("no"))
    assert called == [] and "left behind" in bench.ended.failures[1].message
    assert bench.ended.unstarted == (2,)
    out = bench.run(block, bench.spec([0.0], bundle=1), isolation="thread")  # life goes on
    assert out.values == [None]


# --- detaching --------------------------------------------------------------------------


class Gate:
    """Jobs that wait for the test; lives in this module's process only."""

    opened = threading.Event()
    began = threading.Event()
    calls: list[int] = []


def wait_at_gate(x: int) -> int:
    Gate.calls.append(x)
    print(f"job {x} says a")
    if x == 2:
        Gate.began.set()
        while not Gate.opened.is_set():
            time.sleep(0.005)
        print(f"job {x} says b")
    return x * 10


@pytest.fixture(name="gate")
def closed_gate() -> Any:
    Gate.opened, Gate.began, Gate.calls = threading.Event(), threading.Event(), []
    yield Gate
    Gate.opened.set()


def test_a_slow_job_is_detached_and_joined(bench: Any, gate: Any) -> None:
    spec = bench.spec(range(5), seconds=1.0)
    out = bench.run(_imported(wait_at_gate), spec, isolation="thread")
    ended = bench.ended
    assert out.values[:2] == [0, 10]
    assert [type(value) for value in out.values[2:]] == [Missing] * 3
    assert ended.detached == 2 and ended.unstarted == (3, 4) and not ended.failures
    store = ResultStore(bench.results)
    assert store.read_log(0) == "job 0 says a\njob 1 says a\n"

    join = bench.spec(range(5), jobs=range(2, 3), bundle=1, join=0)
    thread = bench.aside(b"", join, isolation="thread")
    time.sleep(0.05)
    assert thread.is_alive()
    gate.opened.set()
    thread.join(60)
    assert bench.ended.bundle == 1 and not bench.ended.failures
    assert store.load(bench.ended.location).values == [20]
    assert store.load(bench.ended.location).jobs == range(2, 3)
    assert store.read_log(1, bench.ended.logs[0]) == "job 2 says a\njob 2 says b\n"
    assert bench.ended.wall[0] >= 0.2
    assert gate.calls == [0, 1, 2]


def test_a_detached_job_that_ends_unjoined_keeps_its_outcome(
    bench: Any, gate: Any, until: Any
) -> None:
    bench.run(_imported(wait_at_gate), bench.spec(range(3), seconds=0.5), isolation="thread")
    assert bench.ended.detached == 2
    left = supervise._left["run1", 0]
    gate.opened.set()
    until(left.track.ended.is_set)
    out = bench.run(b"", bench.spec(range(3), jobs=(2,), bundle=1, join=0), isolation="thread")
    assert out.values == [20]
    assert ("run1", 0) not in supervise._left


def test_a_joined_job_is_supervised(bench: Any, gate: Any) -> None:
    spec = with_limits(bench.spec(range(3), seconds=0.5), walltime=1.5)
    bench.run(_imported(wait_at_gate), spec, isolation="thread")
    join = with_limits(bench.spec(range(3), jobs=(2,), bundle=1, join=0), walltime=1.5)
    bench.run(b"", join, isolation="thread")
    assert bench.ended.failures[0].kind == "walltime" and bench.ended.wall[0] >= 1.5


def test_a_joined_job_can_be_cancelled(bench: Any, gate: Any, until: Any) -> None:
    bench.run(_imported(wait_at_gate), bench.spec(range(3), seconds=0.5), isolation="thread")
    join = bench.spec(range(3), jobs=(2,), bundle=1, join=0)
    thread = bench.aside(b"", join, isolation="thread")
    until(lambda: cancel("run1", 1))
    thread.join(60)
    assert bench.ended.failures[0].kind == "cancelled"


def test_a_detached_job_can_be_cancelled_before_anybody_joins(
    bench: Any, gate: Any, until: Any
) -> None:
    bench.run(_imported(wait_at_gate), bench.spec(range(3), seconds=0.5), isolation="thread")
    left = supervise._left["run1", 0]
    assert cancel("run1", 0)
    until(left.track.ended.is_set)
    assert left.loop.failures[2].kind == "cancelled"


def test_joining_in_another_process_reports_the_job_lost(bench: Any) -> None:
    bench.run(b"", bench.spec(range(3), jobs=(2,), bundle=1, join=0))
    failure = bench.ended.failures[0]
    assert failure.kind == "lost" and not failure.charged


def test_short_jobs_are_handed_back_and_not_detached(bench: Any) -> None:
    # Far shorter than the moment that the running job gets to end, at most 0.1 s.
    out = bench.run(spin, bench.spec([0.001] * 2000, seconds=1.0))
    ended = bench.ended
    assert ended.detached is None and ended.unstarted
    done = 2000 - len(ended.unstarted)
    assert out.values[:done] == [None] * done
    assert ended.unstarted == tuple(range(done, 2000))


def test_a_bundle_of_one_job_is_never_detached(bench: Any) -> None:
    out = bench.run(spin, bench.spec([0.4], seconds=0.1))
    assert out.values == [None] and bench.ended.detached is None


def _imported(function: Callable[..., Any]) -> bytes:
    """Pickle by reference, so that the job sees the events of this very module."""
    import pickle

    from pandaflow.executors.payload import Payload, Slot

    assert sys.modules[function.__module__] is not None
    return pickle.dumps(Payload(function, (Slot(0),)))


# --- threads ----------------------------------------------------------------------------


def test_payload_threads_are_used_again(bench: Any) -> None:
    bench.run(lambda x: threading.get_ident(), bench.spec([0]))
    names = [t for t in threading.enumerate() if t.name == "pandaflow-payload"]
    for bundle in range(1, 30):
        bench.run(lambda x: threading.get_ident(), bench.spec([0], bundle=bundle))
    again = [t for t in threading.enumerate() if t.name == "pandaflow-payload"]
    assert len(again) <= len(names) + 2


def test_a_forked_child_starts_threads_of_its_own(bench: Any) -> None:
    bench.run(lambda x: x, bench.spec([0]))
    pid = os.fork()
    if pid == 0:
        try:
            out = bench.run(lambda x: x + 1, bench.spec([1], bundle=1))
            os._exit(0 if out.values == [2] else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_nothing_of_a_bundle_stays_in_memory(bench: Any) -> None:
    import weakref

    class Big:
        pass

    kept: list[Any] = []

    def make(x: int) -> int:
        big = Big()
        kept.append(weakref.ref(big))
        return x

    bench.run(make, bench.spec([0, 1]), isolation="caller")
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)
    assert supervise._live == {}
