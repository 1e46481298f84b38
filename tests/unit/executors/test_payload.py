from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from pandaflow.core.bundle import BundleValues, Missing, SourceSlice
from pandaflow.core.chunking import Fixed, NoItems
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Input, Output, Source
from pandaflow.data.results import ResultStore
from pandaflow.executors.payload import (
    BundleAbandoned,
    NodeRef,
    Payload,
    Skip,
    Slot,
    current_job,
    job_seed,
)

ISOLATIONS = ["process", "thread", "caller"]


def square(x: Any) -> Any:
    return x * x


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_values_are_returned_persisted_and_reported(bench: Any, isolation: str) -> None:
    out = bench.run(square, bench.spec([1, 2, 3]), isolation=isolation)

    assert out == BundleValues(range(3), [1, 4, 9])
    assert [report["op"] for report in bench.reports] == ["started", "ended"]
    ended = bench.ended
    store = ResultStore(bench.results)
    assert store.load(ended.location) == out
    assert store.header(ended.location)["report"] == bench.reports[-1]
    assert store.header(ended.location)["checksum"] == ended.checksum
    assert not ended.failures and not ended.unstarted and ended.detached is None
    assert len(ended.wall) == len(ended.cpu) == 3
    assert store.claimed_position(0) is None


def test_values_are_on_disk_before_the_end_is_reported(bench: Any) -> None:
    seen = []

    class Watching(list[Any]):
        def append(self, report: Any) -> None:
            seen.append((report["op"], ResultStore(bench.results).find(0)))

    bench.reports = Watching()
    bench.run(square, bench.spec([1]))
    assert [op for op, _ in seen] == ["started", "ended"]
    assert seen[0][1] is None and seen[1][1] is not None


def test_arguments_are_filled_wherever_slots_are(bench: Any) -> None:
    def show(*args: Any, **kwargs: Any) -> str:
        return repr((args, kwargs))

    a, b = Slot(0), Slot(1)
    payload = Payload(show, (1, a, [b, (a, {"k": b})]), {"x": a, "y": {"z": [2, b]}, "w": 5})
    spec = bench.spec(
        [10, 11],
        inputs=(Input(Source(0)), Input(Source(1))),
        sources={0: SourceSlice(0, [10, 11]), 1: SourceSlice(0, [20, 21])},
    )
    out = bench.run(payload, spec)
    assert out.values == [
        show(1, x, [y, (x, {"k": y})], x=x, y={"z": [2, y]}, w=5) for x, y in ((10, 20), (11, 21))
    ]


def test_a_template_is_not_shared_between_jobs(bench: Any) -> None:
    def grow(box: list[int]) -> list[int]:
        box.append(0)
        return box

    out = bench.run(Payload(grow, ([Slot(0)],)), bench.spec([1, 2]))
    assert out.values == [[1, 0], [2, 0]]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_failing_job_does_not_fail_its_bundle(bench: Any, isolation: str) -> None:
    def invert(x: int) -> float:
        if x == 3:
            sys.exit(4)
        return 1 / x

    out = bench.run(invert, bench.spec([1, 0, 2, 3]), isolation=isolation)
    assert out.values[0] == 1 and out.values[2] == 0.5
    assert type(out.values[1]) is Missing and not out.values[1].absent
    failures = bench.ended.failures
    assert set(failures) == {1, 3}
    assert failures[1].kind == "exception" and failures[1].type == "ZeroDivisionError"
    assert "ArithmeticError" in failures[1].mro and failures[1].charged
    assert failures[1].message == "ZeroDivisionError: division by zero"
    assert "return 1 / x" in failures[1].traceback
    assert "jobs.py" not in failures[1].traceback
    assert failures[3].type == "SystemExit"


