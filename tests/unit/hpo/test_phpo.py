from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.core.errors import DataError, WorkflowError
from pandaflow.hpo.dimensions import choice, fixed, integer, log, ordinal, real
from pandaflow.hpo.phpo import from_phpo, space_from_phpo, space_to_phpo
from pandaflow.hpo.port import Brief, Told
from pandaflow.hpo.space import Space

SPACE = {
    "auto_lr": {"method": "categorical", "dimension": {"categories": [True, False]}},
    "batch_size": {"method": "uniformint", "dimension": {"low": 10, "high": 30}},
}


def one(method: str, **dimension: Any) -> Any:
    return space_from_phpo({"p": {"method": method, "dimension": dimension}}).dimensions["p"]


@pytest.mark.parametrize(
    ("method", "dimension", "expected"),
    [
        ("uniform", {"low": 0, "high": 1.5}, real(0, 1.5)),
        ("uniformint", {"low": 1, "high": 3}, integer(1, 3)),
        ("uniformint", {"low": 1.0, "high": 3.0}, integer(1, 3)),
        ("loguniform", {"low": 1e-5, "high": 0.1}, log(1e-5, 0.1)),
        ("loguniform", {"low": 1e-5, "high": 0.1, "base": 2}, log(1e-5, 0.1)),
        ("loguniformint", {"low": 1, "high": 64}, integer(1, 64, log=True)),
        ("quniform", {"low": 0, "high": 1, "q": 0.25}, real(0, 1, step=0.25)),
        ("quniform", {"low": 0.1, "high": 0.9, "q": 0.25}, real(0.25, 0.75, step=0.25)),
        ("quniformint", {"low": 1, "high": 17, "q": 4}, integer(4, 16, step=4)),
        ("categorical", {"categories": ["a", 2, None]}, choice(["a", 2, None])),
        ("categorical", {"categories": [1, True], "grid_search": 0}, choice([1, True])),
        ("fixed", {"value": [1, 2]}, fixed([1, 2])),
    ],
)
def test_methods(method: str, dimension: Any, expected: Any) -> None:
    assert one(method, **dimension) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"type": "Choice", "params": {"choices": [1, 4]}}, choice([1, 4])),
        ({"type": "TransitionChoice", "params": {"choices": [1, 4]}}, ordinal([1, 4])),
        ({"type": "Scalar", "bounds": [0, 5]}, real(0, 5)),
        ({"type": "Scalar", "params": {"lower": 0, "upper": 5}}, real(0, 5)),
        ({"type": "Log", "params": {"lower": 0.001, "upper": 1}}, log(0.001, 1)),
        ([-2, 2], real(-2, 2)),
        ((-2, 2), real(-2, 2)),
    ],
)
def test_spaces_of_idds_own_optimizers(entry: Any, expected: Any) -> None:
    assert space_from_phpo({"p": entry}).dimensions["p"] == expected


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"method": "normal", "dimension": {"mu": 0, "sigma": 1}}, "'normal' has no bounds"),
        ({"method": "qlognormal", "dimension": {}}, "'qlognormal' has no bounds"),
        ({"method": "qloguniform", "dimension": {}}, "use loguniform"),
        ({"method": "loguni", "dimension": {}}, "unknown method 'loguni'; known are .*uniform"),
        ({"method": ["uniform"], "dimension": {}}, "unknown method"),
        ({"method": "uniform", "dimension": [0, 1]}, "dimension must be"),
        ({"method": "uniform", "dimension": {"low": 0}}, "'high' is missing"),
        ({"method": "uniform", "dimension": {"low": "0", "high": 1}}, "low='0'"),
        ({"method": "uniform", "dimension": {"low": 0, "high": float("inf")}}, "high=inf"),
        ({"method": "uniform", "dimension": {"low": 0, "high": 10**400}}, "high=1000"),
        ({"method": "uniform", "dimension": {"low": 2, "high": 1}}, "above|two numbers"),
        ({"method": "loguniform", "dimension": {"low": 0, "high": 1}}, "positive|two numbers"),
        ({"method": "uniformint", "dimension": {"low": 0.5, "high": 1}}, "low=0.5"),
        ({"method": "quniform", "dimension": {"low": 0, "high": 1, "q": 0}}, "q=0"),
        ({"method": "quniform", "dimension": {"low": 1, "high": 2, "q": 5}}, "no multiple"),
        ({"method": "categorical", "dimension": {"categories": []}}, "must be a list"),
        ({"method": "categorical", "dimension": {}}, "'categories' is missing"),
        ({"type": "Array", "params": {"shape": [2]}}, "'Array' is not supported"),
        ({"type": "Scalar"}, "two bounds"),
        ([1, 2, 3], "no pair"),
        (3, "give"),
    ],
)
def test_bad_dimensions_name_the_parameter(entry: Any, words: str) -> None:
    with pytest.raises(WorkflowError, match=rf"parameter 'p': .*({words})"):
        space_from_phpo({"p": entry})


