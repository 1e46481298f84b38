from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import choice, fixed, integer, log, ordinal, real
from pandaflow.hpo.optimizers import designs
from pandaflow.hpo.optimizers.designs import Exhausted
from pandaflow.hpo.port import AskEntry, Brief, Told
from pandaflow.hpo.space import FunctionSpace, Space

BRIEF = Brief(("minimize",), seed=7, outstanding=4)
MIXED = Space(
    a=real(-1, 1),
    b=real(0, 10, step=0.5),
    lr=log(1e-5, 1e-1),
    n=integer(1, 64, log=True),
    m=integer(-3, 9, step=3),
    kind=choice(["bdt", "nn", None]),
)
BRANCHED = Space(
    kind=choice(
        {
            "bdt": {"depth": integer(2, 4), "leaf": ["small", "large"]},
            "nn": {"width": ordinal([8, 16, 32])},
            "none": {},
        }
    ),
    flag=[True, False],
)


def function_space() -> FunctionSpace:
    def suggest(trial: Any) -> None:
        if trial.suggest_categorical("kind", ["bdt", "nn"]) == "bdt":
            trial.suggest_int("depth", 2, 12)

    return FunctionSpace(suggest)


def drawn(spec: Any, space: Any, count: int, brief: Brief = BRIEF) -> list[Any]:
    optimizer = spec.build(space, brief)
    return [optimizer.ask(number).point for number in range(count)]


def all_of(spec: Any, space: Any) -> list[Any]:
    optimizer, points = spec.build(space, BRIEF), []
    with pytest.raises(Exhausted):
        for number in range(10_000):
            points.append(optimizer.ask(number).point)
    return points


ENDLESS = [designs.random(), designs.sobol(), designs.lhs(500)]


@pytest.mark.parametrize("spec", [*ENDLESS, designs.grid(points=3)])
@pytest.mark.parametrize("space", [MIXED, BRANCHED])
def test_every_point_is_of_the_space(spec: Any, space: Space) -> None:
    size = spec.size(space)
    for point in drawn(spec, space, min(50, size or 50)):
        assert space.parse(point) == point


@pytest.mark.parametrize("spec", [*ENDLESS, designs.grid(points=3), designs.points([{}] * 3)])
def test_specs_are_pickled_described_and_need_no_process_of_their_own(spec: Any) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.describe()["kind"] == "design"
    assert spec.isolated is False


@pytest.mark.parametrize("spec", ENDLESS)
def test_the_same_seed_gives_the_same_points_and_another_others(spec: Any) -> None:
    other = Brief(("minimize",), seed=8)
    assert drawn(spec, MIXED, 20) == drawn(spec, MIXED, 20)
    assert drawn(spec, MIXED, 20) != drawn(spec, MIXED, 20, other)


@settings(max_examples=25, deadline=None)
@given(
    which=st.sampled_from([*ENDLESS, designs.grid(points=4)]),
    before=st.integers(0, 290),
    foreign=st.sets(st.integers(0, 290), max_size=5),
)
def test_a_resumed_design_goes_on_where_it_was(which: Any, before: int, foreign: set[int]) -> None:
    first, entries = which.build(MIXED, BRIEF), []
    for number in range(before):
        if number in foreign:
            first.adopt(number, {})
            entries.append(AskEntry(number, {}, {}, own=False))
            continue
        asked = first.ask(number)
        entries.append(AskEntry(number, asked.point, asked.memo))
    second = which.build(MIXED, BRIEF)
    assert second.restore(entries) == ""
    assert [first.ask(n) for n in range(before, before + 5)] == [
        second.ask(n) for n in range(before, before + 5)
    ]


@pytest.mark.parametrize("spec", [*ENDLESS, designs.grid(points=3)])
def test_a_changed_design_is_noticed_on_resume(spec: Any) -> None:
    old = Space({**MIXED.dimensions, "kind": choice(["nn", "bdt", None])})
    first = spec.build(old, BRIEF)
    entries = [AskEntry(n, (at := first.ask(n)).point, at.memo) for n in range(120)]
    assert "another point" in spec.build(MIXED, BRIEF).restore(entries)


