"""``pandaflow harvester``: keeps pilots at the queues of a server."""

from __future__ import annotations

import logging
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pandaflow.cli.options import json_option
from pandaflow.cli.output import echo_json, echo_table
from pandaflow.core.errors import SiteError, WorkflowError

if TYPE_CHECKING:
    from pandaflow.grid.http import GridClient
    from pandaflow.harvester.service import Harvester
    from pandaflow.harvester.settings import Settings

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="PANDAFLOW_HARVESTER",
    default=Path("harvester.toml"),
    show_default=True,
    help="Which queues it serves, and by what.",
)


@click.group(invoke_without_command=True)
@click.option(
    "--server",
    metavar="URL",
    envvar="PANDAFLOW_SERVER",
    help="The pool's server; default: what the configuration says.",
)
@config_option
@click.option("--once", is_flag=True, help="Look, decide and act once, then end.")
@click.option("--drain", is_flag=True, help="End all pilots of this harvester, then end.")
@click.option("--check", is_flag=True, help="Show what would be submitted now; submit nothing.")
@click.option("--example-config", is_flag=True, help="Show an example of a configuration.")
@click.pass_context
def harvester(ctx: click.Context, /, server: str | None, config: Path, **options: bool) -> None:
    """Keep the right number of pilots at each queue, until SIGTERM; pilots go on after it.

    How many is said on the server (`pandaflow queues put NAME --max-pilots 20`), and where they
    are submitted in the configuration.

    \b
    Examples:
      pandaflow harvester --example-config > harvester.toml
      pandaflow harvester --check
      pandaflow harvester --server https://pandaflow.example.org --config harvester.toml
      pandaflow harvester status
    """
    ctx.obj = (server, config)
    if ctx.invoked_subcommand is not None:
        return
    if options["example_config"]:
        _require()
        from pandaflow.harvester.settings import EXAMPLE

        click.echo(EXAMPLE, nl=False)
        return
    settings = _settings(server, config)
    if options["check"]:
        _check(settings)
    else:
        _run(settings, options["once"], options["drain"])


def _settings(server: str | None, config: Path) -> Settings:
    _require()
    from pandaflow.harvester.settings import read_config

    if not config.exists():
        raise WorkflowError(
            f"there is no {config}: write one, beginning with 'pandaflow harvester "
            f"--example-config > {config}', or name yours by --config"
        )
    return read_config(config, server)


def _run(settings: Settings, once: bool, drain: bool) -> None:
    from pandaflow.harvester.service import Harvester

    _log()
    here = Harvester(settings)
    name, server = settings.harvester.name, settings.harvester.server
    queues = ", ".join(settings.queues)
    click.echo(f"pandaflow: harvester {name} serves {queues} of {server}", err=True)
    with _until_told(here):
        left = here.run(once, drain)
    pilots = "no pilot is left" if not left else f"{left} pilots go on by themselves"
    click.echo(f"pandaflow: harvester {name} has ended; {pilots}", err=True)


@contextmanager
def _until_told(here: Harvester) -> Iterator[None]:
    """Stop it at SIGTERM and at Ctrl-C; the round that goes on is ended."""

    def stop(number: int, frame: Any) -> None:
        here.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log() -> None:
    """Write decisions to standard error, with times."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logger = logging.getLogger("pandaflow.harvester")
    logger.addHandler(handler)
    logger.propagate = False
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)


# --- looking ------------------------------------------------------------------------------

_COLUMNS = (
    *("queue", "submitter", "state", "ready", "running", "coming", "busy", "idle", "leaving"),
    *("wanted", "looked", "reason"),
)


@harvester.command("status")
@config_option
@json_option
@click.pass_context
def show_status(ctx: click.Context, /, config: Path, as_json: bool) -> None:
    """Show how the queues were when the harvester of this machine looked at them last.

    `ready` and `running` count bundles of jobs; `coming`, `busy`, `idle` and `leaving` pilots of
    this harvester. `wanted` are new pilots that the demand would justify, and the reason says why
    they are not submitted.

    \b
    Examples:
      pandaflow harvester status
      pandaflow harvester status --config /etc/pandaflow/harvester.toml --json
    """
    server, given = ctx.obj
    named = ctx.get_parameter_source("config") is not click.core.ParameterSource.DEFAULT
    settings = _settings(server, config if named else given)
    from pandaflow.harvester.service import status

    rows = status(settings.harvester.folder, list(settings.queues))
    if as_json:
        echo_json(rows)
    else:
        echo_table(_COLUMNS, [_row(row) for row in rows])


def _row(noted: dict[str, Any]) -> dict[str, Any]:
    pilots = noted.get("pilots", {})
    coming = sum(pilots.get(stage, 0) for stage in ("ordered", "waiting", "starting"))
    ago = f"{max(0.0, time.time() - noted['at']):.0f} s ago" if "at" in noted else None
    counts = {stage: pilots.get(stage) for stage in ("busy", "idle")}
    return {**noted, **counts, "coming": coming if pilots else None, "looked": ago}


def _check(settings: Settings) -> None:
    """Show what would be submitted at each queue, with the script of one pilot."""
    from pandaflow.grid.http import GridClient

    with GridClient(settings.harvester.server, ca=settings.harvester.ca) as client:
        for name in settings.queues:
            _check_queue(settings, client, name)


def _check_queue(settings: Settings, client: GridClient, name: str) -> None:
    from pandaflow.harvester.keeper import words

    own = settings.queues[name]
    demand = client.demand(name)
    ready = sum(each.ready for each in demand.classes)
    wish = demand.queue.provision
    click.echo(f"{name} ({own.kind}): {demand.queue.state}, {ready} ready bundles; "
               f"{wish.min_pilots} to {wish.max_pilots} pilots")  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as folder:
            own.submitter.open(settings.label(name), Path(folder))
    except SiteError as error:
        click.echo(f"  it cannot be served from here: {error}")
    for shape in settings.shapes(demand.queue):
        order = settings.order(demand.queue, shape)
        click.echo(f"  a pilot of {words(shape)}:")
        text = own.submitter.preview(order, f"{order.label}-example")
        click.echo("".join(f"    {line}\n" for line in text.splitlines()), nl=False)


def _require() -> None:
    if find_spec("httpx") is None:
        raise WorkflowError("this needs more packages: pip install 'pandaflow[grid]'")


COMMANDS: tuple[click.Command, ...] = (harvester,)
