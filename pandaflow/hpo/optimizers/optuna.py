"""Optuna's samplers and pruners as optimizers of ours, exact on resume.

The study lives in memory; our log is what lasts. Before each ask the sampler's random numbers
are seeded from the study's seed and the trial's number, so that they need not be kept.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import cloudpickle

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.optimizers.optuna_pruners import check_pruner
from pandaflow.hpo.optimizers.optuna_samplers import (
    KINDS,
    REMEDY,
    check_use,
    generators,
    make_sampler,
    need,
    parse_name,
    reseed,
    seed_of,
    stateful_part,
)
from pandaflow.hpo.optimizers.optuna_space import Distributions, TrialSuggester, params_of
from pandaflow.hpo.optimizers.optuna_state import Mirror
from pandaflow.hpo.optimizers.optuna_trials import silence
from pandaflow.hpo.port import Asked, Brief, Entry, Memo, Optimizer, Told
from pandaflow.hpo.space import AnySpace, Point

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class OptunaSpec:
    """How to make an optimizer from an Optuna sampler; see :func:`optuna`.

    Attributes
    ----------
    name : str
        A known name, or the class of the user's object.
    seed : int or None
        The seed that the user gave.
    options : mapping of str to value
        The sampler's options.
    pickled : bytes or None
        The user's sampler object.
    isolated : bool
        It runs in a process of its own.
    """

    name: str
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    pickled: bytes | None = None
    isolated: bool = True

    def describe(self) -> dict[str, Any]:
        """Return kind, name, options and versions, JSON-ready."""
        return {
            "kind": "optuna",
            "name": self.name,
            "options": {name: _plain(value) for name, value in sorted(self.options.items())},
            "versions": {n: version(n) for n in ("optuna", "numpy", "scipy") if find_spec(n)},
        }

    def check(self, space: AnySpace, brief: Brief) -> None:
        """Refuse what cannot work, with the remedy.

        Raises
        ------
        WorkflowError
            A package is missing, an option is unknown or wrong, the sampler cannot search
            the space, the pruner is unknown.
        """
        need("optuna", REMEDY, "hpo.optuna()")
        if self.pickled is None:
            check_use(self.name, space, brief)
        self._sampler(space, brief.seed)
        check_pruner(brief)

    def build(self, space: AnySpace, brief: Brief) -> Optimizer:
        """Make a fresh optimizer."""
        need("optuna", REMEDY, "hpo.optuna()")
        sampler = self._sampler(space, brief.seed)
        renew = None if self.pickled else partial(make_sampler, self.name, self.options, space)
        return OptunaOptimizer(space, brief, sampler, name=self.name, renew=renew)

    def _sampler(self, space: AnySpace, seed: int) -> BaseSampler:
        silence()
        if self.pickled is not None:
            return pickle.loads(self.pickled)  # type: ignore[no-any-return]
        return make_sampler(self.name, self.options, space, seed_of(seed, -1))


def optuna(sampler: Any = "tpe", *, seed: int | None = None, **options: Any) -> OptunaSpec:
    """Return an optimizer that uses a sampler of Optuna.

    Parameters
    ----------
    sampler : str or optuna.samplers.BaseSampler
        ``"tpe"`` (multivariate), ``"tpe-independent"`` (better when there are few trials for
        each of many that run at the same time), ``"random"``, ``"cmaes"``, ``"qmc"``,
        ``"nsgaii"``, ``"nsgaiii"``, ``"gp"``, ``"grid"``, ``"bruteforce"``; or a sampler of
        your own, of which a copy is used.
    seed : int, optional
        Makes the points reproducible.
    **options
        The sampler's own options, for example ``n_startup_trials=20``.

    Returns
    -------
    OptunaSpec

    Raises
    ------
    WorkflowError
        The name is unknown, or options are given with an object.

    Examples
    --------
    >>> from pandaflow import hpo
    >>> hpo.optuna("TPESampler", seed=7, n_startup_trials=20).name
    'tpe'
    """
    if isinstance(sampler, str):
        return OptunaSpec(parse_name(sampler), seed, options)
    title = type(sampler).__name__
    if not hasattr(sampler, "sample_relative"):
        raise WorkflowError(
            f"hpo.optuna() takes an Optuna sampler or a name ({', '.join(sorted(KINDS))}), "
            f"not {title}"
        )
    if options:
        raise WorkflowError(f"hpo.optuna({title}(...)): give the options to {title} itself")
    return OptunaSpec(title, seed, pickled=cloudpickle.dumps(sampler))


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


class OptunaOptimizer:
    """Proposes the points of an Optuna sampler; an :class:`pandaflow.hpo.port.Optimizer`.

    Parameters
    ----------
    space : Space or FunctionSpace
        What may vary.
    brief : Brief
        Directions, seed and pruner.
    sampler : optuna.samplers.BaseSampler
        Used by nobody else.
    name : str
        Of the sampler; state kept under another name is not for this one.
    renew : callable, optional
        Makes the sampler anew from a seed, for one whose generators are not found.
    """

    def __init__(
        self,
        space: AnySpace,
        brief: Brief,
        sampler: BaseSampler,
        *,
        name: str,
        renew: Any = None,
    ) -> None:
        self._space = space
        self._seed = brief.seed
        self._generators = generators(sampler)
        self._renew = renew
        self._distributions = Distributions(space)
        self._mirror = Mirror(brief, sampler, self._encode, f"{space.digest}/{name}")

    def ask(self, number: int) -> Asked:
        """Return the sampler's next point."""
        self._reseed(number)
        trial = self._mirror.ask(number, self._distributions.always)
        point = self._space.draw(TrialSuggester(trial, self._distributions), number)
        return Asked(point, self._mirror.memo(number))

    def adopt(self, number: int, point: Point) -> Memo:
        """Take in an outstanding trial whose point came from elsewhere."""
        self._mirror.open(number, point)
        return self._mirror.memo(number)

    def tell(self, told: Told) -> Memo:
        """Take in what came of a trial."""
        self._mirror.tell(told)
        return self._mirror.memo(told.number)

    def report(self, number: int, step: int, value: float) -> bool:
        """Take in an intermediate value; return what the pruner says."""
        return self._mirror.report(number, step, value)

    def restore(self, entries: Sequence[Entry], snapshot: bytes | None = None) -> str:
        """Come back to where the log ends; see :meth:`pandaflow.hpo.port.Optimizer.restore`."""
        del snapshot
        why = self._mirror.replay(entries)
        return why or (stateful_part(self._mirror.study.sampler) if entries else "")

    def snapshot(self) -> None:
        """Return None: the log is enough, and quick to read."""

    def _encode(self, point: Point, number: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return params_of(self._space, point, number, self._distributions)

    def _reseed(self, number: int) -> None:
        for part, generator in enumerate(self._generators):
            reseed(generator, seed_of(self._seed, number, part))
        if not self._generators and self._renew is not None:
            self._mirror.study.sampler = self._renew(seed_of(self._seed, number))
