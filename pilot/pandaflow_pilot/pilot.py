"""The pilot: asks for work while there is room, runs it, and ends when told or when time is up."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pandaflow_pilot import containers, pythons
from pandaflow_pilot.api import LEASE_HEADER, Api, ApiError, Pauses
from pandaflow_pilot.bundles import BundleRun, Site
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.leases import Answer, Lease, parse_answer
from pandaflow_pilot.log import LOGGER
from pandaflow_pilot.payloads import Payloads
from pandaflow_pilot.pythons import Environments
from pandaflow_pilot.reports import Held, Reporter
from pandaflow_pilot.rucio import Rucio
from pandaflow_pilot.settings import Settings
from pandaflow_pilot.slots import Slot, Slots
from pandaflow_pilot.workdir import WorkDir, end_guard, start_guard

#: Seconds that the server may hold a question: of an idle pilot, and of one that will soon have
#: more room and ask for more.
_WAIT_IDLE, _WAIT_BUSY = 20.0, 1.0
#: Seconds between two looks at the clock.
_TICK = 0.2
#: Exit codes.
EXIT_DONE, EXIT_REFUSED = 0, 1


@dataclass
class Tally:
    """What a pilot has done: bundles by how they ended, jobs, CPU seconds."""

    ended: int = 0
    lost: int = 0
    dropped: int = 0
    jobs: int = 0
    cpu: float = 0.0

    def line(self) -> str:
        """Return it in one line."""
        bundles = self.ended + self.lost + self.dropped
        return (
            f"{bundles} bundles ({self.jobs} jobs): {self.ended} ended, {self.lost} lost, "
            f"{self.dropped} given up; {self.cpu:.1f} s of CPU"
        )


class Pilot:
    """A pilot.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    ValueError, OSError
        The settings are no good on this node.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self.tally = settings, Tally()
        self._began = time.monotonic()
        # Asking has connections of its own: they are cut when no more work is wanted.
        self._api, self._asking = Api(settings.server), Api(settings.server)
        self._python = pythons.find(settings.python)
        self._runtimes = containers.working(settings.runtime)
        self._slots = Slots(settings.node)
        self._runs: dict[str, tuple[BundleRun, threading.Thread]] = {}
        self._lock = threading.Lock()
        self._room, self._draining = threading.Event(), threading.Event()
        self._stopping = threading.Event()
        self._status, self._signals = EXIT_DONE, 0
        self._worked = self._began

    def run(self) -> int:
        """Work until the end; return the exit code. Call it from the main thread."""
        work = WorkDir(self._settings.workdir, secrets.token_hex(6))
        guard = start_guard(work)
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            self._work(work)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            work.close()
            end_guard(guard)
        return self._status

    def _work(self, work: WorkDir) -> None:
        settings = self._settings
        self._site = self._site_in(work)
        self._reporter = Reporter(
            self._api, settings.name, settings.patience.beat, self._on_command
        )
        asking = threading.Thread(target=self._ask, name="acquire", daemon=True)
        asking.start()
        try:
            while not self._over(asking):
                self._reporter.expire()
                self._look_at_the_clock()
                self._look_at_signals()
                self._stopping.wait(_TICK)
        finally:
            self._end(asking)

    def _site_in(self, work: WorkDir) -> Site:
        hidden = [work.path, self._settings.server.token_file, self._settings.server.key]
        return Site(
            work=work,
            environments=Environments(
                self._python, os.path.join(work.path, "environments"), work.tag
            ),
            payloads=Payloads(self._api.get, os.path.join(work.path, "code")),
            runtimes=self._runtimes,
            patience=self._settings.patience,
            hidden=tuple(os.path.abspath(path) for path in hidden if path),
            catalogue=Rucio(self._settings.rses),
        )

    # --- the end ---

    def _over(self, asking: threading.Thread) -> bool:
        if self._stopping.is_set():
            return True
        if not asking.is_alive() and not self._draining.is_set():
            self._status = EXIT_REFUSED
            self._drain("it cannot ask for work any more")
        if not self._draining.is_set() or (asking.is_alive() and not self._asking.closed):
            return False  # an answer may be on its way, with work that nobody else would get
        return not self._runs and not self._reporter.pending()

    def _look_at_signals(self) -> None:
        if self._signals:
            self._drain("asked to end by a signal")
            self._asking.close()
        if self._signals > 1:
            self._stopping.set()

    def _look_at_the_clock(self) -> None:
        patience, now = self._settings.patience, time.monotonic()
        if self._runs:
            self._worked = now
        elif patience.idle is not None and now - self._worked > patience.idle:
            self._drain("nothing came for a while", cut=False)
        left = self._left()
        if left is not None and left <= 0:
            self._drain("its time is up")
            self._lose(PilotError("time_up", "the pilot's time is up"))

    def _left(self) -> float | None:
        """Return the seconds for which bundles may still run."""
        patience = self._settings.patience
        if patience.walltime is None:
            return None
        return self._began + patience.walltime - patience.margin - time.monotonic()

    def _lose(self, why: PilotError) -> None:
        with self._lock:
            runs = [run for run, _ in self._runs.values()]
        for run in runs:
            run.control.lose(why)

    def _end(self, asking: threading.Thread) -> None:
        """End what runs, say what became of it, and be silent."""
        self._drain("the pilot ends")
        deadline = time.monotonic() + self._settings.patience.last
        asking.join(2.0)
        self._lose(PilotError("preempted", "the pilot was told to end"))
        with self._lock:
            threads = [thread for _, thread in self._runs.values()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._reporter.flush(max(1.0, deadline - time.monotonic()))
        self._api.close()
        self._reporter.close()

    def _drain(self, why: str, *, cut: bool = True) -> None:
        """Take no more work; ``cut``: do not even wait for the answer to a question."""
        if not self._draining.is_set():
            LOGGER.info("no more bundles: %s", why)
            self._draining.set()
            self._room.set()
            if cut:
                self._asking.close()

    def _on_command(self, command: str) -> None:
        if command == "drain":
            self._drain("the server says so")
        elif command == "stop":
            LOGGER.info("stopped by the server")
            self._drain("the server says so")
            self._stopping.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # No lock may be taken here: this very thread may hold it.
        self._signals += 1

    # --- asking for work ---

    def _ask(self) -> None:
        pauses, refused_since = Pauses(0.3, 20.0), 0.0
        while not self._draining.is_set():
            body = self._question()
            if body is None:
                self._room.wait(1.0)
                self._room.clear()
                continue
            self._room.clear()
            try:
                pause = self._asked(body)
                refused_since = 0.0
                pauses.reset()
            except ApiError as error:
                refused_since = self._turned_away(error, refused_since)
                self._draining.wait(pauses.next(error.retry_after))
                continue
            self._room.wait(pause)  # a bundle that ends leaves room for others

    def _question(self) -> dict[str, Any] | None:
        """Return what to ask for; None: there is no room."""
        settings, free, left = self._settings, self._slots.free(), self._left()
        if free.cores < 1 or (left is not None and left <= 0):
            return None
        return {
            "pilot": settings.name,
            "queue": settings.queue,
            "host": socket.gethostname(),
            "cores": free.cores,
            "gpus": free.gpus,
            "memory": free.memory,
            "disk": self._site.work.free(),
            "walltime": left,
            "python": self._python.python if self._python else "",
            "pandaflow": self._python.pandaflow if self._python else "",
            "containers": list(self._runtimes),
            "tags": list(settings.node.tags),
            "count": 1 if settings.once else min(free.cores, 1_000),
            "wait": self._wait(left),
        }

    def _wait(self, left: float | None) -> float:
        """Return for how long the server may hold a question: never beyond the pilot's end."""
        idle = self._settings.patience.idle
        waits = [_WAIT_BUSY if self._runs else _WAIT_IDLE]
        if left is not None:
            waits.append(left)
        if idle is not None and not self._runs:
            waits.append(max(0.0, self._worked + idle - time.monotonic()))
        return min(waits)

    def _asked(self, body: dict[str, Any]) -> float:
        """Ask once, and begin what comes; return the seconds to wait before asking again."""
        began = time.monotonic()
        try:
            answer = parse_answer(self._asking.post("/pilot/acquire", body, wait=body["wait"]))
        except PilotError as error:
            raise ApiError(str(error)) from None
        for command in answer.commands:
            self._on_command(command)
        self._take(answer)
        if answer.leases:
            if self._settings.once:
                self._drain("one answer was asked for")
            return 0.0
        # A server that holds no calls is not asked all the time.
        return max(answer.retry, 1.0 - (time.monotonic() - began))

    def _turned_away(self, error: ApiError, since: float) -> float:
        now = time.monotonic()
        if self._draining.is_set():
            return since  # we have cut it ourselves
        LOGGER.warning("no work can be asked for (%s)", error)
        if not error.refused:
            return 0.0
        if since and now - since > self._settings.patience.refused:
            LOGGER.error("the server does not want this pilot: %s", error)
            self._status = EXIT_REFUSED
            self._drain("the server does not want this pilot")
        return since or now

    # --- bundles ---

    def _take(self, answer: Answer) -> None:
        for number, word, error in answer.refused:
            LOGGER.error("bundle %d: %s", number, error)
            self._reject(Held(number, word, 180.0), error)
        for lease in answer.leases:
            slot = self._slots.take(lease.needs)
            if slot is None:
                text = "the server gave more than there is room for"
                self._reject(
                    Held(lease.id, lease.word, lease.heartbeat), PilotError("protocol", text)
                )
            else:
                self._begin(lease, slot)

    def _reject(self, held: Held, error: PilotError) -> None:
        held.finish({"state": "lost", "error": error.trouble()})
        self.tally.lost += 1
        self._reporter.add(held)

    def _begin(self, lease: Lease, slot: Slot) -> None:
        LOGGER.info("bundle %d of %s (%s): begins", lease.bundle, lease.task, lease.run)
        run = BundleRun(lease, slot, self._site)
        held = Held(lease.id, lease.word, lease.heartbeat, run)
        thread = threading.Thread(target=self._serve, args=(run, held), name=f"bundle {lease.id}")
        thread.daemon = True
        with self._lock:
            self._runs[lease.word] = run, thread
        self._reporter.add(held)
        thread.start()

    def _serve(self, run: BundleRun, held: Held) -> None:
        """Run a bundle, on its own thread."""
        report = _guarded(run.run)
        if report is not None and run.log:
            self._upload(run)
        self._reporter.finish(held, report)
        with self._lock:
            del self._runs[held.lease]
            self._count(run, report)
        self._slots.give_back(run.slot)
        self._room.set()

    def _upload(self, run: BundleRun) -> None:
        """Leave the log of what failed with the server, if it takes it; one try will do."""
        text = run.log.encode("utf-8", "replace")
        try:
            self._api.put(f"/pilot/logs/{run.lease.id}", text, {LEASE_HEADER: run.lease.word})
        except ApiError as error:
            LOGGER.warning("bundle %d: its log cannot be left: %s", run.lease.id, error)

    def _count(self, run: BundleRun, report: dict[str, Any] | None) -> None:
        tally = self.tally
        tally.cpu += run.metrics()["cpu"]
        if report is None:
            tally.dropped += 1
        elif report["state"] == "ended":
            tally.ended += 1
            tally.jobs += len(report.get("results") or run.lease.jobs)
        else:
            tally.lost += 1


def _guarded(body: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    try:
        return body()
    except Exception as error:  # noqa: BLE001 - a mistake of ours must not keep the lease for ever
        LOGGER.exception("a mistake of the pilot's own")
        trouble = PilotError("internal", f"{type(error).__name__}: {error}").trouble()
        return {"state": "lost", "error": trouble}
