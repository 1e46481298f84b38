"""The job cache: results of jobs whose code and inputs have been seen before.

Entries are small files in a folder beside the runs, ``cache/<k[:2]>/<key>.json``, each naming
the values file, the position in it and its checksum. They can be deleted at any time, and so can
the runs they point to: an entry that leads nowhere is a miss.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b, md5
from operator import itemgetter
from typing import Any, Literal
from zlib import adler32

from pandaflow.core.bundle import BundleValues, Missing
from pandaflow.core.errors import DataError
from pandaflow.core.model import File
from pandaflow.data.results import ResultStore

Mode = Literal["mtime", "checksum"]
Opened = dict[str, BundleValues]
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Hit:
    """A cached result."""

    value: Any


# --- keys -------------------------------------------------------------------------------


def job_key(token: str, slots: Any, mode: Mode) -> str | None:
    """Return the key of a job.

    Parameters
    ----------
    token : str
        Hash of the task's code and static arguments.
    slots : object
        The job's input values: lists, tuples and dicts of anything. Files count by path, size
        and time of change, or by checksum; other values by content.
    mode : {'mtime', 'checksum'}

    Returns
    -------
    str or None
        40 hexadecimal digits; None when an input has no digest (a missing file, a value that
        cannot be pickled), so that the job is not cached.
    """
    feed = blake2b(token.encode(), digest_size=20)
    try:
        _digest(feed.update, slots, mode)
    except OSError:
        return None
    except BaseException as error:  # pickling runs user code, which may raise anything
        if isinstance(error, KeyboardInterrupt):
            raise
        return None
    return feed.hexdigest()


_Feed = Callable[[bytes], None]
_PLAIN = (type(None), bool, int, float, str, bytes)


def _digest(feed: _Feed, value: Any, mode: Mode) -> None:
    """Feed type, length and content, so that no two values read the same."""
    kind = type(value)
    if kind in _PLAIN:
        text = value if kind is bytes else repr(value).encode()
        feed(b"%s %d:%s" % (kind.__name__.encode(), len(text), text))
    elif kind is list or kind is tuple:
        feed(b"%s %d:" % (kind.__name__.encode(), len(value)))
        for item in value:
            _digest(feed, item, mode)
    elif kind is dict:
        _digest_dict(feed, value, mode)
    elif kind is set or kind is frozenset:
        feed(b"set %d:" % len(value))
        for digest in sorted(_alone(item, mode) for item in value):
            feed(digest)
    elif kind is File:
        feed(_file_identity(value, mode))
    elif kind.__module__ == "numpy" and kind.__name__ == "ndarray" and not value.dtype.hasobject:
        feed(f"array {value.dtype.str} {value.dtype.descr} {value.shape}:".encode())
        feed(value.tobytes())
    else:
        _digest_pickled(feed, value)


def _digest_dict(feed: _Feed, value: dict[Any, Any], mode: Mode) -> None:
    feed(b"dict %d:" % len(value))
    pairs = [(_alone(key, mode), item) for key, item in value.items()]
    for key, item in sorted(pairs, key=itemgetter(0)):
        feed(key)
        _digest(feed, item, mode)


def _digest_pickled(feed: _Feed, value: Any) -> None:
    try:
        data = pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError):
        import cloudpickle

        data = cloudpickle.dumps(value, protocol=5)
    feed(b"pickle %d:" % len(data))
    feed(data)


def _alone(value: Any, mode: Mode) -> bytes:
    feed = blake2b(digest_size=20)
    _digest(feed.update, value, mode)
    return feed.digest()


def _file_identity(file: File, mode: Mode) -> bytes:
    if mode == "checksum":
        return f"file {file.checksum or checksum(file.path)};".encode()
    size, changed = file.size, file.mtime
    if size is None or changed is None:
        status = os.stat(file.path)
        size, changed = status.st_size, status.st_mtime
    return f"file {len(file.path)}:{file.path} {size} {changed!r};".encode()


def checksum(path: str, kind: Literal["adler32", "md5"] = "adler32") -> str:
    """Return the checksum of a local file in Rucio's form, ``"adler32:..."`` or ``"md5:..."``."""
    adler, digest = 1, md5(usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            if kind == "md5":
                digest.update(block)
            else:
                adler = adler32(block, adler)
    return f"md5:{digest.hexdigest()}" if kind == "md5" else f"adler32:{adler:08x}"


# --- entries ----------------------------------------------------------------------------


def lookup(root: str, key: str, opened: Opened | None = None) -> Hit | None:
    """Return the result cached under ``key``; None if there is none that can be used.

    Parameters
    ----------
    root : str
        The folder of all runs' results (local path or fsspec URL).
    key : str
        From :func:`job_key`.
    opened : dict, optional
        Values files read so far, to be passed to the next call: neighbours mostly share one.
    """
    try:
        entry = json.loads(_store(root).get(_entry(key)))
        location, position = str(entry["location"]), int(entry["position"])
        values = _values(root, location, str(entry["checksum"]), {} if opened is None else opened)
        value = values.values[position]
    except (DataError, ValueError, KeyError, TypeError, IndexError):
        return None
    if type(value) is Missing or not _files_exist(value):
        return None
    return Hit(value)


def remember(root: str, key: str, *, location: str, position: int, checksum: str) -> None:
    """Enter a result.

    Parameters
    ----------
    root, key : str
        As for :func:`lookup`.
    location : str
        Of the values file, relative to ``root``.
    position : int
        Of the job in it.
    checksum : str
        Of the values, so that an entry does not outlive what it points to.
    """
    entry = {"location": location, "position": position, "checksum": checksum}
    _store(root).put(_entry(key), json.dumps(entry).encode())


def _entry(key: str) -> str:
    return f"cache/{key[:2]}/{key}.json"


@lru_cache(maxsize=8)
def _store(root: str) -> ResultStore:
    return ResultStore(root)


def _values(root: str, location: str, expected: str, opened: Opened) -> BundleValues:
    if location not in opened:
        store = _store(root)
        if store.header(location)["checksum"] != expected:
            raise DataError(f"{location}: is not what was cached")
        opened[location] = store.load(location)
    return opened[location]


def _files_exist(value: Any) -> bool:
    """Tell whether files among the results (of commands, mostly) are still there."""
    if type(value) is File:
        if "://" in value.path:
            return True
        return os.path.isfile(value) and value.size in (None, os.path.getsize(value))
    if type(value) in (list, tuple):
        return all(map(_files_exist, value))
    return all(map(_files_exist, value.values())) if isinstance(value, Mapping) else True
