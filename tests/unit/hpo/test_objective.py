"""What objectives are given and may return, without any executor."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pandaflow as pf
from pandaflow import hpo
from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.objective import check_call, read_result, ticket_of, wants_trial
from pandaflow.hpo.searching import as_objective, evaluating

finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Evaluate one point as a job, in this thread; its attributes come back with the outcome."""

    def evaluate(function: Any, objectives: int = 1, **point: Any) -> dict[str, Any]:
        task = evaluating(as_objective(function), objectives)

        @pf.workflow
        def one() -> Any:
            return task(ticket_of(4, 1, point, 77))

        executor = pf.executors.Local(workers=0)
        run = one().run(executor=executor, store=f"sqlite:///{tmp_path}/store.db")
        return dict(run.result())

    return evaluate


@given(finite)
def test_every_finite_number_is_a_value(number: float) -> None:
    assert read_result(number, 1) == {"v": [number], "c": [], "a": {}, "why": ""}


@given(st.lists(finite, min_size=2, max_size=4))
def test_several_objectives_are_told_in_any_of_these_ways(numbers: list[float]) -> None:
    named = {f"o{n}": number for n, number in enumerate(numbers)}
    ways = [numbers, tuple(numbers), named, {"value": numbers}, hpo.Result(numbers)]
    assert [read_result(way, len(numbers))["v"] for way in ways] == [numbers] * len(ways)


@pytest.mark.parametrize("answer", [0, 0.0, -0.0, Fraction(0), [0.0], {"loss": 0.0}, (0,)])
def test_zero_is_a_value_however_it_is_written(answer: Any) -> None:
    found = read_result(answer, 1)
    assert found["v"] == [0.0] and not found["why"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [float, lambda v: {"loss": v}, hpo.Result, lambda v: (v,)])
def test_what_is_not_finite_is_a_failure(bad: float, wrap: Any) -> None:
    found = read_result(wrap(bad), 1)
    assert found["v"] == [] and str(bad) in found["why"]


def test_a_constraint_that_is_not_finite_is_a_failure() -> None:
    found = read_result(hpo.Result(1.0, constraints=[math.nan]), 1)
    assert found["why"] and found["v"] == [] and found["c"] == []


@pytest.mark.parametrize("answer", [None, True, "0.5", b"1", object(), [None]])
def test_what_is_no_number_is_named_by_its_type(answer: Any) -> None:
    found = read_result(answer, 1)
    assert type(answer).__name__ in found["why"] and found["v"] == []


@pytest.mark.parametrize(("answer", "objectives"), [((1, 2), 1), (1.0, 2), ((), 1), ({}, 1)])
def test_a_wrong_count_of_numbers_is_a_failure(answer: Any, objectives: int) -> None:
    assert f"the study has {objectives}" in read_result(answer, objectives)["why"]


def test_results_carry_constraints_and_attributes() -> None:
    expected = {"v": [1.0], "c": [-1.0, 2.0], "a": {"model": "m.pt"}, "why": ""}
    given = hpo.Result(1, constraints=[-1, 2], attrs={"model": "m.pt"})
    assert read_result(given, 1) == expected
    plain = {"value": 1, "constraints": (-1, 2), "attrs": {"model": "m.pt"}}
    assert read_result(plain, 1) == expected


def test_array_scalars_are_numbers() -> None:
    np = pytest.importorskip("numpy")
    assert read_result(np.float32(0.5), 1)["v"] == [0.5]
    assert read_result([np.float64(1), np.int64(2)], 2)["v"] == [1.0, 2.0]
    assert read_result(np.array(3.0), 1)["v"] == [3.0]


# --- the job of an evaluation -----------------------------------------------------------


def test_the_handle_tells_the_trial_about_itself(evaluate: Any) -> None:
    def objective(x: float, trial: hpo.Trial) -> float:
        trial.attrs["seen"] = (trial.number, trial.repeat, trial.seed, trial.params)
        trial.set_user_attr("two", 2)
        trial.report(3.0)
        trial.report(2.0)
        trial.report(1.0, step=10)
        assert not trial.should_prune()
        return x

    outcome = evaluate(objective, x=0.5)
    assert (outcome["n"], outcome["r"], outcome["s"], outcome["v"]) == (4, 1, "complete", [0.5])
    assert outcome["a"] == {"seen": (4, 1, 77, {"x": 0.5}), "two": 2}
    assert outcome["i"] == [[0, 3.0], [1, 2.0], [10, 1.0]]
    assert outcome["t"][0] <= outcome["t"][1]


def test_pruning_itself_is_an_outcome(evaluate: Any) -> None:
    def objective(x: float, trial: hpo.Trial) -> float:
        trial.report(9.0)
        raise hpo.TrialPruned("no good")

    outcome = evaluate(objective, x=1.0)
    assert (outcome["s"], outcome["why"], outcome["i"]) == ("pruned", "no good", [[0, 9.0]])


def test_optunas_own_exception_prunes_too(evaluate: Any) -> None:
    optuna = pytest.importorskip("optuna")

    def objective(x: float) -> float:
        raise optuna.TrialPruned()

    assert evaluate(objective, x=1.0)["s"] == "pruned"


def test_other_exceptions_are_the_jobs_to_report(evaluate: Any) -> None:
    def objective(x: float) -> float:
        raise KeyError("x")

    with pytest.raises(pf.RunFailed, match="KeyError"):
        evaluate(objective, x=1.0)


def test_attributes_of_trial_and_result_are_joined(evaluate: Any) -> None:
    def objective(trial: hpo.Trial) -> hpo.Result:
        trial.attrs.update(a=1, b=1)
        return hpo.Result(1.0, attrs={"b": 2})

    assert evaluate(objective)["a"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(("value", "step"), [("high", 0), (None, 0), (1.0, "first"), ([1], 1)])
def test_reports_that_are_no_numbers_are_refused(value: Any, step: Any) -> None:
    with pytest.raises(WorkflowError, match="a number and a whole step"):
        hpo.Trial(0, {}).report(value, step)


# --- arguments --------------------------------------------------------------------------


def test_an_argument_that_the_objective_does_not_take() -> None:
    def objective(x: float) -> float: ...

    with pytest.raises(WorkflowError, match="takes no argument 'y'"):
        check_call("objective", objective, ["x", "y"], complete=True)


def test_an_argument_that_nobody_gives() -> None:
    def objective(x: float, y: float, z: float = 0.0, *, trial: Any) -> float: ...

    with pytest.raises(WorkflowError, match="needs an argument 'y'"):
        check_call("objective", objective, ["x"], complete=True)
    check_call("objective", objective, ["x"], complete=False)
    check_call("objective", objective, ["x", "y"], complete=True)


def test_optunas_style_gets_a_hint() -> None:
    def objective(t: Any) -> float: ...

    with pytest.raises(WorkflowError, match="Optuna's style"):
        check_call("objective", objective, [], complete=True)


def test_keywords_of_any_name_and_functions_without_signature_pass() -> None:
    def objective(**anything: float) -> float: ...

    check_call("objective", objective, ["x", "y"], complete=True)
    check_call("min", min, ["x"], complete=True)
    assert not wants_trial(min)
