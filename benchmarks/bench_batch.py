"""``mode="batch"`` on a private Slurm, against a plain ``sbatch --array`` of the same commands.

``python -m benchmarks.bench_batch [jobs] [seconds] [rounds]``; needs Slurm's programs and root.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandaflow as pf
from pandaflow.testing.slurm import Slurm

NODES, CPUS = 2, 4


def plain(slurm: Slurm, jobs: int, seconds: float) -> float:
    """Return the seconds that an array takes, one command an element, all slots used."""
    began = time.monotonic()
    array = f"--array=0-{jobs - 1}%{NODES * CPUS}"
    job = slurm.submit(f"sleep {seconds}", array, "--mem=100")
    while slurm.run(["squeue", "-h", "-j", job, "-o", "%i"]).stdout:
        time.sleep(0.1)
    return time.monotonic() - began


def batch(slurm: Slurm, jobs: int, seconds: float, **settings: Any) -> float:
    """Return the seconds that a run of the same commands takes."""
    sleep = pf.command(f"sleep {seconds} && : %{{number}}", name="sleep")

    @pf.workflow
    def flow() -> Any:
        return sleep(number=pf.items(range(jobs)))

    executor = pf.executors.Slurm(
        mode="batch",
        cores=CPUS,
        max_nodes=NODES,
        walltime=600,
        memory=400 * 2**20,
        commands_env={"SLURM_CONF": slurm.env["SLURM_CONF"]},
        **settings,
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run = flow().run(executor=executor, store=f"sqlite:///{Path(folder)}/bench.db")
        spent = time.monotonic() - began
        assert run.status == "done", run.status
    return spent


def main(jobs: int = 100, seconds: float = 1.0, rounds: int = 3) -> None:
    """Print wall times of both, round by round, and their ratio."""
    with Slurm(nodes=NODES, cpus=CPUS) as slurm:
        for _ in range(rounds):
            array = plain(slurm, jobs, seconds)
            usual = batch(slurm, jobs, seconds, submit_rate=600.0)
            quick = batch(slurm, jobs, seconds, submit_rate=600.0, poll_seconds=0.3)
            print(
                f"{jobs} x {seconds:g} s on {NODES * CPUS} slots: array {array:.1f} s, "
                f"batch {usual:.1f} s ({usual / array:.2f}), "
                f"looking more often {quick:.1f} s ({quick / array:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*[int(given[0]), float(given[1]), int(given[2])] if given else [])
