"""Partial chaining as an ordering property, precedence in arbitrary DAGs, a million jobs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf

SLOW = 7


@pf.task
def made(x, gate):
    """Take a moment; one job takes until the gate is open, which the test does last of all."""
    time.sleep(0.001)
    deadline = time.monotonic() + 60
    while x == SLOW and not os.path.exists(gate) and time.monotonic() < deadline:
        time.sleep(0.01)
    return x


@pf.task
def used(x):
    return x


@pf.task(items_per_job=3)
def threes(xs):
    return sum(xs)


@pf.task(items_per_job=2)
def pairs(xs):
    return sum(xs)


@pf.workflow
def two_stages(n, gate):
    return used(made(pf.items(range(n)), gate))


@pf.workflow
def three_stages(n, gate):
    return pairs(threes(made(pf.items(range(n)), gate)))


def ends(wf: Any, executor: Any, store: str, gate: Path, others: int) -> list[tuple[str, int]]:
    """Return jobs as their ends were committed; the gate opens when ``others`` have ended."""
    order: list[tuple[str, int]] = []

    def note(transition: pf.Transition) -> None:
        if transition.finish == "finished":
            order.extend((transition.task, job) for job in transition.jobs)
        if len(order) >= others:
            gate.touch()

    run = wf.run(executor=executor, store=store, callbacks=note)
    assert run.status == "done"
    return order


@pytest.mark.parametrize("n", [20, 600])
@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_nobody_waits_for_a_slow_job_but_those_who_need_it(
    request: pytest.FixtureRequest, kind: str, n: int, store: str, tmp_path: Path
) -> None:
    executor, gate = request.getfixturevalue(kind), tmp_path / "gate"
    order = ends(two_stages(n, str(gate)), executor, store, gate, 2 * (n - 1))
    slow = order.index(("made", SLOW))
    assert set(order[slow + 1 :]) == {("used", SLOW)}


@pytest.mark.parametrize("n", [60, 600])
def test_the_same_through_k_to_one_groups(
    processes: Any, n: int, store: str, tmp_path: Path
) -> None:
    gate, others = tmp_path / "gate", n + n // 3 + n // 6 - 3
    order = ends(three_stages(n, str(gate)), processes, store, gate, others)
    slow = order.index(("made", SLOW))
    needs_it = {("threes", SLOW // 3), ("pairs", SLOW // 6)}
    assert set(order[slow + 1 :]) == needs_it


def timed(seconds: float, *needs: Any) -> tuple[float, float]:
    begun = time.time()
    time.sleep(seconds)
    return begun, time.time()


def random_dag(nodes: int, dice: random.Random) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    made: dict[str, Any] = {}
    edges = []
    for number in range(nodes):
        ups = dice.sample(range(number), min(number, dice.choice([0, 1, 1, 2, 3])))
        values, plain = ups[::2], ups[1::2]
        refs = [pf.ref(f"n{up}") for up in values]
        made[f"n{number}"] = (timed, (dice.choice([0.0, 0.0, 0.002]), *refs))
        edges += [(f"n{up}", f"n{number}") for up in plain]
    return made, edges


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.very_slow)])
def test_precedence_in_a_dag_of_thousands(threads: Any, store: str, seed: int) -> None:
    nodes, edges = random_dag(2000, random.Random(seed))

    @pf.workflow
    def dag():
        return pf.job_graph(nodes, edges)

    run = dag().run(executor=threads, store=store)
    assert run.status == "done"
    spans = run.result()
    assert set(spans) == set(nodes)
    implied = [
        (part.name, name)
        for name, node in nodes.items()
        for part in node[1]
        if hasattr(part, "name")
    ]
    for before, behind in [*edges, *implied]:
        assert spans[before][1] <= spans[behind][0]


MILLION = """
import resource, sys
import pandaflow as pf

@pf.task
def one(x):
    return x

@pf.task
def two(x):
    return x

@pf.workflow
def chain(n):
    return two(one(pf.items(range(n))))

executor = pf.executors.Local(workers=2)
run = chain(500_000).submit(executor=executor, store=sys.argv[1])
print(run.id, flush=True)
print(run.wait(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)
executor.close()
"""


@pytest.mark.slow
def test_a_million_jobs(store: str) -> None:
    command = [sys.executable, "-c", MILLION, store]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        run_id = driver.stdout.readline().strip()
        while pf.attach(run_id, store=store).status == "defined":
            time.sleep(0.05)
        look = [sys.executable, "-m", "pandaflow.cli", "status", run_id, "--json", "--store", store]
        seen = json.loads(subprocess.run(look, capture_output=True, check=True, timeout=60).stdout)
        assert seen["status"] == "running"
        assert [task["name"] for task in seen["tasks"]] == ["one", "two"]
        status, mib = driver.communicate(timeout=300)[0].split()
    finally:
        driver.kill()
        driver.wait()
    assert status == "done"
    assert int(mib) < 1024
    counts = [task["jobs"] for task in pf.attach(run_id, store=store).tasks]
    assert counts == [{"finished": 500_000}] * 2
