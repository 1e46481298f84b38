"""The npm package ``oidc-provider``, apart from everything else.

It is installed once: where this Python's environment is, in the folder ``oidc-provider``.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

#: The provider that the script was written for, and tried with.
PACKAGE = "oidc-provider@9.13.3"
_ENTRY = Path("node_modules", "oidc-provider", "lib", "index.js")
#: Seconds to wait for npm.
_PATIENCE = 300.0


class OidcMissing(RuntimeError):
    """There is no OpenID Connect provider to be had here."""


def node() -> str:
    """Return the path of Node.js.

    Raises
    ------
    OidcMissing
    """
    return _program("node")


def provider_module() -> Path:
    """Return the provider's module; install it when there is none.

    Raises
    ------
    OidcMissing
        It cannot be installed; with what npm said.
    """
    here = Path(sys.prefix)
    folder = here / "oidc-provider"
    # Test processes that run side by side install it once.
    with (here / "oidc-provider.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "made-for.txt"
        if not (stamp.exists() and stamp.read_text() == PACKAGE and (folder / _ENTRY).exists()):
            _install(folder)
            stamp.write_text(PACKAGE)
    return folder / _ENTRY


def _install(folder: Path) -> None:
    npm = _program("npm")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    argv = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--silent", PACKAGE]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_PATIENCE, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        raise OidcMissing(f"npm took more than {_PATIENCE:g} s to install {PACKAGE}") from error
    if done.returncode != 0:
        raise OidcMissing(f"no {PACKAGE}: {(done.stderr + done.stdout).strip()[-800:]}")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise OidcMissing(f"no {name}: the OpenID Connect provider needs Node.js and npm")
    return found
