"""Rows reach a pipe as plain aligned text or as JSON, and never all at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pandaflow.cli.output import PAGE, cell, counts, echo_json_rows, echo_table

Out = pytest.CaptureFixture[str]


def test_a_table_in_a_pipe_is_plain_and_aligned(capsys: Out) -> None:
    rows = [{"name": "select", "status": "done"}, {"name": "a", "status": "failed"}]
    echo_table(("name", "status"), rows)
    assert capsys.readouterr().out == "NAME    STATUS\nselect  done\na       failed\n"


def test_a_table_without_rows_has_its_heading(capsys: Out) -> None:
    echo_table(("id", "name"), [])
    assert capsys.readouterr().out == "ID  NAME\n"


@pytest.mark.parametrize("n", [PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_no_row_is_lost_around_a_page(n: int, capsys: Out) -> None:
    echo_table(("index",), ({"index": k} for k in range(n)))
    assert capsys.readouterr().out.split() == ["INDEX", *map(str, range(n))]


def _counting(n: int, taken: list[int]) -> Iterator[dict[str, Any]]:
    for k in range(n):
        taken.append(k)
        yield {"index": k}


def test_rows_are_streamed(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    held: list[int] = []
    written = 0

    def count(_text: str) -> None:
        nonlocal written
        written += 1
        held.append(len(taken) - written)

    monkeypatch.setattr("click.echo", count)
    echo_table(("index",), _counting(4 * PAGE, taken))
    assert written == 4 * PAGE + 1
    assert max(held) <= PAGE + 1


@pytest.mark.parametrize("n", [0, 1, 3])
def test_json_rows_are_one_list(n: int, capsys: Out) -> None:
    rows = [{"index": k, "µ": "Z→µµ"} for k in range(n)]
    echo_json_rows(iter(rows))
    text = capsys.readouterr().out
    assert json.loads(text) == rows
    assert len(text.splitlines()) <= n + 2, "one row a line"


def test_a_cell_is_one_line() -> None:
    assert cell("reason", "OSError:\n  disk full") == "OSError: disk full"
    assert cell("worker", None) == cell("worker", "") == "-"
    assert cell("index", 0) == "0"
    assert cell("failure", {"kind": "exception", "message": "boom"}) == "boom"
    assert cell("jobs", {"finished": 3, "failed": 0, "ready": 1}) == "3 finished, 1 ready"
    assert cell("wall", 0.123456) == "0.123 s"
    assert len(cell("created", 1.7e9)) == len("2023-11-14 22:13:20")


def test_no_jobs_count_as_a_dash() -> None:
    assert counts({}) == counts(None) == counts({"failed": 0}) == "-"
