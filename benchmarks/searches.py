"""Searches for ``benchmarks.quality``: the same optimizer through PandaFlow and alone.

Through PandaFlow means its whole driver: log in SQLite, engine, optimizer. Alone means its own
library, used as its documentation shows. Both have the same number of trials outstanding, and
these end in the same random order.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

import pandaflow as pf
from benchmarks import problems
from benchmarks.problems import Problem
from pandaflow import hpo, places
from pandaflow.hpo.dimensions import Choice, Int
from pandaflow.hpo.driver import StudyDriver, StudyPlan
from pandaflow.hpo.engine import Command, Dispatch, Terms
from pandaflow.hpo.port import Brief, Optimizer
from pandaflow.hpo.space import AnySpace

#: A search as it went: by trial number the point and the values.
Trials = list[tuple[dict[str, Any], tuple[float, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search: which optimizer, how driven, on which problem.

    Attributes
    ----------
    problem : str
        A name of :mod:`benchmarks.problems`, or ``"bbob/function/dimension/instance"``.
    optimizer : str
        Library and name: ``"optuna/tpe"``, ``"nevergrad/CMA"``, ``"pandaflow/sobol"``.
    way : {'pandaflow', 'crashed', 'optimize', 'alone'}
        Through our driver; the same, killed three times; by ``study.optimize`` on threads; or
        with the library alone.
    seed, trials, outstanding : int
    """

    problem: str
    optimizer: str
    way: str
    seed: int
    trials: int
    outstanding: int


def problem_of(name: str) -> Problem:
    """Return a problem by the name that a :class:`Search` gives it."""
    if name.startswith("bbob/"):
        function, dimension, instance = map(int, name.split("/")[1:])
        return problems.bbob(function, dimension, instance)
    return {**problems.singles(), **problems.fronts()}[name]


def seed_of(search: Search) -> int:
    """Return the seed of a search; both ways of it have seeds of their own."""
    text = f"{search.way == 'alone'}/{search.problem}/{search.optimizer}/{search.seed}"
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def next_to_end(search: Search, told: int, running: int) -> int:
    """Return which of the running trials ends next; the same for all ways of a search."""
    text = f"{search.problem}/{search.seed}/{told}"
    return random.Random(text).randrange(running)


# --- through PandaFlow ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InThisProcess:
    """An optimizer that is asked in this process: thousands of short studies start quickly.

    Its points are those of a process of its own, but for rounding: there, SciPy computes TPE's
    normal distributions, which differ by 1e-12 from Optuna's. The tests compare.
    """

    spec: Any
    isolated: bool = field(default=False, init=False)

    @property
    def seed(self) -> int | None:
        """The seed that the user gave."""
        seed: int | None = self.spec.seed
        return seed

    def describe(self) -> dict[str, Any]:
        """Return what the optimizer is."""
        described: dict[str, Any] = self.spec.describe()
        return described

    def check(self, space: AnySpace, brief: Brief) -> None:
        """Refuse what cannot work."""
        self.spec.check(space, brief)

    def build(self, space: AnySpace, brief: Brief) -> Optimizer:
        """Make the optimizer."""
        optimizer: Optimizer = self.spec.build(space, brief)
        return optimizer


def optimizer_of(name: str, seed: int) -> Any:
    """Return PandaFlow's optimizer of a name such as ``"optuna/tpe"``."""
    library, _, which = name.partition("/")
    if library == "optuna":
        return hpo.optuna(which, seed=seed)
    if library == "nevergrad":
        return hpo.nevergrad(which, seed=seed)
    designs: dict[str, Callable[..., Any]] = {"random": hpo.random, "sobol": hpo.sobol}
    return designs[which](seed=seed)


def open_study(search: Search, store: str) -> StudyDriver:
    """Create the study of a search, or go on with it."""
    problem = problem_of(search.problem)
    plan = StudyPlan(
        name=repr(search),
        directions=problem.directions,
        space=problem.space,
        optimizer=InThisProcess(optimizer_of(search.optimizer, seed_of(search))),
        terms=Terms(n_trials=search.trials, outstanding=search.outstanding),
    )
    return StudyDriver(places.open_store(store), plan, os.path.dirname(store))


