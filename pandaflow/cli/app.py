"""The ``pandaflow`` command: its group of commands, global options and exit codes.

Exit codes: 0 done; 1 the run failed; 2 the request was no good (a bad file, an unknown
workflow or run, a bad parameter); 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import IO, Any

import click

from pandaflow import __version__
from pandaflow.cli import (
    harvester,
    hpo,
    login,
    look,
    pilot,
    runner,
    runs,
    server,
    steer,
    upgrade,
)
from pandaflow.core.errors import PandaflowError, RunFailed
from pandaflow.hpo.errors import StudyFailed

EXIT_FAILED, EXIT_USAGE = 1, 2


@dataclass(frozen=True, slots=True)
class Common:
    """What the global options said.

    Attributes
    ----------
    store : str or None
        SQLAlchemy URL, or a server's address; None: what the environment or the default says.
    debug : bool
        Show tracebacks.
    ca : str or None
        Certificates that a server's is checked by; None: the system's.
    """

    store: str | None
    debug: bool
    ca: str | None = None


class Refused(click.ClickException):
    """The request was no good; tells so on one line."""

    exit_code = EXIT_USAGE

    def show(self, file: IO[Any] | None = None) -> None:
        """Write ``pandaflow: message`` to standard error."""
        click.echo(f"pandaflow: {self.message}", file=file, err=file is None)


class Failed(Refused):
    """The run failed; tells which jobs, and why."""

    exit_code = EXIT_FAILED


def reported(error: PandaflowError) -> click.ClickException:
    """Return ``error`` as a message for the person, without a traceback."""
    if isinstance(error, RunFailed):
        return Failed(str(error))
    if isinstance(error, StudyFailed):
        return Failed(" ".join(str(error).split()))
    return Refused(" ".join(str(error).split()))


class App(click.Group):
    """The group of commands; turns PandaFlow's errors into messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except PandaflowError as error:
            if ctx.params.get("debug"):
                raise
            raise reported(error) from error


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"pandaflow {__version__}")
        ctx.exit()


@click.group(
    cls=App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="RUN is a run's id, the start of one, or 'last'. JOB is task[index] or task:index.",
)
@click.option(
    "--store",
    metavar="URL",
    envvar="PANDAFLOW_STORE",
    help="State store to use; a server's address (https://...) to look at runs left there.",
)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False),
    envvar="PANDAFLOW_CA",
    help="Certificates that a server's is checked by, PEM.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
@click.pass_context
def app(ctx: click.Context, /, store: str | None, ca: str | None, debug: bool) -> None:
    """PanDA-style workload management: run workflows, look at them, steer them."""
    ctx.obj = Common(store or None, debug, ca or None)
    _log(debug)


def _log(debug: bool) -> None:
    """Write PandaFlow's log to standard error; Dask's goes its own way."""
    level = "DEBUG" if debug else os.environ.get("PANDAFLOW_LOG_LEVEL", "").upper() or "WARNING"
    logger = logging.getLogger("pandaflow")
    if level in logging.getLevelNamesMapping():  # a bad name is told by read_settings
        logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("pandaflow: %(levelname)s: %(message)s"))
        logger.addHandler(handler)


for _command in (
    *runs.COMMANDS,
    *look.COMMANDS,
    *steer.COMMANDS,
    *hpo.COMMANDS,
    *upgrade.COMMANDS,
    *server.COMMANDS,
    *pilot.COMMANDS,
    *runner.COMMANDS,
    *harvester.COMMANDS,
    *login.COMMANDS,
):
    app.add_command(_command)


def main(args: list[str] | None = None, prog_name: str = "pandaflow") -> None:
    """Run the command line and exit.

    Parameters
    ----------
    args : list of str, optional
        Default: the arguments of the process.
    prog_name : str
        Shown in help texts.
    """
    app.main(args=args, prog_name=prog_name)
