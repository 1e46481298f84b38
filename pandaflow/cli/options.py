"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pandaflow.client import Run

store_option = click.option(
    "--store", metavar="URL", help="State store; may also be given before the command."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
task_option = click.option("--task", metavar="TASK", help="Only this task.")
run_argument = click.argument("run_id", metavar="RUN")


def store_of(ctx: click.Context, given: str | None) -> str | None:
    """Return the store to use: the command's option, else the global one, else None."""
    found = given or ctx.obj.store
    return None if found is None else str(found)


def attach(ctx: click.Context, run_id: str, store: str | None) -> Run:
    """Return the run that an id, the start of one, or ``last`` names.

    Raises
    ------
    RunNotFound
        There is no such run.
    """
    from pandaflow import client

    return client.attach(run_id, store=store_of(ctx, store))


def executor_of(ctx: click.Context, options: Mapping[str, Any]) -> Any:
    """Return the executor that ``--executor`` and ``--workers`` name.

    It is closed with the command and not at the interpreter's exit: by then the threads that
    Dask would close it with are gone.
    """
    from pandaflow.cli.places import parse_executor

    made = parse_executor(options["executor"], options["workers"])
    close = getattr(made, "close", None)
    if close is not None:
        ctx.call_on_close(close)
    return made
