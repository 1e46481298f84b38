"""Commands for operators of a pool: ``server``, ``queues``, ``pilots``."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pandaflow.cli.options import database_of, json_option, store_option
from pandaflow.cli.output import echo_json, echo_table
from pandaflow.core.errors import WorkflowError

if TYPE_CHECKING:
    from pandaflow.grid.http import GridClient
    from pandaflow.grid.messages import PilotCommand

_FILE = click.Path(exists=True, path_type=Path)
server_option = click.option(
    "--server",
    metavar="URL",
    envvar="PANDAFLOW_SERVER",
    required=True,
    help="The pool's server; may also be given by PANDAFLOW_SERVER.",
)
ca_option = click.option(
    "--ca", type=_FILE, envvar="PANDAFLOW_CA", help="Certificates that the server's is checked by."
)


@click.command()
@store_option
@click.option(
    "--results",
    default="",
    metavar="FOLDER-OR-URL",
    help="Where runs that are left here keep their results, within reach of all servers and "
    "runners; default: as for runs of the store.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8790,
    show_default=True,
    help="0: any that is free.",
)
@click.option("--policy", type=_FILE, help="Whom to trust, and what they may do.")
@click.option("--tls-cert", type=_FILE, help="The server's certificate chain, PEM.")
@click.option("--tls-key", type=_FILE, help="Its key, PEM; default: in the same file.")
@click.option(
    "--client-ca", type=_FILE, help="Authorities whose client certificates are taken: PEM."
)
@click.option("--behind-proxy", is_flag=True, help="A proxy before this server does TLS.")
@click.option(
    "--proxies",
    default="127.0.0.1,::1",
    show_default=True,
    metavar="ADDRESSES",
    help="Proxies that are believed when they name a client's address.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0),
    default=5_000.0,
    show_default=True,
    help="Requests a second of one identity; 0: any.",
)
@click.option(
    "--connections",
    type=click.IntRange(1),
    default=12_000,
    show_default=True,
    help="Connections at once.",
)
@click.option(
    "--patience",
    type=click.FloatRange(0.1),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="For a request's headers to arrive, and as much for the beginning of its body.",
)
@click.option("--example-policy", is_flag=True, help="Show an example of a policy, and exit.")
@click.option("--stop-with-stdin", is_flag=True, hidden=True)
@click.pass_context
def server(ctx: click.Context, /, store: str | None, **options: Any) -> None:
    """Serve runs that people leave here, and a pool of jobs from which pilots pull.

    Serves until SIGTERM.

    Several servers may share one PostgreSQL; SQLite is for one. Without --policy everybody is
    trusted: on this machine only.

    \b
    Examples:
      pandaflow server
      pandaflow --store postgresql://panda@db/flow server --host 0.0.0.0 \\
          --policy policy.toml --tls-cert host.pem --tls-key host.key \\
          --results s3://flow/results
    """
    _require("fastapi", "server")
    if options.pop("example_policy"):
        from pandaflow.grid.auth.policy import EXAMPLE

        click.echo(EXAMPLE, nl=False)
        return
    _serve(database_of(ctx, store), options)


def _serve(store: str | None, options: dict[str, Any]) -> None:
    from pandaflow.config import read_settings
    from pandaflow.server.serve import announce, serve
    from pandaflow.server.settings import Limits, ServerSettings

    patience = options.pop("patience")
    limits = Limits(
        connections=options.pop("connections"),
        rate=options["rate"],
        burst=max(1.0, 2 * options.pop("rate")),
        head_seconds=patience,
        body_seconds=patience,
    )
    watched = options.pop("stop_with_stdin")
    if options["results"] and "://" not in options["results"]:
        options["results"] = str(Path(options["results"]).resolve())
    settings = ServerSettings(store=store or read_settings().store, limits=limits, **options)

    def ready(url: str) -> None:
        for line in announce(url, settings):
            click.echo(line, err=True)
        if watched:
            stop_with_stdin()

    try:
        serve(settings, ready)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        # The error's own words repeat the address.
        why = os.strerror(error.errno) if error.errno else str(error)
        raise WorkflowError(f"cannot listen at {place}: {why}") from error


def stop_with_stdin() -> None:
    """Stop when whoever started this server has gone, so that tests leave none behind."""
    import signal
    import threading

    def wait() -> None:
        # Not by sys.stdin: its lock would be held when the interpreter ends.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


# --- queues -------------------------------------------------------------------------------

_PROVISION = ("min_pilots", "max_pilots", "max_waiting", "pilots_a_minute", "idle")
_COLUMNS = ("name", "state", "pilots", "running", "vos", "reason")


@click.group()
def queues() -> None:
    """Look at the queues of a pool, make and steer them.

    \b
    Examples:
      pandaflow queues ls --server https://pandaflow.example.org
      pandaflow queues close CERN "cooling is being repaired"
    """


@queues.command("ls")
@server_option
@ca_option
@json_option
def list_queues(server: str, ca: Path | None, as_json: bool) -> None:
    """List queues."""
    with _client(server, ca) as client:
        rows = [queue.model_dump(mode="json") for queue in client.queues()]
    if as_json:
        echo_json(rows)
        return
    echo_table(_COLUMNS, ({**row, "vos": ",".join(row["vos"])} for row in rows))


@queues.command("show")
@click.argument("name")
@server_option
@ca_option
def show_queue(name: str, server: str, ca: Path | None) -> None:
    """Show all there is about a queue, as JSON."""
    with _client(server, ca) as client:
        echo_json(client.queue(name).model_dump(mode="json"))


@queues.command("put")
@click.argument("name")
@server_option
@ca_option
@click.option(
    "--site",
    multiple=True,
    metavar="KEY=VALUE",
    help="Field of pf.Site: cores=64, memory=256000000000 (bytes).",
)
@click.option(
    "--vo", "vos", multiple=True, help="Virtual organisation whose jobs it runs; default: any."
)
@click.option("--tag", "tags", multiple=True, help="What its nodes have, for jobs that ask for it.")
@click.option(
    "--heartbeat",
    metavar="SECONDS",
    type=float,
    help="Silence after which a pilot has lost its jobs; default: 300.",
)
@click.option(
    "--start",
    metavar="SECONDS",
    type=float,
    help="For a job to begin once a pilot has it; default: 600.",
)
@click.option("--min-pilots", type=int, metavar="N", help="For a harvester to keep; default: 0.")
@click.option("--max-pilots", type=int, metavar="N", help="To have at most; default: 10.")
@click.option(
    "--max-waiting", type=int, metavar="N", help="To wait in the batch system; default: 10."
)
@click.option("--pilots-a-minute", type=float, metavar="N", help="To submit at most; default: 60.")
@click.option(
    "--idle",
    type=float,
    metavar="SECONDS",
    help="Without work after which a pilot goes; default: 300.",
)
@click.option("--file", "file", type=click.File(), help="The queue as JSON; '-': standard input.")
def put_queue(name: str, server: str, ca: Path | None, file: Any, **given: Any) -> None:
    """Make a queue, or change what is given of one that is there.

    \b
    Examples:
      pandaflow queues put CERN --site cores=64 --site memory=256000000000 --vo atlas
      pandaflow queues put CERN --max-pilots 20 --min-pilots 1 --pilots-a-minute 10 --idle 600
      pandaflow queues show CERN | jq 'del(.name,.state)' | pandaflow queues put CERN2 --file -
    """
    with _client(server, ca) as client:
        body = _queue_body(client, name, file, given)
        echo_json(client.put_queue(name, body).model_dump(mode="json"))


def _queue_body(client: GridClient, name: str, file: Any, given: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from pandaflow.grid.places import QueueBody

    site = dict(_pair(text) for text in given.pop("site"))
    said = {key: value for key, value in given.items() if value not in (None, ())}
    provision = {key: said.pop(key) for key in _PROVISION if key in said}
    try:
        if file is not None:
            base = QueueBody.model_validate_json(file.read(), extra="ignore").model_dump()
        else:
            base = _there(client, name)
        merged = {**base, **said, "site": {**base.get("site", {}), **site}}
        merged["provision"] = {**base.get("provision", {}), **provision}
        return QueueBody.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        place = "/".join(map(str, first["loc"]))
        raise WorkflowError(f"queue {name}: {place}: {first['msg']}") from error


def _there(client: GridClient, name: str) -> dict[str, Any]:
    """Return what is known of a queue; nothing if it is new."""
    from pandaflow.grid.places import QueueBody

    for queue in client.queues():
        if queue.name == name:
            return queue.model_dump(include=set(QueueBody.model_fields))
    return {}


def _pair(text: str) -> tuple[str, Any]:
    """Return KEY=VALUE; a value that is a number or a list of JSON is taken as such."""
    import json

    key, equals, value = text.partition("=")
    if not (key and equals):
        raise WorkflowError(f"--site {text}: give KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


@queues.command("close")
@click.argument("name")
@click.argument("reason", default="")
@server_option
@ca_option
def close_queue(name: str, reason: str, server: str, ca: Path | None) -> None:
    """Give out no more jobs at a queue; what runs there goes on."""
    with _client(server, ca) as client:
        click.echo(f"{name} is {client.close_queue(name, reason).state}")


@queues.command("open")
@click.argument("name")
@server_option
@ca_option
def open_queue(name: str, server: str, ca: Path | None) -> None:
    """Open a queue that was closed, or is held after failures."""
    with _client(server, ca) as client:
        click.echo(f"{name} is {client.open_queue(name).state}")


@queues.command("rm")
@click.argument("name")
@server_option
@ca_option
def delete_queue(name: str, server: str, ca: Path | None) -> None:
    """Delete a queue."""
    with _client(server, ca) as client:
        client.delete_queue(name)
    click.echo(f"{name} is deleted")


# --- pilots -------------------------------------------------------------------------------


@click.group()
def pilots() -> None:
    """Look at the pilots of a pool, and end them.

    \b
    Examples:
      pandaflow pilots ls --server https://pandaflow.example.org
      pandaflow pilots drain node17-4f2a
    """


@pilots.command("ls")
@server_option
@ca_option
@json_option
def list_pilots(server: str, ca: Path | None, as_json: bool) -> None:
    """List pilots, those that were heard of last first."""
    with _client(server, ca) as client:
        rows = client.pilots()
    if as_json:
        echo_json(rows)
        return
    echo_table(("pilot", "queue", "host", "alive", "running", "command"), rows)


@pilots.command("drain")
@click.argument("name")
@server_option
@ca_option
def drain_pilot(name: str, server: str, ca: Path | None) -> None:
    """Let a pilot take no more, and end when what it runs has ended."""
    _command(name, "drain", server, ca)


@pilots.command("stop")
@click.argument("name")
@server_option
@ca_option
def stop_pilot(name: str, server: str, ca: Path | None) -> None:
    """End a pilot now; what it runs is given to others."""
    _command(name, "stop", server, ca)


def _command(name: str, command: PilotCommand, server: str, ca: Path | None) -> None:
    with _client(server, ca) as client:
        client.command_pilot(name, command)
    click.echo(f"{name} is told to {command} when it asks next")


def _client(server: str, ca: Path | None) -> GridClient:
    _require("httpx", "grid")
    from pandaflow.grid.http import GridClient

    return GridClient(server, ca=ca)


def _require(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise WorkflowError(f"this needs more packages: pip install 'pandaflow[{extra}]'")


COMMANDS: tuple[click.Command, ...] = (server, queues, pilots)
