"""Cancel, pause, retry, restart, priorities, callbacks, caching and plans."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.testing.probe import still


@pf.task
def work(x, beats, seconds=0.0):
    """Beat while alive, so that a test sees whether the payload really stopped."""
    path = os.path.join(beats, str(x))
    end = time.monotonic() + seconds
    while True:
        with open(path, "a") as beat:
            beat.write("x")
        if time.monotonic() >= end:
            return x
        time.sleep(0.02)


@pf.task
def stuck(x):
    time.sleep(3600)


@pf.task
def after(x):
    return x


BEAT = "while true; do echo x >> %{beats}/command; sleep 0.02; done"
loop_forever = pf.command(BEAT, name="forever")


@pf.workflow
def long_work(n, beats, seconds=600.0):
    return after(work(pf.items(range(n)), beats, seconds=seconds))


@pf.workflow
def stuck_work():
    return stuck(pf.items(range(4)))


@pf.workflow
def command_work(beats):
    return loop_forever(beats=beats)


def beats_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def wait_for(condition: Any, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_cancel_stops_what_runs(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, store: str
) -> None:
    executor = request.getfixturevalue(kind)
    beats = tmp_path / "beats"
    beats.mkdir()
    run = long_work(10, str(beats)).submit(executor=executor, store=store)
    wait_for(lambda: len(list(beats.iterdir())) >= 2)
    run.cancel()
    assert run.status == "aborted"
    seen = beats_of(beats)
    time.sleep(0.3)
    assert beats_of(beats) == seen
    counts = Counter(row["status"] for row in run.jobs())
    assert counts == {"cancelled": 20}
    with pytest.raises(pf.RunFailed):
        run.result()


def test_cancel_stops_what_cannot_be_interrupted(processes: Any, store: str) -> None:
    run = stuck_work().submit(executor=processes, store=store)
    wait_for(lambda: any(run.jobs(status="running")))
    run.cancel()
    assert run.wait(60) == "aborted"
    # The workers are usable again.
    assert quick(4).run(executor=processes, store=store).result() == [0, 1, 2, 3]


@pf.workflow
def quick(n):
    return after(pf.items(range(n)))


def test_cancel_stops_commands(tmp_path: Path, processes: Any, store: str) -> None:
    beats = tmp_path / "beats"
    beats.mkdir()
    run = command_work(str(beats)).submit(executor=processes, store=store)
    wait_for(lambda: beats_of(beats) > 4)
    run.cancel()
    assert still(beats / "command")


@pf.workflow
def two_branches(beats):
    return work.options(name="left")("left", beats, seconds=600), after(pf.items(range(3)))


def test_cancel_one_task(tmp_path: Path, processes: Any, store: str) -> None:
    run = two_branches(str(tmp_path)).submit(executor=processes, store=store)
    wait_for(lambda: (tmp_path / "left").exists())
    run.cancel(task="left")
    assert run.wait(60) == "finished"
    assert run.result(partial=True) == (None, [0, 1, 2])


@pf.task
def gated(x, folder):
    """Leave a file when it begins; the first few take a moment, the others until the gate opens.

    So however late the test looks, some have ended and most have not begun.
    """
    begun = len(list(Path(folder).glob("[0-9]*")))
    Path(folder, f"{x}").touch()
    end = time.monotonic() + (0.2 if begun < 4 else 60)
    while time.monotonic() < end and not os.path.exists(os.path.join(folder, "gate")):
        time.sleep(0.01)
    return x


@pf.workflow
def steps(n, folder):
    return after(gated(pf.items(range(n)), folder))


def test_pause_and_resume(tmp_path: Path, processes: Any, store: str) -> None:
    run = steps(40, str(tmp_path)).submit(executor=processes, store=store)
    wait_for(lambda: any(run.jobs(task="gated", status="finished")))
    run.pause()
    assert run.status == "paused"
    (tmp_path / "gate").touch()
    wait_for(lambda: not any(run.jobs(status="running")))
    begun = len(list(tmp_path.glob("[0-9]*")))
    time.sleep(0.5)
    assert len(list(tmp_path.glob("[0-9]*"))) == begun < 40
    assert pf.attach(run.id, store=store).status == "paused"
    run.resume()
    assert run.wait(60) == "done"
    assert run.result() == list(range(40))


def test_steering_from_another_handle(tmp_path: Path, processes: Any, store: str) -> None:
    run = long_work(4, str(tmp_path)).submit(executor=processes, store=store)
    wait_for(lambda: any(run.jobs(status="running")))
    pf.attach(run.id, store=store).cancel()
    assert run.wait(60) == "aborted"


def test_cancel_of_a_run_that_nobody_drives(tmp_path: Path, processes: Any, store: str) -> None:
    run = long_work(4, str(tmp_path)).submit(executor=processes, store=store)
    wait_for(lambda: any(run.jobs(status="running")))
    run.stop()
    assert run.status == "running"
    pf.attach(run.id, store=store).cancel()
    assert run.status == "aborted"


@pf.task
def fails_without(x, flag):
    if x == 2 and not os.path.exists(flag):
        raise FileNotFoundError(flag)
    return x


@pf.task(n_jobs=1)
def listed(xs):
    return sorted(xs)


@pf.workflow
def mendable(flag):
    made = fails_without(pf.items(range(5)), flag)
    return listed(after(made))


def test_retry_runs_what_failed_and_what_was_closed(
    tmp_path: Path, executor: Any, store: str
) -> None:
    flag = tmp_path / "flag"
    run = mendable(str(flag)).run(executor=executor, store=store)
    assert run.status == "failed"
    flag.touch()
    run.retry(executor=executor)
    assert run.wait(60) == "done"
    assert run.result() == [0, 1, 2, 3, 4]
    attempts = {row["index"]: row["attempt"] for row in run.jobs(task="fails_without")}
    assert attempts == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1}


def test_the_failed_items_run_again_as_a_dataset(tmp_path: Path, store: str) -> None:
    flag = tmp_path / "flag"
    run = mendable(str(flag)).run(executor="sync", store=store)
    failed = run.failed_items("fails_without")

    @pf.workflow
    def again(items):
        return after(items)

    assert again(failed).run(executor="sync", store=store).result() == [2]


@pf.task(memory="60 MiB")
def big(x):
    block = bytearray(100_000_000)
    end = time.monotonic() + 60
    while pf.current_job().attempt == 1 and time.monotonic() < end:
        time.sleep(0.02)  # until it is seen, and stopped
    return len(block)


@pf.workflow
def too_small():
    return big(1)


def test_retry_with_changed_options(processes: Any, store: str) -> None:
    run = too_small().run(executor=processes, store=store)
    assert run.status == "failed"
    with pytest.raises(pf.WorkflowError, match="unknown option; did you mean 'memory'"):
        run.retry(memroy="1 GiB")
    run.retry(memory="1 GiB", executor=processes)
    assert run.wait(60) == "done"


@pf.task
def noted(x, log, stage):
    with open(log, "a") as file:
        file.write(f"{stage}{x}\n")
    return x


@pf.workflow
def staged(log):
    first = noted.options(name="first")(pf.items(range(3)), log, "a")
    return noted.options(name="second")(first, log, "b")


def test_restart_from_a_task(tmp_path: Path, store: str) -> None:
    log = tmp_path / "log"
    run = staged(str(log)).run(executor="sync", store=store)
    run.retry(task="second", restart=True, executor="sync")
    assert run.wait(60) == "done"
    counts = Counter(log.read_text().split())
    assert counts == {"a0": 1, "a1": 1, "a2": 1, "b0": 2, "b1": 2, "b2": 2}


@pf.workflow
def prioritized(log):
    low = noted.options(name="low", priority=1)(pf.items(range(5)), log, "l")
    high = noted.options(name="high", priority=9)(pf.items(range(5)), log, "h")
    return low, high


def test_priority(tmp_path: Path, store: str) -> None:
    log = tmp_path / "log"
    prioritized(str(log)).run(executor="sync", store=store)
    assert [line[0] for line in log.read_text().split()] == ["h"] * 5 + ["l"] * 5


@pf.workflow
def deep(log):
    first = noted.options(name="first")(pf.items(range(40)), log, "a")
    return noted.options(name="second")(first, log, "b")


def test_depth_first(tmp_path: Path, store: str) -> None:
    log = tmp_path / "log"
    deep(str(log)).run(executor="sync", store=store)
    lines = log.read_text().split()
    assert lines.index("b0") < lines.index("a39")


def test_callbacks_and_events(threads: Any, store: str) -> None:
    told: list[pf.Transition] = []

    def broken(transition: pf.Transition) -> None:
        raise RuntimeError("a hook must not touch the run")

    run = quick(5).run(executor=threads, store=store, callbacks=[broken, told.append])
    assert run.status == "done"
    run = quick(5).run(executor=threads, store=store, callbacks=told.append)
    moves = [(t.kind, t.start, t.finish) for t in told]
    assert moves[0] == ("run", "defined", "running")
    assert moves[-1] == ("run", "running", "done")
    finished = {job for t in told if t.finish == "finished" for job in t.jobs}
    assert finished == set(range(5))
    kinds = [event["kind"] for event in run.events()]
    assert kinds[0] == "run_moved"
    assert [e["seq"] for e in run.events(follow=True)] == sorted(e["seq"] for e in run.events())


@pf.task(cache=True)
def costly(file, log, factor=1):
    with open(log, "a") as out:
        out.write(f"{file.name}\n")
    return file.size * factor


@pf.task(cache=True)
def summed(size):
    return size + 1


@pf.workflow
def cached(where, log, factor=1):
    return summed(costly(pf.files(where), log, factor=factor))


def test_cache_and_plan(tmp_path: Path, executor: Any, store: str) -> None:
    log = tmp_path / "log"
    data = tmp_path / "data"
    data.mkdir()
    for name in "abc":
        (data / name).write_text(name * 10)
    where = f"{data}/*"
    assert [row["cached"] for row in cached(where, str(log)).plan(store=store).rows] == [0, 0]
    first = cached(where, str(log)).run(executor=executor, store=store).result()
    assert first == [11, 11, 11]
    rows = cached(where, str(log)).plan(store=store).rows
    assert [(row["task"], row["cached"], row["why"]) for row in rows] == [
        ("costly", 3, "code and inputs unchanged"),
        ("summed", 3, "code and inputs unchanged"),
    ]
    run = cached(where, str(log)).run(executor=executor, store=store)
    assert run.result() == first
    assert len(log.read_text().split()) == 3
    (data / "b").write_text("longer than before")
    rows = cached(where, str(log)).plan(store=store).rows
    assert (rows[0]["cached"], rows[0]["run"]) == (2, 1)
    assert cached(where, str(log)).run(executor=executor, store=store).result() == [11, 19, 11]
    assert len(log.read_text().split()) == 4
    cached(where, str(log), factor=2).run(executor=executor, store=store)
    assert len(log.read_text().split()) == 7


def test_logs_reproduce_and_pictures(tmp_path: Path, processes: Any, store: str) -> None:
    import subprocess
    import sys

    run = talking().run(executor=processes, store=store)
    assert run.logs("talk[1]").splitlines() == ["said 1", "logged 1"]
    script = tmp_path / "alone.py"
    script.write_text(run.reproduce(("talk", 1)))
    alone = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=True
    )
    assert alone.stdout.splitlines()[-1] == "'value 2'"
    assert "<svg" in run.timeline()._repr_svg_()
    assert "talk" in run._repr_html_()
    assert "<svg" in talking()._repr_html_()
    assert "talk" in run.tasks[0]["name"] + run.tasks[1]["name"]
    assert "<" in run.tasks[0]._repr_html_()
    jobs = run.jobs(task="talk")
    assert (len(jobs), jobs[1]["status"], jobs[-1]["index"]) == (3, "finished", 2)
    assert "talk[1]" in repr(jobs)
    assert "talk[1]" in jobs._repr_html_()
    assert "task talk" in talk._repr_html_()
    assert "3 items" in pf.items([1, 2, 3])._repr_html_()


@pf.task
def talk(x):
    import logging

    print("said", x)
    logging.getLogger("user").warning("logged %s", x)
    return f"value {x + 1}"


@pf.workflow
def talking():
    return talk(after(pf.items(range(3))))


def test_two_runs_at_once(processes: Any, store: str) -> None:
    runs = [quick(200).submit(executor=processes, store=store) for _ in range(3)]
    assert [run.wait(60) for run in runs] == ["done"] * 3
    assert {run.id for run in pf.runs(store=store)} == {run.id for run in runs}


def test_threads_that_submit(threads: Any, store: str) -> None:
    results: list[Any] = []

    def one() -> None:
        results.append(quick(10).run(executor=threads, store=store, progress=False).result())

    workers = [threading.Thread(target=one) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [list(range(10))] * 3


def test_runs_that_have_ended_leave_nothing_open(tmp_path):
    """A process that drives thousands of runs must not keep their stores and sessions."""
    executor = pf.executors.Local(workers=1, processes=False)

    @pf.task
    def same(x):
        return x

    @pf.workflow
    def small():
        return same(pf.items(range(3)))

    def descriptors(n):
        for k in range(n):
            run = small().run(executor=executor, store=f"sqlite:///{tmp_path}/{n}-{k}.db")
            assert run.result() == [0, 1, 2]
        del run
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    few = descriptors(1)
    assert descriptors(6) <= few + 3
    executor.close()
