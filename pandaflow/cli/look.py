"""Commands that only look: ``ls``, ``status``, ``jobs``, ``logs``, ``explain``, ``graph``, ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pandaflow.cli import loading, parameters
from pandaflow.cli.options import (
    attach,
    json_option,
    place_option,
    run_argument,
    store_of,
    task_option,
)
from pandaflow.cli.output import echo_json, echo_json_rows, echo_table, json_text
from pandaflow.core.errors import WorkflowError
from pandaflow.core.status import JobStatus

if TYPE_CHECKING:
    from pandaflow.client import Run
    from pandaflow.workflows import Workflow

#: Refusals shown: the newest.
_REFUSALS = 3
JOB_COLUMNS = ("task", "index", "status", "attempt", "wall", "worker", "reason")


@click.command()
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), metavar="N")
@place_option
@json_option
@click.pass_context
def ls(ctx: click.Context, /, limit: int, store: str | None, as_json: bool) -> None:
    """List runs, newest first.

    \b
    Examples:
      pandaflow ls
      pandaflow --store https://pandaflow.example.org ls
      pandaflow ls --json | jq -r '.[] | select(.status == "failed") | .id'
    """
    rows = _run_rows(store_of(ctx, store), limit)
    if as_json:
        echo_json_rows(rows)
        return
    listed = list(rows)
    whose = ("submitter",) if any(row["submitter"] for row in listed) else ()
    echo_table(("id", "name", "status", "created", *whose, "jobs"), listed)


def _run_rows(store: Any, limit: int) -> Iterator[dict[str, Any]]:
    """Yield runs without their tasks; a server tells all about them in one answer."""
    from pandaflow import client, places

    if places.is_open_server(store):
        yield from store.reader().runs(limit)
        return
    for run in client.runs(store=store, limit=limit):
        yield {key: value for key, value in run.summary().items() if key != "tasks"}


@click.command()
@run_argument
@place_option
@json_option
@click.pass_context
def status(ctx: click.Context, /, run_id: str, store: str | None, as_json: bool) -> None:
    """Show a run and its tasks.

    \b
    Examples:
      pandaflow status last
      pandaflow status 3f2a --json | jq '.tasks[] | {name, status}'
    """
    from pandaflow.display.snapshot import parse_run

    run = attach(ctx, run_id, store)
    summary = {**run.summary(), "refused": _refusals(run)}
    if as_json:
        echo_json(summary)
        return
    click.echo(f"{summary['id']}  {summary['name']}  {summary['status']}")
    row = parse_run(summary)
    echo_table(("name", "status", "jobs", "reason"), (asdict(task) for task in row.shown))
    for note in row.notes:
        click.echo(note)
    for refusal in summary["refused"][-_REFUSALS:]:
        click.echo(f"refused: {refusal['kind']} (by {refusal['by']}): {refusal['reason']}")
    if run.orphaned:
        click.echo(f"nobody drives it: pandaflow resume {run.id}")


def _refusals(run: Run) -> list[dict[str, Any]]:
    """Return the wishes that the run's driver has refused, oldest first."""
    rows, _ = run._reader.noted(run.id, "request_refused")
    return [
        {"at": row["at"], "kind": row["detail"]["kind"], "by": row["detail"]["by"]}
        | {"reason": row["reason"]}
        for row in rows
    ]


