from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from pandaflow.core.bundle import BundleSpec, BundleValues, SourceSlice
from pandaflow.core.chunking import Fixed
from pandaflow.core.commands import EmitBundle
from pandaflow.core.events import BundleEnded
from pandaflow.core.model import Input, Source
from pandaflow.core.template import Payload, Slot
from pandaflow.executors import capture, supervise
from pandaflow.executors.command import CommandPayload
from pandaflow.executors.payload import run_bundle, unpack_ended
from pandaflow.ports import Assignment


class Bench:
    """Runs bundles over items of a source in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.results = str(folder / "results" / "run1")
        self.workdir = str(folder / "work")
        self.reports: list[dict[str, Any]] = []

    def spec(self, items: Any, **changes: Any) -> BundleSpec:
        spec = BundleSpec(
            run="run1",
            bundle=0,
            task=0,
            name="fill",
            token="token",
            kind="function",
            jobs=range(len(items)),
            attempt=1,
            lists=False,
            inputs=(Input(Source(0)),),
            chunks=Fixed(len(items)),
            sources={0: SourceSlice(0, items)},
            results=self.results,
        )
        return dataclasses.replace(spec, **changes)

    def run(
        self,
        payload: Any,
        spec: BundleSpec,
        *,
        isolation: Any = "process",
        deps: Any = (),
        on_stuck: Callable[[], None] | None = None,
    ) -> BundleValues:
        if callable(payload):
            payload = Payload(payload, (Slot(0),))
        data = payload if isinstance(payload, bytes) else cloudpickle.dumps(payload)
        return run_bundle(
            spec,
            data,
            deps,
            report=self.reports.append,
            worker="w",
            isolation=isolation,
            on_stuck=on_stuck,
            workdir=self.workdir,
        )

    @property
    def ended(self) -> BundleEnded:
        assert self.reports[-1]["op"] == "ended"
        return unpack_ended(self.reports[-1])

    def aside(self, payload: Any, spec: BundleSpec, **options: Any) -> threading.Thread:
        """Run in another thread, so that the test can interfere."""
        thread = threading.Thread(target=self.run, args=(payload, spec), kwargs=options)
        thread.start()
        return thread


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield Bench(tmp_path)
    supervise.forget("run1")
    capture.restore()


def until(condition: Callable[[], Any], timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    return until


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
