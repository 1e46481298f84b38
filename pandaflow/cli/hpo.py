"""Commands for studies: ``hpo run``, ``hpo status``, ``hpo best``, ``hpo export``, ..."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pandaflow.cli import loading, parameters
from pandaflow.cli.options import (
    executor_option,
    json_option,
    places_of,
    quiet_option,
    store_of,
    store_option,
    workers_option,
)
from pandaflow.cli.output import echo_json, echo_json_rows, echo_table
from pandaflow.core.errors import WorkflowError

if TYPE_CHECKING:
    from pandaflow.hpo.book import TrialRecord
    from pandaflow.hpo.study import Study
    from pandaflow.ports import StudyState

study_argument = click.argument("name", metavar="STUDY")
_PLOTS = (
    "history",
    "parallel",
    "importances",
    "slice",
    "contour",
    "pareto",
    "intermediate",
    "timeline",
)


@click.group(epilog="STUDY is the name of a study in the store; 'pandaflow hpo status' lists them.")
def hpo() -> None:
    """Hyperparameter optimization: run studies, look at them, export them.

    \b
    Examples:
      pandaflow hpo run tune.py:study --n-trials 1000 --parallel 64
      pandaflow hpo best ttH --json | jq .params
    """


# --- running ----------------------------------------------------------------------------


@hpo.command(
    epilog="Exit codes: 0 done, 1 the study failed, 2 bad request, 130 Ctrl-C, 143 SIGTERM. "
    "Stopped studies go on when the command is given again."
)
@click.argument("target", metavar="FILE.py:STUDY")
@click.option("--n-trials", type=click.IntRange(1), metavar="N", help="Trials of the study in all.")
@click.option("--parallel", type=click.IntRange(1), metavar="N", help="Trials at once.")
@click.option(
    "-P",
    "--param",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the study, or an argument of the function that returns it or of the "
    "objective.",
)
@executor_option
@workers_option
@store_option
@json_option
@quiet_option
@click.pass_context
def run(
    ctx: click.Context, /, target: str, settings: tuple[str, ...], quiet: bool, **options: Any
) -> None:
    """Run a study, or go on with it.

    The file has 'STUDY = hpo.Study(name, objective=..., space=...)' or a function that returns
    one. What is written are the best parameters.

    \b
    Examples:
      pandaflow hpo run tune.py:study --n-trials 1000 --parallel 64
      pandaflow hpo run tune.py:study --executor dask:tcp://head:8786 -P direction=maximize
      pandaflow hpo run tune.py:make_study -P dataset=higgs --json > best.json
    """
    from pandaflow.cli.watch import EXIT_INTERRUPTED, EXIT_TERMINATED, Ears, Terminated

    study, given = load_study(ctx, target, settings, options["store"])
    given |= {key: options[key] for key in ("n_trials", "parallel") if options[key] is not None}
    places = places_of(ctx, options)
    with Ears() as ears:
        try:
            study.optimize(**places, progress=not quiet, **given)
            ears.check()
        except KeyboardInterrupt:
            _stopped(study, EXIT_INTERRUPTED)
        except Terminated:
            _stopped(study, EXIT_TERMINATED)
    _tell_best(study, as_json=options["as_json"])


def _stopped(study: Study, code: int) -> None:
    click.echo(
        f"pandaflow: study {study.name!r} is stopped; the same command goes on with it", err=True
    )
    sys.exit(code)


def load_study(
    ctx: click.Context, target: str, settings: Iterable[str], store: str | None
) -> tuple[Study, dict[str, Any]]:
    """Return the study that ``FILE.py:STUDY`` names, and the settings that are left for it.

    A function takes those that are named like its parameters.

    Raises
    ------
    WorkflowError
        There is no such file, no such name in it, or it is no study.
    """
    from pandaflow.hpo.study import Study

    file, _, name = target.rpartition(":")
    if not file.endswith(".py") or not name:
        raise WorkflowError(f"{target!r} names no study: give FILE.py:STUDY")
    if not Path(file).is_file():
        raise WorkflowError(f"no file {file!r}: give FILE.py:STUDY")
    module = loading.import_file(Path(file).resolve())
    given = dict(_setting(text) for text in settings)
    found = getattr(module, name, None)
    if found is None or not (isinstance(found, Study) or callable(found)):
        known = ", ".join(k for k, v in vars(module).items() if isinstance(v, Study)) or "none"
        raise WorkflowError(f"{file} has no study {name!r} (studies there: {known})")
    if not isinstance(found, Study):
        found = _called(found, target, given)
    explicit = _store_on_the_command_line(ctx, store)
    if explicit is not None or found.store is None:
        found.use_store(explicit if explicit is not None else store_of(ctx, store))
    return found, given


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise WorkflowError(f"--param {text!r}: give NAME=VALUE")
    return name, parameters.literal(value)


def _called(function: Any, target: str, given: dict[str, Any]) -> Study:
    """Call the author's function with the settings that it takes; they leave ``given``."""
    from pandaflow.hpo.study import Study

    known = inspect.signature(function).parameters
    own = {name: given.pop(name) for name in list(given) if name in known}
    made = loading.calling(target, lambda: function(**own))
    if not isinstance(made, Study):
        raise WorkflowError(f"{target} returned {type(made).__name__}, not an hpo.Study")
    return made


