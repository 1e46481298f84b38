"""Rules that end studies: what they compare, what they say, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from pandaflow import hpo
from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.book import Book
from pandaflow.hpo.stops import parse_rules
from tests.unit.hpo.test_book import told


def book_of(*values: float, direction: str = "minimize") -> Book:
    book = Book([direction])
    for value in values:
        told(book, value, t=[0.0, 10.0])
    return book


@pytest.mark.parametrize(
    ("direction", "values", "reached"),
    [
        ("minimize", (2.0,), False),
        ("minimize", (1.0,), True),
        ("minimize", (5.0, 0.5, 3.0), True),
        ("maximize", (0.5,), False),
        ("maximize", (1.0,), True),
        ("maximize", (), False),
    ],
)
def test_target(direction: str, values: tuple[float, ...], reached: bool) -> None:
    reason = hpo.target(1.0).reached(book_of(*values, direction=direction), 0.0)
    assert bool(reason) == reached


def test_a_target_of_zero_is_reached_by_zero() -> None:
    assert "trial 1" in hpo.target(0.0).reached(book_of(1.0, 0.0), 0.0)


def test_an_infeasible_trial_reaches_no_target() -> None:
    book = Book(["minimize"])
    told(book, 0.0, c=[1.0])
    assert not hpo.target(1.0).reached(book, 0.0)


def test_a_target_needs_one_objective() -> None:
    with pytest.raises(WorkflowError, match="several"):
        hpo.target(1.0).reached(Book(["minimize", "minimize"]), 0.0)


def test_patience_and_cost_and_timeout() -> None:
    book = book_of(1.0, 2.0, 3.0)
    assert not hpo.patience(3).reached(book, 0.0)
    assert "2" in hpo.patience(2).reached(book, 0.0)
    assert not hpo.cost(31).reached(book, 0.0)
    assert "30" in hpo.cost("30 s").reached(book, 0.0)
    assert not hpo.timeout("1min").reached(book, 59.0)
    assert hpo.timeout("1min").reached(book, 60.0)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "3"])
def test_patience_is_a_number_of_trials(wrong: Any) -> None:
    with pytest.raises(WorkflowError, match="at least 1"):
        hpo.patience(wrong)


@pytest.mark.parametrize("wrong", ["soon", -5, None])
@pytest.mark.parametrize("rule", [hpo.timeout, hpo.cost])
def test_times_that_are_none_are_refused(rule: Any, wrong: Any) -> None:
    with pytest.raises(WorkflowError, match=rule.__name__):
        rule(wrong)


def test_rules_are_given_alone_or_in_a_list() -> None:
    rule = hpo.patience(3)
    assert parse_rules(None) == () and parse_rules(rule) == (rule,)
    assert parse_rules([rule, hpo.target(1)]) == (rule, hpo.target(1.0))
    with pytest.raises(WorkflowError, match="is no rule"):
        parse_rules([rule, 0.5])
