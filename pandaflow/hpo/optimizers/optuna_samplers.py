"""Optuna's samplers by name, and how their random numbers follow from the trial number."""

from __future__ import annotations

import importlib.util
import inspect
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import Choice, Float
from pandaflow.hpo.port import Brief
from pandaflow.hpo.space import AnySpace, Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

REMEDY = 'pip install "pandaflow[hpo]"'


@dataclass(frozen=True, slots=True)
class Kind:
    """A sampler of Optuna.

    Attributes
    ----------
    title : str
        Its class in ``optuna.samplers``.
    preset : mapping of str to value
        Options that differ from Optuna's own defaults.
    needs : str
        A package that Optuna does not bring along.
    remedy : str
        How to get it.
    """

    title: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    needs: str = "optuna"
    remedy: str = REMEDY


# The warnings that two of them write for every parameter they leave to chance say nothing that
# the documentation does not; they would fill the log of the study.
_QUIET = {"warn_independent_sampling": False}
KINDS: Mapping[str, Kind] = {
    "tpe": Kind("TPESampler"),
    "tpe-independent": Kind("TPESampler", {"multivariate": False, "constant_liar": True}),
    "random": Kind("RandomSampler"),
    "cmaes": Kind("CmaEsSampler", _QUIET, "cmaes"),
    "qmc": Kind("QMCSampler", {**_QUIET, "warn_asynchronous_seeding": False}, "scipy"),
    "nsgaii": Kind("NSGAIISampler"),
    "nsgaiii": Kind("NSGAIIISampler"),
    "gp": Kind("GPSampler", {}, "torch", "pip install torch"),
    "grid": Kind("GridSampler"),
    "bruteforce": Kind("BruteForceSampler"),
}
_ALSO = {"cma": "cmaes", "nsga2": "nsgaii", "nsga3": "nsgaiii", "sobol": "qmc"}


def parse_name(given: str) -> str:
    """Return the known name of a sampler: ``"TPE"``, ``"TPESampler"``, ``"nsga-ii"``.

    Raises
    ------
    WorkflowError
        It is unknown; lists the known ones.
    """
    plain = "".join(c for c in given.lower() if c.isalnum()).removesuffix("sampler")
    plain = _ALSO.get(plain, plain)
    for name in KINDS:
        if plain == name.replace("-", ""):
            return name
    raise WorkflowError(f"hpo.optuna({given!r}): known samplers are {', '.join(sorted(KINDS))}")


def need(package: str, remedy: str, what: str) -> None:
    """Raise a WorkflowError if a package is not there."""
    if importlib.util.find_spec(package) is None:
        raise WorkflowError(f"{what} needs the package {package}: {remedy}")


def make_sampler(name: str, options: Mapping[str, Any], space: AnySpace, seed: int) -> BaseSampler:
    """Return a new sampler.

    Raises
    ------
    WorkflowError
        A package is missing, an option is unknown or wrong.
    """
    import optuna

    kind = KINDS[name]
    need(kind.needs, kind.remedy, f"Optuna's sampler {name!r}")
    sampler_class = getattr(optuna.samplers, kind.title)
    accepted = set(inspect.signature(sampler_class).parameters) - {"seed", "constraints_func"}
    unknown = sorted(set(options) - accepted)
    if unknown:
        raise WorkflowError(
            f"hpo.optuna({name!r}) has no option {unknown[0]!r}; accepted are "
            f"{', '.join(sorted(accepted))}"
        )
    given = {**kind.preset, **options}
    if name == "grid":
        given.setdefault("search_space", _grid(space))
    try:
        return sampler_class(**given, seed=seed % 2**32)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise WorkflowError(f"hpo.optuna({name!r}): {error}") from error


def _grid(space: AnySpace) -> dict[str, list[Any]]:
    if not isinstance(space, Space):
        raise WorkflowError(
            'hpo.optuna("grid") cannot see the values of a function of a trial: give '
            'search_space={"x": [0.1, 0.2], ...}'
        )
    out: dict[str, list[Any]] = {}
    for name, dimension in space.varied.items():
        if isinstance(dimension, Float) and dimension.step is None:
            raise WorkflowError(
                f'hpo.optuna("grid"): parameter {name!r} has no step; give one, or '
                f"search_space={{{name!r}: [...], ...}}"
            )
        ordered = isinstance(dimension, Choice) and dimension.ordered
        values: list[Any] = list(dimension.grid(0))
        out[name] = list(range(len(values))) if ordered else values
    return out


