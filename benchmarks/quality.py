"""How good studies are: ``python -m benchmarks.quality [--write] [--quick]``.

Each optimizer searches functions whose minimum is known, through PandaFlow and through its own
library alone, over many seeds. ``--write`` puts the tables into ``docs/benchmarks-hpo.md``. Two
processes; about ten minutes on two idle cores, one minute with ``--quick``. Needs SciPy, and for
BBOB the package coco-experiment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from benchmarks.searches import Pruning, Search, Trials, carry_out, problem_of, prune
from benchmarks.table import machine
from pandaflow import places

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks-hpo.md"
LEVEL = 0.05
BANDED = ("Hartmann6", "S6 (mixed)")
#: Median regret: TPE has to stay below the first, random search above the second.
BANDS: Mapping[str, tuple[float, float]] = {"Hartmann6": (0.4, 1.0), "S6 (mixed)": (0.8, 1.6)}
CURVED = ("Branin", "Rosenbrock5", "Rastrigin5", "Ackley5", "Levy5")
FRONTS = ("ZDT1", "DTLZ2")
PRUNERS = (None, "median", "asha", "hyperband")
BOTH = ("pandaflow", "alone")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a search: what it left to gain, and a digest of its points in their order."""

    loss: float
    points: str


Results = Mapping[Search, Result]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure; numbers of seeds by optimizer.

    Attributes
    ----------
    banded, curved, fronts : mapping of str to int
        For :data:`BANDED`, :data:`CURVED` and :data:`FRONTS`.
    bbob : mapping of str to int
        Instances of each of the 24 functions, each with a seed of its own.
    crashes, threads, pruning : int
        Seeds for TPE killed three times, for TPE through ``study.optimize``, for pruners.
    dimension : int
        Of BBOB's functions.
    """

    banded: Mapping[str, int]
    curved: Mapping[str, int]
    fronts: Mapping[str, int]
    bbob: Mapping[str, int]
    crashes: int
    threads: int
    pruning: int
    dimension: int = 5


FULL = Plan(
    banded={
        "pandaflow/random": 20,
        "pandaflow/sobol": 20,
        "optuna/tpe": 20,
        "optuna/cmaes": 20,
        "optuna/tpe-independent": 5,
        "nevergrad/CMA": 5,
        "nevergrad/DiagonalCMA": 3,
    },
    curved={"optuna/tpe": 5, "optuna/cmaes": 8},
    fronts={"optuna/tpe": 5, "optuna/nsgaii": 10},
    bbob={"optuna/tpe": 10, "optuna/cmaes": 10, "nevergrad/CMA": 1},
    crashes=20,
    threads=3,
    pruning=5,
)
QUICK = Plan(
    banded={"pandaflow/random": 5, "optuna/tpe": 2, "optuna/cmaes": 2},
    curved={"optuna/cmaes": 2},
    fronts={"optuna/nsgaii": 3},
    bbob={"optuna/cmaes": 1},
    crashes=1,
    threads=0,
    pruning=1,
)


# --- what to do -------------------------------------------------------------------------


def searches(plan: Plan) -> list[Search]:
    """Return all searches of a plan."""
    found = [*_group(BANDED, plan.banded, 300, 32), *_group(CURVED, plan.curved, 150, 16)]
    found += _group(FRONTS, plan.fronts, 200, 16)
    tpe = list(_ways(BANDED, "optuna/tpe", max(plan.crashes, plan.threads), 300, 32))
    for way, n in (("crashed", plan.crashes), ("optimize", plan.threads)):
        found += [replace(s, way=way) for s in tpe if s.way == "pandaflow" and s.seed < n]
    for optimizer, n in plan.bbob.items() if importlib.util.find_spec("cocoex") else ():
        for seed in range(n):
            names = [f"bbob/{f}/{plan.dimension}/{seed + 1}" for f in range(1, 25)]
            found += [s for s in _ways(names, optimizer, seed + 1, 100, 16) if s.seed == seed]
    return list(dict.fromkeys(found))


def _group(names: Sequence[str], seeds: Mapping[str, int], n: int, width: int) -> list[Search]:
    return [s for optimizer, k in seeds.items() for s in _ways(names, optimizer, k, n, width)]


def _ways(
    names: Sequence[str], optimizer: str, seeds: int, trials: int, outstanding: int
) -> Iterator[Search]:
    """Yield searches through PandaFlow, and with the optimizer's own library where it has one."""
    ways = BOTH[:1] if optimizer.startswith("pandaflow/") else BOTH
    for seed in range(seeds):
        for name in names:
            for way in ways:
                yield Search(
                    problem=name,
                    optimizer=optimizer,
                    way=way,
                    seed=seed,
                    trials=trials,
                    outstanding=outstanding,
                )