def test_ctrl_c_in_the_callers_thread_is_the_callers(bench: Any) -> None:
    def interrupted(x: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(interrupted, bench.spec([1]), isolation="caller")
    assert bench.run(square, bench.spec([1])).values == [1]  # the claim was given back


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_exceptions_of_every_sort_become_text(bench: Any) -> None:
    def raise_some(x: int) -> None:
        if x == 0:
            raise Rude
        if x == 1:
            raise ValueError("a\nb" * 1_000_000)
        if x == 2:
            raise_some(2)
        if x == 3:
            raise ValueError(lambda: 0, (i for i in ()))  # cannot be pickled
        raise BaseException("bare")

    bench.run(raise_some, bench.spec(range(5)))
    failures = bench.ended.failures
    assert set(failures) == set(range(5))
    assert failures[0].type.endswith("Rude") and "__str__ raises" in failures[0].message
    assert len(failures[1].message) < 3_000 and "\n" not in failures[1].message
    assert failures[2].type == "RecursionError"
    assert all(len(failure.traceback) < 11_000 for failure in failures.values())


def test_skip_ends_a_branch_early(bench: Any) -> None:
    def odd(x: int) -> int:
        if x % 2 == 0:
            raise Skip("even")
        return x

    out = bench.run(odd, bench.spec([1, 2, 3]))
    assert out.values == [1, Missing("even", absent=True), 3]
    assert bench.ended.skipped == {1: "even"} and not bench.ended.failures


def test_blocked_jobs_are_reported_with_the_input_they_lack(bench: Any) -> None:
    called = []
    spec = bench.spec(
        [0, 1, 2],
        inputs=(Input(Output(7)),),
        outputs={7: (0,)},
        names={7: "select"},
        sources={},
    )
    deps = [BundleValues(range(3), [5, Missing("no"), 6])]
    out = bench.run(lambda x: called.append(x), spec, deps=deps, isolation="thread")
    assert out.values == [None, Missing("select[1]: no"), None]
    assert bench.ended.blocked == {1: "select[1]: no"} and not bench.ended.failures


def test_scattering_jobs_report_lengths_and_must_return_lists(bench: Any) -> None:
    bench.run(lambda x: x, bench.spec([[1, 2], (3,), "no"], scatters=True))
    assert bench.ended.sizes == {0: 2, 1: 1}
    failure = bench.ended.failures[2]
    assert failure.kind == "output" and "returned str" in failure.message


def test_a_gate_reports_the_truth_of_its_value(bench: Any) -> None:
    numpy = pytest.importorskip("numpy")
    for bundle, (value, truth) in enumerate([(numpy.bool_(True), True), ([], False)]):
        spec = bench.spec([0], bundle=bundle, gate=True)
        bench.run(lambda x, value=value: value, spec)
        assert bench.ended.truth is truth
    bench.run(lambda x: numpy.array([1, 2]), bench.spec([0], bundle=5, gate=True))
    assert bench.ended.truth is None and bench.ended.failures[0].type == "ValueError"


def test_unpicklable_results_fail_alone(bench: Any) -> None:
    def make(x: int) -> Any:
        return (i for i in range(3)) if x == 1 else {x}

    out = bench.run(make, bench.spec([0, 1, 2]))
    assert out.values[0] == {0} and out.values[2] == {2} and type(out.values[1]) is Missing
    failure = bench.ended.failures[1]
    assert failure.kind == "unserializable" and "generator" in failure.message
    again = ResultStore(bench.results).load(bench.ended.location)
    assert again.values[0] == {0} and type(again.values[1]) is Missing


# --- payloads ---------------------------------------------------------------------------


def test_a_payload_whose_module_is_missing_names_it(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "absent_module.py").write_text("def f(x): return x")
    sys.path.insert(0, str(tmp_path))
    try:
        import absent_module

        data = cloudpickle.dumps(Payload(absent_module.f, (Slot(0),)))
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["absent_module"]
    bench.run(data, bench.spec([1, 2]))
    assert set(bench.ended.failures) == {0, 1}
    failure = bench.ended.failures[0]
    assert "absent_module" in failure.message and "install" in failure.message
    assert failure.type == "ModuleNotFoundError"


def test_job_graph_nodes_get_the_values_of_those_they_wait_for(bench: Any) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    calls = {
        2: cloudpickle.dumps((add, (NodeRef("a"), 10), {})),
        3: cloudpickle.dumps((add, (NodeRef("a"),), {"b": NodeRef("b")})),
        4: b"garbage",
        5: cloudpickle.dumps((add, (NodeRef("bad"), 1), {})),
    }
    spec = bench.spec(
        [0] * 4,
        kind="graph",
        jobs=range(2, 6),
        inputs=(),
        chunks=NoItems(6),
        edges={2: (0,), 3: (0, 1), 4: (), 5: (6,)},
        node_names={0: "a", 1: "b", 2: "c", 3: "d", 4: "e", 5: "f", 6: "bad"},
        outputs={0: (0, 1)},
        names={0: "graph"},
    )
    deps = [BundleValues(range(2), [1, 2]), BundleValues(range(6, 7), [Missing("it failed")])]
    out = bench.run(cloudpickle.dumps(calls), spec, deps=deps)
    assert out.values[:2] == [11, 3]
    assert set(bench.ended.failures) == {2} and "loaded" in bench.ended.failures[2].message
    assert bench.ended.blocked == {3: "bad: graph[6]: it failed"}


def test_items_that_cannot_be_unpickled_are_failures_of_the_input(bench: Any) -> None:
    items = [cloudpickle.dumps(3), b"garbage"]
    spec = bench.spec(items, sources={0: SourceSlice(0, items, pickled=True)})
    out = bench.run(square, spec)
    assert out.values[0] == 9 and bench.ended.failures[1].kind == "input"


# --- the running job --------------------------------------------------------------------


def describe(x: Any) -> Any:
    job = current_job()
    return [job.run, job.task, job.index, job.attempt, job.name, job.seed, job.workdir]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_job_can_ask_who_it_is(bench: Any, isolation: str) -> None:
    spec = bench.spec([0] * 5, jobs=range(3, 5), attempt=2)
    out = bench.run(describe, spec, isolation=isolation)
    run, task, index, attempt, name, seed, workdir = out.values[1]
    assert (run, task, index, attempt, name) == ("run1", "fill", 4, 2, "fill[4]")
    assert seed == job_seed("run1", "fill", 4) != out.values[0][5] and 0 <= seed < 2**63
    assert workdir == os.path.join(bench.workdir, "run1", "fill", "4.2") and os.path.isdir(workdir)


def test_seeds_are_stable() -> None:
    code = "from pandaflow.executors.payload import job_seed; print(job_seed('r', 't', 1))"
    seeds = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(n), "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for n in (1, 2)
    }
    assert seeds == {str(job_seed("r", "t", 1))}


