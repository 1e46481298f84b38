"""``pandaflow hpo``: studies run, looked at and exported from the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pandaflow import hpo
from pandaflow.cli.app import app

TUNE = '''
import pandaflow as pf
from pandaflow import hpo

@pf.task
def parabola(x, kind, shift=0.0, *, trial):
    trial.report(x, step=0)
    return (x - shift) ** 2 + (1.0 if kind == "b" else 0.0)

@pf.task
def two(x):
    return x, (x - 1) ** 2

@pf.task(executor="far")
def afar(x):
    return x

@pf.task
def broken(x):
    raise ValueError("no luck at all")

SPACE = hpo.Space(x=hpo.float(-1, 1), kind=["a", "b"])
X = hpo.Space(x=hpo.float(0, 1))
study = hpo.Study(
    "parabola", objective=parabola, space=SPACE, optimizer=hpo.random(seed=1), n_trials=12
)
front = hpo.Study(
    "front", objective=two, space=X, directions=["minimize", "minimize"],
    optimizer=hpo.random(seed=1), n_trials=9,
)
bad = hpo.Study("bad", objective=broken, space=X, optimizer=hpo.random(seed=1), n_trials=40)
far = hpo.Study("far", objective=afar, space=X, optimizer=hpo.random(seed=1), n_trials=2)
elsewhere = hpo.Study(
    "kept", objective=parabola, space=SPACE, optimizer=hpo.random(seed=1), n_trials=4,
    store="sqlite:///kept.db",
)

def make(name, digits=2):
    """Make a study."""
    return hpo.Study(
        f"{name}-{digits}", objective=parabola, space=SPACE, optimizer=hpo.random(seed=1)
    )

def explode():
    return 1 / 0

def number():
    return 5
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PANDAFLOW_STORE", raising=False)
    (tmp_path / "tune.py").write_text(TUNE)
    yield tmp_path


def call(*args: object) -> Result:
    return CliRunner().invoke(app, ["hpo", *map(str, args)], catch_exceptions=False)


def good(*args: object) -> str:
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def run(name: str = "study", *args: object) -> Result:
    return call("run", f"tune.py:{name}", "--executor", "threads", "--workers", 2, *args)


def test_a_study_runs_and_tells_its_best() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    study = hpo.load("parabola")
    assert len(study) == 12
    assert result.stdout.splitlines() == [
        f"# value {study.best_value!r}, trial {study.best_trial.number}",
        *(f"{name}={value!r}" for name, value in study.best_params.items()),
    ]
    assert "study parabola started: 12 trials wanted" in result.stderr
    assert good("best", "parabola") == result.stdout


def test_trials_may_name_their_executor() -> None:
    assert run("far", "--executor", "far=threads", "-q").exit_code == 0
    assert [trial.state for trial in hpo.load("far").trials] == ["complete"] * 2


def test_more_trials_go_on_with_the_study() -> None:
    run()
    told = json.loads(run("study", "--n-trials", 20, "--parallel", 1, "--json", "-q").stdout)
    assert told["trials"] == {"running": 0, "complete": 20, "pruned": 0, "failed": 0, "all": 20}
    assert (told["n_trials"], told["status"]) == (20, "done")
    assert told["optimizer"]["kind"] == "design"


def test_parameters_go_where_they_are_named() -> None:
    result = run(
        "make", "-P", "name=mine", "--param", "digits=3", "-P", "shift=0.5", "--n-trials", 8
    )
    assert result.exit_code == 0, result.output
    best = hpo.load("mine-3").best_trial
    lowest = (best.point["x"] - 0.5) ** 2 + (best.point["kind"] == "b")
    assert best.values[0] == pytest.approx(lowest)


def test_settings_reach_optimize() -> None:
    run("make", "-P", "name=s", "-P", "n_trials=3", "-P", "direction=maximize")
    assert hpo.load("s-2").directions == ("maximize",)
    assert len(hpo.load("s-2")) == 3


def test_the_files_store_is_used_unless_another_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANDAFLOW_STORE", f"sqlite:///{folder / 'environment.db'}")
    run("elsewhere")
    assert len(hpo.load("kept", "sqlite:///kept.db")) == 4
    run("study")
    assert len(hpo.load("parabola", f"sqlite:///{folder / 'environment.db'}")) == 12
    asked = f"sqlite:///{folder / 'asked.db'}"
    run("elsewhere", "--store", asked)
    assert len(hpo.load("kept", asked)) == 4


def test_several_objectives_have_a_front() -> None:
    result = run("front")
    study = hpo.load("front")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["TRIAL", "VALUE_0", "VALUE_1", "X"]
    assert len(lines) == 1 + len(study.best_trials)
    told = json.loads(good("best", "front", "--json"))
    assert [one["number"] for one in told] == [t.number for t in study.best_trials]


def test_a_study_that_fails_exits_with_1_and_says_why() -> None:
    result = run("bad", "-q")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "bad" in result.stderr and "Traceback" not in result.stderr
    assert json.loads(good("status", "bad", "--json"))["status"] == "failed"


def test_studies_are_listed_and_shown() -> None:
    assert good("status").split() == ["NAME", "STATUS", "CREATED", "TRIALS", "BEST"]
    assert json.loads(good("status", "--json")) == []
    run()
    (row,) = json.loads(good("status", "--json"))
    assert (row["name"], row["status"], row["trials"]["complete"]) == ("parabola", "done", 12)
    assert "12 complete" in good("status")
    shown = good("status", "parabola")
    assert shown.startswith("parabola done: 12 complete; best")
    assert "optimizer random" in shown
    study = hpo.load("parabola")
    assert study.run is not None and study.run.id in shown
    told = json.loads(good("status", "parabola", "--json"))
    assert told["best"][0]["params"] == study.best_params


def test_a_study_without_a_value_has_no_best() -> None:
    run("bad", "-q")
    result = call("best", "bad")
    assert result.exit_code == 2
    assert result.stderr == "pandaflow: study 'bad' has no trial with a value yet\n"


def test_trials_are_exported(folder: Path) -> None:
    run()
    rows = list(csv.DictReader(good("export", "parabola").splitlines()))
    assert [int(row["number"]) for row in rows] == list(range(12))
    good("export", "parabola", "--format", "json", "-o", "out.json")
    told: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
    trials = hpo.load("parabola").trials
    assert [one["values"] for one in told] == [list(t.values) for t in trials]


def test_optuna_opens_the_export(folder: Path) -> None:
    optuna = pytest.importorskip("optuna")
    run()
    for _ in range(2):  # nothing twice
        good("export", "parabola", "--format", "optuna", "-o", "p.journal")
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "p.journal"))
    study = optuna.load_study(
        study_name="parabola", storage=optuna.storages.JournalStorage(backend)
    )
    assert len(study.trials) == 12
    assert study.best_value == hpo.load("parabola").best_value
    result = call("export", "parabola", "--format", "optuna")
    assert result.exit_code == 2 and "needs -o" in result.stderr


@pytest.mark.parametrize("kind", ["history", "importances", "intermediate"])
def test_plots_are_written(folder: Path, kind: str) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    run()
    good("plot", "parabola", "-o", "p.png", "--kind", kind)
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_says_so() -> None:
    pytest.importorskip("optuna")
    run()
    for args, said in (
        (("-o", "p.png", "--kind", "pareto"), "two or three objectives"),
        (("-o", "p.xyz"), "saved as .png"),
    ):
        result = call("plot", "parabola", *args)
        assert result.exit_code == 2
        assert said in result.stderr and result.stderr.count("\n") == 1


def test_verify_says_whether_it_is_exact() -> None:
    run()
    result = call("verify", "tune.py:study")
    assert (result.exit_code, result.stdout) == (0, "exact: its last 12 points come again\n")
    told = json.loads(good("verify", "tune.py:study", "--json"))
    assert told["exact"] is True and told["compared"] == 12
    text = Path("tune.py").read_text().replace("random(seed=1), n_trials=12", "random(seed=2)")
    Path("other.py").write_text(text)
    changed = call("verify", "other.py:study")
    assert changed.exit_code == 1 and changed.stdout.startswith("not exact: ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run", "tune.py"), "give FILE.py:STUDY"),
        (("run", "nowhere.py:study"), "no file 'nowhere.py'"),
        (("run", "tune.py:nothing"), "studies there: study, front, bad, far, elsewhere"),
        (("run", "tune.py:SPACE"), "no study 'SPACE'"),
        (("run", "tune.py:explode"), "ZeroDivisionError: division by zero at tune.py:"),
        (("run", "tune.py:number"), "returned int, not an hpo.Study"),
        (("run", "tune.py:make"), "missing 1 required positional argument: 'name'"),
        (("run", "tune.py:study", "-P", "x"), "give NAME=VALUE"),
        (("run", "tune.py:study", "--executor", "moon"), "no executor 'moon'"),
        (("status", "nothing"), "no study 'nothing'"),
        (("best", "nothing"), "no study 'nothing'"),
        (("export", "nothing"), "no study 'nothing'"),
        (("verify", "parabola"), "give FILE.py:STUDY"),
    ],
)
def test_bad_requests_take_one_line(args: tuple[str, ...], said: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_has_examples() -> None:
    for command in ("run", "status", "best", "export", "plot", "verify"):
        assert f"pandaflow hpo {command}" in good(command, "--help")
