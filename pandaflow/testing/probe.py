"""A session of an executor under test: hands out bundles of its own making, hears the reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import cloudpickle

from pandaflow.core.bundle import BundleSpec, SourceSlice
from pandaflow.core.chunking import Fixed
from pandaflow.core.commands import EmitBundle
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted, Event, SlotsChanged
from pandaflow.core.model import Input, Output, Resources, Source
from pandaflow.core.template import Payload, Slot
from pandaflow.data.results import ResultStore
from pandaflow.ports import Assignment, Executor

__all__ = ["PATIENCE", "Probe", "still"]

#: Seconds after which a test gives up waiting; no measure of speed.
PATIENCE = 60.0


class Probe:
    """A session of an executor, and all that it reported.

    Parameters
    ----------
    executor : Executor
    folder : Path
        For the run's results.
    run : str, optional
        Go on with this run.
    """

    def __init__(self, executor: Executor, folder: Path, run: str = "") -> None:
        self.run = run or f"probe-{uuid4().hex[:8]}"
        self.results = ResultStore(f"{folder}/{self.run}")
        self.events: list[Event] = []
        self._news = threading.Condition()
        self._given: dict[int, Assignment] = {}
        self.session = executor.open(self.run, self.results.url, self._hear)
        self.at_once = len(self.events)

    def _hear(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    # --- giving -------------------------------------------------------------------------------

    def bundle(
        self, number: int, function: Callable[..., Any], items: Sequence[Any], **changes: Any
    ) -> Assignment:
        """Describe a bundle with a job for each of ``items``; ``changes`` go to its spec."""
        spec = BundleSpec(
            run=self.run,
            bundle=number,
            task=0,
            name="probe",
            token=function.__name__,
            kind="function",
            jobs=range(len(items)),
            attempt=1,
            lists=False,
            inputs=(Input(Source(0)),),
            chunks=Fixed(len(items)),
            sources={0: SourceSlice(0, tuple(items))},
            results=self.results.url,
        )
        return self._assignment(replace(spec, **changes), function, ())

    def dependent(
        self, number: int, function: Callable[..., Any], upstream: Assignment, place: str = ""
    ) -> Assignment:
        """Describe a bundle that maps over the values of another; ``place`` if it has ended."""
        jobs = upstream.spec.jobs
        given = self.bundle(
            number,
            function,
            jobs,
            task=1,
            inputs=(Input(Output(0)),),
            sources={},
            outputs={0: (0,)},
            names={0: "probe"},
        )
        return self._assignment(given.spec, function, ((upstream.emit.bundle, place),))

    def _assignment(
        self, spec: BundleSpec, function: Callable[..., Any], deps: tuple[tuple[int, str], ...]
    ) -> Assignment:
        emit = EmitBundle(
            bundle=spec.bundle,
            task=spec.task,
            jobs=spec.jobs,
            attempt=spec.attempt,
            executor="",
            resources=spec.resources or Resources(),
            needs=tuple(need for need, _ in deps),
            join=spec.join,
            priority=(0, spec.task, 0),
        )
        code = cloudpickle.dumps(Payload(function, (Slot(0),)))
        return Assignment(emit, spec, f"payload-{function.__name__}", code, deps)

    def submit(self, *assignments: Assignment) -> None:
        """Hand out bundles in one slice."""
        self._given |= {given.emit.bundle: given for given in assignments}
        self.session.submit(assignments)

    # --- hearing ------------------------------------------------------------------------------

    def of(self, bundle: int) -> list[Event]:
        """Return what was reported about a bundle, in order."""
        with self._news:
            return [event for event in self.events if getattr(event, "bundle", None) == bundle]

    def end(self, bundle: int) -> BundleEnded | BundleLost:
        """Wait for a bundle's end."""
        kinds = BundleEnded | BundleLost
        self.until(lambda: any(isinstance(event, kinds) for event in self.of(bundle)))
        return next(event for event in self.of(bundle) if isinstance(event, kinds))

    def ended(self, bundle: int) -> BundleEnded:
        """Wait for a bundle's report."""
        event = self.end(bundle)
        assert isinstance(event, BundleEnded), f"bundle {bundle} was lost: {event.reason}"
        return event

    def started(self, bundle: int) -> None:
        """Wait until a bundle has begun."""
        self.until(lambda: any(isinstance(event, BundleStarted) for event in self.of(bundle)))

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + PATIENCE
        with self._news:
            while not condition():
                assert time.monotonic() < deadline, f"it did not happen; heard: {self.events}"
                self._news.wait(0.05)

    def slots(self) -> int:
        """Wait until the executor has slots, and return how many."""

        def told() -> list[int]:
            return [event.slots for event in self.events if isinstance(event, SlotsChanged)]

        self.until(lambda: any(told()))
        return max(told())

    def values(self, bundle: int) -> list[Any]:
        """Return what a bundle left in the result store."""
        return self.results.load(self.ended(bundle).location).values


def still(path: Path, seconds: float = 0.4) -> bool:
    """Tell whether a file stops growing; what is under way may end first."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        size = path.stat().st_size
        time.sleep(seconds)
        if path.stat().st_size == size:
            return True
    return False
