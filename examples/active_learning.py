"""Active learning against random sampling, on two problems whose truth is known.

    python examples/active_learning.py --seeds 10 --picture active-learning.png

*Contour*: which points of a plane of two masses does a search exclude? A label is a simulation of
the signal and a CLs limit; the truth is analytic. *Digits*: the images shipped with scikit-learn;
a label is an annotator's answer. For each seed two campaigns of ``active_learning`` start from the
same labels, one choosing by the model and one by chance; all run at once, in one workflow. Needs
``pip install scikit-learn matplotlib``.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import warnings

import numpy as np

import pandaflow as pf
from pandaflow.hpo.active import active_learning

# --- the contour: a toy search for pairs of heavy particles that decay to a light one -----------

#: 1/fb; background events, and as many observed; fraction of signal inside the detector.
LUMINOSITY, BACKGROUND, ACCEPTANCE = 140.0, 20, 0.4
#: GeV: the cut on the visible energy, and its resolution.
CUT, RESOLUTION = 400.0, 80.0
#: GeV: the plane's heavy and light masses.
HEAVY, LIGHT = (800.0, 2600.0), (0.0, 1800.0)


def cross_section(heavy):
    """Return a toy cross section, fb: falls by e every 230 GeV."""
    return 1e3 * np.exp(-heavy / 230.0)


def confidence(signal):
    """Return CLs of a counting experiment that observes the background expectation."""

    def at_most(mean):
        terms = (mean**n / math.factorial(n) for n in range(BACKGROUND + 1))
        return math.exp(-mean) * sum(terms)

    return at_most(signal + BACKGROUND) / at_most(BACKGROUND)


def truly_excluded(points):
    """Return whether points (heavy, light), shape (n, 2) in GeV, are excluded: the analytic truth.

    The visible energy is logistic around the mass difference, so the efficiency is known.
    """
    heavy, light = np.asarray(points).T
    efficiency = ACCEPTANCE / (1 + np.exp(-(heavy - light - CUT) / RESOLUTION))
    expected = LUMINOSITY * cross_section(heavy) * efficiency
    return np.array([confidence(signal) < 0.05 for signal in expected])


@pf.task(retries=1)
def simulate(point, events=20_000):
    """Simulate the signal at one point of the plane; tell whether the search excludes it."""
    heavy, light = point
    rng = np.random.default_rng([int(heavy), int(light)])
    visible = rng.logistic(heavy - light, RESOLUTION, events)
    selected = (visible > CUT) & (rng.random(events) < ACCEPTANCE)
    return confidence(LUMINOSITY * cross_section(heavy) * selected.mean()) < 0.05


def plane(steps=61):
    """Return the points of a grid where the heavy particle can decay, shape (n, 2) in GeV."""
    grid = np.stack(np.meshgrid(np.linspace(*HEAVY, steps), np.linspace(*LIGHT, steps)), axis=-1)
    points = grid.reshape(-1, 2)
    return points[points[:, 1] < points[:, 0] - 50]


@pf.task
def fit_contour(points, excluded):
    """Fit a Gaussian process that classifies points as excluded or not."""
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import RBF
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    if len(set(excluded)) < 2:
        raise pf.Skip("points of one kind only: no contour yet")
    # Correlation length 500 GeV; fixed, as few labels do not determine it.
    process = GaussianProcessClassifier(10.0**2 * RBF(0.5), optimizer=None)
    return make_pipeline(FunctionTransformer(in_tev), process).fit(points, excluded)


def in_tev(points):
    """Return masses in TeV."""
    return np.asarray(points) / 1000.0


# --- the digits ---------------------------------------------------------------------------------


def digits():
    """Return images (1797, 64) with grey values from 0 to 1, and what they show."""
    from sklearn.datasets import load_digits

    images, shown = load_digits(return_X_y=True)
    return images / 16.0, shown


def annotator(images, shown):
    """Return a task that answers what an image shows, as a person would who is paid for it."""
    answers = {pixels(image): int(digit) for image, digit in zip(images, shown, strict=True)}

    @pf.task(retries=1)
    def annotate(image):
        return answers[pixels(image)]

    return annotate


def pixels(image):
    """Return the grey values of an image as bytes."""
    return (image * 16).astype(np.uint8).tobytes()


@pf.task
def fit_digits(images, shown):
    """Fit a logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, max_iter=500).fit(images, shown)


