"""Runs as displays see them: tasks of numbered sub-workflows are one row each."""

from __future__ import annotations

from typing import Any

import pytest

from pandaflow.display import units
from pandaflow.display.html import run_html
from pandaflow.display.snapshot import TaskRow, family, fold, parse_run
from pandaflow.display.text import run_text
from pandaflow.display.timeline import parse_spans, timeline_svg


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("design/17.0/simulate", "design/*/simulate"),
        ("outer/design/3.12/merge", "outer/design/*/merge"),
        ("design/3.1/inner/2", "design/*/inner/2"),
        ("train/trial", "train/trial"),
        ("sample-2.5/fill", "sample-2.5/fill"),
        ("2.5/fill", "2.5/fill"),
        ("design/17.0", "design/17.0"),
        ("v1.0", "v1.0"),
    ],
)
def test_families(name: str, shown: str) -> None:
    assert family(name) == shown


def run(*tasks: dict[str, Any], status: str = "running") -> dict[str, Any]:
    return {"id": "design-1", "name": "design", "status": status, "tasks": tasks}


def row(trial: int, task: str, status: str = "done", **jobs: int) -> dict[str, Any]:
    return {"name": f"design/{trial}.0/{task}", "status": status, "jobs": jobs}


def test_thousands_of_tasks_are_a_row_each_family() -> None:
    many = [row(n, task, finished=3) for n in range(1500) for task in ("simulate", "merge")]
    first = {"name": "prepare", "status": "done", "jobs": {"finished": 1}}
    parsed = parse_run(run(first, *many))
    assert [task.name for task in parsed.tasks] == [
        "prepare",
        "design/*/simulate",
        "design/*/merge",
    ]
    assert parsed.tasks[1].jobs == {"finished": 4500}
    assert parsed.total == 9001
    assert len(run_text(parsed).splitlines()) == 5
    assert run_html(parsed).count("<tr") == 4


def test_a_family_is_open_until_the_run_has_ended() -> None:
    tasks = [row(0, "merge", finished=1), row(1, "merge", finished=1)]
    (going,), (ended,) = parse_run(run(*tasks)).tasks, parse_run(run(*tasks, status="done")).tasks
    assert (going.status, going.total_text) == ("running", "2+")
    assert (ended.status, ended.total_text) == ("done", "2")


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (["done", "done"], "done"),
        (["done", "failed"], "finished"),
        (["failed", "failed"], "failed"),
        (["finished", "aborted"], "finished"),
    ],
)
def test_states_of_a_family_that_has_ended(found: list[str], shown: str) -> None:
    tasks = [TaskRow(f"a/{k}.0/b", status) for k, status in enumerate(found)]
    assert fold(tasks, True)[0].status == shown


def test_the_first_trouble_is_told() -> None:
    bad = {**row(1, "merge", "failed", failed=1), "reason": "no beam"}
    parsed = parse_run(run(row(0, "merge", finished=1), bad, status="failed"))
    assert parsed.tasks[0].reason == "design/1.0/merge: no beam"
    assert "no beam" in run_text(parsed)


def test_a_timeline_gives_a_family_one_colour() -> None:
    rows = [
        {"task": f"design/{n}.0/{task}", "started": 10.0 + n, "wall": 1.0, "worker": "w"}
        for n in range(40)
        for task in ("simulate", "merge")
    ]
    assert {span.task for span in parse_spans(rows)} == {"design/*/simulate", "design/*/merge"}
    svg = timeline_svg(rows, tasks=[row["task"] for row in rows])
    assert "design/*/simulate (40)" in svg
    assert "more tasks" not in svg
    assert "design/7.0/merge[0]" in svg  # tooltips tell the trial


def test_a_name_with_slashes_keeps_its_end() -> None:
    assert units.clip_name("detector/*/simulate", 12) == "…/*/simulate"
    assert units.clip_name("detector", 5) == "dete…" and units.clip_name("a/b", 3) == "a/b"
