"""What a driver's executors offer, against what tasks ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import TaskSpec
from pandaflow.ports import Executor


def check_executors(
    tasks: Iterable[TaskSpec],
    executors: Mapping[str, Executor],
    remedy: str = "Pass executors={name: executor} to run()",
) -> None:
    """Refuse tasks that none of the executors can ever run.

    Parameters
    ----------
    tasks : iterable of TaskSpec
    executors : mapping of str to Executor
        The first is the default.
    remedy : str
        What to do about an executor that is not there.

    Raises
    ------
    WorkflowError
        Names the task, what it asks for, and the remedy.
    """
    for task in tasks:
        name = task.executor
        if name is not None and name not in executors:
            known = ", ".join(executors)
            raise WorkflowError(
                f"task {task.name!r} asks for executor {name!r}; given: {known}. {remedy}"
            )
        _check(task, executors[name or next(iter(executors))])


def _check(task: TaskSpec, executor: Executor) -> None:
    if task.container is not None and not getattr(executor, "containers", False):
        raise WorkflowError(
            f"task {task.name!r} asks for container {task.container!r}, and "
            f"{executor!r} has no container runtime; run it elsewhere or without one"
        )
    if task.resources.parallel and not getattr(executor, "multi_node", False):
        raise WorkflowError(
            f"task {task.name!r} asks for {task.resources.nodes} node(s) with "
            f"{task.resources.ranks_per_node} rank(s) on each, and {executor!r} starts "
            "jobs on one node; run it elsewhere, as with pf.executors.Slurm(mode='batch')"
        )
