from __future__ import annotations

import json
import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import Int, choice, fixed, integer, log, ordinal, real
from pandaflow.hpo.optimizers.optuna import OptunaSpec, optuna
from pandaflow.hpo.optimizers.optuna_pruners import pruned_by
from pandaflow.hpo.port import (
    Asked,
    AskEntry,
    Brief,
    Entry,
    Optimizer,
    ReportEntry,
    TellEntry,
    Told,
)
from pandaflow.hpo.space import AnySpace, FunctionSpace, Point, RandomSuggester, Space

library = pytest.importorskip("optuna")


def mixed() -> Space:
    return Space(
        a=real(-5, 5),
        lr=log(1e-5, 1e-1),
        d=real(0, 1, step=0.3),  # 1 is not on the raster
        n=integer(1, 128, log=True),
        c=choice(["x", "y", "z"]),
        size=ordinal(["small", "medium", "large"]),
        same=fixed(3),
    )


def branching() -> Space:
    kinds = {
        "bdt": {"depth": integer(2, 12)},
        "nn": {"width": integer(8, 64, step=5), "rate": log(1e-4, 1)},
        "none": {},
    }
    return Space(a=real(-5, 5), kind=choice(kinds), odd=choice([1, True, 1.5, None]))


def by_run() -> FunctionSpace:
    def suggest(trial):
        x = trial.suggest_float("x", -3, 3)
        if x > 0:
            trial.suggest_int("y", 0, 9)
        trial.suggest_categorical("c", ["a", "b"])

    return FunctionSpace(suggest)


def table() -> Space:
    return Space(a=integer(0, 5), b=real(0, 1, step=0.25), c=["x", "y"], o=ordinal(["s", "l"]))


def worth(point: Point) -> float:
    return sum(
        (v if isinstance(v, int | float) else len(str(v))) ** 2 / (k + 1)
        for k, v in enumerate(point.values())
    )


class Script:
    """Drives an optimizer through a random order of events that depends on a seed only."""

    def __init__(self, make: Callable[[], Optimizer], space: AnySpace, brief: Brief) -> None:
        self.make, self.space, self.brief = make, space, brief
        self.random = random.Random(11)
        self.constrained = True
        self.optimizer = make()
        self.log: list[Entry] = []
        self.outstanding: dict[int, Point] = {}
        self.seen: list[Any] = []
        self.number = 0

    def run(self, trials: int) -> None:
        end = self.number + trials
        while self.number < end:
            if len(self.outstanding) < self.brief.outstanding:
                self.start()
            else:
                self.go_on(self.random.choice(sorted(self.outstanding)))

    def start(self) -> None:
        number, self.number = self.number, self.number + 1
        if self.random.random() < 0.08:
            point = self.space.draw(RandomSuggester(self.random))
            memo = self.optimizer.adopt(number, point)
            self.log.append(AskEntry(number, point, kept(memo), own=False))
        else:
            asked = self.optimizer.ask(number)
            point = asked.point
            self.seen.append(point)
            self.log.append(AskEntry(number, kept(point), kept(asked.memo)))
        self.outstanding[number] = point

    def go_on(self, number: int) -> None:
        for _ in range(self.random.randint(0, 3)):
            self.report(number)
        fate = self.random.random()
        if fate < 0.3:
            return
        point = self.outstanding.pop(number)
        if fate < 0.4:
            self.tell(Told(number, "failed"))
        elif fate < 0.5:
            self.tell(Told(number, "pruned"))
        else:
            self.tell(self.complete(number, point))
        if self.random.random() < 0.05:
            point = self.space.draw(RandomSuggester(self.random))
            told = self.complete(self.number, point)
            self.tell(Told(told.number, told.state, told.values, point=point))
            self.number += 1

    def complete(self, number: int, point: Point) -> Told:
        values = tuple(worth(point) * self.random.random() for _ in self.brief.directions)
        constraints = (self.random.random() - 0.5,) if self.constrained else ()
        return Told(number, "complete", values, constraints)

    def report(self, number: int) -> None:
        step, value = self.random.randint(0, 20), self.random.random()
        if value < 0.1:
            value = math.nan if value < 0.05 else math.inf
        self.seen.append(self.optimizer.report(number, step, value))
        self.log.append(ReportEntry(number, step, value))

    def tell(self, told: Told) -> None:
        self.log.append(TellEntry(told, kept(self.optimizer.tell(told))))

    def crash(self) -> str:
        self.optimizer = self.make()
        return self.optimizer.restore(self.log)


