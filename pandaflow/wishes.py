"""Wishes from outside as events: what the runner finds in a run's inbox, parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pandaflow.core import events as ev
from pandaflow.core.engine import Engine
from pandaflow.core.errors import StoreError, WorkflowError
from pandaflow.core.model import Fragment, Resources
from pandaflow.options import Options, change
from pandaflow.store.spec import parse_fragment

_RESOURCES = tuple(field.name for field in fields(Resources))
#: Options that a retry may change, and the fields of a task that they set.
_PLAIN: Mapping[str, str] = {"retries": "retry", "retry": "retry", "executor": "executor"}


def wish(engine: Engine, kind: str, body: Mapping[str, Any], now: float) -> ev.Event:
    """Turn a request from outside into an event.

    Raises
    ------
    WorkflowError
        Unknown kind, task, job or option.
    """
    by = str(body.get("by", ""))
    if kind == "cancel":
        task, job = body.get("task"), body.get("job")
        return ev.CancelRequested(now, None if task is None else task_id(engine, task), job, by)
    if kind == "pause":
        return ev.PauseRequested(now, by)
    if kind == "resume":
        return ev.ResumeRequested(now, by)
    if kind == "append":
        closed = bool(body["closed"])
        return ev.ItemsAppended(now, int(body["source"]), int(body["count"]), closed)
    if kind == "grow":
        return ev.FragmentAppended(now, _fragment(body))
    if kind == "retry":
        return _retry(engine, body, now, by)
    raise WorkflowError(f"unknown request {kind!r}")


def _fragment(body: Mapping[str, Any]) -> Fragment:
    try:
        return parse_fragment(body["fragment"])
    except StoreError as error:  # the request is at fault, not the store
        raise WorkflowError(str(error)) from error


def _retry(engine: Engine, body: Mapping[str, Any], now: float, by: str) -> ev.RetryRequested:
    task = body.get("task")
    return ev.RetryRequested(
        at=now,
        task=None if task is None else task_id(engine, task),
        restart=bool(body.get("restart")),
        changes=_changes(body.get("options") or {}, task or "any"),
        by=by,
    )


def _changes(options: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Parse the options given, and no others: each task retried keeps the rest of its own."""
    parsed = change(Options(name=task), options)
    changes: dict[str, Any] = {}
    for option in options:
        if option in _RESOURCES:
            changes[option] = getattr(parsed.resources, option)
        elif option in _PLAIN:
            changes[_PLAIN[option]] = getattr(parsed, _PLAIN[option])
        else:
            known = ", ".join((*_RESOURCES, *_PLAIN))
            raise WorkflowError(f"a retry cannot change {option!r}; it can change {known}")
    return changes


def task_id(engine: Engine, name: str) -> int:
    """Return the id of a task by name.

    Raises
    ------
    WorkflowError
        There is none; the message lists those that are.
    """
    for task in engine.tasks.values():
        if task.spec.name == name:
            return task.spec.id
    known = ", ".join(task.spec.name for task in engine.tasks.values() if not task.spec.internal)
    raise WorkflowError(f"no task {name!r} in this run; there are {known}")
