"""Studies as tables, CSV and Optuna studies, and what a study learns from elsewhere."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from pandaflow import hpo
from pandaflow.core.errors import WorkflowError
from pandaflow.hpo import exports

optuna = pytest.importorskip("optuna")
pandas = pytest.importorskip("pandas")

SPACE = hpo.Space(lr=hpo.log(1e-5, 1e-1), depth=hpo.int(2, 12), kind=["bdt", "nn"])


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


def told(store: str, name: str = "ttH", n: int = 12, **settings: Any) -> hpo.Study:
    """A study with trials of all kinds, told by hand; the last one still runs."""
    study = hpo.Study(name, space=SPACE, store=store, optimizer=hpo.random(seed=5), **settings)
    several = len(study.directions) > 1
    with study:
        for trial in study.ask_many(n)[:-1]:
            value = math.log10(trial.params["lr"]) ** 2 + trial.params["depth"]
            if trial.number % 5 == 3:
                study.tell(trial, state="failed")
            elif trial.number % 5 == 4:
                study.tell(trial, state="pruned")
            else:
                study.tell(trial, (value, -value) if several else value)
    return study


def test_the_table_is_optunas(store: str) -> None:
    study = told(store)
    ours = study.trials_dataframe()
    attrs = ("number", "value", "datetime_start", "datetime_complete", "duration", "params")
    theirs = study.to_optuna().trials_dataframe(attrs=(*attrs, "state"))
    assert [c for c in ours.columns if c not in ("by", "why")] == list(theirs.columns)
    for column in ("number", "value", "state", "params_lr", "params_depth", "params_kind"):
        pandas.testing.assert_series_equal(ours[column], theirs[column], check_dtype=False)
    gaps = (ours["datetime_start"] - theirs["datetime_start"]).dt.total_seconds().abs()
    assert gaps.max() < 1e-3
    assert set(ours["state"]) == {"COMPLETE", "FAIL", "PRUNED", "RUNNING"}
    assert ours["duration"].isna().sum() == 1  # the one that runs
    assert set(ours["by"]) == {"optimizer"}


def test_several_objectives_have_a_column_each(store: str) -> None:
    frame = told(store, directions=["minimize", "maximize"]).trials_dataframe()
    complete = frame[frame["state"] == "COMPLETE"]
    assert "value" not in frame.columns
    assert (complete["values_0"] == -complete["values_1"]).all()


def test_a_study_without_trials_is_an_empty_table(store: str) -> None:
    frame = hpo.Study("none", store=store).trials_dataframe()
    assert len(frame) == 0
    assert {"number", "value", "state"} <= set(frame.columns)


def test_a_table_without_pandas_tells_what_to_install(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = hpo.Study("none", store=store)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(WorkflowError, match=r'pip install "pandaflow\[hpo\]"'):
        study.trials_dataframe()


def test_constraints_and_attributes_have_columns(store: str) -> None:
    study = hpo.Study("limits", space=SPACE, store=store, optimizer=hpo.random(seed=1))
    with study:
        study.tell(study.ask(), hpo.Result(1.0, constraints=[-1.0, 2.0]))
    row = study.trials_dataframe().iloc[0]
    assert (row["constraints_0"], row["constraints_1"]) == (-1.0, 2.0)


def test_csv_reads_back(store: str) -> None:
    study = told(store)
    rows = list(csv.DictReader("".join(exports.csv_lines(study.book)).splitlines()))
    assert [int(row["number"]) for row in rows] == list(range(12))
    for row, trial in zip(rows, study.trials, strict=True):
        assert float(row["params_lr"]) == trial.point["lr"]
        assert row["value"] == ("" if trial.value is None else str(trial.value))


def test_a_trial_is_json(store: str) -> None:
    study = told(store)
    trial = study.best_trial
    again = json.loads(json.dumps(exports.trial_json(trial)))
    assert (again["params"], again["values"]) == (dict(trial.point), list(trial.values))


# --- Optuna -----------------------------------------------------------------------------


def test_optuna_gets_the_same_trials_and_best(store: str) -> None:
    study = told(store)
    theirs = study.to_optuna()
    assert theirs.best_value == study.best_value
    assert theirs.best_params == study.best_params
    states = {exports.STATES[t.state] for t in study.trials}
    assert {t.state.name for t in theirs.get_trials()} == states


def test_a_study_that_was_only_loaded_knows_its_ranges(store: str) -> None:
    told(store)
    theirs = hpo.load("ttH", store).to_optuna()
    known = theirs.best_trial.distributions
    assert known["lr"] == optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)
    assert known["depth"] == optuna.distributions.IntDistribution(2, 12)
    assert known["kind"] == optuna.distributions.CategoricalDistribution(["bdt", "nn"])


def test_a_loaded_conditional_study_keeps_each_trials_parameters(store: str) -> None:
    space = hpo.Space(kind=hpo.choice({"bdt": {"depth": hpo.int(2, 9)}, "nn": {"width": [8, 16]}}))
    study = hpo.Study("branches", space=space, store=store, optimizer=hpo.random(seed=1))
    with study:
        for trial in study.ask_many(10):
            study.tell(trial, float(trial.number))
    theirs = hpo.load("branches", store).to_optuna().get_trials()
    assert [t.params for t in theirs] == [dict(t.point) for t in study.trials]
    assert {frozenset(t.params) for t in theirs} == {
        frozenset({"kind", "depth"}),
        frozenset({"kind", "width"}),
    }


def test_a_loaded_define_by_run_study_spans_what_was_tried(store: str) -> None:
    def space(trial: Any) -> None:
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            trial.suggest_int("n", 1, 100)
        trial.suggest_float("x", 0.0, 1.0)

    study = hpo.Study("byrun", space=space, store=store, optimizer=hpo.random(seed=1))
    with study:
        for trial in study.ask_many(10):
            study.tell(trial, trial.params["x"])
    theirs = hpo.load("byrun", store).to_optuna().get_trials()
    assert [t.params for t in theirs] == [dict(t.point) for t in study.trials]
    tried = [t.point["x"] for t in study.trials]
    assert theirs[0].distributions["x"].low == min(tried)


def test_a_journal_gets_only_what_it_lacks(store: str, tmp_path: Path) -> None:
    journal = str(tmp_path / "ttH.journal")
    study = told(store)
    assert len(study.to_optuna(journal).get_trials()) == 11  # all but the one that runs
    with study:
        study.tell(11, 0.5)
        study.tell(study.ask(), 0.25)
    assert len(study.to_optuna(journal).get_trials()) == 13
    kept = study.to_optuna(journal)
    assert sorted(t.user_attrs["number"] for t in kept.get_trials()) == list(range(13))
    assert kept.best_value == 0.25


def test_a_storage_object_and_a_url_do(store: str, tmp_path: Path) -> None:
    study = told(store)
    memory = optuna.storages.InMemoryStorage()
    study.to_optuna(memory)
    assert len(optuna.load_study(study_name="ttH", storage=memory).get_trials()) == 11
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study.to_optuna(url)
    assert len(optuna.load_study(study_name="ttH", storage=url).get_trials()) == 11


def test_somebody_elses_study_of_that_name_is_left_alone(store: str) -> None:
    memory = optuna.storages.InMemoryStorage()
    other = optuna.create_study(storage=memory, study_name="ttH")
    other.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(WorkflowError, match="not exported from here"):
        told(store).to_optuna(memory)
    assert len(other.get_trials()) == 1
    turned = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=turned, study_name="ttH", direction="maximize")
    with pytest.raises(WorkflowError, match="other directions"):
        hpo.load("ttH", store).to_optuna(turned)


def test_optunas_verbosity_is_put_back(store: str) -> None:
    before = optuna.logging.get_verbosity()
    told(store).to_optuna()
    assert optuna.logging.get_verbosity() == before


# --- what is known from elsewhere -------------------------------------------------------


def test_a_study_learns_from_another(store: str) -> None:
    source = told(store)
    study = hpo.Study("next", space=SPACE, store=store, optimizer=hpo.random(seed=1))
    n = study.warm_start(source)
    assert n == source.book.counts["complete"] > 0
    with study:
        study.ask()
    assert study.best_value == source.best_value
    assert {t.by for t in study.trials} == {"ttH", "optimizer"}


def test_a_study_learns_from_optuna() -> None:
    source = optuna.create_study(study_name="elsewhere")
    for lr, state in ((1e-3, "COMPLETE"), (1e-4, "FAIL")):
        source.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                value=2.5 if state == "COMPLETE" else None,
                params={"lr": lr, "depth": 3, "kind": "nn"},
                distributions={
                    "lr": optuna.distributions.FloatDistribution(1e-6, 1, log=True),
                    "depth": optuna.distributions.IntDistribution(1, 20),
                    "kind": optuna.distributions.CategoricalDistribution(["nn", "svm"]),
                },
            )
        )
    point = {"lr": 1e-3, "depth": 3, "kind": "nn"}
    added = exports.known_trials(source, SPACE, ["minimize"])
    assert added == [{"p": point, "by": "elsewhere", "s": "complete", "v": [2.5], "c": []}]


def test_points_outside_the_space_and_values_that_are_none_are_left_out() -> None:
    point = {"lr": 1e-3, "depth": 3, "kind": "nn"}
    given = [
        (point, 1.0),
        (point, [2.0]),
        ({**point, "lr": 1.0}, 3.0),
        ({**point, "kind": "svm"}, 4.0),
        ({**point, "colour": "red"}, 5.0),
        ({"lr": 1e-3}, 6.0),
        (point, math.nan),
        (point, [1.0, 2.0]),
    ]
    added = exports.known_trials(given, SPACE, ["minimize"])
    assert [body["v"] for body in added] == [[1.0], [2.0]]
    two = exports.known_trials(given, SPACE, ["minimize", "minimize"])
    assert [body["v"] for body in two] == [[1.0, 2.0]]


@pytest.mark.parametrize("source", ["text", 5, {"a": 1}, [1], [({}, "x")], [("a", 1.0)]])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(WorkflowError, match="warm_start"):
        exports.known_trials(source, SPACE, ["minimize"])


def test_other_directions_are_refused(store: str) -> None:
    source = told(store)
    with pytest.raises(WorkflowError, match="directions minimize, not maximize"):
        exports.known_trials(source, SPACE, ["maximize"])
    with pytest.raises(WorkflowError, match="directions maximize, not minimize"):
        exports.known_trials(optuna.create_study(direction="maximize"), SPACE, ["minimize"])


def test_a_space_is_needed() -> None:
    with pytest.raises(WorkflowError, match=r"hpo\.Study\(\.\.\., space=space\)"):
        exports.known_trials([], None, ["minimize"])
