"""``pandaflow runner``: drives runs that were left with a server."""

from __future__ import annotations

import logging
import os
import re
import signal
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from pandaflow.cli.options import store_of, store_option
from pandaflow.cli.server import ca_option, server_option, stop_with_stdin
from pandaflow.core.errors import WorkflowError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}")
#: What a file may say of an executor.
_KNOWN = frozenset({"queue", "near", "tags", "requirements", "data", "slots"})


@click.command()
@store_option
@server_option
@click.option(
    "--runs", type=click.IntRange(1), default=16, show_default=True, help="Runs to drive at once."
)
@click.option("--name", default="", help="What this runner is called in its log.")
@click.option(
    "--vo", "vos", multiple=True, help="Virtual organisation whose runs it drives; may be repeated."
)
@click.option(
    "--data",
    metavar="URL",
    default="",
    help="Folder or fsspec URL that runners and pilots reach, for what is too large for the "
    "server.",
)
@click.option(
    "--executor",
    "queues",
    multiple=True,
    metavar="NAME=QUEUE",
    help="What tasks may name by executor=NAME: a queue of the pool; may be repeated.",
)
@click.option(
    "--executors",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The same as TOML: a table for each NAME, with queue, tags, near, requirements, data.",
)
@click.option("--once", is_flag=True, help="Drive what there is, and end.")
@ca_option
@click.option("--stop-with-stdin", is_flag=True, hidden=True)
@click.pass_context
def runner(
    ctx: click.Context,
    /,
    store: str | None,
    queues: tuple[str, ...],
    file: Path | None,
    ca: Path | None,
    **options: Any,
) -> None:
    """Drive runs that were left with a server, until SIGTERM; any number of runners may.

    The first SIGTERM gives the runs back, and the next runner goes on with them; a second one
    ends this process at once. Users' code runs in pilots only.

    \b
    Examples:
      pandaflow runner --server http://127.0.0.1:8790
      pandaflow --store postgresql://panda@db/flow runner --server https://pool.example.org \\
          --vo atlas --runs 50 --data s3://scratch/pandaflow --executor big=CERN
    """
    from pandaflow.config import read_settings
    from pandaflow.runners import RunnerService, RunnerSettings

    once, watched = options.pop("once"), options.pop("stop_with_stdin")
    logging.getLogger("pandaflow.runners").setLevel(logging.INFO)
    settings = RunnerSettings(
        store=store_of(ctx, store) or read_settings().store,
        ca="" if ca is None else str(ca),
        executors={**_from_file(file), **dict(map(_named, queues))},
        **options,
    )
    service = RunnerService(settings)
    _stop_on_signals(service.stop)
    if watched:
        stop_with_stdin()
    service.serve(once=once)


def _named(text: str) -> tuple[str, dict[str, Any]]:
    name, equals, queue = text.partition("=")
    if not (equals and queue):
        raise WorkflowError(f"--executor {text}: give NAME=QUEUE")
    return _checked(name, "--executor"), {"queue": queue}


def _from_file(path: Path | None) -> dict[str, dict[str, Any]]:
    """Return what a file says of executors, by name."""
    if path is None:
        return {}
    try:
        told = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WorkflowError(f"{path} is no TOML: {error}") from error
    for name, table in told.items():
        _checked(name, str(path))
        unknown = sorted(set(table) - _KNOWN) if isinstance(table, dict) else [name]
        if unknown:
            known = ", ".join(sorted(_KNOWN))
            raise WorkflowError(f"{path}: {unknown[0]!r} is no setting of [{name}]; known: {known}")
    return told


def _checked(name: str, where: str) -> str:
    if name == "default" or not _NAME.fullmatch(name):
        raise WorkflowError(f"{where}: {name!r} cannot be an executor's name: use letters, digits")
    return name


def _stop_on_signals(stop: Callable[[], None]) -> None:
    """Let the first signal stop in peace; the second one ends this process."""
    told: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if told:
            os._exit(128 + number)
        told.append(number)
        stop()

    _handle((signal.SIGTERM, signal.SIGINT), hear)


def _handle(
    numbers: Iterable[signal.Signals], hear: Callable[[int, FrameType | None], None]
) -> None:
    for number in numbers:
        signal.signal(number, hear)


COMMANDS: tuple[click.Command, ...] = (runner,)
