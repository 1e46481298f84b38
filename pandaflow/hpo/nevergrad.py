"""Nevergrad's optimizers behind the seam of :mod:`pandaflow.hpo.port`.

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
import difflib
import importlib
import importlib.metadata
import importlib.util
import math
import os
import pickle
import random
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from pandaflow.core.errors import WorkflowError
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
from pandaflow.hpo.space import (
    AnySpace,
    Choice,
    Dimension,
    Fixed,
    Float,
    FunctionSpace,
    Int,
    Point,
    Scalar,
    Space,
)

#: A snapshot is worth it when replaying would take longer than both of these: seconds of CPU, and
#: this many times what the last snapshot took (so that snapshots cost at most 5 % of the asks).
_REPLAY_SECONDS = 2.0
_REPLAY_PER_SNAPSHOT = 20.0
#: Above this, Nevergrad replaces losses (with a warning); so do we, on both sides.
_LARGEST_LOSS = 5e20


def _library(module: str = "nevergrad") -> Any:
    """Import a module of Nevergrad, which takes two seconds the first time, without its warnings.

    Raises
    ------
    WorkflowError
        It is not installed.
    """
    _require_package()
    with _quiet():
        return importlib.import_module(module)


def _require_package() -> None:
    if importlib.util.find_spec("nevergrad") is None:
        raise WorkflowError('hpo.nevergrad needs Nevergrad: pip install "pandaflow[hpo]"')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Switch off warnings: those of Nevergrad and its libraries are about their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _versions() -> dict[str, str]:
    names = ("nevergrad", "numpy", "cma")
    found = (name for name in names if importlib.util.find_spec(name) is not None)
    return {name: importlib.metadata.version(name) for name in found}


# --- points and candidates --------------------------------------------------------------


def parametrize(dimensions: Mapping[str, Dimension]) -> Any:
    """Return Nevergrad's parametrization of some parameters: an ``ng.p.Dict``.

    Reals (and whole numbers with a logarithm) are searched in ``[0, 1]``, rasters by their index,
    choices by the index of the option; :func:`decode` maps back, so that ends are never crossed by
    a rounding error.
    """
    return _parameter_dict(dimensions, {})


def _parameter_dict(dimensions: Mapping[str, Dimension], content: dict[str, Any]) -> Any:
    for name, dimension in dimensions.items():
        if _varies(dimension):
            content[name] = _parameter(dimension)
    return _library().p.Dict(**content)


def _varies(dimension: Dimension) -> bool:
    if isinstance(dimension, Fixed):
        return False
    if isinstance(dimension, Choice):
        return len(dimension.labels) > 1 or _has_parameters(dimension, 0)
    return dimension.low != dimension.high and _steps(dimension) != 1


def _has_parameters(dimension: Choice, number: int) -> bool:
    """Return whether an option has parameters of its own that vary."""
    branch = dimension.branches.get(dimension.labels[number], {})
    return any(_varies(inner) for inner in branch.values())


def _parameter(dimension: Any) -> Any:
    """Return the parameter of a dimension that varies."""
    if isinstance(dimension, Choice):
        return _choice_parameter(dimension)
    steps = _steps(dimension)
    scalar = _library().p.Scalar
    if steps is None:
        return scalar(lower=0.0, upper=1.0)
    return scalar(lower=-0.5, upper=steps - 0.5).set_integer_casting()


def _choice_parameter(dimension: Choice) -> Any:
    options = [_option(dimension, number) for number in range(len(dimension.labels))]
    if len(options) == 1:
        return options[0]
    kinds = _library().p
    return kinds.TransitionChoice(options) if dimension.ordered else kinds.Choice(options)


def _option(dimension: Choice, number: int) -> Any:
    """Return the option's number, or a Dict of it (under the empty name) and its parameters."""
    if not _has_parameters(dimension, number):
        return number
    return _parameter_dict(dimension.branches[dimension.labels[number]], {"": number})


def _steps(dimension: Float | Int) -> int | None:
    """Return how many values a raster has; None where values are searched continuously."""
    if dimension.log or dimension.step is None:
        return None
    if isinstance(dimension, Int):
        return (dimension.high - dimension.low) // dimension.step + 1
    return math.floor((dimension.high - dimension.low) / dimension.step + 1e-9) + 1


def decode(dimensions: Mapping[str, Dimension], value: Mapping[str, Any]) -> Point:
    """Return the point of a candidate's value."""
    point: Point = {}
    _decode(dimensions, value, point)
    return point


