"""Draw the pictures of the documentation with the library itself.

Run ``python docs/make_pictures.py``. It runs a small workflow on two worker processes, in a
temporary folder, and writes ``graph.svg`` and ``timeline.svg`` into ``docs/pictures``.
"""

# Names of `pf` are imported when first used, and its decorators return what they like.
# mypy: disable-error-code="attr-defined, untyped-decorator"

from __future__ import annotations

import random
import sys
import tempfile
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pandaflow as pf

PICTURES = Path(__file__).with_name("pictures")

#: Mass and width of the Z boson, GeV (Particle Data Group, Review of Particle Physics 2024).
MASS, WIDTH = 91.188, 2.4955


@pf.task(items_per_job=2)
def simulate(seeds: list[int], events: int) -> array[float]:
    """Return masses of muon pairs in GeV, from a Breit-Wigner peak."""
    masses = array("d")
    for seed in seeds:
        dice = random.Random(seed)
        for _ in range(events):
            a, b = dice.gauss(0, 1), dice.gauss(0, 1)
            masses.append(MASS + WIDTH / 2 * a / b)
    return masses


@pf.task
def select(masses: array[float]) -> array[float]:
    """Keep the masses near the peak."""
    return array("d", (mass for mass in masses if 60 <= mass < 120))


@pf.task
def fill(masses: array[float]) -> Counter[int]:
    """Count masses in bins of 1 GeV."""
    return Counter(int(mass) for mass in masses)


@pf.task(n_jobs=1)
def merge(histograms: list[Counter[int]]) -> Counter[int]:
    """Add histograms."""
    return sum(histograms, Counter())


@pf.task
def mean(histogram: Counter[int]) -> float:
    """Return the mean mass in GeV."""
    total = sum((low + 0.5) * n for low, n in histogram.items())
    return total / sum(histogram.values())


@pf.task
def width(histogram: Counter[int]) -> int:
    """Return the full width at half maximum in bins of 1 GeV."""
    half = max(histogram.values()) / 2
    return sum(1 for n in histogram.values() if n >= half)


@pf.workflow
def peak(samples: int, events: int) -> tuple[Any, Any]:
    """Simulate, select and fill in chunks; merge; measure."""
    histogram = merge(fill(select(simulate(pf.items(range(samples)), events=events))))
    return mean(histogram), width(histogram)


def draw(folder: Path, samples: int = 24, events: int = 100_000) -> list[Path]:
    """Run the workflow and draw it.

    Parameters
    ----------
    folder : Path
        Where ``graph.svg`` and ``timeline.svg`` go.
    samples : int
        Items; two make a job.
    events : int
        Muon pairs per item.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    pandaflow.RunFailed
        A job failed, so there is nothing to show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    executor = pf.executors.Local(workers=2)
    workflow = peak(samples, events)
    try:
        with tempfile.TemporaryDirectory(prefix="pandaflow-pictures-") as scratch:
            store = f"sqlite:///{scratch}/pictures.db"
            run = workflow.run(executor=executor, store=store, progress=False)
            run.result()
            timeline = run.timeline()
    finally:
        executor.close()
    return [workflow.svg().save(folder / "graph.svg"), timeline.save(folder / "timeline.svg")]


if __name__ == "__main__":
    for path in draw(PICTURES):
        sys.stdout.write(f"wrote {path}\n")
