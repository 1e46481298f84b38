"""Payloads: a function and its arguments with holes for what the job brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of dataset argument number ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class NodeRef:
    """The value of another node of a job graph."""

    name: str


@dataclass(frozen=True, slots=True)
class Payload:
    """What the jobs of a task call.

    ``args`` and ``kwargs`` hold :class:`Slot` marks, also inside lists, tuples and dicts.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
