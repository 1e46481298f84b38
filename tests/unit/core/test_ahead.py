"""Executors that pay for every start get more work at hand."""

from __future__ import annotations

import pytest

import pandaflow as pf
from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.sizing import MAX_JOBS, MAX_OUTSTANDING, refill_below, window
from pandaflow.testing.engine import Outcome, World


@pf.task
def inc(x: int) -> int:
    return x + 1


def many(n: int) -> object:
    return inc(pf.items(range(n)))


def of_half_a_second(name: str, emit: cmd.EmitBundle) -> Outcome:
    return Outcome(wall=0.5)


@pytest.mark.parametrize(
    ("ahead", "seconds", "nodes"),
    [
        (0.0, 0.5, 3 * 8 + 4),
        (20.0, 0.0, 3 * 8 + 4),  # nobody knows how long they take
        (20.0, 0.5, 40 * 8 + 4),
        (20.0, 60.0, 3 * 8 + 4),
        (20.0, 1e-6, MAX_JOBS * 8 + 4),
    ],
)
def test_the_window_holds_so_many_seconds_of_work(ahead: float, seconds: float, nodes: int) -> None:
    assert window(8, ahead, seconds) == nodes
    assert 8 <= refill_below(8, ahead, seconds) < nodes


def test_what_an_executor_wants_at_hand_is_sent_once_durations_are_known() -> None:
    world = World.of(many, 2000, slots={"local": 4})
    assert len(world.given) == window(4)
    world.tell(ev.SlotsChanged(world.at, "local", 4, ahead=20.0))
    assert len(world.given) <= window(4), "nothing has been measured"
    world.play(of_half_a_second, steps=2)
    assert window(4) < len(world.given) <= window(4, 20.0, 0.5)
    world.tell(ev.SlotsChanged(world.at, "local", 4))
    world.play(of_half_a_second, steps=200)
    assert len(world.given) <= window(4)


def test_there_is_an_end_to_what_is_sent_ahead() -> None:
    world = World.of(many, 20_000, slots={"local": 500}, shadow=False, checked=False)
    world.tell(ev.SlotsChanged(world.at, "local", 500, ahead=1000.0))
    world.play(of_half_a_second, steps=3)
    assert len(world.given) <= MAX_OUTSTANDING


def test_jobs_that_start_ranks_of_their_own_travel_alone() -> None:
    def ranked(n: int) -> object:
        return inc.options(nodes=2)(pf.items(range(n)))

    world = World.of(ranked, 60)
    sizes: set[int] = set()
    while not world.over:
        sizes |= {len(given.emit.jobs) for given in world.given.values()}
        world.step(lambda name, emit: Outcome(wall=1e-4))
    assert sizes == {1}
