"""Versions of what functions were written with: told with them, compared where they fail.

Functions travel pickled, and what they import is taken from where they run. Python's minor version
decides whether they can be read at all; other versions may explain why a job fails there.
"""

from __future__ import annotations

import json
import pickletools
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata

from pandaflow.core.errors import DataError
from pandaflow.data.results import ResultStore

#: Name of the blob of a run that was left with others.
BLOB = "versions"
#: In that blob beside the packages.
PYTHON = "python"


def this_python() -> str:
    """Return the minor version of this Python, as ``"3.11"``."""
    return "{}.{}".format(*sys.version_info)


def mentioned(code: bytes) -> dict[str, str]:
    """Return the versions here of the packages whose names stand in a pickle.

    The pickle is looked through, not read. It may mention what it does not use; what it only uses
    by way of other packages it does not mention.

    Parameters
    ----------
    code : bytes

    Returns
    -------
    dict of str to str
        By name of the distribution; empty if the pickle is none.
    """
    packages = _packages()
    found: dict[str, str] = {}
    try:
        for _, argument, _ in pickletools.genops(code):
            if isinstance(argument, str):
                top = argument.partition(" ")[0].partition(".")[0]
                found |= {name: _version(name) for name in packages.get(top, ())}
    except ValueError:
        return {}
    return found


def blob_of(codes: Iterable[bytes]) -> bytes:
    """Return what a run brings along for those who drive it: Python, and what payloads mention."""
    told = {PYTHON: this_python()}
    for code in codes:
        told |= mentioned(code)
    return json.dumps(told).encode()


def told_by(results: ResultStore) -> dict[str, str]:
    """Return the versions that a run brought along; none: its driver wrote its functions."""
    try:
        told = json.loads(results.get(BLOB))
    except (DataError, ValueError):
        return {}
    if not isinstance(told, dict) or not all(isinstance(each, str) for each in told.values()):
        return {}
    return {str(name): version for name, version in told.items()}


def different(told: Mapping[str, str]) -> str:
    """Return in words what is of another minor version here, or not here at all; empty: nothing."""
    words = []
    for name, version in sorted(told.items()):
        here = _version(name)
        if not here:
            words.append(f"{name} {version} is not here")
        elif here.split(".")[:2] != version.split(".")[:2]:
            words.append(f"{name} is {here} here and was {version} there")
    return ", ".join(words)


@cache
def _packages() -> Mapping[str, list[str]]:
    """Return distributions by the names that are imported."""
    return metadata.packages_distributions()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return ""
