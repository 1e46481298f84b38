"""Batch states matched with heartbeats, ghosts, back-off, and classes that pilots leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pandaflow.grid.messages import Needs
from pandaflow.harvester.account import (
    FRESH,
    Heard,
    Looked,
    Record,
    ghosts,
    matched,
    parse_heard,
    seats,
    stillborn,
)
from pandaflow.harvester.health import LEFT, LONGEST, Backoff, Refusal, counted, key, refused
from pandaflow.harvester.sizing import Seat
from pandaflow.harvester.submitter import UNKNOWN, PilotState, Shape

T = 1_000_000.0
NODE = Shape(cores=4)
RUNNING = PilotState(phase="running")
RECORD = Record(name="l-1", shape=NODE, ordered=T, id="7")


def look(record: Record = RECORD, at: float = T + 30, **seen: Any) -> Record:
    (after,) = matched([record], Looked(at, **seen)).values()
    return after


# --- matching ---------------------------------------------------------------------------


def test_a_pilot_s_life() -> None:
    one = look(states={"7": PilotState(phase="waiting", reason="Priority")})
    assert (one.phase, one.why) == ("waiting", "Priority")
    one = look(one, T + 40, states={"7": RUNNING})
    assert (one.phase, one.began, one.first) == ("running", T + 40, None)
    one = look(one, T + 50, states={"7": RUNNING}, heard={"l-1": Heard(2, 0, 4)})
    assert (one.first, one.heard, one.idle, one.worked) == (T + 50, T + 48, None, True)
    one = look(one, T + 60, states={"7": RUNNING}, heard={"l-1": Heard(1, 4, 0)})
    assert (one.idle, one.free) == (T + 60, 4)
    one = look(one, T + 70, states={"7": RUNNING}, heard={"l-1": Heard(1, 4, 0)})
    assert one.idle == T + 60
    one = look(one, T + 80, states={"7": PilotState(phase="gone", code=0)})
    assert (one.phase, one.ended, one.why) == ("gone", T + 80, "exit code 0")
    assert not stillborn(one)


def test_what_nobody_knows_is_given_up_late() -> None:
    lost = replace(RECORD, id="")
    assert look(lost, T + 90) == lost
    over = look(lost, T + 90 + 1)
    assert over.phase == "gone" and "never begun" in over.why
    assert look(lost, T + 90 + 1, heard={"l-1": Heard(0, 4, 0)}).phase == "ordered"
    assert look(lost, found={"9": "l-1"}, states={"9": RUNNING}).id == "9"


def test_a_system_may_be_slow_to_know_a_pilot() -> None:
    assert look(at=T + FRESH - 1, states={"7": UNKNOWN}) == RECORD
    assert look(at=T + FRESH, states={"7": UNKNOWN}).phase == "gone"
    assert look(at=T + 1, states={"7": PilotState(phase="gone", code=1)}).phase == "gone"


def test_a_harvester_without_notes_takes_in_what_it_finds() -> None:
    after = matched([RECORD], Looked(T, {"7": RUNNING, "8": RUNNING}, {"8": "l-2", "7": "l-1"}))
    assert set(after) == {"l-1", "l-2"} and after["l-2"].id == "8"
    assert after["l-2"].phase == "running"


def test_silence_of_a_system_changes_nothing() -> None:
    assert look(states={}) == RECORD


def test_how_pilots_are_stillborn() -> None:
    dead = look(states={"7": PilotState(phase="gone", code=127, reason="not found")})
    assert "l-1 was never heard of: exit code 127, not found" in stillborn(dead)
    told = look(replace(RECORD, wish="cancel", why="idle"), states={"7": UNKNOWN})
    assert stillborn(told) == "" and told.why.startswith("idle (")


def test_rows_of_the_server() -> None:
    row = {"pilot": "a", "ago": 3, "free": 2, "running": 1, "command": "", "alive": True}
    assert parse_heard([row, {**row, "pilot": "b", "alive": False}]) == {"a": Heard(3, 2, 1)}


# --- ghosts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "since", "now", "word"),
    [
        ({}, T, T + 101, "never heard of for 101 s"),
        ({}, T, T + 99, ""),
        ({}, T + 50, T + 101, ""),  # the server did not answer before
        ({"heard": T + 50, "first": T}, T, T + 251, "silent for 201 s"),
        ({"heard": T + 50, "first": T}, T, T + 249, ""),
        ({"wish": "cancel"}, T, T + 999, ""),
        ({"phase": "waiting", "began": None}, T, T + 999, ""),
    ],
)
def test_ghosts(fields: dict[str, Any], since: float, now: float, word: str) -> None:
    record = replace(RECORD, **{"phase": "running", "began": T, **fields})
    said = [each.why for each in ghosts([record], now, since, ghost=100.0, heartbeat=200.0)]
    assert said == ([f"a ghost: {word}"] if word else [])


# --- seats ------------------------------------------------------------------------------


def test_stages() -> None:
    running = replace(RECORD, phase="running", began=T)
    cases = {
        "ordered": RECORD,
        "waiting": replace(RECORD, phase="waiting"),
        "starting": running,
        "busy": replace(running, first=T + 1),
        "idle": replace(running, first=T + 1, idle=T + 5),
    }
    for stage, record in cases.items():
        (one,) = seats([record], {}, [], "l", T + 10)
        assert (one.stage, one.ours, one.leaving) == (stage, True, False)
    assert one.since == 5


def test_pilots_that_no_record_has() -> None:
    heard = {
        "l-2": Heard(3, 2, 0),
        "other": Heard(3, 1, 1),
        "l-past": Heard(30, 4, 0),
        "l-back": Heard(1, 4, 0),
        "dead": Heard(100, 4, 0),
    }
    gone = [replace(RECORD, name=n, phase="gone", ended=T - 20) for n in ("l-past", "l-back")]
    found = {each.name: each for each in seats([], heard, gone, "l", T)}
    assert set(found) == {"l-2", "other", "l-back"}
    assert found["l-2"].ours and found["l-2"].stage == "idle" and not found["other"].ours


# --- back-off ---------------------------------------------------------------------------


def test_pauses_double_to_a_bound_and_one_lot_counts_once() -> None:
    one = Backoff().after_failure("x", T, 30.0)
    assert (one.failures, one.until, one.credit(T)) == (1, T + 30, 0)
    same = one.after_failure("y", T + 10, 30.0)
    assert (same.failures, same.until, same.reason) == (1, T + 30, "y")
    assert one.credit(T + 30) == 1
    two = one.after_failure("z", T + 40, 30.0)
    assert (two.failures, two.until) == (2, T + 100)
    for _ in range(2_000):
        two = two.after_failure("z", two.until, 30.0)
    assert two.until - LONGEST * 2_000 < T + 10 * LONGEST
    assert Backoff().credit(T) is None


# --- classes that pilots leave ----------------------------------------------------------

NEEDS = Needs(python="3.9", cores=2)
IDLE = Seat("p", NODE, "idle", cores=4, since=100.0)


def left(
    known: dict[str, Refusal],
    now: float = T,
    since: float = T - 100,
    seats: tuple[Seat, ...] = (IDLE,),
    running: tuple[str, ...] = (),
) -> dict[str, Refusal]:
    waiting = {key(NEEDS): (NEEDS, since)}
    return refused(known, waiting, running, seats, frozenset(), now)


def test_what_idle_pilots_do_not_take_is_not_counted() -> None:
    known = left({})
    assert known == {key(NEEDS): Refusal(1, T + LEFT)}
    waiting = {key(NEEDS): (NEEDS, 5)}
    assert counted(waiting, known, T) == []
    (probe,) = counted(waiting, known, T + LEFT)
    assert probe.probe and probe.ready == 5
    assert left(known, T + 1) == known
    assert left(known, T + LEFT)[key(NEEDS)] == Refusal(2, T + 3 * LEFT)
    assert left(known, running=(key(NEEDS),)) == {}


@pytest.mark.parametrize(
    "case",
    [
        {"since": T - 30},
        {"seats": ()},
        {"seats": (replace(IDLE, since=30.0),)},
        {"seats": (replace(IDLE, stage="busy"),)},
        {"seats": (replace(IDLE, cores=1),)},
        {"running": (key(NEEDS),)},
    ],
)
def test_what_is_no_proof(case: dict[str, Any]) -> None:
    assert left({}, **case) == {}
