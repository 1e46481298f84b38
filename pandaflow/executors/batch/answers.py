"""Reading what commands print: numbers, times, ranges, refusals.

A text that is not what it should be gives None or is left out, unless a function says otherwise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from pandaflow.core.errors import SiteError

#: More elements than any array of a real site: ranges beyond are not expanded.
MOST_ELEMENTS = 1_000_000

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?")
_DURATION = re.compile(r"(?:(\d{1,6})-)?(\d{1,9}(?::\d{1,9}){0,2})(?:\.\d*)?")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgtp]?)(?:i?b|w)?", re.I)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_CALENDAR = ("%a %b %d %H:%M:%S %Y", "%b %d %H:%M:%S %Y", "%b %d %H:%M %Y")


def whole(text: str | None) -> int | None:
    """Read a whole number; None if it is none (or none of a real system)."""
    text = (text or "").strip()
    return int(text) if re.fullmatch(r"[+-]?\d{1,15}", text, re.A) else None


def elements(text: str, first: int = 0) -> list[int]:
    """Expand ``"2-9%2"``, ``"1,7,10-12"`` or ``"1-9:2"``; ``first`` becomes element 0.

    Parts that are no ranges (``"..."`` of a shortened list) are left out.
    """
    found: list[int] = []
    for part in text.split("%")[0].split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            continue
        start = int(match[1])
        span = range(start, int(match[2] or start) + 1, int(match[3] or 1) or 1)
        if len(span) + len(found) <= MOST_ELEMENTS:
            found += [number - first for number in span if number >= first]
    return found


def duration(text: str | None) -> float | None:
    """Read ``[days-]hh:mm:ss``, ``mm:ss`` or seconds, in seconds; None if it is none of them."""
    match = _DURATION.fullmatch((text or "").strip())
    if match is None:
        return None
    seconds = 0
    for part in match[2].split(":"):
        seconds = 60 * seconds + int(part)
    return float(86400 * int(match[1] or 0) + seconds)


def size(text: str | None, unit: str = "") -> int | None:
    """Read ``"4000"``, ``"50mb"`` or ``"23.5G"`` in bytes, powers of 1024.

    ``unit`` is that of a number without one: ``k``, ``m``, ...
    """
    match = _SIZE.fullmatch((text or "").strip())
    if match is None:
        return None
    return round(float(match[1]) * float(1024 ** _POWERS[(match[2] or unit).lower()]))


def moment(text: str | None) -> float | None:
    """Read a time in seconds since the epoch; None for ``Unknown``, ``N/A``, ``-/-`` and such.

    Understood are seconds, ISO 8601 and the calendar form of ``ctime``; without a zone the
    local one is meant, which the node that is asked shares with its batch system.
    """
    text = (text or "").strip()
    if re.fullmatch(r"\d{9,11}(?:\.\d+)?", text, re.A):
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    for form in _CALENDAR:
        try:
            return datetime.strptime(" ".join(text.split()), form).timestamp()
        except (ValueError, OverflowError, OSError):
            continue
    return None


def clock(seconds: float) -> str:
    """Write ``hh:mm:ss``, rounded up."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def ceiling(amount: float, unit: int) -> int:
    """Return how many whole units hold ``amount``: a limit is never rounded down."""
    return -(-math.ceil(amount) // unit)


def json_object(text: str, system: str) -> Any:
    """Parse JSON.

    Raises
    ------
    SiteError
        Transient: half an answer must not read as "no such job".
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise not_understood(system, text) from None


def xml_tree(text: str, system: str) -> ElementTree.Element:
    """Parse XML.

    Raises
    ------
    SiteError
        Transient: half an answer must not read as "no such job".
    """
    try:
        return ElementTree.fromstring(text.strip())
    except (ElementTree.ParseError, ValueError, LookupError):
        raise not_understood(system, text) from None


def shown(text: str, most: int = 300) -> str:
    """Return the words of a text in one line, shortened."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def not_understood(system: str, text: str) -> SiteError:
    """Return the error for an answer in a foreign tongue, or half an answer."""
    return SiteError(
        f"{system} answered something that is not understood: {shown(text) or 'nothing'!r}. "
        "If this goes on, run the command by hand and compare.",
        transient=True,
    )


def some(found: Any, stdout: str, system: str) -> Any:
    """Return ``found`` unless it is empty though there were lines, or the last line was cut.

    Raises
    ------
    SiteError
        Transient, when nothing of a text was understood, or not all of it arrived.
    """
    if stdout.strip() and not (found and stdout.endswith("\n")):
        raise not_understood(system, stdout)
    return found


@dataclass(frozen=True, slots=True)
class Refusals:
    """What a system says when it does not do what it is asked.

    Attributes
    ----------
    system : str
        For the messages.
    silent : str
        Pattern: the system does not answer now; the same request may succeed later.
    gone : str
        Pattern: it knows no such job (any more).
    remedies : sequence of (str, str)
        Pattern, and what to do about it.
    """

    system: str
    silent: str
    gone: str
    remedies: Sequence[tuple[str, str]] = ()

    def error(self, stdout: str, stderr: str, code: int) -> SiteError:
        """Return the error that a failed command stands for."""
        words = stderr if stderr.strip() else stdout
        told = shown(words) or f"exit code {code} without a word"
        if self.unreachable(stdout, stderr):
            return SiteError(f"{self.system} does not answer: {told}", transient=True)
        remedy = next((r for p, r in self.remedies if re.search(p, words, re.I)), "")
        return SiteError(f"{self.system} refuses: {told}" + (f" -> {remedy}" if remedy else ""))

    def unreachable(self, stdout: str, stderr: str) -> bool:
        """Tell whether the system did not answer at all."""
        return any(re.search(self.silent, text, re.I) for text in (stderr, stdout))

    def only_gone(self, stdout: str, stderr: str) -> bool:
        """Tell whether all that went wrong is that some jobs are not known (any more)."""
        lines = self._complaints(stderr) or self._complaints(stdout)
        return bool(lines) and all(re.search(self.gone, line, re.I) for line in lines)

    def _complaints(self, text: str) -> list[str]:
        return [line for line in text.splitlines() if line.strip()]

    def check(self, stdout: str, stderr: str, code: int) -> None:
        """Raise what a failed query stands for; unknown jobs are no failure."""
        if self.unreachable("", stderr) and (code or not stdout.strip()):
            raise self.error(stdout, stderr, code)
        if code and not self.only_gone("", stderr):
            raise self.error(stdout, stderr, code)

    def check_cancel(self, stdout: str, stderr: str, code: int) -> None:
        """Raise what a failed cancellation stands for; jobs that are gone are none."""
        if self.unreachable(stdout, stderr) or (code and not self.only_gone(stdout, stderr)):
            raise self.error(stdout, stderr, code)


def identifier(pattern: str, stdout: str, system: str) -> str:
    """Return the first group of the last line that matches ``pattern`` as a whole.

    Banners of login shells and wrappers come before it.

    Raises
    ------
    SiteError
        Not transient: the job may be in the queue, and to submit it again would double it.
    """
    for line in reversed(stdout.splitlines()):
        match = re.fullmatch(pattern, line.strip())
        if match is not None:
            return match[1]
    raise SiteError(
        f"{system} took a job but told no id: {shown(stdout) or 'nothing'!r}. "
        "Look into the queue before submitting it again."
    )


def names(text: str, empty: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the words of a list of nodes, each once, without the ``empty`` ones."""
    words = [word for word in re.split(r"[\s,+]+", text) if word and word not in set(empty)]
    return tuple(dict.fromkeys(words))
