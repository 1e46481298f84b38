"""Commands that start something: ``run``, ``demo``, ``resume`` and ``retry``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pandaflow.cli import loading, parameters
from pandaflow.cli.options import (
    executor_option,
    json_option,
    place_option,
    places_of,
    quiet_option,
    store_of,
    workers_option,
)
from pandaflow.cli.output import echo_json

if TYPE_CHECKING:
    from pandaflow.workflows import Workflow

F = TypeVar("F", bound=Callable[..., Any])


def execution_options(command: F) -> F:
    """Add the options that say where and how to run."""
    for option in reversed(
        [
            executor_option,
            workers_option,
            place_option,
            click.option("--name", metavar="TEXT", help="A name for the run."),
            json_option,
            quiet_option,
        ]
    ):
        command = option(command)
    return command


class RunCommand(click.Command):
    """Help of ``run FILE.py:WORKFLOW`` lists the workflow's own parameters too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show help for the target, where one is named, before anything is missing."""
        wants = any(arg in ("-h", "--help") for arg in args)
        target = next((arg for arg in args if loading.is_target(arg) and arg[:1] != "-"), None)
        if wants and not ctx.resilient_parsing:
            click.echo(self.get_help(ctx))
            if target is not None:
                click.echo(_parameter_help(ctx, target))
            ctx.exit()
        return super().parse_args(ctx, args)


def _parameter_help(ctx: click.Context, target: str) -> str:
    command = parameters.command_of(loading.load_target(target), target)
    formatter = ctx.make_formatter()
    rows = [_help_row(ctx, option) for option in command.params]
    formatter.write_paragraph()
    if command.help:
        formatter.write_text(command.help.partition("\n\n")[0])
    with formatter.section(f"Parameters of {target}"):
        formatter.write_dl(rows or [("(none)", "")])
    return formatter.getvalue().rstrip("\n")


def _help_row(ctx: click.Context, option: click.Parameter) -> tuple[str, str]:
    spelled, text = option.get_help_record(ctx) or (f"--{option.name}", "")
    taken = {name for own in ctx.command.params for name in own.opts}
    if taken.intersection(option.opts):
        spelled = f"-P {option.name}=VALUE"
    return spelled, text


@click.command(
    cls=RunCommand,
    context_settings={"ignore_unknown_options": True},
    epilog="Exit codes: 0 done, 1 jobs failed, 2 bad request (or, with --dry-run, a task that fits "
    "nowhere), 130 Ctrl-C (cancelled; with --server it goes on), 143 SIGTERM (can be resumed).",
)
@click.argument("target", metavar="FILE.py:WORKFLOW")
@click.argument("texts", nargs=-1, type=click.UNPROCESSED, metavar="[--PARAM VALUE]...")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Tell what would run and print the batch scripts; run and submit nothing.",
)
@click.option(
    "-P",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter, also one whose name is an option of this command.",
)
@click.option(
    "--server",
    metavar="URL",
    help="Leave the run with this server, whose runners drive it, and watch it. Ctrl-C leaves it "
    "running.",
)
@click.option("--vo", metavar="VO", help="Virtual organisation to act for at the server.")
@click.option("--detach", is_flag=True, help="With --server: do not watch; print the run's id.")
@execution_options
@click.pass_context
def run(
    ctx: click.Context,
    /,
    target: str,
    texts: tuple[str, ...],
    settings: tuple[str, ...],
    **options: Any,
) -> None:
    """Run a workflow.

    The workflow's parameters are options: 'def zmumu(sample, bins=60)' takes --sample and
    --bins. 'files:data/*.root' and 'items:[1, 2, 3]' are datasets.

    \b
    Examples:
      pandaflow run analysis.py:zmumu --sample 'files:data/*.root' --bins 80
      pandaflow run analysis.py:zmumu --help
      pandaflow run analysis.py:zmumu --sample 'files:data/*.root' --dry-run
      pandaflow run sweep.py --executor dask:tcp://head:8786 --json > run.json
      pandaflow run sweep.py --executor 'slurm:main?walltime=2h&cores=16' --dry-run
      pandaflow run sweep.py --executor local --executor hpc=site.py:perlmutter
      pandaflow run sweep.py --server https://pandaflow.example.org --detach
    """
    workflow = loading.load_target(target)
    words = [*texts, *parameters.split_settings(settings)]
    args, kwargs = parameters.arguments(workflow, target, words)
    made = loading.calling(f"workflow {workflow.name!r}", lambda: workflow(*args, **kwargs))
    left = {name: options.pop(name) for name in ("server", "vo", "detach")}
    if options.pop("dry_run"):
        show_plan(ctx, made, **options)
    elif (found := _server_of(ctx, left, options)) is not None:
        leave(ctx, made, found, detach=left["detach"], **options)
    else:
        start(ctx, made, **options)