@click.command()
@run_argument
@task_option
@click.option("--status", type=click.Choice([str(s) for s in JobStatus]), help="Only these.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
@place_option
@json_option
@click.pass_context
def jobs(ctx: click.Context, /, run_id: str, store: str | None, as_json: bool, **only: Any) -> None:
    """List the jobs of a run.

    \b
    Examples:
      pandaflow jobs last --status failed
      pandaflow jobs last --task fill --json | jq '.[].wall'
    """
    run = attach(ctx, run_id, store)
    rows = run.jobs(**only)
    if as_json:
        echo_json_rows(rows)
    else:
        echo_table(_job_columns(with_site=bool(run._reader.sites(run.id))), rows)


def _job_columns(*, with_site: bool) -> tuple[str, ...]:
    """Return the columns of a table of jobs: few runs go to several sites."""
    return (*JOB_COLUMNS[:-1], "site", JOB_COLUMNS[-1]) if with_site else JOB_COLUMNS


@click.command()
@run_argument
@click.argument("job", required=False)
@click.option("--failed", is_flag=True, help="Of all failed jobs.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), metavar="N")
@place_option
@json_option
@click.pass_context
def logs(
    ctx: click.Context, /, run_id: str, job: str | None, failed: bool, limit: int, **options: Any
) -> None:
    """Show what a job wrote, and its traceback.

    \b
    Examples:
      pandaflow logs last 'fill[3]'
      pandaflow logs last fill:3
      pandaflow logs last --failed
    """
    if (job is None) != failed:
        raise click.UsageError("give a JOB such as fill[3], or --failed")
    run = attach(ctx, run_id, options["store"])
    rows = (
        run.jobs(status="failed", limit=limit) if job is None else _row_of(ctx, run, job, options)
    )
    texts = ((f"{row['task']}[{row['index']}]", _log_of(run, row)) for row in rows)
    if options["as_json"]:
        echo_json_rows({"job": name, "log": text} for name, text in texts)
        return
    for name, text in texts:
        if job is None:
            click.echo(f"==> {name} <==")
        click.echo(text.rstrip("\n"))


def _row_of(
    ctx: click.Context, run: Run, job: str, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    from pandaflow.client import parse_job
    from pandaflow.places import open_store

    task, index = parse_job(job)
    reader = open_store(store_of(ctx, options["store"])).reader()
    found = list(reader.jobs(run.id, task=task, index=index))
    if not found:
        raise WorkflowError(f"run {run.id} has no job {job}; 'pandaflow jobs {run.id}' lists them")
    return found


def _log_of(run: Run, row: Mapping[str, Any]) -> str:
    """Return what a job wrote, and below it the traceback of its last failure."""
    written = run.logs((row["task"], row["index"]))
    traceback = (row.get("failure") or {}).get("traceback") or ""
    return written if traceback in written else f"{written}{traceback}"


@click.command()
@run_argument
@click.argument("job")
@place_option
@json_option
@click.pass_context
def explain(ctx: click.Context, /, run_id: str, job: str, store: str | None, as_json: bool) -> None:
    """Tell why a job is where it is.

    \b
    Example:
      pandaflow explain last 'merge[0]'
    """
    text = attach(ctx, run_id, store).explain(job)
    if as_json:
        echo_json({"job": job, "story": text.splitlines()})
    else:
        click.echo(text)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target", metavar="FILE.py:WORKFLOW|RUN")
@click.argument("texts", nargs=-1, type=click.UNPROCESSED, metavar="[--PARAM VALUE]...")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw into this file.")
@place_option
@json_option
@click.pass_context
def graph(
    ctx: click.Context, /, target: str, texts: tuple[str, ...], svg: Path | None, **options: Any
) -> None:
    """Show the tasks of a workflow or a run, and what feeds what.

    \b
    Examples:
      pandaflow graph analysis.py:zmumu --sample 'files:data/*.root'
      pandaflow graph last --svg graph.svg
    """
    from pandaflow.cli.tree import graph_rows, tree_lines

    if loading.is_target(target):
        workflow = loading.load_target(target)
        args, kwargs = parameters.arguments(workflow, target, texts)
        shown = loading.calling(target, lambda: workflow(*args, **kwargs))
    else:
        shown = _workflow_of(ctx, target, options["store"])
    if svg is not None:
        shown.svg().save(svg)
        click.echo(f"wrote {svg}", err=True)
    elif options["as_json"]:
        echo_json(graph_rows(shown.graph))
    else:
        for line in tree_lines(shown.graph):
            click.echo(line)


def _workflow_of(ctx: click.Context, run_id: str, store: str | None) -> Workflow:
    """Return the workflow that a run was made of, to look at."""
    from pandaflow.authoring.trace import Trace
    from pandaflow.places import open_store
    from pandaflow.workflows import Workflow

    opened = open_store(store_of(ctx, store))
    spec = opened.state(opened.reader().run(run_id)["id"]).spec
    return Workflow(spec, Trace(spec.name))


@click.command()
@run_argument
@click.option("--follow", is_flag=True, help="Wait for more until the run has ended.")
@click.option("--after", default=0, type=click.IntRange(0), metavar="N", help="From number N on.")
@place_option
@json_option
@click.pass_context
def events(
    ctx: click.Context, /, run_id: str, follow: bool, after: int, store: str | None, as_json: bool
) -> None:
    """Show the event log of a run.

    With --json --follow each event is a JSON document on a line of its own.

    \b
    Examples:
      pandaflow events last
      pandaflow events last --follow --json | jq -c 'select(.task == "fill")'
    """
    found = attach(ctx, run_id, store).events(after=after, follow=follow)
    if as_json and not follow:
        echo_json_rows(found)
        return
    for row in found:
        click.echo(json_text(row) if as_json else _event_line(row))


def _event_line(row: Any) -> str:
    return "  ".join(f"{key}={value}" for key, value in row.items() if value not in (None, ""))


@click.command()
@run_argument
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; its suffix (.svg, .png) decides the format.",
)
@place_option
@click.pass_context
def timeline(ctx: click.Context, /, run_id: str, out: Path, store: str | None) -> None:
    """Draw when each job ran, and where.

    \b
    Example:
      pandaflow timeline last --out timeline.svg
    """
    attach(ctx, run_id, store).timeline().save(out)
    click.echo(f"wrote {out}", err=True)


@click.command()
@run_argument
@click.argument("job")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write here, not to stdout."
)
@place_option
@click.pass_context
def reproduce(
    ctx: click.Context, /, run_id: str, job: str, out: Path | None, store: str | None
) -> None:
    """Write a script that runs one job again, alone, with its inputs.

    \b
    Example:
      pandaflow reproduce last 'fill[3]' --out again.py && python -m pdb again.py
    """
    script = attach(ctx, run_id, store).reproduce(job)
    if out is None:
        click.echo(script)
    else:
        out.write_text(script, encoding="utf-8")
        click.echo(f"wrote {out}", err=True)


COMMANDS: tuple[click.Command, ...] = (
    ls,
    status,
    jobs,
    logs,
    explain,
    graph,
    events,
    timeline,
    reproduce,
)