def test_a_shortened_design_is_noticed_on_resume() -> None:
    entries = [AskEntry(3, {"a": 0.5}, {"index": 3})]
    optimizer = designs.points([{"a": 0.5}]).build(Space(a=real(0, 1)), BRIEF)
    assert "beyond the end" in optimizer.restore(entries)


def test_results_do_not_move_a_design() -> None:
    quiet, noisy = (designs.sobol().build(MIXED, BRIEF) for _ in range(2))
    noisy.tell(Told(0, "complete", (0.0,), point={"a": 0.0}))
    assert noisy.report(0, 1, 2.0) is False
    noisy.tell(Told(1, "failed"))
    assert quiet.ask(0) == noisy.ask(0)
    assert noisy.snapshot() is None


def test_random_points_depend_on_the_trial_number_alone() -> None:
    optimizer = designs.random().build(MIXED, BRIEF)
    backwards = [optimizer.ask(number).point for number in reversed(range(10))]
    assert backwards[::-1] == drawn(designs.random(), MIXED, 10)
    assert len({tuple(point.values()) for point in backwards}) == 10


def test_random_points_are_uniform_in_each_scale() -> None:
    points = drawn(designs.random(), MIXED, 4_000)
    assert sum(point["lr"] < 1e-3 for point in points) == pytest.approx(2_000, abs=150)
    assert sum(point["kind"] is None for point in points) == pytest.approx(1_333, abs=150)


def test_random_points_of_a_function() -> None:
    points = drawn(designs.random(), function_space(), 40)
    assert {point["kind"] for point in points} == {"bdt", "nn"}
    assert all(("depth" in point) == (point["kind"] == "bdt") for point in points)


def test_a_grid_is_the_product_and_the_last_parameter_varies_fastest() -> None:
    space = Space(x=[1, 2], f=fixed("same"), y=integer(5, 9, step=2), z=real(0, 1))
    spec = designs.grid(points=3)
    expected = itertools.product([1, 2], [5, 7, 9], [0.0, 0.5, 1.0])
    assert [tuple(point.values()) for point in all_of(spec, space)] == list(expected)
    assert spec.size(space) == 18


def test_a_conditional_grid_has_each_branch_once() -> None:
    points = all_of(designs.grid(), BRANCHED)
    assert len(points) == designs.grid().size(BRANCHED) == (3 * 2 + 3 + 1) * 2
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert points[0] == {"kind": "bdt", "depth": 2, "leaf": "small", "flag": True}
    assert points[1] == {"kind": "bdt", "depth": 2, "leaf": "small", "flag": False}
    assert points[-1] == {"kind": "none", "flag": False}
    assert all(list(point) == list(BRANCHED.parse(point)) for point in points)


def test_grid_resolution_by_name() -> None:
    space = Space(x=real(0, 1), n=integer(0, 11, step=3), d=integer(1, 4096, log=True))
    points = all_of(designs.grid({"x": 2, "n": 2, "d": 4}), space)
    assert {point["x"] for point in points} == {0.0, 1.0}
    assert {point["n"] for point in points} == {0, 9}
    assert sorted({point["d"] for point in points}) == [1, 16, 256, 4096]


def test_a_real_parameter_with_a_step_brings_its_own_grid() -> None:
    assert designs.grid().size(Space(x=real(0, 1, step=0.25))) == 5