def _server_of(ctx: click.Context, left: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return the server to leave a run with, as a store; None: the run is driven here."""
    from pandaflow import places

    store = left["server"] or options["store"] or ctx.obj.store
    if not (left["server"] or places.is_server(store)):
        if left["detach"] or left["vo"]:
            raise click.UsageError("--detach and --vo need --server")
        return None
    if left["server"] and options["store"]:
        raise click.UsageError("give --server or --store, not both")
    if not places.is_server(store):
        raise click.UsageError(f"--server {store}: give its address, https://...")
    if options["executor"] or options["workers"]:
        raise click.UsageError(
            "--executor, --workers: runners of the server drive the run, on executors of theirs"
        )
    return places.open_server(store, left["vo"], ctx.obj.ca)


def leave(
    ctx: click.Context, workflow: Workflow, server: Any, *, detach: bool, **options: Any
) -> None:
    """Leave a workflow with a server, and watch it unless told otherwise.

    Parameters
    ----------
    ctx : click.Context
    workflow : Workflow
    server : ServerStore
    detach : bool
        Return at once.
    **options
        What :func:`execution_options` adds.
    """
    from pandaflow.cli import watch

    ctx.call_on_close(server.close)
    run = workflow.submit(store=server, name=options["name"])
    if detach:
        watch.detached(run, server.url, as_json=options["as_json"])
    watch.follow_left(run, server.url, quiet=options["quiet"])
    watch.conclude(run, as_json=options["as_json"])


def show_plan(ctx: click.Context, workflow: Workflow, **options: Any) -> None:
    """Tell what a run would do, and which batch scripts it would submit.

    Exits with 2 if some task fits nowhere.
    """
    found = workflow.dry_run(**places_of(ctx, options), store=store_of(ctx, options["store"]))
    if options["as_json"]:
        echo_json(found.rows)
    else:
        click.echo(str(found))
    if found.homeless:
        click.echo(f"pandaflow: {found.complaint()}", err=True)
        ctx.exit(2)


def start(
    ctx: click.Context, workflow: Workflow, show: Callable[[Any], str] = repr, **options: Any
) -> None:
    """Run a workflow, follow it, and exit with its code.

    Parameters
    ----------
    ctx : click.Context
    workflow : Workflow
    show : callable
        Makes text of the result.
    **options
        What :func:`execution_options` adds.
    """
    from pandaflow.cli import watch

    try:
        run = workflow.submit(
            **places_of(ctx, options),
            store=store_of(ctx, options["store"]),
            name=options["name"],
        )
    except KeyboardInterrupt:  # `--executor sync` runs the jobs in here
        watch.interrupted()
    watch.follow(run, quiet=options["quiet"])
    watch.conclude(run, as_json=options["as_json"], show=show)


@click.command()
@click.option("--samples", default=24, show_default=True, type=click.IntRange(1), help="Jobs.")
@click.option("--events", default=2000, show_default=True, type=click.IntRange(1), help="Per job.")
@execution_options
@click.pass_context
def demo(ctx: click.Context, /, samples: int, events: int, **options: Any) -> None:
    """Run a small built-in workflow: the Z peak from simulated muon pairs.

    \b
    Examples:
      pandaflow demo
      pandaflow demo --samples 200 --workers 2
    """
    from pandaflow.cli import demo as built_in

    start(ctx, built_in.demo(samples=samples, events=events), show=built_in.draw, **options)


COMMANDS: tuple[click.Command, ...] = (run, demo)
