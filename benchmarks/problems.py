"""Functions whose optimum is known: what an optimizer is worth, and not only what it costs.

Sources: Hartmann, Branin, Rosenbrock, Rastrigin, Ackley and Levy as in Surjanovic and Bingham's
Virtual Library of Simulation Experiments; ZDT1 of Zitzler, Deb and Thiele (2000); DTLZ2 of Deb,
Thiele, Laumanns and Zitzler (2002); BBOB of the COCO platform (Hansen et al., 2021). Those with
their optimum at nought or in the middle are shifted, since some optimizers start there.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pandaflow import hpo

#: How far the optimum of a shifted function is from where its textbook has it.
SHIFT = (1.3, -0.7, 2.1, -1.9, 0.6)
#: Steps of a learning curve.
STEPS = 27


@dataclass(frozen=True, slots=True)
class Problem:
    """A function to be minimized.

    Attributes
    ----------
    name : str
    space : Space
    evaluate : callable
        Takes a point (parameter names to values), returns one number for each objective.
    best : float
        The minimum; with several objectives the hypervolume of the true front.
    corner : tuple of float
        With several objectives: the reference point of the hypervolume.
    """

    name: str
    space: hpo.Space
    evaluate: Callable[[Mapping[str, Any]], tuple[float, ...]]
    best: float
    corner: tuple[float, ...] = ()

    @property
    def directions(self) -> tuple[str, ...]:
        """``minimize`` for each objective."""
        return ("minimize",) * max(1, len(self.corner))

    def loss(self, values: Sequence[tuple[float, ...]]) -> float:
        """Return what a search has left to gain: regret, or the missing share of hypervolume."""
        if self.corner:
            return 1.0 - hypervolume(values, self.corner) / self.best
        return min(value for (value,) in values) - self.best


# --- one objective ----------------------------------------------------------------------

_ALPHA = (1.0, 1.2, 3.0, 3.2)
_A = (
    (10, 3, 17, 3.5, 1.7, 8),
    (0.05, 10, 17, 0.1, 8, 14),
    (3, 3.5, 1.7, 10, 17, 8),
    (17, 8, 0.05, 10, 0.1, 14),
)
_P = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)


def hartmann6(x: Sequence[float]) -> float:
    """Hartmann's function of six variables in [0, 1]; six local minima."""
    total = 0.0
    for alpha, scales, centre in zip(_ALPHA, _A, _P, strict=True):
        inner = sum(a * (v - p) ** 2 for a, v, p in zip(scales, x, centre, strict=True))
        total -= alpha * math.exp(-inner)
    return total


def branin(x: Sequence[float]) -> float:
    """Branin's function of [-5, 10] x [0, 15]; three equal minima."""
    b, c = 5.1 / (4 * math.pi**2), 5 / math.pi
    valley = x[1] - b * x[0] ** 2 + c * x[0] - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x[0]) + 10


def rosenbrock(x: Sequence[float]) -> float:
    """A curved narrow valley; minimum 0 where all are 1."""
    return sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(x))


def rastrigin(x: Sequence[float]) -> float:
    """A regular grid of local minima; minimum 0 at 0."""
    return sum(v * v - 10 * math.cos(2 * math.pi * v) + 10 for v in x)


def ackley(x: Sequence[float]) -> float:
    """A hole in a plain of many small ones; minimum 0 at 0."""
    size = math.sqrt(sum(v * v for v in x) / len(x))
    waves = sum(math.cos(2 * math.pi * v) for v in x) / len(x)
    return 20 + math.e - 20 * math.exp(-0.2 * size) - math.exp(waves)


def levy(x: Sequence[float]) -> float:
    """Waves on a slope; minimum 0 where all are 1."""
    w = [1 + (v - 1) / 4 for v in x]
    total = math.sin(math.pi * w[0]) ** 2
    total += sum((v - 1) ** 2 * (1 + 10 * math.sin(math.pi * v + 1) ** 2) for v in w[:-1])
    return total + (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)


def mixed(point: Mapping[str, Any]) -> tuple[float]:
    """S6: four reals (one log), a whole number (log) and a choice; minimum 0.

    The minimum is at a = b = d = 0, lr = 1e-3, n = 16, c = "x"; nowhere the middle of a range.
    The weights give random search a median regret of 2.8 with 300 points (5 % of the studies are
    below 1.2), so that its median over 20 seeds is above 1.6 for all practical purposes.
    """
    far = {"x": 0.0, "y": 0.8, "z": 1.6}[point["c"]]
    bowl = 0.4 * (point["a"] ** 2 + point["b"] ** 2) + 3 * point["d"] ** 2
    rate = 1.6 * math.log10(point["lr"] / 1e-3) ** 2
    return (bowl + rate + 0.8 * math.log2(point["n"] / 16) ** 2 + far,)


