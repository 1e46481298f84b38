"""Jobs of several nodes or ranks: refused where an executor starts jobs on one node."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import pandaflow as pf
from pandaflow.cli.app import app
from pandaflow.core.model import Resources
from pandaflow.places import open_store


def one(x):
    return x


def fails_until(gate):
    if not Path(gate).exists():
        raise OSError("the gate is shut")
    return gate


class Spread(pf.executors.Local):
    """Takes jobs of several nodes, as a batch system does."""

    multi_node = True


plain = pf.task(one)
mpi = pf.task(one).options(name="mpi", nodes=2, ranks_per_node=4)
ranks = pf.task(one).options(name="ranks", ranks_per_node=2)
gated = pf.task(fails_until).options(name="gated")


def built(function: Callable[..., Any], *args: Any) -> Any:
    return pf.workflow(function)(*args)


def graph() -> Any:
    return pf.job_graph(
        {"a": (one, (1,)), "b": (one, (pf.ref("a"),))}, name="net", ranks_per_node=3
    )


SHAPES = {
    "alone": (lambda: mpi(1), "'mpi' asks for 2 node(s) with 4 rank(s) on each"),
    "ranks": (lambda: ranks(1), "'ranks' asks for 1 node(s) with 2 rank(s) on each"),
    "chain": (lambda: mpi(plain(pf.items(range(3)))), "'mpi' asks for 2 node(s)"),
    "loop": (lambda: pf.loop(mpi, 1, max_iterations=2), "mpi"),
    "graph": (graph, "'net' asks for 1 node(s) with 3 rank(s) on each"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("executor", ["sync", "threads"])
def test_they_are_refused_before_anything_runs(store: str, shape: str, executor: str) -> None:
    function, told = SHAPES[shape]
    with pytest.raises(pf.WorkflowError) as caught:
        built(function).run(executor=executor, store=store)
    said = str(caught.value)
    assert told in said
    assert "starts jobs on one node" in said
    assert "pf.executors.Slurm(mode='batch')" in said
    (run,) = pf.runs(store=store)
    assert not [job for job in run.jobs() if job["attempt"]]


def test_the_executor_of_each_task_is_asked(store: str) -> None:
    wf = built(lambda: plain(mpi.options(executor="big")(1)))
    with closing(Spread(workers=1, processes=False)) as big:
        run = wf.run(executors={"main": big, "big": big}, store=store)
        assert run.result() == 1
        with pytest.raises(pf.WorkflowError, match="'mpi' asks for"):
            wf.run(executors={"main": big, "big": "sync"}, store=store)


def resources_of(store: str, run: Any, task: str) -> Resources:
    state = open_store(store).state(run.id)
    return next(row.spec.resources for row in state.tasks if row.spec.name == task)


def test_a_retry_may_ask_for_more_nodes(store: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with closing(Spread(workers=1, processes=False)) as big:
        run = built(lambda: gated(str(gate))).run(executor=big, store=store)
        assert run.status == "failed"
        gate.touch()
        run.retry(nodes=2, ranks_per_node=3, executor=big)
        assert run.wait(30) == "done"
    assert resources_of(store, run, "gated") == Resources(nodes=2, ranks_per_node=3)


def test_a_retry_cannot_ask_for_them_where_there_is_one_node(store: str, tmp_path: Path) -> None:
    run = built(lambda: gated(str(tmp_path / "gate"))).run(executor="sync", store=store)
    with pytest.raises(pf.WorkflowError, match=r"'gated' asks for 2 node\(s\)"):
        run.retry(nodes=2, executor="sync")
    assert run.wait(30) == "failed"
    assert [job["attempt"] for job in run.jobs()] == [1]
    assert resources_of(store, run, "gated") == Resources()


def test_the_command_line_passes_them_on(store: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = built(lambda: gated(str(gate))).run(executor="sync", store=store)
    gate.touch()
    place = tmp_path / "places.py"
    place.write_text(
        "import pandaflow as pf\n"
        "class Spread(pf.executors.Local):\n    multi_node = True\n"
        "big = Spread(workers=1, processes=False)\n"
    )
    asked = ("--nodes", "2", "--ranks-per-node", "4", "--executor", f"{place}:big", "--quiet")
    result = CliRunner().invoke(app, ["--store", store, "retry", run.id, *asked])
    assert result.exit_code == 0, result.output
    assert resources_of(store, run, "gated") == Resources(nodes=2, ranks_per_node=4)
    bad = CliRunner().invoke(app, ["--store", store, "retry", run.id, "--nodes", "0"])
    assert bad.exit_code == 2