def test_there_is_no_job_outside_jobs() -> None:
    with pytest.raises(WorkflowError, match="outside a job"):
        current_job()


def test_functions_do_not_get_directories_they_do_not_ask_for(bench: Any) -> None:
    bench.run(square, bench.spec([1]))
    assert not os.path.exists(bench.workdir)


def test_measures_are_taken(bench: Any) -> None:
    def burn(x: int) -> None:
        end = time.thread_time() + 0.05 * x
        while time.thread_time() < end:
            pass

    bench.run(burn, bench.spec([0, 1]))
    assert bench.ended.cpu[1] >= 0.05 > bench.ended.cpu[0]
    assert bench.ended.wall[1] >= 0.05
    assert bench.ended.started <= bench.ended.at


# --- the fence --------------------------------------------------------------------------


def test_a_bundle_that_has_a_result_is_not_run_again(bench: Any, tmp_path: Path) -> None:
    log = tmp_path / "calls"

    def note(x: int) -> int:
        with open(log, "a") as file:
            file.write("x")
        return x

    first = bench.run(note, bench.spec([1, 2]))
    report = bench.reports[-1]
    second = bench.run(note, bench.spec([1, 2]))
    assert second == first and log.read_text() == "xx"
    assert bench.reports[2:] == [report]


def test_a_bundle_that_was_begun_before_is_refused(bench: Any) -> None:
    claim = ResultStore(bench.results).claim(0, 1)
    assert claim is not None
    claim.slot[0] = 1
    with pytest.raises(BundleAbandoned):
        bench.run(square, bench.spec([1, 2]))
    assert bench.reports == [{"op": "lost", "bundle": 0, "position": 1}]


