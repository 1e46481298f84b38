"""Z -> mu mu over ROOT files: select pairs, fill histograms, merge, fit the peak, plot it.

    pandaflow run examples/zmumu.py:zmumu --sample 'data/*.root'

It reads the muon pairs of the CMS open data sample "Zmumu" (tree ``events``, branches ``E1 px1
py1 pz1 pt1 eta1 phi1 Q1`` and the same with 2), and what ``toy.py`` writes. Needs
``pip install 'pandaflow[hep]'``.
"""

from __future__ import annotations

import functools
import operator
import os
from collections import Counter
from pathlib import Path

import numpy as np

import pandaflow as pf

#: GeV: the window of the histogram and of the fit.
WINDOW = (60.0, 120.0)
PT_CUT = 20.0
ETA_CUT = 2.4

#: Points in ln(m / GeV) at which the model is worked out. Wider than the window, because the
#: resolution moves pairs into it.
GRID = np.arange(np.log(40.0), np.log(180.0), 0.0005)
PARAMETERS = ("m_Z", "width", "sigma", "n_signal", "n_background", "slope")


# --- tasks --------------------------------------------------------------------------------


@pf.task(files_per_job=1, memory="2 GiB", retries=2)
def select(files):
    """Return the masses of the good pairs in ``files`` [GeV], and how many each cut left."""
    import awkward as ak
    import uproot

    masses, cutflow = [], Counter()
    for file in files:
        with uproot.open(os.fspath(file)) as source:
            pairs = source["events"].arrays(library="ak")
        cutflow["read"] += len(pairs)
        for name, passes in CUTS.items():
            pairs = pairs[passes(pairs)]
            cutflow[name] += len(pairs)
        masses.append(ak.to_numpy(invariant_mass(pairs)))
    return {"masses": np.concatenate(masses), "cutflow": dict(cutflow)}


@pf.task
def fill(pairs, bins):
    """Histogram the masses of one chunk."""
    import hist

    histogram = hist.Hist.new.Reg(bins, *WINDOW, name="mass", label="m [GeV]").Int64()
    histogram.fill(pairs["masses"])
    return {"histogram": histogram, "cutflow": pairs["cutflow"]}


@pf.task(n_jobs=1)
def merge(histograms):
    """Add up the histograms and the cut flows of all chunks."""
    cutflow = functools.reduce(operator.add, (Counter(part["cutflow"]) for part in histograms))
    total = functools.reduce(operator.add, (part["histogram"] for part in histograms))
    return {"histogram": total, "cutflow": dict(cutflow)}


@pf.task
def fit(merged):
    """Fit the peak: see ``fit_peak``; the cut flow is passed on."""
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
    """Measure the Z peak in muon pairs.

    ``sample`` is a glob, a list of files or a dataset; the plot goes to ``OUT/zmumu.png``.
    """
    if isinstance(sample, str | os.PathLike | list | tuple):
        sample = pf.files(sample)
    merged = merge(fill(select(sample), bins=bins))
    result = fit(merged)
    # a worker's working directory is not the one in which the user wrote ``out``
    path = str(Path(out, "zmumu.png").resolve())
    return {"fit": result, "plot": plot(merged, result, path=path)}


# --- selection ----------------------------------------------------------------------------


def opposite_charge(pairs):
    """Keep what a neutral particle can decay to."""
    return pairs.Q1 * pairs.Q2 < 0


def hard(pairs):
    """Keep pairs of two muons above the threshold of the trigger."""
    return (pairs.pt1 > PT_CUT) & (pairs.pt2 > PT_CUT)


def central(pairs):
    """Keep pairs of two muons inside the muon chambers."""
    return (abs(pairs.eta1) < ETA_CUT) & (abs(pairs.eta2) < ETA_CUT)


