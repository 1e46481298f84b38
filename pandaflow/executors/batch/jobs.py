"""One batch job per bundle: a session that hands bundles to a batch system as job arrays.

Rule 1: one thread does everything; ``submit``, ``cancel``, ``adopt`` and ``close`` leave it orders.
Rule 2: elements talk through files (``element.py``): what a file says goes before what the queue
says. The queue is asked about those who fall silent, once for all of them.
Rule 3: nothing begins twice. A bundle's claim keeps a second element out; elements of a session
that is gone find another's token in ``batch/owner``, and begin nothing unless it adopted them
(``leftovers.py``). A session that finds another's token there leaves the queue alone.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.errors import DataError, SiteError
from pandaflow.core.events import BundleLost, SlotsChanged
from pandaflow.data.results import ResultStore
from pandaflow.executors.batch import adoption, arrays, element, leftovers, orphans
from pandaflow.executors.batch.account import Account
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.hearing import listen
from pandaflow.executors.batch.inflight import Array, Element, shortest
from pandaflow.executors.batch.leftovers import GONE_S, Leftover, mark, retire, take_over
from pandaflow.executors.batch.model import BatchStatus
from pandaflow.executors.batch.places import Place
from pandaflow.executors.batch.sender import Sender
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.orders import Orders
from pandaflow.executors.outcome import unpack_ended
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Seconds between looks at the files of elements: at least, and more for each that runs, so that
#: a file server gets some 300 requests per second at most.
_FILES_S, _FILE_S = 0.1, 0.003
#: Looks at the queue before an element that it does not know is given up.
_MISSING = 5


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
        ``results`` is no folder, or batch jobs of an earlier session that cannot be adopted do
        not go away.
    """

    def __init__(self, settings: BatchSettings, run_id: str, results: str, report: Report) -> None:
        self._settings, self._run, self._report = settings, run_id, report
        store = ResultStore(results)
        if store.local is None:
            raise SiteError(
                f"batch jobs and their driver meet in a folder that both see, and {results} is "
                "none; give a store on the shared file system"
            )
        self._folder = leftovers.reserve(Path(store.local))
        self._reserved = [self._folder]
        self._control = Control(settings.backend, settings.commands_env)
        self._token = uuid.uuid4().hex[:12]
        places = {name: Place(place) for name, place in settings.places().items()}
        self._account = Account(run_id, store, places, report)
        self._look_at = self._read_at = 0.0
        try:
            self._left: list[Leftover] | None = take_over(
                self._control, self._folder, self._token, settings.poll_seconds
            )
            orphans.sign(self._folder, orphans.system_of(settings))
        except BaseException:
            leftovers.release(self._folder)
            raise
        self._sender = Sender(
            self._account, self._control, settings, self._folder, self._token, self._in_charge
        )
        report(self._account.state())
        self._orders = Orders(
            run_id,
            "the batch system",
            wait=self._wait,
            carry_out=self._carry_out,
            turn=self._turn,
            leave=self._leave,
            give_up=self._give_up,
        )
        self._orders.start()

    # --- the port -----------------------------------------------------------------------

    def adopt(self, bundles: Sequence[int]) -> set[int]:
        """Go on with those of these bundles that batch jobs of an earlier session carry.

        Other batch jobs of earlier sessions are ended. To be called before anything else;
        otherwise they all are.
        """
        adopted: set[int] = self._orders.ask("adopt", set(bundles))
        return adopted

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Take bundles in."""
        self._orders.submit(assignments)

    def cancel(self, bundles: Sequence[int]) -> None:
        """Drop bundles that wait, cancel the batch jobs of those that run."""
        self._orders.put("cancel", list(bundles))

    def release(self, bundles: Sequence[int]) -> None:
        """Do nothing: no values are kept in memory."""

    def close(self, *, kill: bool = False) -> None:
        """Cancel all batch jobs that are left and wait until they are gone."""
        self._orders.close()
        for folder in self._reserved:
            leftovers.release(folder)

    # --- the thread ---------------------------------------------------------------------

    def _give_up(self, reason: str, untaken: Sequence[Assignment]) -> None:
        self._report(SlotsChanged(time.time(), "", 0, reason))
        for bundle in list(self._account.bundles.values()):
            self._account.tell(arrays.refused(bundle.spec, reason, time.time()))
        for given in untaken:
            self._report(arrays.refused(given.spec, reason, time.time()))

    def _wait(self) -> float:
        """Return the seconds until something is due."""
        now = time.monotonic()
        due = [now + 60.0, self._sender.due()]
        if self._account.arrays:
            due += [self._read_at, self._look_at]
        return max(0.0, min(due) - now)

    def _carry_out(self, kind: str, what: Any) -> Any:
        match kind:
            case "adopt":
                return self._adopt(what)
            case "submit":
                self._adopt(set())
                self._sender.gather()
                self._account.take_in(what)
            case "cancel":
                self._account.drop(what)
        return None

    def _adopt(self, wanted: set[int]) -> set[int]:
        """Settle what earlier sessions left: once, and first of all."""
        left, self._left = self._left, None
        if left is None or not leftovers.owns(self._folder, self._token):
            return set()
        left += self._orphaned()
        leftovers.settle(left, self._token, wanted)
        return adoption.adopt(self._account, left, wanted)

    def _orphaned(self) -> list[Leftover]:
        """Take over the arrays of executors that the run no longer has."""
        rest = leftovers.reserve_rest(self._folder.parent)
        self._reserved += rest
        system, pause = orphans.system_of(self._settings), self._settings.poll_seconds
        return [
            each
            for folder in rest
            for each in orphans.take_in(self._control, folder, self._token, system, pause)
        ]

    def _turn(self) -> None:
        now = time.monotonic()
        if self._account.arrays and now >= self._read_at:
            known = len(self._account.bundles)
            self._read_at = now + _FILES_S + _FILE_S * self._read_all()
            if len(self._account.bundles) < known:
                self._sender.gather()
        look = bool(self._account.arrays) and now >= self._look_at
        if self._orders.closing or ((look or self._account.kills) and not self._in_charge()):
            return
        self._cancel_now()
        if look:
            self._look_at = now + self._settings.poll_seconds
            self._look()
        known = len(self._account.arrays)
        self._sender.send()
        if len(self._account.arrays) > known:
            self._look_at = time.monotonic() + self._settings.poll_seconds

    def _in_charge(self) -> bool:
        """Tell whether the run is still ours; if not, end without touching the queue."""
        if leftovers.owns(self._folder, self._token):
            return True
        self._account.arrays.clear()
        self._account.kills.clear()
        self._orders.give_up("another driver has taken over the batch jobs of this run")
        return False

    def _leave(self) -> None:
        """Cancel what is left, and wait until it is gone."""
        if not leftovers.owns(self._folder, self._token):
            return
        self._adopt(set())
        self._account.bundles.clear()
        (self._folder / element.OWNER).unlink(missing_ok=True)
        for array in self._account.arrays.values():
            mark(array.folder / element.VOID)
        for each in self._account.elements():
            each.open.clear()
            self._account.kills.add(each)
        self._wait_until_gone()

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + GONE_S
        while self._account.arrays:
            self._cancel_now()
            self._look()
            if self._account.arrays and time.monotonic() > deadline:
                left = ", ".join(self._account.arrays)
                logger.warning("%s: batch jobs do not end: %s", self._run, left)
                return
            if self._account.arrays:
                time.sleep(min(0.1, self._settings.poll_seconds))

    # --- what elements say --------------------------------------------------------------

    def _read_all(self) -> int:
        """Hear all elements; return how many there are."""
        count = 0
        for array in self._account.arrays.values():
            talking = [each for each in array.elements if each.open]
            there = set(os.listdir(array.folder)) if talking else set()
            for each in talking:
                if each.report.name in there:
                    listen(self._account, each)
                    count += 1
        return count

    # --- what the batch system says -----------------------------------------------------

    def _look(self) -> None:
        try:
            found = self._control.look(list(self._account.arrays))
        except SiteError as error:
            self._account.show(f"the queue cannot be looked at: {error}")
            return
        if self._account.trouble.startswith("the queue"):
            self._account.show("")
        for each in list(self._account.elements()):
            self._judge(each, found.get(each.ref))
        self._account.show_queue(found)
        for array in [a for a in self._account.arrays.values() if all(e.gone for e in a.elements)]:
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
        listen(self._account, of)
        of.gone = True
        for number in list(of.open):
            of.array.clean = False
            self._conclude(of, self._account.bundles[number].spec, status)
        if status.remains:
            self._account.kills.add(of)

    def _conclude(self, of: Element, spec: BundleSpec, status: BatchStatus) -> None:
        """Report a bundle whose element has ended without a word about it."""
        location = self._account.results.find(spec.bundle)
        if location is not None:
            with suppress(DataError):
                self._account.ended(unpack_ended(self._account.results.header(location)["report"]))
                return
        position = self._account.results.claimed_position(spec.bundle)
        words = arrays.last_words(self._output(of))
        now = time.time()
        event = arrays.ending(status, spec, position, begun=of.here, told=words, at=now)
        if isinstance(event, BundleLost) and not event.charged:
            self._account.lost(event)
        else:
            self._account.tell(event)

    def _output(self, of: Element) -> bytes:
        number = of.index + self._settings.backend.inside.first if of.array.many else 0
        try:
            return (of.array.folder / f"{number}.log").read_bytes()[-10_000:]
        except OSError:
            return b""

    def _put_away(self, array: Array) -> None:
        """Remove the files of an array, unless somebody may want to read them."""
        del self._account.arrays[array.id]
        self._account.kills.difference_update(array.elements)
        if array.clean:
            shutil.rmtree(array.folder, ignore_errors=True)
        else:
            retire(array.folder)

    def _cancel_now(self) -> None:
        if not self._account.kills:
            return
        try:
            self._control.cancel(shortest(self._account.kills))
        except SiteError as error:
            self._account.show(f"the queue cannot be changed: {error}")
        else:
            self._account.kills.clear()
