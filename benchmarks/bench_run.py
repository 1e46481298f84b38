"""Whole runs on this machine: throughput, memory, latency, makespan, cancel, import.

Everything is durable: SQLite in a temporary folder, results on disk. Yardsticks are measured in
the same run, because the machine is shared.
"""

from __future__ import annotations

import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandaflow as pf
from benchmarks.table import Row, Spent, spend

JOBS = 50_000
RAW = 2_000
MILLION = 500_000


@pf.task
def one(x: int) -> int:
    """Do nothing."""
    return x


@pf.task
def two(x: int) -> int:
    """Do nothing either."""
    return x


@pf.workflow
def flat(n: int) -> Any:
    """One stage."""
    return one(pf.items(range(n)))


@pf.workflow
def chain(n: int) -> Any:
    """Two stages, chunk to chunk."""
    return two(one(pf.items(range(n))))


def noop(x: int) -> int:
    """Do nothing, for the yardsticks."""
    return x


def run_of(workflow: Any, executor: Any, folder: Path) -> Spent:
    """Run a workflow durably and quietly."""
    store = f"sqlite:///{folder}/bench.db"

    def work() -> Any:
        run = workflow.run(executor=executor, store=store, progress=False)
        assert run.status == "done", run
        return run

    return spend(work)


def raw_map(executor: Any) -> Spent:
    """``client.map`` of no-op tasks on the very same cluster."""
    client = executor.open("yardstick", tempfile.mkdtemp(), lambda event: None)._client
    client.gather(client.map(noop, range(50), pure=False))
    return spend(lambda: client.gather(client.map(noop, range(RAW), pure=False)))


