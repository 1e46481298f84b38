"""``pandaflow-pilot``: its options, and how it ends.

Exit codes: 0 done; 1 the server has turned the pilot away; 2 the options are no good here.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

from pandaflow_pilot import __version__, log
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.containers import RUNTIMES
from pandaflow_pilot.pilot import Pilot
from pandaflow_pilot.settings import RSE_VARIABLE, Node, Patience, Server, Settings

EXIT_USAGE = 2
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZES.update({f"{name}i": 1024**power for power, name in enumerate("kmgt", 1)})
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

_EXAMPLES = """\
examples:
  one slot of a batch job of two hours, with a token:
    pandaflow-pilot --server https://pool.example.org --queue SITE_A \\
        --token-file /run/secrets/token --walltime 2h --cores 8 --memory 16GiB
  try a server on this machine; end when nothing came for half a minute:
    pandaflow-pilot --server http://127.0.0.1:8790 --queue local --idle 30
  functions by the Python of a virtual environment, commands in containers by bubblewrap:
    pandaflow-pilot --server https://pool.example.org --queue SITE_A \\
        --python /opt/pandaflow/bin/python --container-runtime bubblewrap
  inputs rucio://SCOPE:NAME, by rucio-clients and its configuration, from the site's own disks:
    RUCIO_CONFIG=/etc/rucio.cfg X509_USER_PROXY=/run/secrets/proxy pandaflow-pilot \\
        --server https://pool.example.org --queue SITE_A --rse SITE_A_DISK,SITE_A_CACHE

