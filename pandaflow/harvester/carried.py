"""The token and the authorities of pilots that do not see the harvester's machine.

Tokens are short-lived and renewed where the harvester runs. A submitter that copies them asks at
every poll whether there is another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pandaflow.core.errors import SiteError
from pandaflow.harvester.submitter import Order

#: Names under which the files reach the pilots.
TOKEN, AUTHORITIES = "token", "ca.pem"
_LARGEST = 1_000_000


class Carried:
    """Which files of this machine a queue's pilots need, and what of them was brought there.

    Parameters
    ----------
    folder : Path
        Where the files' paths (not what is in them) are kept, for the next harvester.
    """

    def __init__(self, folder: Path) -> None:
        self._note = folder / "carried.json"
        self._sent = ""

    def read(self, order: Order) -> dict[str, bytes]:
        """Return the files of an order by their names at the pilots', and keep their paths.

        Raises
        ------
        SiteError
            A file cannot be read.
        """
        paths = {TOKEN: order.token_file, AUTHORITIES: order.ca}
        paths = {name: str(Path(path).absolute()) for name, path in paths.items() if path}
        files = _read(paths)
        self._note.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._note.with_suffix(".part")
        scratch.write_text(json.dumps(paths), encoding="utf-8")
        scratch.replace(self._note)
        return files

    def changed(self) -> dict[str, bytes]:
        """Return the files if they are others than those that were brought; else nothing.

        Raises
        ------
        SiteError
            A file cannot be read.
        """
        try:
            paths = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        files = _read(paths)
        return {} if _digest(files) == self._sent else files

    def brought(self, files: Mapping[str, bytes]) -> None:
        """Take note that these are where the pilots are."""
        self._sent = _digest(files)


def _read(paths: Mapping[str, str]) -> dict[str, bytes]:
    try:
        files = {name: Path(path).read_bytes() for name, path in paths.items()}
    except OSError as error:
        text = f"{error.filename}, which the pilots need, cannot be read: {error.strerror}"
        raise SiteError(text, transient=True) from error
    for name, content in files.items():
        if len(content) > _LARGEST:
            raise SiteError(f"{paths[name]} is too large for a token or certificates")
    return files


def _digest(files: Mapping[str, bytes]) -> str:
    found = hashlib.sha256()
    for name, content in sorted(files.items()):
        found.update(f"{name}:{len(content)}:".encode() + content)
    return found.hexdigest()
