"""Write ``docs/reference/cli.md`` from the commands themselves.

Run ``python docs/make_cli.py`` after a change to the command line; a test fails when the page has
drifted from it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from pandaflow.cli.app import app

PAGE = Path(__file__).parent / "reference" / "cli.md"
PROGRAM = "pandaflow"

INTRO = """\
# Command line

This page is written from the commands by `docs/make_cli.py`. Do not edit it: change the commands in
`pandaflow/cli` and run the script.

Results go to standard output, progress and messages to standard error. `--json` makes listings
machine-readable. The store is that of `--store`, else of the variable `PANDAFLOW_STORE`, else
`sqlite:///.pandaflow/pandaflow.db` below the current folder.
"""


def _commands(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield a command and all below it, groups first."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _commands(inner, click.Context(inner, info_name=name, parent=context))


def _text(text: str) -> Iterator[str]:
    """Yield help text as Markdown; paragraphs that click is told to keep become blocks."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield from ("```", *paragraph.removeprefix("\b").strip("\n").split("\n"), "```")
        else:
            yield " ".join(paragraph.split())
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None and record[1]
    ]
    yield "| option | meaning |"
    yield "|---|---|"
    yield from (f"| `{_cell(option)}` | {_cell(meaning)} |" for option, meaning in rows)
    yield ""


def _section(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n"
    yield from (
        "```",
        " ".join((context.command_path, *command.collect_usage_pieces(context))),
        "```",
    )
    yield ""
    yield from _text(command.help or "")
    yield from _options(command, context)
    yield from _text(command.epilog or "")


def render() -> str:
    """Return the page as Markdown."""
    root = click.Context(app, info_name=PROGRAM, **app.context_settings)
    found = list(_commands(app, root))
    lines = [INTRO, "| command | |", "|---|---|"]
    for command, context in found[1:]:
        if not isinstance(command, click.Group):
            anchor = context.command_path.replace(" ", "-")
            summary = _cell(command.get_short_help_str(200))
            lines.append(f"| [`{context.command_path}`](#{anchor}) | {summary} |")
    lines.append("")
    for command, context in found:
        lines += _section(command, context)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
