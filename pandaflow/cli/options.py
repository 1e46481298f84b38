"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pandaflow.core.errors import WorkflowError

if TYPE_CHECKING:
    from pandaflow.client import Run

_Command = TypeVar("_Command", bound=Callable[..., Any])

store_option = click.option(
    "--store", metavar="URL", help="State store; may also be given before the command."
)


def _note_ca(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None and ctx.obj is not None:
        ctx.obj = replace(ctx.obj, ca=value)


_server_ca_option = click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False),
    envvar="PANDAFLOW_CA",
    expose_value=False,
    callback=_note_ca,
    help="Certificates that a server's is checked by, PEM.",
)


def place_option(command: _Command) -> _Command:
    """Add the options that say where a run is: in a database, or behind a server."""
    where = click.option(
        "--store",
        metavar="URL",
        help="State store, or a server's address; may also be given before the command.",
    )
    return where(_server_ca_option(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
ca_option = click.option(
    "--ca",
    type=click.Path(exists=True, path_type=Path),
    envvar="PANDAFLOW_CA",
    help="Certificates that the server's is checked by.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
executor_option = click.option(
    "--executor",
    multiple=True,
    metavar="[NAME=]WHERE",
    help="local (processes), threads, sync (no concurrency), dask:ADDRESS, slurm:PARTITION, "
    "sge:QUEUE, pbs:QUEUE, lsf:QUEUE, htcondor, globus:ENDPOINT_ID, grid:URL, FILE.py:NAME (an "
    "executor, or a function that makes one) or the name of an installed one. Remote ones take "
    "settings: 'slurm:main?walltime=2h&cores=16&max_nodes=4' (default: 1 core, 1 h, at most 10 "
    "nodes). Again with NAME= for tasks that name an executor. Default: local.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Processes (local) or threads (threads). Default: the cores of this machine.",
)
task_option = click.option("--task", metavar="TASK", help="Only this task.")
run_argument = click.argument("run_id", metavar="RUN")


def store_of(ctx: click.Context, given: str | None) -> Any:
    """Return the store to use: the command's option, else the global one, else None.

    A server's address becomes a store that knows the certificates that ``--ca`` names.
    """
    from pandaflow import places

    found = given or ctx.obj.store
    if found is None or not places.is_server(str(found)):
        return None if found is None else str(found)
    opened = places.open_server(str(found), ca=ctx.obj.ca)
    ctx.call_on_close(opened.close)
    return opened


def database_of(ctx: click.Context, given: str | None) -> str | None:
    """Return the URL of the database to use; None: the default.

    Raises
    ------
    WorkflowError
        It is a server's address.
    """
    from pandaflow import places

    found = given or ctx.obj.store
    if found is not None and places.is_server(str(found)):
        raise WorkflowError(f"--store {found}: this needs a database, not a server's address")
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


def places_of(ctx: click.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``executor`` and ``executors`` as ``--executor`` and ``--workers`` say.

    They are closed with the command and not at the interpreter's exit: by then the threads that
    Dask would close them with are gone.
    """
    from pandaflow.cli.places import parse_places

    made = parse_places(options["executor"], options["workers"])
    for executor in made.all():
        close = getattr(executor, "close", None)
        if close is not None:
            ctx.call_on_close(close)
    return {"executor": made.executor, "executors": made.executors}
