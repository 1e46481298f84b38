"""What is wrong with a workflow is said when it is built, with the task and the argument."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import pandaflow as pf


@pf.task
def one(x):
    return x


@pf.task
def two(a, b):
    return a, b


@pf.task
def length_of(text: str) -> int:
    return len(text)


@pf.task(n_jobs=1)
def joined(texts: list[str]) -> str:
    return "".join(texts)


def built(make: Any) -> Any:
    return pf.workflow(make)()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: two(pf.items([1, 2]), pf.items([1, 2, 3])),
            ["'two'", "argument 1", "2", "argument 2", "3", "pf.cross"],
        ),
        (lambda: one(), ["'one'", "missing a required argument: 'x'"]),
        (lambda: one(1, y=2), ["'one'", "unexpected keyword argument 'y'"]),
        (lambda: one.options(files_per_jop=2), ["'one'", "did you mean 'files_per_job'"]),
        (lambda: one.options(memory="2 gallons"), ["'one'", "'memory'", "unit"]),
        (lambda: one.options(retries=-1), ["'one'", "'retries'", "-1"]),
        (lambda: one.options(goal=1.5), ["'goal'", "1.5"]),
        (
            lambda: one.options(events_per_job=10)(pf.items([1, 2])),
            ["'one'", "events_per_job", "no pf.files source"],
        ),
        (
            lambda: one.options(events_per_job=10)(pf.files(__file__)),
            ["'one'", "events", __file__, "files_per_job"],
        ),
        (lambda: one(threading.Lock()), ["'one'", "argument 0", "cannot be serialized"]),
        (lambda: length_of(pf.items([1, 2])), ["'length_of'", "'text'", "int", "str"]),
        (lambda: joined(length_of("a")), ["'joined'", "'texts'", "length_of", "list[int]"]),
        (lambda: pf.scatter(pf.items([1])), ["pf.scatter", "output of a task"]),
        (lambda: pf.when(one(pf.items([1, 2])), 1), ["pf.when", "one value"]),
        (lambda: pf.loop(lambda s: 3, 1), ["body must return"]),
        (lambda: pf.loop(one, 1, max_iterations=0), ["max_iterations"]),
        (
            lambda: pf.job_graph({"a": (max, (pf.ref("b"),)), "b": (max, (pf.ref("a"),))}),
            ["cycle", "a", "b"],
        ),
        (lambda: pf.job_graph({"a": (max, (pf.ref("z"),))}), ["'a'", "'z'", "no node"]),
        (lambda: pf.job_graph({"a": 3}), ["'a'", "function"]),
        (lambda: pf.command("cat %IM")("x"), ["%IM", "unknown placeholder"]),
        (lambda: pf.command("cat %IN2", name="cat")("x"), ["'cat'", "%IN2", "1 positional"]),
        (lambda: 3 if one(1) else 4, ["not known", "pf.when"]),
        (lambda: [x for x in one(pf.items([1]))], ["pf.scatter", "maps over"]),
        (lambda: object(), ["returned a object"]),
        (lambda: 5, ["calls no task"]),
    ],
)
def test_said_when_built(make: Any, words: list[str]) -> None:
    with pytest.raises(pf.WorkflowError) as caught:
        built(make)
    for word in words:
        assert word in str(caught.value)


def test_missing_files_are_named() -> None:
    with pytest.raises(pf.DataError, match="nowhere"):
        pf.files("/nowhere/*.root")
    with pytest.raises(pf.DataError, match=r"/nowhere/x\.root does not exist"):
        pf.files(["/nowhere/x.root"])


def test_wrong_arguments_of_a_workflow() -> None:
    @pf.workflow
    def flow(n: int) -> Any:
        return one(n)

    with pytest.raises(pf.WorkflowError, match=r"workflow flow\(n"):
        flow()


def test_a_dataset_outside_of_a_workflow() -> None:
    with pytest.raises(pf.WorkflowError, match=r"@pf\.workflow"):
        one(pf.items([1]))


def test_a_task_is_a_plain_function_elsewhere() -> None:
    assert one(3) == 3
    assert two(1, b=2) == (1, 2)


def test_growing_workflows_have_no_fixed_dask_graph() -> None:
    wf = built(lambda: pf.loop(one, 1, max_iterations=2))
    with pytest.raises(pf.WorkflowError, match=r"loop.*run\(\)"):
        wf.compute()


def test_unknown_executor(store: str) -> None:
    wf = built(lambda: one.options(executor="grid")(1))
    with pytest.raises(pf.WorkflowError, match="'one' asks for executor 'grid'"):
        wf.run(executor="sync", store=store)
    with pytest.raises(pf.WorkflowError, match=r"pf\.executors\.Local"):
        built(lambda: one(1)).run(executor="nonsense", store=store)


def test_container_without_runtime(store: str) -> None:
    wf = built(lambda: one.options(container="docker://alpine")(1))
    with pytest.raises(pf.WorkflowError, match="no container runtime"):
        wf.run(executor="sync", store=store)


def test_no_scheduler_at_the_address(store: str) -> None:
    with pytest.raises(pf.SiteError, match="no Dask scheduler answers"):
        built(lambda: one(1)).run(executor="tcp://127.0.0.1:9", store=store)
