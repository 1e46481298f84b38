"""Workflows, tasks and failures as JSON, versioned, and parsed strictly on the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pandaflow.core.errors import StoreError
from pandaflow.core.model import Failure, Fragment, TaskSpec, WorkflowSpec

_T = TypeVar("_T")

#: Version of the layout of a stored specification.
VERSION = 1


@cache
def _workflows() -> TypeAdapter[WorkflowSpec]:
    return TypeAdapter(WorkflowSpec)


@cache
def _tasks() -> TypeAdapter[TaskSpec]:
    return TypeAdapter(TaskSpec)


@cache
def _fragments() -> TypeAdapter[Fragment]:
    return TypeAdapter(Fragment)


def clean(text: str) -> str:
    """Return ``text`` without NULs and lone surrogates, which databases refuse."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def dump_workflow(spec: WorkflowSpec) -> dict[str, Any]:
    """Return ``spec`` as a JSON-ready dict, ``{"version": 1, "workflow": ...}``."""
    return {"version": VERSION, "workflow": _workflows().dump_python(spec, mode="json")}


def dump_task(spec: TaskSpec) -> dict[str, Any]:
    """Return ``spec`` as a JSON-ready dict, ``{"version": 1, "task": ...}``."""
    return {"version": VERSION, "task": _tasks().dump_python(spec, mode="json")}


def dump_fragment(fragment: Fragment) -> dict[str, Any]:
    """Return ``fragment`` as a JSON-ready dict, ``{"version": 1, "fragment": ...}``."""
    return {"version": VERSION, "fragment": _fragments().dump_python(fragment, mode="json")}


def dump_failure(failure: Failure) -> str:
    """Return ``failure`` as JSON text, free of what databases refuse."""
    body = {
        "kind": clean(failure.kind),
        "message": clean(failure.message),
        "type": clean(failure.type),
        "mro": [clean(name) for name in failure.mro],
        "code": failure.code,
        "traceback": clean(failure.traceback),
        "charged": failure.charged,
    }
    return json.dumps(body)


def parse_workflow(value: object, run_id: str) -> WorkflowSpec:
    """Parse what :func:`dump_workflow` made.

    Raises
    ------
    StoreError
        Names the run when the text is of another version, or damaged.
    """
    return _parse("workflow", _workflows(), value, f"run {run_id}")


def parse_task(value: object, run_id: str) -> TaskSpec:
    """Parse what :func:`dump_task` made.

    Raises
    ------
    StoreError
        Names the run when the text is of another version, or damaged.
    """
    return _parse("task", _tasks(), value, f"a task of run {run_id}")


def parse_fragment(value: object) -> Fragment:
    """Parse what :func:`dump_fragment` made.

    Raises
    ------
    StoreError
        The text is of another version, or damaged.
    """
    return _parse("fragment", _fragments(), value, "a fragment")


def _parse(name: str, adapter: TypeAdapter[_T], value: object, owner: str) -> _T:
    try:
        body = json.loads(value) if isinstance(value, str | bytes) else value
    except ValueError as error:
        raise StoreError(f"the specification of {owner} is damaged: {error}") from error
    if not isinstance(body, Mapping) or name not in body:
        raise StoreError(f"the specification of {owner} is damaged: no {name!r} in it")
    if body.get("version") != VERSION:
        raise StoreError(
            f"the specification of {owner} has version {body.get('version')!r}, this PandaFlow "
            f"reads version {VERSION}: use the release that wrote it, or a newer one"
        )
    try:
        # Through JSON: strict parsing takes lists for tuples only there.
        return adapter.validate_json(json.dumps(body[name]), strict=True)
    except ValidationError as error:
        raise StoreError(f"the specification of {owner} is damaged: {error}") from error