@pytest.mark.parametrize(
    ("spec", "space", "words"),
    [
        (designs.grid(), Space(x=real(0, 1)), r"hpo\.grid\(points=\{'x': 5\}\)"),
        (designs.grid(points=3), function_space(), "declared"),
        (designs.grid({"k": 3}), Space(k=["a", "b"]), "'k'"),
        (designs.grid({"y": 3}), Space(x=real(0, 1)), "'y'"),
        (designs.grid(), Space(x=fixed(1)), "fixed"),
        (designs.grid(), Space(x=integer(0, 10**30)), "1,000,000"),
        (designs.grid(points=101), Space(x=real(0, 1), y=real(0, 1), z=real(0, 1)), "1,030,301"),
        (designs.grid(), Space(x=real(0, 1, step=1e-7)), "10,000,001"),
        (designs.sobol(), function_space(), "declared"),
        (designs.lhs(3), Space(x=fixed(1)), "fixed"),
        (designs.points([{"x": 0.5}, {"x": 2.0}]), Space(x=real(0, 1)), "point 1: .*outside"),
        (designs.points([{"y": 0.5}]), Space(x=real(0, 1)), "point 0: .*missing"),
    ],
)
def test_what_cannot_work_is_refused_before_the_study(spec: Any, space: Any, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        spec.check(space, BRIEF)


@pytest.mark.parametrize(
    "make",
    [
        lambda: designs.random(seed=-1),
        lambda: designs.random(seed=True),
        lambda: designs.sobol(seed=2**63),
        lambda: designs.sobol(n=0),
        lambda: designs.lhs(1.5),  # type: ignore[arg-type]
        lambda: designs.lhs(10**9),
        lambda: designs.grid(points=0),
        lambda: designs.grid({"x": True}),
        lambda: designs.points([]),
        lambda: designs.points([3]),  # type: ignore[list-item]
    ],
)
def test_bad_options_are_refused(make: Any) -> None:
    with pytest.raises(WorkflowError, match=r"hpo\."):
        make()


def test_given_points_are_kept_in_order_with_repetitions_and_as_labels() -> None:
    space = Space(f=choice([len, sum]), x=real(0, 1))
    spec = designs.points([{"f": sum, "x": 1}, {"f": len, "x": 0}, {"f": sum, "x": 1}])
    points = all_of(spec, space)
    assert [space.arguments(point)["f"] for point in points] == [sum, len, sum]
    assert points[0] == points[2]
    assert spec.size(space) == 3


def test_descriptions_of_point_lists_tell_them_apart() -> None:
    one, other = designs.points([{"x": 0.0}]), designs.points([{"x": 1.0}])
    assert one.describe() != other.describe()
    assert one.describe() == designs.points([{"x": 0.0}]).describe()


def test_a_handed_out_point_can_be_changed_without_harm() -> None:
    space = Space(x=[1, 2])
    optimizer = designs.points([{"x": 1}, {"x": 1}]).build(space, BRIEF)
    optimizer.ask(0).point["x"] = 2
    again = designs.points([{"x": 1}]).build(space, BRIEF)
    assert again.ask(0).point == {"x": 1}


def test_lhs_has_one_point_in_each_strip() -> None:
    points = all_of(designs.lhs(50, seed=3), Space(x=real(0, 1), y=real(0, 1)))
    for name in ("x", "y"):
        assert sorted(int(50 * point[name]) for point in points) == list(range(50))


def test_sobol_is_balanced_over_blocks_and_warns_of_nothing() -> None:
    space = Space(x=real(0, 1), y=real(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = drawn(designs.sobol(), space, 1024)
    for name in ("x", "y"):
        assert sorted(int(1024 * point[name]) for point in points) == list(range(1024))
    assert len(all_of(designs.sobol(n=300), space)) == 300


def test_a_missing_scipy_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats.qmc", None)
    with pytest.raises(WorkflowError, match=r"pip install \"pandaflow\[hpo\]\""):
        designs.sobol().check(MIXED, BRIEF)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from pandaflow.hpo.optimizers import designs, external; "
        "from pandaflow.hpo import filejob, phpo; "
        "heavy = {'numpy', 'scipy', 'optuna', 'nevergrad'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