# --- the comparison -----------------------------------------------------------------------------


def contour_campaign(seed, acquire, labels):
    """Label points of the plane; return the last state and the test sample."""
    points = plane()
    state = active_learning(
        label=simulate,
        train=fit_contour,
        acquire=acquire,
        pool=points,
        batch=5,
        initial=10,
        until=labels,
        seed=seed,
    )
    return learning_curve(state, fit_contour.function, points, truly_excluded(points))


def digits_campaign(seed, acquire, labels):
    """Label images; 597 others are for the test."""
    images, shown = digits()
    order = np.random.default_rng(seed).permutation(len(images))
    pool, test = order[:1200], order[1200:]
    state = active_learning(
        label=annotator(images, shown),
        train=fit_digits,
        acquire=acquire,
        pool=images[pool],
        batch=10,
        initial=20,
        until=labels,
        seed=seed,
    )
    return learning_curve(state, fit_digits.function, images[test], shown[test])


@pf.task
def learning_curve(state, fit, test, truth):
    """Return (labels, accuracy) after each round, and the labelled items in their order."""
    curve = []
    for done in range(state.round):
        n = sum(number <= done for number in state.rounds)
        try:
            model = fit(np.asarray(state.items[:n]), list(state.labels[:n]))
        except pf.Skip:
            continue
        curve.append((n, float((model.predict(test) == truth).mean())))
    return {"curve": curve, "items": np.asarray(state.items), "labels": list(state.labels)}


#: campaign, the acquisition that is to beat chance, labels to spend, accuracies to reach
PROBLEMS = {
    "contour": (contour_campaign, "uncertainty", 100, (0.95, 0.97, 0.98, 0.99)),
    "digits": (digits_campaign, "margin", 250, (0.90, 0.92, 0.94, 0.95)),
}


@pf.workflow
def compare(problem: str = "contour", seeds: int = 10, labels: int = 0):
    """Run the campaigns of one problem: all seeds, by the model and by chance."""
    campaign, acquire, enough, _ = PROBLEMS[problem]
    return {
        kind: [campaign(seed, how, labels or enough) for seed in range(seeds)]
        for kind, how in (("active", acquire), ("random", "random"))
    }


def needed(curve, accuracy):
    """Return the labels after which a curve reaches an accuracy and stays there, or infinity."""
    low = [n for n, reached in curve if reached < accuracy]
    after = [n for n, _ in curve if not low or n > low[-1]]
    return after[0] if after else math.inf


