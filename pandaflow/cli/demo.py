"""The built-in demonstration: a Z peak from simulated muon pairs, with the standard library."""

from __future__ import annotations

import random
from collections import Counter
from statistics import fmean

from pandaflow.authoring.sources import items
from pandaflow.authoring.tasks import task
from pandaflow.workflows import workflow

#: Mass and width of the Z boson, GeV (Particle Data Group, Review of Particle Physics 2024).
MASS, WIDTH = 91.188, 2.4955
#: Invariant masses that the histogram covers, GeV.
LOW, HIGH = 80, 102


@task(name="generate")
def generate(seed: int, events: int = 2000) -> list[float]:
    """Return simulated dimuon masses: a Breit-Wigner peak smeared by the detector.

    Returns
    -------
    list of float
        ``events`` masses, GeV.
    """
    source = random.Random(seed)
    pairs = ((source.gauss(0, 1), source.gauss(0, 1)) for _ in range(events))
    return [MASS + WIDTH / 2 * a / b + source.gauss(0, 1.2) for a, b in pairs if b]


@task(name="fill")
def fill(masses: list[float]) -> dict[int, int]:
    """Return counts in bins of 1 GeV."""
    return Counter(int(mass) for mass in masses if LOW <= mass < HIGH)


@task(n_jobs=1, name="merge")
def merge(histograms: list[dict[int, int]]) -> dict[int, int]:
    """Add histograms."""
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(histogram)
    return dict(sorted(total.items()))


@workflow
def demo(samples: int = 24, events: int = 2000):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Simulate muon pairs in samples, fill a histogram of each, and merge them."""
    return merge(fill(generate(items(range(samples)), events=events)))


def draw(histogram: dict[int, int], width: int = 60) -> str:
    """Return a histogram as text, with the mean mass below.

    Parameters
    ----------
    histogram : dict of int to int
        Counts in bins of 1 GeV.
    width : int
        Characters of the highest bar.
    """
    top = max(histogram.values(), default=1)
    bars = [f"{low:4d} GeV {'#' * round(width * n / top)} {n}" for low, n in histogram.items()]
    masses = [low + 0.5 for low, n in histogram.items() for _ in range(n)]
    mean = f"{fmean(masses):.2f} GeV" if masses else "-"
    return "\n".join([*bars, "", f"mean {mean} of {len(masses)} pairs (the Z boson: {MASS} GeV)"])
