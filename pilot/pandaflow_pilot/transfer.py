"""Copies between a store and a local file, by the scheme of the URL.

===================  ============================================================
scheme               by
===================  ============================================================
paths, ``file``      copying
``http``, ``https``  GET, going on where a cut left off; PUT
``root``, ``roots``  the program ``xrdcp``, if it is there
any other            fsspec, if it can be imported
===================  ============================================================

A copy appears under its name whole or not at all.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

_BLOCK = 1 << 20
#: Seconds without a byte after which a connection has failed.
_SILENCE = 60.0
#: Left to itself, xrdcp tries to reach a dead server for ten minutes.
_XROOTD = {"XRD_CONNECTIONWINDOW": "20", "XRD_CONNECTIONRETRY": "2", "XRD_STREAMTIMEOUT": "60"}
#: Seconds that one copy by another program may take.
_PROGRAM = 6 * 3600.0


class Aborted(Exception):
    """Nobody wants the copy any more."""


class TransferError(Exception):
    """A copy failed.

    Parameters
    ----------
    message : str
    transient : bool
        Another try may go well.
    missing : bool
        There is no such file.
    timeout : bool
    """

    def __init__(
        self, message: str, *, transient: bool = True, missing: bool = False, timeout: bool = False
    ) -> None:
        super().__init__(message)
        self.transient, self.missing, self.timeout = transient, missing, timeout


#: Raises :class:`Aborted` when the copy is no more wanted.
Check = Callable[[], None]


class Scheme(Protocol):
    """How one kind of store is read and written; raises TransferError, OSError, Aborted."""

    def get(self, url: str, path: str, check: Check) -> None:
        """Copy ``url`` to the local ``path``; parts of an earlier try may lie there."""

    def put(self, path: str, url: str, check: Check) -> None:
        """Copy the local ``path`` to ``url``."""


def scheme_of(url: str) -> Scheme:
    """Return what reads and writes a URL.

    Raises
    ------
    TransferError
        Nothing here does.
    """
    name, mark, _ = url.partition("://")
    if not mark or name == "file":
        return Paths()
    if name in ("http", "https"):
        return Http()
    if name in ("root", "roots", "xroot"):
        return XRootD()
    return Fsspec()


def fetch(url: str, path: str, check: Check, scheme: Scheme | None = None) -> None:
    """Copy ``url`` to the local file ``path``.

    Parameters
    ----------
    url, path : str
    check : callable
    scheme : Scheme, optional
        Default: by the URL.

    Raises
    ------
    TransferError, Aborted
    """
    part = f"{path}.part"
    with _told():
        (scheme or scheme_of(url)).get(url, part, check)
        os.replace(part, path)


def store(path: str, url: str, check: Check) -> None:
    """Copy the local file ``path`` to ``url``.

    Raises
    ------
    TransferError, Aborted
    """
    with _told():
        scheme_of(url).put(path, url, check)


class _told:  # noqa: N801 - a context manager
    """Turn what stores raise into transfer errors."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            raise TransferError(str(error), transient=False, missing=True) from None
        if isinstance(error, PermissionError):
            raise TransferError(str(error), transient=False) from None
        if isinstance(error, (OSError, http.client.HTTPException, ValueError)):
            message = f"{type(error).__name__}: {error}"
            raise TransferError(message, timeout=isinstance(error, TimeoutError)) from None


# --- paths ------------------------------------------------------------------------------


def local_path(url: str) -> str:
    """Return the path that a path or file URL stands for.

    Raises
    ------
    TransferError
        It is on another host.
    """
    if not url.startswith("file://"):
        return url
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise TransferError(f"{url} is on another host", transient=False)
    return urllib.parse.unquote(parts.path)


class Paths:
    """Files that this node sees."""

    def get(self, url: str, path: str, check: Check) -> None:
        """Copy a file."""
        with open(local_path(url), "rb") as source, open(path, "wb") as target:
            _pour(source, target, check)

    def put(self, path: str, url: str, check: Check) -> None:
        """Copy a file; it gets its name when it is on disk."""
        target = local_path(url)
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        part = f"{target}.{os.getpid()}.part"
        try:
            with open(path, "rb") as source, open(part, "wb") as file:
                _pour(source, file, check)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            with suppress(OSError):
                os.unlink(part)


def _pour(source: Any, target: Any, check: Check) -> None:
    while block := source.read(_BLOCK):
        check()
        target.write(block)