def drive(search: Search, driver: StudyDriver, until: int | None = None) -> None:
    """Play the executor of a study until so many trials have ended."""
    problem = problem_of(search.problem)
    running = [c.number for c in [*driver.begin(), *driver.pump()] if isinstance(c, Dispatch)]
    while running and driver.book.told != until:
        number = running.pop(next_to_end(search, driver.book.told, len(running)))
        values = problem.evaluate(driver.plan.space.arguments(driver.book.trials[number].point))
        outcome = {"s": "complete", "v": list(values)}
        commands: list[Command] = driver.work(driver.engine.outcome(number, outcome))
        commands += driver.pump()
        running += [c.number for c in commands if isinstance(c, Dispatch)]


def through_pandaflow(search: Search, store: str) -> Trials:
    """Search with our driver."""
    driver = open_study(search, store)
    try:
        drive(search, driver)
        return [(trial.point, trial.values) for trial in driver.book.trials]
    finally:
        driver.close()


def crashes(search: Search) -> list[int]:
    """Return after how many ended trials the study's process is killed."""
    rng = random.Random(f"crash/{search.problem}/{search.seed}")
    return sorted(rng.sample(range(1, search.trials), 3))


def through_crashes(search: Search, store: str) -> Trials:
    """Search with our driver, whose process is killed three times."""
    # Not a plain fork: this process may have threads, whose locks a copy would keep for ever.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["optuna", "pandaflow.hpo.driver", "benchmarks.searches"])
    for told in crashes(search):
        child = context.Process(target=_drive_and_die, args=(search, store, told))
        child.start()
        child.join()
        if child.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the driver of {search} was to be killed, but: {child.exitcode}")
    return through_pandaflow(search, store)


def _drive_and_die(search: Search, store: str, told: int) -> None:
    """Search until the process is killed; nothing is closed or given back."""
    drive(search, open_study(search, store), told)
    os.kill(os.getpid(), signal.SIGKILL)


# --- libraries alone --------------------------------------------------------------------


def through_optuna(search: Search) -> Trials:
    """Ask and tell Optuna in memory, as its documentation shows."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = problem_of(search.problem)
    plain = optuna.create_study(
        directions=["minimize" for _ in problem.directions],
        sampler=_plain_sampler(search.optimizer.partition("/")[2], seed_of(search)),
    )

    def ask() -> tuple[Any, dict[str, Any]]:
        trial = plain.ask()
        return trial, _suggested(trial, problem)

    return _loop(search, problem, ask, lambda trial, values: plain.tell(trial, list(values)))


def _plain_sampler(name: str, seed: int) -> Any:
    """Return Optuna's own sampler, with the settings that are ours."""
    from optuna import samplers

    makers: dict[str, Callable[..., Any]] = {
        "tpe": samplers.TPESampler,
        "tpe-independent": partial(samplers.TPESampler, multivariate=False, constant_liar=True),
        "cmaes": partial(samplers.CmaEsSampler, warn_independent_sampling=False),
        "nsgaii": samplers.NSGAIISampler,
        "random": samplers.RandomSampler,
    }
    return makers[name](seed=seed)


def _suggested(trial: Any, problem: Problem) -> dict[str, Any]:
    """Return a point in Optuna's own words."""
    point: dict[str, Any] = {}
    for name, given in problem.space.varied.items():
        if isinstance(given, Choice):
            point[name] = trial.suggest_categorical(name, given.labels)
        elif isinstance(given, Int):
            point[name] = trial.suggest_int(name, given.low, given.high, log=given.log)
        else:
            point[name] = trial.suggest_float(name, given.low, given.high, log=given.log)
    return point


def through_nevergrad(search: Search) -> Trials:
    """Ask and tell Nevergrad, as its documentation shows."""
    import nevergrad as ng
    import numpy

    problem = problem_of(search.problem)
    numpy.random.seed(seed_of(search))
    parametrization = ng.p.Dict(
        **{name: _parameter(ng, given) for name, given in problem.space.varied.items()}
    )
    parametrization.random_state = numpy.random.RandomState(seed_of(search))
    plain = ng.optimizers.registry[search.optimizer.partition("/")[2]](
        parametrization, budget=search.trials, num_workers=search.outstanding
    )

    def ask() -> tuple[Any, dict[str, Any]]:
        candidate = plain.ask()
        return candidate, candidate.value

    return _loop(search, problem, ask, lambda candidate, values: plain.tell(candidate, values[0]))


