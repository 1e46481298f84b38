"""A virtual environment with the endpoint and PandaFlow, as a user has one on a login node.

It is apart from ours, because the endpoint sets upper bounds on packages that PandaFlow uses, and
is made once: where this Python's environment is, in the folder ``globus-endpoint``.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement

#: The endpoint that the stand-in was written for, and tried with.
ENDPOINT = "globus-compute-endpoint>=4.19"
_PROGRAM = Path("bin", "globus-compute-endpoint")
#: Seconds to wait for pip.
_PATIENCE = 600.0


class GlobusMissing(RuntimeError):
    """There is no Globus Compute to be had here."""


def endpoint_environment() -> Path:
    """Return the folder of an environment with the endpoint; make it when there is none.

    Raises
    ------
    GlobusMissing
        It cannot be made; with what pip said.
    """
    here = Path(sys.prefix)
    if (here / _PROGRAM).exists():
        return here
    folder = here / "globus-endpoint"
    # Test processes that run side by side make it once.
    with (here / "globus-endpoint.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "made-for.json"
        if not (stamp.exists() and stamp.read_text() == _recipe()):
            _make(folder)
            stamp.write_text(_recipe())
    return folder


def _make(folder: Path) -> None:
    venv.create(folder, clear=True)
    # Versions of what both need are left to pip: the endpoint's upper bounds may be below the
    # versions that PandaFlow is tested with.
    _install(folder, ENDPOINT, *_dependencies())
    _install(folder, "--no-deps", *_pandaflow())


def _install(folder: Path, *what: str) -> None:
    argv = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    argv += ["--disable-pip-version-check", "install", "--quiet", *what]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    if done.returncode != 0:
        raise GlobusMissing(f"no {ENDPOINT}: {done.stderr.strip()[-800:]}")


def _dependencies() -> list[str]:
    """Return the names of the packages that PandaFlow needs in any case."""
    needed = map(Requirement, metadata.requires("pandaflow") or ())
    return [one.name for one in needed if one.marker is None or one.marker.evaluate()]


def _pandaflow() -> list[str]:
    """Return how pip gets this PandaFlow: from its folder where it is installed from one."""
    distribution = metadata.distribution("pandaflow")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return ["--editable", url2pathname(urlsplit(origin["url"]).path)]
    return [f"pandaflow=={distribution.version}"]


def _recipe() -> str:
    return json.dumps([sys.version, ENDPOINT, *_dependencies(), *_pandaflow()])
