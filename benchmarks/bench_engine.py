"""The engine alone: events, transitions and CPU a bundle, without workers, store or results.

An executor of a few lines ends every bundle at once. Bundles of 1,000 are the smooth path of
short jobs; single-job bundles are what long jobs cost. The yardstick is a plain loop that moves
the states of as many jobs through a dict and appends as many tuples, measured in the same run.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.engine import Engine
from pandaflow.core.model import Input, Output, Source, SourceSpec, TaskSpec, WorkflowSpec
from pandaflow.core.policy import SplitRule
from pandaflow.core.status import RunStatus

#: Transitions of a job that goes well: sent, running, holding, finished.
SMOOTH = 4
#: Bundles reported in one call of the engine, as a busy runner gathers them.
GATHERED = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run of the engine took: CPU seconds, and how much passed through it."""

    cpu: float
    jobs: int
    bundles: int
    events: int


def chain(n: int) -> WorkflowSpec:
    """Two stages, one to one."""
    first = TaskSpec(id=0, name="one", token="one", payload="p", inputs=(Input(Source(0)),))
    second = TaskSpec(id=1, name="two", token="two", payload="p", inputs=(Input(Output(0)),))
    return _workflow(n, first, second)


def merge(n: int) -> WorkflowSpec:
    """Stages n to n, n to n / 10, n / 10 to one."""
    first = TaskSpec(id=0, name="one", token="one", payload="p", inputs=(Input(Source(0)),))
    second = TaskSpec(
        id=1,
        name="ten",
        token="ten",
        payload="p",
        inputs=(Input(Output(0)),),
        split=SplitRule(items_per_job=10),
        lists=True,
    )
    last = TaskSpec(
        id=2,
        name="all",
        token="all",
        payload="p",
        inputs=(Input(Output(1)),),
        split=SplitRule(n_jobs=1),
        lists=True,
        single=True,
    )
    return _workflow(n, first, second, last)


def _workflow(n: int, *tasks: TaskSpec) -> WorkflowSpec:
    source = SourceSpec(id=0, name="numbers", kind="range", n=n, bounds=(0, n, 1))
    return WorkflowSpec(name="bench", tasks=tasks, sources=(source,))


def drive(spec: WorkflowSpec, wall: float, slots: int = 2) -> Measured:
    """Run a workflow whose jobs all take ``wall`` seconds; only the engine is timed."""
    engine, waiting, at, cpu, count = Engine(spec), deque[cmd.EmitBundle](), 0.0, 0.0, 0
    events: list[ev.Event] = [ev.RunStarted(at, {"local": slots})]
    while events:
        count += len(events)
        began = time.process_time()
        commands = engine.handle(events)
        cpu += time.process_time() - began
        waiting.extend(c for c in commands if isinstance(c, cmd.EmitBundle))
        events = []
        for _ in range(min(GATHERED, len(waiting))):
            emit, at = waiting.popleft(), at + 0.01  # sent in order: what it needs ended before
            walls = array("f", [wall]) * len(emit.jobs)
            events.append(ev.BundleStarted(at, emit.bundle, "w"))
            events.append(ev.BundleEnded(at=at, bundle=emit.bundle, wall=walls, cpu=walls))
    assert engine.status is RunStatus.DONE, engine.status
    jobs = sum(task.n for task in engine.tasks.values())
    return Measured(cpu, jobs, engine.next_bundle - 1, count)


def plain_loop(jobs: int) -> float:
    """Return the CPU seconds of doing the same bookkeeping job by job."""
    began = time.process_time()
    states: dict[int, str] = {}
    log: list[tuple[int, str]] = []
    for job in range(jobs):
        for state in ("sent", "running", "holding", "finished"):
            states[job] = state
            log.append((job, state))
    return time.process_time() - began


def report(name: str, measured: Measured) -> None:
    """Print one line."""
    transitions = SMOOTH * measured.jobs
    yardstick = plain_loop(measured.jobs) / measured.jobs * 1e6
    ours = measured.cpu / measured.jobs * 1e6
    print(
        f"{name:34} {measured.jobs:>9,} {measured.bundles:>8,} {measured.cpu:7.2f} "
        f"{measured.events / measured.cpu:>10,.0f} {transitions / measured.cpu:>13,.0f} "
        f"{measured.cpu / measured.bundles * 1e6:>10,.1f} {ours:>8.2f} {yardstick:>8.2f} "
        f"{ours / yardstick:>7.2f}"
    )


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=500_000)
    options.add_argument("--single", type=int, default=20_000)
    options.add_argument("--profile", action="store_true")
    args = options.parse_args()
    cases: list[tuple[str, Callable[[], Measured]]] = [
        ("chain, bundles of 1,000", lambda: drive(chain(args.jobs), 1e-6)),
        ("merge, bundles of 1,000", lambda: drive(merge(args.jobs), 1e-6)),
        ("chain, single-job bundles", lambda: drive(chain(args.single), 10.0)),
        ("chain, single jobs, 1,000 slots", lambda: drive(chain(args.single), 10.0, 1000)),
    ]
    print(
        f"{'case':34} {'jobs':>9} {'bundles':>8} {'CPU s':>7} {'events/s':>10} "
        f"{'transitions/s':>13} {'us/bundle':>10} {'us/job':>8} {'plain':>8} {'ratio':>7}"
    )
    for name, case in cases:
        profile = cProfile.Profile() if args.profile else None
        measured = profile.runcall(case) if profile else case()
        report(name, measured)
        if profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
