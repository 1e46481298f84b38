"""The result store: one file per bundle, readable without code where the values allow it.

A values file is one line of JSON (the header: what it holds, how the body is encoded, its
checksum, and the report of the bundle's outcomes) and then the body, a list with one value a
job. The body is JSON where that gives back exactly the same values, else a pickle. The report
in the header lets a driver adopt a bundle that ended while nobody listened.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import pickle
import shutil
import struct
import threading
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, cast

from pandaflow.core.bundle import BundleSpec, BundleValues, Missing
from pandaflow.core.errors import DataError
from pandaflow.core.model import compact, runs_of
from pandaflow.data import plain

FORMAT = "pandaflow-values"
VERSION = 1
_SEAL = b', "seal": "'
#: Items of a list, dict or text that is still kept as JSON.
_JSON_ITEMS = 10_000
_SCALARS = {type(None), bool, int, float, str}
_CLAIM = struct.Struct("=qq")

# --- values <-> bytes -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded:
    """The values of a bundle as bytes.

    Attributes
    ----------
    body : bytes
    encoding : {'json', 'pickle'}
    checksum : str
        ``"adler32:..."`` of ``body``, as Rucio writes it.
    missing : mapping of int to Missing
        Positions without a value; the body has None there.
    refused : mapping of int to str
        Positions whose value cannot be serialized, with the reason; also in ``missing``.
    """

    body: bytes
    encoding: Literal["json", "pickle"]
    checksum: str
    missing: Mapping[int, Missing] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)


def adler32(data: bytes, value: int = 1) -> str:
    """Return the checksum of ``data`` in Rucio's form, ``"adler32:0a1b2c3d"``."""
    return f"adler32:{zlib.adler32(data, value):08x}"


def encode(values: Sequence[Any]) -> Encoded:
    """Serialize the values of a bundle.

    Parameters
    ----------
    values : sequence
        One value or :class:`~pandaflow.core.bundle.Missing` per job.

    Returns
    -------
    Encoded
        Never fails: values that nothing can serialize are listed as ``refused``.
    """
    present, missing = list(values), {}
    if Missing in set(map(type, values)):
        missing = {at: value for at, value in enumerate(values) if type(value) is Missing}
        present = [None if at in missing else value for at, value in enumerate(values)]
    body = None if _bulky(present) else _as_json(present)
    if body is not None:
        return Encoded(body, "json", adler32(body), missing)
    body, refused = _as_pickle(present)
    missing |= {at: Missing(f"unserializable: {why}") for at, why in refused.items()}
    return Encoded(body, "pickle", adler32(body), missing, refused)


def _bulky(values: Sequence[Any]) -> bool:
    """Whether a value is large: as JSON it would take a hundred times longer to write."""
    sized = (value for value in values if type(value) in (list, dict, str))
    return any(
        len(value) > _JSON_ITEMS
        or (type(value) is list and any(len(v) > _JSON_ITEMS for v in value if type(v) is list))
        for value in sized
    )


