from __future__ import annotations

import pytest

from pandaflow.grid.messages import JobResult, Trouble
from pandaflow.grid.pool.circuit import (
    HOLD,
    LEAST,
    LONGEST,
    RING,
    SHARE,
    Circuit,
    End,
    after,
    spoiled,
)

SPOILED, FINE = "input: no replica", ""


def ends(*words: str) -> list[End]:
    return [End(number, each) for number, each in enumerate(words)]


def trouble(source: str, kind: str) -> Trouble:
    return Trouble.model_validate({"source": source, "code": 1, "kind": kind, "message": "m"})


def result(error: Trouble | None) -> JobResult:
    return JobResult(position=0, code=1, began=0.0, ended=1.0, error=error)


def test_a_few_spoiled_bundles_do_not_hold():
    circuit = after(Circuit(), ends(*[SPOILED] * (LEAST - 1)), 0.0)
    assert (circuit.state, circuit.ring) == ("open", "1" * (LEAST - 1))


def test_enough_of_them_do():
    circuit = after(Circuit(), ends(*[SPOILED] * LEAST), 10.0)
    assert (circuit.state, circuit.held_until, circuit.holds) == ("held", 10.0 + HOLD, 1)
    assert "spoiled 5 of the last 5" in circuit.reason and SPOILED in circuit.reason


@pytest.mark.parametrize("bad", range(RING + 1))
def test_the_share_among_the_last_decides(bad):
    circuit = after(Circuit(), ends(*[FINE] * (RING - bad), *[SPOILED] * bad), 0.0)
    assert (circuit.state == "held") == (bad >= SHARE * RING)


def test_only_the_last_count():
    circuit = after(Circuit(), ends(*[SPOILED] * 4, *[FINE] * RING), 0.0)
    assert circuit == Circuit(ring="0" * RING)


def test_a_ring_of_good_ends_stays_as_it_is():
    full = Circuit(ring="0" * RING)
    assert after(full, ends(FINE, FINE), 0.0) == full


def test_each_hold_is_twice_as_long_up_to_the_longest():
    circuit, seconds = after(Circuit(), ends(*[SPOILED] * LEAST), 0.0), []
    for probe in range(40):
        seconds.append(circuit.held_until)
        probing = Circuit("probing", holds=circuit.holds, probe=probe)
        circuit = after(probing, [End(probe, SPOILED)], 0.0)
    assert seconds[:4] == [HOLD, 2 * HOLD, 4 * HOLD, 8 * HOLD]
    assert seconds[-1] == LONGEST


def test_only_its_probe_opens_a_queue():
    probing = Circuit("probing", holds=2, probe=7)
    assert after(probing, [End(6, FINE), End(8, SPOILED)], 0.0) == probing
    assert after(probing, [End(7, FINE)], 0.0) == Circuit()


@pytest.mark.parametrize("state", ["held", "closed"])
def test_ends_tell_nothing_new_of_a_queue_that_gives_nothing_out(state):
    circuit = Circuit(state, held_until=5.0 if state == "held" else None)
    assert after(circuit, ends(*[SPOILED] * RING), 0.0) == circuit


@pytest.mark.parametrize(
    ("source", "kind", "counts"),
    [
        ("pilot", "input", True),
        ("site", "site", True),
        ("pilot", "memory", False),
        ("pilot", "looping", False),
        ("payload", "exit", False),
        ("server", "site", False),
    ],
)
def test_whose_fault_it_is(source, kind, counts):
    error = trouble(source, kind)
    assert bool(spoiled(error)) == counts
    assert bool(spoiled(None, [result(error)])) == counts


def test_a_bundle_that_brought_anything_to_its_end_is_not_spoiled():
    assert spoiled(None, [result(trouble("pilot", "input")), result(None)]) == ""
    assert spoiled(None, []) == ""
