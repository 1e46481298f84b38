"""What a run brings along, uploaded before the run exists: into the folder that it will have.

The folder's name is made of who uploads, so that nobody writes into another's. A small file marks
an upload that has not become a run yet; what is never finished is thrown away by that mark.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pandaflow.core.errors import WorkflowError
from pandaflow.grid.identity import Actor
from pandaflow.grid.runs.messages import BLOB, RUN_ID
from pandaflow.server.problems import Refusal
from pandaflow.server.settings import Limits

#: Folders of a run's results, which are no names of blobs.
_TAKEN = frozenset({"values", "logs", "files", "claims"})
_MARK = ".uploading"
_PART = 1_000_000


class Blob(Protocol):
    """A blob that is being written."""

    def write(self, data: bytes) -> None:
        """Add bytes."""
        ...

    def keep(self, *, replace: bool) -> None:
        """It is whole: give it its name; ``replace``: also if there is another one.

        Raises
        ------
        Refusal
            There is another one (409).
        """
        ...

    def drop(self) -> None:
        """Throw it away. May be called twice, and after :meth:`keep`."""
        ...


def check_run(run: str) -> None:
    """Refuse an id that a run cannot have.

    Raises
    ------
    WorkflowError
    """
    if not re.fullmatch(RUN_ID, run) or run == "last":
        raise WorkflowError("a run's id has letters, digits, - and _, at most 100 of them")


def check_blob(name: str) -> None:
    """Refuse the name of a blob that could be taken for something else.

    Raises
    ------
    WorkflowError
    """
    if not re.fullmatch(BLOB, name) or name in _TAKEN:
        raise WorkflowError(
            "a name here has letters, digits, '.', '_' and '-', at most 200 of them"
        )


class Uploads:
    """The folders of runs that people leave here.

    Parameters
    ----------
    root : str
        Local path or fsspec URL.
    limits : Limits
    """

    def __init__(self, root: str, limits: Limits) -> None:
        self._root, self._limits = root.rstrip("/"), limits

    def folder(self, actor: Actor, run: str) -> str:
        """Return where a run of somebody's keeps its results."""
        whose = hashlib.sha256(f"{actor.vo}\n{actor.subject}".encode()).hexdigest()[:16]
        return f"{self._root}/{whose}/{run}"

    def begin(self, folder: str, now: float) -> None:
        """Mark a folder as one whose upload goes on."""
        _write(folder, _MARK, str(now).encode())

    def finish(self, folder: str) -> None:
        """Take the mark away: the run exists."""
        _remove(folder, _MARK)

    def names(self, folder: str) -> set[str]:
        """Return the names of what has been uploaded."""
        return {name for name, _ in _listed(folder)}

    def blob(self, folder: str, name: str) -> Blob:
        """Return a blob to write.

        Raises
        ------
        WorkflowError, Refusal
            The name is no good, or there are too many already (413).
        """
        check_blob(name)
        there = [size for other, size in _listed(folder) if other != name]
        most, files = self._limits.upload_bytes, self._limits.upload_files
        if len(there) >= files or sum(there) >= most:
            raise Refusal(413, f"a run brings {files:,} things and {most:,} bytes at most")
        return _RemoteBlob(folder, name) if "://" in folder else _LocalBlob(folder, name)

    def abandoned(self, before: float) -> Iterator[tuple[str, str]]:
        """Yield run and folder of uploads that were begun before a time."""
        for folder in _marked(self._root):
            with suppress(OSError, ValueError):
                if float(_read(folder, _MARK)) < before:
                    yield folder.rsplit("/", 1)[-1], folder

    def forget(self, folder: str) -> None:
        """Throw an upload away."""
        if "://" in folder:
            with suppress(OSError):
                _fs(folder).rm(folder, recursive=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


class _LocalBlob:
    def __init__(self, folder: str, name: str) -> None:
        self._place = Path(folder, name)
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._part = self._place.with_name(f".{secrets.token_hex(8)}.part")
        self._file = open(self._part, "xb")

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def keep(self, *, replace: bool) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        if replace:
            os.replace(self._part, self._place)
            return
        try:
            os.link(self._part, self._place)
        except FileExistsError:
            _check_same(_pieces(self._part), _pieces(self._place))

    def drop(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


class _RemoteBlob:
    def __init__(self, folder: str, name: str) -> None:
        self._fs, self._path = _fs(folder), f"{folder}/{name}"
        self._part = f"{folder}/.{secrets.token_hex(8)}.part"
        self._file = self._fs.open(self._part, "wb")

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def keep(self, *, replace: bool) -> None:
        self._file.close()
        if not replace and self._fs.exists(self._path):
            with self._fs.open(self._part, "rb") as new, self._fs.open(self._path, "rb") as old:
                _check_same(iter(lambda: new.read(_PART), b""), iter(lambda: old.read(_PART), b""))
            return
        self._fs.mv(self._part, self._path)

    def drop(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._fs.rm(self._part)


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(_PART):
            yield piece


def _check_same(new: Iterator[bytes], old: Iterator[bytes]) -> None:
    for piece in new:
        if piece != next(old, None):
            break
    else:
        if next(old, None) is None:
            return
    raise Refusal(409, "there is something else of that name already: the run may be using it")


# --- folders, here or behind fsspec -----------------------------------------------------------


def _fs(url: str) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(url)[0]


def _write(folder: str, name: str, data: bytes) -> None:
    if "://" in folder:
        _fs(folder).pipe_file(f"{folder}/{name}", data)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, name).write_bytes(data)


def _read(folder: str, name: str) -> bytes:
    if "://" in folder:
        found: bytes = _fs(folder).cat_file(f"{folder}/{name}")
        return found
    return Path(folder, name).read_bytes()


def _remove(folder: str, name: str) -> None:
    with suppress(FileNotFoundError):
        if "://" in folder:
            _fs(folder).rm_file(f"{folder}/{name}")
        else:
            Path(folder, name).unlink()


def _listed(folder: str) -> list[tuple[str, int]]:
    """Return names and sizes of the files of a folder that are not hidden."""
    try:
        if "://" in folder:
            rows = _fs(folder).ls(folder, detail=True)
            found = [(str(r["name"]), int(r["size"] or 0)) for r in rows if r["type"] == "file"]
        else:
            with os.scandir(folder) as entries:
                found = [(e.name, e.stat().st_size) for e in entries if e.is_file()]
    except FileNotFoundError:
        return []
    plain = [(name.rsplit("/", 1)[-1], size) for name, size in found]
    return [(name, size) for name, size in plain if not name.startswith(".")]


def _marked(root: str) -> list[str]:
    if "://" not in root:
        return [str(mark.parent) for mark in Path(root).glob(f"*/*/{_MARK}")]
    fs = _fs(root)
    return [fs.unstrip_protocol(path).rpartition("/")[0] for path in fs.glob(f"{root}/*/*/{_MARK}")]