def one_per_event(pairs):
    """Keep one pair of each event.

    The CMS sample lists each event four times, once for each way of measuring its two muons
    (global "G", tracker "T"); counting all would make the errors half of what they are.
    """
    import awkward as ak

    event = ak.to_numpy(pairs.Run).astype(np.int64) << 32 | ak.to_numpy(pairs.Event)
    order = np.arange(len(event))
    if "Type" in pairs.fields:  # global-global pairs first: they are measured best
        order = np.argsort(ak.to_numpy(pairs.Type != "GG"), kind="stable")
    kept = np.zeros(len(event), dtype=bool)
    kept[order[np.unique(event[order], return_index=True)[1]]] = True
    return kept


CUTS = {
    "opposite charge": opposite_charge,
    f"pt > {PT_CUT:g} GeV": hard,
    f"|eta| < {ETA_CUT:g}": central,
    "one pair per event": one_per_event,
}


def invariant_mass(pairs):
    """Mass of the sum of the two four-vectors, GeV."""
    energy = pairs.E1 + pairs.E2
    momentum2 = sum((pairs[f"{p}1"] + pairs[f"{p}2"]) ** 2 for p in ("px", "py", "pz"))
    return np.sqrt(np.maximum(energy**2 - momentum2, 0.0))


# --- fit ----------------------------------------------------------------------------------


def peak_shape(edges, m_z, width, sigma):
    """Share of the window's signal in each bin.

    A relativistic Breit-Wigner in s = m^2, 1 / ((s - m_Z^2)^2 + m_Z^2 width^2), folded with a
    Gaussian of ``sigma`` [GeV at m_Z]. A relative momentum resolution is a shift of ln m, so
    both are worked out in ln m, where folding is a convolution.
    """
    from scipy.signal import fftconvolve

    s = np.exp(2 * GRID)
    breit_wigner = s / ((s - m_z**2) ** 2 + (m_z * width) ** 2)
    step = GRID[1] - GRID[0]
    reach = np.arange(-0.12, 0.12 + step / 2, step)
    gauss = np.exp(-0.5 * (reach * m_z / sigma) ** 2)
    density = fftconvolve(breit_wigner, gauss, mode="same")
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    shares = np.diff(np.interp(np.log(edges), GRID, below))
    return shares / shares.sum()


def background_shape(edges, slope):
    """Share of the window's background in each bin: exp(-slope m), ``slope`` in 1/GeV."""
    # expm1 keeps the limit of a flat background exact
    at = -np.expm1(-slope * (edges - edges[0])) if abs(slope) > 1e-9 else edges - edges[0]
    return np.diff(at) / at[-1]


def expected(edges, values):
    """Events expected in each bin for ``values`` of ``PARAMETERS``."""
    m_z, width, sigma, n_signal, n_background, slope = values
    signal = n_signal * peak_shape(edges, m_z, width, sigma)
    return signal + n_background * background_shape(edges, slope)


def deviance_residuals(counts, means):
    """Signed roots of each bin's share of twice the Poisson log likelihood ratio.

    Their sum of squares is least where the likelihood is largest (Baker & Cousins, 1984).
    """
    means = np.maximum(means, 1e-9)
    logs = np.where(counts > 0, counts * np.log(np.maximum(counts, 1) / means), 0.0)
    return np.sign(counts - means) * np.sqrt(np.maximum(2 * (means - counts + logs), 0.0))


def covariance(edges, values):
    """Inverse of the Fisher information of a binned Poisson fit."""
    slopes = []
    for place, value in enumerate(values):
        step = 1e-3 * max(abs(value), 1e-2)
        up, down = np.array(values), np.array(values)
        up[place] += step
        down[place] -= step
        slopes.append((expected(edges, up) - expected(edges, down)) / (2 * step))
    slopes = np.array(slopes)
    # pinv: a parameter that the data say nothing of must not bring down the others
    return np.linalg.pinv(slopes / np.maximum(expected(edges, values), 1e-9) @ slopes.T)


