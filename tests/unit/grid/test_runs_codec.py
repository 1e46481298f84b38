"""A run's state as lines: what is written is what is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pandaflow as pf
from pandaflow.core.errors import StoreError
from pandaflow.core.status import JOB_CODES
from pandaflow.grid.runs.codec import _Jobs, dump_state, parse_state, stretches
from pandaflow.ports import BundleState, RunState, TaskState

ROW = st.tuples(
    st.integers(0, 2),
    st.sampled_from([state.value for state in JOB_CODES]),
    st.integers(0, 2),
    st.none() | st.integers(1, 3),
    st.sampled_from([0.0, 12.5]),
)


@pf.workflow
def chain(n: int = 3):
    first = pf.task(abs, name="first")(pf.items(range(n)))
    return pf.task(sum, name="second")(first.all())


def state(rows=(), bundles=()) -> RunState:
    spec = chain()._spec
    tasks = [
        TaskState(
            id=task.id,
            spec=task,
            status="running",
            n=3,
            closed=True,
            initial="ready",
            jobs=rows if not task.id else (),
            failures={2: 1},
            losses={0: 3},
            arrivals=[(1, 4), (0, 2)],
            reason="why",
        )
        for task in spec.tasks
    ]
    return RunState("run-1", spec, "running", "/there", tasks, bundles, 7, {0: (3, False)})


def listed(found: RunState) -> RunState:
    return replace(
        found,
        tasks=[replace(task, jobs=list(task.jobs)) for task in found.tasks],
        bundles=list(found.bundles),
    )


@given(st.lists(ROW, max_size=30))
def test_jobs_alike_are_one_entry_and_come_back_as_they_were(gaps) -> None:
    index, rows = -1, []
    for gap, *rest in gaps:
        index += 1 + gap
        rows.append((index, *rest))
    found = list(stretches(rows))
    assert list(_Jobs(found)) == rows
    assert sum(count for _, count, *_ in found) == len(rows)


def test_a_million_jobs_in_order_are_one_entry() -> None:
    rows = ((index, "finished", 1, 4, 0.0) for index in range(1_000_000))
    assert len(list(stretches(rows))) == 1


def test_a_state_comes_back_as_it_was() -> None:
    rows = [(0, "finished", 1, 1, 0.0), (1, "finished", 1, 1, 0.0), (2, "ready", 2, None, 99.5)]
    bundles = [
        BundleState(1, 0, range(0, 2), 1, "default", "values/000/1.values"),
        BundleState(2, 0, (0, 2), 1, "hpc"),
    ]
    given = state(rows, bundles)
    found = parse_state(dump_state(given), "https://server/files")
    assert listed(found) == replace(listed(given), results="https://server/files")


def test_what_ends_early_or_is_something_else_is_refused() -> None:
    lines = list(dump_state(state([(0, "sent", 1, 1, 0.0)])))
    assert '"end"' in lines[-1]
    for bad in (
        lines[:-1],
        [],
        ["{}"],
        ["[1]"],
        ["<html>"],
        [lines[0].replace('"version":1', '"version":9', 1), *lines[1:]],
        [lines[0], '{"bundles":[[1]]}', lines[-1]],
        [lines[0], '{"task":{"id":1}}', lines[-1]],
    ):
        with pytest.raises(StoreError, match=r"cannot be read|damaged"):
            parse_state(bad, "")
