"""PBS commands (``qsub``, ``qstat``, ``qdel``) that drive a private Slurm, for tests.

Debian's ``slurm-wlm-torque`` has them, but cannot be installed beside Grid Engine, whose commands
have the same names. So its files are unpacked into a folder of the user's cache, and found there
by those who want them; that needs neither root nor a change of the system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pandaflow.testing.daemons import PATIENCE, run_command, system_path
from pandaflow.testing.slurm import Slurm

_PACKAGES = ("slurm-wlm-torque", "libslurm-perl", "libslurmdb-perl")
_COMMANDS = ("qsub", "qstat", "qdel")
#: They call these, and look for them beside themselves.
_CALLED = ("sbatch", "salloc", "srun")


class TorqueMissing(RuntimeError):
    """There are no PBS commands for Slurm to be had here."""


class Torque:
    """The PBS commands in front of a Slurm that runs.

    Parameters
    ----------
    slurm : Slurm
    commands : Path
        Folder with the commands; see `torque_commands`.

    Attributes
    ----------
    env : dict[str, str]
        Environment in which ``qsub`` and the others talk to the Slurm.
    slurm : Slurm
    """

    def __init__(self, slurm: Slurm, commands: Path) -> None:
        self.slurm = slurm
        modules = [str(path.parent) for path in _root(commands).rglob("Slurm.pm")]
        self.env = slurm.env | {
            "PATH": f"{commands}{os.pathsep}{slurm.env['PATH']}",
            "PERL5LIB": os.pathsep.join(modules),
        }

    def run(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the environment of the cluster.

        Raises
        ------
        RuntimeError
            It failed, unless `check` is false; with what it said.
        """
        return run_command(argv, self.env, check=check)

    def submit(self, command: str, *options: str) -> str:
        """Submit a shell command with ``qsub``; return the job's id. Output is thrown away."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
            script.write(f"#!/bin/bash\n{command}\n")
            script.flush()
            quiet = ("-j", "oe", "-o", "/dev/null")
            return self.run(["qsub", *quiet, *options, script.name]).stdout.strip()


def torque_commands(cache: Path | None = None) -> Path:
    """Return the folder of the commands; unpack Debian's packages there the first time.

    Parameters
    ----------
    cache
        Where to keep them; the user's cache folder unless given.

    Raises
    ------
    TorqueMissing
        They cannot be downloaded, or do not run here; with the reason.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = (cache or home / "pandaflow") / "slurm-wlm-torque"
    commands = root / "usr" / "bin"
    if not commands.is_dir():
        _unpack(root)
    missing = [name for name in _COMMANDS if not (commands / name).exists()]
    if missing:
        raise TorqueMissing(f"no {', '.join(missing)} in {commands}: remove that folder")
    return commands


def _root(commands: Path) -> Path:
    return commands.parent.parent


def _unpack(root: Path) -> None:
    """Download and unpack; the folder appears whole or not at all."""
    tools = [name for name in ("apt-get", "dpkg-deb", "perl") if not shutil.which(name)]
    if tools:
        raise TorqueMissing(f"no {', '.join(tools)}: the commands are in Debian's packages")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=root.parent)
    except OSError as error:
        raise TorqueMissing(f"the cache cannot be written: {error}") from None
    with scratch as name:
        folder, files = Path(name), Path(name, "files")
        _call(["apt-get", "download", *_PACKAGES], folder)
        for package in folder.glob("*.deb"):
            _call(["dpkg-deb", "--extract", str(package), str(files)], folder)
        _link(files / "usr" / "bin")
        try:
            files.rename(root)
        except OSError as error:  # if not because another process was faster
            if not root.is_dir():
                raise TorqueMissing(f"the cache cannot be written: {error}") from None


def _link(commands: Path) -> None:
    for name in _CALLED:
        found = shutil.which(name, path=system_path())
        if found is None:
            raise TorqueMissing(f"no {name}: the commands need those of Slurm")
        (commands / name).symlink_to(found)


def _call(argv: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            argv, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise TorqueMissing(f"{argv[0]} took more than {PATIENCE:g} s") from None
    if done.returncode != 0:
        raise TorqueMissing(f"{' '.join(argv)}: {done.stderr.strip()[-500:]}")