def json_native(value: Any) -> bool:
    """Tell whether JSON gives ``value`` back exactly: same types, all the way down."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is dict:
        return set(map(type, value)) <= {str} and _all_native(value.values())
    return kind is list and _all_native(value)


def _all_native(values: Iterable[Any]) -> bool:
    return set(map(type, values)) <= _SCALARS or all(map(json_native, values))


def _as_json(values: list[Any]) -> bytes | None:
    try:
        if not _all_native(values):
            return None
        return json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # cycles, lone surrogates, ints beyond str(), depth
        return None


def _as_pickle(values: list[Any]) -> tuple[bytes, dict[int, str]]:
    try:
        return _pickled(values), {}
    except BaseException as error:  # noqa: BLE001 - pickling runs user code (__reduce__), which may raise anything
        _reraise_interrupt(error)
    refused = {}
    kept: list[Any] = list(values)
    for at, value in enumerate(values):
        try:
            _pickled(value)
        except BaseException as error:  # noqa: BLE001 - as above
            _reraise_interrupt(error)
            refused[at], kept[at] = _one_line(error), None
    return _pickled(kept), refused


def _pickled(value: Any) -> bytes:
    """By reference where an import will find it again, else by value."""
    try:
        data = pickle.dumps(value, protocol=5)
    except BaseException as error:  # noqa: BLE001 - user code; cloudpickle is the second opinion
        _reraise_interrupt(error)
    else:
        if b"__main__" not in data:  # the next process has another __main__
            return data
    import cloudpickle

    return cast(bytes, cloudpickle.dumps(value, protocol=5))


def _reraise_interrupt(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt):
        raise error


def _one_line(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a user's __str__ may raise anything
        text = "(its text cannot be had)"
    return f"{type(error).__name__}: {' '.join(text.split())}"[:500]


def _decode(body: bytes, encoding: str, place: str) -> list[Any]:
    try:
        return cast("list[Any]", json.loads(body) if encoding == "json" else pickle.loads(body))
    except BaseException as error:  # unpickling runs user code, which may raise anything
        _reraise_interrupt(error)
        raise DataError(
            f"{place}: the values cannot be read back here ({_one_line(error)}); "
            "the packages that made them must be importable"
        ) from error


def _decode_plain(body: bytes, place: str) -> list[Any]:
    try:
        values = plain.loads(body)
    except DataError as error:
        raise type(error)(f"{place}: {error}") from error
    if type(values) is not list:
        raise DataError(f"{place}: {type(values).__name__} instead of a list of values")
    return values


# --- the file format --------------------------------------------------------------------


def _bytes_as_json(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} in a report")


def _bytes_from_json(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"]) if value.keys() == {"base64"} else value


def _header_line(spec: BundleSpec, encoded: Encoded, report: Mapping[str, Any]) -> bytes:
    missing = [[at, gap.reason, gap.absent] for at, gap in encoded.missing.items()]
    header = {
        "format": FORMAT,
        "version": VERSION,
        "run": spec.run,
        "task": spec.name,
        "bundle": spec.bundle,
        "attempt": spec.attempt,
        "jobs": [[run.start, run.stop] for run in runs_of(spec.jobs)],
        "encoding": encoded.encoding,
        "checksum": encoded.checksum,
        "nbytes": len(encoded.body),
        "missing": missing,
        "report": report,
    }
    text = json.dumps(header, default=_bytes_as_json).encode()[:-1]
    return text + _SEAL + f'{zlib.adler32(text):08x}"}}\n'.encode()


def parse_header(line: bytes, place: str) -> dict[str, Any]:
    """Return the header of a values file from its first line.

    Raises
    ------
    DataError
        It is none; ``place`` says where it was found.
    """
    text, _, seal = line.rpartition(_SEAL)
    if seal != f'{zlib.adler32(text):08x}"}}\n'.encode():
        raise DataError(f"{place}: not a values file, or corrupt or cut short in its header")
    header = cast("dict[str, Any]", json.loads(line, object_hook=_bytes_from_json))
    if header.get("format") != FORMAT or header.get("version", 0) > VERSION:
        kind = f"{header.get('format')} version {header.get('version')}"
        raise DataError(f"{place}: is {kind}; this PandaFlow reads {FORMAT} up to {VERSION}")
    return header


def _parse_file(data: bytes, place: str, verify: bool, only_plain: bool) -> BundleValues:
    end = data.find(b"\n") + 1
    header, body = parse_header(data[:end], place), data[end:]
    if len(body) != header["nbytes"]:
        raise DataError(f"{place}: has {len(body)} bytes of values, expected {header['nbytes']}")
    if verify and adler32(body) != header["checksum"]:
        raise DataError(f"{place}: checksum is {adler32(body)}, expected {header['checksum']}")
    if only_plain and header["encoding"] != "json":
        values = _decode_plain(body, place)
    else:
        values = _decode(body, header["encoding"], place)
    for at, reason, absent in header["missing"]:
        values[at] = Missing(reason, absent)
    jobs = [job for start, stop in header["jobs"] for job in range(start, stop)]
    return BundleValues(compact(jobs), values)


# --- the store --------------------------------------------------------------------------


class Claim:
    """The right to run a bundle; its position survives the death of the process.

    Attributes
    ----------
    slot : mutable sequence of int
        ``slot[0] = position`` tells which job runs: one store into shared memory.
    """

    def __init__(self, path: str, shared: mmap.mmap | None) -> None:
        self._path, self._shared = path, shared
        view = memoryview(shared).cast("q") if shared is not None else array("q", [-1])
        self.slot = cast("MutableSequence[int]", view)

    def remove(self) -> None:
        """Give the claim up: the bundle's result is there, or will never be."""
        if self._shared is None:
            return
        cast("memoryview[int]", self.slot).release()
        self._shared.close()
        self._shared = None
        with suppress(FileNotFoundError):
            os.unlink(self._path)


