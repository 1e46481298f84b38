"""Where in a TOML file a value stands, as far as a look at the text tells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_HEADER = re.compile(r"\s*(\[{1,2})([^\[\]]+)\]{1,2}\s*(?:#.*)?")
_ONE = r"[\w-]+|\"[^\"]*\"|'[^']*'"
_KEY = re.compile(rf"\s*((?:{_ONE})(?:\s*\.\s*(?:{_ONE}))*)\s*=")
_WORD = re.compile(_ONE)

Path = Sequence[str | int]


def place(text: str, path: Path) -> str:
    """Return ``", line 7, queues.CERN.slurm.partition"`` for messages; empty for the whole file.

    Parameters
    ----------
    text : str
        TOML.
    path : sequence of str or int
        Keys, and positions in lists; where the value is missing, its table is told.
    """
    if not path:
        return ""
    name = str(path[0]) + "".join(
        f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in path[1:]
    )
    line = _line(text, tuple(path))
    return f", line {line}, {name}" if line else f", {name}"


def _line(text: str, path: tuple[str | int, ...]) -> int | None:
    """Return the number of the line that says most of a path."""
    table: tuple[str | int, ...] = ()
    seen: Counter[tuple[str | int, ...]] = Counter()
    best, depth = None, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            table = _words(header[2])
            if header[1] == "[[":
                seen[table] += 1
                table = (*table, seen[table] - 1)
            here = table
        elif key := _KEY.match(line):
            here = (*table, *_words(key[1]))
        else:
            continue
        if here == path[: len(here)] and len(here) > depth:
            best, depth = number, len(here)
    return best


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip("\"'") for word in _WORD.findall(text))
