"""Broken payloads: each is reported under its own job with its own cause, the others finish."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf

N = 300  # enough for bundles


@pf.task(retries=2)
def flaky(x):
    if x == 203 and pf.current_job().attempt < 3:
        raise ValueError(f"bad luck in attempt {pf.current_job().attempt}")
    return x


@pf.task
def segfault(x):
    if x == 205:
        ctypes.string_at(0)
    return x


@pf.task(memory="200 MiB")
def hungry(x):
    kept = []
    while x == 207:
        kept.append(bytearray(10_000_000))
        time.sleep(0.005)
    return x


@pf.task(walltime=1.5)
def endless(x):
    if x == 202:
        time.sleep(10_000)
    return x


@pf.task
def unpicklable(x):
    return (i for i in range(3)) if x == 204 else x


@pf.workflow
def broken(n):
    numbers = pf.items(range(n))
    tasks = (flaky, segfault, hungry, endless, unpicklable)
    return tuple(task(numbers) for task in tasks)


def test_each_is_reported_under_its_own_job(processes: Any, store: str) -> None:
    run = broken(N).run(executor=processes, store=store)
    assert run.status == "failed"
    failed = {row["task"]: row for row in run.jobs(status="failed")}
    assert {(task, row["index"]) for task, row in failed.items()} == {
        ("segfault", 205),
        ("hungry", 207),
        ("endless", 202),
        ("unpicklable", 204),
    }
    kinds = {task: row["failure"]["kind"] for task, row in failed.items()}
    assert kinds == {
        "segfault": "lost",
        "hungry": "memory",
        "endless": "walltime",
        "unpicklable": "unserializable",
    }
    assert "SIGSEGV" in failed["segfault"]["failure"]["message"]
    results = run.result(partial=True)
    assert results[0] == list(range(N))
    assert [len(values) for values in results[1:]] == [N - 1] * 4
    with pytest.raises(pf.RunFailed) as caught:
        run.result()
    assert {(task, job) for task, job, _ in caught.value.failures} == {
        (task, row["index"]) for task, row in failed.items()
    }


def test_a_flaky_job_tells_its_attempts(processes: Any, store: str) -> None:
    run = flaky_only(N).run(executor=processes, store=store)
    assert run.status == "done"
    text = run.explain("flaky[203]")
    assert "ValueError: bad luck in attempt 1" in text
    assert "ValueError: bad luck in attempt 2" in text
    (row,) = [row for row in run.jobs(task="flaky") if row["index"] == 203]
    assert row["attempt"] == 3


@pf.workflow
def flaky_only(n):
    return flaky(pf.items(range(n)))


@pf.task(walltime=1.5)
def first_hangs(x):
    time.sleep(10_000 if x == 0 else 0.25)  # one that no exception interrupts
    return x


@pf.task
def brief(x):
    time.sleep(0.25)
    return x


@pf.workflow
def hangs_once(n):
    return first_hangs(pf.items(range(n)))


@pf.workflow
def brief_only(n):
    return brief(pf.items(range(n)))


def test_a_worker_that_is_about_to_end_gets_no_other_job(store: str) -> None:
    """It ends a moment after it has reported a job that nothing stops; of later runs too."""
    executor = pf.executors.Local(workers=1)
    try:
        hung = hangs_once(3).run(executor=executor, store=store)
        after = brief_only(2).run(executor=executor, store=store)
    finally:
        executor.close()
    assert [(row["index"], row["attempt"]) for row in hung.jobs(status="failed")] == [(0, 1)]
    assert after.status == "done"
    for run in (hung, after):
        assert {row["attempt"] for row in run.jobs()} == {1}
        assert not [e["reason"] for e in run.events() if "worker died" in e["reason"]]


@pf.task
def fails_on_odd(x):
    if x % 2:
        raise KeyError(x)
    return x


@pf.task
def then(x):
    return x


@pf.task(n_jobs=1)
def gathered(xs):
    return sum(xs)


@pf.workflow
def branches(n):
    bad = fails_on_odd(pf.items(range(n)))
    good = then.options(name="good")(pf.items(range(n)))
    return then(bad), gathered(bad), gathered.options(name="sum")(good)


def test_a_failed_branch_does_not_stop_its_siblings(executor: Any, store: str) -> None:
    run = branches(10).run(executor=executor, store=store)
    states = {task["name"]: (task["status"], task["jobs"]) for task in run.tasks}
    assert states["fails_on_odd"] == ("failed", {"finished": 5, "failed": 5})
    assert states["then"] == ("failed", {"finished": 5, "closed": 5})
    assert states["gathered"] == ("failed", {"closed": 1})
    assert states["sum"] == ("done", {"finished": 1})
    assert run.result(partial=True) == ([0, 2, 4, 6, 8], None, 45)
    assert "fails_on_odd[1] is failed" in run.explain("then[1]")


@pf.workflow
def within_goal(n):
    return gathered(fails_on_odd.options(goal=0.5)(pf.items(range(n))))


def test_goal(executor: Any, store: str) -> None:
    run = within_goal(10).run(executor=executor, store=store)
    assert run.status == "finished"
    assert run.result() == 20


@pf.task(retries=5)
def picky(kind):
    if kind == "os":
        raise FileNotFoundError("gone")
    raise ValueError("never right")


@pf.workflow
def by_rule():
    rule = pf.Retry(retries=5, rules=(pf.RetryRule(match="OSError", action="fail"),))
    return picky.options(retries=rule)(pf.items(["os", "value"]))


def test_rules_by_exception_type(store: str) -> None:
    run = by_rule().run(executor="sync", store=store)
    attempts = {row["index"]: row["attempt"] for row in run.jobs(status="failed")}
    assert attempts == {0: 1, 1: 6}


@pf.task
def timed(x):
    with open(x, "a") as log:
        log.write(f"{time.time()}\n")
    raise RuntimeError("again")


@pf.workflow
def with_back_off(path):
    retry = pf.Retry(retries=2, delay=0.3, factor=2.0)
    return timed.options(retries=retry)(path)


def test_back_off(tmp_path: Path, threads: Any, store: str) -> None:
    log = tmp_path / "log"
    with_back_off(str(log)).run(executor=threads, store=store)
    first, second, third = map(float, log.read_text().split())
    assert second - first >= 0.3
    assert third - second >= 0.6


@pf.task(memory="60 MiB")
def needs_more(x):
    block = bytearray(100_000_000)
    end = time.monotonic() + 60
    while pf.current_job().attempt == 1 and time.monotonic() < end:
        time.sleep(0.02)  # until it is seen, and stopped
    return len(block)


@pf.workflow
def escalating():
    return needs_more.options(retries=pf.Retry(retries=2, memory_factor=3.0))(1)


def test_memory_escalates(processes: Any, store: str) -> None:
    run = escalating().run(executor=processes, store=store)
    assert run.status == "done", run.explain("needs_more[0]")
    assert run.result() == 100_000_000


@pf.task(max_failure_rate=0.3)
def mostly_fails(x):
    raise RuntimeError("no")


@pf.workflow
def hopeless():
    return mostly_fails(pf.items(range(1000)))


def test_a_hopeless_task_is_stopped(threads: Any, store: str) -> None:
    run = hopeless().run(executor=threads, store=store)
    (task,) = run.tasks
    assert (run.status, task["status"]) == ("failed", "exhausted")
    assert task["jobs"]["failed"] < 1000
    with pytest.raises(pf.RunFailed, match="no"):
        run.result()


crash = pf.command("echo before; exit 7", name="crash")
killed = pf.command("kill -9 $$", name="killed")
sleeps = pf.command("sleep 100 & sleep 100", name="sleeps", walltime=0.5)
silent = pf.command("true > %OUT{a.txt}; rm %OUT{a.txt}", name="silent")


@pf.workflow
def bad_commands():
    return crash(), killed(), sleeps(), silent()


def test_commands_fail_with_codes_and_signals(processes: Any, store: str) -> None:
    run = bad_commands().run(executor=processes, store=store)
    failures = {row["task"]: row["failure"] for row in run.jobs(status="failed")}
    assert (failures["crash"]["kind"], failures["crash"]["code"]) == ("exit", 7)
    assert (failures["killed"]["kind"], failures["killed"]["code"]) == ("signal", 9)
    assert failures["sleeps"]["kind"] == "walltime"
    assert failures["silent"]["kind"] == "output"
    assert "a.txt" in failures["silent"]["message"]
    assert "before" in run.logs("crash[0]")


def test_the_worker_environment_lacks_a_module(tmp_path: Path, processes: Any, store: str) -> None:
    import sys

    (tmp_path / "only_here.py").write_text("def f(x):\n    return x\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here

        task = pf.task(only_here.f)

        @pf.workflow
        def lost():
            return task(1)

        run = lost().run(executor=processes, store=store)
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["only_here"]
    # Its function travels by reference, and the workers cannot import it.
    with pytest.raises(pf.RunFailed, match="only_here"):
        run.result()
