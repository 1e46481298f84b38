"""Queues whose sites have spoiled a job: its next attempt goes elsewhere, if somebody takes it.

A job that was lost some times is taken to be the cause, and fails (``pandaflow.core.retry``). A
site that fails whatever it gets is always free, and would get the same job until then.
"""

from __future__ import annotations

from pandaflow.core.bundle import BundleSpec
from pandaflow.grid.messages import Outcome, Trouble

#: The pilot's codes of ends that say nothing about a site: told to end, time up, no contact.
_ORDINARY = frozenset({1379, 1510, 1511})
#: Jobs that are remembered, and queues of a bundle.
_MOST, _QUEUES = 100_000, 50


class Avoided:
    """What sites have spoiled, of one session."""

    def __init__(self) -> None:
        self._queues: dict[tuple[int, int], set[str]] = {}

    def note(self, spec: BundleSpec, outcome: Outcome) -> None:
        """Take an outcome in."""
        troubles = [outcome.error, *(each.error for each in outcome.results)]
        if not outcome.queue or not any(each and _by_site(each) for each in troubles):
            return
        if len(self._queues) > _MOST:
            self._queues.clear()
        for job in spec.jobs:
            self._queues.setdefault((spec.task, job), set()).add(outcome.queue)

    def queues(self, spec: BundleSpec) -> tuple[str, ...]:
        """Return the queues that have spoiled one of a bundle's jobs."""
        found = {name for job in spec.jobs for name in self._queues.get((spec.task, job), ())}
        return tuple(sorted(found))[:_QUEUES]


def _by_site(trouble: Trouble) -> bool:
    return trouble.source in ("pilot", "site") and trouble.code not in _ORDINARY
