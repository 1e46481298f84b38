"""What active learning computes without a run: scores, choices, the state after a round."""

from __future__ import annotations

import ast
import math
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.hpo import active
from pandaflow.hpo.active import ActiveState, Picks

np = pytest.importorskip("numpy")

PROBABILITIES = [[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0], [0.6, 0.2, 0.2]]


class Model:
    """Knows the probabilities of classes for items that are numbers of rows."""

    def __init__(self, rows: Any = PROBABILITIES) -> None:
        self.rows = np.asarray(rows)

    def predict_proba(self, items: Any) -> Any:
        return self.rows[np.asarray(items)]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("uncertainty", [0.5, 0.6, 0.0, 0.4]),
        ("margin", [0.0, -0.1, -1.0, -0.4]),
        (
            "entropy",
            [
                math.log(2),
                -0.4 * math.log(0.4) - 0.6 * math.log(0.3),
                0.0,
                -0.6 * math.log(0.6) - 0.4 * math.log(0.2),
            ],
        ),
    ],
)
def test_scores_by_hand(name: str, wanted: list[float]) -> None:
    score: Any = active._named(name)
    assert score(Model(), [0, 1, 2, 3]) == pytest.approx(wanted)


def test_one_class_alone_is_certain() -> None:
    model = Model([[1.0], [1.0]])
    for name, wanted in (("uncertainty", 0.0), ("margin", -1.0), ("entropy", 0.0)):
        score: Any = active._named(name)
        assert list(score(model, [0, 1])) == [wanted, wanted]


def plan(**changes: Any) -> active._Plan:
    return active._Plan(**{"batch": 2, "initial": 3, "seed": 5, "target": None} | changes)


def test_the_highest_scores_are_chosen_in_order() -> None:
    state = ActiveState(round=1, indices=(4,), dropped={2: "lost"}, model="m")
    asked = []

    def score(model: Any, items: list[str]) -> list[int]:
        asked.append((model, items))
        return [{"a": 3, "b": 9, "d": 5}[item] for item in items]

    picks = active._choose(state, list("abcde"), plan(), score)
    assert asked == [("m", ["a", "b", "d"])]
    assert (picks, picks.scores, picks.left) == ([(1, "b"), (3, "d")], [9.0, 5.0], 1)


def test_picks_keep_what_they_know_when_pickled() -> None:
    picks = active._choose(ActiveState(), np.arange(10), plan(), None)
    again = pickle.loads(pickle.dumps(picks))
    assert type(again) is Picks and again == picks
    assert (again.left, again.array, len(again.scores)) == (7, True, 3)


def test_among_equals_chance_chooses_the_same_each_time() -> None:
    state = ActiveState(round=1, model="m")
    chosen = [active._choose(state, range(1000), plan(), lambda m, xs: [0] * len(xs))] * 2
    assert chosen[0] == chosen[1] != [(0, 0), (1, 1)]
    other = active._choose(state, range(1000), plan(seed=6), lambda m, xs: [0] * len(xs))
    assert other != chosen[0]


def test_equal_scores_are_drawn_evenly() -> None:
    pairs = [active._best([0.0] * 10, list(range(10)), 5, random.Random(k)) for k in range(400)]
    counts = np.bincount([index for best in pairs for _, index in best], minlength=10)
    assert abs(counts - 200).max() < 6 * math.sqrt(100)


def test_the_last_round_is_cut_to_the_target() -> None:
    state = ActiveState(round=4, labels=(0,) * 9, indices=tuple(range(9)))
    assert len(active._choose(state, range(50), plan(target=10), None)) == 1
    assert len(active._choose(state, range(50), plan(target=20), None)) == 2
    assert len(active._choose(state, range(10), plan(target=20), None)) == 1


def picks_of(*indices: int) -> Picks:
    picks = Picks((index, f"item {index}") for index in indices)
    picks.scores, picks.left = [float(index) for index in indices], 7
    return picks


def test_a_round_adds_what_came() -> None:
    before = ActiveState(1, (0,), ("item 0",), ("zero",), (0.0,), (0,), {9: "lost"}, 10, "old")
    labels = [active._Label(3, "three"), active._Label(4, reason="skipped: no")]
    seen = []

    def train(items: Any, labels: Any) -> str:
        seen.append((items, labels))
        return "new"

    after = active._learned(before, picks_of(5, 3, 4), labels, train)
    assert seen == [(["item 0", "item 3"], ["zero", "three"])]
    assert (after.indices, after.scores, after.rounds) == ((0, 3), (0.0, 3.0), (0, 1))
    assert after.dropped == {9: "lost", 5: "its job failed", 4: "skipped: no"}
    assert (after.round, after.left, after.model) == (2, 7, "new")
    assert before.labels == ("zero",) and before.dropped == {9: "lost"}
    assert "2 labels, 3 dropped, 7 left" in repr(after)


def test_a_round_without_labels_does_not_train() -> None:
    def train(items: Any, labels: Any) -> str:
        raise AssertionError("nothing was learned")

    after = active._learned(ActiveState(model="old"), picks_of(5), [], train)
    assert (after.model, after.round, after.labels) == ("old", 1, ())


def test_train_may_wait_for_more() -> None:
    def train(items: Any, labels: Any) -> str:
        raise pf.Skip("too few")

    after = active._learned(ActiveState(), picks_of(5), [active._Label(5, 1)], train)
    assert (after.model, after.labels) == (None, (1,))


def test_false_and_zero_are_labels_and_models() -> None:
    label = [active._Label(5, False)]
    after = active._learned(ActiveState(), picks_of(5), label, lambda items, labels: 0)
    assert (after.labels, after.model) == ((False,), 0)


def test_a_table_is_refused_as_a_pool() -> None:
    table = type("DataFrame", (SimpleNamespace,), {"__iter__": lambda self: iter("columns")})
    with pytest.raises(pf.WorkflowError, match="pool is a DataFrame"):
        active._pool(table(iloc=None))


def test_numpy_and_the_like_are_imported_when_needed() -> None:
    tree = ast.parse(Path(active.__file__).read_text(encoding="utf-8"))
    top = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    } | {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in top} & {"numpy", "sklearn", "scipy"}