SCRIPT = """
import ctypes, os, resource, sys
import cloudpickle
from pandaflow.core.bundle import BundleSpec, SourceSlice
from pandaflow.core.chunking import Fixed
from pandaflow.core.model import Input, Source
from pandaflow.executors.payload import Payload, Slot, run_bundle, unpack_ended

def spec(n):
    return BundleSpec(run="r", bundle=7, task=0, name="t", token="", kind="function",
        jobs=range(n), attempt=1, lists=False, inputs=(Input(Source(0)),), chunks=Fixed(n),
        sources={0: SourceSlice(0, range(n))}, results=sys.argv[1])

def run(function, n, report=print):
    return run_bundle(spec(n), cloudpickle.dumps(Payload(function, (Slot(0),))), [],
        report=report, worker="w", isolation="process")
"""


def run_script(text: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(text), *args],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_after_a_segfault_the_job_that_ran_is_known(bench: Any) -> None:
    done = run_script(
        """
        def crash(x):
            if x == 3:
                ctypes.string_at(0)
        run(crash, 10)
        """,
        bench.results,
    )
    assert done.returncode == -11, done.stderr
    store = ResultStore(bench.results)
    assert store.claimed_position(7) == 3 and store.find(7) is None
    with pytest.raises(BundleAbandoned):
        bench.run(square, bench.spec(range(10), bundle=7))
    assert bench.reports == [{"op": "lost", "bundle": 7, "position": 3}]


def test_a_full_disk_fails_the_jobs_uncharged_and_leaves_nothing(bench: Any) -> None:
    done = run_script(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        reports = []
        out = run(lambda x: "y" * 10_000, 3, reports.append)
        ended = unpack_ended(reports[-1])
        assert set(ended.failures) == {0, 1, 2}, ended
        for failure in ended.failures.values():
            assert failure.kind == "output" and not failure.charged
            assert "make room" in failure.message and sys.argv[1] in failure.message
        assert ended.location == "" and len(ended.wall) == 3
        print("ok")
        """,
        bench.results,
    )
    assert done.stdout == "ok\n", done.stderr
    assert [f for _, _, files in os.walk(bench.results) for f in files] == []


def test_a_folder_that_is_a_file_fails_the_jobs_uncharged(bench: Any) -> None:
    os.makedirs(os.path.dirname(bench.results))
    Path(bench.results).touch()
    bench.run(square, bench.spec([1]))
    assert bench.ended.failures[0].kind == "output" and not bench.ended.failures[0].charged


# --- the cache --------------------------------------------------------------------------


def test_seen_jobs_are_not_run_again(bench: Any, tmp_path: Path) -> None:
    log = tmp_path / "calls"

    def note(x: int) -> int:
        with open(log, "a") as file:
            file.write(str(x))
        return x + 1

    bench.run(note, bench.spec([1, 2], cache="mtime"))
    assert bench.ended.cached == () and log.read_text() == "12"
    bench.results = bench.results.replace("run1", "run2")
    out = bench.run(note, bench.spec([2, 3, 1], cache="mtime"))
    assert out.values == [3, 4, 2]
    assert bench.ended.cached == (0, 2) and log.read_text() == "123"
    other = bench.spec([1], cache="mtime", token="other code", bundle=1)
    bench.run(note, other)
    assert bench.ended.cached == () and log.read_text() == "1231"


def test_cached_scatters_and_gates_are_judged_again(bench: Any) -> None:
    for bundle in (0, 1):
        spec = bench.spec([2], cache="mtime", bundle=bundle, scatters=True, gate=True)
        bench.run(lambda x: [0] * x, spec)
        assert bench.ended.sizes == {0: 2} and bench.ended.truth is True
    assert bench.ended.cached == (0,)


def test_failed_and_skipped_jobs_are_not_cached(bench: Any) -> None:
    def no(x: int) -> None:
        raise Skip("no") if x else ValueError

    for bundle in (0, 1):
        bench.run(no, bench.spec([0, 1], cache="mtime", bundle=bundle))
        assert bench.ended.cached == ()
        assert set(bench.ended.failures) == {0} and set(bench.ended.skipped) == {1}


def test_jobs_need_not_be_contiguous(bench: Any) -> None:
    spec = bench.spec(range(10), jobs=(1, 4, 9), chunks=Fixed(10))
    out = bench.run(square, spec)
    assert out == BundleValues((1, 4, 9), [1, 16, 81])
    assert ResultStore(bench.results).load(bench.ended.location) == out
