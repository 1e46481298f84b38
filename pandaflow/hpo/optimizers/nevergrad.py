"""Nevergrad's optimizers by name: which are there, which are good, which cannot work here."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import Choice, Dimension
from pandaflow.hpo.optimizers.nevergrad_optimizer import NevergradOptimizer
from pandaflow.hpo.optimizers.nevergrad_space import (
    Layout,
    dimensions_of,
    installed,
    library,
    quiet,
    require_package,
    varies,
)
from pandaflow.hpo.port import (
    Brief,
    Told,
)
from pandaflow.hpo.space import AnySpace

#: Known to work with many outstanding trials, several objectives, and exactly on resume.
GOOD = (
    "CMA",
    "DE",
    "DiagonalCMA",
    "DiscreteOnePlusOne",
    "OnePlusOne",
    "PSO",
    "RandomSearch",
    "TBPSA",
    "TwoPointsDE",
)
_DEFAULT_CONTINUOUS = "CMA"
_DEFAULT_MIXED = "DiagonalCMA"
#: Metamodels, and the competence maps that may choose one. NumPy 2.4 made ``float(array)`` an
#: error, which they run into: https://github.com/facebookresearch/nevergrad/issues/1612.
_METAMODELS = re.compile(r"MetaModel|NGOpt|^N[gG]|^Carola[37]$|^CMandAS|^Wiz$|^Shiwa$|^CSEC")
_REHEARSAL_SECONDS = 60.0
_REHEARSAL = """
import pickle, sys
path, job = pickle.load(sys.stdin.buffer)
sys.path[:] = path
from pandaflow.hpo.optimizers.nevergrad import rehearse
rehearse(job)
"""


def default_name(dimensions: Mapping[str, Dimension]) -> str:
    """Return the optimizer used if none is named."""
    if Layout(dimensions).dimension == 1:
        return "OnePlusOne"  # CMA needs another package for a single number
    if any(isinstance(dimension, Choice) for dimension in dimensions.values()):
        return _DEFAULT_MIXED
    return _DEFAULT_CONTINUOUS


@dataclass(frozen=True, slots=True)
class NevergradSpec:
    """How to make a :class:`NevergradOptimizer`; made by :func:`nevergrad`."""

    name: str | None = None
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def isolated(self) -> bool:
        """True: some of Nevergrad's optimizers hang, or leave a thread behind."""
        return True

    def describe(self) -> dict[str, Any]:
        """Return kind, name, options and the versions of the libraries."""
        options = {name: repr(value) for name, value in sorted(self.options.items())}
        versions = installed()
        return {"kind": "nevergrad", "name": self.name, "options": options, "versions": versions}

    def check(self, space: AnySpace, brief: Brief) -> None:
        """Refuse what cannot work; names outside :data:`GOOD` are tried out in a process.

        Raises
        ------
        WorkflowError
        """
        require_package()
        dimensions = dimensions_of(space)
        if not any(varies(dimension) for dimension in dimensions.values()):
            raise WorkflowError("hpo.nevergrad: no parameter of the space varies")
        name = self.name or default_name(dimensions)
        alone = Layout(dimensions).dimension == 1
        if alone and "CMA" in name and importlib.util.find_spec("fcmaes") is None:
            raise WorkflowError(
                f"hpo.nevergrad({name!r}) needs two parameters that vary, and the space has one: "
                "use hpo.nevergrad('OnePlusOne')"
            )
        if name in GOOD and not self.options:
            return
        _refuse_metamodels(name)
        make_factory(name, self.options)
        _try_out(name, self, dimensions, brief)

    def build(self, space: AnySpace, brief: Brief) -> NevergradOptimizer:
        """Make a fresh optimizer."""
        require_package()
        dimensions = dimensions_of(space)
        factory = make_factory(self.name or default_name(dimensions), self.options)
        return NevergradOptimizer(factory, dimensions, brief)