def kept(values: Any) -> Any:
    """As it comes back from the log: strict JSON."""
    return json.loads(json.dumps(values, allow_nan=False))


def compare(
    spec: OptunaSpec, space: AnySpace, *, before: int = 55, after: int = 10, **brief: Any
) -> Script:
    told = Brief(**{"directions": ("minimize",), "seed": 99, "outstanding": 32, **brief})

    def fresh() -> Script:
        script = Script(lambda: spec.build(space, told), space, told)
        script.constrained = spec.name != "cmaes"  # it warns that it leaves them aside
        return script

    whole, broken = fresh(), fresh()
    for part in (before, 7, after):
        whole.run(part)
        broken.run(part)
        if part != after:
            assert broken.crash() == ""
    assert broken.seen == whole.seen
    assert broken.log[-1] == whole.log[-1]
    return broken


def needs(name: str) -> None:
    if name == "cmaes":
        pytest.importorskip("cmaes")
    if name == "qmc":
        pytest.importorskip("scipy")


SAMPLERS = [
    ("random", {}),
    ("tpe", {}),
    ("tpe-independent", {}),
    ("cmaes", {}),
    ("cmaes", {"with_margin": True}),
    ("qmc", {"scramble": True}),
    ("nsgaii", {"population_size": 8}),
    ("nsgaiii", {"population_size": 8}),
]


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
@pytest.mark.parametrize("space", [mixed, branching, by_run])
def test_resume_is_exact(name, options, space):
    needs(name)
    compare(optuna(name, **options), space())


@pytest.mark.parametrize("name", ["grid", "bruteforce"])
def test_resume_is_exact_where_points_are_counted(name):
    compare(optuna(name), table())


PRUNERS = [
    "median",
    ("percentile", {"percentile": 30.0}),
    "asha",
    "hyperband",
    ("hyperband", {"max_resource": 20}),
    ("threshold", {"upper": 0.9}),
    ("patient", {"wrapped_pruner": "asha", "patience": 1}),
    "wilcoxon",
]


@pytest.mark.parametrize(
    ("name", "pruner"),
    [*(("random", p) for p in PRUNERS), ("tpe", "asha"), ("cmaes", "hyperband")],
    ids=str,
)
def test_resume_is_exact_with_reports(name, pruner):
    needs(name)
    if "wilcoxon" in pruner:
        pytest.importorskip("scipy")
    script = compare(optuna(name), mixed(), pruner=pruner)
    # Wilcoxon's test wants more steps in common than there are here.
    assert "wilcoxon" in pruner or any(decision is True for decision in script.seen)


@pytest.mark.parametrize("name", ["tpe", "nsgaii", "nsgaiii"])
def test_resume_is_exact_with_several_objectives(name):
    compare(optuna(name), mixed(), directions=("minimize", "maximize"))


def test_memos_say_nothing_when_there_is_nothing():
    script = compare(optuna("tpe"), mixed(), before=60)
    memos = [e.memo for e in script.log if not isinstance(e, ReportEntry)]
    assert memos[0]
    assert not any(memos[1:])


def test_the_seed_and_the_number_make_the_point():
    def points(seed: int) -> list[Point]:
        optimizer = optuna("random").build(mixed(), Brief(("minimize",), seed))
        return [optimizer.ask(number).point for number in range(5)]

    assert points(1) == points(1) != points(2)
    assert len({json.dumps(p) for p in points(1)}) == 5


@pytest.mark.parametrize("space", [mixed, branching, by_run])
def test_points_fit_the_space(space):
    script = compare(optuna("tpe"), space(), before=40)
    points = [p for p in script.seen if isinstance(p, dict)]
    for point in points:
        assert script.space.parse(point) == point
        script.space.arguments(point)


