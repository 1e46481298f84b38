"""Sizes and durations as people write them."""

from __future__ import annotations

from collections.abc import Mapping

from pandaflow.core.errors import WorkflowError

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"": 1.0, "S": 1.0, "M": 60.0, "MIN": 60.0, "H": 3600.0, "D": 86400.0}


def _quantity(value: object, units: Mapping[str, float], what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise WorkflowError(
            f"{what}={value!r}: give a number or a text such as '2 GiB' or '90 min'"
        )
    if isinstance(value, int | float):
        number, unit = float(value), ""
    else:
        text = value.strip()
        cut = len(text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ "))
        number_text, unit = text[:cut], text[cut:].strip().upper()
        try:
            number = float(number_text)
        except ValueError:
            raise WorkflowError(f"{what}={value!r}: not a number with a unit") from None
    if unit not in units:
        known = ", ".join(sorted(u for u in units if u))
        raise WorkflowError(f"{what}={value!r}: unknown unit {unit!r}; use one of {known}")
    if not number >= 0 or number == float("inf"):
        raise WorkflowError(f"{what}={value!r}: must be finite and not negative")
    return number * units[unit]


def parse_bytes(value: object, what: str = "size") -> int:
    """Parse a size such as ``"1.5 GiB"``, ``"200MB"`` or a number of bytes.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    WorkflowError
        Names ``what`` when the text is not a size.
    """
    return int(_quantity(value, _SIZES, what))


def parse_seconds(value: object, what: str = "duration") -> float:
    """Parse a duration: seconds, ``"90 min"``, ``"2h"`` or ``"02:00:00"``.

    Returns
    -------
    float
        Seconds.
    """
    if isinstance(value, str) and ":" in value:
        try:
            parts = [float(part) for part in value.split(":")]
        except ValueError:
            raise WorkflowError(f"{what}={value!r}: not of the form HH:MM:SS") from None
        if len(parts) > 3 or not all(0 <= part < float("inf") for part in parts):
            raise WorkflowError(f"{what}={value!r}: not of the form HH:MM:SS")
        seconds = 0.0
        for part in parts:
            seconds = seconds * 60 + part
        return seconds
    return _quantity(value, _SECONDS, what)


def size_text(value: float) -> str:
    """Write bytes as memory and disks are sold by: ``"64 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def volume_text(value: float) -> str:
    """Write bytes as data sets and tapes are counted: ``"40 TB"``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} PB" if value < 999.5 else f"{value:,.0f} PB"


def time_text(seconds: float) -> str:
    """Write a duration with its unit: ``"90 s"``, ``"16.7 min"``, ``"4 h"``."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < most:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:,.3g} d" if seconds < 86400 * 999 else f"{seconds / 86400:,.0f} d"