@pytest.mark.parametrize("space", [{}, [SPACE], [], 3, "x"])
def test_bad_spaces_are_refused(space: Any) -> None:
    with pytest.raises(WorkflowError, match="phpo"):
        space_from_phpo(space)


def test_segments_are_refused_with_the_remedy() -> None:
    with pytest.raises(WorkflowError, match="one study for each segment"):
        from_phpo({"searchSpace": SPACE, "segmentSpecFile": "seg.json"})
    with pytest.raises(WorkflowError, match="segments"):
        from_phpo({"opt_space": [{"model_id": 0, "search_space": SPACE}]})


def test_repeated_categories_of_the_manuals_example_count_once() -> None:
    space = {"depth": {"method": "categorical", "dimension": {"categories": [1, 1, 2]}}}
    config = from_phpo({"searchSpace": space})
    assert config.space == Space(depth=[1, 2])
    assert config.notes == ("depth: repeated categories count once",)


numbers = st.floats(-1e6, 1e6).map(lambda x: x + 0.0)
ranges = st.tuples(numbers, numbers).map(sorted)
whole = st.tuples(st.integers(-1000, 1000), st.integers(0, 1000), st.integers(1, 9))
dimensions = st.one_of(
    ranges.map(lambda r: real(*r)),
    st.tuples(st.floats(1e-9, 1), st.floats(1, 1e9)).map(lambda r: log(*r)),
    st.integers(1, 10).map(lambda k: real(0, k * 0.25, step=0.25)),
    whole.map(lambda w: integer(w[0] * w[2], w[0] * w[2] + w[1] // w[2] * w[2], step=w[2])),
    st.integers(1, 50).map(lambda n: integer(1, n, log=True)),
    st.lists(st.text(max_size=3), min_size=1, max_size=4, unique=True).map(choice),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcde"), dimensions, min_size=1))
def test_a_space_written_and_read_is_the_same(given_dimensions: Any) -> None:
    space = Space(given_dimensions)
    assert space_from_phpo(json.loads(json.dumps(space_to_phpo(space)))) == space


def test_what_the_format_cannot_say() -> None:
    space = Space(f=fixed(len), kind=choice({"a": {"n": integer(1, 3)}, "b": {}}))
    assert list(space_to_phpo(space)) == ["kind", "n"]


def test_a_file_with_its_search_space_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "space.json").write_text(json.dumps(SPACE))
    (folder / "config.json").write_text(
        json.dumps(
            {
                "searchSpaceFile": "space.json",
                "maxPoints": 40,
                "nParallelEvaluation": "4",
                "site": "XYZ",
                "evaluationContainer": "docker://x",
                "trainingDS": None,
            }
        )
    )
    monkeypatch.chdir("/")
    config = from_phpo(folder / "config.json")
    assert config.space == Space(auto_lr=[True, False], batch_size=integer(10, 30))
    assert (config.n_trials, config.parallel) == (40, 4)
    assert config.ignored == ("evaluationContainer", "site", "trainingDS")
    assert (config.evaluation, config.steering, config.initial) == (None, None, ())


def test_phpos_defaults() -> None:
    config = from_phpo({"searchSpace": SPACE})
    assert (config.n_trials, config.parallel) == (10, 1)
    assert (config.points_per_iteration, config.min_unevaluated) == (2, 0)


@pytest.mark.parametrize(
    "name", ["nPointsPerIteration", "num_points_per_generation", "num_points_per_iteration"]
)
def test_points_per_iteration_has_three_names_and_none_is_lost(name: str) -> None:
    config = from_phpo(
        {"opt_space": SPACE, name: 5, "min_unevaluated_points": 2, "arguments": "opt %IN %OUT"}
    )
    assert (config.points_per_iteration, config.min_unevaluated) == (5, 2)
    assert config.steering is not None
    assert config.steering.points == 3
    assert config.ignored == ()


def test_one_option_with_two_values_is_refused() -> None:
    with pytest.raises(WorkflowError, match="maxPoints and max_points"):
        from_phpo({"searchSpace": SPACE, "maxPoints": 3, "max_points": 4})
    assert from_phpo({"searchSpace": SPACE, "maxPoints": 3, "max_points": 3}).n_trials == 3


def test_initial_points_are_kept_and_zero_is_a_loss() -> None:
    first, second = {"auto_lr": True, "batch_size": 10}, {"auto_lr": False, "batch_size": 30}
    config = from_phpo(
        {"opt_space": SPACE, "initial_points": [[first, 0.0], [first, None], (second, -1), second]}
    )
    assert config.initial == ((first, 0.0), (first, None), (second, -1), (second, None))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ("x", "a list"),
        ([3], "point 0: give"),
        ([[{"auto_lr": True, "batch_size": 10}, "0.5"]], "point 0: loss"),
        ([[{"auto_lr": True, "batch_size": 10}, True]], "point 0: loss"),
        ([[{"auto_lr": True, "batch_size": 10}, float("nan")]], "point 0: loss"),
        ([[{"auto_lr": True, "batch_size": 99}, None]], "point 0: .*outside"),
        ([[{"auto_lr": True}, None]], "point 0: .*missing"),
    ],
)
def test_bad_initial_points(points: Any, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        from_phpo({"searchSpace": SPACE, "initialPoints": points})


@pytest.mark.parametrize(
    "option",
    [
        {"maxPoints": 0},
        {"maxPoints": "many"},
        {"maxPoints": 2.5},
        {"nParallelEvaluation": True},
        {"minUnevaluatedPoints": -1},
        {"evaluationExec": ["python", "x.py"]},
        {"steeringExec": 3},
        {"searchSpaceFile": "space.json"},
    ],
)
def test_bad_options_are_refused(option: Any) -> None:
    with pytest.raises(WorkflowError):
        from_phpo({"searchSpace": SPACE, **option})


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothere\.json cannot be read"):
        from_phpo(tmp_path / "nothere.json")
    with pytest.raises(DataError, match=r"space\.json cannot be read"):
        from_phpo({"searchSpaceFile": str(tmp_path / "space.json")})
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json is no JSON"):
        from_phpo(str(tmp_path / "broken.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(WorkflowError, match="JSON object"):
        from_phpo(tmp_path / "list.json")
    with pytest.raises(WorkflowError, match="no search space"):
        from_phpo({"maxPoints": 3})


TOY = """
import json, sys
point = json.load(open("point.json"))
json.dump({"status": 0, "loss": float(point["batch_size"] - 10)}, open("loss.json", "w"))
"""
STEER = """
import json, sys
points = json.load(open(sys.argv[1]))["points"]
best = min((loss, point["batch_size"]) for point, loss in points if loss is not None)[1]
json.dump([{"auto_lr": True, "batch_size": max(10, best - 1)}], open(sys.argv[2], "w"))
"""


def test_evaluation_and_steering_of_a_project_work_together(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "steer.py").write_text(STEER)
    config_file = tmp_path / "config.json"
    config_file.write_text(
        json.dumps(
            {
                "searchSpace": SPACE,
                "evaluationExec": f"{sys.executable} toy.py",
                "evaluationInput": "point.json",
                "evaluationOutput": "loss.json",
                "steeringExec": f"{sys.executable} steer.py $PWD/%IN $PWD/%OUT",
                "initial_points": [[{"auto_lr": True, "batch_size": 12}, 2.0]],
            }
        )
    )
    config = from_phpo(config_file)
    assert config.steering is not None
    assert config.evaluation is not None
    optimizer = config.steering.build(config.space, Brief(("minimize",), 1))
    point, loss = config.initial[0]
    assert loss is not None
    optimizer.tell(Told(0, "complete", (loss,), point=point))
    losses = []
    for number in (1, 2):
        asked = optimizer.ask(number)
        losses.append(config.evaluation(**config.space.arguments(asked.point)))
        optimizer.tell(Told(number, "complete", (losses[-1],)))
    assert losses == [1.0, 0.0]
    assert optimizer.ask(3).point["batch_size"] == 10
