"""Numbers as people read them: durations, counts, rates, texts cut to a width."""

from __future__ import annotations

import math


def duration(seconds: float | None) -> str:
    """Write seconds as ``"340 ms"``, ``"12.4 s"``, ``"3 m 05 s"``, ``"2 h 07 m"``, ``"4 d 03 h"``.

    None and what is not finite become a dash.
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} m"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def count(number: int) -> str:
    """Write a whole number with thousands separators."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """Write ``"1 job"``, ``"1,200 jobs"``; a noun given in the plural loses its s for one."""
    stem = noun[:-1] if noun.endswith("s") else noun
    return f"{number:,} {stem if number == 1 else stem + 's'}"


def rate(per_second: float | None) -> str:
    """Write a rate of jobs: ``"12.3/s"``, ``"4.1/min"``, ``"2.0/h"``; a dash for none."""
    if not per_second or not math.isfinite(per_second):
        return "–"
    for value, unit in ((per_second, "s"), (per_second * 60, "min")):
        if value >= 0.95:
            return f"{value:,.0f}/{unit}" if value >= 99.5 else f"{value:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


def percent(part: int, whole: int) -> str:
    """Write a share; 100 % only when nothing is missing, 0 % only when nothing is there."""
    if whole <= 0:
        return "–"
    share = 100 * part / whole
    if part < whole:
        share = min(share, 99)
    return f"{max(share, 1) if part else 0:.0f} %"


def clip(text: str, width: int) -> str:
    """Cut ``text`` to ``width`` characters, the last one an ellipsis where it was cut."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def clip_middle(text: str, width: int) -> str:
    """Cut the middle out of ``text``: both ends of an address tell more than its middle."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    tail = width - 1 - head
    return text[:head] + "…" + (text[-tail:] if tail > 0 else "")


def clip_name(text: str, width: int) -> str:
    """Cut a name to ``width`` characters; one with slashes keeps its end, which tells most."""
    if len(text) <= width or "/" not in text or width < 2:
        return clip(text, width)
    return "…" + text[1 - width :]


_NARROW = frozenset("iljtfrI.,:;'|!()[]{} -/\\`")
_WIDE = frozenset("mwMW@%&—…")


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Estimate the width of ``text`` in pixels at font size ``size`` (a sans serif face).

    A generous estimate by classes of letters: the viewer's font is not known here.
    """
    ems = 0.0
    for letter in text:
        if letter in _NARROW:
            ems += 0.34
        elif letter in _WIDE:
            ems += 0.92
        elif letter.isupper():
            ems += 0.69
        else:
            # East Asian and other tall scripts take a full em
            ems += 0.57 if ord(letter) < 0x2E80 else 1.0
    return ems * size * (1.06 if bold else 1.0)


def fit_text(text: str, size: float, width: float, *, bold: bool = False) -> str:
    """Cut ``text`` so that it takes at most ``width`` pixels at font size ``size``."""
    if text_width(text, size, bold=bold) <= width:
        return text
    keep = len(text)
    while keep > 1 and text_width(text[:keep] + "…", size, bold=bold) > width:
        keep -= 1
    return text[:keep] + "…"
