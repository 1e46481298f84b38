from __future__ import annotations

import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pandaflow.core.errors import PandaflowError, WorkflowError
from pandaflow.hpo.dimensions import choice, fixed, integer, log, real
from pandaflow.hpo.filejob import CommandFailed
from pandaflow.hpo.optimizers.designs import Exhausted
from pandaflow.hpo.optimizers.external import UNLIMITED, external
from pandaflow.hpo.port import AskEntry, Brief, Entry, ReportEntry, TellEntry, Told
from pandaflow.hpo.space import FunctionSpace, Space

SPACE = Space(x=real(0, 1), lr=log(1e-5, 1e-1), n=integer(1, 9), kind=choice(["a", "b"]))
BRIEF = Brief(("minimize",), seed=1, outstanding=4, budget=100)
POINT = {"x": 0.5, "lr": 1e-3, "n": 3, "kind": "a"}

#: Proposes x = 0, 1/16, 2/16, ... after the points it was shown, and keeps what it was given.
STEERING = """
import json, shutil, sys
source, target, count, most, seen = sys.argv[1:6]
points = json.load(open(source))["points"]
shutil.copy(source, seen)
wanted = min(int(count), int(most) - len(points))
start = len(points)
json.dump([{"x": (start + k) / 16, "lr": 1e-3, "n": 3, "kind": "a"} for k in range(wanted)],
          open(target, "w"))
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Where the steering script leaves the input of its last call."""
    (tmp_path / "opt.py").write_text(STEERING)
    return tmp_path / "seen.txt"


def steering(seen: Path, **options: Any) -> Any:
    words = "$PWD/%IN $PWD/%OUT %NUM_POINTS %MAX_POINTS"
    return external(f"{sys.executable} opt.py {words} {seen}", **options)


def shown(seen: Path) -> Any:
    return json.loads(seen.read_text())


def writing(text: str, **options: Any) -> Any:
    return external(f"cat > %OUT <<'END'\n{text}\nEND", **options)


def test_points_are_asked_for_in_batches_and_losses_told(seen: Path) -> None:
    optimizer = steering(seen, points=2).build(SPACE, BRIEF)
    first = [optimizer.ask(number) for number in (0, 1)]
    assert [asked.point["x"] for asked in first] == [0, 1 / 16]
    assert shown(seen)["points"] == []
    optimizer.tell(Told(0, "complete", (0.25,)))
    optimizer.ask(2)
    assert shown(seen)["points"] == [[first[0].point, 0.25], [first[1].point, None]]


def test_the_space_is_sent_as_panda_writes_it(seen: Path) -> None:
    steering(seen).build(SPACE, BRIEF).ask(0)
    assert shown(seen)["opt_space"] == {
        "x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}},
        "lr": {"method": "loguniform", "dimension": {"low": 1e-5, "high": 1e-1}},
        "n": {"method": "uniformint", "dimension": {"low": 1, "high": 9}},
        "kind": {"method": "categorical", "dimension": {"categories": ["a", "b"]}},
    }


def test_a_define_by_run_space_is_sent_as_null(seen: Path) -> None:
    space = FunctionSpace(
        lambda trial: {
            "x": trial.suggest_float("x", 0, 1),
            "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
            "n": trial.suggest_int("n", 1, 9),
            "kind": trial.suggest_categorical("kind", ["a", "b"]),
        }
    )
    assert steering(seen).build(space, BRIEF).ask(0).point["x"] == 0.0
    assert shown(seen)["opt_space"] is None


@pytest.mark.parametrize(
    ("told", "direction", "loss"),
    [
        (Told(0, "complete", (0.0,)), "minimize", 0.0),
        (Told(0, "complete", (0.0,)), "maximize", 0.0),
        (Told(0, "complete", (2.5,)), "maximize", -2.5),
        (Told(0, "complete", (-2.5,)), "minimize", -2.5),
        (Told(0, "failed"), "minimize", None),
        (Told(0, "pruned"), "minimize", 0.75),
        (Told(0, "pruned"), "maximize", -0.75),
    ],
)
def test_what_is_sent_as_loss(seen: Path, told: Told, direction: Any, loss: Any) -> None:
    optimizer = steering(seen, points=1).build(SPACE, Brief((direction,), 1))
    optimizer.ask(0)
    assert optimizer.report(0, 1, 0.75) is False
    optimizer.tell(told)
    optimizer.ask(1)
    sent = shown(seen)["points"][0][1]
    assert repr(sent) == repr(loss)


