"""``mode="batch"`` on a private Slurm, against a plain ``sbatch --array`` of the same commands.

``python -m benchmarks.bench_batch [jobs] [seconds] [rounds]``; needs Slurm's programs and root.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandaflow as pf
from benchmarks.table import Row
from pandaflow.testing.slurm import Slurm, SlurmMissing

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
        store = f"sqlite:///{Path(folder)}/bench.db"
        run = flow().run(executor=executor, store=store, progress=False)
        spent = time.monotonic() - began
        assert run.status == "done", run.status
    return spent


def rows() -> Iterator[Row]:
    """Commands of 0.2 s and of 1 s; the better of two rounds each."""
    try:
        slurm = Slurm(nodes=NODES, cpus=CPUS)
    except SlurmMissing as missing:
        print(f"no benchmark of batch jobs: {missing}", file=sys.stderr)
        return
    with slurm:
        for jobs, seconds in ((100, 0.2), (100, 1.0)):
            array = min(plain(slurm, jobs, seconds) for _ in range(2))
            ours = min(batch(slurm, jobs, seconds) for _ in range(2))
            yield Row(
                f"batch mode, {jobs} commands of {seconds:g} s on {NODES * CPUS} slots",
                f"{ours:.1f} s",
                f"plain sbatch --array: {array:.1f} s",
                f"{ours / array:.2f}",
                "<= 1.3",
                ours <= 1.3 * array,
            )


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
