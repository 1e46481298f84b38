"""A virtual environment with Rucio's server, apart from ours.

The server sets upper bounds on packages that PandaFlow uses, and holds the files of
``rucio-clients``, too: the two must not share an environment. It is made once, where this Python's
environment is, in the folder ``rucio-server``; with an empty database for servers to copy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import venv
from contextlib import closing
from pathlib import Path

from pandaflow.testing.rucio.configuration import write_server

#: The server that these fixtures were written for, with all that it needs.
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SCRIPT = Path(__file__).with_name("serve.py")
_DATABASE = "empty.db"
#: Seconds to wait for pip, and for the making of tables.
_PATIENCE, _TABLES = 600.0, 180.0


class RucioMissing(RuntimeError):
    """There is no Rucio to be had here."""


def rucio_environment() -> Path:
    """Return the folder of an environment with the server; make it when there is none.

    Raises
    ------
    RucioMissing
        It cannot be made; with what pip said.
    """
    here = Path(sys.prefix)
    folder = here / "rucio-server"
    # Test processes that run side by side make it once.
    with (here / "rucio-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "made-for.txt"
        if not (stamp.exists() and stamp.read_text() == _recipe()):
            _make(folder)
            stamp.write_text(_recipe())
    return folder


def python(environment: Path) -> Path:
    """Return the interpreter of an environment."""
    return environment / "bin" / "python"


def empty_database(environment: Path) -> Path:
    """Return an SQLite database with Rucio's tables and the account ``root``."""
    return environment / _DATABASE


def make_tables(environment: Path, home: Path) -> None:
    """Make tables and the account ``root`` in the database that a server's folder names.

    Raises
    ------
    RucioMissing
        With what Rucio said.
    """
    argv = [str(python(environment)), "-P", str(SCRIPT), "tables"]
    env = {"RUCIO_HOME": str(home), "PATH": os.environ.get("PATH", os.defpath)}
    _run(argv, _TABLES, "Rucio's tables", env)


def _make(folder: Path) -> None:
    venv.create(folder, clear=True)
    argv = [sys.executable, "-m", "pip", "--python", str(python(folder))]
    # The list is complete: pip has nothing to find out, and takes seconds instead of a minute.
    argv += ["--disable-pip-version-check", "install", "--quiet", "--no-compile", "--no-deps"]
    _run([*argv, "--requirement", str(REQUIREMENTS)], _PATIENCE, "Rucio server")
    with tempfile.TemporaryDirectory(prefix="pf-rucio-") as home:
        database = Path(home, _DATABASE)
        write_server(Path(home), f"sqlite:///{database}", folder)
        make_tables(folder, Path(home))
        with closing(sqlite3.connect(database)) as connection:
            # Kept in the file: readers and the one writer do not wait for each other.
            connection.execute("PRAGMA journal_mode=WAL")
        shutil.move(database, empty_database(folder))


def _run(argv: list[str], seconds: float, what: str, env: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RucioMissing(f"{what}: took more than {seconds:g} s") from error
    if done.returncode != 0:
        raise RucioMissing(f"no {what}: {(done.stderr or done.stdout).strip()[-800:]}")


def _recipe() -> str:
    return f"{sys.version}\n{REQUIREMENTS.read_text()}"
