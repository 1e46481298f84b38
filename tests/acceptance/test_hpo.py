"""Studies as their users run them: with tasks, workflows, resumes and points by hand."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow import hpo
from pandaflow.core.errors import RunLocked, WorkflowError
from pandaflow.ports import Owner
from pandaflow.store.sql import SqlStore
from tests.acceptance.optimizers import Historian

SPACE = hpo.Space(x=hpo.float(-1, 1))
ORDERED = 12  # trials of the studies whose order of completion is laid down


def square(x: float) -> float:
    return x * x


def made(store: str, name: str = "s", **given: Any) -> hpo.Study:
    return hpo.Study(name, **{"optimizer": hpo.random(seed=1), "store": store, **given})


def ran(study: hpo.Study, objective: Any, executor: Any, space: Any = SPACE, **given: Any) -> Any:
    settings = {"n_trials": 6, "parallel": 2, "progress": False, **given}
    return study.optimize(objective, space, executor=executor, **settings)


def points(study: hpo.Study) -> list[Any]:
    return [trial.point for trial in study.trials]


def states(study: hpo.Study) -> list[str]:
    return [trial.state for trial in study.trials]


# --- once and again ---------------------------------------------------------------------


def test_the_same_script_again_goes_on(threads: Any, store: str) -> None:
    whole = ran(made(store, "whole"), square, threads, n_trials=10, parallel=1)
    ran(made(store), square, threads, n_trials=4, parallel=1)
    again = ran(made(store), square, threads, n_trials=10, parallel=1)
    assert points(again) == points(whole) and again.status == "done"
    assert again.best_value == min(x["x"] ** 2 for x in points(again))
    assert again.best_params == again.best_trial.point
    before = again.run
    ran(made(store), square, threads, n_trials=10, parallel=1)
    assert again.run == before or len(again) == 10  # nothing is left to do


def test_studies_are_listed_and_loaded_by_name(threads: Any, store: str) -> None:
    ran(made(store, "one"), square, threads, n_trials=2)
    ran(made(store, "two"), square, threads, n_trials=3)
    assert [study.name for study in hpo.studies(store)] == ["two", "one"]
    assert len(hpo.load("two", store)) == 3
    with pytest.raises(pf.StoreError, match="there are: two, one"):
        hpo.load("three", store)


def test_a_changed_space_is_refused_unless_meant(threads: Any, store: str) -> None:
    ran(made(store), square, threads, n_trials=3)
    wider = hpo.Space(x=hpo.float(-9, 9))
    with pytest.raises(WorkflowError, match=r"x differs.*extend=True"):
        ran(made(store), square, threads, wider)
    study = ran(made(store), square, threads, wider, extend=True)
    assert len(study) == 6
    ran(made(store), square, threads, wider, n_trials=7)  # it is the study's space from now on
    with pytest.raises(WorkflowError, match="extend=True"):
        ran(made(store), square, threads, n_trials=8)


def test_a_study_that_was_refused_before_its_first_point_may_be_mended(
    threads: Any, store: str
) -> None:
    with pytest.raises(WorkflowError, match="takes no argument 'y'"):
        ran(made(store), square, threads, hpo.Space(y=hpo.float(0, 1)))
    with pytest.raises(WorkflowError, match=r"hpo\.grid"):
        ran(made(store, optimizer=hpo.grid()), square, threads)
    assert states(ran(made(store), square, threads)) == ["complete"] * 6


def test_other_directions_need_another_name(threads: Any, store: str) -> None:
    ran(made(store), square, threads)
    with pytest.raises(WorkflowError, match="give the new study another name"):
        ran(made(store, direction="maximize"), square, threads, n_trials=9)


def test_another_optimizer_takes_over_and_it_is_noted(threads: Any, store: str) -> None:
    ran(made(store), square, threads)
    study = ran(made(store, optimizer=hpo.sobol(seed=2)), square, threads, n_trials=9)
    assert len(study) == 9 and any("was changed to" in note for note in study.notes)


def test_two_drivers_of_one_study(threads: Any, store: str) -> None:
    with made(store, space=SPACE) as first:
        first.ask()
        with pytest.raises(RunLocked):
            ran(made(store), square, threads)
    assert len(ran(made(store), square, threads)) == 6


def test_a_study_of_another_process_is_locked(threads: Any, store: str, tmp_path: Path) -> None:
    with Script(store, tmp_path, n=40, seconds=0.1) as script:
        script.wait_for(2)
        study = script.study()
        with pytest.raises(RunLocked):
            study.optimize(lambda x, kind: x, n_trials=40, executor=threads, progress=False)
        with pytest.raises(RunLocked):
            study.enqueue({"x": 0.0, "kind": "a"})
        assert study.status == "running" and len(study) >= 2  # to look is allowed


class Script:
    """``hpo_script.py`` as a process of its own."""

    def __init__(self, store: str, folder: Path, *, n: int, seconds: float, workers: int = 0):
        self.store, self.folder = store, folder
        command = [sys.executable, "-m", "tests.acceptance.hpo_script", store, str(folder)]
        self.process = subprocess.Popen(
            [*command, str(n), str(seconds), str(workers)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def evaluated(self) -> list[int]:
        path = self.folder / "evaluated"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[0]) for line in lines]

    def wait_for(self, evaluations: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.evaluated()) < evaluations:
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the study did not run: {self.process.communicate()[1]}")
            time.sleep(0.01)

    def study(self) -> hpo.Study:
        from tests.acceptance.hpo_script import study

        return study(self.store, str(self.folder))


def test_ctrl_c_leaves_a_study_that_goes_on(store: str, tmp_path: Path) -> None:
    with Script(store, tmp_path, n=10, seconds=0.05) as script:
        script.wait_for(3)
        script.process.send_signal(signal.SIGINT)
        _, said = script.process.communicate(timeout=30)
        assert script.process.returncode != 0 and "KeyboardInterrupt" in said
        study = script.study()
        assert study.status == "stopped" and len(study) < 10
        assert not [trial for trial in study.trials if trial.state == "failed"]
    with Script(store, tmp_path, n=10, seconds=0) as script:
        assert script.process.wait(timeout=60) == 0
        study = script.study()
        assert study.status == "done" and states(study) == ["complete"] * 10
        assert bool(study.verify()), study.verify()


# --- points by hand ---------------------------------------------------------------------


def test_by_hand_and_by_executor_on_one_log(threads: Any, store: str) -> None:
    whole = ran(made(store, "whole"), square, threads, n_trials=8, parallel=1)
    with made(store, space=SPACE) as study:
        for _ in range(2):
            trial = study.ask()
            assert study.tell(trial, square(**trial.params))
    ran(study, square, threads, n_trials=5, parallel=1)
    batch = study.ask_many(3)
    assert [trial.number for trial in batch] == [5, 6, 7]
    assert study.tell_many([(trial, square(**trial.params)) for trial in batch]) == [True] * 3
    study.close()
    assert points(study) == points(whole) and study.best_params == whole.best_params


def test_telling_twice_or_nonsense_changes_nothing(store: str) -> None:
    with made(store, space=SPACE) as study:
        first, second = study.ask_many(2)
        assert study.tell(first, 0.0) and not study.tell(first, -5.0)
        with pytest.raises(WorkflowError, match="trial 99 was never asked for"):
            study.tell_many([(second, 1.0), (99, 1.0)])
        with pytest.raises(WorkflowError, match="state 'lost'"):
            study.tell(second, state="lost")
        assert states(study) == ["complete", "running"]
        assert study.tell(1, 3.0)
        assert [study.ask().number for _ in range(2)] == [2, 3]
        assert study.best_value == 0.0 and study.book.duplicates == 1


def test_failures_and_nan_by_hand(store: str) -> None:
    with made(store, space=SPACE) as study:
        for number, told in enumerate([(math.nan, "complete"), (None, "failed"), (None, "pruned")]):
            assert study.tell(study.ask(), told[0], state=told[1])
            assert study.trials[number].state == ("pruned" if number == 2 else "failed")
        assert "nan" in study.trials[0].why


def test_many_failures_by_hand_say_so(store: str) -> None:
    with made(store, space=SPACE) as study:
        for _ in range(10):
            study.tell(study.ask(), state="failed")
        with pytest.raises(WorkflowError, match="10 of 10 trials failed"):
            study.ask()


def test_repeats_by_hand_are_the_callers(store: str) -> None:
    with made(store, space=SPACE, repeats=3) as study:
        assert study.tell(study.ask(), 1.0)
        assert states(study) == ["complete"]


def test_what_was_asked_by_hand_and_not_told_is_evaluated(threads: Any, store: str) -> None:
    with made(store, space=SPACE) as study:
        asked = study.ask_many(2)
    ran(study, square, threads, n_trials=4)
    assert states(study) == ["complete"] * 4
    assert [trial.params for trial in asked] == points(study)[:2]


def test_enqueued_points_come_first_and_use_no_point_of_the_optimizer(
    threads: Any, store: str
) -> None:
    study = made(store, space=SPACE)
    study.enqueue([{"x": 0.5}, {"x": -0.5}])
    ran(study, square, threads, n_trials=3)
    study.enqueue({"x": 0.125})
    ran(study, square, threads, n_trials=5)
    assert [t.by for t in study.trials] == ["user", "user", "optimizer", "user", "optimizer"]
    assert [p["x"] for p in points(study)[:2]] == [0.5, -0.5] and points(study)[3]["x"] == 0.125
    with pytest.raises(WorkflowError, match="'x'"):
        study.enqueue({"x": 5.0})
    with pytest.raises(WorkflowError, match="unknown parameter 'y'"):
        study.enqueue({"x": 0.5, "y": 1})


def test_what_another_study_knows(threads: Any, store: str) -> None:
    source = ran(made(store, "source"), square, threads)
    study = made(store, "next", space=SPACE)
    assert study.warm_start(source) == 6
    assert study.warm_start([({"x": 0.0}, 0.0), ({"x": 7.0}, 49.0)]) == 1
    ran(study, square, threads, n_trials=2)
    assert len(study) == 9 and study.best_value == 0.0
    assert study.book.asked == 2


# --- what objectives return -------------------------------------------------------------


@pf.task
def awkward(x: int, trial: hpo.Trial) -> Any:
    answers: list[Any] = [
        0.0,
        math.nan,
        {"loss": 1.5},
        (2.5,),
        hpo.Result(3.5, constraints=[-1.0], attrs={"file": "a.root"}),
        hpo.Result(-9.0, constraints=[1.0]),
        None,
    ]
    trial.attrs["x"] = x
    return answers[x]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_what_objectives_may_return(kind: str, store: str, request: Any) -> None:
    executor = request.getfixturevalue(kind)
    space = hpo.Space(x=hpo.choice(list(range(7))))
    study = ran(made(store, optimizer=hpo.grid()), awkward, executor, space, n_trials=7)
    by_x = {trial.attrs["x"]: trial for trial in study.trials}
    assert [by_x[x].values for x in range(7)] == [(0.0,), (), (1.5,), (2.5,), (3.5,), (-9.0,), ()]
    assert [by_x[x].state for x in (1, 6)] == ["failed", "failed"]
    assert "nan" in by_x[1].why and "NoneType" in by_x[6].why
    assert by_x[4].attrs["file"] == "a.root" and by_x[4].constraints == (-1.0,)
    assert study.best_value == 0.0 and not by_x[5].feasible


def test_pruning_oneself(threads: Any, store: str) -> None:
    optuna = pytest.importorskip("optuna")

    def objective(n: int, trial: hpo.Trial) -> float:
        trial.report(n)
        if n == 0:
            raise hpo.TrialPruned("enough")
        if n == 1:
            raise optuna.TrialPruned
        return float(n)

    space, grid = hpo.Space(n=hpo.int(0, 2)), hpo.grid()
    study = ran(made(store, optimizer=grid), objective, threads, space, n_trials=3)
    by_n = {trial.point["n"]: trial for trial in study.trials}
    assert [by_n[n].state for n in range(3)] == ["pruned", "pruned", "complete"]
    assert by_n[0].why == "enough" and list(by_n[0].reports) == [(0, 0.0)]


def test_several_objectives(threads: Any, store: str) -> None:
    def objective(x: float) -> tuple[float, float]:
        return x * x, (x - 0.5) ** 2

    study = made(store, directions=["minimize", "minimize"])
    ran(study, objective, threads, n_trials=20, parallel=4)
    front = {trial.number for trial in study.best_trials}
    for trial in study.trials:
        beaten = any(
            all(a <= b for a, b in zip(o.values, trial.values, strict=True))
            and o.values != trial.values
            for o in study.trials
        )
        assert (trial.number in front) == (not beaten)
    with pytest.raises(WorkflowError, match="2 objectives"):
        _ = study.best_value


def test_retries_before_a_trial_counts_as_failed(processes: Any, store: str) -> None:
    study = ran(made(store), second_time, processes, n_trials=4, retries=1)
    assert states(study) == ["complete"] * 4
    other = ran(made(store, "other"), second_time, processes, n_trials=4)
    assert states(other) == ["failed"] * 4
    assert "first attempt" in other.trials[0].why


def second_time(x: float) -> float:
    if pf.current_job().attempt == 1:
        raise ValueError("first attempt")
    return x


def test_repeats_have_seeds_of_their_own_that_follow_from_the_study(
    threads: Any, store: str
) -> None:
    def objective(x: float, trial: hpo.Trial) -> float:
        return float(trial.seed % 1000 + trial.repeat)

    study = ran(made(store), objective, threads, n_trials=3, repeats=3, aggregate="median")
    other = ran(made(f"{store}2"), objective, threads, n_trials=3, repeats=3, aggregate="median")
    values = [trial.attrs["repeats"] for trial in study.trials]
    assert [len({tuple(v) for v in each}) for each in values] == [3, 3, 3]
    assert values == [trial.attrs["repeats"] for trial in other.trials]
    assert [t.values[0] for t in study.trials] == [sorted(v)[1][0] for v in values]


# --- failures ---------------------------------------------------------------------------


def broken(x: float) -> float:
    raise ValueError("typing error")


def test_a_broken_objective_stops_early_and_may_be_mended(threads: Any, store: str) -> None:
    with pytest.raises(hpo.StudyFailed, match=r"1\d of 1\d trials failed.*typing error"):
        ran(made(store), broken, threads, n_trials=100)
    assert made(store).status == "failed" and len(made(store)) < 20
    study = ran(made(store), square, threads, n_trials=30)
    assert study.status == "done" and len(study) == 30


def test_rules_for_trials_that_fail(threads: Any, store: str) -> None:
    with pytest.raises(hpo.StudyFailed, match="typing error"):
        ran(made(store, "stop"), broken, threads, on_error="stop")
    study = ran(made(store, "value"), broken, threads, on_error=7.5)
    assert {trial.values for trial in study.trials} == {(7.5,)}
    assert all("typing error" in trial.why for trial in study.trials)
    few = ran(made(store, "few"), broken, threads)
    assert states(few) == ["failed"] * 6
    with pytest.raises(WorkflowError, match="no trial with a value"):
        _ = few.best_value


def takes_model(x: float, model: Any) -> float: ...


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"n_trials": 0}, "n_trials=0"),
        ({"n_trials": None}, "give n_trials="),
        ({"parallel": "all"}, "parallel='all'"),
        ({"repeats": 0}, "repeats=0"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"on_error": math.nan}, "on_error=nan"),
        ({"stop": 0.01}, "is no rule"),
        ({"aggregate": "sum"}, "aggregate='sum'"),
        ({"direction": "down"}, "direction 'down'"),
        ({"direction": "minimize", "directions": ["minimize"]}, "not both"),
        ({"optimizer": 3}, "optimizer=3"),
        ({"x": 3.0}, "'x' is in the search space and given as an argument too"),
        ({"objective": takes_model}, "needs an argument 'model'"),
        ({"y": 3.0}, "takes no argument 'y'"),
        ({"objective": 5}, "objective 5 is no task"),
        ({"space": 5}, "a search space is"),
        ({"space": {}}, "is empty"),
    ],
)
def test_wrong_arguments_are_named(
    given: dict[str, Any], text: str, threads: Any, store: str
) -> None:
    settings = {"objective": square, "space": SPACE, "n_trials": 3, **given}
    objective, space = settings.pop("objective"), settings.pop("space")
    with pytest.raises(WorkflowError, match=text.replace("(", r"\(")):
        hpo.Study("wrong", store=store).optimize(
            objective, space, executor=threads, progress=False, **settings
        )


# --- resources, workflows ---------------------------------------------------------------


def test_resources_of_trials(threads: Any, store: str) -> None:
    space = hpo.Space(x=hpo.int(1, 2))
    fixed = ran(made(store), square, threads, space, n_trials=2, resources={"cores": 2})
    assert {row["cores"] for row in _trial_tasks(fixed)} == {2}
    by_point = ran(
        made(store, "by point", optimizer=hpo.grid()),
        square,
        threads,
        space,
        n_trials=2,
        resources=lambda params: {"cores": params["x"]},
    )
    cores = {row["name"].split("/")[1]: row["cores"] for row in _trial_tasks(by_point)}
    expected = {f"{trial.number}.0": trial.point["x"] for trial in by_point.trials}
    assert cores == expected


def _trial_tasks(study: hpo.Study) -> list[dict[str, Any]]:
    run = study.run
    assert run is not None
    spec = run._store.state(run.id)
    rows = [{"name": task.spec.name, "cores": task.spec.resources.cores} for task in spec.tasks]
    return [row for row in rows if row["name"].endswith(("/trial", "/outcome"))]


@pf.task
def simulate(thickness: float, energy: float) -> float:
    return thickness * energy


@pf.task(n_jobs=1)
def merge(seen: list[float]) -> float:
    return sum(seen)


@pf.task
def judge(total: float, thickness: float) -> dict[str, float]:
    return {"resolution": 1 / total, "price": thickness}


@pf.workflow
def detector(thickness: float, energies: list[float]) -> Any:
    return judge(merge(simulate(thickness, pf.items(energies))), thickness)


def test_a_workflow_as_objective(threads: Any, store: str) -> None:
    study = made(store, directions=["minimize", "minimize"])
    space = hpo.Space(thickness=hpo.float(0.5, 2.0))
    ran(study, detector, threads, space, n_trials=8, parallel=4, energies=[1.0, 2.0, 3.0])
    assert states(study) == ["complete"] * 8
    for trial in study.trials:
        thickness = trial.point["thickness"]
        assert trial.values == pytest.approx((1 / (6 * thickness), thickness))
    assert len(study.best_trials) == 8  # thicker is better and dearer
    run = study.run
    assert run is not None
    names = [row["task"] for row in sorted(run.jobs(), key=lambda row: row["started"] or 0.0)]
    firsts = {name.split("/")[1] for name in names[:8] if "/" in name}
    assert len(firsts) > 1  # sub-workflows of several trials run at once


@pf.task
def picky(thickness: float, energy: float) -> float:
    if thickness > 1:
        raise ValueError("it does not fit")
    return thickness * energy


@pf.workflow
def tight(thickness: float) -> Any:
    return merge(picky(thickness, pf.items([1.0, 2.0])))


def test_a_step_that_fails_in_a_workflow_fails_its_trial_only(threads: Any, store: str) -> None:
    space = hpo.Space(thickness=hpo.ordinal([0.5, 1.5, 0.75, 1.75]))
    study = ran(made(store, optimizer=hpo.grid()), tight, threads, space, n_trials=4)
    for trial in study.trials:
        good = study.params_of(trial)["thickness"] <= 1
        assert trial.state == ("complete" if good else "failed")
        assert good or "it does not fit" in trial.why


@pf.task(executor="far")
def remote(total: float) -> float:
    return total


@pf.workflow
def partly_far(thickness: float) -> Any:
    total = merge(simulate(thickness, pf.items([1.0, 2.0])))
    return remote(total) if thickness > 1 else total


def test_a_trial_that_the_run_does_not_take_in_fails_with_the_reason(
    threads: Any, store: str
) -> None:
    space = hpo.Space(thickness=hpo.ordinal([0.5, 1.5, 0.75, 1.75]))
    study = ran(made(store, optimizer=hpo.grid()), partly_far, threads, space, n_trials=4)
    for trial in study.trials:
        good = study.params_of(trial)["thickness"] <= 1
        assert trial.state == ("complete" if good else "failed")
        assert good or "far" in trial.why


@pf.task
def offset() -> float:
    return 0.25


@pf.task
def away(x: float, base: float) -> float:
    time.sleep(0.03)
    return (x - base) ** 2


@pf.task
def seen_at(trial: dict[str, Any]) -> tuple[int, float]:
    return trial["number"], time.time()


@pf.task
def last_step(best: dict[str, Any]) -> tuple[dict[str, Any], float]:
    return best, time.time()


@pf.workflow
def tuned() -> Any:
    found = hpo.search(
        away, SPACE, n_trials=16, parallel=2, optimizer=hpo.random(seed=1), base=offset()
    )
    return last_step(found.best), seen_at(found.trials), found.best_params


def test_a_study_within_a_workflow(threads: Any, store: str) -> None:
    run = tuned().run(executor=threads, store=store)
    (best, ended), seen, params = run.result()
    assert best["value"] == pytest.approx((best["params"]["x"] - 0.25) ** 2)
    assert params == best["params"]
    assert sorted(number for number, _ in seen) == list(range(16))
    assert sum(at < ended for _, at in seen) > 8
    study = hpo.load(next(iter(hpo.studies(store))).name, store)
    assert study.best_value == best["value"]
    evaluated = [trial.ended for trial in study.trials]
    assert min(at for _, at in seen) < max(evaluated)  # the first was read before the last ended


@pf.task
def nap(x: float) -> float:
    time.sleep(0.02)
    return x


@pf.workflow
def rivals() -> Any:
    given = {"n_trials": 25, "parallel": 4, "optimizer": hpo.random(seed=3)}
    return tuple(hpo.search(nap, SPACE, name=f"rival{n}", **given).best for n in range(3))


def test_several_studies_share_the_slots(threads: Any, store: str) -> None:
    rivals().run(executor=threads, store=store)
    ends = [sorted(t.ended for t in study.trials) for study in hpo.studies(store)]
    first = min(each[-1] for each in ends)
    counts = [sum(at <= first for at in each) for each in ends]
    assert len(counts) == 3 and max(counts) == 25 and min(counts) >= 8


def test_a_study_without_any_value_fails_what_needs_its_best(threads: Any, store: str) -> None:
    @pf.workflow
    def needing() -> Any:
        return last_step(hpo.search(broken, SPACE, n_trials=3, optimizer=hpo.random(seed=1)).best)

    with pytest.raises(pf.RunFailed, match="no trial has a value"):
        needing().run(executor=threads, store=store).result()


# --- pruning ----------------------------------------------------------------------------


#: Reports of a trial that is left alone; it takes a minute then.
STEPS = 6000


def looks(x: float, trial: hpo.Trial) -> float:
    for step in range(STEPS):
        trial.report(x, step)
        time.sleep(0.01)
        if x < 0 and step > 20:
            return x
        if trial.should_prune():
            raise hpo.TrialPruned
    return x


def never_looks(x: float, trial: hpo.Trial) -> float:
    for step in range(STEPS):
        trial.report(x, step)
        time.sleep(0.01)
        if x < 0 and step > 20:
            return x
    return x


def pruned_study(objective: Any, executor: Any, store: str, **given: Any) -> hpo.Study:
    study = made(store, **{"pruner": ("threshold", {"upper": 0.0}), "space": SPACE, **given})
    study.enqueue([{"x": x} for x in (-0.5, 0.5, -0.25, 0.75)])
    ran(study, objective, executor, n_trials=4)
    assert states(study) == ["complete", "pruned", "complete", "pruned"]
    return study


@pytest.mark.parametrize(
    ("objective", "kind"),
    [(looks, "threads"), (looks, "processes"), (never_looks, "processes")],
)
def test_a_bad_trial_is_stopped_where_it_runs(
    objective: Any, kind: str, store: str, request: Any
) -> None:
    pytest.importorskip("optuna")
    study = pruned_study(objective, request.getfixturevalue(kind), store)
    run = study.run
    assert run is not None
    assert all(0 < len(trial.reports) < STEPS for trial in study.trials)


@pytest.mark.parametrize("optimizer", ["random", "optuna"])
def test_the_median_of_earlier_trials_prunes(threads: Any, store: str, optimizer: str) -> None:
    pytest.importorskip("optuna")
    made_of = {"random": hpo.random(seed=1), "optuna": hpo.optuna("random", seed=1)}[optimizer]
    study = made(store, optimizer=made_of, space=SPACE, pruner=("median", {"n_startup_trials": 2}))
    study.enqueue([{"x": -0.5}, {"x": -0.6}, {"x": 0.9}])
    ran(study, looks, threads, n_trials=3, parallel=1)
    assert states(study) == ["complete", "complete", "pruned"]
    assert not study.notes


# --- executors --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=4, processes=False, dashboard_address=None
    ) as cluster:
        yield pf.executors.Dask(cluster)


def in_turn(x: float, folder: str, trial: hpo.Trial) -> float:
    """End in the order 1 0 3 2 5 4 ...: each when what followed the one before has begun."""
    Path(folder, f"{trial.number}").touch()
    next_begun = Path(folder, f"{min((trial.number ^ 1) + 3, ORDERED - 1)}")
    while trial.number != 1 and not next_begun.exists():
        time.sleep(0.002)
    return x * x


@pytest.mark.parametrize("parallel", [1, 4])
def test_executors_give_the_same_points(
    dask: Any, store: str, tmp_path: Path, parallel: int
) -> None:
    local = pf.executors.Local(workers=4, processes=False)
    found = []
    for name, executor in (("local", local), ("dask", dask)):
        folder = tmp_path / name
        folder.mkdir()
        study = made(store, name, optimizer=Historian(str(tmp_path)))
        objective: Any = in_turn if parallel == 4 else square
        given = {"folder": str(folder)} if parallel == 4 else {}
        ran(study, objective, executor, n_trials=ORDERED, parallel=parallel, ahead=0, **given)
        found.append(points(study))
    local.close()
    assert found[0] == found[1]
    assert len({str(point) for point in found[0]}) == ORDERED


# --- the process itself -----------------------------------------------------------------


def test_nothing_is_left_behind(threads: Any, store: str, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    study = ran(made(store, optimizer=Historian(str(tmp_path))), square, threads)
    pids = [int(path.name.partition("-")[2]) for path in tmp_path.glob("optimizer-*")]
    assert len(pids) == 1 and not _alive(pids[0])
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()]
    assert not [name for name in left if name.startswith(("hpo-", "pandaflow-asker"))]
    with closing(SqlStore(store)) as opened:  # its lease is free
        opened.write_study(study.name, Owner("elsewhere", 1, 0.0, "x"), 5.0).release()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- what users of the documentation found ----------------------------------------------


def test_a_workflow_with_a_search_can_be_drawn() -> None:
    @pf.task
    def report(best: Any) -> Any:
        return best["params"]

    @pf.task
    def each(trial: Any) -> Any:
        return trial["number"]

    @pf.workflow
    def tuned() -> Any:
        found = hpo.search(square, SPACE, name="fit", n_trials=4, optimizer=hpo.random(seed=1))
        return report(found.best), each(found.trials)

    workflow = tuned()
    assert {
        ("fit/points", "fit/trial"),
        ("fit/trial", "fit/trials"),
        ("fit/trials", "each"),
    } <= set(workflow.graph.edges)
    assert "fit/trial" in workflow.svg()._repr_svg_()


def test_waiting_trials_go_first_come_first_served(store: str) -> None:
    executor = pf.executors.Local(workers=2, processes=False)
    study = made(store)
    ran(study, nap, executor, n_trials=40, parallel=8, ahead=0)
    executor.close()
    started = [trial.number for trial in sorted(study.trials, key=lambda trial: trial.began)]
    assert max(abs(place - number) for place, number in enumerate(started)) <= 10


def test_a_warm_start_is_no_resume(threads: Any, store: str) -> None:
    pytest.importorskip("optuna")
    study = made(store, optimizer=hpo.optuna("tpe", seed=1), space=SPACE)
    assert study.warm_start([({"x": 0.25}, 0.0625)]) == 1
    ran(study, square, threads, n_trials=3)
    assert study.notes == [] and len(study) == 4


def test_a_workflow_is_not_pruned(store: str) -> None:
    @pf.workflow
    def objective(x: float) -> Any:
        return pf.task(square)(x)

    with pytest.raises(WorkflowError, match="report no intermediate values"):
        made(store, pruner="median").optimize(objective, SPACE, n_trials=3)
