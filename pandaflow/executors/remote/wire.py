"""What driver and workers send each other: one value of bytes each way.

Both are pickles behind a byte that says whether they are compressed. A value that is too large
for the service travels by reference: it lies in a store that both sides reach.

Workers unpickle what they are sent: it is code anyway. Drivers do not: whoever has a bundle, and
the payload in it, can answer what they like.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.errors import DataError
from pandaflow.data import plain
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
    versions : tuple of (str, str)
        Packages that the payload mentions, and their versions where it was written.
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
    versions: tuple[tuple[str, str], ...] = ()


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


def work_of(data: bytes) -> Work:
    """Turn bytes that were sent to a worker back into its work, wherever they lie.

    Raises
    ------
    OSError
        They cannot be read.
    DataError
        They are damaged, or from a PandaFlow whose messages are others.
    """
    message = _trusted(data)
    if isinstance(message, Ref):
        message = _trusted(read(message))
    if not isinstance(message, Work):
        raise DataError(f"a worker was sent {type(message).__name__} instead of work")
    return message


def reply_of(data: object, who: str, folder: str) -> tuple[Reply, str]:
    """Turn bytes that came back into a reply; runs nothing of what is in them.

    Parameters
    ----------
    data : object
        What came back.
    who : str
        Who sent it, as in "``who`` sent no reply".
    folder : str
        Folder or URL where large replies are left; empty: there is none.

    Returns
    -------
    reply : Reply
    url : str
        Where it lies, if it came by reference; to be removed when its values are kept.

    Raises
    ------
    DataError
        It is damaged, something else, or cannot be read.
    """
    if not isinstance(data, bytes):
        raise DataError(f"{who} sent {type(data).__name__} instead of a reply")
    message, url = _foreign(data, who), ""
    if isinstance(message, Ref):
        url = message.url
        message = _foreign(_fetched(message, who, folder), who)
    if not isinstance(message, Reply):
        raise DataError(f"{who} sent something else than a reply")
    _check(message, who)
    return message, url


def _trusted(data: bytes) -> object:
    try:
        return pickle.loads(_body(data))
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"a message is damaged: {type(error).__name__}: {error}") from error


def _foreign(data: bytes, who: str) -> object:
    try:
        return plain.loads(_body(data), (Reply, Ref))
    except (DataError, zlib.error) as error:
        raise DataError(f"{who} sent a reply that cannot be read: {error}") from error


def _body(data: bytes) -> bytes:
    if data[:1] != _ZLIB:
        return data[1:]
    packed = zlib.decompressobj()
    body = packed.decompress(data[1:], plain.LIMIT)
    if not packed.eof:
        raise DataError(f"it is cut short, or has more than {plain.LIMIT} bytes")
    return body


def _fetched(place: Ref, who: str, folder: str) -> bytes:
    check_within(place, folder, who)
    try:
        return read(place)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"its reply cannot be read from {place.url}: {error}") from error


def check_within(place: Ref, folder: str, who: str) -> None:
    """Refuse a reference to something outside a folder: it is read, and removed afterwards.

    Raises
    ------
    DataError
    """
    fine = isinstance(place.url, str) and bool(folder) and place.url.startswith(f"{folder}/")
    if not fine or ".." in place.url.split("/"):
        where = folder or "any place, for there is no data="
        raise DataError(f"{who} names {place.url!r}, which is not in {where}")


_SHAPES: Mapping[str, Callable[[Any], bool]] = {
    "bundle": lambda value: type(value) is int,
    "large": lambda value: type(value) is int,
    "dropped": lambda value: type(value) is bool,
    "messages": lambda value: (
        type(value) in (list, tuple)
        and all(type(each) is dict and type(each.get("op")) is str for each in value)
    ),
    "files": lambda value: (
        type(value) is dict
        and all(type(name) is str and type(data) is bytes for name, data in value.items())
    ),
}


def _check(reply: Reply, who: str) -> None:
    for name, fits in _SHAPES.items():
        if not fits(getattr(reply, name)):
            raise DataError(f"{who} sent a reply whose {name} are of another kind")


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


def discard(url: str) -> None:
    """Remove what is not needed any more; what cannot be removed stays."""
    with suppress(OSError):
        remove(url)


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
