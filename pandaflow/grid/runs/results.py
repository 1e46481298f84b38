"""The results of a run, read through the server that it was left with."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, cast

from pandaflow.core.errors import DataError, SiteError
from pandaflow.data.results import ResultStore
from pandaflow.grid.calls import API, Calls, ServerRefused, word

#: Bytes that are asked for at once where only a part of a file is read.
_PART = 64_000
_URL = re.compile(rf"(https?://.+){API}/runs/([^/]+)/files")


class ServedResults(ResultStore):
    """Blobs, values and logs of one run behind a server.

    Parameters
    ----------
    calls : Calls
    run : str
    """

    def __init__(self, calls: Calls, run: str) -> None:
        super().__init__(f"{calls.url}{API}/runs/{run}/files")
        self._calls, self._run = calls, word(run)

    def __reduce__(self) -> tuple[Callable[[str], ResultStore], tuple[str]]:
        return (open_results, (self.url,))

    def find(self, bundle: int) -> str | None:
        """Return the location of a bundle's values if they exist."""
        location = self.place(bundle)
        try:
            self._read(location, lambda file: file.read(1))
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return location

    def _read(self, name: str, part: Callable[[BinaryIO], bytes]) -> bytes:
        raw = _ServedFile(self._calls, f"/runs/{self._run}/files/{name}")
        try:
            return part(cast(BinaryIO, io.BufferedReader(raw, _PART)))
        except OSError as error:
            raise DataError(f"{self.url}/{name}: {error.strerror or error}") from error

    def _write(self, name: str, chunks: Sequence[bytes], sync: bool = False) -> None:
        try:
            leave_blob(self._calls, self._run, name, b"".join(chunks))
        except SiteError as error:
            raise DataError(f"{self.url}/{name}: {error}") from error


def leave_blob(calls: Calls, run: str, name: str, data: bytes) -> None:
    """Upload what a run brings along.

    Raises
    ------
    SiteError
    """
    media = {"Content-Type": "application/octet-stream"}
    calls.call("PUT", f"/runs/{run}/blobs/{word(name)}", content=data, headers=media)


def open_results(url: str) -> ResultStore:
    """Return the results at a URL: of a run behind a server, or in a folder."""
    found = _URL.fullmatch(url)
    return ResultStore(url) if found is None else ServedResults(Calls(found[1]), found[2])


class _ServedFile(io.RawIOBase):
    """A file behind the server, from which parts are read."""

    def __init__(self, calls: Calls, path: str) -> None:
        self._calls, self._path, self._at = calls, path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a file behind a server is not known")
        self._at = offset + (self._at if whence == io.SEEK_CUR else 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._get(f"bytes={self._at}-{self._at + len(buffer) - 1}")
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._get(f"bytes={self._at}-")

    def _get(self, wanted: str) -> bytes:
        try:
            answer = self._calls.call("GET", self._path, headers={"Range": wanted})
        except ServerRefused as error:
            if error.status == 416:  # at its end
                return b""
            if error.status == 404:
                raise FileNotFoundError(2, error.detail) from error
            raise OSError(error.detail) from error
        except SiteError as error:
            raise OSError(str(error)) from error
        self._at += len(answer.content)
        return answer.content
