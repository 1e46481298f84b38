"""One batch job per bundle: a session that hands bundles to a batch system as job arrays.

Rule 1: one thread does everything; ``submit``, ``cancel`` and ``close`` leave it orders.
Rule 2: elements talk through files (``element.py``): what a file says goes before what the queue
says. The queue is asked about those who fall silent, once for all of them.
Rule 3: nothing begins twice. A bundle's claim keeps a second element out; elements of a session
that is gone find another's token in ``batch/owner`` and begin nothing.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import shutil
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.errors import DataError, SiteError, WorkflowError
from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted, SlotsChanged
from pandaflow.core.model import Resources
from pandaflow.core.sizing import Pace
from pandaflow.data.results import ResultStore
from pandaflow.executors.batch import arrays, element
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.inflight import Array, Bundle, Element, rank, shortest
from pandaflow.executors.batch.leftovers import GONE_S, mark, retire, take_over
from pandaflow.executors.batch.model import BatchStatus
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.channel import unpack_said
from pandaflow.executors.outcome import unpack_ended
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Seconds that bundles are collected for before an array is submitted.
_GATHER_S = 0.1
#: Seconds between looks at the files of elements: at least, and more for each that runs, so that
#: a file server gets some 300 requests per second at most.
_FILES_S, _FILE_S = 0.1, 0.003
#: Looks at the queue before an element that it does not know is given up.
_MISSING = 5
#: Seconds between attempts of a submission that failed: at first, and at most.
_BACK_OFF_S = (1.0, 60.0)
#: Bytes of a payload that every element gets its own copy of; larger ones share a file.
_INLINE = 16_384
#: Refusals that end by themselves as jobs of ours end.
_FULL = re.compile(r"submit\w*limit|job/proc/node limit|limit.*(?:exceeded|reached)", re.I)

Order: TypeAlias = tuple[Literal["submit", "cancel", "close"], Sequence[Any]]


class BatchJobs:
    """One run's bundles in batch jobs.

    Parameters
    ----------
    settings : BatchSettings
    run_id : str
    results : str
        The run's folder, which the nodes must see under the same path.
    report : callable
        Gets the events.

    Raises
    ------
    SiteError
        ``results`` is no folder, or batch jobs of an earlier session do not go away.
    """

    def __init__(self, settings: BatchSettings, run_id: str, results: str, report: Report) -> None:
        self._settings, self._run, self._report = settings, run_id, report
        self._results = ResultStore(results)
        if self._results.local is None:
            raise SiteError(
                f"batch jobs and their driver meet in a folder that both see, and {results} is "
                "none; give a store on the shared file system"
            )
        self._folder = Path(self._results.local) / "batch"
        self._control = Control(settings.backend, settings.commands_env)
        self._token = uuid.uuid4().hex[:12]
        self._slots = settings.max_nodes * settings.cores
        self._workdir = os.getcwd()
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._given: dict[int, Bundle] = {}
        self._arrays: dict[str, Array] = {}
        self._kills: set[Element] = set()
        self._paces: dict[int, Pace] = defaultdict(Pace)
        self._numbers = 0
        self._send_at = self._look_at = self._read_at = 0.0
        self._delay, self._trouble = _BACK_OFF_S[0], ""
        self._closing = False
        take_over(self._control, self._folder, self._token, settings.poll_seconds)
        report(SlotsChanged(time.time(), "", self._slots))
        self._thread = threading.Thread(target=self._live, name="pandaflow-batch", daemon=True)
        self._thread.start()

    # --- the port -----------------------------------------------------------------------

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Take bundles in."""
        if not self._thread.is_alive():
            raise SiteError("this session with the batch system has ended")
        self._orders.put(("submit", list(assignments)))

    def cancel(self, bundles: Sequence[int]) -> None:
        """Drop bundles that wait, cancel the batch jobs of those that run."""
        self._orders.put(("cancel", list(bundles)))

    def release(self, bundles: Sequence[int]) -> None:
        """Do nothing: no values are kept in memory."""

    def close(self, *, kill: bool = False) -> None:
        """Cancel all batch jobs that are left and wait until they are gone."""
        if self._thread.is_alive():
            self._orders.put(("close", ()))
            self._thread.join()

    # --- the thread ---------------------------------------------------------------------

    def _live(self) -> None:
        try:
            while not self._closing:
                self._obey(self._wait())
                self._turn()
            self._leave()
        except BaseException as error:  # a mistake of ours: the run must hear of it, not hang
            self._closing = True
            reason = f"the session with the batch system broke: {type(error).__name__}: {error}"
            logger.exception("%s: %s", self._run, reason)
            self._report(SlotsChanged(time.time(), "", 0, reason))
            for bundle in list(self._given.values()):
                self._tell(arrays.refused(bundle.spec, reason, time.time()))

    def _wait(self) -> float:
        """Return the seconds until something is due."""
        now = time.monotonic()
        due = [now + 60.0]
        if self._arrays:
            due += [self._read_at, self._look_at]
        if any(bundle.ready for bundle in self._given.values()) and self._free():
            due.append(self._send_at)
        return max(0.0, min(due) - now)

    def _obey(self, seconds: float) -> None:
        """Carry out the orders that there are; wait for the first."""
        with suppress(queue.Empty):
            kind, what = self._orders.get(timeout=seconds) if seconds else self._orders.get(False)
            while True:
                match kind:
                    case "submit":
                        self._take_in(what)
                    case "cancel":
                        self._drop(what)
                    case "close":
                        self._closing = True
                kind, what = self._orders.get(block=False)

    def _turn(self) -> None:
        now = time.monotonic()
        if self._arrays and now >= self._read_at:
            self._read_at = now + _FILES_S + _FILE_S * self._read_all()
        self._carry_out_kills()
        if self._arrays and now >= self._look_at and not self._closing:
            self._look_at = now + self._settings.poll_seconds
            self._look()
        if time.monotonic() >= self._send_at and not self._closing:
            self._send()

    def _leave(self) -> None:
        """Cancel what is left, and wait until it is gone."""
        self._given.clear()
        (self._folder / element.OWNER).unlink(missing_ok=True)
        for array in self._arrays.values():
            mark(array.folder / element.VOID)
        for each in self._elements():
            each.open.clear()
            self._kills.add(each)
        deadline = time.monotonic() + GONE_S
        while self._arrays:
            self._carry_out_kills()
            self._look()
            if self._arrays and time.monotonic() > deadline:
                left = ", ".join(self._arrays)
                logger.warning("%s: batch jobs do not end: %s", self._run, left)
                return
            if self._arrays:
                time.sleep(min(0.3, self._settings.poll_seconds))

    # --- bundles ------------------------------------------------------------------------

    def _take_in(self, assignments: Sequence[Assignment]) -> None:
        if not any(bundle.ready for bundle in self._given.values()):
            self._send_at = max(self._send_at, time.monotonic() + _GATHER_S)
        for given in assignments:
            self._given[given.emit.bundle] = Bundle(given, set())
        for given in assignments:
            self._admit(self._given[given.emit.bundle])

    def _admit(self, bundle: Bundle) -> None:
        """Note what a bundle waits for; send back what can never run."""
        spec, now = bundle.spec, time.time()
        needs = {need for need, location in bundle.given.deps if not location}
        bundle.needs = {need for need in needs if need in self._given}
        misfit = arrays.misfit(self._settings, spec.resources)
        if misfit:
            self._tell(arrays.refused(spec, f"{spec.name} {misfit}", now))
        elif any(self._results.find(need) is None for need in needs - bundle.needs):
            self._tell(BundleLost(now, spec.bundle, "values it reads are gone", None, False))

    def _drop(self, bundles: Iterable[int]) -> None:
        """Forget bundles that were cancelled; those that wait for them are handed back."""
        for number in bundles:
            bundle = self._given.pop(number, None)
            if bundle is None:
                continue
            self._settle_dependents(number, f"bundle {number}, which it reads, was cancelled")
            if bundle.element is not None:
                self._withdraw(bundle.element, number)

    def _withdraw(self, of: Element, number: int) -> None:
        """Keep a bundle from running, and end the element if it runs it or may begin it now."""
        of.open.remove(number)
        if of.current is not None and of.current != number and of.open:
            mark(of.array.folder / f"{number}.drop")
        else:
            self._end(of)

    def _end(self, of: Element) -> None:
        """Cancel an element; what it has not done is for another."""
        mark(of.array.folder / f"{of.index}.{element.VOID}")
        for number in of.open:
            self._given[number].element = None
        of.open.clear()
        self._kills.add(of)

    def _tell(self, event: BundleEnded | BundleLost) -> None:
        """Report how a bundle ended, unless nobody wants to know any more."""
        bundle = self._given.pop(event.bundle, None)
        if bundle is None:
            return
        if bundle.element is not None:
            bundle.element.open.remove(event.bundle)
        if isinstance(event, BundleEnded) and len(event.wall):
            odd = {*event.failures, *event.blocked, *event.unstarted, *event.cached}
            walls = [wall for place, wall in enumerate(event.wall) if place not in odd]
            self._paces[bundle.spec.task].add(walls)
        self._report(event)
        there = isinstance(event, BundleEnded) and event.location
        gone = "" if there else f"bundle {event.bundle}, which it reads, left no values"
        self._settle_dependents(event.bundle, gone)

    def _settle_dependents(self, number: int, gone: str) -> None:
        """Let go what waits for a bundle; with a reason if its values will not come."""
        for bundle in [bundle for bundle in self._given.values() if number in bundle.needs]:
            bundle.needs.discard(number)
            if gone:
                self._tell(BundleLost(time.time(), bundle.spec.bundle, gone, None, False))

    # --- submission ---------------------------------------------------------------------

    def _free(self) -> int:
        """Return the cores that further elements may use."""
        return self._slots - sum(each.cores for each in self._elements() if each.open)

    def _send(self) -> None:
        """Submit an array of what is ready, for the first of the resources asked for."""
        waiting: dict[Resources, list[Bundle]] = defaultdict(list)
        for bundle in self._given.values():
            if bundle.ready:
                waiting[bundle.spec.resources].append(bundle)
        free = self._free()
        groups = [g for r, g in waiting.items() if free >= r.cores]
        if groups:
            group = max(groups, key=lambda group: max(map(rank, group)))
            self._submit(self._packed(sorted(group, key=rank, reverse=True), free))

    def _packed(self, group: Sequence[Bundle], free: int) -> list[list[Bundle]]:
        cores = group[0].spec.resources.cores
        paces = [self._paces[bundle.spec.task].mean for bundle in group]
        each = [pace * len(b.spec.jobs) for pace, b in zip(paces, group, strict=True)]
        rest = iter(group)
        sizes = arrays.pack(each, self._slots // cores, free // cores)
        return [[next(rest) for _ in range(size)] for size in sizes]

    def _submit(self, groups: Sequence[Sequence[Bundle]]) -> None:
        self._numbers += 1
        folder = self._folder / f"{self._numbers:05d}-{self._token}"
        self._send_at = time.monotonic() + 60.0 / self._settings.submit_rate
        try:
            number = self._hand_over(folder, groups)
        except (SiteError, WorkflowError, OSError) as error:
            mark(folder / element.VOID)  # it may be in the queue nevertheless
            self._not_taken(error, [bundle for group in groups for bundle in group])
            return
        self._show("")
        self._delay = _BACK_OFF_S[0]
        array = self._arrays[number] = Array(number, folder, len(groups) > 1)
        for index, group in enumerate(groups):
            cores = group[0].spec.resources.cores
            new = Element(array, index, cores, [bundle.spec.bundle for bundle in group])
            array.elements.append(new)
            for bundle in group:
                bundle.element = new
        self._look_at = time.monotonic() + self._settings.poll_seconds

    def _hand_over(self, folder: Path, groups: Sequence[Sequence[Bundle]]) -> str:
        """Write the files of an array and submit it; return its id."""
        folder.mkdir(parents=True)
        scratch = self._settings.scratch or ""
        for index, group in enumerate(groups):
            works = tuple(self._work(bundle.given) for bundle in group)
            todo = element.Todo(self._token, works, tuple(sys.path), scratch)
            element.write_todo(folder, index, todo)
        specs = [[bundle.spec for bundle in group] for group in groups]
        request = arrays.array_request(self._settings, specs, folder=folder, workdir=self._workdir)
        line = arrays.body(self._settings, folder)
        number = self._control.submit(folder / "script", request, line, self._settings.prologue)
        element.write_whole(folder / "id", number.encode())
        return number

    def _work(self, given: Assignment) -> element.Work:
        places = tuple(location or self._results.place(need) for need, location in given.deps)
        code: bytes | str = given.code
        if len(given.code) > _INLINE:
            path = self._folder / f"{blake2b(given.code, digest_size=12).hexdigest()}.code"
            if not path.exists():
                element.write_whole(path, given.code)
            code = str(path)
        return element.Work(given.spec, code, places)

    def _not_taken(self, error: Exception, bundles: Sequence[Bundle]) -> None:
        """Try again later what was not taken, or let it fail if that is in vain."""
        full = bool(self._arrays) and _FULL.search(str(error)) is not None
        later = isinstance(error, OSError) or full or getattr(error, "transient", False)
        if later:
            self._show(f"nothing can be submitted now: {error}")
            self._send_at = time.monotonic() + self._delay
            self._delay = min(2 * self._delay, _BACK_OFF_S[1])
            return
        for bundle in bundles:
            self._tell(arrays.refused(bundle.spec, str(error), time.time()))

    def _show(self, trouble: str) -> None:
        """Let people see what holds the run up; empty: nothing does."""
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                logger.warning("%s: %s", self._run, trouble)
            self._report(SlotsChanged(time.time(), "", self._slots, trouble))

    # --- what elements say --------------------------------------------------------------

    def _elements(self) -> Iterator[Element]:
        for array in self._arrays.values():
            yield from (each for each in array.elements if not each.gone)

    def _read_all(self) -> int:
        """Hear all elements; return how many there are."""
        count = 0
        for array in self._arrays.values():
            talking = [each for each in array.elements if each.open]
            there = set(os.listdir(array.folder)) if talking else set()
            for each in talking:
                if f"{each.index}.report" in there:
                    self._read(each)
                    count += 1
        return count

    def _read(self, of: Element) -> None:
        path = of.array.folder / f"{of.index}.report"
        messages, of.offset = element.read_reports(path, of.offset)
        for message in messages:
            self._hear(of, message)

    def _hear(self, of: Element, message: dict[str, Any]) -> None:
        number = message.get("bundle")
        bundle = self._given.get(number) if isinstance(number, int) else None
        mine = bundle is not None and bundle.element is of
        match message["op"]:
            case "here":
                of.here = True
            case "said":
                for said in unpack_said(message):
                    self._report(said)
            case "started":
                of.current = number
                if mine:
                    self._report(BundleStarted(message["at"], message["bundle"], message["worker"]))
                elif not of.gone:  # it was cancelled at the very moment when it began
                    self._end(of)
            case "ended" | "lost" | "dropped" as op:
                of.current = None
                if mine:
                    self._tell(_told(op, message))

    # --- what the batch system says -----------------------------------------------------

    def _look(self) -> None:
        try:
            found = self._control.look(list(self._arrays))
        except SiteError as error:
            self._show(f"the queue cannot be looked at: {error}")
            return
        if self._trouble.startswith("the queue"):
            self._show("")
        for each in list(self._elements()):
            self._judge(each, found.get(each.ref))
        for array in [a for a in self._arrays.values() if all(e.gone for e in a.elements)]:
            self._put_away(array)

    def _judge(self, of: Element, status: BatchStatus | None) -> None:
        if status is not None and status.live:
            of.missing, of.over = 0, False
            return
        if status is None or status.state == "unknown":
            of.missing += 1
            if of.missing < _MISSING:
                return
            status = BatchStatus(id=of.array.id, index=of.ref[1], state="unknown")
        elif of.open and not of.over:
            of.over = True  # what it reported last may still be on its way
            return
        self._read(of)
        of.gone = True
        for number in list(of.open):
            of.array.clean = False
            self._conclude(of, self._given[number].spec, status)
        if status.remains:
            self._kills.add(of)

    def _conclude(self, of: Element, spec: BundleSpec, status: BatchStatus) -> None:
        """Report a bundle whose element has ended without a word about it."""
        location = self._results.find(spec.bundle)
        if location is not None:
            with suppress(DataError):
                self._tell(unpack_ended(self._results.header(location)["report"]))
                return
        position = self._results.claimed_position(spec.bundle)
        told = arrays.last_words(self._output(of))
        now = time.time()
        self._tell(arrays.ending(status, spec, position, begun=of.here, told=told, at=now))

    def _output(self, of: Element) -> bytes:
        number = of.index + self._settings.backend.inside.first if of.array.many else 0
        try:
            return (of.array.folder / f"{number}.log").read_bytes()[-10_000:]
        except OSError:
            return b""

    def _put_away(self, array: Array) -> None:
        """Remove the files of an array, unless somebody may want to read them."""
        del self._arrays[array.id]
        self._kills.difference_update(array.elements)
        if array.clean:
            shutil.rmtree(array.folder, ignore_errors=True)
        else:
            retire(array.folder)

    def _carry_out_kills(self) -> None:
        if not self._kills:
            return
        try:
            self._control.cancel(shortest(self._kills))
        except SiteError as error:
            self._show(f"the queue cannot be changed: {error}")
        else:
            self._kills.clear()


def _told(op: str, message: dict[str, Any]) -> BundleEnded | BundleLost:
    if op == "ended":
        return unpack_ended(message)
    default = "its batch job was started twice" if op == "lost" else "its batch job was taken back"
    return BundleLost(
        time.time(), message["bundle"], message.get("reason", default), None, charged=False
    )