SIGTERM: take no more bundles, end when those that run have ended. Once more: end now.
The token may also be in the variable PANDAFLOW_TOKEN. exit codes: 0 done, 1 turned away by
the server, 2 wrong options.
"""


def parse_size(text: str) -> int:
    """Parse bytes: ``2000000``, ``2GB``, ``1.5GiB``."""
    number, unit = _split(text)
    unit = unit[:-1] if unit.endswith("b") else unit
    if unit not in _SIZES:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB or 2GiB")
    return int(number * _SIZES[unit])


def parse_time(text: str) -> float:
    """Parse seconds: ``90``, ``30m``, ``2h``, ``1d``."""
    number, unit = _split(text)
    if unit not in _TIMES:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 30m or 2h")
    return number * _TIMES[unit]


def _split(text: str) -> tuple[float, str]:
    plain = text.strip().lower()
    digits = plain.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        number = float(digits)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with a number") from None
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is out of range")
    return number, plain[len(digits) :].strip()


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def parser(prog: str = "pandaflow-pilot") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog=prog,
        description="Pull bundles of jobs from a PandaFlow server and run them on this node.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_server(found)
    _add_node(found)
    _add_times(found)
    _add_running(found)
    return found


def _add_server(found: argparse.ArgumentParser) -> None:
    group = found.add_argument_group("server")
    group.add_argument("--server", required=True, metavar="URL", help="where the pool is")
    group.add_argument("--queue", required=True, metavar="NAME", help="queue to work for")
    group.add_argument("--name", default="", help="of this pilot (default: host and a random word)")
    group.add_argument("--token-file", default="", metavar="FILE", help="read again when changed")
    group.add_argument("--ca", default="", metavar="FILE", help="PEM: whom to trust")
    group.add_argument("--cert", default="", metavar="FILE", help="PEM: certificate of the pilot")
    group.add_argument("--key", default="", metavar="FILE", help="PEM: its key")


def _add_node(found: argparse.ArgumentParser) -> None:
    group = found.add_argument_group("node")
    group.add_argument("--cores", type=_count, metavar="N", help="default: those it may use")
    group.add_argument("--memory", type=parse_size, metavar="SIZE", help="default: all of it")
    group.add_argument(
        "--gpus", default="", metavar="N|IDS", help="a number, or ids such as 0,2 (default: none)"
    )
    group.add_argument("--tags", default="", metavar="A,B", help="what this node has")
    group.add_argument("--workdir", default="", metavar="DIR", help="default: the temporary one")
    group.add_argument(
        "--rse", default="", metavar="A,B", help="Rucio's storage elements near this node, in order"
    )


def _add_times(found: argparse.ArgumentParser) -> None:
    default = Patience()
    group = found.add_argument_group("times (90s, 30m, 2h)")
    group.add_argument("--walltime", type=parse_time, metavar="TIME", help="that the pilot has")
    group.add_argument(
        "--margin", type=parse_time, metavar="TIME", default=default.margin,
        help="of the walltime, kept for the end (default: 60s)",
    )  # fmt: skip
    group.add_argument(
        "--idle", type=parse_time, metavar="TIME", help="end when nothing came for so long"
    )
    group.add_argument(
        "--looping", type=parse_time, metavar="TIME", default=default.looping,
        help="end payloads without output and CPU time for so long (default: 2h; 0: never)",
    )  # fmt: skip
    group.add_argument(
        "--grace", type=parse_time, metavar="TIME", default=default.grace,
        help="from SIGTERM to SIGKILL for payloads that are to end (default: 30s)",
    )  # fmt: skip
    group.add_argument(
        "--patience", type=parse_time, metavar="TIME", default=default.refused,
        help="end when the server has refused this pilot for so long (default: 5m)",
    )  # fmt: skip
    group.add_argument("--once", action="store_true", help="take one bundle, then end")


def _add_running(found: argparse.ArgumentParser) -> None:
    group = found.add_argument_group("running")
    group.add_argument(
        "--python",
        default="",
        metavar="PROGRAM",
        help="runs functions (default: one is looked for)",
    )
    group.add_argument(
        "--container-runtime", default="", choices=("", *RUNTIMES), metavar="NAME",
        help=f"{', '.join(RUNTIMES)} (default: those that work)",
    )  # fmt: skip
    group.add_argument("--log-level", default="info", choices=log.LEVELS)


def parse_settings(arguments: Sequence[str] | None, prog: str) -> tuple[Settings, str]:
    """Return the settings that a command line says, and the level of the log."""
    given = parser(prog).parse_args(arguments)
    host = socket.gethostname().partition(".")[0]
    patience = Patience(
        walltime=given.walltime,
        margin=given.margin if given.walltime is None else min(given.margin, given.walltime / 2),
        idle=given.idle,
        looping=given.looping,
        grace=given.grace,
        refused=given.patience,
    )
    settings = Settings(
        server=Server(given.server, given.token_file, given.ca, given.cert, given.key),
        queue=given.queue,
        name=given.name or f"{host}-{os.getpid()}-{secrets.token_hex(4)}",
        node=Node(
            cores=given.cores or _own_cores(),
            memory=given.memory or _own_memory(),
            gpus=_gpus(given.gpus),
            tags=_words(given.tags),
        ),
        patience=patience,
        workdir=given.workdir or tempfile.gettempdir(),
        python=given.python,
        runtime=given.container_runtime,
        rses=_words(given.rse or os.environ.get(RSE_VARIABLE, "")),
        once=given.once,
    )
    return settings, given.log_level


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _own_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _own_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _gpus(text: str) -> tuple[str, ...]:
    """Return the names of GPUs; a bare number counts those that the batch system has given."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(names) != 1 or "," in text or not names[0].isdecimal():
        return names
    given = tuple(name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name)
    return (given or tuple(map(str, range(int(names[0])))))[: int(names[0])]


def main(arguments: Sequence[str] | None = None, prog: str = "pandaflow-pilot") -> NoReturn:
    """Be a pilot, and exit.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    prog : str
        Shown in help texts.
    """
    settings, level = parse_settings(arguments, prog)
    log.set_up(level, settings.name)
    try:
        pilot = Pilot(settings)
        status = pilot.run()
    except (PilotError, ValueError, OSError) as error:
        sys.stderr.write(f"{prog}: {error}\n")
        sys.exit(EXIT_USAGE)
    sys.stdout.write(f"{prog} {settings.name}: {pilot.tally.line()}\n")
    sys.exit(status)