def _store_on_the_command_line(ctx: click.Context, store: str | None) -> str | None:
    """Return the store that was asked for; the environment's yields to the file's."""
    if store is not None:
        return store
    root = ctx.find_root()
    written = root.get_parameter_source("store") is ParameterSource.COMMANDLINE
    return store_of(ctx, None) if written else None


def _tell_best(study: Study, *, as_json: bool) -> None:
    if as_json:
        echo_json(summary(study))
    elif study.book.best is None:
        click.echo(f"pandaflow: no trial of study {study.name!r} has a value", err=True)
    else:
        _echo_best(study)


# --- looking ----------------------------------------------------------------------------


def summary(study: Study) -> dict[str, Any]:
    """Return a study as JSON-ready values."""
    book, run = study.book, study.run
    sessions = book.sessions
    return {
        "name": study.name,
        "status": study.status,
        "directions": list(study.directions),
        "trials": {**book.counts, "all": len(book.trials)},
        "n_trials": sessions[-1].get("n_trials") if sessions else None,
        "optimizer": sessions[-1].get("optimizer") if sessions else None,
        "best": [_trial(study, trial) for trial in study.best_trials],
        "run": None if run is None else run.id,
        "notes": study.notes,
    }


def _trial(study: Study, trial: TrialRecord) -> dict[str, Any]:
    from pandaflow.hpo.exports import trial_json

    return {**trial_json(trial), "params": study.params_of(trial)}


@hpo.command()
@click.argument("name", metavar="[STUDY]", required=False)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), metavar="N")
@store_option
@json_option
@click.pass_context
def status(
    ctx: click.Context, /, name: str | None, limit: int, store: str | None, as_json: bool
) -> None:
    """List studies, or show one.

    \b
    Examples:
      pandaflow hpo status
      pandaflow hpo status ttH
      pandaflow hpo status ttH --json | jq .trials.failed
    """
    if name is None:
        _list(store_of(ctx, store), limit, as_json=as_json)
        return
    if as_json:
        echo_json(summary(_known(ctx, name, store)))
    else:
        _show(_state(ctx, name, store))


def _list(store: str | None, limit: int, *, as_json: bool) -> None:
    from pandaflow.places import open_database

    rows: list[dict[str, Any]] = [
        {
            "name": state.name,
            "status": state.status,
            "created": state.created,
            "trials": state.summary.get("trials") or {},
            "best": state.summary.get("best"),
            "run": state.run,
        }
        for state in open_database(store).studies(limit)
    ]
    if as_json:
        echo_json_rows(rows)
        return
    shown = ({**row, "best": _numbers(row["best"] or ())} for row in rows)
    echo_table(("name", "status", "created", "trials", "best"), shown)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _show(state: StudyState) -> None:
    """Show a study from its row: a study of any size is one look."""
    from pandaflow.hpo.watching import params_text, summary_line

    told = state.summary
    click.echo(summary_line(state.name, state.status, told))
    optimizer = {**state.head["optimizer"], "seed": state.head["seed"]}
    optimizer |= told.get("session", {}).get("optimizer", {})
    settings = (f"{k}={v}" for k, v in optimizer.items() if k != "name" and v not in (None, {}))
    click.echo(f"  optimizer {' '.join([str(optimizer.get('name', '-')), *settings])}")
    if told.get("began"):
        began = datetime.fromtimestamp(told["began"])
        click.echo(f"  since     {began:%Y-%m-%d %H:%M:%S}, run {state.run or '-'}")
    for note in told.get("notes", ()):
        click.echo(f"  note      {note}")
    rows = [
        {
            "trial": trial["number"],
            "value": _numbers(trial["values"]),
            "by": trial["by"],
            "parameters": params_text(trial["point"]),
        }
        for trial in told.get("top", ())
    ]
    if rows:
        echo_table(("trial", "value", "by", "parameters"), rows)


@hpo.command()
@study_argument
@store_option
@json_option
@click.pass_context
def best(ctx: click.Context, /, name: str, store: str | None, as_json: bool) -> None:
    """Write the best parameters; of several objectives the whole Pareto set.

    \b
    Examples:
      pandaflow hpo best ttH
      pandaflow hpo best ttH --json | jq .params
    """
    study = _known(ctx, name, store)
    found = [_trial(study, trial) for trial in study.best_trials]
    if not found:
        raise WorkflowError(f"study {name!r} has no trial with a value yet")
    if as_json:
        echo_json(found[0] if len(study.directions) == 1 else found)
    else:
        _echo_best(study)


