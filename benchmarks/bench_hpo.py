"""Studies: what a trial costs besides its sampler, how busy slots are kept, and at what size.

Trials that are free (the objective is arithmetic) show the overhead; trials that sleep show
whether slots are kept busy. Everything is durable: the study's log and the run's states in SQLite
with fsync. The yardstick of TPE is plain Optuna in memory, asked and told in the same order with as
many trials outstanding, in the same run.
"""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandaflow as pf
from benchmarks.table import Row, Spent, spend
from pandaflow import hpo

#: Free trials; trials for TPE, whose asks get dearer with each; trials of the large study.
FREE, TPE, LARGE = 5_000, 600, 20_000
#: Slots, and trials that sleep (lognormal, mean 200 ms, sigma 0.5).
SLOTS, SLEEPERS, MEAN_S, SIGMA = 32, 256, 0.2, 0.5

SPACE = hpo.Space(
    a=hpo.float(-5, 5),
    b=hpo.float(-5, 5),
    lr=hpo.log(1e-5, 1e-1),
    d=hpo.float(0, 1),
    n=hpo.int(1, 256, log=True),
    c=["x", "y", "z"],
)


def mixed(a: float, b: float, lr: float, d: float, n: int, c: str) -> float:
    """A mixed function; its minimum 0 is at a = b = d = 0, lr = 1e-3, n = 16, c = "x"."""
    far = {"x": 0.0, "y": 0.5, "z": 1.0}[c]
    scale = math.log10(lr / 1e-3) ** 2 + 0.3 * math.log2(n / 16) ** 2
    return 0.1 * (a * a + b * b) + scale + d * d + far


def duration(point: dict[str, Any]) -> float:
    """Return a lognormal time (s) with mean ``MEAN_S``, the same for the same point."""
    rng = random.Random(repr(sorted(point.items())))
    return rng.lognormvariate(math.log(MEAN_S) - SIGMA**2 / 2, SIGMA)


def sleeping(a: float, b: float, lr: float, d: float, n: int, c: str) -> float:
    """Sleep, then answer."""
    point = {"a": a, "b": b, "lr": lr, "d": d, "n": n, "c": c}
    time.sleep(duration(point))
    return mixed(**point)


def threads(n: int) -> Any:
    """Return an executor of ``n`` threads that has its Dask cluster up."""
    executor = pf.executors.Local(workers=n, processes=False)
    with tempfile.TemporaryDirectory() as folder:
        study(executor, Path(folder), mixed, 4, hpo.random(seed=1))
    return executor


def study(executor: Any, folder: Path, objective: Any, n: int, optimizer: Any) -> hpo.Study:
    """Run a study durably and quietly, 32 trials at once."""
    made = hpo.Study("bench", optimizer=optimizer, store=f"sqlite:///{folder}/bench.db")
    return made.optimize(
        objective, SPACE, n_trials=n, parallel=SLOTS, executor=executor, progress=False
    )


def measured(work: Callable[[Path], Any]) -> Spent:
    """Do something in a folder of its own and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        return spend(lambda: work(Path(folder)))


def plain_optuna(n: int) -> Spent:
    """Ask and tell Optuna in memory, as many outstanding as the study has."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = random.Random(1)

    def loop() -> None:
        plain = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=7, constant_liar=True))
        waiting: list[Any] = []
        for _ in range(n):
            trial = plain.ask()
            waiting.append((trial, mixed(**suggested(trial))))
            if len(waiting) >= SLOTS + 3 * SLOTS // 4:
                plain.tell(*waiting.pop(rng.randrange(len(waiting))))
        for trial, value in waiting:
            plain.tell(trial, value)

    return spend(loop)


def suggested(trial: Any) -> dict[str, Any]:
    """Return a point of the space in Optuna's own words."""
    return {
        "a": trial.suggest_float("a", -5, 5),
        "b": trial.suggest_float("b", -5, 5),
        "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
        "d": trial.suggest_float("d", 0, 1),
        "n": trial.suggest_int("n", 1, 256, log=True),
        "c": trial.suggest_categorical("c", ["x", "y", "z"]),
    }


def sampler_alone(optimizer: Any, n: int) -> float:
    """Return the CPU seconds of asking and telling an optimizer ``n`` times, and nothing else."""
    from pandaflow.hpo.port import Brief, Told

    began = time.process_time()
    made = optimizer.build(SPACE, Brief(("minimize",), 1, SLOTS))
    for number in range(n):
        value = mixed(**SPACE.arguments(made.ask(number).point))
        made.tell(Told(number, "complete", (value,)))
    return time.process_time() - began


