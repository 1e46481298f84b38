"""Commands that change a run: ``cancel``, ``pause``, ``resume`` and ``retry``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import click

from pandaflow.cli.options import (
    attach,
    executor_option,
    json_option,
    place_option,
    places_of,
    quiet_option,
    run_argument,
    store_of,
    task_option,
    workers_option,
)
from pandaflow.cli.output import echo_json

if TYPE_CHECKING:
    from pandaflow.client import Run


def _tell(run: Run, wish: str, *, as_json: bool) -> None:
    if as_json:
        echo_json({"id": run.id, "name": run.name, "status": str(run.status), "request": wish})
    else:
        click.echo(f"{run.id}  {run.name}  {run.status}  ({wish})")


@click.command()
@run_argument
@task_option
@place_option
@json_option
@click.pass_context
def cancel(
    ctx: click.Context, /, run_id: str, task: str | None, store: str | None, as_json: bool
) -> None:
    """Stop a run, or one task and what depends on it.

    \b
    Examples:
      pandaflow cancel last
      pandaflow cancel last --task fill
    """
    run = attach(ctx, run_id, store)
    run.cancel(task=task)
    _tell(run, "cancel", as_json=as_json)


@click.command()
@run_argument
@place_option
@json_option
@click.pass_context
def pause(ctx: click.Context, /, run_id: str, store: str | None, as_json: bool) -> None:
    """Start no new jobs of a run; those that run go on.

    \b
    Example:
      pandaflow pause last && pandaflow resume last
    """
    run = attach(ctx, run_id, store)
    run.pause()
    _tell(run, "pause", as_json=as_json)


@click.command()
@run_argument
@executor_option
@workers_option
@place_option
@json_option
@quiet_option
@click.pass_context
def resume(ctx: click.Context, /, run_id: str, **options: Any) -> None:
    """Go on with a paused run, or with one whose driver has died.

    A run that another process drives is only un-paused; else this process drives it to its end.

    \b
    Examples:
      pandaflow resume last
      pandaflow resume 3f2a --workers 8
      pandaflow resume 3f2a --executor local --executor hpc=slurm:main
    """
    from pandaflow import client
    from pandaflow.core.errors import RunLocked

    try:
        run = client.resume(
            run_id, store=store_of(ctx, options["store"]), **places_of(ctx, options)
        )
        run.resume()
        _follow(run, **options)
    except RunLocked:  # somebody drives it: they will find the wish
        run = attach(ctx, run_id, options["store"])
        run.resume()
        _tell(run, "resume", as_json=options["as_json"])


@click.command()
@run_argument
@task_option
@click.option("--restart", is_flag=True, help="Finished jobs too, and all that depends on them.")
@click.option("--memory", metavar="SIZE", help="For the jobs tried again: '4 GiB'.")
@click.option("--walltime", metavar="TIME", help="For the jobs tried again: '2 h'.")
@click.option("--cores", type=click.IntRange(1), metavar="N", help="For the jobs tried again.")
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="For the jobs tried again.")
@click.option(
    "--ranks-per-node", type=click.IntRange(1), metavar="N", help="For the jobs tried again."
)
@click.option("--retries", type=click.IntRange(0), metavar="N", help="For the jobs tried again.")
@executor_option
@workers_option
@place_option
@json_option
@quiet_option
@click.pass_context
def retry(
    ctx: click.Context, /, run_id: str, task: str | None, restart: bool, **options: Any
) -> None:
    """Try again what failed, was cancelled or never ran.

    \b
    Examples:
      pandaflow retry last
      pandaflow retry last --task fill --memory '4 GiB'
      pandaflow retry last --task merge --restart
    """
    names = ("memory", "walltime", "cores", "nodes", "ranks_per_node", "retries")
    changes = {name: options[name] for name in names if options[name] is not None}
    run = attach(ctx, run_id, options["store"])
    run.retry(task=task, restart=restart, **places_of(ctx, options), **changes)
    if run._thread is not None:  # this process drives it
        _follow(run, **options)
    else:
        _tell(run, "retry", as_json=options["as_json"])


def _follow(run: Run, **options: Any) -> NoReturn:
    from pandaflow.cli import watch

    watch.follow(run, quiet=options["quiet"])
    watch.conclude(run, as_json=options["as_json"])


COMMANDS: tuple[click.Command, ...] = (cancel, pause, resume, retry)
