"""How rows reach a person or a pipe.

On a terminal: coloured tables. In a pipe: aligned plain text without borders, for grep and awk.
With ``--json``: JSON. Rows are streamed, so that a million jobs need no more memory than one
page of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from typing import Any

import click

#: Rows that are measured for the widths of columns; what follows keeps these widths.
PAGE = 500

Row = Mapping[str, Any]

STYLES: Mapping[str, str] = {
    "done": "green",
    "finished": "green",
    "running": "cyan",
    "scouting": "cyan",
    "sent": "cyan",
    "holding": "cyan",
    "paused": "yellow",
    "exhausted": "yellow",
    "failed": "red",
    "aborted": "magenta",
    "cancelled": "magenta",
    "closed": "bright_black",
}

_MOMENTS = frozenset({"created", "started", "ended", "at", "time"})
_SECONDS = frozenset({"wall", "cpu"})


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as JSON; what JSON has no word for becomes text."""
    return json.dumps(value, indent=indent, default=str, ensure_ascii=False)


def echo_json(value: Any) -> None:
    """Write one JSON document."""
    click.echo(json_text(value, indent=2))


def echo_json_rows(rows: Iterable[Any]) -> None:
    """Write a JSON list, one row a line, as rows come."""
    mark = "["
    for row in rows:
        click.echo(f"{mark}\n {json_text(row)}", nl=False)
        mark = ","
    click.echo("[]" if mark == "[" else "\n]")


def counts(jobs: Mapping[str, int] | None) -> str:
    """Return counts by state as text: ``12 finished, 1 failed``."""
    return ", ".join(f"{n} {state}" for state, n in (jobs or {}).items() if n) or "-"


def cell(column: str, value: Any) -> str:
    """Return a value as the text of a table's cell, on one line."""
    if value is None or value == "":
        return "-"
    if column in _MOMENTS and isinstance(value, int | float):
        return datetime.fromtimestamp(value).strftime("%Y-%m-%d %H:%M:%S")
    if column in _SECONDS and isinstance(value, int | float):
        return f"{value:.3g} s"
    if isinstance(value, Mapping):
        value = value.get("message") or counts(value)
    return " ".join(str(value).split())


def echo_table(columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as a table: with colour on a terminal, plain in a pipe.

    Parameters
    ----------
    columns : sequence of str
        Keys of the rows, in order; also the headings.
    rows : iterable of mapping
        May be long: at most a page of them is held.
    """
    stream = ([cell(column, row.get(column)) for column in columns] for row in rows)
    page = list(islice(stream, PAGE))
    rest = next(stream, None)
    if rest is None and sys.stdout.isatty():
        _rich_table(columns, page)
        return
    following = chain(page, [] if rest is None else [rest], stream)
    for line in _aligned([column.upper() for column in columns], page, following):
        click.echo(line)


def _aligned(
    heading: list[str], page: list[list[str]], lines: Iterable[list[str]]
) -> Iterator[str]:
    widths = [max(map(len, cells)) for cells in zip(heading, *page, strict=True)]
    for cells in chain([heading], lines):
        padded = (text.ljust(width) for text, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _rich_table(columns: Sequence[str], page: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    for cells in page:
        table.add_row(*(Text(text, style=STYLES.get(text, "")) for text in cells))
    Console().print(table)