def overhead_rows(executor: Any) -> Iterator[Row]:
    """Free trials: what the study costs besides its sampler."""
    alone = sampler_alone(hpo.random(seed=1), FREE)
    free = measured(lambda folder: study(executor, folder, mixed, FREE, hpo.random(seed=1)))
    cost = (free.cpu - alone) / FREE * 1e3
    yield Row(
        f"study of {FREE:,} free trials, random, {SLOTS} at once: CPU a trial besides the sampler",
        f"{cost:.2f} ms, {FREE / free.wall:,.0f} trials/s",
        f"the sampler alone: {alone / FREE * 1e3:.3f} ms",
        "",
        "< 1 ms, >= 1,000/s",
        cost < 1 and FREE / free.wall >= 1_000,
    )
    plain = plain_optuna(TPE)
    ours = measured(lambda folder: study(executor, folder, mixed, TPE, hpo.optuna("tpe", seed=7)))
    ratio = ours.wall / plain.wall
    yield Row(
        f"study of {TPE:,} free trials, TPE, {SLOTS} at once: time",
        f"{ours.wall / TPE * 1e3:.1f} ms a trial ({ours.cpu / TPE * 1e3:.1f} ms CPU)",
        f"plain Optuna in memory: {plain.wall / TPE * 1e3:.1f} ms "
        f"({plain.cpu / TPE * 1e3:.1f} ms CPU)",
        f"time {ratio:.2f}, CPU {ours.cpu / plain.cpu:.2f}",
        "<= 1.1",
        ratio <= 1.1,
    )


def busy_rows(executor: Any) -> Iterator[Row]:
    """Trials that sleep: the share of slot seconds in which a trial runs."""
    for name, optimizer in (
        ("random", hpo.random(seed=1)),
        ("TPE", hpo.optuna("tpe", seed=7)),
        ("CMA (Nevergrad)", hpo.nevergrad("CMA", seed=7)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            done = study(executor, Path(folder), sleeping, SLEEPERS, optimizer)
            share, limit = busy(done.trials)
        yield Row(
            f"slots busy, {SLOTS} slots, {SLEEPERS} trials of {MEAN_S * 1e3:.0f} ms, {name}",
            f"{share:.2f}",
            f"no optimizer and no overhead: {limit:.2f}",
            f"{share / limit:.2f}",
            ">= 0.90 of the slots",
            share >= 0.90,
        )


def busy(trials: list[Any]) -> tuple[float, float]:
    """Return the busy share of the slots until the last trial began, and its limit.

    Once no more trials begin the slots run dry, whatever the optimizer is; that end is left out
    on both sides. The limit is a list schedule of the same times.
    """
    began = min(trial.began for trial in trials)
    last = max(trial.began for trial in trials)
    used = sum(min(trial.ended, last) - trial.began for trial in trials)
    free = [0.0] * SLOTS
    starts, ends = [], []
    for trial in trials:
        slot = min(range(SLOTS), key=free.__getitem__)
        starts.append(free[slot])
        free[slot] += trial.seconds
        ends.append(free[slot])
    limit = sum(min(end, max(starts)) - start for start, end in zip(starts, ends, strict=True))
    return used / (SLOTS * (last - began)), limit / (SLOTS * max(starts))


_LARGE = """
import resource, tempfile, pathlib
from benchmarks import bench_hpo
import pandaflow as pf
from pandaflow import hpo
executor = pf.executors.Local(workers=2, processes=False)
folder = pathlib.Path({folder!r})
bench_hpo.study(executor, folder, bench_hpo.mixed, {n}, hpo.random(seed=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def large_rows() -> Iterator[Row]:
    """A large study: memory of its driver, and how long a look at it takes."""
    with tempfile.TemporaryDirectory() as folder:
        script = _LARGE.format(folder=folder, n=LARGE)
        began = time.perf_counter()
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        wall = time.perf_counter() - began
        if out.returncode:
            raise RuntimeError(out.stderr)
        peak = float(out.stdout.split()[-1])
        looks = [looked(f"sqlite:///{folder}/bench.db") for _ in range(3)]
    look = statistics.median(looks)
    yield Row(
        f"study of {LARGE:,} trials: peak RSS of its driver; `pandaflow hpo status`",
        f"{peak:.0f} MiB, {look:.2f} s; {LARGE / wall:,.0f} trials/s with start-up",
        "",
        "",
        "< 400 MiB, < 1 s",
        peak < 400 and look < 1,
    )


def looked(store: str) -> float:
    """Return the seconds that the command line takes for a study's state."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pandaflow.cli", "--store", store, "hpo", "status", "bench"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def rows() -> Iterator[Row]:
    """Everything."""
    executor = threads(2)
    yield from overhead_rows(executor)
    executor.close()
    executor = threads(SLOTS)
    yield from busy_rows(executor)
    executor.close()
    yield from large_rows()


if __name__ == "__main__":
    for row in rows():
        print(f"{row.what}: {row.measured}  {row.yardstick}  {row.ratio}", file=sys.stderr)
