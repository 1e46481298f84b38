from __future__ import annotations

import importlib
import json
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import choice, fixed, integer, log, ordinal, real
from pandaflow.hpo.optimizers.nevergrad import nevergrad
from pandaflow.hpo.optimizers.nevergrad_optimizer import NevergradOptimizer
from pandaflow.hpo.port import AskEntry, Brief, Entry, ReportEntry, TellEntry, Told
from pandaflow.hpo.space import AnySpace, FunctionSpace, Point, RandomSuggester, Space

pytest.importorskip("nevergrad")

#: The module; as an attribute of its package that name is the function.
adapter = importlib.import_module("pandaflow.hpo.optimizers.nevergrad")
space_side = importlib.import_module("pandaflow.hpo.optimizers.nevergrad_space")
inside = importlib.import_module("pandaflow.hpo.optimizers.nevergrad_optimizer")

SMALL = Space(x=real(-5, 5), rate=log(1e-5, 1e-1), depth=integer(2, 12), kind=choice(["a", "b"]))
RICH = Space(
    x=real(-5, 5),
    narrow=real(1, 1 + 1e-12),
    raster=real(0, 10, step=0.3),
    rate=log(1e-5, 1e-1),
    width=integer(1, 1000, log=True),
    even=integer(2, 20, step=4),
    size=ordinal(["s", "m", "l"]),
    flag=choice([True, 1, None, 1.5]),
    model=choice(
        {
            "bdt": {"depth": integer(2, 12)},
            "nn": {"layers": integer(1, 3), "act": choice(["relu", "tanh"])},
            "none": {},
        }
    ),
    alone=choice({"only": {"shift": real(0, 1)}}),
    one=choice(["single"]),
    same=real(2, 2),
    constant=fixed(3),
)
#: An event of a schedule: ("ask", number) or the state that a trial ends in, and its number.
Event = tuple[str, int]


def optimizer(
    name: str | None = "OnePlusOne",
    space: AnySpace = SMALL,
    *,
    outstanding: int = 4,
    seed: int = 7,
    ways: tuple[Any, ...] = ("minimize",),
    **options: Any,
) -> NevergradOptimizer:
    brief = Brief(ways, seed=seed, outstanding=outstanding, budget=200)
    return nevergrad(name, **options).build(space, brief)


def value_at(point: Point) -> float:
    return float((point["x"] - 1) ** 2 + abs(point["depth"] - 5) + (point["kind"] == "b"))  # type: ignore[operator]


def schedule(asks: int, outstanding: int) -> list[Event]:
    """Asks, and tells in random order of which every eighth is a failure."""
    rng, events = random.Random(5), list[Event]()
    waiting: list[int] = []
    for number in range(asks):
        if len(waiting) >= outstanding:
            done = waiting.pop(rng.randrange(len(waiting)))
            events.append(("failed" if rng.random() < 0.125 else "complete", done))
        events.append(("ask", number))
        waiting.append(number)
    return events


def play(
    one: NevergradOptimizer, events: list[Event], log: list[Entry], objectives: int = 1
) -> None:
    """Do the events and append them to the log."""
    points = {entry.number: entry.point for entry in log if isinstance(entry, AskEntry)}
    for state, number in events:
        if state == "ask":
            points[number] = one.ask(number).point
            log.append(AskEntry(number, points[number], {}))
            continue
        values: tuple[float, ...] = ()
        if state == "complete":
            values = (value_at(points[number]), -points[number]["x"])[:objectives]  # type: ignore[operator]
        told = Told(number, state, values)  # type: ignore[arg-type]
        log.append(TellEntry(told, one.tell(told)))


def asked(log: list[Entry]) -> list[Point]:
    return [entry.point for entry in log if isinstance(entry, AskEntry)]


# --- points -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RandomSearch", "DiscreteOnePlusOne"])
def test_every_point_is_one_of_the_space(name: str) -> None:
    one = optimizer(name, RICH)
    seen: dict[str, set[Any]] = {}
    for number in range(60):
        point = one.ask(number).point
        assert list(RICH.parse(point).items()) == list(point.items())
        assert json.loads(json.dumps(point)) == point
        for key, value in point.items():
            seen.setdefault(key, set()).add(value)
        one.tell(Told(number, "complete", (float(point["x"]),)))  # type: ignore[arg-type]
    assert seen["model"] == {"bdt", "nn", "none"}
    assert seen["even"] <= {2, 6, 10, 14, 18}
    assert seen["same"] == {2.0}
    assert min(len(seen[name]) for name in ("x", "raster", "rate", "width", "size", "flag")) > 1