class ResultStore:
    """Blobs, values and logs of one run.

    Parameters
    ----------
    url : str
        Local path or fsspec URL of the run's folder. Local folders are served by plain
        system calls; anything else needs fsspec and the package for its protocol.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        path = self.url.removeprefix("file://")
        self.local: str | None = None if "://" in path else os.path.abspath(path)
        self._remote: Any = None

    def __reduce__(self) -> tuple[Callable[[str], ResultStore], tuple[str]]:
        return (ResultStore, (self.url,))

    def put(self, name: str, data: bytes) -> None:
        """Write a blob; on local folders it appears whole or not at all."""
        self._write(name, (data,))

    def get(self, name: str) -> bytes:
        """Return a blob.

        Raises
        ------
        DataError
            There is none, or it cannot be read.
        """
        return self._read(name, lambda file: file.read())

    def place(self, bundle: int) -> str:
        """Return where the values of a bundle are, relative to the run's folder."""
        return f"values/{bundle // 1000:03d}/{bundle}.values"

    def find(self, bundle: int) -> str | None:
        """Return the location of a bundle's values if they exist."""
        location = self.place(bundle)
        if self.local is not None:
            return location if os.path.exists(self._path(location)) else None
        return location if self._fs().exists(self._path(location)) else None

    def save(self, spec: BundleSpec, encoded: Encoded, report: Mapping[str, Any]) -> str:
        """Write the values and the report of a bundle as one file; return its location.

        Raises
        ------
        OSError
            The folder cannot be written, say a full disk; nothing half-written is left.
        """
        location = self.place(spec.bundle)
        # The state store will say that these jobs have finished, power cut or not.
        self._write(location, (_header_line(spec, encoded, report), encoded.body), sync=True)
        return location

    def load(self, location: str, verify: bool = True, *, only_plain: bool = False) -> BundleValues:
        """Return the values of a bundle.

        Unpickling runs code of whoever made the values, unless ``only_plain``: then what is no
        plain value (:mod:`pandaflow.data.plain`) is refused.

        Raises
        ------
        NotPlain
            There are other values, and ``only_plain``.
        DataError
            The file is missing, corrupt or cut short, or needs packages that are not here.
        """
        data = self._read(location, lambda file: file.read())
        return _parse_file(data, self._path(location), verify, only_plain)

    def header(self, location: str) -> dict[str, Any]:
        """Return the header of a values file; ``header["report"]`` is the packed report.

        Raises
        ------
        DataError
            As for :meth:`load`.
        """
        return parse_header(
            self._read(location, lambda file: file.readline()), self._path(location)
        )

    def claim(self, bundle: int, attempt: int, worker: str = "") -> Claim | None:
        """Take the right to run a bundle; None if somebody took it before.

        Object stores cannot give a thing to one taker only: there, everybody gets it.
        """
        if self.local is None:
            return Claim("", None)
        path = self._path(f"claims/{bundle}")
        try:
            with _create(path, "x+b") as file:
                file.write(_CLAIM.pack(-1, attempt) + worker.encode())
                file.flush()  # the block must exist: a store into a sparse map dies on a full disk
                return Claim(path, mmap.mmap(file.fileno(), _CLAIM.size))
        except FileExistsError:
            return None
        except OSError:
            with suppress(OSError):
                os.unlink(path)
            raise

    def claimed_position(self, bundle: int) -> int | None:
        """Return the job that ran last under a claim still held; None: no claim, or no job."""
        if self.local is None:
            return None
        try:
            with open(self._path(f"claims/{bundle}"), "rb") as file:
                position, _ = _CLAIM.unpack(file.read(_CLAIM.size))
        except (FileNotFoundError, struct.error):
            return None
        return None if position < 0 else int(position)

    def claimed_by(self, bundle: int) -> str:
        """Return the worker that holds a claim; "" if nobody does."""
        if self.local is None:
            return ""
        try:
            with open(self._path(f"claims/{bundle}"), "rb") as file:
                return file.read()[_CLAIM.size :].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def open_log(self, bundle: int) -> BinaryIO:
        """Open a bundle's log, ``logs/<bundle>.log``, for writing from its start."""
        path = self._path(f"logs/{bundle}.log")
        if self.local is not None:
            return _create(path, "wb", buffering=0)
        return cast(BinaryIO, self._fs().open(path, "wb"))

    def read_log(self, bundle: int, span: tuple[int, int] | None = None) -> str:
        """Return a bundle's log, or ``span`` = (offset, length) of it; "" if nothing was said."""
        start, length = span or (0, -1)

        def part(file: BinaryIO) -> bytes:
            file.seek(start)
            return file.read(length)

        try:
            return self._read(f"logs/{bundle}.log", part).decode(errors="replace")
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return ""
            raise

    def adopt(self, path: str, name: str) -> str:
        """Move a local file into the run's folder as ``name``; return its path or URL."""
        target = self._path(name)
        if self.local is None:
            self._fs().put_file(path, target)
            os.unlink(path)
            return f"{self.url}/{name}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            os.replace(path, target)
        except OSError:  # another file system: copy beside it, then rename
            temporary = _temporary(target)
            with _removed_on_error(temporary):
                shutil.copyfile(path, temporary)
                os.replace(temporary, target)
            os.unlink(path)
        return target

    def _path(self, name: str) -> str:
        if self.local is not None:
            return os.path.join(self.local, name)
        return name if "://" in name else f"{self.url}/{name}"

    def _fs(self) -> Any:
        if self._remote is None:
            import fsspec

            self._remote, _ = fsspec.core.url_to_fs(self.url)
        return self._remote

    def _read(self, name: str, part: Callable[[BinaryIO], bytes]) -> bytes:
        path = self._path(name)
        try:
            file = open(path, "rb") if self.local is not None else self._fs().open(path, "rb")
            with file:
                return part(file)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error

    def _write(self, name: str, chunks: Sequence[bytes], sync: bool = False) -> None:
        path = self._path(name)
        if self.local is None:
            self._fs().pipe_file(path, b"".join(chunks))
            return
        temporary = _temporary(path)
        with _removed_on_error(temporary):
            with _create(temporary, "wb") as file:
                file.writelines(chunks)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)


def _temporary(path: str) -> str:
    return f"{path}.{os.getpid()}-{threading.get_ident():x}.tmp"


class _removed_on_error:  # noqa: N801 - reads as a statement
    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is not None:
            with suppress(OSError):
                os.unlink(self._path)


def _create(path: str, mode: str, buffering: int = -1) -> BinaryIO:
    """Open for writing; make the folder only when it turns out to be missing."""
    try:
        return cast(BinaryIO, open(path, mode, buffering))
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return cast(BinaryIO, open(path, mode, buffering))
