"""Bundles for tests that need no service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from pandaflow.core.bundle import BundleSpec, SourceSlice
from pandaflow.core.chunking import Fixed
from pandaflow.core.commands import EmitBundle
from pandaflow.core.model import Input, Source
from pandaflow.core.template import Payload, Slot
from pandaflow.executors.command import CommandPayload
from pandaflow.ports import Assignment

Make = Callable[..., Assignment]


@pytest.fixture
def make() -> Make:
    """Describe a bundle with a job for each item; what it calls is a function or a command."""

    def bundle(number: int, what: Any, items: list[Any], **changes: Any) -> Assignment:
        command = isinstance(what, str)
        payload = CommandPayload(what, (Slot(0),)) if command else Payload(what, (Slot(0),))
        about = {
            "run": "run-1",
            "bundle": number,
            "task": 0,
            "name": "work",
            "token": "token",
            "kind": "command" if command else "function",
            "jobs": range(len(items)),
            "attempt": 1,
            "lists": False,
            "inputs": (Input(Source(0)),),
            "chunks": Fixed(len(items)),
            "sources": {0: SourceSlice(0, tuple(items))},
            "results": "/nowhere",
        }
        spec = BundleSpec(**(about | changes))
        emit = EmitBundle(
            bundle=number,
            task=spec.task,
            jobs=spec.jobs,
            attempt=1,
            executor="",
            resources=spec.resources,
            priority=(0, 0, 0),
        )
        return Assignment(emit, spec, "payload", cloudpickle.dumps(payload))

    return bundle
