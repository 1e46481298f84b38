"""Files of runs' results, opened without being led out of their folder.

Payloads write into these folders, so names and symbolic links in them are not to be trusted. No
file is ever parsed here: what is in it is bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, BinaryIO, cast

from pandaflow.core.errors import NotInRun
from pandaflow.server.problems import Refusal

_LONGEST = 1_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: A pipe without a writer would not open, ever.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG})


def steps(name: str) -> list[str]:
    """Return the steps of a path below a run's folder.

    Raises
    ------
    NotInRun
        It leads elsewhere, or to something hidden.
    """
    found = name.split("/")
    good = all(step.strip(".") and step.isprintable() and "\\" not in step for step in found)
    if not good or len(name) > _LONGEST or found[0].startswith("."):
        raise NotInRun("the run has no such file")
    return found


def open_inside(folder: str, name: str) -> tuple[BinaryIO, int]:
    """Open a file below a folder; return it with its size.

    Parameters
    ----------
    folder : str
        Local path or fsspec URL.
    name : str

    Raises
    ------
    NotInRun
        There is no such file; symbolic links are none.
    Refusal
        The place of the results does not answer (503).
    """
    path = steps(name)
    try:
        return _remote(folder, name) if "://" in folder else _local(folder, path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in _NOT_THERE:
            raise NotInRun("the run has no such file, or not yet") from error
        raise Refusal(503, "the place of the results does not answer now", retry=5) from error


def _local(folder: str, path: list[str]) -> tuple[BinaryIO, int]:
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in path[:-1]:
            below = os.open(step, _FOLDER, dir_fd=above)
            os.close(above)
            above = below
        return _regular(os.open(path[-1], _FILE, dir_fd=above))
    finally:
        os.close(above)


def _regular(number: int) -> tuple[BinaryIO, int]:
    about = os.fstat(number)
    if not stat.S_ISREG(about.st_mode):
        os.close(number)
        raise FileNotFoundError(errno.ENOENT, "no regular file")
    return os.fdopen(number, "rb"), about.st_size


def _remote(folder: str, name: str) -> tuple[BinaryIO, int]:
    import fsspec

    fs: Any = fsspec.core.url_to_fs(folder)[0]
    path = f"{folder}/{name}"
    about = fs.info(path)
    if about.get("type") != "file":
        raise FileNotFoundError(errno.ENOENT, "no file")
    return cast(BinaryIO, fs.open(path, "rb")), int(about["size"])


def part_of(header: str | None, size: int) -> tuple[int, int] | None:
    """Return first and end of the bytes that a ``Range`` header asks for; None: all.

    Headers that are not understood are left alone, as HTTP has it, several ranges among them.

    Raises
    ------
    Refusal
        There are no such bytes (416).
    """
    unit, _, wanted = (header or "").partition("=")
    first, dash, last = wanted.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not _digits(first) or not _digits(last):
        return None
    if not first:
        if not last:
            return None
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < begin:
            return None
    if begin >= end:
        raise Refusal(416, f"the file has {size} bytes")
    return begin, end


def _digits(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and len(text) < 19)