@pytest.mark.parametrize(
    ("options", "brief", "wanted"),
    [
        ({}, Brief(("minimize",), 1, outstanding=8), 4),
        ({}, Brief(("minimize",), 1, outstanding=1), 1),
        ({"points": 7}, Brief(("minimize",), 1), 7),
        ({"points": 7}, Brief(("minimize",), 1, budget=5), 5),
    ],
)
def test_how_many_points_are_wanted(options: Any, brief: Brief, wanted: int) -> None:
    space = Space(n=integer(0, UNLIMITED), most=integer(0, UNLIMITED))
    spec = external('echo \'[{"n": %NUM_POINTS, "most": %MAX_POINTS}]\' > %OUT', **options)
    expected = {"n": wanted, "most": brief.budget or UNLIMITED}
    assert spec.build(space, brief).ask(0).point == expected


def test_the_studys_seed_is_told() -> None:
    optimizer = external("echo '[{\"n\": '$PANDAFLOW_SEED'}]' > %OUT").build(
        Space(n=integer(0, 9)), Brief(("minimize",), seed=7)
    )
    assert optimizer.ask(0).point == {"n": 7}


def test_the_last_batch_is_cut_to_the_budget(seen: Path) -> None:
    optimizer = steering(seen, points=2).build(SPACE, Brief(("minimize",), 1, budget=3))
    points = [optimizer.ask(number).point for number in range(3)]
    assert [point["x"] for point in points] == [0, 1 / 16, 2 / 16]
    with pytest.raises(Exhausted):
        optimizer.ask(3)


def test_equal_parameters_are_different_trials_and_marked(seen: Path) -> None:
    text = json.dumps([POINT, POINT, {**POINT, "n": 4}])
    optimizer = writing(text).build(SPACE, BRIEF)
    asked = [optimizer.ask(number) for number in range(3)]
    assert asked[0].point == asked[1].point == POINT
    assert [a.memo.get("repeats") for a in asked] == [None, 0, None]
    other = steering(seen, points=1).build(SPACE, BRIEF)
    other.adopt(0, POINT)
    other.adopt(1, POINT)
    other.tell(Told(0, "complete", (0.0,)))
    other.tell(Told(1, "complete", (1.0,)))
    other.ask(2)
    assert shown(seen)["points"] == [[POINT, 0.0], [POINT, 1.0]]


def test_points_from_elsewhere_are_shown_with_their_losses(seen: Path) -> None:
    optimizer = steering(seen).build(SPACE, BRIEF)
    optimizer.adopt(0, POINT)
    optimizer.tell(Told(1, "complete", (0.0,), point=POINT))
    assert optimizer.ask(2).point["x"] == 2 / 16
    assert shown(seen)["points"] == [[POINT, None], [POINT, 0.0]]


def test_parameters_of_other_branches_are_ignored() -> None:
    space = Space(kind=choice({"a": {"depth": integer(1, 9)}, "b": {}}), f=fixed(3))
    text = '[{"kind": "b", "depth": 4, "f": 3}, {"kind": "a", "depth": 4}]'
    optimizer = writing(text).build(space, BRIEF)
    assert optimizer.ask(0).point == {"kind": "b"}
    assert optimizer.ask(1).point == {"kind": "a", "depth": 4}


def log_of(optimizer: Any, count: int) -> list[Entry]:
    entries: list[Entry] = []
    for number in range(count):
        asked = optimizer.ask(number)
        entries.append(AskEntry(number, asked.point, json.loads(json.dumps(asked.memo))))
        if number % 2:
            told = Told(number, "complete", (0.0,))
            entries.append(TellEntry(told, optimizer.tell(told)))
        if number % 3 == 0:
            optimizer.report(number, 1, 0.5)
            entries.append(ReportEntry(number, 1, 0.5))
            told = Told(number, "pruned")
            entries.append(TellEntry(told, optimizer.tell(told)))
    return entries


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7])
def test_a_resumed_command_goes_on_within_its_batch(seen: Path, count: int) -> None:
    spec = steering(seen, points=3)
    first, second = spec.build(SPACE, BRIEF), spec.build(SPACE, BRIEF)
    assert "opt.py" in second.restore(log_of(first, count))
    for number in range(count, count + 4):
        assert first.ask(number) == second.ask(number)
    assert second.snapshot() is None


