"""How a bundle ended: exceptions as failures, and the report that travels to the driver."""

from __future__ import annotations

import os
import traceback
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from types import TracebackType
from typing import Any

from pandaflow.core.errors import DataError, PandaflowError
from pandaflow.core.events import BundleEnded
from pandaflow.core.model import Failure, compact, runs_of

MESSAGE_LIMIT, TRACEBACK_LIMIT = 2_000, 10_000
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Skip(Exception):
    """Raised by a payload: this job has nothing to give, and that is no failure.

    The job finishes without a value; lists of whoever reads it go without the item, and jobs
    that need just this item are closed.
    """


class JobFailed(Exception):
    """Carries a failure that is known already, from where it arose to the job loop."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class BundleAbandoned(PandaflowError, RuntimeError):
    """An earlier execution of the very same bundle began and did not end.

    Raised instead of running payloads a second time; the driver decides what to repeat.
    """


# --- exceptions -> failures -------------------------------------------------------------


def failure_of(error: BaseException, kind: str = "exception") -> Failure:
    """Describe what a payload raised; only text is kept.

    Parameters
    ----------
    error : BaseException
        Its ``__str__`` may itself raise, and its text may be of any size.
    kind : str
        The kind of failure.
    """
    if isinstance(error, JobFailed):
        return error.failure
    names = [_qualified(base) for base in type(error).__mro__[:-1]]
    plain = [name.rpartition(".")[2] for name in names]
    text = one_line(error)
    return Failure(
        kind=kind,
        message=f"{plain[0]}: {text}" if text else plain[0],
        type=names[0],
        mro=tuple(dict.fromkeys(plain + names)),
        traceback=_traceback(error),
    )


def one_line(error: BaseException) -> str:
    """Return the text of an exception on one line, cut to a sane length."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a user's __str__ may raise anything
        return "(the text of this exception cannot be had: its __str__ raises)"
    return shorten(" ".join(text[: 4 * MESSAGE_LIMIT].split()), MESSAGE_LIMIT)


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of ``text`` if it has more than ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]} [... {len(text) - limit} characters ...] {text[head - limit :]}"


def _qualified(kind: type) -> str:
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def _traceback(error: BaseException) -> str:
    frames = _users_frames(error.__traceback__)
    try:
        lines = traceback.format_exception(type(error), error, frames)
    except BaseException:  # noqa: BLE001 - formatting calls user code (__str__, __cause__, __notes__)
        lines = traceback.format_tb(frames)
    return shorten("".join(lines), TRACEBACK_LIMIT)


