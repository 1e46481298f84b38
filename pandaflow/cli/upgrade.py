"""Commands for the operator of a state store: ``store upgrade``."""

from __future__ import annotations

import click

from pandaflow.cli.options import database_of, store_option


@click.group()
def store() -> None:
    """Look after the state store."""


@store.command()
@store_option
@click.pass_context
def upgrade(ctx: click.Context, /, store: str | None) -> None:
    """Bring the store's tables to this version of PandaFlow. May be repeated.

    \b
    Examples:
      pandaflow store upgrade
      pandaflow --store postgresql+psycopg://panda@db/flow store upgrade
    """
    from pandaflow.store.sql import open_store

    opened = open_store(database_of(ctx, store))
    opened.reader().runs(limit=1)  # opening alone touches no table
    click.echo(f"{_without_password(opened.url)} is up to date")


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(url).render_as_string(hide_password=True)


COMMANDS: tuple[click.Command, ...] = (store,)
