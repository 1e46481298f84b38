"""The pilot as one file that Python runs: ``pandaflow-pilot.pyz``."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipapp
from pathlib import Path


def build(path: str | os.PathLike[str]) -> Path:
    """Write the pilot as a zip application.

    Parameters
    ----------
    path : path
        Replaced as a whole.

    Returns
    -------
    Path

    Raises
    ------
    OSError
    """
    target = Path(path)
    package = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory(prefix="pandaflow-pyz-") as folder:
        source = Path(folder, "source")
        shutil.copytree(
            package, source / package.name, ignore=shutil.ignore_patterns("__pycache__")
        )
        built = Path(folder, "pilot.pyz")
        zipapp.create_archive(
            source, built, "/usr/bin/env python3", f"{package.name}.cli:main", compressed=True
        )
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        shutil.copyfile(built, part)
        part.chmod(0o755)
        os.replace(part, target)
    return target