def measured(search: Search, store: str) -> Result:
    """Carry a search out."""
    trials = carry_out(search, store)
    return Result(problem_of(search.problem).loss([values for _, values in trials]), digest(trials))


def digest(trials: Trials) -> str:
    """Return a few letters that stand for all points and values of a search in their order."""
    text = repr([(sorted(point.items()), values) for point, values in trials])
    return blake2b(text.encode(), digest_size=16).hexdigest()


def all_measured(
    plan: Plan, minutes: float = math.inf
) -> tuple[Results, dict[Pruning, tuple[float, float]]]:
    """Carry everything out in two processes, seed by seed; stop after so many minutes."""
    # Both ways of a search stand next to each other, so that an early end leaves whole pairs.
    todo = sorted(searches(plan), key=lambda search: search.seed)
    cuts = [Pruning(p, seed, 64, 8) for p in PRUNERS for seed in range(plan.pruning)]
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/quality.db"
        places.open_store(store).close()
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            pruned = dict(zip(cuts, pool.map(prune, cuts, [store] * len(cuts)), strict=True))
            futures = {search: pool.submit(measured, search, store) for search in todo}
            results = dict(_finished(futures, deadline))
            pool.shutdown(cancel_futures=True)
    return results, pruned


def _finished(
    futures: Mapping[Search, Future[Result]], deadline: float
) -> Iterator[tuple[Search, Result]]:
    """Yield results in their order until the deadline; say every 50 how far it is."""
    began = time.monotonic()
    for k, (search, future) in enumerate(futures.items(), start=1):
        try:
            yield search, future.result(timeout=max(0.0, min(1e6, deadline - time.monotonic())))
        except TimeoutError:
            return
        if not k % 50 or k == len(futures):
            print(f"{k}/{len(futures)} searches, {time.monotonic() - began:.0f} s", file=sys.stderr)


# --- statistics -------------------------------------------------------------------------


def losses(results: Results, problem: str, optimizer: str, way: str) -> list[float]:
    """Return the losses of a group of searches, by seed."""
    chosen = [s for s in results if (s.problem, s.optimizer, s.way) == (problem, optimizer, way)]
    return [results[s].loss for s in sorted(chosen, key=lambda s: s.seed)]


def worse(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the one-sided p-value (Mann-Whitney) of "ours are larger"."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(ours, theirs, alternative="greater").pvalue)


def worse_in_pairs(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the one-sided p-value (Wilcoxon, logarithms of ratios) of "ours are larger"."""
    from scipy.stats import wilcoxon

    ratios = log_ratios(ours, theirs)
    return float(wilcoxon(ratios, alternative="greater").pvalue) if any(ratios) else 1.0


def log_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return natural logarithms of ratios of losses; losses below 1e-8 count as that."""
    pairs = zip(ours, theirs, strict=True)
    return [math.log(max(a, 1e-8) / max(b, 1e-8)) for a, b in pairs]


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    out, largest = [1.0] * len(values), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[k]))
        out[k] = largest
    return out


