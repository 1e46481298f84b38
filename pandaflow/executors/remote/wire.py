"""What driver and workers send each other: one value of bytes each way.

Both are pickles behind a byte that says whether they are compressed. A value that is too large
for the service travels by reference: it lies in a store that both sides reach.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.errors import DataError
from pandaflow.data.results import adler32

#: Bytes from which on a message is compressed.
_COMPRESS = 4_096
_PLAIN, _ZLIB = b"p", b"z"
#: Base64 makes three bytes four, and both sides put some headers around.
_OVERHEAD = 512


@dataclass(frozen=True, slots=True)
class Ref:
    """Bytes that lie in a store: path or fsspec URL, how many there are, and their checksum."""

    url: str
    size: int
    checksum: str = ""


Blob: TypeAlias = bytes | Ref


@dataclass(frozen=True, slots=True)
class Work:
    """A bundle, with all that is needed to run it.

    Attributes
    ----------
    spec : BundleSpec
    deps : tuple of bytes or Ref
        Values files of the bundles that it reads; with ``direct``, none.
    code : bytes, Ref or None
        The pickled payload; None: the registered function has it.
    places : tuple of str
        With ``direct``: locations of the upstream values in ``spec.results``.
    direct : bool
        Workers reach the run's result store, and leave values there by themselves.
    board : str
        Folder or URL for marks about bundles; empty: none.
    marks : bool
        The driver looks there whether the bundle has begun.
    data : str
        Folder or URL for a reply that is too large; empty: there is none.
    limit : int
        Bytes of a reply that may travel through the service.
    path : tuple of str
        Where the driver imports from.
    workdir : str
        Root of the jobs' work directories; empty: the temporary directory.
    """

    spec: BundleSpec
    deps: tuple[Blob, ...] = ()
    code: Blob | None = None
    places: tuple[str, ...] = ()
    direct: bool = False
    board: str = ""
    marks: bool = False
    data: str = ""
    limit: int = 0
    path: tuple[str, ...] = ()
    workdir: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a bundle.

    Attributes
    ----------
    bundle : int
    messages : sequence of dict
        What the payload loop reported: started, said, ended.
    files : mapping of str to bytes
        Files for the run's results, by name.
    dropped : bool
        It was stopped before it began.
    large : int
        Bytes that ``files`` would have had: they were too many, and there was nowhere to put them.
    """

    bundle: int
    messages: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    dropped: bool = False
    large: int = 0


def pack(message: Work | Reply | Ref) -> bytes:
    """Turn a message into bytes."""
    data = pickle.dumps(message, protocol=5)
    if len(data) < _COMPRESS:
        return _PLAIN + data
    packed = zlib.compress(data, 1)
    return _ZLIB + packed if len(packed) < len(data) else _PLAIN + data


def unpack(data: bytes) -> Work | Reply | Ref:
    """Turn bytes back into a message.

    Raises
    ------
    DataError
        They are damaged, or from a PandaFlow whose messages are others.
    """
    try:
        body = zlib.decompress(data[1:]) if data[:1] == _ZLIB else data[1:]
        message = pickle.loads(body)
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"a message is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(message, Work | Reply | Ref):
        raise DataError(f"a message is {type(message).__name__}, which nobody sends")
    return message


def travelling(size: int) -> int:
    """Return how many bytes of a request or a result ``size`` bytes take."""
    return (size + 2) // 3 * 4 + _OVERHEAD


def room(limit: int) -> int:
    """Return how many bytes may be sent where a request or result takes ``limit`` at most."""
    return max(0, (limit - _OVERHEAD) // 4 * 3)


# --- stores that both sides reach -------------------------------------------------------


def local_path(url: str) -> str | None:
    """Return the path that a URL stands for, None if it is no local one."""
    path = url.removeprefix("file://")
    return None if "://" in path else os.path.abspath(os.path.expanduser(path))


def write(url: str, data: bytes) -> None:
    """Write bytes that appear whole or not at all.

    Raises
    ------
    OSError
    """
    path = local_path(url)
    if path is None:
        import fsspec

        filesystem, inner = fsspec.core.url_to_fs(url)
        filesystem.pipe_file(inner, data)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def read(blob: Blob) -> bytes:
    """Return bytes, wherever they are.

    Raises
    ------
    OSError
        They cannot be read.
    DataError
        They are not what their checksum says.
    """
    if isinstance(blob, bytes):
        return blob
    data = _contents(blob.url)
    if blob.checksum and adler32(data) != blob.checksum:
        raise DataError(f"{blob.url} does not have its checksum {blob.checksum}")
    return data


def _contents(url: str) -> bytes:
    path = local_path(url)
    if path is not None:
        with open(path, "rb") as file:
            return file.read()
    import fsspec

    filesystem, inner = fsspec.core.url_to_fs(url)
    return bytes(filesystem.cat_file(inner))


def exists(url: str) -> bool:
    """Tell whether there is something."""
    path = local_path(url)
    if path is not None:
        return os.path.exists(path)
    import fsspec

    filesystem, inner = fsspec.core.url_to_fs(url)
    return bool(filesystem.exists(inner))


def names(url: str) -> set[str]:
    """Return the names in a folder; none if it is not there."""
    path = local_path(url)
    try:
        if path is not None:
            return set(os.listdir(path))
        import fsspec

        filesystem, inner = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()
        return {str(name).rstrip("/").rpartition("/")[2] for name in filesystem.ls(inner, False)}
    except FileNotFoundError:
        return set()


def remove(url: str) -> None:
    """Remove a file, or a folder with all that is in it; do nothing if it is not there."""
    import fsspec

    filesystem, inner = fsspec.core.url_to_fs(local_path(url) or url)
    try:
        filesystem.rm(inner, recursive=True)
    except FileNotFoundError:
        return
