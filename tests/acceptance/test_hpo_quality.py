"""Optimizers find through PandaFlow what they find alone: ``benchmarks.quality`` with few seeds."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("optuna")
pytest.importorskip("scipy")

from benchmarks import problems, quality, searches
from benchmarks.searches import Pruning, Search, carry_out
from pandaflow import places
from pandaflow.hpo.optimizers import optuna_samplers


def search(problem: str, optimizer: str, **given: Any) -> Search:
    plain = {"way": "pandaflow", "seed": 1, "trials": 60, "outstanding": 8}
    return Search(problem=problem, optimizer=optimizer, **{**plain, **given})


def loss(one: Search, store: str) -> float:
    return quality.measured(one, store).loss


# --- the measuring itself ---------------------------------------------------------------


def test_minima_are_where_the_literature_has_them() -> None:
    shifted = {f"x{k}": by for k, by in enumerate(problems.SHIFT)}
    ones = {name: value + 1 for name, value in shifted.items()}
    minima = {
        "Branin": {"x0": math.pi, "x1": 2.275},
        "Rosenbrock5": ones,
        "Rastrigin5": shifted,
        "Ackley5": shifted,
        "Levy5": ones,
        "S6 (mixed)": {"a": 0.0, "b": 0.0, "lr": 1e-3, "d": 0.0, "n": 16, "c": "x"},
        "Hartmann6": dict(
            zip(
                [f"x{k}" for k in range(6)],
                (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573),
                strict=True,
            )
        ),
    }
    known = problems.singles()
    assert known.keys() == minima.keys()
    for name, point in minima.items():
        problem = known[name]
        assert problem.space.parse(point) == point  # inside the ranges
        assert problem.loss([problem.evaluate(point)]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["ZDT1", "DTLZ2"])
def test_the_true_front_has_all_the_hypervolume(name: str) -> None:
    problem = problems.fronts()[name]
    rest = {"ZDT1": 0.0, "DTLZ2": 0.5}[name]
    tail = {f"x{k}": rest for k in range(1, 6)}
    values = [problem.evaluate({"x0": k / 2000, **tail}) for k in range(2001)]
    assert problem.loss(values) == pytest.approx(0.0, abs=1e-3)
    assert problem.loss(values[:1]) > 0.1


def test_hypervolume_counts_no_area_twice_and_none_beyond_the_corner() -> None:
    assert problems.hypervolume([(1, 2), (2, 1), (2, 2), (5, 0), (1, 2)], (3, 3)) == 3.0


def test_holm_multiplies_by_the_hypotheses_that_are_left() -> None:
    assert quality.holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])


def test_a_worse_optimizer_is_called_worse() -> None:
    ours = [0.5 + 0.01 * k for k in range(10)]
    theirs = [0.1 + 0.01 * k for k in range(10)]
    assert quality.worse(ours, theirs) < 0.001 < 0.9 < quality.worse(theirs, ours)
    assert quality.worse_in_pairs(ours, theirs) < 0.002
    assert quality.sign_test(ours, theirs)[:2] == (10, 10)
    assert quality.worse_functions({1: (ours, theirs), 2: (theirs, ours)}) == [1]
    low, high = quality.ratio_interval(ours, theirs)[1:]
    assert 1 < low < high


# --- as good as alone -------------------------------------------------------------------


class _Reseeded:
    """A sampler of Optuna's own whose generators are seeded before each ask as ours are."""

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler, self.seed, self.number = sampler, seed, 0
        self.generators = optuna_samplers.generators(sampler)

    def next(self) -> None:
        for part, generator in enumerate(self.generators):
            seed = optuna_samplers.seed_of(self.seed, self.number, part)
            optuna_samplers.reseed(generator, seed)
        self.number += 1


