"""Payloads: a function and its arguments, with marks where each job's own inputs go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in a payload's arguments for the job's value of input ``number``."""

    number: int


@dataclass(frozen=True, slots=True)
class NodeRef:
    """Stands in the arguments of a job graph's node for the value of the node ``name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Payload:
    """What the jobs of a task call.

    Attributes
    ----------
    function : callable
    args : tuple
    kwargs : mapping or None
        Hold :class:`Slot` marks, also inside lists, tuples and dicts.
    """

    function: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
