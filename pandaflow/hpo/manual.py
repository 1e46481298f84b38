"""Asking and telling by hand, on the same log as everything else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.executors.payload import job_seed
from pandaflow.hpo.driver import StudyDriver
from pandaflow.hpo.engine import Command, Dispatch, Prune
from pandaflow.hpo.objective import read_result


class AskedTrial:
    """A trial to be evaluated by whoever asked.

    Attributes
    ----------
    number : int
    params : dict
        What the objective is to be called with.
    seed : int
    """

    def __init__(self, manual: Manual, number: int, params: dict[str, Any], seed: int) -> None:
        self._manual = manual
        self.number, self.params, self.seed = number, params, seed

    def report(self, value: float, step: int) -> None:
        """Tell an intermediate value."""
        self._manual.report(self.number, int(step), float(value))

    def should_prune(self) -> bool:
        """Return whether the pruner has given the trial up."""
        return self.number in self._manual.pruned

    def __repr__(self) -> str:
        return f"AskedTrial({self.number}, {self.params})"


class Manual:
    """Drives a study from the caller's thread."""

    def __init__(self, driver: StudyDriver) -> None:
        self._driver = driver
        self.pruned: set[int] = set()
        self._hold(0)

    def _hold(self, more: int) -> None:
        """Let the engine ask for ``more`` trials besides those that are outstanding."""
        engine = self._driver.engine
        running = self._driver.book.counts["running"]
        outstanding = running + more if more else 0
        engine.terms = replace(engine.terms, outstanding=outstanding, ahead=0)

    def ask(self, n: int) -> list[AskedTrial]:
        """Return new trials.

        Raises
        ------
        WorkflowError
            The optimizer has no more points.
        """
        if type(n) is not int or n < 1:
            raise WorkflowError(f"ask_many({n!r}): a whole number of at least 1")
        self._hold(n)
        commands = self._driver.work(self._driver.engine.begin())
        commands += self._settle()
        self._hold(0)
        numbers = [c.number for c in commands if isinstance(c, Dispatch)]
        if not numbers:
            raise WorkflowError(f"no more points: {self._driver.engine.ending}")
        return [self._trial(number) for number in numbers]

    def _trial(self, number: int) -> AskedTrial:
        plan = self._driver.plan
        arguments = plan.space.arguments(self._driver.book.trials[number].point)
        seed = job_seed(plan.name, f"{self._driver.brief.seed}.0", number)
        return AskedTrial(self, number, arguments, seed)

    def tell(self, results: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Take in outcomes; tell which of them counted."""
        commands: list[Command] = []
        counted = []
        # All are parsed before the first counts: one that is wrong leaves nothing half told.
        for number, outcome in [self._parsed(*result) for result in results]:
            before = len(self._driver.engine.requests)
            commands += self._driver.engine.outcome(number, outcome)
            counted.append(len(self._driver.engine.requests) > before)
        self._driver.work(commands)
        self._settle()
        return counted

    def _parsed(
        self, trial: AskedTrial | int, value: Any = None, state: str = "complete"
    ) -> tuple[int, dict[str, Any]]:
        number = trial.number if isinstance(trial, AskedTrial) else int(trial)
        if not 0 <= number < len(self._driver.book.trials):
            raise WorkflowError(f"trial {number} was never asked for")
        return number, self._outcome(number, value, state)

    def _outcome(self, number: int, value: Any, state: str) -> dict[str, Any]:
        if state not in ("complete", "pruned", "failed"):
            raise WorkflowError(f"state {state!r}: 'complete', 'pruned' or 'failed'")
        record = self._driver.book.trials[number]
        out: dict[str, Any] = {"s": state, "t": [record.began, time.time()]}
        if state == "complete":
            found = read_result(value, len(self._driver.book.directions))
            out |= {**found, "s": "failed" if found["why"] else "complete"}
        return out

    def report(self, number: int, step: int, value: float) -> None:
        """Take in an intermediate value, and what the pruner says to it."""
        engine = self._driver.engine
        self._driver.work(engine.said(number, 0, step, value))
        for command in self._settle():
            if isinstance(command, Prune):
                self.pruned.add(number)

    def _settle(self) -> list[Command]:
        """Wait until the optimizer has answered everything."""
        out = self._driver.pump()
        while self._driver.engine.requests:
            out += self._driver.pump(timeout=0.25)
            out += self._driver.tick()
        return out

    def close(self) -> None:
        """Give the study back."""
        self._driver.close()