def nevergrad(name: str | None = None, *, seed: int | None = None, **options: Any) -> NevergradSpec:
    """Return an optimizer of Nevergrad.

    Parameters
    ----------
    name : str, optional
        A name of its registry, or of ``nevergrad.families``. Default: ``"CMA"``, and
        ``"DiagonalCMA"`` where the space has a choice.
    seed : int, optional
        Makes the points repeatable.
    **options
        What the optimizer's family takes, for example ``crossover=`` of ``"TwoPointsDE"``.

    Examples
    --------
    >>> from pandaflow.hpo.optimizers.nevergrad import nevergrad
    >>> nevergrad("CMA", seed=7).name
    'CMA'
    """
    return NevergradSpec(name, seed, options)


def make_factory(name: str, options: Mapping[str, Any]) -> Any:
    """Return what makes the optimizer of a name.

    Raises
    ------
    WorkflowError
        Unknown name (the message has close ones), or options that it does not take.
    """
    families = library().families
    base = library("nevergrad.optimization.base")
    try:
        with quiet():
            if name in families.__all__:
                return getattr(families, name)(**options)
            if name not in base.registry:
                raise _unknown(name, [*base.registry, *families.__all__])
            found = base.registry[name]
            if not options:
                return found
            if isinstance(found, base.ConfiguredOptimizer):
                return type(found)(**{**found.config(), **options})
    except TypeError as error:
        raise WorkflowError(f"hpo.nevergrad({name!r}): {error}") from None
    raise WorkflowError(
        f"hpo.nevergrad({name!r}) takes no options; those of nevergrad.families do, for example "
        '"ParametrizedCMA"'
    )


def _unknown(name: str, known: Sequence[str]) -> WorkflowError:
    close = difflib.get_close_matches(name, known, 5, 0.5)
    close += [other for other in known if other.lower() == name.lower() and other not in close]
    near = f"did you mean {', '.join(close)}? " if close else ""
    return WorkflowError(f"Nevergrad has no optimizer {name!r}; {near}Good ones: {', '.join(GOOD)}")


def _refuse_metamodels(name: str) -> None:
    numpy_version = tuple(int(part) for part in importlib.metadata.version("numpy").split(".")[:2])
    if numpy_version >= (2, 4) and _METAMODELS.search(name):
        raise WorkflowError(
            f"hpo.nevergrad({name!r}) may use a metamodel, which fails with NumPy 2.4 and later "
            "(float(array) became an error; Nevergrad issue 1612). Take one of "
            f"{', '.join(GOOD)}, or NumPy below 2.4"
        )


def _try_out(
    name: str, spec: NevergradSpec, dimensions: Mapping[str, Dimension], brief: Brief
) -> None:
    """Let another process, which can be killed, run some trials."""
    job = cloudpickle.dumps((name, dict(spec.options), dict(dimensions), brief))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _REHEARSAL],
            input=pickle.dumps((sys.path, job)),
            capture_output=True,
            timeout=_REHEARSAL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        reason = f"a few trials take more than {_REHEARSAL_SECONDS:g} s"
    else:
        if done.returncode == 0:
            return
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"its process died ({done.returncode})"
    raise WorkflowError(
        f"hpo.nevergrad({name!r}) does not work here with {brief.outstanding} outstanding trials "
        f"and {len(brief.directions)} objective(s): {reason}. Good ones: {', '.join(GOOD)}"
    )


def rehearse(job: bytes) -> None:
    """Run some trials of a made-up objective, and end the process (threads may be left)."""
    name, options, dimensions, brief = pickle.loads(job)
    try:
        _run_some(NevergradOptimizer(make_factory(name, options), dimensions, brief), brief)
    except BaseException as error:  # noqa: BLE001  (whatever it is, the other process says it)
        os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os._exit(0)


def _run_some(optimizer: NevergradOptimizer, brief: Brief) -> None:
    rng = random.Random(0)
    waiting: list[int] = []
    for number in range(min(brief.budget or 1000, 3 * brief.outstanding + 30)):
        if len(waiting) >= brief.outstanding:
            told = waiting.pop(rng.randrange(len(waiting)))
            values = tuple(rng.random() for _ in brief.directions)
            optimizer.tell(Told(told, "complete", values))
        optimizer.ask(number)
        waiting.append(number)