def _parameter(ng: Any, given: Any) -> Any:
    """Return a parameter in Nevergrad's own words."""
    if isinstance(given, Choice):
        return ng.p.Choice(list(given.labels))
    kind = ng.p.Log if given.log else ng.p.Scalar
    made = kind(lower=given.low, upper=given.high)
    return made.set_integer_casting() if isinstance(given, Int) else made


def _loop(
    search: Search,
    problem: Problem,
    ask: Callable[[], tuple[Any, dict[str, Any]]],
    tell: Callable[[Any, tuple[float, ...]], Any],
) -> Trials:
    """Ask for a trial after each that ended, as our engine does."""
    asked = [ask() for _ in range(min(search.outstanding, search.trials))]
    points = [point for _, point in asked]
    running = list(enumerate(handle for handle, _ in asked))
    values: dict[int, tuple[float, ...]] = {}
    while running:
        number, handle = running.pop(next_to_end(search, len(values), len(running)))
        values[number] = problem.evaluate(points[number])
        tell(handle, values[number])
        if len(points) < search.trials:
            handle, point = ask()
            running.append((len(points), handle))
            points.append(point)
    return [(point, values[number]) for number, point in enumerate(points)]


# --- all ways ---------------------------------------------------------------------------


def through_optimize(search: Search, store: str) -> Trials:
    """Search with ``study.optimize`` on threads, the optimizer in a process of its own.

    Raises
    ------
    RuntimeError
        The optimizer failed and points became random: the result would say nothing about it.
    """
    problem = problem_of(search.problem)

    def objective(**point: Any) -> tuple[float, ...]:
        return problem.evaluate(point)

    study = hpo.Study(
        repr(search),
        directions=problem.directions,
        optimizer=optimizer_of(search.optimizer, seed_of(search)),
        store=store,
    )
    executor = pf.executors.Local(workers=search.outstanding, processes=False)
    try:
        study.optimize(
            objective,
            problem.space,
            n_trials=search.trials,
            parallel=search.outstanding,
            ahead=0,
            executor=executor,
            progress=False,
        )
        if study.notes:
            raise RuntimeError(f"{search}: {study.notes}")
        return [(trial.point, trial.values) for trial in study.trials]
    finally:
        executor.close()
        study.close()


def carry_out(search: Search, store: str) -> Trials:
    """Search in the way that the search says."""
    if search.way == "alone":
        optuna = search.optimizer.startswith("optuna/")
        return through_optuna(search) if optuna else through_nevergrad(search)
    ways = {
        "pandaflow": through_pandaflow,
        "crashed": through_crashes,
        "optimize": through_optimize,
    }
    return ways[search.way](search, store)


# --- pruning ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pruning:
    """A search among learning curves that a pruner may cut short.

    Attributes
    ----------
    pruner : str or None
    seed, trials, outstanding : int
    """

    pruner: str | None
    seed: int
    trials: int
    outstanding: int


def prune(case: Pruning, store: str) -> tuple[float, float]:
    """Return the share of all steps that were made, and the regret of the best whole trial.

    Points are random: what differs is the pruner alone. ``outstanding`` trials make their steps
    in a random order; one that ends is followed by the next.
    """
    study = hpo.Study(
        repr(case),
        space=problems.CURVES,
        optimizer=hpo.random(seed=case.seed),
        pruner=case.pruner,
        store=store,
    )
    rng, made, best = random.Random(case.seed), 0, float("inf")
    with study:
        running = [(trial, 0) for trial in study.ask_many(case.outstanding)]
        asked = len(running)
        while running:
            trial, step = running.pop(rng.randrange(len(running)))
            loss, step, made = problems.curve(trial.params, step + 1), step + 1, made + 1
            ended = step == problems.STEPS
            if ended:
                study.tell(trial, loss)
                best = min(best, loss)
            else:
                trial.report(loss, step)
                if ended := trial.should_prune():
                    study.tell(trial, state="pruned")
            if not ended:
                running.append((trial, step))
            elif asked < case.trials:
                running.append((study.ask(), 0))
                asked += 1
    return made / (case.trials * problems.STEPS), best - problems.CURVES_BEST
