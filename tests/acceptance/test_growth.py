"""Sub-workflows that join a real run, trial by trial, while a stream holds it open."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.authoring.collections import Placed
from pandaflow.client import Run
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Output
from pandaflow.wishes import task_id
from pandaflow.workflows import grow

N = 20


@pf.task
def prepare() -> int:
    return 100


@pf.task
def simulate(x: int, condition: int) -> int:
    return x * condition


@pf.task
def smear(x: int) -> int:
    if x < 0:
        raise ValueError("below the threshold")
    return x + 1


@pf.task
def merge(parts: list[int], base: int) -> int:
    return sum(parts) + base


@pf.workflow
def objective(x: int, n: int, base: Any) -> Any:
    """As many steps as the parameters say."""
    parts = simulate(x, pf.items(range(1, n + 1)))
    if n > 3:
        parts = smear(parts)
    return {"loss": merge(parts.all(), base), "n": n}


def expected(x: int, n: int) -> dict[str, int]:
    parts = [x * k + (n > 3) for k in range(1, n + 1)]
    return {"loss": sum(parts) + 100, "n": n}


def study(anchor: Any) -> Any:
    made = prepare()
    pf.task(lambda x: x, name="hold")(anchor)
    return made


def base_of(run: Run) -> Placed:
    number = next(row["id"] for row in run.summary()["tasks"] if row["name"] == "prepare")
    return Placed("prepare", Output(number), length=1, single=True)


def start(executor: object, store: str) -> tuple[Run, Any]:
    anchor = pf.stream("anchor")
    return pf.workflow(study)(anchor).submit(executor=executor, store=store), anchor


def value(run: Run, task: str) -> Any:
    gather = run._gatherer()
    return gather.value(task_id(gather._engine, task), 0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def status(run: Run, task: str) -> str:
    return next((r["status"] for r in run.summary()["tasks"] if r["name"] == task), "not there")


def test_twenty_sub_workflows_join_while_others_end(processes: object, store: str) -> None:
    run, anchor = start(processes, store)
    base, names = base_of(run), []
    with anchor:
        for k in range(N):
            names.append(grow(run, objective, (k, k % 5 + 1, base), {}, f"trial-{k}/"))
            if k == N - 2:
                until(lambda: status(run, names[0]) == "done")
        until(lambda: status(run, names[-1]) != "not there")
    assert run.wait(60) == "done"
    assert [value(run, name) for name in names] == [expected(k, k % 5 + 1) for k in range(N)]
    assert run.result() == 100


def test_views_of_the_run_know_what_joined(threads: object, store: str) -> None:
    run, anchor = start(threads, store)
    with anchor:
        name = grow(run, objective, (2, 4), {"base": base_of(run)}, "trial-0/")
        until(lambda: status(run, name) == "done")
    run.wait(60)
    assert [row["name"] for row in run.tasks][2:] == [
        "trial-0/simulate",
        "trial-0/smear",
        "trial-0/merge",
    ]
    assert "trial-0/smear[3] is finished" in run.explain("trial-0/smear[3]")
    assert "<svg" in run.timeline()._repr_svg_()
    again = pf.client.attach(run.id, store)
    assert len(again.jobs(task="trial-0/simulate")) == 4
    assert value(again, name) == expected(2, 4)


def test_a_job_of_a_sub_workflow_can_be_reproduced(
    threads: object, store: str, tmp_path: Path
) -> None:
    run, anchor = start(threads, store)
    with anchor:
        name = grow(run, objective, (2, 4, base_of(run)), {}, "trial-0/")
        until(lambda: status(run, name) == "done")
    run.wait(60)
    script = tmp_path / "again.py"
    script.write_text(run.reproduce("trial-0/simulate[2]"))
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    assert "6" in made.stdout


def test_a_sub_workflow_that_fails_leaves_the_others_and_the_run(
    threads: object, store: str
) -> None:
    run, anchor = start(threads, store)
    base = base_of(run)
    with anchor:
        names = [grow(run, objective, (x, 4, base), {}, f"t{x}/") for x in (-5, 1, 2)]
        until(lambda: all(status(run, name) in ("done", "failed") for name in names))
    assert run.wait(60) == "done"
    assert [status(run, name) for name in names] == ["failed", "done", "done"]
    assert value(run, names[2]) == expected(2, 4)
    assert "below the threshold" in run.explain("t-5/smear[0]")


def test_asking_twice_does_no_harm(threads: object, store: str) -> None:
    run, anchor = start(threads, store)
    with anchor:
        name = grow(run, smear, (1,), {}, "t/")
        assert grow(run, smear, (5,), {}, "t/") == name
        last = grow(run, smear, (2,), {}, "u/")
        until(lambda: status(run, last) == "done")
    assert run.wait(60) == "done"
    assert (value(run, name), value(run, last)) == (2, 3)
    assert [row["name"] for row in run.tasks] == ["prepare", "hold", "t/smear", "u/smear"]


def test_an_executor_that_is_not_there_is_refused(threads: object, store: str) -> None:
    run, anchor = start(threads, store)
    with anchor:
        grow(run, smear.options(executor="moon"), (1,), {}, "a/")
        good = grow(run, smear, (1,), {}, "b/")
        until(lambda: status(run, good) == "done")
    assert run.wait(60) == "done"
    assert status(run, "a/smear") == "not there"


def test_jobs_of_several_nodes_are_refused_where_there_is_one(threads: object, store: str) -> None:
    run, anchor = start(threads, store)
    with anchor:
        grow(run, smear.options(nodes=2), (1,), {}, "a/")
        good = grow(run, smear, (1,), {}, "b/")
        until(lambda: status(run, good) == "done")
    assert run.wait(60) == "done"
    assert status(run, "a/smear") == "not there"


def test_a_sub_workflow_opens_an_executor_of_its_own(threads: object, store: str) -> None:
    other = pf.executors.Local(workers=1, processes=False)
    anchor = pf.stream("anchor")
    run = pf.workflow(study)(anchor).submit(
        executors={"main": threads, "other": other}, store=store
    )
    with anchor:
        name = grow(run, smear.options(executor="other"), (1,), {}, "t/")
        until(lambda: status(run, name) == "done")
    assert run.wait(60) == "done"
    assert value(run, name) == 2
    other.close()


def test_a_collection_is_no_result(threads: object, store: str) -> None:
    run, anchor = start(threads, store)
    with anchor, pytest.raises(WorkflowError, match="must return one value"):
        grow(run, lambda: simulate(pf.items([1, 2]), 3), (), {}, "t/")
    assert run.wait(60) == "done"


SCRIPT = """
import os, sys, time
import pandaflow as pf
from pandaflow.workflows import grow

