"""Watches a payload: each second what it uses, and whether that is too much."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.control import Control
from pandaflow_pilot.process import Ended, Process
from pandaflow_pilot.procfs import Disk, Usage, disk, usage
from pandaflow_pilot.settings import Patience

#: Seconds between two measures, and between two looks at most.
EVERY, LOOK = 1.0, 0.1
#: Share of a core that counts as doing something.
_BUSY = 0.01


@dataclass(frozen=True)
class Limits:
    """What a payload may use.

    Attributes
    ----------
    memory, disk : int or None
        Bytes, of all its processes and of its folder.
    walltime : float or None
        Seconds.
    until : float or None
        Monotonic time at which its bundle must have ended.
    looping : float
        Seconds without output and CPU time; 0: no limit.
    """

    memory: int | None = None
    disk: int | None = None
    walltime: float | None = None
    until: float | None = None
    looping: float = 0.0


@dataclass
class Metrics:
    """What was used so far: seconds, bytes."""

    cpu: float = 0.0
    wall: float = 0.0
    max_pss: int = 0
    disk: int = 0
    read: int = 0
    written: int = 0

    def saw(self, now: Usage) -> None:
        """Take a measure in; dead processes are no more seen, so nothing goes down."""
        self.cpu = max(self.cpu, now.cpu)
        self.max_pss = max(self.max_pss, now.pss)
        self.read = max(self.read, now.read)
        self.written = max(self.written, now.written)

    def told(self) -> dict[str, float]:
        """Return it as reports carry it."""
        return {name: round(float(value), 3) for name, value in vars(self).items()}


def together(parts: list[Metrics]) -> Metrics:
    """Return what jobs that ran one after the other have used."""
    return Metrics(
        cpu=sum(part.cpu for part in parts),
        wall=sum(part.wall for part in parts),
        max_pss=max((part.max_pss for part in parts), default=0),
        disk=max((part.disk for part in parts), default=0),
        read=sum(part.read for part in parts),
        written=sum(part.written for part in parts),
    )


@dataclass
class _Life:
    """When a payload last did something: seconds, and what it had done by then."""

    at: float
    cpu: float = 0.0
    disk: Disk | None = None

    def idle(self, now: float, cpu: float, disk: Disk) -> float:
        """Return for how long it has done nothing."""
        if disk != self.disk or cpu - self.cpu > _BUSY * (now - self.at) + _BUSY:
            self.at, self.cpu, self.disk = now, cpu, disk
        return now - self.at


@dataclass
class Monitor:
    """Watches one payload until it has ended.

    Parameters
    ----------
    process : Process
    folder : str
        Whose size counts; what it prints goes there, too.
    limits : Limits
    patience : Patience
    metrics : Metrics
        Kept up to date.
    """

    process: Process
    folder: str
    limits: Limits
    patience: Patience
    metrics: Metrics
    _began: float = field(default_factory=time.monotonic)
    _next: float = 0.0
    _next_disk: float = 0.0
    _disk: Disk = field(default_factory=lambda: Disk(0, 0, 0))
    _life: _Life = field(default_factory=lambda: _Life(time.monotonic()))

    def watch(self, control: Control) -> tuple[Ended, PilotError | None]:
        """Stay until it has ended, or end it.

        Returns
        -------
        ended : Ended
        stopped : PilotError or None
            Why it was ended, if it was, and not by a wish.
        """
        stopped: PilotError | None = None
        try:
            while stopped is None and not self.process.dead():
                if control.soft or control.hard:
                    break
                control.wait(self._pause())
                stopped = self._over()
            if not self.process.dead():
                hard = control.hard
                grace = self.patience.kill_grace if hard else self.patience.grace
                self.process.end(grace, lambda: control.hard and not hard)
            self._measure()
        finally:
            ended = self.process.reap()
            self.metrics.cpu = max(self.metrics.cpu, ended.cpu)
            self.metrics.wall = time.monotonic() - self._began
            self._measure_disk()
        return ended, stopped

    def _pause(self) -> float:
        """Short payloads are looked at more often."""
        lived = time.monotonic() - self._began
        return min(LOOK, max(0.003, lived / 10))

    def _over(self) -> PilotError | None:
        """Return the limit that it has passed."""
        now, limits = time.monotonic(), self.limits
        if limits.walltime is not None and now - self._began > limits.walltime:
            return PilotError("walltime", f"ran longer than its {limits.walltime:g} s")
        if limits.until is not None and now > limits.until:
            return PilotError("bundle_walltime", "its bundle ran longer than it may")
        if now < self._next:
            return None
        # Short payloads would end before a second measure.
        self._next = now + min(EVERY, max(LOOK, now - self._began))
        return self._measured(now)

    def _measured(self, now: float) -> PilotError | None:
        used = self._measure()
        if now >= self._next_disk:
            self._measure_disk()
            # A folder with a million files must not keep a core busy.
            self._next_disk = now + max(EVERY, 20 * (time.monotonic() - now))
        metrics, limits = self.metrics, self.limits
        metrics.wall = now - self._began
        if limits.memory is not None and used.pss > limits.memory:
            return _too_much("memory", "its processes use", used.pss, limits.memory)
        if limits.disk is not None and self._disk.used > limits.disk:
            return _too_much("disk", "its files take", self._disk.used, limits.disk)
        idle = self._life.idle(now, metrics.cpu, self._disk)
        if 0 < limits.looping < idle:
            return PilotError("looping", f"neither output nor CPU time for {idle:.0f} s")
        return None

    def _measure(self) -> Usage:
        used = usage(self.process.pid)
        self.metrics.saw(used)
        return used

    def _measure_disk(self) -> None:
        self._disk = disk(self.folder)
        self.metrics.disk = max(self.metrics.disk, self._disk.used)


def _too_much(name: str, what: str, used: int, limit: int) -> PilotError:
    text = f"{what} {used / 2**20:,.0f} MiB, more than the {limit / 2**20:,.0f} MiB asked for"
    return PilotError(name, text)