def _reals(name: str, function: Any, ranges: Any, best: float, shift: Any = None) -> Problem:
    """Return a problem of the variables x0, x1, ...; ``shift`` moves its optimum."""
    names = [f"x{k}" for k in range(len(ranges))]
    space = hpo.Space(**{n: hpo.float(*ends) for n, ends in zip(names, ranges, strict=True)})
    moved = shift or (0.0,) * len(ranges)

    def evaluate(point: Mapping[str, Any]) -> tuple[float]:
        x = [point[n] - by for n, by in zip(names, moved, strict=True)]
        return (float(function(x)),)

    return Problem(name, space, evaluate, best)


_S6 = {
    "a": hpo.float(-4, 6),
    "b": hpo.float(-7, 3),
    "lr": hpo.log(1e-5, 1),
    "d": hpo.float(-1, 2),
    "n": hpo.int(1, 512, log=True),
    "c": ["x", "y", "z"],
}
_WIDE = [(-5, 5)] * 5


def singles() -> dict[str, Problem]:
    """Return the problems of one objective, by name."""
    found = [
        _reals("Hartmann6", hartmann6, [(0, 1)] * 6, -3.32236801141551),
        Problem("S6 (mixed)", hpo.Space(**_S6), mixed, 0.0),
        _reals("Branin", branin, [(-5, 10), (0, 15)], 0.39788735772973816),
        _reals("Rosenbrock5", rosenbrock, _WIDE, 0.0, SHIFT),
        _reals("Rastrigin5", rastrigin, _WIDE, 0.0, SHIFT),
        _reals("Ackley5", ackley, _WIDE, 0.0, SHIFT),
        _reals("Levy5", levy, _WIDE, 0.0, SHIFT),
    ]
    return {problem.name: problem for problem in found}


def bbob(function: int, dimension: int, instance: int) -> Problem:
    """Return a problem of the suite BBOB (needs the package coco-experiment)."""
    problem, best = _coco(function, dimension, instance)
    ends = [(-5, 5)] * dimension
    return _reals(f"BBOB f{function}", problem, ends, best)


@cache
def _suite() -> Any:
    import cocoex  # type: ignore[import-untyped]

    return cocoex.Suite("bbob", "instances: 1-15", "dimensions: 2,5,10")


@cache
def _coco(function: int, dimension: int, instance: int) -> tuple[Any, float]:
    """Return a function and its minimum, of which COCO tells the place in a file only."""
    import numpy

    problem = _suite().get_problem_by_function_dimension_instance(function, dimension, instance)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        problem._best_parameter("print")
        place = numpy.loadtxt("._bbob_problem_best_parameter.txt")
    return problem, float(problem(place))


# --- several objectives -----------------------------------------------------------------


def zdt1(x: Sequence[float]) -> tuple[float, float]:
    """Two objectives in [0, 1]^n; true front f2 = 1 - sqrt(f1)."""
    g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
    return x[0], g * (1 - math.sqrt(x[0] / g))


def dtlz2(x: Sequence[float]) -> tuple[float, float]:
    """Two objectives in [0, 1]^n; true front: a quarter of the unit circle."""
    g = sum((v - 0.5) ** 2 for v in x[1:])
    angle = x[0] * math.pi / 2
    return (1 + g) * math.cos(angle), (1 + g) * math.sin(angle)


def fronts() -> dict[str, Problem]:
    """Return the problems of two objectives, by name."""
    # What the corner (u, v) spans less the area below the front: 1/3, and a quarter circle.
    return {
        "ZDT1": _pair("ZDT1", zdt1, 6, (1.1, 4.0), 1.1 * 4.0 - 1 / 3),
        "DTLZ2": _pair("DTLZ2", dtlz2, 6, (1.5, 1.5), 1.5 * 1.5 - math.pi / 4),
    }


def _pair(name: str, function: Any, n: int, corner: tuple[float, float], best: float) -> Problem:
    names = [f"x{k}" for k in range(n)]

    def evaluate(point: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(float(v) for v in function([point[name] for name in names]))

    space = hpo.Space(**{name: hpo.float(0, 1) for name in names})
    return Problem(name, space, evaluate, best, corner)


def hypervolume(values: Sequence[tuple[float, ...]], corner: Sequence[float]) -> float:
    """Return the area that points dominate of all that is below a corner (two objectives)."""
    area, lowest = 0.0, corner[1]
    for first, second in sorted(values):
        if first < corner[0] and second < lowest:
            area += (corner[0] - first) * (lowest - second)
            lowest = second
    return area


# --- learning curves --------------------------------------------------------------------

#: What the curves have to tune: the goal is at q = 0.3, and slow learners end lower.
CURVES = hpo.Space(q=hpo.float(0, 1), speed=hpo.float(0, 1))


def curve(point: Mapping[str, Any], step: int) -> float:
    """Return the loss a + b / t after step t (from 1); curves cross.

    A fast learner (speed 1) begins at a low loss and ends 0.3 higher than a slow one; the best
    (q = 0.3, speed 0) looks worst in the beginning. An eager pruner throws it away.
    """
    slow: float = 1 - point["speed"]
    end: float = 4 * (point["q"] - 0.3) ** 2 + 0.3 * point["speed"]
    return end + 2 * slow / step


#: The lowest loss after all steps: at q = 0.3 with speed 0.
CURVES_BEST = 2 / STEPS