def test_tpe_learns():
    space = Space(x=real(-10, 10), kind=["bad", "good"])
    optimizer = optuna().build(space, Brief(("maximize",), 5))
    last = []
    for number in range(80):
        point = optimizer.ask(number).point
        value = -((point["x"] - 3) ** 2) - 50 * (point["kind"] == "bad")
        optimizer.tell(Told(number, "complete", (value,)))
        last.append(value)
    assert sorted(last[-20:])[10] > sorted(last[:20])[10] + 5


def test_constraints_steer():
    space = Space(x=real(0, 1))

    def share(constrained: bool) -> float:
        optimizer = optuna("tpe").build(space, Brief(("minimize",), 3))
        good = 0
        for number in range(60):
            x = optimizer.ask(number).point["x"]
            constraints = (0.5 - x,) if constrained else ()
            optimizer.tell(Told(number, "complete", (x,), constraints))
            good += number >= 30 and x >= 0.5
        return good / 30

    assert share(True) > share(False) + 0.25


# --- names and refusals -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [("TPE", "tpe"), ("TPESampler", "tpe"), ("NSGA-II", "nsgaii"), ("TPE_Independent", None)],
)
def test_names(given, name):
    assert optuna(given).name == (name or "tpe-independent")


def test_unknown_names_list_the_known():
    with pytest.raises(WorkflowError, match=r"'tpo'.*bruteforce.*cmaes.*tpe-independent"):
        optuna("tpo")


def test_unknown_options_name_the_accepted():
    spec = optuna("tpe", startup=3)
    with pytest.raises(WorkflowError, match=r"no option 'startup'.*n_startup_trials"):
        spec.check(mixed(), Brief(("minimize",), 1))


REFUSED = [
    (optuna("grid"), mixed(), {}, "'a' has no step"),
    (optuna("grid"), by_run(), {}, "search_space="),
    (optuna("bruteforce"), mixed(), {}, "'a' has no step"),
    (optuna("tpe"), mixed(), {"pruner": "medium"}, "known are asha"),
    (optuna("tpe"), mixed(), {"pruner": "percentile"}, "percentile"),
    (optuna("tpe"), mixed(), {"pruner": ("median", {"startup": 1})}, "n_startup_trials"),
    (optuna("tpe"), mixed(), {"pruner": 3}, "pruner"),
    (optuna("nsgaii", population_size=1), mixed(), {}, "population_size"),
    (
        optuna("tpe"),
        mixed(),
        {"pruner": "median", "directions": ("minimize", "minimize")},
        "one objective",
    ),
]


@pytest.mark.parametrize(("spec", "space", "brief", "says"), REFUSED)
def test_what_cannot_work_is_refused(spec, space, brief, says):
    with pytest.raises(WorkflowError, match=says):
        spec.check(space, Brief(**{"directions": ("minimize",), "seed": 1, **brief}))


def test_cmaes_is_refused_where_it_cannot_search():
    needs("cmaes")
    one = Brief(("minimize",), 1)
    with pytest.raises(WorkflowError, match="one objective"):
        optuna("cmaes").check(mixed(), Brief(("minimize", "maximize"), 1))
    with pytest.raises(WorkflowError, match="numbers only"):
        optuna("cmaes").check(Space(c=["a", "b"]), one)
    optuna("cmaes").check(mixed(), one)


@pytest.mark.parametrize(("name", "package"), [("gp", "torch"), ("cmaes", "cmaes")])
def test_a_missing_package_is_named(name, package, monkeypatch):
    found = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == package else found(n))
    with pytest.raises(WorkflowError, match=f"needs the package {package}: pip install"):
        optuna(name).check(mixed(), Brief(("minimize",), 1))