def sign_test(ours: Sequence[float], theirs: Sequence[float]) -> tuple[int, int, float]:
    """Return pairs in which ours is larger, pairs that differ, and the one-sided p-value."""
    from scipy.stats import binomtest

    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    lost = sum(a > b for a, b in pairs)
    return lost, len(pairs), float(binomtest(lost, len(pairs), alternative="greater").pvalue)


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the geometric mean of the ratios of losses, and its 95 % interval (normal)."""
    logs = log_ratios(ours, theirs)
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - 1.96 * error), math.exp(mean + 1.96 * error)


# --- tables -----------------------------------------------------------------------------

Table = list[list[str]]


def band_table(results: Results) -> Table:
    """Median regret after 300 trials with 32 outstanding; each line an optimizer and a way."""
    rows = [["optimizer", "way", "seeds", *BANDED]]
    groups = dict.fromkeys((s.optimizer, s.way) for s in results if s.problem in BANDED)
    for optimizer, way in groups:
        found = [losses(results, problem, optimizer, way) for problem in BANDED]
        cells = [
            f"{statistics.median(part):.3f} ({_spread(part)})" if part else "" for part in found
        ]
        rows.append([optimizer, way, str(len(found[0])), *cells])
    return rows


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 4]:.2f} to {ordered[-1 - len(ordered) // 4]:.2f}"


def budget_table(results: Results) -> Table:
    """The bands, and whether they hold."""
    rows = [["statement", "limit", "measured", "holds"]]
    for problem, (below, above) in BANDS.items():
        for way in ("pandaflow", "crashed", "optimize", "alone"):
            found = losses(results, problem, "optuna/tpe", way)
            if not found:
                continue
            regret = statistics.median(found)
            text = f"{problem}: median regret of TPE, {way}, {len(found)} seeds"
            rows.append([text, f"< {below}", f"{regret:.3f}", _word(regret < below)])
        regret = statistics.median(losses(results, problem, "pandaflow/random", "pandaflow"))
        n = len(losses(results, problem, "pandaflow/random", "pandaflow"))
        text = f"{problem}: median regret of random search, {n} seeds"
        rows.append([text, f"> {above}", f"{regret:.3f}", _word(regret > above)])
    same, n = identical(results)
    text = "points of a study killed three times are those of the uninterrupted one"
    rows.append([text, "all", f"{same} of {n}", _word(same == n)])
    return rows


def identical(results: Results) -> tuple[int, int]:
    """Return how many killed studies have the points of the uninterrupted one, and of how many."""
    killed = {s: replace(s, way="pandaflow") for s in results if s.way == "crashed"}
    twins = [results[s].points == results[t].points for s, t in killed.items() if t in results]
    return sum(twins), len(twins)


def _word(holds: bool) -> str:
    return "yes" if holds else "NO"


def versus_table(results: Results) -> Table:
    """Ours against the library alone, on each function: median losses and p-values."""
    names = [*BANDED, *CURVED, *FRONTS]
    groups = dict.fromkeys((s.problem, s.optimizer) for s in results if s.way == "alone")
    found = [
        (p, o, losses(results, p, o, "pandaflow"), losses(results, p, o, "alone"))
        for p, o in groups
        if p in names
    ]
    found = [line for line in found if line[2] and line[3]]
    corrected = holm([worse(ours, theirs) for _, _, ours, theirs in found])
    rows = [["function", "optimizer", "seeds", "PandaFlow", "alone", "p (worse)", "p (Holm)", ""]]
    for (problem, optimizer, ours, theirs), p in zip(found, corrected, strict=True):
        medians = [f"{statistics.median(part):.3g}" for part in (ours, theirs)]
        values = [f"{worse(ours, theirs):.2f}", f"{p:.2f}"]
        rows.append([problem, optimizer, str(len(ours)), *medians, *values, verdict(p)])
    return rows


def verdict(p: float) -> str:
    """Say in words what a p-value means here."""
    return "WORSE" if p < LEVEL else "not worse"


def bbob_pairs(results: Results, optimizer: str) -> dict[int, tuple[list[float], list[float]]]:
    """Return the losses of both ways, by function of BBOB."""
    out: dict[int, tuple[list[float], list[float]]] = {}
    for search in results:
        twin = replace(search, way="pandaflow")
        if (search.optimizer, search.way) != (optimizer, "alone") or twin not in results:
            continue
        if search.problem.startswith("bbob/"):
            ours, theirs = out.setdefault(int(search.problem.split("/")[1]), ([], []))
            ours.append(results[twin].loss)
            theirs.append(results[search].loss)
    return out


def bbob_table(results: Results) -> Table:
    """All functions of BBOB at once, a line for each optimizer."""
    head = ["optimizer", "pairs", "ours is larger in", "p (sign test)", "ratio of regrets (95 %)"]
    rows = [[*head, "functions on which it is worse", ""]]
    for optimizer in dict.fromkeys(s.optimizer for s in results):
        pairs = bbob_pairs(results, optimizer)
        if not pairs:
            continue
        ours = [loss for a, _ in pairs.values() for loss in a]
        theirs = [loss for _, b in pairs.values() for loss in b]
        lost, n, p = sign_test(ours, theirs)
        mean, low, high = ratio_interval(ours, theirs)
        bad = worse_functions(pairs)
        cells = [str(n), f"{lost} ({lost / n:.0%})", f"{p:.2f}"]
        cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        verdicts = verdict(0.0 if bad else p)
        rows.append([optimizer, *cells, ", ".join(map(str, bad)) or "none", verdicts])
    return rows


def worse_functions(pairs: Mapping[int, tuple[list[float], list[float]]]) -> list[int]:
    """Return the functions on which ours is worse (Wilcoxon, Holm)."""
    corrected = holm([worse_in_pairs(*pair) for pair in pairs.values()])
    return [function for function, p in zip(pairs, corrected, strict=True) if p < LEVEL]


def function_table(results: Results) -> Table:
    """P-values (Holm) for each function of BBOB, those of optimizers with enough instances."""
    pairs = {o: bbob_pairs(results, o) for o in dict.fromkeys(s.optimizer for s in results)}
    known = {o: p for o, p in pairs.items() if p and len(next(iter(p.values()))[0]) >= 8}
    rows = [["function", *known]]
    corrected = {o: holm([worse_in_pairs(*pair) for pair in p.values()]) for o, p in known.items()}
    for k in range(24 if known else 0):
        rows.append([f"f{k + 1}", *(f"{values[k]:.2f}" for values in corrected.values())])
    return rows


def pruning_table(pruned: Mapping[Pruning, tuple[float, float]]) -> Table:
    """Steps made and quality kept, by pruner."""
    rows = [["pruner", "steps made", "median regret", "largest regret"]]
    for pruner in PRUNERS:
        found = [both for case, both in pruned.items() if case.pruner == pruner]
        shares, regrets = [share for share, _ in found], [regret for _, regret in found]
        cells = [f"{statistics.fmean(shares):.0%}", f"{statistics.median(regrets):.3f}"]
        rows.append([pruner or "none", *cells, f"{max(regrets):.3f}"])
    return rows


# --- page -------------------------------------------------------------------------------


def page(results: Results, pruned: Mapping[Pruning, tuple[float, float]], head: str) -> str:
    """Return the text of ``docs/benchmarks-hpo.md``."""
    names = ("optuna", "nevergrad", "numpy", "coco-experiment")
    found = [(name, _version(name)) for name in names]
    versions = ", ".join(f"{name} {version}" for name, version in found if version)
    per_function = function_table(results)
    sections: list[tuple[str, str, Table]] = [
        ("Bands", _BANDS_TEXT, budget_table(results)),
        ("All optimizers on the banded functions", _ALL_TEXT, band_table(results)),
        ("Against the libraries alone", _VERSUS_TEXT, versus_table(results)),
        ("BBOB", _BBOB_TEXT, bbob_table(results)),
        ("BBOB by function", _FUNCTION_TEXT, per_function if len(per_function) > 1 else []),
        ("Pruning", _PRUNING_TEXT, pruning_table(pruned)),
    ]
    parts = [f"## {title}\n\n{text}\n\n{_lined(t)}\n" for title, text, t in sections if len(t) > 1]
    return f"{_HEAD_TEXT}\nMachine: {head}. {versions}.\n\n" + "\n".join(parts)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _lined(table: Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


_HEAD_TEXT = """# How good studies are