def check_use(name: str, space: AnySpace, brief: Brief) -> None:
    """Refuse a sampler that cannot work on this study, with the remedy.

    Raises
    ------
    WorkflowError
    """
    if name == "cmaes" and len(brief.directions) > 1:
        raise WorkflowError('hpo.optuna("cmaes") has one objective; use "nsgaii" or "tpe"')
    if not isinstance(space, Space):
        return
    varied = space.varied
    if name == "cmaes" and varied and all(_unordered(d) for d in varied.values()):
        raise WorkflowError('hpo.optuna("cmaes") varies numbers only; use "tpe"')
    if name == "bruteforce":
        for parameter, given in varied.items():
            if isinstance(given, Float) and given.step is None:
                raise WorkflowError(
                    f'hpo.optuna("bruteforce"): parameter {parameter!r} has no step; give one'
                )


def _unordered(dimension: Any) -> bool:
    return isinstance(dimension, Choice) and not dimension.ordered


# --- random numbers ---------------------------------------------------------------------


def seed_of(seed: int, number: int, part: int = 0) -> int:
    """Return 32 bits that follow from the study's seed, the trial and the generator."""
    text = f"{seed}/{number}/{part}".encode()
    return int.from_bytes(blake2b(text, digest_size=4).digest(), "big")


def generators(sampler: BaseSampler) -> list[Any]:
    """Return all random number generators within a sampler, in an order that is always the same.

    Samplers hide them in private attributes, their own or those of samplers and strategies
    within; Optuna has no public way to seed a sampler that exists.
    """
    import numpy

    kinds = (numpy.random.RandomState, numpy.random.Generator, random.Random)
    return [found for found in _within(sampler) if isinstance(found, kinds)]


def reseed(generator: Any, seed: int) -> None:
    """Bring a generator to the state that belongs to a seed."""
    import numpy

    if isinstance(generator, numpy.random.Generator):
        bits = type(generator.bit_generator)
        generator.bit_generator.state = bits(seed).state
    else:
        generator.seed(seed)


def stateful_part(sampler: BaseSampler) -> str:
    """Return why a sampler cannot be rebuilt from trials and attributes alone; "" if it can."""
    import optuna

    for part in _within(sampler):
        if not isinstance(part, optuna.samplers.BaseSampler):
            continue
        name = type(part).__name__
        if not type(part).__module__.startswith("optuna.samplers"):
            return f"sampler {name} may keep a state of its own"
        if name == "GPSampler":
            return "GPSampler starts its fits from the fits before"
        if getattr(part, "_group", False):
            return "TPE with group=True goes through its groups in the order they came up"
    return ""


def _within(sampler: BaseSampler) -> Iterator[Any]:
    """Walk a sampler, its parts of Optuna's, containers, and generators; each object once."""
    import numpy

    leaves = (numpy.random.RandomState, numpy.random.Generator, random.Random)
    seen: set[int] = set()
    waiting: list[Any] = [sampler]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, str | bytes | int | float | type(None) | type):
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, leaves):
            continue
        waiting.extend(_parts(item))


def _parts(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple):
        # Long ones are data: grids, trials.
        return list(item) if len(item) <= 32 else []
    module = type(item).__module__
    if module.endswith("_lazy_random_state"):
        return [item.rng]
    import optuna

    if module.startswith("optuna.samplers") or isinstance(item, optuna.samplers.BaseSampler):
        return list(vars(item).values()) if hasattr(item, "__dict__") else []
    return []


def quicken() -> bool:
    """Let SciPy compute what Optuna's TPE computes number by number; tell whether it does.

    The logarithm of the normal distribution takes 40 % of an ask: Optuna, which does not depend
    on SciPy, calls a Python function for each number of an array. SciPy gives the same to 1e-12
    (checked here) for the whole array, and an ask takes two thirds of the time. It is done in the
    optimizer's own process only; with an Optuna that is made differently nothing happens.
    """
    try:
        import numpy as np
        from optuna.samplers._tpe import _truncnorm as there
        from scipy.special import log_ndtr
    except ImportError:
        return False
    theirs, grid = getattr(there, "_log_ndtr", None), np.linspace(-30.0, 8.0, 77)
    if theirs is None or not np.allclose(theirs(grid), log_ndtr(grid), rtol=1e-12, atol=1e-12):
        return False
    vars(there)["_log_ndtr"] = log_ndtr
    return True
