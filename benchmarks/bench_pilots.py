"""Pilots on a private Slurm of two nodes, against the local executor with as many slots.

``python -m benchmarks.bench_pilots``; needs Slurm's programs and root.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandaflow as pf
from benchmarks.bench_run import flat
from benchmarks.table import Row
from pandaflow.testing.slurm import Slurm, SlurmMissing

NODES, CPUS = 2, 1
JOBS = 200_000
SHORT, SHORT_S = 400, 0.02


@pf.task(name="short")
def nap(x: int) -> int:
    """Take a moment."""
    time.sleep(SHORT_S)
    return x


@pf.workflow
def naps(n: int) -> Any:
    """Jobs that take a moment each."""
    return nap(pf.items(range(n)))


def timed(workflow: Any, executor: Any) -> tuple[float, float]:
    """Return the seconds until the first job began, and from there to the end of the run."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        run = workflow.run(
            executor=executor, store=f"sqlite:///{Path(folder)}/bench.db", progress=False
        )
        assert run.status == "done", run
        events = run.events()
        first = next(e["at"] for e in events if e["kind"] == "bundle_running")
        last = max(e["at"] for e in events if e["kind"] == "bundle_finished")
        return first - began, last - first


def rows() -> Iterator[Row]:
    """Jobs a second through pilots, and how long the first waits."""
    try:
        slurm = Slurm(nodes=NODES, cpus=CPUS)
    except SlurmMissing as missing:
        print(f"no benchmark of pilots: {missing}", file=sys.stderr)
        return
    with slurm:
        pilots = pf.executors.Slurm(
            cores=CPUS,
            max_nodes=NODES,
            min_nodes=NODES,
            walltime="10 min",
            poll_seconds=0.5,
            commands_env={"SLURM_CONF": slurm.env["SLURM_CONF"]},
        )
        local = pf.executors.Local(workers=NODES * CPUS)
        timed(naps(8), local)
        for what, workflow, jobs in (
            ("no-op jobs/s", flat(JOBS), JOBS),
            (f"jobs/s, {SHORT_S * 1e3:.0f} ms each,", naps(SHORT), SHORT),
        ):
            waited, ours = min((timed(workflow, pilots) for _ in range(2)), key=lambda t: t[1])
            _, theirs = min((timed(workflow, local) for _ in range(2)), key=lambda t: t[1])
            yield Row(
                f"{what} in pilots on {NODES} Slurm nodes (first job after {waited:.1f} s)",
                f"{jobs / ours:,.0f}/s",
                f"local, as many slots: {jobs / theirs:,.0f}/s",
                f"{theirs / ours:.2f} x",
                ">= 0.5 x",
                ours <= 2 * theirs,
            )
        local.close()


if __name__ == "__main__":
    for row in rows():
        print(f"{row.what}: {row.measured}  {row.yardstick}  {row.ratio}", flush=True)
