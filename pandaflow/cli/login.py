"""Commands for who one is at a server: ``login``, ``logout``, ``whoami``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pandaflow.cli.options import ca_option, json_option
from pandaflow.cli.output import echo_json
from pandaflow.core.errors import WorkflowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandaflow.grid.auth.signin import Offer, Prompt

server_argument = click.argument(
    "server", metavar="[SERVER]", envvar="PANDAFLOW_SERVER", required=False
)


@click.command()
@server_argument
@click.option("--issuer", metavar="URL", help="Where to sign in, if the server takes several.")
@ca_option
def login(server: str | None, issuer: str | None, ca: Path | None) -> None:
    """Sign in at SERVER, with a browser on any machine.

    The tokens are kept in ~/.config/pandaflow/tokens, for your eyes only, and renewed when needed.
    SERVER is the variable PANDAFLOW_SERVER if it is not given.

    \b
    Examples:
      pandaflow login https://pandaflow.example.org
      pandaflow login https://pool.site.example:8443 --ca site-ca.pem
    """
    _require_grid()
    from pandaflow.grid.auth.signin import find_offers, sign_in

    if not server:
        raise WorkflowError("name the server: pandaflow login https://...")
    offer = _choose(server, find_offers(server, ca), issuer)
    sign_in(server, offer, _show)
    click.echo(f"signed in at {server}")


@click.command()
@server_argument
def logout(server: str | None) -> None:
    """Forget the sign-in at SERVER, and withdraw it at its issuer.

    Without SERVER: the variable PANDAFLOW_SERVER, or the only server there is a sign-in at.

    \b
    Examples:
      pandaflow logout https://pandaflow.example.org
    """
    _require_grid()
    from pandaflow.grid.auth.signin import sign_out

    where = _server(server)
    there = sign_out(where)
    click.echo(f"signed out at {where}" if there else f"there was no sign-in at {where}")


@click.command()
@server_argument
@ca_option
@json_option
def whoami(server: str | None, ca: Path | None, as_json: bool) -> None:
    """Show who you are to SERVER, and what you may do there.

    Without SERVER: the variable PANDAFLOW_SERVER, or the only server there is a sign-in at.

    \b
    Examples:
      pandaflow whoami https://pandaflow.example.org
      pandaflow whoami https://pool.site.example:8443 --ca site-ca.pem
    """
    _require_grid()
    from pandaflow.grid.auth.cache import server_address
    from pandaflow.grid.auth.credentials import find_credentials
    from pandaflow.grid.auth.web import get_json

    where = server_address(_server(server))
    found = get_json(f"{where}/api/v1/whoami", find_credentials(where).header(), ca)
    if as_json:
        echo_json(found)
        return
    for key, value in found.items():
        words = ", ".join(sorted(map(str, value))) if isinstance(value, list) else value
        click.echo(f"{key:10} {words}")


def _choose(server: str, offers: Sequence[Offer], issuer: str | None) -> Offer:
    fitting = [one for one in offers if issuer in (None, one.issuer)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(one.issuer for one in offers)
    if not known:
        raise WorkflowError(
            f"nobody signs in at {server}: set PANDAFLOW_TOKEN, or ask its operator"
        )
    raise WorkflowError(f"choose where to sign in by --issuer: {known}")


def _show(prompt: Prompt) -> None:
    click.echo(f"Open {prompt.url}\nand enter the code {prompt.code}", err=True)
    if prompt.complete:
        click.echo(f"or open {prompt.complete}", err=True)
    click.echo("Waiting for you ... (Ctrl-C gives up)", err=True)


def _server(given: str | None) -> str:
    """Return the server that is meant.

    Raises
    ------
    WorkflowError
        Nobody can tell.
    """
    from pandaflow.grid.auth.cache import TokenCache

    if given:
        return given
    known = TokenCache().servers()
    if len(known) == 1:
        return known[0]
    what = f"name one of {', '.join(known)}" if known else "sign in first: pandaflow login SERVER"
    raise WorkflowError(what)


def _require_grid() -> None:
    if find_spec("httpx") is None:
        raise WorkflowError("servers are asked by the package httpx: pip install 'pandaflow[grid]'")


COMMANDS: tuple[click.Command, ...] = (login, logout, whoami)
