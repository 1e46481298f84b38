"""Optimizers of the tests' own: one that depends on all it saw, in ways to fail."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

from pandaflow.hpo.port import Asked, AskEntry, Brief, Entry, Memo, ReportEntry, TellEntry, Told
from pandaflow.hpo.space import AnySpace, Point, RandomSuggester


@dataclass(frozen=True)
class Historian:
    """What makes a :class:`History`.

    Attributes
    ----------
    folder : str
        Where it leaves its process's id, and marks that it has misbehaved.
    mode : str
        'steady', or what goes wrong when trial ``at`` is asked for: 'hang', 'raise', 'segfault',
        'exit'; with '-once' behind it only the first time.
    snapshots : bool
        Keep its state after each third tell.
    """

    folder: str
    mode: str = "steady"
    at: int = 3
    snapshots: bool = False
    seed: int | None = 5

    @property
    def isolated(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return {"kind": "tests", "name": "history"}

    def check(self, space: AnySpace, brief: Brief) -> None:
        return None

    def build(self, space: AnySpace, brief: Brief) -> History:
        Path(self.folder, f"optimizer-{os.getpid()}").touch()
        return History(self, space, brief)


class History:
    """Draws each point from a hash of all events so far: any difference in order changes it."""

    def __init__(self, spec: Historian, space: AnySpace, brief: Brief) -> None:
        self._spec, self._space = spec, space
        self._hash = str(brief.seed)
        self._tells = 0

    def _saw(self, *event: Any) -> None:
        self._hash = blake2b(repr((self._hash, event)).encode(), digest_size=16).hexdigest()

    def _point(self) -> Point:
        return self._space.draw(RandomSuggester(Random(self._hash)))

    def ask(self, number: int) -> Asked:
        if number >= self._spec.at:
            self._misbehave()
        point = self._point()
        self._saw("ask", number, point)
        return Asked(point)

    def adopt(self, number: int, point: Point) -> Memo:
        self._saw("ask", number, point)
        return {}

    def tell(self, told: Told) -> Memo:
        self._saw("tell", told.number, told.state, told.values)
        self._tells += 1
        return {}

    def report(self, number: int, step: int, value: float) -> bool:
        self._saw("report", number, step, value)
        return False

    def snapshot(self) -> bytes | None:
        if not self._spec.snapshots or self._tells % 3:
            return None
        return json.dumps([self._hash, self._tells]).encode()

    def restore(self, entries: Sequence[Entry], snapshot: bytes | None = None) -> str:
        if snapshot is not None:
            self._hash, self._tells = json.loads(snapshot)
            Path(self._spec.folder, "from-snapshot").touch()
        for entry in entries:
            match entry:
                case AskEntry() if entry.own and entry.point != self._point():
                    return f"trial {entry.number} had another point"
                case AskEntry():
                    self._saw("ask", entry.number, entry.point)
                case TellEntry():
                    self.tell(entry.told)
                case ReportEntry():
                    self.report(entry.number, entry.step, entry.value)
        return ""

    def _misbehave(self) -> None:
        mode, _, once = self._spec.mode.partition("-")
        if mode == "steady":
            return
        mark = Path(self._spec.folder, "misbehaved")
        if once and mark.exists():
            return
        with mark.open("a") as file:
            file.write(".")
        match mode:
            case "hang":
                time.sleep(3600)
            case "raise":
                raise ArithmeticError("singular matrix")
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