@pytest.mark.parametrize("optimizer", ["optuna/tpe", "optuna/tpe-independent", "optuna/cmaes"])
@pytest.mark.parametrize("problem", ["S6 (mixed)", "Hartmann6"])
def test_only_the_random_numbers_differ_from_optuna_alone(
    problem: str, optimizer: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna alone, its generators seeded as ours, gives our points to the last bit."""
    import optuna

    ours = search(problem, optimizer, trials=50, outstanding=12)
    alone = replace(ours, way="alone")
    seed = searches.seed_of(ours)
    sampler = searches._plain_sampler(optimizer.partition("/")[2], 0)
    reseeded = _Reseeded(sampler, seed)
    ask = optuna.study.Study.ask

    def reseed_and_ask(study: Any, *given: Any) -> Any:
        reseeded.next()
        return ask(study, *given)

    found = carry_out(ours, store)
    monkeypatch.setattr(searches, "_plain_sampler", lambda name, seed: sampler)
    monkeypatch.setattr(optuna.study.Study, "ask", reseed_and_ask)
    assert carry_out(alone, store) == found


def test_where_the_optimizer_is_asked_makes_no_difference(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = search("S6 (mixed)", "optuna/tpe", trials=40)
    _quicken(monkeypatch)
    here = carry_out(one, store)
    monkeypatch.setattr(searches, "InThisProcess", lambda spec: spec)
    monkeypatch.setattr(searches, "drive", _patient_drive)
    elsewhere = f"{store.removesuffix('.db')}-2.db"
    assert carry_out(one, elsewhere) == here


def _quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SciPy compute for TPE, as in the optimizer's own process, until the test ends."""
    from optuna.samplers._tpe import _truncnorm

    monkeypatch.setattr(_truncnorm, "_log_ndtr", _truncnorm._log_ndtr)
    assert optuna_samplers.quicken()


def _patient_drive(one: Search, driver: Any, until: int | None = None) -> None:
    """As ``searches.drive``, but the optimizer answers from another process."""
    problem = searches.problem_of(one.problem)
    commands = driver.begin()
    running: list[int] = []
    while True:
        while driver.engine.requests:
            commands += driver.pump(timeout=1.0)
        running += [c.number for c in commands if isinstance(c, searches.Dispatch)]
        if not running:
            return
        number = running.pop(searches.next_to_end(one, driver.book.told, len(running)))
        values = problem.evaluate(driver.plan.space.arguments(driver.book.trials[number].point))
        commands = driver.work(driver.engine.outcome(number, {"s": "complete", "v": list(values)}))


@pytest.mark.parametrize("optimizer", ["optuna/tpe", "optuna/cmaes", "pandaflow/sobol"])
def test_three_kills_change_no_point(optimizer: str, store: str) -> None:
    one = search("S6 (mixed)", optimizer)
    assert carry_out(replace(one, way="crashed"), store) == carry_out(one, store)
    assert len(set(searches.crashes(one))) == 3


@pytest.mark.parametrize("problem", ["Hartmann6", "S6 (mixed)"])
def test_cma_beats_random_search(problem: str, store: str) -> None:
    """CMA-ES stands for the samplers here because it is the quickest of them."""
    given = {"trials": 300, "outstanding": 32}
    cma = [loss(search(problem, "optuna/cmaes", seed=s, **given), store) for s in range(3)]
    chance = [loss(search(problem, "pandaflow/random", seed=s, **given), store) for s in range(3)]
    assert statistics.median(cma) < 0.7 * statistics.median(chance)


def test_tpe_finds_the_valley_of_hartmann(store: str) -> None:
    given = {"trials": 150, "outstanding": 16}
    found = [loss(search("Hartmann6", "optuna/tpe", seed=s, **given), store) for s in range(3)]
    assert statistics.median(found) < 0.7


def test_optimize_on_threads_searches_as_well(store: str) -> None:
    one = search("Branin", "optuna/tpe", way="optimize", trials=60)
    assert loss(one, store) < 2.0


def test_pruning_saves_steps_and_keeps_a_whole_trial(store: str) -> None:
    share, regret = searches.prune(Pruning("asha", 1, 24, 4), store)
    whole, least = searches.prune(Pruning(None, 1, 24, 4), store)
    assert whole == 1.0 and share < 0.6
    assert least <= regret < math.inf


def test_fronts_are_approached(store: str) -> None:
    given = {"trials": 150, "outstanding": 16}
    found = loss(search("DTLZ2", "optuna/nsgaii", **given), store)
    assert found < loss(search("DTLZ2", "pandaflow/random", **given), store)


def test_an_early_end_leaves_a_page_of_what_is_done(store: str) -> None:
    places.open_store(store).close()
    one = search("S6 (mixed)", "optuna/cmaes", trials=20)
    both = [one, replace(one, way="alone")]
    few = {s: quality.measured(s, store) for s in both}
    table = quality.versus_table(few)
    assert len(table) == 2 and table[1][:3] == ["S6 (mixed)", "optuna/cmaes", "1"]
    assert quality.versus_table({one: few[one]})[1:] == []