def table(outcome, accuracies):
    """Return rows (accuracy, median labels active, median labels random, wins, seeds)."""
    rows = []
    for accuracy in accuracies:
        pairs = [
            (needed(active["curve"], accuracy), needed(chance["curve"], accuracy))
            for active, chance in zip(outcome["active"], outcome["random"], strict=True)
        ]
        # Not the mean of the two in the middle: one of them may be infinite.
        medians = [sorted(side)[len(pairs) // 2] for side in zip(*pairs, strict=True)]
        rows.append((accuracy, *medians, sum(a < b for a, b in pairs), len(pairs)))
    return rows


def printed(problem, rows, budget):
    """Return the table as text."""
    lines = [f"{problem}: labels until the accuracy is reached for good, median over seeds"]
    lines.append("  accuracy   active   random   wins")
    for accuracy, active, chance, wins, seeds in rows:
        said = [f"{n:.0f}" if n < math.inf else f">{budget}" for n in (active, chance)]
        lines.append(f"  {accuracy:8.2f} {said[0]:>8} {said[1]:>8}   {wins} of {seeds}")
    return "\n".join(lines)


# --- the picture --------------------------------------------------------------------------------

ACTIVE, CHANCE, INK = "#c8442b", "#5b7a99", "#333333"


def draw(outcomes, path):
    """Draw where the labels of one campaign went, and the learning curves of both problems."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, 3, figsize=(16, 5.4), layout="constrained")
        draw_plane(axes[0], outcomes["contour"])
        draw_curves(axes[1], outcomes["contour"], "Exclusion contour", (0.86, 1.0))
        draw_curves(axes[2], outcomes["digits"], "Handwritten digits", (0.74, 0.98))
        figure.savefig(path, dpi=120)
        plt.close(figure)


def draw_curves(axes, outcome, title, limits):
    """Draw accuracy against labels: median over seeds, and the band that holds 80 % of them."""
    for kind, colour, name in (
        ("active", ACTIVE, "active learning"),
        ("random", CHANCE, "random sampling"),
    ):
        curves = [dict(one["curve"]) for one in outcome[kind]]
        n = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[k] for k in n] for curve in curves])
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
        axes.fill_between(n, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(n, median, color=colour, lw=2.5, marker="o", ms=4.5, label=name)
    axes.set(xlabel="labels", ylabel="accuracy", ylim=limits, title=title)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.25)
    axes.legend(
        frameon=False, loc="lower right", title=f"median and 10–90 % of {len(curves)} seeds"
    )


def draw_plane(axes, outcome):
    """Draw the plane with the true contour and the labels of the first seed's campaigns."""
    heavy, light = np.meshgrid(np.linspace(*HEAVY, 241), np.linspace(*LIGHT, 241))
    truth = truly_excluded(np.stack([heavy.ravel(), light.ravel()], axis=-1)).reshape(heavy.shape)
    axes.contourf(heavy, light, truth, levels=[0.5, 1.5], colors=["#f5e8cd"])
    axes.contour(heavy, light, truth, levels=[0.5], colors=[INK], linewidths=2)
    axes.fill_between(HEAVY, HEAVY, LIGHT[1] + 900, color="#e4e4e4", lw=0, zorder=2)
    axes.text(840, 1180, "no decay", fontsize=12, style="italic", color="#777777")
    chance, active = outcome["random"][0], outcome["active"][0]
    marks = {"clip_on": False, "zorder": 3}
    axes.scatter(*chance["items"].T, marker="x", s=28, color=CHANCE, lw=1.4, **marks)
    axes.scatter(*active["items"].T, s=34, color=ACTIVE, ec="white", lw=0.6, **marks)
    axes.text(850, 40, "excluded", fontsize=14, style="italic", color="#8a6d2f")
    arrow = {"arrowstyle": "->", "color": INK}
    axes.annotate("true contour", (1975, 640), (2090, 685), arrowprops=arrow, color=INK)
    axes.set(xlabel="heavy mass [GeV]", ylabel="light mass [GeV]", xlim=HEAVY, ylim=LIGHT)
    axes.set_title(f"Where {len(active['labels'])} simulations went (one seed)")


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--picture", help="PNG to write")
    chosen = parser.parse_args()
    # One thread for each worker's linear algebra: the workers are the parallelism.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    warnings.filterwarnings("ignore", module="sklearn")
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        executor = pf.executors.Local(workers=chosen.workers)
        for problem, (_, _, budget, accuracies) in PROBLEMS.items():
            workflow = compare(problem, chosen.seeds)
            run = workflow.run(executor=executor, store=f"sqlite:///{folder}/active.db")
            outcomes[problem] = run.result()
            print(printed(problem, table(outcomes[problem], accuracies), budget))
        executor.close()
    if chosen.picture:
        draw(outcomes, chosen.picture)


if __name__ == "__main__":
    main()
