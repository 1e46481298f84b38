"""What the event scripts of several modules share: small workflows, and how their bundles end."""

from __future__ import annotations

from typing import Any

import pandaflow as pf
from pandaflow.core import commands as cmd
from pandaflow.testing.engine import Outcome, World


@pf.task
def inc(x):
    return x + 1


@pf.task
def double(x):
    return 2 * x


@pf.task(n_jobs=1)
def total(xs):
    return sum(xs)


def one_task(n=4, **options):
    return inc.options(**options)(pf.items(range(n)))


def chain(n=4):
    return double(inc(pf.items(range(n))))


def failing(task: str, *jobs: int, times: int = 10**6, **more: Any):
    """Let jobs of a task fail so many times."""
    left = dict.fromkeys(jobs, times)

    def rule(name: str, emit: cmd.EmitBundle) -> Outcome:
        bad = {}
        for position, job in enumerate(emit.jobs):
            if name == task and left.get(job, 0) > 0:
                left[job] -= 1
                bad[position] = f"{job} is bad"
        return Outcome(fail=bad, **more)

    return rule


def short(name: str, emit: cmd.EmitBundle) -> Outcome:
    """Jobs so short that they share bundles."""
    return Outcome(wall=1e-4)


def bundled(world: World, task: str = "inc") -> cmd.EmitBundle:
    """Play until several jobs of a task share a bundle that can begin."""
    for _ in range(1000):
        for bundle in world.runnable():
            emit = world.given[bundle].emit
            if len(emit.jobs) > 4 and emit.task == world.task(task).spec.id:
                return emit
        world.step(short)
    raise AssertionError("no bundle has several jobs")
