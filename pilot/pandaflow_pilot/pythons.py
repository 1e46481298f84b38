"""Pythons that run functions: the one that has PandaFlow, and environments made from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.log import LOGGER
from pandaflow_pilot.process import Process, run_program, tail
from pandaflow_pilot.transfer import Check
from pandaflow_pilot.workdir import made, remove

_ASK = (
    "import json,sys,sysconfig,pandaflow;p=sysconfig.get_paths();"
    "print(json.dumps(['%d.%d'%sys.version_info[:2],pandaflow.__version__,"
    "sorted({p['purelib'],p['platlib']})]))"
)
#: Seconds for an answer, and for installing packages.
_ANSWER, _INSTALL = 60.0, 1_800.0


@dataclass(frozen=True)
class Python:
    """An interpreter with PandaFlow.

    Attributes
    ----------
    program : str
    python, pandaflow : str
        Versions: ``3.11``, and PandaFlow's whole one.
    packages : tuple of str
        Its folders of packages.
    """

    program: str
    python: str
    pandaflow: str
    packages: tuple[str, ...]


def find(wanted: str) -> Python | None:
    """Return the interpreter for functions, None if none here has PandaFlow.

    Parameters
    ----------
    wanted : str
        Only this one; empty: the pilot's own, then what ``PATH`` has.

    Raises
    ------
    ValueError
        The one that was wanted has no PandaFlow.
    """
    names = [wanted] if wanted else [sys.executable, "python3", "python"]
    for name in names:
        program = shutil.which(name)
        found = _asked(program) if program else None
        if found is not None:
            return found
    if wanted:
        raise ValueError(f"{wanted} is no Python that has PandaFlow")
    return None


def _asked(program: str) -> Python | None:
    try:
        ended = subprocess.run(
            [program, "-c", _ASK], capture_output=True, timeout=_ANSWER, check=True
        )
        python, pandaflow, packages = json.loads(ended.stdout)
        return Python(program, str(python), str(pandaflow), tuple(map(str, packages)))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        LOGGER.debug("%s runs no functions: %s", program, error)
        return None


class Environments:
    """Virtual environments with further packages, one for each set, kept while the pilot lives.

    Parameters
    ----------
    base : Python or None
    folder : str
        Where they are made.
    tag : str
        Mark of the processes that make them.
    """

    def __init__(self, base: Python | None, folder: str, tag: str) -> None:
        self.base, self.folder, self._tag = base, folder, tag
        self._lock = threading.Lock()

    def program(self, requirements: Sequence[str], check: Check) -> str:
        """Return an interpreter that has these packages, too.

        Raises
        ------
        PilotError
        Aborted
        """
        if self.base is None:
            raise PilotError("no_python", "this pilot has found no Python with PandaFlow")
        if not requirements:
            return self.base.program
        unfit = [entry for entry in requirements if entry.startswith("-")]
        if unfit:
            raise PilotError("requirements", f"{unfit[0]!r} is an option, no package")
        wanted = sorted(set(requirements))
        digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
        place = os.path.join(self.folder, digest)
        program = os.path.join(place, "bin", "python")
        with self._lock:  # one after the other: installing is heavy on shared file systems
            if not os.path.exists(os.path.join(place, "ready")):
                remove(place)
                self._make(self.base, place, wanted, check)
        return program

    def _make(self, base: Python, place: str, wanted: Sequence[str], check: Check) -> None:
        if not os.path.isdir(self.folder):
            made(self.folder)
        program = os.path.join(place, "bin", "python")
        self._run([base.program, "-m", "venv", "--system-site-packages", place], check)
        # An environment made from an environment has the packages of neither.
        _add_packages(program, base.packages)
        pip = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        self._run([*pip, "--no-input", "--", *wanted], check)
        with open(os.path.join(place, "ready"), "w", encoding="utf-8") as file:
            file.write("\n".join(wanted))

    def _run(self, argv: Sequence[str], check: Check) -> None:
        log = os.path.join(self.folder, "install.log")
        process = Process(
            argv, folder=self.folder, env=os.environ, out=log, err=log, tag=f"{self._tag}.install"
        )
        code = run_program(process, _INSTALL, check)
        if code:
            said = tail(log, 1_000).decode("utf-8", "replace")
            raise PilotError("requirements", f"the packages asked for do not install: {said}")


def _add_packages(program: str, folders: Sequence[str]) -> None:
    ask = "import sysconfig;print(sysconfig.get_paths()['purelib'])"
    try:
        ended = subprocess.run(
            [program, "-c", ask], capture_output=True, timeout=_ANSWER, check=True
        )
        place = os.path.join(ended.stdout.decode().strip(), "pandaflow-parent.pth")
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
        with open(place, "w", encoding="utf-8") as file:
            file.writelines(lines)
    except (OSError, subprocess.SubprocessError) as error:
        raise PilotError("requirements", f"no environment can be made: {error}") from None