# --- http -------------------------------------------------------------------------------


class Http:
    """Web servers, and stores that speak like them.

    Parameters
    ----------
    open : callable
        Of a request and ``timeout``; adds what proves who asks.
    """

    def __init__(self, open: Callable[..., Any] = urllib.request.urlopen) -> None:
        self._open = open

    def get(self, url: str, path: str, check: Check) -> None:
        """Get a file; what an earlier try has got is not asked for again."""
        have = os.path.getsize(path) if os.path.exists(path) else 0
        request = urllib.request.Request(url)
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            answer = self._open(request, timeout=_SILENCE)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416:
                raise _http_error(url, error.code, error.reason) from None
            os.unlink(path)  # what lies there is longer than the file
            return self.get(url, path, check)
        with answer:
            resumed = answer.status == 206 and _resumes(answer, have)
            if answer.status == 206 and not resumed:
                os.unlink(path)
                raise TransferError(f"{url}: the server sent another part than it was asked for")
            with open(path, "ab" if resumed else "wb") as file:
                _pour(answer, file, check)
                _whole(answer, file.tell() - (have if resumed else 0), url)
        return None

    def put(self, path: str, url: str, check: Check) -> None:
        """Put a file."""
        with open(path, "rb") as file:
            size = str(os.fstat(file.fileno()).st_size)
            headers = {"Content-Length": size, "Content-Type": "application/octet-stream"}
            request = urllib.request.Request(url, file, headers, method="PUT")
            check()
            try:
                self._open(request, timeout=_SILENCE).close()
            except urllib.error.HTTPError as error:
                error.close()
                raise _http_error(url, error.code, error.reason) from None


def _resumes(answer: Any, have: int) -> bool:
    found = str(answer.headers.get("Content-Range", ""))
    return found.startswith(f"bytes {have}-")


def _whole(answer: Any, got: int, url: str) -> None:
    """``read`` in pieces does not tell that a body was cut."""
    length = answer.headers.get("Content-Length")
    if length is not None and got != int(length):
        raise TransferError(f"{url}: cut after {got} of {length} bytes")


def _http_error(url: str, status: int, reason: str) -> TransferError:
    return TransferError(
        f"{url}: {status} {reason}",
        transient=status >= 500 or status in (408, 425, 429),
        missing=status in (404, 410),
    )


# --- other programs and packages --------------------------------------------------------


class XRootD:
    """Stores of high-energy physics, by their own program."""

    def get(self, url: str, path: str, check: Check) -> None:
        """Get a file."""
        _xrdcp(url, path, check)

    def put(self, path: str, url: str, check: Check) -> None:
        """Put a file; the server drops it if the copy is cut."""
        _xrdcp(path, url, check, "--posc", "--path")


def _xrdcp(source: str, target: str, check: Check, *options: str) -> None:
    program = shutil.which("xrdcp")
    if program is None:
        raise TransferError("there is no xrdcp on this node", transient=False)
    argv = [program, "--force", "--nopbar", *options, source, target]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**_XROOTD, **os.environ},
    )
    try:
        said = _waited(process, check)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        text = said.decode("utf-8", "replace").strip()[-500:]
        missing = "3011" in text or "No such file" in text
        raise TransferError(f"xrdcp: {text}", transient=not missing, missing=missing)


def _waited(process: subprocess.Popen[bytes], check: Check) -> bytes:
    deadline = time.monotonic() + _PROGRAM
    while time.monotonic() < deadline:
        check()
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=0.2)[1]
    raise TransferError("xrdcp took too long", timeout=True)


class Fsspec:
    """Whatever fsspec knows."""

    def get(self, url: str, path: str, check: Check) -> None:
        """Get a file."""
        filesystem, inner = _filesystem(url)
        with filesystem.open(inner, "rb") as source, open(path, "wb") as target:
            _pour(source, target, check)

    def put(self, path: str, url: str, check: Check) -> None:
        """Put a file."""
        filesystem, inner = _filesystem(url)
        parent = inner.rpartition("/")[0]
        if parent:
            filesystem.makedirs(parent, exist_ok=True)
        check()
        filesystem.put_file(path, inner)


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        scheme = url.partition("://")[0]
        text = f"{scheme}:// needs the Python package fsspec on this node"
        raise TransferError(text, transient=False) from None
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise TransferError(f"{url}: {error}", transient=False) from None
    return found
