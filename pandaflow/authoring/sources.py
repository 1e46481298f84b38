"""Where items come from: files, values, streams."""

from __future__ import annotations

import datetime
import glob
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pandaflow.authoring.collections import SourceCollection
from pandaflow.core.errors import DataError, WorkflowError
from pandaflow.core.model import File, SourceSpec

FileLike = str | os.PathLike[str] | File


def files(where: FileLike | Iterable[FileLike]) -> SourceCollection:
    """Return the dataset of the files that match a glob, or of the files listed.

    Parameters
    ----------
    where : str, path, File or an iterable of them
        Globs (``data/*.root``, ``**`` for any depth) and fsspec URLs
        (``s3://bucket/*.root``, ``root://``, ``https://``) are understood. Matches are sorted.

    Raises
    ------
    DataError
        Nothing matches, or a listed local file does not exist.
    """
    listed: list[FileLike] = [where] if isinstance(where, str | os.PathLike) else list(where)
    name = str(where) if isinstance(where, str | os.PathLike) else f"{len(listed)} files"
    found: list[File] = []
    for entry in listed:
        found += [_described(entry)] if isinstance(entry, File) else _matches(os.fspath(entry))
    if not found:
        raise DataError(f"no file matches {name!r} (looked from {os.getcwd()})")
    spec = SourceSpec(id=0, name=name, kind="files", n=len(found), files=tuple(found))
    return SourceCollection(spec, length=len(found))


def _described(file: File) -> File:
    if file.size is not None or "://" in file.path or not os.path.exists(file.path):
        return file
    status = os.stat(file.path)
    return File(
        file.path, status.st_size, file.checksum, file.events, file.replicas, status.st_mtime
    )


def _matches(path: str) -> list[File]:
    if "://" in path and not path.startswith("file://"):
        return _remote(path)
    path = os.path.abspath(path.removeprefix("file://"))
    if os.path.isfile(path):
        paths = [path]
    elif glob.has_magic(path):
        paths = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
    elif os.path.isdir(path):
        raise DataError(f"{path} is a folder; give a glob such as {os.path.join(path, '*.root')}")
    else:
        raise DataError(f"{path} does not exist")
    return [_described(File(p)) for p in paths]


def _remote(url: str) -> list[File]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}") from error
    try:
        found = sorted(fs.glob(path)) if glob.has_magic(path) else [path]
        infos = [fs.info(entry) for entry in found]
    except OSError as error:
        raise DataError(f"{url} cannot be listed: {error}") from error
    return [
        File(fs.unstrip_protocol(entry), info.get("size"), mtime=_seconds(info))
        for entry, info in zip(found, infos, strict=True)
        if info.get("type", "file") == "file"
    ]


def _seconds(info: dict[str, Any]) -> float | None:
    for key in ("mtime", "created", "LastModified", "updated"):
        value = info.get(key)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
    return None


def items(values: Iterable[Any], *, name: str | None = None) -> SourceCollection:
    """Return the dataset of some values.

    A ``range`` is kept as three numbers, however long it is.
    """
    if isinstance(values, SourceCollection):
        return values
    if isinstance(values, str | bytes):
        raise WorkflowError("pf.items takes an iterable of values; a text is one value: [text]")
    if isinstance(values, range):
        bounds = (values.start, values.stop, values.step)
        spec = SourceSpec(
            id=0, name=name or repr(values), kind="range", n=len(values), bounds=bounds
        )
        return SourceCollection(spec, values, length=len(values))
    try:
        listed = list(values)
    except TypeError:
        raise WorkflowError(f"pf.items: {type(values).__name__} is not iterable") from None
    if listed and all(isinstance(value, File) for value in listed):
        spec = SourceSpec(
            id=0, name=name or "files", kind="files", n=len(listed), files=tuple(listed)
        )
        return SourceCollection(spec, length=len(listed))
    spec = SourceSpec(id=0, name=name or f"{len(listed)} items", kind="items", n=len(listed))
    made = SourceCollection(spec, listed, length=len(listed))
    kinds = {type(value) for value in listed}
    if len(kinds) == 1:
        made.type = kinds.pop()
    return made


def value_of(value: Any) -> SourceCollection:
    """Return a plain value as a collection of one item by construction."""
    spec = SourceSpec(id=0, name="value", kind="items", n=1)
    return SourceCollection(spec, [value], length=1, single=True)


class Stream(SourceCollection):
    """A dataset that is still being filled; see :func:`stream`.

    Thread-safe. Items appended before the run starts are part of the workflow; later ones
    are made durable before ``append`` returns.
    """

    def __init__(self, name: str) -> None:
        super().__init__(SourceSpec(id=0, name=name, kind="stream"), [], length=None)
        self.sent = 0
        self._lock = threading.Lock()
        self._closed = False
        self._feed: Callable[[Sequence[Any], bool], None] | None = None

    def append(self, *values: Any) -> None:
        """Add items; jobs are made of them at once.

        Raises
        ------
        WorkflowError
            The stream was closed.
        """
        with self._lock:
            if self._closed:
                raise WorkflowError(f"stream {self.spec.name!r} is closed")
            if self._feed is None:
                list.extend(self.items, values)  # type: ignore[arg-type]
            else:
                self._feed(values, False)

    def close(self) -> None:
        """Say that no more items will come, so that the run can end. May be called twice."""
        with self._lock:
            if not self._closed and self._feed is not None:
                self._feed((), True)
            self._closed = True

    @property
    def closed(self) -> bool:
        """Whether no more items will come."""
        return self._closed

    def connect(self, feed: Callable[[Sequence[Any], bool], None], sent: int) -> None:
        """Send items from number ``sent`` on, and all later ones, to a run through ``feed``."""
        with self._lock:
            assert self.items is not None
            late = list(self.items[sent:])
            if late or self._closed:
                feed(late, self._closed)
            self._feed = feed

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def stream(name: str = "stream") -> Stream:
    """Return an open dataset: ``append`` items while the run goes on, then ``close`` it.

    Examples
    --------
    >>> import pandaflow as pf
    >>> events = pf.stream("events")
    >>> events.append(1, 2)
    >>> events.close()
    """
    return Stream(name)