def _echo_best(study: Study) -> None:
    """Write one parameter a line, or of several objectives one trial a line."""
    trials = study.best_trials
    if len(study.directions) == 1:
        click.echo(f"# value {trials[0].values[0]!r}, trial {trials[0].number}")
        for key, value in study.params_of(trials[0]).items():
            click.echo(f"{key}={value!r}")
        return
    rows = [
        {
            "trial": trial.number,
            **{f"value_{k}": repr(value) for k, value in enumerate(trial.values)},
            **{key: repr(value) for key, value in study.params_of(trial).items()},
        }
        for trial in trials
    ]
    echo_table(list(dict.fromkeys(key for row in rows for key in row)), rows)


def _known(ctx: click.Context, name: str, store: str | None) -> Study:
    from pandaflow.hpo.study import load

    return load(name, store_of(ctx, store))


def _state(ctx: click.Context, name: str, store: str | None) -> StudyState:
    from pandaflow.places import open_database

    state = open_database(store_of(ctx, store)).study(name)
    if state is None:
        _known(ctx, name, store)  # tells which there are
        raise WorkflowError(f"no study {name!r}")
    return state


# --- taking away ------------------------------------------------------------------------


@hpo.command()
@study_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "json", "optuna"]),
    default="csv",
    show_default=True,
    help="optuna: a storage that Optuna and its dashboard open.",
)
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    help="File to write, '-' for standard output (default). For optuna: a journal file or a URL "
    "such as sqlite:///optuna.db; trials that are missing there are added.",
)
@store_option
@click.pass_context
def export(ctx: click.Context, /, name: str, form: str, out: str | None, store: str | None) -> None:
    """Write the trials of a study as a table, as JSON or for Optuna.

    \b
    Examples:
      pandaflow hpo export ttH -o ttH.csv
      pandaflow hpo export ttH --format json | jq '.[] | select(.state == "failed") | .why'
      pandaflow hpo export ttH --format optuna -o ttH.journal && optuna-dashboard ttH.journal
    """
    from pandaflow.hpo import exports

    study = _known(ctx, name, store)
    if form == "optuna":
        if out in (None, "-"):
            raise WorkflowError("--format optuna needs -o: a journal file or a database's URL")
        made = study.to_optuna(out)
        click.echo(f"{out} has {len(made.get_trials(deepcopy=False))} trials", err=True)
        return
    with click.open_file(out or "-", "w", encoding="utf-8") as file:
        file.writelines(exports.csv_lines(study.book) if form == "csv" else _json_lines(study))


def _json_lines(study: Study) -> Iterable[str]:
    """Yield a JSON list, one trial a line."""
    from pandaflow.cli.output import json_text

    mark = "["
    for trial in study.trials:
        yield f"{mark}\n {json_text(_trial(study, trial))}"
        mark = ","
    yield "[]\n" if mark == "[" else "\n]\n"


@hpo.command()
@study_argument
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; its suffix (.png, .svg, .pdf) decides the format.",
)
@click.option(
    "--kind", type=click.Choice(_PLOTS), default="history", show_default=True, help="What to draw."
)
@store_option
@click.pass_context
def plot(ctx: click.Context, /, name: str, out: Path, kind: str, store: str | None) -> None:
    """Draw a study with Optuna's plots.

    \b
    Examples:
      pandaflow hpo plot ttH -o history.png
      pandaflow hpo plot ttH -o importances.svg --kind importances
    """
    with suppress(ImportError):  # told below, with the remedy
        import matplotlib

        matplotlib.use("Agg")  # there may be no screen
    figure = getattr(_known(ctx, name, store), f"plot_{kind}")()
    if out.suffix.lower().lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise WorkflowError(f"{out}: a plot is saved as .png, .svg or .pdf")
    figure.savefig(out, dpi=150)
    click.echo(f"wrote {out}", err=True)


@hpo.command()
@click.argument("name", metavar="FILE.py:STUDY")
@click.option("-P", "--param", "settings", multiple=True, metavar="NAME=VALUE", help="As for run.")
@store_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context, /, name: str, settings: tuple[str, ...], store: str | None, as_json: bool
) -> None:
    """Tell whether the optimizer would go on exactly where the log ends.

    Exit codes: 0 exact, 1 not.

    \b
    Example:
      pandaflow hpo verify tune.py:study
    """
    study, _ = load_study(ctx, name, settings, store)
    found = study.verify()
    exact = bool(found)
    if as_json:
        echo_json({"exact": exact, "compared": found.compared, "reason": found.reason})
    else:
        click.echo(f"{'exact' if exact else 'not exact'}: {found.reason}")
    sys.exit(0 if exact else 1)


COMMANDS: tuple[click.Command, ...] = (hpo,)