def test_the_ends_of_the_array_and_beyond_are_the_ends_of_the_ranges() -> None:
    ranges = {
        "a": real(0.1, 0.3),
        "b": log(1e-5, 0.1),
        "n": integer(3, 9),
        "r": real(0, 1, step=0.3),
    }
    space = Space(**ranges, k=integer(1, 9, log=True), big=integer(-(2**60), 2**60))
    low, high = (0.1, 1e-5, 3, 0.0, 1, -(2**60)), (0.3, 0.1, 9, 0.3 * 3, 9, 2**60)
    for unit, ends in ((0.0, low), (-1e9, low), (1.0, high), (1e9, high)):
        point = space_side.Layout(space.top).decode(np.full(6, unit))
        assert space.parse(point) == point
        assert tuple(point.values()) == ends


def test_encoding_is_the_inverse_of_decoding() -> None:
    rng, layout = RandomSuggester(random.Random(3)), space_side.Layout(RICH.top)
    for _ in range(50):
        point = RICH.draw(rng)
        parametrization = layout.parametrize()
        parametrization.value = layout.encode(point)
        back = layout.decode(parametrization.value)
        assert back.keys() == point.keys()
        for name, value in point.items():
            assert type(back[name]) is type(value)
            assert back[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_all_numbers_are_one_part_and_every_choice_another() -> None:
    assert type(space_side.Layout(Space(x=real(0, 1), n=integer(1, 9)).top).parametrize()) is (
        inside.library().p.Array
    )
    layout = space_side.Layout(RICH.top)
    parts = layout.parametrize()
    # Six numbers at the top, three in branches; a choice of one option is not searched.
    assert parts["numbers"].dimension == 9
    assert len(parts) == 1 + 4
    assert layout.dimension == parts.dimension == 9 + 1 + 4 + 3 + 2


def test_branches_may_have_the_same_parameter() -> None:
    depth = {"depth": integer(2, 12)}
    space = Space(model=choice({"bdt": depth, "forest": depth, "none": {}}))
    layout = space_side.Layout(space.top)
    for point in ({"model": "bdt", "depth": 7}, {"model": "forest", "depth": 3}, {"model": "none"}):
        assert layout.decode(layout.encode(point)) == point
    one = optimizer("RandomSearch", space)
    drawn = [one.ask(number).point for number in range(40)]
    assert {point["model"] for point in drawn} == {"bdt", "forest", "none"}
    assert all(space.parse(point) == point for point in drawn)


def test_whole_numbers_and_options_are_drawn_evenly() -> None:
    one = optimizer("RandomSearch", Space(n=integer(0, 3), kind=choice(["a", "b"])))
    points = [one.ask(number).point for number in range(400)]
    counts = [sum(point["n"] == n for point in points) for n in range(4)]
    # The ends must not come up half as often as the others: 3.9 sigma around 100.
    assert min(counts) > 66
    assert 140 < sum(point["kind"] == "a" for point in points) < 260


# --- telling ----------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "sign"), [("minimize", 1), ("maximize", -1)])
@pytest.mark.parametrize("name", ["CMA", "TwoPointsDE"])
def test_it_goes_where_values_are_better(way: str, sign: int, name: str) -> None:
    space = Space(x=real(-5, 5), y=real(-5, 5))
    one = optimizer(name, space, ways=(way,), outstanding=1)
    distances = []
    for number in range(150):
        point = one.ask(number).point
        distances.append((point["x"] - 2) ** 2 + (point["y"] + 1) ** 2)  # type: ignore[operator]
        one.tell(Told(number, "complete", (sign * distances[-1],)))
    assert sum(distances[-30:]) < 0.3 * sum(distances[:30])


def test_a_trial_cannot_be_told_or_asked_twice() -> None:
    one = optimizer()
    one.ask(0)
    with pytest.raises(ValueError, match="trial 0 was asked for before"):
        one.ask(0)
    one.tell(Told(0, "complete", (1.0,)))
    for again in (Told(0, "complete", (1.0,)), Told(0, "failed", point=SMALL.draw(_any()))):
        with pytest.raises(ValueError, match="trial 0 is not outstanding"):
            one.tell(again)
    with pytest.raises(ValueError, match="trial 5 is not outstanding"):
        one.tell(Told(5, "complete", (1.0,)))


def _any() -> RandomSuggester:
    return RandomSuggester(random.Random(1))


@pytest.fixture
def told() -> Iterator[tuple[NevergradOptimizer, list[Any]]]:
    """An optimizer with five outstanding trials, and the losses that Nevergrad is told."""
    one, losses = optimizer(), []
    one._state.optimizer.register_callback("tell", lambda _, __, loss: losses.append(loss))
    for number in range(5):
        one.ask(number)
    yield one, losses


Spied = tuple[NevergradOptimizer, list[Any]]


def test_a_failure_counts_as_the_worst_value_seen_and_is_dropped_before_one(told: Spied) -> None:
    one, losses = told
    one.tell(Told(0, "failed"))
    assert losses == []
    one.tell(Told(1, "complete", (3.0,)))
    one.tell(Told(2, "complete", (1.0,)))
    one.tell(Told(3, "failed"))
    assert losses == [3.0, 1.0, 3.0]


def test_a_pruned_trial_counts_with_its_last_report(told: Spied) -> None:
    one, losses = told
    assert one.report(0, 1, 9.0) is False
    one.report(0, 2, 4.0)
    one.tell(Told(0, "pruned"))
    assert losses == [4.0]


def test_an_infeasible_trial_is_worse_than_any_feasible_one(told: Spied) -> None:
    one, losses = told
    one.tell(Told(0, "complete", (-3.0,), constraints=(-1.0, 0.0)))
    one.tell(Told(1, "complete", (-90.0,), constraints=(0.5, 0.25)))
    assert losses == [-3.0, -2.25]
    assert one._state.optimizer.current_bests["minimum"].mean == -3.0
    one.tell(Told(2, "complete", (1e300,)))
    assert losses[-1] == 5e20


@pytest.mark.parametrize("name", ["CMA", "DE", "PSO", "TBPSA", "OnePlusOne", "RandomSearch"])
def test_points_from_elsewhere_are_taken_in(name: str) -> None:
    one = optimizer(name)
    point = SMALL.parse({"x": 5, "rate": 0.1, "depth": 12, "kind": "b"})
    one.adopt(0, point)
    one.ask(1)
    one.tell(Told(1, "complete", (2.0,)))
    one.tell(Told(0, "complete", (1.0,)))
    one.tell(Told(17, "complete", (0.5,), point=SMALL.draw(_any())))
    assert SMALL.parse(one.ask(2).point)


@pytest.mark.parametrize("name", adapter.GOOD)
def test_several_objectives(name: str) -> None:
    one = optimizer(name, ways=("minimize", "maximize"))
    log: list[Entry] = []
    play(one, schedule(40, 4), log, objectives=2)
    front = one._state.optimizer.pareto_front()
    losses = {tuple(candidate.losses) for candidate in front}
    told = [entry.told.values for entry in log if isinstance(entry, TellEntry)]
    points = [(values[0], -values[1]) for values in told if values]
    best = {
        one
        for one in points
        if not any(
            all(b <= a for a, b in zip(one, two, strict=True)) and two != one for two in points
        )
    }
    # Not always all of them: Nevergrad leaves out points beyond bounds that it learns early.
    assert losses
    assert losses <= best


# --- exactness --------------------------------------------------------------------------


@pytest.mark.parametrize("name", adapter.GOOD)
def test_the_next_points_are_those_of_an_uninterrupted_optimizer(name: str) -> None:
    events = schedule(130, 32)
    middle, crash = 40, len(events) - 119
    log: list[Entry] = []
    whole = optimizer(name, outstanding=32)
    play(whole, events[:middle], log)
    snapshot = whole._dump()
    play(whole, events[middle:], log)
    assert len(asked(log[crash:])) == 60

    for start, state in ((0, None), (middle, snapshot)):
        again = optimizer(name, outstanding=32)
        assert again.restore(log[start:crash], state) == ""
        relog = log[:crash]
        play(again, events[crash:], relog)
        assert asked(relog) == asked(log)


def test_points_do_not_depend_on_the_process_and_the_import_is_silent() -> None:
    script = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1]);"
        "import test_nevergrad as here; print(json.dumps(here.some_points()))"
    )
    path = json.dumps([os.path.dirname(__file__), os.getcwd()])
    seeded = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning:_pytest", "-c"]
    done = subprocess.run(
        [*command, script, path], env=seeded, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == some_points()


def some_points() -> list[Point]:
    out = []
    for name, objectives in (("DE", 2), ("CMA", 1)):
        log: list[Entry] = []
        ways = ("minimize",) * objectives
        play(optimizer(name, ways=ways, outstanding=8), schedule(50, 8), log, objectives)
        out += asked(log)
    return out


def test_the_seed_decides() -> None:
    one, same, other = (optimizer(seed=seed).ask(0).point for seed in (2**62 + 5, 2**62 + 5, 5))
    assert one == same != other


@pytest.mark.parametrize("name", ["DiscreteOnePlusOne", "VoronoiDE"])
def test_the_users_global_generator_and_warning_filters_stay(name: str) -> None:
    filters = list(warnings.filters)
    np.random.seed(1)
    np.random.normal()  # keeps the second number of its pair
    before = repr(np.random.get_state(legacy=False))
    expected = np.random.RandomState(1).normal(size=4).tolist()
    generator = np.random.mtrand.get_bit_generator()
    first = optimizer(name)
    log: list[Entry] = []
    play(first, schedule(20, 4), log)
    assert repr(np.random.get_state(legacy=False)) == before
    assert np.random.mtrand.get_bit_generator() is generator
    assert np.random.normal(size=3).tolist() == expected[1:]
    assert warnings.filters == filters
    np.random.seed(2)
    relog: list[Entry] = []
    play(optimizer(name), schedule(20, 4), relog)
    assert asked(relog) == asked(log)


def test_a_log_of_other_points_is_told_and_the_reason_given() -> None:
    log: list[Entry] = []
    play(optimizer(seed=1), schedule(12, 4), log)
    again = optimizer(seed=2)
    reason = again.restore(log)
    assert reason.startswith("asked again for trial 0, Nevergrad gave another point")
    assert "nevergrad" in reason
    assert again._state.optimizer.num_tell_not_asked == again._state.optimizer.num_tell > 0
    finished = {entry.told.number for entry in log if isinstance(entry, TellEntry)}
    assert set(again._state.outstanding) == set(range(12)) - finished
    assert SMALL.parse(again.ask(12).point)


def test_adopted_points_and_reports_are_replayed() -> None:
    one = optimizer("TwoPointsDE")
    point = SMALL.draw(_any())
    log: list[Entry] = [AskEntry(0, point, {}, own=False), ReportEntry(0, 1, 3.0)]
    one.adopt(0, point)
    one.report(0, 1, 3.0)
    log.append(TellEntry(Told(0, "pruned"), one.tell(Told(0, "pruned"))))
    extern = Told(1, "complete", (2.0,), point=point)
    log.append(TellEntry(extern, one.tell(extern)))
    again = optimizer("TwoPointsDE")
    assert again.restore(log) == ""
    assert [one.ask(n).point for n in range(2, 40)] == [again.ask(n).point for n in range(2, 40)]


def test_a_snapshot_is_offered_when_replaying_got_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    one = optimizer("DE")
    play(one, schedule(10, 4), [])
    assert one.snapshot() is None
    monkeypatch.setattr(inside, "_REPLAY_SECONDS", 0.0)
    snapshot = one.snapshot()
    assert snapshot is not None
    assert one.snapshot() is None, "20 times the cost of the last one"
    again = optimizer("DE")
    assert again.restore([], snapshot) == ""
    assert one.ask(10).point == again.ask(10).point


def test_a_snapshot_of_other_versions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = optimizer()._dump()
    monkeypatch.setattr(inside, "installed", lambda: {"nevergrad": "0.9"})
    assert "other versions" in optimizer().restore([], snapshot)


# --- choosing ---------------------------------------------------------------------------

ONE = Brief(("minimize",), seed=1, outstanding=4, budget=50)


def test_defaults_fit_the_space() -> None:
    assert adapter.default_name(Space(a=real(0, 1), b=real(0, 1)).top) == "CMA"
    assert adapter.default_name(Space(a=real(0, 1)).top) == "OnePlusOne"
    assert adapter.default_name(SMALL.top) == adapter._DEFAULT_MIXED
    assert adapter._DEFAULT_MIXED in adapter.GOOD
    assert adapter.default_name(Space(size=ordinal(["s", "m", "l"])).top) == "OnePlusOne"
    for space in (SMALL, Space(a=real(0, 1)), Space(kind=choice(["a", "b"]))):
        nevergrad().check(space, ONE)
        assert space.parse(nevergrad().build(space, ONE).ask(0).point)


def test_a_spec_can_be_pickled_and_described() -> None:
    spec = nevergrad("TwoPointsDE", seed=3, popsize=40)
    assert pickle.loads(pickle.dumps(spec)) == spec
    described = spec.describe()
    assert (described["kind"], described["name"], spec.seed) == ("nevergrad", "TwoPointsDE", 3)
    assert described["options"] == {"popsize": "40"}
    assert {"nevergrad", "numpy"} <= set(json.loads(json.dumps(described))["versions"])
    assert spec.isolated


def test_options_reach_the_optimizer() -> None:
    assert optimizer("TwoPointsDE", popsize=41)._state.optimizer.llambda == 41
    assert optimizer("ParametrizedCMA", scale=0.25)._state.optimizer._config.scale == 0.25


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("TwoPointDE", {}, "did you mean.*TwoPointsDE"),
        ("cma", {}, "did you mean.*CMA"),
        ("CMA", {"scale": 1}, "takes no options.*ParametrizedCMA"),
        ("TwoPointsDE", {"nonsense": 1}, "nonsense"),
        ("NGOpt", {}, "NumPy 2.4.*issue 1612.*CMA, DE"),
        ("MetaModel", {}, "NumPy 2.4"),
    ],
)
def test_what_cannot_work_is_refused(name: str, options: Any, message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        nevergrad(name, **options).check(SMALL, ONE)


@pytest.mark.parametrize(
    ("name", "message"), [("Cobyla", "4 outstanding.*parallel.*Good ones: CMA"), ("FCMA", "fcmaes")]
)
def test_what_fails_when_tried_is_refused(name: str, message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        nevergrad(name).check(SMALL, ONE)


def test_what_works_when_tried_is_accepted() -> None:
    nevergrad("DoubleFastGADiscreteOnePlusOne").check(SMALL, ONE)


def test_trying_out_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_REHEARSAL_SECONDS", 0.01)
    with pytest.raises(WorkflowError, match=r"take more than 0\.01 s"):
        nevergrad("LhsDE").check(SMALL, ONE)


def test_a_space_without_anything_to_vary_is_refused() -> None:
    with pytest.raises(WorkflowError, match="no parameter of the space varies"):
        nevergrad().check(Space(a=3, b=real(1, 1), c=choice(["x"])), ONE)


def test_cma_is_refused_for_a_single_number() -> None:
    with pytest.raises(WorkflowError, match=r"'CMA'\) needs two parameters.*OnePlusOne"):
        nevergrad("CMA").check(Space(a=real(0, 1), b=real(1, 1), c=choice(["x"])), ONE)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorkflowError, match=r'pip install "pandaflow\[hpo\]"'):
        nevergrad().check(SMALL, ONE)


def test_a_space_function_is_traced() -> None:
    def define(trial: Any) -> dict[str, Any]:
        x = trial.suggest_float("x", 0, 1)
        return {"x": x, "n": trial.suggest_int("n", 1, 9, log=True)}

    space = FunctionSpace(define)
    nevergrad().check(space, ONE)
    one = optimizer(None, space)
    point = one.ask(0).point
    assert space.parse(point) == point
    assert space.arguments(point) == point


@pytest.mark.parametrize("ranges", [False, True])
def test_a_space_function_with_branches_is_refused(ranges: bool) -> None:
    def define(trial: Any) -> None:
        n = trial.suggest_int("n", 0, 40)
        if ranges:
            trial.suggest_float("x", 0, n + 1)
        elif n == 0:
            trial.suggest_float("x", 0, 1)

    with pytest.raises(WorkflowError, match=r"'x' only sometimes.*hpo\.choice"):
        nevergrad().check(FunctionSpace(define), ONE)
