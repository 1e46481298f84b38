"""A Nevergrad optimizer behind the seam of :mod:`pandaflow.hpo.port`, exact on resume.

Nevergrad draws from two generators, the parametrization's and NumPy's global one. Both follow from
the study's seed here, and the user's global generator is put back after every call, so replaying
the log of a study in its order gives the same points again. A candidate is kept from its ask to
its tell: of a point rebuilt from values an optimizer would not know whose child it is.

Rules:

- A trial that failed is told the worst value seen so far (of each objective); with none seen it is
  dropped. Populations (CMA, DE) thus complete their generations and learn to keep away.
- A trial that was pruned is told its last report.
- Infeasible points are told the worst value seen plus their violation, whatever their own value:
  Nevergrad's penalty alone is nought for losses below zero.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from pandaflow.hpo.dimensions import Dimension
from pandaflow.hpo.optimizers.nevergrad_space import (
    Layout,
    installed,
    library,
    quiet,
)
from pandaflow.hpo.port import (
    Asked,
    AskEntry,
    Brief,
    Entry,
    Memo,
    Optimizer,
    ReportEntry,
    TellEntry,
    Told,
)
from pandaflow.hpo.space import Point

#: A snapshot is worth it when replaying would take longer than both of these: seconds of CPU, and
#: this many times what the last snapshot took (so that snapshots cost at most 5 % of the asks).
_REPLAY_SECONDS = 2.0
_REPLAY_PER_SNAPSHOT = 20.0
#: Above this, Nevergrad replaces losses (with a warning); so do we, on both sides.
_LARGEST_LOSS = 5e20


@dataclass(slots=True)
class _State:
    """All that the next point follows from; pickled as one, for its parts share objects."""

    optimizer: Any
    global_generator: Any
    outstanding: dict[int, Any] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    reports: dict[int, float] = field(default_factory=dict)
    worst: list[float] = field(default_factory=list)


class NevergradOptimizer(Optimizer):
    """One of Nevergrad's optimizers.

    Parameters
    ----------
    factory : callable
        Called with ``parametrization``, ``budget`` and ``num_workers``.
    dimensions : mapping of str to dimension
        The parameters, those of branches below their choices.
    brief : Brief
    """

    def __init__(self, factory: Any, dimensions: Mapping[str, Dimension], brief: Brief) -> None:
        self._layout = Layout(dimensions)
        self._signs = [1.0 if way == "minimize" else -1.0 for way in brief.directions]
        self._replay_cost = 0.0
        self._snapshot_cost = 0.0
        self._state = _begin(factory, self._layout, brief)

    def ask(self, number: int) -> Asked:
        """Return the point of trial ``number``, which counts as outstanding from now on."""
        self._refuse_known(number)
        with self._own_surroundings():
            candidate = self._state.optimizer.ask()
        self._state.outstanding[number] = candidate
        return Asked(self._layout.decode(candidate.value))

    def adopt(self, number: int, point: Point) -> Memo:
        """Take in an outstanding trial whose point came from elsewhere."""
        self._refuse_known(number)
        self._state.outstanding[number] = self._candidate(point)
        return {}

    def tell(self, told: Told) -> Memo:
        """Take in what came of an outstanding trial (or, with a point, of any other).

        Raises
        ------
        ValueError
            The trial is not outstanding: Nevergrad would silently count it twice.
        """
        candidate = self._taken(told)
        losses = self._losses(told)
        if losses is None:
            return {}
        violations = [max(0.0, value) for value in told.constraints]
        if any(violations):
            losses = self._penalized(losses, sum(violations))
        else:
            self._note_worst(losses)
        self._tell(candidate, losses, violations)
        return {}

    def report(self, number: int, step: int, value: float) -> bool:
        """Take in an intermediate value of an outstanding trial; never prunes."""
        del step
        if number in self._state.outstanding:
            self._state.reports[number] = value
        return False

    def restore(self, entries: Sequence[Entry], snapshot: bytes | None = None) -> str:
        """Come back to where the log ends; see :meth:`Optimizer.restore`.

        Entries are replayed in their order. From the first ask that gives another point than the
        logged one on, points are told as ones that Nevergrad did not ask for.
        """
        reason = "" if snapshot is None else self._load(snapshot)
        exact = True
        for entry in entries:
            if exact and isinstance(entry, AskEntry) and entry.own:
                exact = self._ask_again(entry)
                if not exact:
                    reason = _differs(entry.number, reason)
            else:
                self._replay(entry)
        return reason

    def snapshot(self) -> bytes | None:
        """Return its state where replaying since the last one would take longer, else None.

        That is the case after 2 s of CPU time in asks and tells, and 20 times what the last
        snapshot took. Optimizers that cannot be pickled (those with a thread) have none.
        """
        if self._replay_cost < max(_REPLAY_SECONDS, _REPLAY_PER_SNAPSHOT * self._snapshot_cost):
            return None
        return self._dump()

    def _dump(self) -> bytes | None:
        start = time.thread_time()
        try:
            # The versions come first, on their own, so that they can be read in any case.
            return pickle.dumps((installed(), cloudpickle.dumps(self._state)))
        except (TypeError, AttributeError, pickle.PicklingError):
            return None
        finally:
            self._snapshot_cost = time.thread_time() - start
            self._replay_cost = 0.0

    def _load(self, snapshot: bytes) -> str:
        versions, state = pickle.loads(snapshot)
        library()  # or unpickling would import it, with its warnings
        self._state = pickle.loads(state)
        if versions == installed():
            return ""
        return f"the snapshot was written with other versions: {versions}, now {installed()}"

    def _ask_again(self, entry: AskEntry) -> bool:
        if self.ask(entry.number).point == entry.point:
            return True
        self._state.outstanding[entry.number] = self._candidate(entry.point)
        return False

    def _replay(self, entry: Entry) -> None:
        match entry:
            case AskEntry():
                self.adopt(entry.number, dict(entry.point))
            case TellEntry():
                self.tell(entry.told)
            case ReportEntry():
                self.report(entry.number, entry.step, entry.value)

    def _refuse_known(self, number: int) -> None:
        if number in self._state.outstanding or number in self._state.finished:
            raise ValueError(f"trial {number} was asked for before")

    def _taken(self, told: Told) -> Any:
        state = self._state
        candidate = state.outstanding.pop(told.number, None)
        if candidate is None and (told.point is None or told.number in state.finished):
            raise ValueError(f"trial {told.number} is not outstanding: was it told before?")
        state.finished.add(told.number)
        return self._candidate(told.point) if candidate is None else candidate

    def _candidate(self, point: Mapping[str, Any] | None) -> Any:
        parametrization = self._state.optimizer.parametrization
        with self._own_surroundings():
            return parametrization.spawn_child(new_value=self._layout.encode(point or {}))

    def _losses(self, told: Told) -> list[float] | None:
        """Return what to minimize, one number for each objective; None to drop the trial."""
        last = self._state.reports.pop(told.number, None)
        values = told.values
        if told.state == "pruned" and not values and last is not None:
            values = (last,)
        if told.state == "failed" or len(values) != len(self._signs):
            return list(self._state.worst) or None
        pairs = zip(self._signs, values, strict=True)
        return [min(_LARGEST_LOSS, max(-_LARGEST_LOSS, sign * value)) for sign, value in pairs]

    def _penalized(self, losses: list[float], violation: float) -> list[float]:
        worst = self._state.worst or losses
        return [
            min(_LARGEST_LOSS, max(pair) + violation) for pair in zip(worst, losses, strict=True)
        ]

    def _note_worst(self, losses: list[float]) -> None:
        worst = self._state.worst or losses
        self._state.worst = [max(pair) for pair in zip(worst, losses, strict=True)]

    def _tell(self, candidate: Any, losses: list[float], violations: list[float]) -> None:
        unwanted = library().errors.TellNotAskedNotSupportedError
        loss: Any = losses[0] if len(losses) == 1 else losses
        with self._own_surroundings(), contextlib.suppress(unwanted):
            # Suppressed: what some optimizers cannot learn from, others' points, is passed over.
            self._state.optimizer.tell(candidate, loss, violations if any(violations) else None)

    @contextlib.contextmanager
    def _own_surroundings(self) -> Iterator[None]:
        """Give Nevergrad a global random generator of its own, and count the CPU time."""
        start = time.thread_time()
        try:
            with _global_generator(self._state.global_generator), quiet():
                yield
        finally:
            self._replay_cost += time.thread_time() - start


@contextlib.contextmanager
def _global_generator(own: Any) -> Iterator[None]:
    """Let NumPy's global functions draw from another bit generator, and put back the user's.

    Exchanging generators is quick, setting their states is not. NumPy forgets the second of a pair
    of normal numbers then: the user's is put back, Nevergrad's is dropped after every call.
    """
    from numpy.random import mtrand

    before, state = mtrand.get_bit_generator(), mtrand.get_state(legacy=False)
    mtrand.set_bit_generator(own)
    try:
        yield
    finally:
        mtrand.set_bit_generator(before)
        if state["has_gauss"]:
            mtrand.set_state(state)


def _begin(factory: Any, layout: Layout, brief: Brief) -> _State:
    import numpy as np

    words = [brief.seed & 0xFFFFFFFF, brief.seed >> 32]
    own = np.random.MT19937([*words, 1])
    with _global_generator(own), quiet():
        parametrization = layout.parametrize()
        parametrization.random_state = np.random.RandomState(words)
        optimizer = factory(parametrization, budget=brief.budget, num_workers=brief.outstanding)
        if len(brief.directions) > 1:
            optimizer.num_objectives = len(brief.directions)
    return _State(optimizer, own)


def _differs(number: int, reason: str) -> str:
    known = reason or f"versions now: {installed()}"
    return f"asked again for trial {number}, Nevergrad gave another point ({known})"
