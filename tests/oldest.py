"""The oldest Python that pilots run under, where this machine has one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: Worker nodes have it; the pilot's package says so.
OLDEST = (3, 9)


def oldest_python() -> str | None:
    """Return a program that is this Python, None if there is none."""
    return next(filter(_is_it, _candidates()), None)


def _candidates() -> Iterator[str]:
    name = "python{}.{}".format(*OLDEST)
    if found := shutil.which(name):
        yield found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for folder in sorted(root.glob("{}.{}.*".format(*OLDEST))):
        yield str(folder / "bin" / "python")


def _is_it(program: str) -> bool:
    """Tell whether a program runs: what is on the PATH may be a shim without a Python."""
    words = [program, "-c", f"import sys; sys.exit(sys.version_info[:2] != {OLDEST})"]
    try:
        return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
