"""A small analysis from start to end on this machine: what ``make demo`` runs.

    python examples/demo.py                          # on a toy sample, checked against its truth
    python examples/demo.py --sample 'data/*.root'   # on files of yours

It writes a toy sample, runs the workflow of ``zmumu.py`` over it, compares the fit with the
truth and leaves the plot, a timeline of the jobs and the graph of the tasks in ``demo-output/``.
Exits with 1 if the fit does not recover the truth.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import cloudpickle
import zmumu as analysis
from rich.console import Console
from rich.table import Table
from toy import write_sample
from zmumu import PARAMETERS, zmumu

# Workers do not import from this folder, so the code of ``zmumu.py`` travels to them.
cloudpickle.register_pickle_by_value(analysis)

#: Standard errors beyond which the fit has not recovered the truth.
LIMIT = 4.0
LABELS = {
    "m_Z": "m_Z [GeV]",
    "width": "width of the Z [GeV]",
    "sigma": "mass resolution [GeV]",
    "n_signal": "signal pairs",
    "n_background": "background pairs",
    "slope": "background slope [1/GeV]",
}


def pulls(fit, truth):
    """How far each parameter is from its truth, in standard errors."""
    return {
        name: (fit[name]["value"] - truth[name]) / fit[name]["error"]
        for name in PARAMETERS
        if name in truth
    }


def number(value, error):
    """Write a fitted number with two digits of its error."""
    digits = max(1 - math.floor(math.log10(error)), 0) if error > 0 else 3
    return f"{value:,.{digits}f}"


def comparison(fit, truth):
    """Return a table of the fit against the truth."""
    table = Table(title="Z → μμ", title_justify="left", title_style="bold")
    for title in ("", "fit", "error", "truth", "pull"):
        table.add_column(title, justify="left" if not title else "right")
    offs = pulls(fit, truth)
    for name in PARAMETERS:
        value, error = fit[name]["value"], fit[name]["error"]
        cells = [LABELS[name], number(value, error), number(error, error), "", ""]
        if name in offs:
            colour = "green" if abs(offs[name]) < LIMIT else "bold red"
            cells[3:] = [number(truth[name], error), f"[{colour}]{offs[name]:+.2f}[/]"]
        table.add_row(*cells)
    table.caption = f"χ²/ndf = {fit['chi2']:.1f} / {fit['ndf']} (p = {fit['p_value']:.2f})"
    return table


def cutflow(fit):
    """Return a table of what each cut left."""
    table = Table(title="Selection", title_justify="left", title_style="bold")
    table.add_column("cut")
    table.add_column("pairs", justify="right")
    for cut, left in fit["cutflow"].items():
        table.add_row(cut, f"{left:,}")
    return table


def parse(arguments=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", help="glob of ROOT files; default: a toy sample is made")
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    parser.add_argument("--files", type=int, default=8, help="toy files")
    parser.add_argument("--events", type=int, default=20_000, help="pairs a toy file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bins", type=int, default=60)
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the demo; return the exit code."""
    console, chosen = Console(), parse(arguments)
    truth, sample = {}, chosen.sample
    if sample is None:
        sample = str(chosen.out / "toy" / "*.root")
        console.print(f"Writing {chosen.files} toy files of {chosen.events:,} pairs ...")
        truth = write_sample(chosen.out / "toy", chosen.files, chosen.events, chosen.seed)
    workflow = zmumu(sample, bins=chosen.bins, out=str(chosen.out))
    run = workflow.run()
    result = run.result()
    console.print(cutflow(result["fit"]), comparison(result["fit"], truth))
    timeline = run.timeline().save(chosen.out / "timeline.svg")
    graph = workflow.svg().save(chosen.out / "graph.svg")
    for what, path in (("plot", result["plot"]), ("timeline", timeline), ("graph", graph)):
        console.print(f"{what:>9}: {os.path.relpath(path)}", soft_wrap=True, highlight=False)
    console.print(f"{'run':>9}: {run.id}  (pandaflow status {run.id})", highlight=False)
    missed = [name for name, pull in pulls(result["fit"], truth).items() if abs(pull) >= LIMIT]
    if missed:
        console.print(f"[bold red]the fit does not recover the truth: {', '.join(missed)}[/]")
    return 1 if missed or not result["fit"]["converged"] else 0


if __name__ == "__main__":
    # worker processes import this file: only the driver may start a run
    sys.exit(main())