def test_an_empty_list_is_the_end() -> None:
    with pytest.raises(Exhausted, match="no further point"):
        writing("[]").build(SPACE, BRIEF).ask(0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("[{]", "no JSON"),
        ("null", "NoneType, no list"),
        ('{"x": 0.5}', "dict, no list"),
        ("[3]", "point 0: .*not int"),
        ('[[{"x": 0.5}, null]]', "point 0: .*not list"),
        ('[{"x": 0.5}]', "point 0: .*missing"),
        (json.dumps([POINT, {**POINT, "x": 1.5}]), "point 1: .*'x'.*outside"),
        (json.dumps([{**POINT, "n": 2.5}]), "'n'.*whole"),
        (json.dumps([{**POINT, "kind": "c"}]), "'kind'"),
        (json.dumps([{**POINT, "y": 1}]), "unknown parameter 'y'"),
        (json.dumps([{**POINT, "x": float("nan")}]), "'x'.*finite"),
    ],
)
def test_garbage_is_an_error_that_names_the_command(text: str, words: str) -> None:
    with pytest.raises(CommandFailed, match=words) as caught:
        writing(text).build(SPACE, BRIEF).ask(0)
    assert "cat > %OUT" in str(caught.value)
    assert isinstance(caught.value, PandaflowError)


def test_a_failing_command_is_named_with_its_code_and_last_errors() -> None:
    spec = external("echo bad space >&2; seq 100000; exit 4 # %OUT")
    with pytest.raises(CommandFailed, match=r"exit code 4: .*exit 4 # %OUT.*bad space"):
        spec.build(SPACE, BRIEF).ask(0)


def test_a_missing_output_is_an_error_even_if_an_earlier_call_left_one(seen: Path) -> None:
    optimizer = steering(seen, points=1).build(SPACE, BRIEF)
    optimizer.ask(0)
    (seen.parent / "opt.py").write_text("")
    with pytest.raises(CommandFailed, match=r"did not write .*said nothing"):
        optimizer.ask(1)


def test_after_an_error_the_next_ask_calls_again(tmp_path: Path) -> None:
    spec = external("cp answer.json %OUT", source=str(tmp_path))
    optimizer = spec.build(SPACE, BRIEF)
    with pytest.raises(CommandFailed):
        optimizer.ask(0)
    (tmp_path / "answer.json").write_text(json.dumps([POINT]))
    assert optimizer.ask(0).point == POINT


def test_a_command_that_hangs_is_ended_with_its_children() -> None:
    marker = f"sleep {4000 + os.getpid() / 1e7}"
    spec = external(f"{marker} & {marker}; echo %OUT", timeout=0.3)
    with pytest.raises(CommandFailed, match=r"longer than its time-out of 0\.3 s"):
        spec.build(SPACE, BRIEF).ask(0)
    until = time.monotonic() + 10
    while _running(marker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _running(marker)


def _running(marker: str) -> bool:
    found = psutil.process_iter(["cmdline"])
    return any(marker in " ".join(process.info["cmdline"] or []) for process in found)


def test_the_current_directory_stays_clean(tmp_path: Path, seen: Path) -> None:
    steering(seen).build(SPACE, BRIEF).ask(0)
    assert sorted(os.listdir(tmp_path)) == ["opt.py", "seen.txt"]


def test_the_specification_is_pickled_and_described() -> None:
    spec = external("opt %OUT", points=3)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.describe()["name"] == "opt %OUT"
    assert (spec.seed, spec.isolated, spec.size(SPACE)) == (None, True, None)
    spec.check(SPACE, BRIEF)


@pytest.mark.parametrize(
    ("command", "brief", "words"),
    [
        ("opt %IN", BRIEF, "no %OUT"),
        ("opt %OUT", Brief(("minimize", "maximize"), 1), "one loss only"),
    ],
)
def test_what_cannot_work_is_refused(command: str, brief: Brief, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        external(command).check(SPACE, brief)


@pytest.mark.parametrize(
    "make",
    [
        lambda: external(" "),
        lambda: external("x %OUT", points=0),
        lambda: external("x %OUT", points=True),
        lambda: external("x %OUT", timeout=-1),
    ],
)
def test_bad_options_are_refused(make: Any) -> None:
    with pytest.raises(WorkflowError, match=r"hpo\.external"):
        make()
