"""Sizes, durations, ranges of jobs, files and the small rules that specs carry."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import File, Output, Resources, Source, TaskSpec, compact, runs_of
from pandaflow.core.policy import Retry, SplitRule
from pandaflow.core.quantities import parse_bytes, parse_seconds

ascending = st.sets(st.integers(0, 60), max_size=40).map(sorted)

# --- sizes and durations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (1500, 1500),
        (2.5, 2),
        ("200", 200),
        ("200 B", 200),
        ("1 GiB", 2**30),
        ("1.5gib", 3 * 2**29),
        ("200MB", 200 * 10**6),
        ("  3 KiB ", 3072),
        ("2 TB", 2 * 10**12),
        ("1e3 kB", 10**6),
    ],
)
def test_sizes(text: object, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (90, 90.0),
        (0.25, 0.25),
        ("90", 90.0),
        ("90 s", 90.0),
        ("1.5 min", 90.0),
        ("2h", 7200.0),
        ("1 D", 86400.0),
        ("02:00:00", 7200.0),
        ("01:30", 90.0),
    ],
)
def test_durations(text: object, expected: float) -> None:
    assert parse_seconds(text) == expected


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "GiB",
        "1 parsec",
        "-1",
        "1..2 MB",
        "inf",
        "nan",
        float("nan"),
        math.inf,
        -5,
        True,
        None,
        [1],
        b"1 GB",
        "1 GB 2",
    ],
)
@pytest.mark.parametrize("parse", [parse_bytes, parse_seconds])
def test_what_is_no_quantity_is_named(parse: object, bad: object) -> None:
    with pytest.raises(WorkflowError, match="memory="):
        parse(bad, "memory")  # type: ignore[operator]


@pytest.mark.parametrize("bad", ["1:2:3:4", "a:b", "::", "-1:00", "1:-5"])
def test_what_is_no_clock_time_is_named(bad: str) -> None:
    with pytest.raises(WorkflowError, match="walltime="):
        parse_seconds(bad, "walltime")


@pytest.mark.parametrize("bad", ["nan:00", "inf:00"])
def test_a_clock_time_is_finite(bad: str) -> None:
    with pytest.raises(WorkflowError, match="walltime="):
        parse_seconds(bad, "walltime")


def test_an_unknown_unit_is_told_what_is_known() -> None:
    with pytest.raises(WorkflowError, match="GIB"):
        parse_bytes("1 parsec")


@given(st.integers(0, 10**15))
def test_a_number_of_bytes_survives_every_spelling(n: int) -> None:
    assert parse_bytes(n) == parse_bytes(str(n)) == parse_bytes(f"{n} B") == n
    assert parse_bytes(f"{n}KiB") == n * 1024


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_a_clock_time_adds_up(hours: int, minutes: int, seconds: int) -> None:
    expected = hours * 3600 + minutes * 60 + seconds
    assert parse_seconds(f"{hours:02}:{minutes:02}:{seconds:02}") == expected


# --- job indices --------------------------------------------------------------------------


@given(ascending)
def test_compact_keeps_the_indices(indices: list[int]) -> None:
    assert list(compact(indices)) == indices


@given(st.integers(0, 10**9), st.integers(1, 50))
def test_contiguous_indices_become_a_range(start: int, n: int) -> None:
    wanted = range(start, start + n)
    assert compact(list(wanted)) == wanted
    assert compact(wanted) is wanted
    assert isinstance(compact(tuple(wanted)), range)


@given(ascending)
def test_runs_are_maximal_and_complete(indices: list[int]) -> None:
    runs = runs_of(compact(indices))
    assert [job for run in runs for job in run] == indices
    assert all(runs)
    assert all(left.stop < right.start for left, right in itertools.pairwise(runs))


def test_no_jobs_make_no_runs() -> None:
    assert runs_of(range(0)) == runs_of(()) == []


# --- files --------------------------------------------------------------------------------


def test_a_file_is_a_path(tmp_path: object) -> None:
    path = f"{tmp_path}/zmumu.txt"
    file = File(path, size=3, events=1)
    with open(file, "w") as stream:
        stream.write("abc")
    assert os.path.getsize(file) == file.size
    assert os.fspath(file) == str(file) == path
    assert file.name == "zmumu.txt"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("root://eos//a/b.root", "b.root"),
        ("a.root", "a.root"),
        ("s3://bucket/dir/", "dir"),
        ("rucio://mc23:AOD.1", "AOD.1"),
        ("rucio://cms:/store/data/1.root", "1.root"),
    ],
)
def test_the_name_of_a_file(path: str, name: str) -> None:
    assert File(path).name == name


# --- specs --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["events_per_job", "items_per_job", "gb_per_job", "n_jobs"])
def test_a_split_rule_is_given_once_any_is(rule: str) -> None:
    assert not SplitRule().given
    assert SplitRule(**{rule: 1}).given


def test_specs_are_frozen_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Resources().cores = 2  # type: ignore[misc]
    assert Source(1) == Source(1) != Output(1)
    assert len({Source(1), Source(1), Output(1)}) == 2
    assert Retry(retries=2) == Retry(retries=2)


def test_a_changed_task_is_a_copy() -> None:
    task = TaskSpec(id=0, name="select", token="ab12", payload="p0")
    changed = task.changed(priority=5, resources=Resources(cores=4))
    assert (task.priority, changed.priority) == (0, 5)
    assert changed.resources.cores == 4
    assert changed.name == task.name
    assert pickle.loads(pickle.dumps(changed)) == changed
