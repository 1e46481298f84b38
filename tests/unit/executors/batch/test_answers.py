"""Any text at all, and what was written read again."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.answers import (
    ceiling,
    clock,
    duration,
    elements,
    moment,
    size,
    whole,
)
from pandaflow.executors.batch.htcondor import HTCondor
from pandaflow.executors.batch.lsf import LSF
from pandaflow.executors.batch.model import BatchStatus
from pandaflow.executors.batch.pbs import PBS
from pandaflow.executors.batch.sge import SGE
from pandaflow.executors.batch.slurm import Slurm
from tests.unit.executors.batch import test_htcondor, test_lsf, test_pbs, test_sge, test_slurm

SAMPLES = {
    Slurm(): [test_slurm.QUEUE, test_slurm.ACCOUNTS],
    Slurm(accounting=False): [test_slurm.TestSlurmWithoutAccounting.histories[0].stdout],
    SGE(): [test_sge.QUEUE, *(said.stdout for said in test_sge.TestSGE.histories)],
    PBS(): [test_pbs.answer(test_pbs.JOBS), test_pbs.answer(test_pbs.HISTORY)],
    PBS(dialect="torque"): [test_pbs.TestTorque.polls[0].stdout],
    HTCondor(): [said.stdout for said in test_htcondor.TestHTCondor.polls],
    LSF(): [test_lsf.JOBS, test_lsf.TestLSF.queue_lists[0].stdout],
}
#: Pieces that steer parsers.
PIECES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["|", "\n", "[", "]", "{", "}", "<job_list>", "1_[0-9%2]", "999999999999999999", "-", "٣"]
    ),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[object, str]:
    """Draw a back-end, and text for it: anything, or a real answer with a piece exchanged."""
    backend = draw(st.sampled_from(list(SAMPLES)))
    if draw(st.booleans()):
        return backend, "".join(draw(st.lists(PIECES, max_size=12)))
    text = draw(st.sampled_from(SAMPLES[backend]))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 40)))
    return backend, text[:start] + draw(PIECES) + text[end:]


@settings(max_examples=300, deadline=None)
@given(said=answers(), stderr=PIECES, code=st.sampled_from([0, 1, 35, 153, 255]))
def test_no_text_crashes_a_parser(said: tuple[Slurm, str], stderr: str, code: int) -> None:
    backend, text = said
    parsers = (
        backend.parse_poll,
        backend.parse_history,
        backend.parse_queues,
        backend.parse_submit,
        backend.parse_cancel,
    )
    for parse in parsers:
        try:
            found = parse(text, stderr, code)
        except SiteError:
            continue
        if isinstance(found, dict):
            assert all(ref == status.ref for ref, status in found.items())


@given(st.lists(st.integers(0, 5000), min_size=1, unique=True).map(sorted), st.integers(1, 20))
def test_elements_are_read_as_slurm_and_sge_write_them(indices: list[int], throttle: int) -> None:
    parts = []
    for _, run in itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        parts.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    assert elements(f"{','.join(parts)}%{throttle}") == indices


@pytest.mark.parametrize(
    ("text", "first", "expected"),
    [
        ("2-9:4", 0, [2, 6]),
        ("1-5", 1, [0, 1, 2, 3, 4]),
        ("0", 1, []),
        ("1,2,...", 0, [1, 2]),
        ("9-2", 0, []),
        ("0-999999999", 0, []),
        ("", 0, []),
    ],
)
def test_elements(text: str, first: int, expected: list[int]) -> None:
    assert elements(text, first) == expected


@given(st.integers(0, 10**7))
def test_durations_are_read_as_written(seconds: int) -> None:
    assert duration(clock(seconds)) == seconds
    days, rest = divmod(seconds, 86400)
    assert duration(f"{days}-{clock(rest)}") == seconds


@pytest.mark.parametrize("text", ["UNLIMITED", "INFINITY", "", "-", "1:2:3:4", None])
def test_no_durations(text: str | None) -> None:
    assert duration(text) is None


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("4000", "m", 4000 * 2**20),
        ("50mb", "", 50 * 2**20),
        ("23.5G", "", 23.5 * 2**30),
        ("7208kb", "", 7208 * 2**10),
        ("1 TiB", "", 2**40),
        ("lots", "", None),
        ("-", "", None),
    ],
)
def test_sizes(text: str, unit: str, expected: float | None) -> None:
    assert size(text, unit) == expected


def test_moments() -> None:
    assert moment("1795343544") == 1795343544.0
    iso, calendar = moment("2026-11-22T10:32:24"), moment("Sun Nov  2 10:32:24 2026")
    assert iso is not None and calendar is not None
    assert iso - calendar == pytest.approx(20 * 86400, abs=7200)  # summer time may end between
    assert [moment(t) for t in ("Unknown", "N/A", "-/-", "", None, "99999-01-01")] == [None] * 6


@given(st.floats(0, 1e12), st.integers(1, 2**30))
def test_a_limit_is_never_rounded_down(amount: float, unit: int) -> None:
    units = ceiling(amount, unit)
    assert amount <= units * unit < amount + unit + 1


def test_digits_of_other_scripts_are_no_numbers() -> None:
    assert [whole(text) for text in ("٣", "1e3", "1_000", "12", " 7 ", "-29")] == [
        None,
        None,
        None,
        12,
        7,
        -29,
    ]


@given(
    states=st.lists(st.sampled_from(["PENDING", "RUNNING", "FAILED", "TIMEOUT"]), max_size=5),
    reason=st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=20),
)
def test_a_queue_is_read_as_slurm_writes_it(states: list[str], reason: str) -> None:
    text = "".join(
        f"7_{i}|{word}|1795343544|1795343545|n1|x{reason}\n" for i, word in enumerate(states)
    )
    found = Slurm().parse_poll(text, "", 0)
    assert [status.state.upper() for status in found.values()] == states
    assert list(found) == [("7", i) for i in range(len(states))]
    assert {status.reason for status in found.values()} <= {f"x{reason}".strip()}
    assert found == {ref: replace(status, id="7") for ref, status in found.items()}
    assert all(isinstance(status, BatchStatus) for status in found.values())
