"""All benchmarks as one table: ``python -m benchmarks [--write]`` (``make bench``).

Each line is measured against a yardstick of the same run, because machines are shared and
noisy; ``--write`` puts the table and the machine's description into ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

from benchmarks import (
    bench_batch,
    bench_globus,
    bench_hpo,
    bench_pilots,
    bench_pool,
    bench_run,
    bench_server,
    bench_store,
)
from benchmarks.table import Row, machine, markdown
from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.engine import Engine
from pandaflow.core.model import Input, Output, Source, SourceSpec, TaskSpec, WorkflowSpec

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
STORE_JOBS, BUNDLE = 200_000, 1000
ENGINE_JOBS = 200_000


def two_stages(n: int) -> WorkflowSpec:
    """Two tasks of ``n`` jobs, one to one."""
    first = TaskSpec(id=0, name="one", token="1", payload="p", inputs=(Input(Source(0)),))
    second = TaskSpec(id=1, name="two", token="2", payload="p", inputs=(Input(Output(0)),))
    source = SourceSpec(id=0, name="range", kind="range", n=n, bounds=(0, n, 1))
    return WorkflowSpec(name="bench", tasks=(first, second), sources=(source,))


def drive(wall: float, n: int) -> tuple[float, int]:
    """Play an executor whose jobs take ``wall`` seconds; return (CPU seconds, job events)."""
    engine = Engine(two_stages(n))
    reports: list[ev.Event] = [ev.RunStarted(0.0, {"local": 2})]
    spent, events, at = 0.0, 0, 0.0
    while reports:
        began = time.process_time()
        commands = engine.handle(reports)
        spent += time.process_time() - began
        reports = []
        for emit in commands:
            if isinstance(emit, cmd.EmitBundle):
                at += 0.001
                walls = array("f", [wall]) * len(emit.jobs)
                reports.append(ev.BundleStarted(at, emit.bundle, "w"))
                reports.append(ev.BundleEnded(at=at, bundle=emit.bundle, wall=walls, cpu=walls))
                events += 2 * len(emit.jobs)
    assert engine.status == "done"
    return spent, events


def engine_rows() -> Iterator[Row]:
    """The pure engine alone: what jobs' events cost without any I/O."""
    spent, events = drive(1e-5, ENGINE_JOBS)
    rate = events / spent
    yield Row(
        "engine alone, job events (started, ended) in bundles",
        f"{rate:,.0f}/s",
        "",
        "",
        ">= 200,000/s",
        rate >= 200_000,
    )
    spent, events = drive(1.0, 10_000)
    yield Row(
        "engine alone, one job a node",
        f"{events / spent:,.0f} events/s, {spent / 20_000 * 1e6:.0f} us a job",
        "",
        "",
        "",
        None,
    )


def store_rows() -> Iterator[Row]:
    """State transitions a second on SQLite, against rows of raw sqlite3."""
    ours, raw = bench_store.measured(None, STORE_JOBS, BUNDLE)
    cpu, wall = sum(part[0] for part in ours), sum(part[1] for part in ours)
    rate = bench_store.TRANSITIONS * STORE_JOBS / wall
    yield Row(
        "store alone, job transitions on SQLite (fsync on)",
        f"{rate:,.0f}/s, {cpu / STORE_JOBS * 1e6:.1f} us CPU a job",
        f"raw sqlite3, one row a job: {raw[0] / STORE_JOBS * 1e6:.1f} us CPU a job",
        f"CPU {cpu / raw[0]:.2f}",
        ">= 100,000/s",
        rate >= bench_store.BUDGET,
    )


def main() -> int:
    """Measure, print, and with ``--write`` keep the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    head, rows = machine(), []
    parts = [engine_rows, store_rows, bench_run.rows, bench_pilots.rows, bench_batch.rows]
    parts += [bench_globus.rows, bench_hpo.rows, bench_pool.rows, bench_server.rows]
    for part in parts:
        for row in part():
            rows.append(row)
            print(f"{row.what}: {row.measured}  {row.yardstick}  {row.ratio}", file=sys.stderr)
    table = markdown(rows)
    print(table)
    if options.write:
        PAGE.write_text(page(head, table), encoding="utf-8")
    return 0 if all(row.kept is not False for row in rows) else 1


def page(head: str, table: str) -> str:
    """Return the text of ``docs/benchmarks.md``."""
    return f"""# Benchmarks

Written by `make bench WRITE=1`. Machine: {head}.

Jobs are no-op Python functions unless said otherwise. Every run is durable: each job's states and
measures in SQLite (`synchronous=FULL`), its value in a file. Yardsticks are measured in the same
run, on the same cluster where it says so, because machines are shared and noisy: read the ratios.

{table}

How to read the lines:

- **jobs/s against `client.map`**: the same no-op function on the very same Dask cluster, one Dask
  task a job and nothing kept, against jobs that travel in bundles and are all recorded.
- **CPU a job**: of this process, scheduler and workers together.
- **2 x 500,000 jobs**: the second job of each pair starts when its first has ended; 0.7 of the rate
  at 2 x 10,000 is the budget for scaling.
- **hop**: pairs of jobs of 50 ms on two busy worker processes; from the end of the first payload to
  the first line of the second.
- **makespan**: a random DAG through `pf.job_graph`; the bound is max(critical path, work / slots).
- **cancel**: payloads that sleep in C and cannot be interrupted, so their processes are ended.
- **pilots**: workers in allocations of a private Slurm on this machine, once they are there; the
  local executor has as many worker processes.
- **batch mode**: from the call to the end of the run, against an array with an element a command.
- **Globus Compute**: SDK, endpoint and RabbitMQ as they are, here, with a stand-in of the hosted
  service whose limit of requests is lifted: the SDK makes 8 to 10 of them for 1,000 jobs, PandaFlow
  2. The SDK's `Executor` has its own defaults (batches of up to 128 tasks) and is new each round;
  starting and ending it does not count. PandaFlow's time is that of the whole run.
- **studies**: free trials are arithmetic; plain Optuna, which keeps nothing, has as many trials
  outstanding. TPE is quicker here than alone because SciPy computes what Optuna does number by
  number ([how a study works](hpo-design.md)).
- **slots busy**: of the slots' seconds until the last trial begins, those in which a trial runs
  (lognormal durations, sigma 0.5). Scheduler, driver and optimizer share the two cores; a Dask node
  costs 3 ms, the driver 1.5 ms, an ask of TPE 3 to 5 ms of them.
- **the grid's pool**: PostgreSQL of its own with `fsync`, `synchronous_commit` and
  `full_page_writes` on; 2 processes call the pool in batches of 500. A bundle has one job; its CPU
  is that of acquiring, starting and ending it, in workers and database.
- **requests of pilots**: of five one acquires, one starts, two are heartbeats, one ends a bundle.
  Load generator, driver, server and PostgreSQL share the two cores. Times count from when a request
  was due, not from when it could be sent. `pgbench` changes a row a transaction on the same server;
  requests that arrive within 10 ms share a transaction, so that there may be more of them.

How good studies are, against the optimizers' own libraries: [benchmarks-hpo.md](benchmarks-hpo.md).
"""


if __name__ == "__main__":
    sys.exit(main())