def fit_peak(counts, edges):
    """Fit peak and background to a histogram by extended binned maximum likelihood.

    Returns ``{parameter: {"value": ..., "error": ...}}`` with masses and widths in GeV, and
    ``chi2``, ``ndf`` and ``p_value`` of the fit. Raises ``ValueError`` for fewer events than
    parameters can be had from.
    """
    from scipy.optimize import least_squares
    from scipy.stats import chi2 as chi2_distribution

    total = float(np.sum(counts))
    if total < 50:
        raise ValueError(f"{total:.0f} pairs in {WINDOW} GeV are too few for a fit")
    peak = edges[np.argmax(counts)] + (edges[1] - edges[0]) / 2
    found = least_squares(
        lambda values: deviance_residuals(counts, expected(edges, values)),
        x0=[peak, 2.5, 1.5, 0.9 * total, 0.1 * total, 0.02],
        bounds=([80, 0.3, 0.2, 0, 0, -0.2], [100, 10, 6, 2 * total, 2 * total, 0.5]),
        x_scale=[0.1, 0.1, 0.1, total, total, 0.01],
    )
    errors = np.sqrt(np.diag(covariance(edges, found.x)))
    ndf = len(counts) - len(PARAMETERS)
    result = {
        name: {"value": float(value), "error": float(error)}
        for name, value, error in zip(PARAMETERS, found.x, errors, strict=True)
    }
    chi2 = 2 * float(found.cost)
    goodness = {"chi2": chi2, "ndf": ndf, "p_value": float(chi2_distribution.sf(chi2, ndf))}
    return {**result, **goodness, "converged": bool(found.success)}


# --- plot ---------------------------------------------------------------------------------


def draw(counts, edges, result):
    """Return a figure: data with the fit above, pulls below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    values = [result[name]["value"] for name in PARAMETERS]
    draw_peak(top, counts, edges, values)
    draw_pulls(bottom, counts, edges, expected(edges, values))
    top.set_title(r"$Z \rightarrow \mu^+\mu^-$", loc="left")
    top.set_title(f"{int(np.sum(counts)):,} pairs", loc="right", fontsize=10, color="#64748b")
    top.text(0.03, 0.95, summary(result), transform=top.transAxes, va="top", fontsize=10)
    return figure


def draw_peak(axes, counts, edges, values):
    """Draw the data and the parts of the fitted model."""
    centres, bin_width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    fine = np.linspace(edges[0], edges[-1], 1201)
    scale = bin_width / (fine[1] - fine[0])
    middle = (fine[1:] + fine[:-1]) / 2
    background = values[4] * background_shape(fine, values[5]) * scale
    axes.fill_between(middle, background, color="#cbd5e1", label="background")
    axes.plot(middle, expected(fine, values) * scale, color="#dc2626", lw=1.6, label="fit")
    errors = np.sqrt(np.maximum(counts, 1))
    axes.errorbar(centres, counts, errors, fmt="o", ms=3, lw=1, color="#1f2937", label="data")
    axes.set_ylabel(f"pairs / {bin_width:g} GeV")
    axes.set_ylim(0, 1.12 * max(counts.max(), 1))
    axes.legend(frameon=False, loc="upper right")


def draw_pulls(axes, counts, edges, means):
    """Draw how far each bin is from the fit, in units of its error."""
    centres = (edges[1:] + edges[:-1]) / 2
    pulls = (counts - means) / np.sqrt(np.maximum(means, 1e-9))
    axes.bar(centres, pulls, width=edges[1] - edges[0], color="#4e79a7")
    for level in (-2, 0, 2):
        axes.axhline(level, color="#94a3b8", lw=0.8, ls="-" if level == 0 else ":")
    reach = max(3.5, 1.1 * float(np.abs(pulls).max()))
    axes.set(xlabel=r"$m(\mu^+\mu^-)$ [GeV]", ylabel="pull", ylim=(-reach, reach), xlim=WINDOW)


def summary(result):
    """Write the fitted values as the lines of the plot's text box."""
    units = {"m_Z": r"$m_Z$", "width": r"$\Gamma_Z$", "sigma": r"$\sigma$"}
    lines = [
        f"{symbol} = {result[name]['value']:.3f} ± {result[name]['error']:.3f} GeV"
        for name, symbol in units.items()
    ]
    signal = result["n_signal"]
    lines.append(f"signal: {signal['value']:,.0f} ± {signal['error']:,.0f}")
    lines.append(f"$\\chi^2$/ndf = {result['chi2']:.1f} / {result['ndf']}")
    return "\n".join(lines)
