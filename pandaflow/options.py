"""Task options: parsed strictly, so that a typing error is told and not ignored."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Resources
from pandaflow.core.policy import Retry, SplitRule
from pandaflow.core.quantities import parse_bytes, parse_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an author may say about a task besides its payload."""

    name: str
    split: SplitRule = field(default_factory=SplitRule)
    resources: Resources = field(default_factory=Resources)
    retry: Retry = field(default_factory=Retry)
    priority: int = 0
    executor: str | None = None
    container: str | None = None
    requirements: tuple[str, ...] = ()
    cache: Literal["", "mtime", "checksum"] = ""
    goal: float = 1.0
    scouts: int = 0
    max_failure_rate: float | None = None


def _whole(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WorkflowError(f"{value!r} is not a whole number of at least {least}")
    return value


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise WorkflowError(f"{value!r} is not a positive number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise WorkflowError(f"{value!r} is not a non-empty text")
    return value


def _packages(value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        raise WorkflowError(f"{value!r}: give a list of packages as pip takes them")
    for each in listed:
        if _text(each).startswith("-"):
            raise WorkflowError(f"{each!r} is an option of pip, no package")
    return tuple(listed)


def _name(value: Any) -> str:
    text = _text(value)
    if any(c in text for c in "[]:'\"\n\t ") or text.startswith("-"):
        raise WorkflowError(f"{value!r}: a name has no blanks, brackets, colons or quotes")
    return text


def _fraction(value: Any) -> float:
    number = _positive(value)
    if number > 1:
        raise WorkflowError(f"{value!r} is not a fraction above 0 and up to 1")
    return number


def _retry(value: Any) -> Retry:
    if isinstance(value, Retry):
        return value
    return Retry(retries=_whole(value, 0))


def _cache(value: Any) -> str:
    modes = {True: "mtime", False: "", "mtime": "mtime", "checksum": "checksum"}
    if not isinstance(value, bool | str) or value not in modes:
        raise WorkflowError(f"{value!r}: give True, False, 'mtime' or 'checksum'")
    return modes[value]


Parser = Callable[[Any], Any]

_SPLIT: Mapping[str, tuple[str, Parser]] = {
    "events_per_job": ("events_per_job", lambda v: _whole(v, 1)),
    "items_per_job": ("items_per_job", lambda v: _whole(v, 1)),
    "files_per_job": ("items_per_job", lambda v: _whole(v, 1)),
    "gb_per_job": ("gb_per_job", _positive),
    "n_jobs": ("n_jobs", lambda v: _whole(v, 1)),
}
_RESOURCES: Mapping[str, Parser] = {
    "cores": lambda v: _whole(v, 1),
    "memory": lambda v: parse_bytes(v, "memory"),
    "walltime": lambda v: parse_seconds(v, "walltime"),
    "disk": lambda v: parse_bytes(v, "disk"),
    "gpus": lambda v: _whole(v, 0),
    "nodes": lambda v: _whole(v, 1),
    "ranks_per_node": lambda v: _whole(v, 1),
}
_PLAIN: Mapping[str, tuple[str, Parser]] = {
    "retries": ("retry", _retry),
    "retry": ("retry", _retry),
    "priority": ("priority", lambda v: _whole(v, -(10**9))),
    "executor": ("executor", _text),
    "container": ("container", _text),
    "requirements": ("requirements", _packages),
    "cache": ("cache", _cache),
    "goal": ("goal", _fraction),
    "scouts": ("scouts", lambda v: _whole(v, 0)),
    "max_failure_rate": ("max_failure_rate", _fraction),
    "name": ("name", _name),
}
OPTION_NAMES = (*_SPLIT, *_RESOURCES, *_PLAIN)


def change(options: Options, changes: Mapping[str, Any]) -> Options:
    """Return ``options`` with ``changes`` parsed into them; ``None`` takes an option back.

    Raises
    ------
    WorkflowError
        Names the task and the option.
    """
    split, resources, plain = {}, {}, {}
    for option, value in changes.items():
        try:
            if option in _SPLIT:
                target, parse = _SPLIT[option]
                split[target] = None if value is None else parse(value)
            elif option in _RESOURCES:
                default = getattr(Resources(), option)
                resources[option] = default if value is None else _RESOURCES[option](value)
            elif option in _PLAIN:
                target, parse = _PLAIN[option]
                plain[target] = parse(value) if value is not None else _default(target, options)
            else:
                raise WorkflowError(_unknown(option))
        except WorkflowError as error:
            raise WorkflowError(f"task {options.name!r}, option {option!r}: {error}") from None
    return replace(
        options,
        split=replace(options.split, **split),
        resources=replace(options.resources, **resources),
        **plain,
    )


def _default(target: str, options: Options) -> Any:
    return options.name if target == "name" else getattr(Options(name=options.name), target)


def _unknown(option: str) -> str:
    close = difflib.get_close_matches(option, OPTION_NAMES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(OPTION_NAMES)}"
    return f"unknown option; {hint}"


def name_of(function: Callable[..., Any]) -> str:
    """Return a task name for a function; a lambda or partial gets a plain one."""
    inner = inspect.unwrap(getattr(function, "func", function))
    name = getattr(inner, "__name__", type(inner).__name__)
    return "function" if name == "<lambda>" else name