def test_making_a_spec_imports_nothing_heavy():
    code = (
        "import sys; from pandaflow.hpo.optimizers.optuna import optuna; optuna('tpe', seed=1);"
        "import pandaflow.hpo.optimizers.optuna_studies;"
        "sys.exit(any(n in sys.modules for n in ('optuna', 'numpy', 'scipy', 'nevergrad')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_specs_can_be_pickled_and_described():
    spec = optuna("tpe", seed=4, gamma=len, n_startup_trials=3)
    assert pickle.loads(pickle.dumps(spec)) == spec
    described = kept(spec.describe())
    assert described["name"] == "tpe"
    assert described["options"]["n_startup_trials"] == 3
    assert described["versions"]["optuna"] == library.__version__


def test_building_says_nothing():
    code = (
        "import optuna; from pandaflow.hpo.optimizers.optuna import optuna as spec;"
        "from pandaflow.hpo.dimensions import integer; from pandaflow.hpo.port import Brief;"
        "from pandaflow.hpo.space import Space;"
        "pruner = ('patient', {'wrapped_pruner': None, 'patience': 1});"
        "brief = Brief(('minimize',), 1, pruner=pruner);"
        "spec('bruteforce').build(Space(a=integer(0, 5)), brief).ask(0);"
        "print('built', flush=True);"
        "optuna.create_study(); optuna.samplers.BruteForceSampler()"  # others' are said as ever
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    before, _, after = done.stdout.partition("built\n")
    assert before == ""
    assert "A new study" in after
    assert "ExperimentalWarning" in after


def test_a_sampler_object_is_exact_and_stays_untouched():
    with pytest.warns(library.exceptions.ExperimentalWarning):
        sampler = library.samplers.PartialFixedSampler({"c": "y"}, library.samplers.TPESampler())
    script = compare(optuna(sampler), mixed())
    points = [p for p in script.seen if isinstance(p, dict)]
    assert {p["c"] for p in points} == {"y"}
    assert len({json.dumps(p) for p in points}) == len(points)


def test_a_sampler_of_another_kind_is_not_promised():
    class Steps(library.samplers.BaseSampler):
        def __init__(self):
            self.random = random.Random(0)

        def infer_relative_search_space(self, study, trial):
            return {}

        def sample_relative(self, study, trial, search_space):
            return {}

        def sample_independent(self, study, trial, name, known):
            return self.random.uniform(known.low, known.high)

    space = Space(x=real(0, 1))
    brief = Brief(("minimize",), 1, 4)
    script = Script(lambda: optuna(Steps()).build(space, brief), space, brief)
    script.run(10)
    assert "Steps may keep a state" in script.crash()
    script.run(10)
    points = [p["x"] for p in script.seen if isinstance(p, dict)]
    assert len(set(points)) == len(points)


def test_groups_are_not_promised():
    space, brief = branching(), Brief(("minimize",), 1, 4)
    script = Script(lambda: optuna("tpe", group=True).build(space, brief), space, brief)
    script.run(20)
    assert "group=True" in script.crash()


def test_options_belong_to_the_object():
    with pytest.raises(WorkflowError, match="to RandomSampler itself"):
        optuna(library.samplers.RandomSampler(), n=3)
    with pytest.raises(WorkflowError, match="not int"):
        optuna(3)


# --- events out of the ordinary ---------------------------------------------------------


def test_a_second_tell_is_ignored_and_a_stranger_needs_a_point():
    optimizer = optuna("tpe").build(mixed(), Brief(("minimize",), 1))
    optimizer.ask(0)
    optimizer.tell(Told(0, "failed"))
    assert optimizer.tell(Told(0, "complete", (1.0,))) == {}
    assert optimizer.report(0, 1, 0.5) is False
    with pytest.raises(WorkflowError, match="never asked for"):
        optimizer.tell(Told(8, "complete", (1.0,)))


def test_a_point_off_the_raster_is_taken_in():
    space = Space(x=real(0, 1, step=0.25), n=integer(0, 10, step=4))
    optimizer = optuna("tpe").build(space, Brief(("minimize",), 1))
    optimizer.adopt(0, {"x": 0.9, "n": 10})
    optimizer.tell(Told(0, "complete", (1.0,)))
    assert optimizer.ask(1).point.keys() == {"x", "n"}


def test_a_grid_gives_each_point_once_and_bears_strangers():
    space = table()
    optimizer = optuna("grid").build(space, Brief(("minimize",), 1))
    optimizer.adopt(0, {"a": 0, "b": 0.5, "c": "x", "o": "s"})
    points = [optimizer.ask(number).point for number in range(1, 6 * 5 * 2 * 2 + 1)]
    for number in range(121):
        optimizer.tell(Told(number, "complete", (1.0,)))
    assert len({json.dumps(p) for p in points}) >= 119


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband", "threshold", None])
def test_odd_reports_do_not_raise(pruner):
    given = ("threshold", {"upper": 1.0}) if pruner == "threshold" else pruner
    optimizer = optuna("random").build(mixed(), Brief(("maximize",), 1, pruner=given))
    for number in range(8):
        optimizer.ask(number)
        for step, value in [(0, math.nan), (0, 1.0), (-1, 1.0), (5, -math.inf), (3, math.nan)]:
            optimizer.report(number, step, value)
        optimizer.tell(Told(number, "pruned" if number % 2 else "complete", (1.0,)[number % 2 :]))


def test_several_objectives_are_never_pruned():
    optimizer = optuna("tpe").build(mixed(), Brief(("minimize", "minimize"), 1))
    optimizer.ask(0)
    assert optimizer.report(0, 1, 0.5) is False


def test_the_median_prunes_what_is_worse():
    brief = Brief(("minimize",), 1, pruner=("median", {"n_startup_trials": 2}))
    optimizer = optuna("random").build(mixed(), brief)
    for number in range(3):
        optimizer.ask(number)
        for step in range(3):
            optimizer.report(number, step, float(number))
        optimizer.tell(Told(number, "complete", (float(number),)))
    optimizer.ask(3)
    optimizer.ask(4)
    assert optimizer.report(3, 0, 9.0) is True
    assert optimizer.report(4, 0, 0.5) is False


# --- changed spaces ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tpe", "cmaes", "nsgaii"])
def test_history_that_fits_a_changed_space_is_kept(name):
    needs(name)
    brief = Brief(("minimize",), 1, 4)
    old, new = Space(x=real(0, 1), c=["a", "b"]), Space(x=real(0, 2), c=["b", "z"])
    spaces = [old]
    driver = Script(lambda: optuna(name).build(spaces[-1], brief), old, brief)
    driver.constrained = name != "cmaes"
    driver.run(30)
    driver.space = new
    spaces.append(new)
    why = driver.crash()
    assert "another" in why
    assert "left out" in why
    # Those that run still are told, whether they fit or not.
    for number, point in sorted(driver.outstanding.items()):
        driver.tell(driver.complete(number, point))
    driver.outstanding.clear()
    driver.run(20)
    # From now on the new space is the one: exact again.
    assert driver.crash() == ""
    assert all(new.parse(p) == p for p in driver.seen[-5:] if isinstance(p, dict))


def test_a_log_of_another_optimizer_is_history():
    space, brief = mixed(), Brief(("minimize",), 1)
    points = [space.draw(RandomSuggester(random.Random(n))) for n in range(30)]
    entries: list[Entry] = []
    for number, point in enumerate(points):
        entries.append(AskEntry(number, point, {"nevergrad": [1, 2]}))
        entries.append(TellEntry(Told(number, "complete", (worth(point),)), {}))
    optimizer = optuna("tpe").build(space, brief)
    assert "another" in optimizer.restore(entries)
    assert optimizer.ask(30).point.keys() == space.varied.keys()


# --- pruning for others -----------------------------------------------------------------


class Dice:
    """A real optimizer without pruning: seeded random points."""

    def __init__(self, space: Space, snapshots: bool) -> None:
        self.space, self.snapshots = space, snapshots

    def ask(self, number: int) -> Asked:
        return Asked(self.space.draw(RandomSuggester(random.Random(number))), {"own": number})

    def adopt(self, number: int, point: Point) -> dict[str, Any]:
        return {}

    def tell(self, told: Told) -> dict[str, Any]:
        return {}

    def report(self, number: int, step: int, value: float) -> bool:
        return False

    def restore(self, entries, snapshot: bytes | None = None) -> str:
        return ""

    def snapshot(self) -> bytes | None:
        return b"dice" if self.snapshots else None


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
@pytest.mark.parametrize("snapshots", [False, True])
def test_other_optimizers_can_prune_and_resume(pruner, snapshots):
    space, brief = mixed(), Brief(("minimize",), 1, 16, pruner=pruner)

    def fresh() -> Script:
        return Script(lambda: pruned_by(Dice(space, snapshots), brief), space, brief)

    whole, broken = fresh(), fresh()
    whole.run(50)
    broken.run(50)
    taken, mark = broken.optimizer.snapshot(), len(broken.log)
    assert (taken is not None) == snapshots
    for script in (whole, broken):
        script.run(15)
    broken.optimizer = broken.make()
    assert broken.optimizer.restore(broken.log[mark:] if taken else broken.log, taken) == ""
    for script in (whole, broken):
        script.run(20)
    assert broken.seen == whole.seen
    assert any(decision is True for decision in broken.seen)


def test_without_a_pruner_an_optimizer_stays_as_it_is():
    dice = Dice(mixed(), False)
    assert pruned_by(dice, Brief(("minimize",), 1)) is dice


# --- to and from Optuna -----------------------------------------------------------------


def test_trials_as_an_optuna_study_and_back():
    from pandaflow.hpo.optimizers.optuna_studies import TrialRecord, entries_of, study_of

    space = branching()
    points = [space.draw(RandomSuggester(random.Random(n))) for n in range(6)]
    trials = [
        TrialRecord(7, "running", points[4], reports=[(0, 1.0)], started=1e9 + 5),
        TrialRecord(0, "complete", points[0], (2.0,), (0.5,), started=1e9, ended=1e9 + 60),
        TrialRecord(1, "pruned", points[1], reports=[(0, 4.0), (3, 1.5), (3, 9.0)]),
        TrialRecord(2, "failed", points[2], attrs={"site": "CERN"}),
        TrialRecord(3, "complete", points[3], (1.0,), reports=[(1, math.nan)]),
        TrialRecord(5, "complete", {"gone": 1}, (9.0,)),
    ]
    study = study_of(space, ["minimize"], trials, name="mine")
    held = study.get_trials(deepcopy=False)
    assert [t.user_attrs["number"] for t in held] == [0, 1, 2, 3, 5, 7]
    assert [t.state.name for t in held] == [
        "COMPLETE", "PRUNED", "FAIL", "COMPLETE", "COMPLETE", "RUNNING",
    ]  # fmt: skip
    assert study.best_value == 1.0
    assert held[0].duration.total_seconds() == 60
    assert held[0].constraints == {"c0": 0.5}
    assert held[1].value == 1.5
    assert held[2].user_attrs["site"] == "CERN"
    assert held[4].user_attrs["point"] == {"gone": 1}
    dimensions, told = entries_of(study)
    assert dimensions["a"] == real(-5, 5)
    assert dimensions["kind"].labels == ("bdt", "nn", "none")
    assert [t.number for t in told] == [0, 1, 2, 3, 4]
    assert [t.state for t in told] == ["complete", "pruned", "failed", "complete", "complete"]
    assert told[0].constraints == (0.5,)
    assert told[3].values == (1.0,)
    assert told[0].point["a"] == points[0]["a"]


def test_ordinals_show_their_labels():
    from pandaflow.hpo.optimizers.optuna_studies import TrialRecord, study_of

    space = Space(size=ordinal(["small", "large"]))
    study = study_of(space, ["maximize"], [TrialRecord(0, "complete", {"size": "large"}, (1.0,))])
    assert study.best_params == {"size": "large"}


def test_a_foreign_study_gives_united_ranges():
    from pandaflow.hpo.optimizers.optuna_studies import entries_of

    study = library.create_study()
    for low, high in [(0, 4), (2, 9)]:
        trial = study.ask()
        trial.suggest_int("n", low, high)
        study.tell(trial, math.inf if low else 1.0)
    study.ask()
    dimensions, told = entries_of(study)
    assert dimensions == {"n": Int(0, 9)}
    assert [t.state for t in told] == ["complete", "failed"]


def test_scipy_computes_the_same_as_optuna() -> None:
    script = (
        "import numpy as np\n"
        "from optuna.samplers._tpe import _truncnorm as there\n"
        "from pandaflow.hpo.optimizers.optuna_samplers import quicken\n"
        "x = np.linspace(-35, 12, 4001)\n"
        "slow = there._log_ndtr(x)\n"
        "assert quicken()\n"
        "assert np.allclose(there._log_ndtr(x), slow, 1e-12, 1e-12)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