Written by `python -m benchmarks.quality --write`. Regret is the best value found less the known
minimum. *pandaflow* is our driver with its log in SQLite; *crashed* is the same, its process
killed (SIGKILL) at three random points and started again; *optimize* is `study.optimize` on
threads; *alone* is the optimizer driven by its own library in memory. All have the same number of
trials outstanding, told in the same random order; both ways draw with seeds of their own.
"""
_BANDS_TEXT = """300 trials, 32 outstanding. S6 has four reals (one of them log), a whole number
(log) and a choice; its weights are ours, chosen so that random search has a median regret of about
2.8 (5 % of its studies are below 1.2). TPE's regrets on it come in three heaps, one for each
option of the choice it settles on (add 0, 0.8 or 1.6): medians of few seeds jump between them.
Hartmann6 has no weights to choose: over 100 other seeds random search has a median regret of 0.90
(standard deviation 0.31) after 300 trials, so the limit of 1.0 does not hold on average. It is
shown as it is."""
_ALL_TEXT = "Median regret, in brackets the quartiles."
_VERSUS_TEXT = """Median losses after 300 trials with 32 outstanding (Hartmann6, S6), 150 with 16
(Branin to Levy5, shifted so that the optimum is not in the middle) or 200 with 16 (ZDT1, DTLZ2,
where the loss is the missing share of the true front's hypervolume). p: one-sided Mann-Whitney
test of "PandaFlow is worse", then corrected for the number of lines by Holm's method; worse means
below 0.05. Nevergrad's parameters alone are `ng.p.Scalar`, `ng.p.Log` and `ng.p.Choice`; ours are
scaled to [0, 1] first."""
_BBOB_TEXT = """The 24 noiseless functions of COCO in 5 dimensions, several instances, 100
evaluations with 16 outstanding. A pair is a function, an instance and a seed. The sign test is of
"PandaFlow is larger in more than half of the pairs"; single functions by the Wilcoxon test of
ratios with Holm's correction. The ratio is a geometric mean, below 1 where ours is better."""
_FUNCTION_TEXT = 'p-values (Wilcoxon, one-sided, Holm) of "PandaFlow is worse".'
_PRUNING_TEXT = """64 random points of learning curves a + b / t of 27 steps, 8 at a time, 5 seeds.
The curves cross: what ends best begins worst, so that eager pruning costs quality. Regret is that
of the best trial that was not pruned."""


def main() -> int:
    """Measure, print, and with ``--write`` keep the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks-hpo.md")
    parser.add_argument("--quick", action="store_true", help="a few seeds, a minute")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these")
    options = parser.parse_args()
    # More threads than this do not help with so small matrices; set before NumPy is loaded.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    head, began = machine(), time.monotonic()
    results, pruned = all_measured(QUICK if options.quick else FULL, options.minutes)
    text = page(results, pruned, f"{head}, {time.monotonic() - began:.0f} s")
    print(text)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