def _users_frames(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the job loop, which tell the user nothing."""
    first = frames
    while frames is not None:
        if not os.path.abspath(frames.tb_frame.f_code.co_filename).startswith(_OWN):
            return frames
        frames = frames.tb_next
    return first


# --- reports <-> plain dicts ------------------------------------------------------------

_FLOATS, _COUNTS = ("wall", "cpu"), ("max_pss", "read_bytes", "written_bytes", "disk")
_PLAIN = (
    "at",
    "bundle",
    "worker",
    "location",
    "checksum",
    "nbytes",
    "detached",
    "truth",
    "started",
)


def pack_ended(ended: BundleEnded) -> dict[str, Any]:
    """Turn an outcome report into a compact dict of plain values that msgpack can carry.

    Measures travel as bytes of ``array('f')`` (seconds) and ``array('q')`` (bytes), the
    tracebacks that many jobs share only once; empty fields are left out.
    """
    out: dict[str, Any] = {name: getattr(ended, name) for name in _PLAIN}
    for name in _FLOATS:
        out[name] = array("f", getattr(ended, name)).tobytes()
    for name in _COUNTS:
        out[name] = array("q", getattr(ended, name)).tobytes()
    for name in ("unstarted", "cached"):
        out[name] = _spans(getattr(ended, name))
    for name in ("blocked", "skipped"):
        out[name] = _by_reason(getattr(ended, name))
    out["sizes"] = array("q", [n for pair in ended.sizes.items() for n in pair]).tobytes()
    out["logs"] = array("q", [n for p, span in ended.logs.items() for n in (p, *span)]).tobytes()
    out["failures"], out["tracebacks"] = _pack_failures(ended.failures)
    packed = {key: value for key, value in out.items() if value not in (None, (), [], b"", "")}
    return {"op": "ended", **packed}


def unpack_ended(report: Mapping[str, Any]) -> BundleEnded:
    """Turn what :func:`pack_ended` made back into the report."""
    known: dict[str, Any] = {name: report[name] for name in _PLAIN if name in report}
    known |= {name: array("f", report[name]) for name in _FLOATS if name in report}
    known |= {name: array("q", report[name]) for name in _COUNTS if name in report}
    for name in ("unstarted", "cached"):
        known[name] = tuple(_positions(report.get(name, ())))
    for name in ("blocked", "skipped"):
        pairs = report.get(name, ())
        known[name] = dict(sorted((p, why) for why, runs in pairs for p in _positions(runs)))
    flat = array("q", report.get("sizes", b""))
    known["sizes"] = dict(zip(flat[::2], flat[1::2], strict=True))
    flat = array("q", report.get("logs", b""))
    spans = zip(flat[1::3], flat[2::3], strict=True)
    known["logs"] = dict(zip(flat[::3], spans, strict=True))
    texts = report.get("tracebacks", ())
    known["failures"] = {p: _unpack_failure(raw, texts) for p, raw in report.get("failures", ())}
    return BundleEnded(**known)


def parse_ended(report: Mapping[str, Any], bundle: int, size: int) -> BundleEnded:
    """Turn a report that anybody may have written into the end of a bundle.

    Parameters
    ----------
    report : mapping
        As :func:`pack_ended` makes it.
    bundle : int
        Number of the bundle that it should be about.
    size : int
        How many jobs that has.

    Raises
    ------
    DataError
        It is about another bundle, about jobs that this one does not have, or damaged.
    """
    try:
        # First: positions travel as spans, which are short however many they stand for.
        fine = _few(report, size)
        ended = unpack_ended(report) if fine else BundleEnded(at=0.0, bundle=bundle)
        fine = fine and ended.bundle == bundle and _fits(ended, size)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise DataError(f"the report on bundle {bundle} is damaged ({told})") from error
    if not fine:
        raise DataError(f"the report on bundle {bundle} does not fit it")
    return ended


def _few(report: Mapping[str, Any], size: int) -> bool:
    groups = [report.get(name, ()) for name in ("unstarted", "cached")]
    for name in ("blocked", "skipped"):
        groups.append([span for _, spans in report.get(name, ()) for span in spans])
    return all(
        all(0 <= start <= stop <= size for start, stop in spans)
        and sum(stop - start for start, stop in spans) <= size
        for spans in groups
    )


def _fits(ended: BundleEnded, size: int) -> bool:
    places = [*ended.failures, *ended.blocked, *ended.skipped, *ended.sizes, *ended.logs]
    places += [*ended.unstarted, *ended.cached]
    places += [ended.detached] if ended.detached is not None else []
    measures = (getattr(ended, name) for name in (*_FLOATS, *_COUNTS))
    texts = (ended.worker, ended.location, ended.checksum)
    numbers = (ended.at, ended.started, ended.nbytes)
    return (
        all(type(place) is int and 0 <= place < size for place in places)
        and all(len(each) in (0, size) for each in measures)
        and all(type(each) is str for each in texts)
        and all(type(each) in (int, float) for each in numbers)
        and all(_is_text(each) for each in ended.failures.values())
        and type(ended.truth) in (bool, type(None))
        # Each item of a list takes a byte at least.
        and all(0 <= count <= ended.nbytes for count in ended.sizes.values())
    )


def _is_text(failure: Failure) -> bool:
    texts = (failure.kind, failure.message, failure.type, failure.traceback, *failure.mro)
    return (
        all(type(each) is str for each in texts)
        and type(failure.code) in (int, type(None))
        and type(failure.charged) is bool
    )


def _spans(positions: Sequence[int]) -> list[list[int]]:
    return [[run.start, run.stop] for run in runs_of(compact(positions))]


def _positions(spans: Iterable[Sequence[int]]) -> list[int]:
    return [position for start, stop in spans for position in range(start, stop)]


def _by_reason(reasons: Mapping[int, str]) -> list[list[Any]]:
    groups: dict[str, list[int]] = {}
    for position in sorted(reasons):
        groups.setdefault(reasons[position], []).append(position)
    return [[reason, _spans(positions)] for reason, positions in groups.items()]


_DEFAULTS = ("", (), None)


def _pack_failures(failures: Mapping[int, Failure]) -> tuple[list[list[Any]], list[str]]:
    """A thousand jobs that fail alike differ in the last line of the traceback only."""
    texts: dict[str, int] = {}
    packed: list[list[Any]] = []
    for position, failure in failures.items():
        raw = {name: value for name, value in asdict(failure).items() if value not in _DEFAULTS}
        raw |= {"kind": failure.kind, "message": failure.message}
        if failure.traceback:
            cut = failure.traceback.rstrip("\n").rfind("\n") + 1
            head, last = failure.traceback[:cut], failure.traceback[cut:]
            raw["traceback"] = [texts.setdefault(head, len(texts)), last]
        if failure.mro:
            raw["mro"] = list(failure.mro)
        packed.append([position, raw])
    return packed, list(texts)


def _unpack_failure(raw: Mapping[str, Any], texts: Sequence[str]) -> Failure:
    names = {f.name for f in fields(Failure)}
    known = {key: value for key, value in raw.items() if key in names}
    known["mro"] = tuple(raw.get("mro", ()))
    if raw.get("traceback"):
        number, last = raw["traceback"]
        known["traceback"] = texts[number] + last
    return Failure(**known)