def pool() -> Spent:
    """The standard library's process pool: no scheduler, nothing kept."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as workers:
        list(workers.map(noop, range(50)))
        return spend(lambda: [f.result() for f in [workers.submit(noop, i) for i in range(5_000)]])


def throughput(folder: Path) -> Iterator[Row]:
    """No-op jobs a second and CPU a job, with processes and with threads."""
    for kind, wanted in (("processes", 30), ("threads", 60)):
        executor = pf.executors.Local(workers=2, processes=kind == "processes")
        run_of(flat(2_000), executor, folder)
        raw = raw_map(executor)
        best = min((run_of(flat(JOBS), executor, folder) for _ in range(3)), key=lambda s: s.wall)
        rate, raw_rate = JOBS / best.wall, RAW / raw.wall
        yield Row(
            f"no-op jobs/s, durable, 2 {kind}",
            f"{rate:,.0f}/s",
            f"client.map {raw_rate:,.0f}/s",
            f"{rate / raw_rate:.0f} x",
            f">= {wanted} x",
            rate >= wanted * raw_rate,
        )
        if kind == "processes":
            cpu, raw_cpu = best.cpu / JOBS * 1e3, raw.cpu / RAW * 1e3
            stdlib = pool().cpu / 5_000 * 1e3
            yield Row(
                "CPU a no-op job, durable, 2 processes",
                f"{cpu:.4f} ms",
                f"client.map {raw_cpu:.2f} ms, stdlib pool {stdlib:.2f} ms",
                f"{raw_cpu / cpu:.0f} x, {stdlib / cpu:.0f} x below",
                "<= 0.05 ms",
                cpu <= 0.05,
            )
        executor.close()


MILLION_SCRIPT = """
import resource, sys, time
import pandaflow as pf
from benchmarks.bench_run import chain
executor = pf.executors.Local(workers=2)
store = "sqlite:///" + sys.argv[1] + "/million.db"
chain(10_000).run(executor=executor, store=store, progress=False)
t = time.perf_counter()
chain(10_000).run(executor=executor, store=store, progress=False)
small = time.perf_counter() - t
t0 = time.time()
run = chain(int(sys.argv[2])).submit(executor=executor, store=store)
run.wait()
wall = time.time() - t0
first = next(e["at"] for e in run.events() if e["kind"] == "bundle_running") - t0
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(run.status, small, wall, first, rss)
executor.close()
"""


def million(folder: Path) -> Iterator[Row]:
    """A two-stage workflow of a million jobs, watched by ``pandaflow status`` meanwhile."""
    command = [sys.executable, "-c", MILLION_SCRIPT, str(folder), str(MILLION)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    looks = list(_status_times(process, f"sqlite:///{folder}/million.db"))
    out, _ = process.communicate()
    status, small, wall, first, rss = out.split()
    rate, small_rate = 2 * MILLION / float(wall), 20_000 / float(small)
    yield Row(
        f"2 x {MILLION:,} jobs chunk to chunk, durable",
        f"{status}, {rate:,.0f} jobs/s",
        f"2 x 10,000: {small_rate:,.0f} jobs/s",
        f"{rate / small_rate:.2f}",
        ">= 0.7",
        status == "done" and rate >= 0.7 * small_rate,
    )
    mb = float(rss)
    yield Row("... driver's peak RSS", f"{mb:,.0f} MiB", "", "", "< 1 GiB", mb < 1024)
    yield Row(
        "... submit to the first running job",
        f"{float(first):.2f} s",
        "",
        "",
        "< 2 s",
        float(first) < 2,
    )
    if looks:
        worst = max(looks)
        yield Row(
            "... `pandaflow status` meanwhile, whole process",
            f"{statistics.median(looks):.2f} s, worst {worst:.2f} s",
            "",
            "",
            "< 1 s",
            statistics.median(looks) < 1,
        )


def _status_times(process: subprocess.Popen[str], store: str) -> Iterator[float]:
    time.sleep(6)
    command = [sys.executable, "-m", "pandaflow.cli", "status", "last", "--json", "--store", store]
    while process.poll() is None:
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            yield time.perf_counter() - began
        time.sleep(1)


@pf.task
def nap(seconds: float) -> float:
    """Sleep; return when it ended."""
    time.sleep(seconds)
    return time.time()


@pf.task
def begun(x: float) -> float:
    """Return how long ago the input was finished."""
    return time.time() - x


@pf.workflow
def hops(n: int) -> Any:
    """Pairs of jobs: the second tells how long it waited."""
    return begun(nap(pf.items([0.05] * n)))


def hop(folder: Path) -> Iterator[Row]:
    """From the end of an upstream job to the start of its dependent."""
    executor = pf.executors.Local(workers=2)
    run_of(hops(4), executor, folder)
    waits = run_of(hops(100), executor, folder).value.result()
    middle = statistics.median(waits) * 1e3
    yield Row(
        "hop: upstream job ended -> dependent runs, median",
        f"{middle:.1f} ms (p90 {sorted(waits)[90] * 1e3:.1f})",
        "",
        "",
        "< 20 ms",
        middle < 20,
    )
    executor.close()


def sleep_node(seconds: float, *needs: Any) -> float:
    """A node of the random DAG."""
    time.sleep(seconds)
    return seconds


def random_dag(nodes: int, seed: int) -> tuple[dict[str, Any], float, float]:
    """Return a random DAG of 100 ms jobs, its critical path and its work in seconds."""
    dice = random.Random(seed)
    made: dict[str, Any] = {}
    depth: list[float] = []
    for number in range(nodes):
        ups = dice.sample(range(number), min(number, dice.choice([0, 1, 1, 2, 3])))
        depth.append(0.1 + max((depth[up] for up in ups), default=0.0))
        made[f"n{number}"] = (sleep_node, (0.1, *(pf.ref(f"n{up}") for up in ups)))
    return made, max(depth), 0.1 * nodes


def makespan(folder: Path) -> Iterator[Row]:
    """100 ms jobs on a random DAG against max(critical path, work / slots)."""
    executor = pf.executors.Local(workers=2, threads=4)
    nodes, critical, work = random_dag(800, seed=7)

    @pf.workflow
    def dag() -> Any:
        return pf.job_graph(nodes)

    run_of(flat(100), executor, folder)
    spent = run_of(dag(), executor, folder)
    bound = max(critical, work / 8)
    yield Row(
        "makespan, 800 jobs of 100 ms on a random DAG, 8 slots",
        f"{spent.wall:.2f} s",
        f"lower bound {bound:.2f} s",
        f"{spent.wall / bound:.2f}",
        "<= 1.10",
        spent.wall <= 1.10 * bound,
    )
    executor.close()


@pf.workflow
def naps(n: int) -> Any:
    """Long jobs to cancel."""
    return nap(pf.items([600.0] * n))


def cancel(folder: Path) -> Iterator[Row]:
    """``cancel()`` until nothing runs, with payloads that sleep in C."""
    executor = pf.executors.Local(workers=2)
    run_of(flat(100), executor, folder)
    run = naps(10).submit(executor=executor, store=f"sqlite:///{folder}/bench.db")
    while not any(run.jobs(status="running")):
        time.sleep(0.01)
    spent = spend(run.cancel)
    kept = run.status == "aborted" and spent.wall < 1
    yield Row("cancel() -> nothing runs", f"{spent.wall:.2f} s", "", "", "< 1 s", kept)
    executor.close()


def importing() -> Iterator[Row]:
    """``import pandaflow`` against a bare interpreter."""

    def best(code: str) -> float:
        command = [sys.executable, "-c", code]
        return min(spend(lambda: subprocess.run(command, check=True)).wall for _ in range(5))

    bare, whole = best("pass"), best("import pandaflow")
    yield Row(
        "import pandaflow",
        f"{whole - bare:.3f} s",
        f"python -c pass {bare:.3f} s",
        "",
        "< 0.3 s",
        whole - bare < 0.3,
    )


def rows() -> Iterator[Row]:
    """Measure everything."""
    with tempfile.TemporaryDirectory(prefix="pandaflow-bench-") as name:
        folder = Path(name)
        yield from importing()
        for part in (throughput, hop, makespan, cancel, million):
            yield from part(folder)


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