STORE, COUNTER, WHAT = sys.argv[1:4]
N, LAST = int(sys.argv[4]), sys.argv[5] == "last"

def note(*what):
    fd = os.open(COUNTER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, what)) + "\\n").encode())
    os.close(fd)

@pf.task
def simulate(trial, part):
    note("simulate", trial, part)
    time.sleep(0.01)
    return part

@pf.task
def merge(trial, parts):
    note("merge", trial, 0)
    return sum(parts)

@pf.task
def again(trial, x):
    note("again", trial, x)
    return x + 1

@pf.task
def hold(x):
    return x

def objective(trial):
    total = merge(trial, simulate(trial, pf.items(range(4))).all())
    if trial % 3 == 0:
        return pf.loop(lambda x: again(trial, x), total, max_iterations=3)
    return total

@pf.workflow
def study(anchor):
    return hold(anchor)

executor = pf.executors.Local(workers=2, processes=False)
anchor = pf.stream("anchor")
if WHAT == "new":
    run = study(anchor).submit(executor=executor, store=STORE)
else:
    run = pf.resume(WHAT, store=STORE, executor=executor)
print(run.id, flush=True)
for trial in range(N):
    grow(run, objective, (trial,), {}, f"trial-{trial}/")
    note("grown", trial, 0)
if LAST:
    run.stream("anchor").close()
print(run.wait(), flush=True)
executor.close()
"""


def test_kill_nine_and_resume(tmp_path: Path, store: str) -> None:
    """Each driver asks for all trials again: those that are there are not added twice."""
    script, counter = tmp_path / "driver.py", tmp_path / "counter.txt"
    script.write_text(SCRIPT)
    what = "new"
    for lines in (7, 40, 90):
        process = drive(script, store, counter, what, "")
        assert process.stdout is not None
        what = process.stdout.readline().strip()
        until(lambda: begun(counter) >= lines or process.poll() is not None)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done = finished(store, what)
        seen = Counter(counter.read_text().splitlines())
    out, err = drive(script, store, counter, what, "last").communicate(timeout=100)
    assert out.split()[-1] == "done", err
    after = Counter(counter.read_text().splitlines())
    assert {f"simulate {t} {p}" for t in range(12) for p in range(4)} <= set(after)
    assert not {job for job in done if after[job] > seen[job]}
    run = pf.client.attach(what, store)
    for trial in range(12):
        loops = trial % 3 == 0
        name = f"trial-{trial}/" + ("result" if loops else "merge")
        assert value(run, name) == (9 if loops else 6)


def drive(script: Path, store: str, counter: Path, what: str, last: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), store, str(counter), what, "12", last]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(counter: Path) -> int:
    return counter.read_bytes().count(b"\n") if counter.exists() else 0


def finished(store: str, run_id: str) -> set[str]:
    """Return the simulations that were committed, as the counter names them."""
    rows = pf.client.attach(run_id, store).jobs(status="finished")
    names = [(row["task"].partition("/"), row["index"]) for row in rows]
    return {
        f"simulate {trial.removeprefix('trial-')} {index}"
        for (trial, _, task), index in names
        if task == "simulate"
    }
