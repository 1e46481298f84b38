"""What the next driver of a run must know to go on with it, beside the run's results.

In a folder it is a file of lines, only appended to; a line cut short by a power cut is left out.
In an object store, where nothing can be appended, each note is an object of its own.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pandaflow.core.errors import DataError
from pandaflow.data import plain
from pandaflow.data.results import ResultStore
from pandaflow.executors.remote import wire


class Journal:
    """The journal of one run with one executor.

    Parameters
    ----------
    results : ResultStore
        Of the run.
    name : str
        Folder of its own beside them.
    """

    def __init__(self, results: ResultStore, name: str) -> None:
        folder = results.local
        self._path = Path(folder, name, "journal") if folder is not None else None
        self._url = f"{results.url}/{name}/journal"
        self._written = 0

    def lines(self) -> list[dict[str, Any]]:
        """Return what earlier sessions have noted, oldest first; nothing if it cannot be read."""
        told = []
        with suppress(OSError):  # nothing is known: what was sent is sent again
            for line in self._read():
                with suppress(ValueError):
                    told.append(json.loads(line))
        return told

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Note something; it survives the driver, not the machine.

        Raises
        ------
        OSError
            It cannot be written.
        """
        if lines:
            self._write(b"".join(b"\n" + json.dumps(line).encode() for line in lines))

    def _read(self) -> Iterator[bytes]:
        if self._path is not None:
            yield from self._path.read_bytes().splitlines()
            return
        there = sorted(wire.names(self._url))
        self._written = len(there)
        for name in there:
            yield from wire.read(wire.Ref(f"{self._url}/{name}", 0)).splitlines()

    def _write(self, data: bytes) -> None:
        if self._path is None:
            # In the order of writing; a driver that was taken for dead must not write over it.
            name = f"{self._written:08d}-{secrets.token_hex(4)}"
            wire.write(f"{self._url}/{name}", data)
            self._written += 1
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        try:
            file = os.open(self._path, flags, 0o644)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True)
            file = os.open(self._path, flags, 0o644)
        try:
            os.write(file, data)
        finally:
            os.close(file)


def freeze(value: object) -> str:
    """Return a value of ours as a word for a line."""
    return base64.b64encode(pickle.dumps(value, protocol=5)).decode()


def thaw(word: str, kinds: Iterable[type]) -> Any:
    """Return a value that :func:`freeze` has packed; payloads may write where journals lie.

    Parameters
    ----------
    word : str
    kinds : iterable of type
        Classes that it may hold, besides those of :mod:`pandaflow.data.plain`.

    Raises
    ------
    ValueError
        It is damaged, or of a PandaFlow whose values are others.
    """
    try:
        return plain.loads(base64.b64decode(word), kinds)
    except DataError as error:
        raise ValueError(f"damaged: {error}") from error