def _decode(dimensions: Mapping[str, Dimension], value: Mapping[str, Any], point: Point) -> None:
    for name, dimension in dimensions.items():
        if isinstance(dimension, Choice):
            inner = value.get(name, 0)
            number = int(inner[""] if isinstance(inner, Mapping) else inner)
            point[name] = label = dimension.labels[number]
            inside = inner if isinstance(inner, Mapping) else {}
            _decode(dimension.branches.get(label, {}), inside, point)
        elif not isinstance(dimension, Fixed):
            point[name] = _number(dimension, value.get(name, 0))


def _number(dimension: Float | Int, value: Any) -> float | int:
    steps = _steps(dimension)
    if steps is None:
        return dimension.at(min(1.0, max(0.0, float(value))))
    number = min(steps - 1, max(0, int(value)))
    if isinstance(dimension, Int):
        return dimension.low + dimension.step * number
    return dimension.at((number + 0.5) / steps)


def encode(dimensions: Mapping[str, Dimension], point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the candidate's value of a point; inverse of :func:`decode`."""
    value: dict[str, Any] = {}
    for name, dimension in dimensions.items():
        if isinstance(dimension, Fixed) or not _varies(dimension):
            continue
        if isinstance(dimension, Choice):
            value[name] = _encode_choice(dimension, point[name], point)
        else:
            value[name] = _encode_number(dimension, point[name])
    return value


def _encode_choice(dimension: Choice, label: Scalar, point: Mapping[str, Any]) -> Any:
    number = dimension.labels.index(dimension.parse(label))
    if not _has_parameters(dimension, number):
        return number
    return {"": number, **encode(dimension.branches[label], point)}


def _encode_number(dimension: Float | Int, value: float) -> float | int:
    steps = _steps(dimension)
    if steps is not None:
        return min(steps - 1, max(0, round((value - dimension.low) / (dimension.step or 1))))
    low, high = float(dimension.low), float(dimension.high)
    if dimension.log:
        # Whole numbers reach half a step beyond their ends, as in Int.at.
        half = 0.5 if isinstance(dimension, Int) else 0.0
        low, high, value = math.log(low - half), math.log(high + half), math.log(value)
    return min(1.0, max(0.0, (value - low) / (high - low)))


# --- the optimizer ----------------------------------------------------------------------


@dataclass(slots=True)
class _State:
    """All that the next point follows from; pickled as one, for its parts share objects."""

    optimizer: Any
    global_rng: Any
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
        self._dimensions = dimensions
        self._signs = [1.0 if way == "minimize" else -1.0 for way in brief.directions]
        self._replay_cost = 0.0
        self._snapshot_cost = 0.0
        self._state = _begin(factory, dimensions, brief)

    def ask(self, number: int) -> Asked:
        """Return the point of trial ``number``, which counts as outstanding from now on."""
        self._refuse_known(number)
        with self._own_surroundings():
            candidate = self._state.optimizer.ask()
        self._state.outstanding[number] = candidate
        return Asked(decode(self._dimensions, candidate.value))

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
            return pickle.dumps((_versions(), cloudpickle.dumps(self._state)))
        except (TypeError, AttributeError, pickle.PicklingError):
            return None
        finally:
            self._snapshot_cost = time.thread_time() - start
            self._replay_cost = 0.0

    def _load(self, snapshot: bytes) -> str:
        versions, state = pickle.loads(snapshot)
        _library()  # or unpickling would import it, with its warnings
        self._state = pickle.loads(state)
        if versions == _versions():
            return ""
        return f"the snapshot was written with other versions: {versions}, now {_versions()}"

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
            return parametrization.spawn_child(new_value=encode(self._dimensions, point or {}))

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
        unwanted = _library().errors.TellNotAskedNotSupportedError
        loss: Any = losses[0] if len(losses) == 1 else losses
        with self._own_surroundings(), contextlib.suppress(unwanted):
            # Suppressed: what some optimizers cannot learn from, others' points, is passed over.
            self._state.optimizer.tell(candidate, loss, violations if any(violations) else None)

    @contextlib.contextmanager
    def _own_surroundings(self) -> Iterator[None]:
        """Give Nevergrad a global random state of its own, and count the CPU time."""
        import numpy as np

        start = time.thread_time()
        before = np.random.get_state()
        np.random.set_state(self._state.global_rng)
        try:
            with _quiet():
                yield
        finally:
            self._state.global_rng = np.random.get_state()
            np.random.set_state(before)
            self._replay_cost += time.thread_time() - start


def _begin(factory: Any, dimensions: Mapping[str, Dimension], brief: Brief) -> _State:
    import numpy as np

    before = np.random.get_state()
    words = [brief.seed & 0xFFFFFFFF, brief.seed >> 32]
    np.random.seed([*words, 1])
    try:
        with _quiet():
            parametrization = parametrize(dimensions)
            parametrization.random_state = np.random.RandomState(words)
            optimizer = factory(parametrization, budget=brief.budget, num_workers=brief.outstanding)
            if len(brief.directions) > 1:
                optimizer.num_objectives = len(brief.directions)
        return _State(optimizer, np.random.get_state())
    finally:
        np.random.set_state(before)


def _differs(number: int, reason: str) -> str:
    known = reason or f"versions now: {_versions()}"
    return f"asked again for trial {number}, Nevergrad gave another point ({known})"


# --- spaces and names -------------------------------------------------------------------


class _Tracer:
    """Notes every parameter that a space function asks for; draws at random, or all alike."""

    def __init__(self, rng: random.Random, unit: float | None) -> None:
        self._rng, self._unit = rng, unit
        self.seen: dict[str, Float | Int | Choice] = {}

    def suggest(self, name: str, dimension: Float | Int | Choice) -> Scalar:
        """Draw a value."""
        self.seen[name] = dimension
        return dimension.at(self._rng.random() if self._unit is None else self._unit)


def dimensions_of(space: AnySpace) -> Mapping[str, Dimension]:
    """Return the parameters of a space; a space function is called 64 times to find them.

    Raises
    ------
    WorkflowError
        The function does not suggest the same parameters in the same ranges every time.
    """
    if isinstance(space, Space):
        return space.top
    rng = random.Random(0)
    units = [0.0, 0.5, 1 - 2**-53, *[None] * 61]
    first = _traced(space, rng, None)
    for unit in units:
        other = _traced(space, rng, unit)
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                raise _conditional(name)
    return first


def _traced(
    space: FunctionSpace, rng: random.Random, unit: float | None
) -> dict[str, Float | Int | Choice]:
    tracer = _Tracer(rng, unit)
    space.draw(tracer)
    return tracer.seen


def _conditional(name: str) -> WorkflowError:
    return WorkflowError(
        f"hpo.nevergrad: the space function suggests {name!r} only sometimes, or in changing "
        "ranges; Nevergrad must know all parameters beforehand. Declare such a space, for example "
        'hpo.Space(kind=hpo.choice({"bdt": {"depth": hpo.int(2, 12)}, "nn": {}})), or use '
        "hpo.optuna"
    )


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
from pandaflow.hpo.nevergrad import rehearse
rehearse(job)
"""


def default_name(dimensions: Mapping[str, Dimension]) -> str:
    """Return the optimizer used if none is named."""
    if any(isinstance(dimension, Choice) for dimension in dimensions.values()):
        return _DEFAULT_MIXED
    varied = [dimension for dimension in dimensions.values() if _varies(dimension)]
    # CMA needs another package for a single parameter.
    return _DEFAULT_CONTINUOUS if len(varied) > 1 else "OnePlusOne"


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
        versions = _versions()
        return {"kind": "nevergrad", "name": self.name, "options": options, "versions": versions}

    def check(self, space: AnySpace, brief: Brief) -> None:
        """Refuse what cannot work; names outside :data:`GOOD` are tried out in a process.

        Raises
        ------
        WorkflowError
        """
        _require_package()
        dimensions = dimensions_of(space)
        if not any(_varies(dimension) for dimension in dimensions.values()):
            raise WorkflowError("hpo.nevergrad: no parameter of the space varies")
        name = self.name or default_name(dimensions)
        alone = sum(map(_varies, dimensions.values())) == 1
        if name in GOOD and not self.options and not (alone and "CMA" in name):
            return
        _refuse_metamodels(name)
        make_factory(name, self.options)
        _try_out(name, self, dimensions, brief)

    def build(self, space: AnySpace, brief: Brief) -> NevergradOptimizer:
        """Make a fresh optimizer."""
        _require_package()
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
    >>> from pandaflow.hpo.nevergrad import nevergrad
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
    families = _library().families
    base = _library("nevergrad.optimization.base")
    try:
        with _quiet():
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
