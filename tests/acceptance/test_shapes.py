"""Every way to join tasks, on every local executor, and the same by plain Dask."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import dask
import pytest

import pandaflow as pf


@pf.task
def inc(x: int) -> int:
    return x + 1


@pf.task
def double(x):
    return 2 * x


@pf.task(items_per_job=3)
def group(xs):
    return sum(xs)


@pf.task(n_jobs=1)
def total(xs):
    return sum(xs)


@pf.task
def pair(a, b):
    return (a, b)


@pf.task
def listed(n):
    return list(range(n))


@pf.task
def share(x, everything):
    return x / sum(everything)


@pf.workflow
def chain(n=10):
    grouped = group(double(pf.items(range(n))))
    return {"groups": grouped, "total": total(grouped), "constant": 7, "nothing": None}


@pf.workflow
def shapes():
    numbers = inc(pf.items([10, 20]))
    return (
        pair(numbers, pf.items(["a", "b"])),
        pair(*pf.cross([1, 2], ["x", "y"])),
        pair(pf.cross([1, 2], [3])),
        share(numbers, numbers.all()),
        total(pf.concat(numbers, pf.items([100]))),
        pair(numbers, total(numbers)),
        double(total(numbers)),
    )


SHAPES = (
    [(11, "a"), (21, "b")],
    [(1, "x"), (1, "y"), (2, "x"), (2, "y")],
    [(1, 3), (2, 3)],
    [11 / 32, 21 / 32],
    132,
    [(11, 32), (21, 32)],
    64,
)


def test_chain(executor: Any, store: str) -> None:
    run = chain(10).run(executor=executor, store=store)
    assert run.status == "done"
    expected = {"groups": [6, 24, 42, 18], "total": 90, "constant": 7, "nothing": None}
    assert run.result() == expected


def test_shapes(executor: Any, store: str) -> None:
    assert shapes().run(executor=executor, store=store).result() == SHAPES


def test_the_same_by_plain_dask() -> None:
    for scheduler in ("threads", "sync"):
        assert shapes().compute(scheduler=scheduler) == SHAPES
    assert dask.compute(shapes())[0] == SHAPES
    expected = {"groups": [6, 24, 42, 18], "total": 90, "constant": 7, "nothing": None}
    assert dask.compute(chain(10), scheduler="sync")[0] == expected


def test_by_a_distributed_client(processes: Any) -> None:
    client = processes.open("probe", "unused", lambda event: None)._client
    assert shapes().compute(scheduler=client) == SHAPES


def test_keys_of_the_dask_graph() -> None:
    wf = chain(10)
    keys = [key for key in wf.dask_graph() if isinstance(key, tuple)]
    names = {name.rpartition("-")[0] for name, _ in keys}
    assert names == {"double", "group", "total"}
    assert sorted(index for name, index in keys if name.startswith("group-")) == [0, 1, 2, 3]


def test_a_million_jobs_compile_for_nothing() -> None:
    graph = chain(1_000_000).dask_graph()
    layer = next(layer for name, layer in graph.layers.items() if name.startswith("double-"))
    assert len(layer) == 1_000_000
    assert not layer.is_materialized()


def test_networkx_graph() -> None:
    graph = chain(10).graph
    assert list(graph.successors("double")) == ["group"]
    assert graph.nodes["group"]["jobs"] == 4
    with pytest.raises(Exception, match=r"[Ff]rozen"):
        graph.add_node("more")


@pf.workflow
def scattered():
    flat = pf.scatter(listed(pf.items([3, 0, 2])))
    return inc(flat), total(inc(flat)), group(flat)


def test_scatter(executor: Any, store: str) -> None:
    assert scattered().run(executor=executor, store=store).result() == ([1, 2, 3, 1, 2], 9, [3, 1])


@pf.task
def not_a_list(x):
    return x


@pf.workflow
def bad_scatter():
    return inc(pf.scatter(not_a_list(pf.items([3]))))


def test_scatter_of_what_is_no_list(store: str) -> None:
    run = bad_scatter().run(executor="sync", store=store)
    with pytest.raises(pf.RunFailed, match="returned int, but its items are mapped over"):
        run.result()


@pf.workflow
def counting(start=0, stop=4):
    return pf.loop(inc, start, until=lambda value: value >= stop, max_iterations=20)


def test_loop(executor: Any, store: str) -> None:
    assert counting(0, 4).run(executor=executor, store=store).result() == 4


@pf.workflow
def counting_for_ever():
    after = pf.loop(inc, 0, max_iterations=5)
    return after, double(after)


def test_loop_without_condition(store: str) -> None:
    assert counting_for_ever().run(executor="sync", store=store).result() == (5, 10)


@pf.workflow
def nested_loops():
    def outer(x):
        return pf.loop(inc, double(x), max_iterations=2)

    return pf.loop(outer, 1, max_iterations=3)


def test_loop_in_a_loop(store: str) -> None:
    # 1 -> 2+2=4 -> 8+2=10 -> 20+2=22
    assert nested_loops().run(executor="sync", store=store).result() == 22


@pf.task
def neighbours(x):
    return [x, x + 1]


@pf.workflow
def scattered_in_an_inner_loop():
    """The inner body flattens what the outer body made."""

    def outer(x):
        made = neighbours(x)
        return pf.loop(lambda _: total(inc(pf.scatter(made))), x, max_iterations=2)

    return pf.loop(outer, 1, max_iterations=2)


def test_an_inner_loop_flattens_what_an_outer_one_made(store: str) -> None:
    # 1 -> [1, 2] -> 2 + 3 = 5 -> [5, 6] -> 6 + 7 = 13
    run = scattered_in_an_inner_loop().run(executor="sync", store=store)
    assert run.result() == 13


@pf.workflow
def many_points():
    return total(pf.loop(inc, pf.items([1, 2, 3]), max_iterations=2))


def test_loop_over_a_collection(store: str) -> None:
    assert many_points().run(executor="sync", store=store).result() == 12


@pf.workflow
def branching(x):
    return pf.when(inc(x), lambda: inc(10), lambda: inc(20))


def test_when(executor: Any, store: str) -> None:
    assert branching(1).run(executor=executor, store=store).result() == 11
    run = branching(-1).run(executor=executor, store=store)
    assert run.result() == 21
    states = {task["name"]: task["status"] for task in run.tasks}
    assert sorted(states.values()) == ["aborted", "done", "done"]


@pf.workflow
def branching_on_values(flag):
    taken, other = inc(1), double(5)
    return pf.when(inc(flag), taken, other), pf.when(True, "yes", "no"), pf.when(inc(flag), 3)


def test_only_the_branch_taken_runs(store: str) -> None:
    run = branching_on_values(-1).run(executor="sync", store=store)
    assert run.result() == (10, "yes", None)
    assert [job["task"] for job in run.jobs(status="finished")].count("inc") == 0


@pf.workflow
def inner(x):
    return double(inc(x))


@pf.workflow
def outer():
    return inner(1), inner(pf.items([2, 3]))


def test_sub_workflows(store: str) -> None:
    wf = outer()
    assert [name for name in wf.graph if name.startswith("inner/")]
    assert wf.run(executor="sync", store=store).result() == (4, [6, 8])


@pf.workflow
def dag():
    nodes = {
        "c": (min, (pf.ref("a"), pf.ref("b"))),
        "a": (max, ((1, 2),)),
        "b": (max, (pf.ref("a"), 5)),
        "d": (dict, (), {"of": [pf.ref("b")]}),
    }
    return pf.job_graph(nodes, edges=[("c", "d")])


def test_job_graph(executor: Any, store: str) -> None:
    expected = {"a": 2, "b": 5, "c": 2, "d": {"of": [5]}}
    assert dag().run(executor=executor, store=store).result() == expected
    assert dag().compute(scheduler="sync") == expected


@pf.task
def stamp(x):
    time.sleep(0.05)
    return time.time()


@pf.task
def begin(x):
    return time.time()


@pf.workflow
def ordered():
    first = stamp(pf.items(range(3)))
    return first, begin(pf.items(range(2)), pf.after(first))


def test_after_is_a_barrier(processes: Any, store: str) -> None:
    first, second = ordered().run(executor=processes, store=store).result()
    assert min(second) >= max(first)


@pf.workflow
def summed(numbers):
    return total(inc(numbers)), group(numbers)


def test_stream(executor: Any, store: str) -> None:
    if getattr(executor, "workers", None) == 0:
        pytest.skip("a stream that is fed while the run goes on needs a driver of its own")
    numbers = pf.stream("numbers")
    numbers.append(1, 2)
    run = summed(numbers).submit(executor=executor, store=store)
    while not any(run.jobs(task="inc", status="finished")):
        time.sleep(0.01)
    assert run.status == "running"
    numbers.append(3)
    numbers.append(4, 5)
    numbers.close()
    assert run.wait(30) == "done"
    assert run.result() == (20, [6, 9])
    with pytest.raises(pf.WorkflowError, match="closed"):
        numbers.append(6)


@pf.workflow
def of_stream(numbers):
    return total(inc(numbers))


def test_closed_stream_in_the_caller(store: str) -> None:
    with pf.stream() as numbers:
        numbers.append(1, 2)
    assert of_stream(numbers).run(executor="sync", store=store).result() == 5


@pf.workflow
def nothing_to_do():
    return inc(pf.items([])), total(inc(pf.items([])))


def test_no_items(store: str) -> None:
    run = nothing_to_do().run(executor="sync", store=store)
    assert run.status == "done"
    assert run.result() == ([], 0)


@pf.task
def read(file):
    return Path(file).read_text(), file.size


@pf.task(gb_per_job=1e-9 * 8)
def sizes(files):
    return [file.size for file in files]


@pf.workflow
def reading(where):
    files = pf.files(where)
    return read(files), sizes(files)


def test_files(tmp_path: Path, store: str) -> None:
    for name, text in (("a.txt", "aaaa"), ("b.txt", "bbb"), ("c.txt", "cccccc")):
        (tmp_path / name).write_text(text)
    texts, grouped = reading(f"{tmp_path}/*.txt").run(executor="sync", store=store).result()
    assert texts == [("aaaa", 4), ("bbb", 3), ("cccccc", 6)]
    assert grouped == [[4, 3], [6]]


def test_files_by_fsspec_url(store: str) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/data/x.txt", b"12345")
    try:
        (found,) = pf.files("memory://data/*.txt").spec.files
        assert (found.name, found.size) == ("x.txt", 5)
    finally:
        fs.rm("/data", recursive=True)


count_lines = pf.command("wc -l < %IN", name="count")
copy = pf.command("cat %IN > %OUT{all.txt}; echo %{word} >> %OUT{all.txt}", name="copy", n_jobs=1)


@pf.workflow
def commands(where):
    files = pf.files(where)
    return count_lines(files), copy(files, word="end")


def test_commands(tmp_path: Path, executor: Any, store: str) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n")
    (tmp_path / "b c.txt").write_text("3\n")
    counts, merged = commands(f"{tmp_path}/*.txt").run(executor=executor, store=store).result()
    assert counts == ["2", "1"]
    assert Path(merged).read_text() == "1\n2\n3\nend\n"
    assert merged.checksum.startswith("adler32:")


def test_parameters_changed_for_one_run(store: str) -> None:
    wf = chain(3)
    assert wf.run(executor="sync", store=store, params={"n": 4}).result()["total"] == 12
    with pytest.raises(pf.WorkflowError, match="has no 'm'"):
        wf.run(executor="sync", store=store, params={"m": 4})


def test_feeding_a_stream_of_a_run_whose_driver_is_gone(threads: Any, store: str) -> None:
    numbers = pf.stream("numbers")
    numbers.append(1)
    run = of_stream(numbers).submit(executor=threads, store=store)
    while not any(run.jobs(task="inc", status="finished")):
        time.sleep(0.01)
    run.stop()
    other = pf.attach(run.id, store=store)
    feed = other.stream("numbers")
    feed.append(2, 3)
    feed = other.stream("numbers")
    feed.append(4)
    feed.close()
    with pytest.raises(pf.WorkflowError, match="closed"):
        other.stream("numbers").append(5)
    with pytest.raises(pf.WorkflowError, match="no stream 'letters'; it has numbers"):
        other.stream("letters")
    assert other.orphaned
    run = pf.resume(run.id, store=store, executor=threads)
    assert run.wait(30) == "done"
    assert run.result() == 2 + 3 + 4 + 5
