"""Z -> mu mu over ROOT files: select pairs, fill histograms, merge, fit the peak, plot it.

    pandaflow run examples/zmumu.py:zmumu --sample 'data/*.root'

It reads the muon pairs of the CMS open data sample "Zmumu" (tree ``events``, branches ``E1 px1
py1 pz1 pt1 eta1 phi1 Q1`` and the same with 2), and what ``toy.py`` writes. Needs
``pip install 'pandaflow[hep]'``.
"""

from __future__ import annotations

import functools
import math
import operator
import os
from pathlib import Path

import numpy as np

import pandaflow as pf

#: GeV: the window of the histogram and of the fit.
WINDOW = (60.0, 120.0)
PT_CUT = 20.0
ETA_CUT = 2.4

#: Points in ln m on which the model is worked out; the range is wider than the window, because
#: the resolution moves pairs into it.
GRID = np.arange(math.log(40.0), math.log(180.0), 0.0005)


# --- tasks ------------------------------------------------------------------------------


@pf.task(files_per_job=1, memory="2 GiB", retries=2)
def select(files):
    """Return the invariant masses of the good pairs in ``files``, and how many each cut left."""
    import awkward as ak
    import uproot

    masses, cutflow = [], {}
    for file in files:
        with uproot.open(os.fspath(file)) as source:
            pairs = source["events"].arrays(library="ak")
        for cut, passed in cuts(pairs):
            pairs = pairs[passed(pairs)] if callable(passed) else pairs[passed]
            cutflow[cut] = cutflow.get(cut, 0) + len(pairs)
        masses.append(ak.to_numpy(invariant_mass(pairs)))
    return {"mass": np.concatenate(masses), "cutflow": cutflow}


@pf.task
def fill(pairs, bins):
    """Histogram the masses of one chunk."""
    import hist

    histogram = hist.Hist.new.Reg(bins, *WINDOW, name="mass", label="m [GeV]").Int64()
    histogram.fill(pairs["mass"])
    return {"histogram": histogram, "cutflow": pairs["cutflow"]}


@pf.task(n_jobs=1)
def merge(histograms):
    """Add up the histograms and the cut flows of all chunks."""
    cutflow = {}
    for chunk in histograms:
        for cut, pairs in chunk["cutflow"].items():
            cutflow[cut] = cutflow.get(cut, 0) + pairs
    total = functools.reduce(operator.add, [chunk["histogram"] for chunk in histograms])
    return {"histogram": total, "cutflow": cutflow}


@pf.task
def fit(merged):
    """Fit the peak; see :func:`fit_peak`."""
    histogram = merged["histogram"]
    result = fit_peak(histogram.values(), histogram.axes[0].edges)
    return {**result, "cutflow": merged["cutflow"]}


@pf.task
def plot(merged, result, path):
    """Draw data, fit and pulls into a PNG file."""
    histogram = merged["histogram"]
    figure = draw(histogram.values(), histogram.axes[0].edges, result)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return pf.File(path, size=Path(path).stat().st_size)


@pf.workflow
def zmumu(sample="data/*.root", bins: int = 60, out: str = "demo-output"):
    """Measure the Z in muon pairs.

    ``sample`` is a glob, a list of files or a dataset; the plot goes to ``out``/zmumu.png.
    """
    if isinstance(sample, str | os.PathLike | list | tuple):
        sample = pf.files(sample)
    merged = merge(fill(select(sample), bins=bins))
    result = fit(merged)
    # workers have working directories of their own
    picture = plot(merged, result, path=str(Path(out, "zmumu.png").resolve()))
    return {"fit": result, "plot": picture}


# --- selection --------------------------------------------------------------------------


def cuts():
    """Return the cuts in order: a name, and a function from pairs to which of them pass."""
    return {
        "read": lambda pairs: np.ones(len(pairs), dtype=bool),
        "one pair per event": one_per_event,
        "opposite charge": lambda pairs: pairs.Q1 * pairs.Q2 < 0,
        "pt > 20 GeV": lambda pairs: (pairs.pt1 > PT_CUT) & (pairs.pt2 > PT_CUT),
        "|eta| < 2.4": lambda pairs: (abs(pairs.eta1) < ETA_CUT) & (abs(pairs.eta2) < ETA_CUT),
    }
