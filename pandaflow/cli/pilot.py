"""``pandaflow pilot``: the pilot of the grid, with the options of ``pandaflow-pilot``."""

from __future__ import annotations

import click

from pandaflow.core.errors import WorkflowError


@click.command(
    "pilot",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="--server URL --queue NAME [OPTIONS]",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="")
def pilot(arguments: tuple[str, ...]) -> None:
    """Pull bundles of jobs from a server and run them on this node; `--help` tells the options."""
    try:
        from pandaflow_pilot.cli import main
    except ImportError as error:
        text = f"the package pandaflow-pilot is not installed ({error})"
        raise WorkflowError(text) from error
    main(arguments, prog="pandaflow pilot")


COMMANDS = (pilot,)
