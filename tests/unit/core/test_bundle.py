"""How a worker puts the arguments of each job together from slices and upstream values."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.bundle import (
    Blocked,
    BundleSpec,
    BundleValues,
    JobInputs,
    Missing,
    SourceSlice,
)
from pandaflow.core.chunking import Fixed, NoItems
from pandaflow.core.model import (
    Choice,
    Concat,
    Cross,
    CrossPart,
    Dataset,
    Input,
    Output,
    Scattered,
    Source,
    compact,
)

DEFAULTS: dict[str, Any] = {
    "run": "r1",
    "bundle": 1,
    "task": 9,
    "name": "fill",
    "token": "t",
    "kind": "function",
    "jobs": range(4),
    "attempt": 1,
    "lists": False,
    "inputs": (),
    "chunks": Fixed(4),
    "names": {3: "select"},
}


def _inputs(*deps: BundleValues, **fields: Any) -> JobInputs:
    return JobInputs(BundleSpec(**(DEFAULTS | fields)), deps, pickle.loads)


def _numbers(source: int, *items: Any, offset: int = 0) -> dict[int, SourceSlice]:
    return {source: SourceSlice(offset, items)}


#: The only dependency holds values of task 3.
UPSTREAM: dict[str, Any] = {"outputs": {3: (0,)}}


# --- sources ------------------------------------------------------------------------------


def test_a_job_gets_its_item() -> None:
    inputs = _inputs(inputs=(Input(Source(0)),), sources=_numbers(0, "a", "b", "c", "d"))
    assert [inputs.slots(job) for job in range(4)] == [["a"], ["b"], ["c"], ["d"]]


def test_a_job_of_a_split_task_gets_a_list() -> None:
    inputs = _inputs(
        inputs=(Input(Source(0)),),
        sources=_numbers(0, *"abcde"),
        lists=True,
        chunks=Fixed(5, 2),
        jobs=range(3),
    )
    assert [inputs.slots(job) for job in range(3)] == [[["a", "b"]], [["c", "d"]], [["e"]]]


def test_only_the_slice_travels() -> None:
    inputs = _inputs(
        inputs=(Input(Source(0)),), sources=_numbers(0, 50, 51, offset=50), chunks=Fixed(100)
    )
    assert [inputs.slots(job) for job in (50, 51)] == [[50], [51]]


def test_an_item_that_did_not_travel_blocks() -> None:
    inputs = _inputs(inputs=(Input(Source(7)),))
    with pytest.raises(Blocked, match="item 2 of source 7"):
        inputs.slots(2)


def test_pickled_items_are_loaded_one_by_one() -> None:
    loaded: list[bytes] = []

    def loads(frame: bytes) -> Any:
        loaded.append(frame)
        return pickle.loads(frame)

    frames = [pickle.dumps({"mass": k}) for k in range(3)]
    spec = BundleSpec(
        **DEFAULTS
        | {"inputs": (Input(Source(0)),), "sources": {0: SourceSlice(0, frames, pickled=True)}}
    )
    assert JobInputs(spec, (), loads).slots(1) == [{"mass": 1}]
    assert loaded == [frames[1]]


# --- modes --------------------------------------------------------------------------------


def test_mapped_inputs_are_zipped() -> None:
    inputs = _inputs(
        inputs=(Input(Source(0)), Input(Source(1))),
        sources=_numbers(0, 1, 2, 3, 4) | _numbers(1, "a", "b", "c", "d"),
    )
    assert [inputs.slots(job) for job in (0, 3)] == [[1, "a"], [4, "d"]]


def test_a_whole_input_is_a_list_of_its_own_for_each_job() -> None:
    inputs = _inputs(
        inputs=(Input(Source(0), "whole"),),
        sources=_numbers(0, 1, 2, 3),
        lengths={Source(0): 3},
        chunks=NoItems(2),
    )
    first = inputs.slots(0)[0]
    first.append("spoilt by job 0")
    assert inputs.slots(1) == [[1, 2, 3]]


def test_a_single_input_is_the_same_for_each_job() -> None:
    inputs = _inputs(
        BundleValues(range(1), ["calibration"]),
        inputs=(Input(Output(3), "single"), Input(Source(0))),
        sources=_numbers(0, 1, 2, 3, 4),
        **UPSTREAM,
    )
    assert [inputs.slots(job) for job in (0, 3)] == [["calibration", 1], ["calibration", 4]]


def test_no_inputs_no_slots() -> None:
    assert _inputs(chunks=NoItems(4)).slots(3) == []


# --- upstream outputs ---------------------------------------------------------------------


@given(st.sets(st.integers(0, 40), min_size=1), st.integers(1, 5), st.booleans())
def test_outputs_come_from_whatever_bundle_made_them(
    made: set[int], per_bundle: int, as_ranges: bool
) -> None:
    jobs = list(range(min(made), max(made) + 1)) if as_ranges else sorted(made)
    parts = [compact(jobs[k : k + per_bundle]) for k in range(0, len(jobs), per_bundle)]
    deps = [BundleValues(part, [job * job for job in part]) for part in parts]
    inputs = _inputs(
        *deps,
        inputs=(Input(Output(3)),),
        outputs={3: tuple(range(len(parts)))},
        chunks=Fixed(50),
    )
    for job in range(50):
        if job in jobs:
            assert inputs.slots(job) == [job * job]
        else:
            with pytest.raises(Blocked, match=rf"select\[{job}\].*did not travel"):
                inputs.slots(job)


def test_a_missing_output_blocks_with_its_reason() -> None:
    values = ["ok", Missing("select[1] failed")]
    inputs = _inputs(
        BundleValues(range(2), values),
        inputs=(Input(Output(3)),),
        **UPSTREAM,
    )
    assert inputs.slots(0) == ["ok"]
    with pytest.raises(Blocked, match=r"select\[1\] failed"):
        inputs.slots(1)


@pytest.mark.parametrize("mode", ["mapped", "whole"])
def test_lists_go_without_what_is_absent(mode: Any) -> None:
    values = [1, Missing("skipped", absent=True), 3, None]
    inputs = _inputs(
        BundleValues(range(4), values),
        inputs=(Input(Output(3), mode),),
        lists=True,
        chunks=Fixed(4, 4),
        lengths={Output(3): 4},
        absent=frozenset({(3, 0)}),
        **UPSTREAM,
    )
    assert inputs.slots(0) == [[3, None]]


@pytest.mark.parametrize("mode", ["mapped", "whole"])
def test_lists_are_blocked_by_any_other_gap(mode: Any) -> None:
    values = [1, Missing("skipped", absent=True), Missing("select[2] is tried again")]
    inputs = _inputs(
        BundleValues(range(3), values),
        inputs=(Input(Output(3), mode),),
        lists=True,
        chunks=Fixed(3, 3),
        lengths={Output(3): 3},
        **UPSTREAM,
    )
    with pytest.raises(Blocked, match="tried again"):
        inputs.slots(0)


def test_a_single_item_that_is_absent_blocks() -> None:
    inputs = _inputs(
        BundleValues(range(2), [1, 2]),
        inputs=(Input(Output(3)),),
        absent=frozenset({(3, 1)}),
        **UPSTREAM,
    )
    with pytest.raises(Blocked, match=r"select\[1\]"):
        inputs.slots(1)


@pytest.mark.parametrize("retried", [range(1, 2), (1, 3)])
def test_a_later_attempt_fills_the_gap_of_an_earlier_one(retried: Any) -> None:
    gaps = [0, Missing("failed"), 20, Missing("failed")]
    inputs = _inputs(
        BundleValues(range(4), gaps),
        BundleValues(retried, [10 * job for job in retried]),
        inputs=(Input(Output(3)),),
        outputs={3: (0, 1)},
    )
    assert [inputs.slots(job) for job in range(3)] == [[0], [10], [20]]
    if 3 in retried:
        assert inputs.slots(3) == [30]
    else:
        with pytest.raises(Blocked, match="failed"):
            inputs.slots(3)


def test_a_later_failure_does_not_take_a_value_away() -> None:
    inputs = _inputs(
        BundleValues(range(2), [1, 2]),
        BundleValues(range(1, 2), [Missing("lost on the second try")]),
        inputs=(Input(Output(3)),),
        outputs={3: (0, 1)},
    )
    assert inputs.slots(1) == [2]


def test_items_of_returned_lists_are_found_by_job_and_place() -> None:
    values = [["a", "b"], ["c"]]
    inputs = _inputs(
        BundleValues(range(2), values),
        inputs=(Input(Scattered(3)),),
        # Job 1 was faster: its item is the dataset's first. Items 0 and 1 stayed at home.
        scattered={3: (2, ((1, 0), (0, 0), (0, 1)))},
        chunks=Fixed(5),
        **UPSTREAM,
    )
    assert [inputs.slots(job)[0] for job in (2, 3, 4)] == ["c", "a", "b"]


def test_items_of_a_list_that_is_missing_block() -> None:
    values = [Missing("select[0] failed")]
    inputs = _inputs(
        BundleValues(range(1), values),
        inputs=(Input(Scattered(3)),),
        scattered={3: (0, ((0, 0),))},
        **UPSTREAM,
    )
    with pytest.raises(Blocked, match="failed"):
        inputs.slots(0)


# --- products, concatenations -------------------------------------------------------------

lengths = st.lists(st.integers(1, 4), min_size=2, max_size=3)


def _product(sizes: list[int]) -> tuple[Cross, dict[str, Any], list[tuple[Any, ...]]]:
    parts = tuple(Source(k) for k in range(len(sizes)))
    items = [[f"{k}.{i}" for i in range(n)] for k, n in enumerate(sizes)]
    expected = list(product(*items))
    fields = {
        "sources": {k: SourceSlice(0, part) for k, part in enumerate(items)},
        "lengths": {part: n for part, n in zip(parts, sizes, strict=True)},
        "chunks": Fixed(len(expected)),
    }
    return Cross(parts), fields, expected


@given(lengths)
def test_a_product_varies_its_last_part_fastest(sizes: list[int]) -> None:
    cross, fields, expected = _product(sizes)
    inputs = _inputs(inputs=(Input(cross),), **fields)
    assert [inputs.slots(job)[0] for job in range(len(expected))] == expected


@given(lengths)
def test_parts_of_a_product_are_its_columns(sizes: list[int]) -> None:
    cross, fields, expected = _product(sizes)
    slots = tuple(Input(CrossPart(cross, part)) for part in range(len(sizes)))
    inputs = _inputs(inputs=slots, **fields)
    assert [tuple(inputs.slots(job)) for job in range(len(expected))] == expected


def test_a_product_with_a_missing_part_blocks() -> None:
    cross = Cross((Source(0), Source(1)))
    inputs = _inputs(
        inputs=(Input(cross),), sources=_numbers(0, 1, 2), lengths={Source(0): 2, Source(1): 2}
    )
    with pytest.raises(Blocked, match="source 1"):
        inputs.slots(0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_concatenated_datasets_follow_each_other(sizes: list[int]) -> None:
    parts: tuple[Dataset, ...] = tuple(Source(k) for k in range(len(sizes)))
    items = [[(k, i) for i in range(n)] for k, n in enumerate(sizes)]
    expected = [item for part in items for item in part]
    inputs = _inputs(
        inputs=(Input(Concat(parts)),),
        sources={k: SourceSlice(0, part) for k, part in enumerate(items)},
        lengths=dict(zip(parts, sizes, strict=True)),
        chunks=Fixed(len(expected)),
    )
    assert [inputs.slots(job)[0] for job in range(len(expected))] == expected


def test_a_choice_must_be_resolved_before_it_travels() -> None:
    with pytest.raises(TypeError, match="Choice"):
        _inputs(inputs=(Input(Choice(0, Source(0), Source(1))),))


# --- job graphs ---------------------------------------------------------------------------


def _graph(values: list[Any], edges: Mapping[int, tuple[int, ...]]) -> JobInputs:
    return _inputs(
        BundleValues(range(len(values)), values),
        kind="graph",
        chunks=NoItems(4),
        outputs={9: (0,)},
        edges=edges,
        node_names={0: "a", 1: "b", 2: "c", 3: "d"},
    )


def test_a_node_gets_what_it_waits_for_by_name() -> None:
    inputs = _graph([1, 2, 3], {3: (0, 2)})
    assert inputs.upstream(3) == {"a": 1, "c": 3}
    assert inputs.upstream(1) == {}


def test_a_node_is_blocked_by_name() -> None:
    with pytest.raises(Blocked, match=r"^b: .*broke"):
        _graph([1, Missing("broke")], {2: (0, 1)}).upstream(2)


# --- travel -------------------------------------------------------------------------------


@pytest.mark.parametrize("travel", [pickle.dumps, lambda spec: pickle.dumps(spec, protocol=4)])
def test_a_bundle_travels_as_a_small_pickle(travel: Callable[[BundleSpec], bytes]) -> None:
    spec = BundleSpec(
        **DEFAULTS | {"jobs": range(10**6), "chunks": Fixed(10**6), "lengths": {Output(3): 10**6}}
    )
    frame = travel(spec)
    assert pickle.loads(frame) == spec
    assert len(frame) < 4096
