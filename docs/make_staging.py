"""Draw ``docs/pictures/staging.svg``: a campaign through the data carousel, simulated.

Run ``python docs/make_staging.py``. Two tape systems deliver at fixed rates, one of them is down
for a while, and 180 slots read what is on disk. The carousel is the real one.
"""

from __future__ import annotations

import heapq
import random
import sys
from itertools import count
from pathlib import Path

from pandaflow.core import staging as st
from pandaflow.core.carousel import Carousel
from pandaflow.display.staging import staging_picture

PICTURE = Path(__file__).with_name("pictures") / "staging.svg"
HOUR, TB = 3600.0, 10**12
BUDGETS = {"CERN-TAPE": st.Budget(3 * TB, 1500), "KIT-TAPE": st.Budget(2 * TB, 1500)}
#: Bytes per second.
RATES = {"CERN-TAPE": 6e8, "KIT-TAPE": 3.5e8}
DOWN = ("CERN-TAPE", 4 * HOUR, 6.5 * HOUR)
#: Run, tape system, dataset, files, and when they are wanted.
WANTED = (
    ("run-1", "CERN-TAPE", "d1", 2500, 0.0),
    ("run-2", "CERN-TAPE", "d2", 1500, 3 * HOUR),
    ("run-1", "KIT-TAPE", "d3", 2200, 0.0),
    ("run-3", "KIT-TAPE", "d4", 800, 6 * HOUR),
)


class Campaign:
    """Tape drives, slots and the time, around a carousel."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._carousel = Carousel(st.CarouselSettings(budgets=BUDGETS, quantum=TB // 2))
        self._events: list[tuple[float, int, st.Event]] = []
        self._numbers = count()
        self._sizes: dict[str, int] = {}
        self._drives = dict.fromkeys(RATES, 0.0)
        self._slots = [0.0] * 180
        for run, tape, dataset, files, at in WANTED:
            named = {f"{dataset}.{k}": int(self._dice.uniform(2e9, 6e9)) for k in range(files)}
            self._sizes |= named
            self._later(st.FilesWanted(at, run, tape, dataset, tuple(named.items())))
        self._later(st.Downtime(DOWN[1] - HOUR, *DOWN))

    def rows(self, until: float, every: float = 300.0) -> list[dict[str, float | str]]:
        """Return what has come how far, at equal distances of time."""
        rows, sampled = [], 0.0
        while self._events and self._events[0][0] < until:
            at, _, event = heapq.heappop(self._events)
            for command in self._carousel.handle([event]):
                self._obey(command, at)
            if at >= sampled:
                rows += self._carousel.rows(at)
                sampled = at + every
        return rows

    def _later(self, event: st.Event) -> None:
        heapq.heappush(self._events, (event.at, next(self._numbers), event))

    def _obey(self, command: st.Command, at: float) -> None:
        match command:
            case st.RequestRule():
                self._later(st.RuleMade(at + 5, command.request, f"rule-{command.request}"))
                for name in command.files:
                    ready = self._delivered(command.tape, name, at)
                    self._later(st.LockOk(ready, command.request, (name,)))
            case st.ReleaseJobs():
                for name in command.files:
                    start = max(heapq.heappop(self._slots), at)
                    end = start + self._dice.expovariate(1 / 1500)
                    heapq.heappush(self._slots, end)
                    self._later(st.JobsDone(end, command.run, (name,)))
            case st.WakeAt():
                self._later(st.Tick(command.time))

    def _delivered(self, tape: str, name: str, at: float) -> float:
        seconds = self._sizes[name] / RATES[tape] * self._dice.uniform(0.7, 1.3)
        ready = max(self._drives[tape], at + 600) + seconds
        if tape == DOWN[0] and DOWN[1] <= ready < DOWN[2]:
            ready += DOWN[2] - DOWN[1]
        self._drives[tape] = ready
        return ready


def draw(target: Path) -> Path:
    """Simulate sixteen hours and write the picture."""
    rows = Campaign(7).rows(16 * HOUR)
    picture = staging_picture(rows, title="reprocessing of mc23", downtimes=[DOWN])
    return picture.save(target)


if __name__ == "__main__":
    sys.stdout.write(f"wrote {draw(PICTURE)}\n")
