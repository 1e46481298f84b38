"""One run's use of the grid: a thread that sends bundles and hears outcomes; another asks for them.

Rule 1: one thread does everything; the port's methods and the one that asks leave it orders.
Rule 2: values are on the driver's disk, and the run has heard, before an outcome is acknowledged.
Rule 3: what a run has in the pool survives its driver. The next one asks for the same outcomes.
Rule 4: what is put into the pool was noted before, or the next driver would not know what it is.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pandaflow.core.errors import SiteError
from pandaflow.core.events import SlotsChanged
from pandaflow.data.results import ResultStore
from pandaflow.executors.grid import names
from pandaflow.executors.grid.commands import Commands
from pandaflow.executors.grid.hearing import Hearing
from pandaflow.executors.grid.sending import Sender, Sent
from pandaflow.executors.grid.settings import GridSettings
from pandaflow.executors.orders import Orders
from pandaflow.executors.remote.account import Account, refused
from pandaflow.executors.remote.journal import Journal, freeze, thaw
from pandaflow.grid.http import GridClient
from pandaflow.grid.messages import Outcomes
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Seconds to wait at the end for bundles that were told to stop.
GONE_S = 30.0
#: Seconds of work for each slot that a session wants in the pool: pilots ask when they like.
AHEAD_S = 10.0
#: Seconds that bundles are collected for before a request is made.
_GATHER_S = 0.02
#: Seconds until a request that failed is made again: at first, and at most.
_BACK_OFF_S = (0.5, 30.0)
#: Outcomes to ask for at once.
_OUTCOMES = 500
#: Bundles of a run that the pool may list at once.
_ROWS = 1_000_000
#: States of bundles in the pool.
_LIVE, _OVER = frozenset({"ready", "sent", "running"}), frozenset({"ended", "lost"})


class GridSession:
    """One run's bundles in the pool.

    Parameters
    ----------
    settings : GridSettings
    run_id : str
    results : str
        Folder or URL of the run.
    report : callable
        Gets the events.

    Raises
    ------
    SiteError
        The server cannot be reached, does not let us in, or the run is somebody else's there.
    """

    def __init__(self, settings: GridSettings, run_id: str, results: str, report: Report) -> None:
        self._settings, self._report = settings, report
        store = ResultStore(results)
        self._client = make_client(settings)
        #: What the run is called in the pool.
        self._run = names.take(settings, run_id)
        try:
            self._client.open_run(self._run, settings.owner)
        except SiteError:
            self._release_name()
            raise
        self._account: Account[Sent] = Account(store, report)
        self._journal = Journal(store, "grid" + self._run.removeprefix(run_id))
        self._sender = Sender(self._account, self._client, settings, self._run, self._note)
        self._hearing = Hearing(self._account, self._sender.data)
        self._send_at, self._delay = 0.0, _BACK_OFF_S[0]
        self._view = View()
        #: Whether pilots may still run something that was cancelled.
        self._stopping = False
        #: Whether what is in the pool stays there, for a later session.
        self._staying = False
        self._over = threading.Event()
        self._orders = Orders(
            run_id,
            "the grid",
            wait=self._wait,
            carry_out=self._carry_out,
            turn=self._turn,
            leave=self._leave,
            give_up=self._give_up,
        )
        self._asker: threading.Thread | None = None
        self._look(replace(self._view, slots=settings.slots))
        self._orders.start()

    # --- the port -----------------------------------------------------------------------

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Take bundles in."""
        self._orders.submit(assignments)

    def adopt(self, bundles: Sequence[int]) -> set[int]:
        """Go on with those of these bundles that an earlier session has put into the pool."""
        adopted: set[int] = self._orders.ask("adopt", set(bundles))
        return adopted

    def cancel(self, bundles: Sequence[int]) -> None:
        """Take bundles out of the pool, and have pilots end those that run."""
        self._orders.put("cancel", list(bundles))

    def release(self, bundles: Sequence[int]) -> None:
        """Do nothing: no values are kept in memory."""

    def close(self, *, kill: bool = False) -> None:
        """Cancel all that is left, and wait until pilots have let go of it, for a while."""
        self._orders.close()
        self._release_name()

    def leave(self) -> None:
        """End this session and leave its bundles in the pool, to be adopted by a later one."""
        self._staying = True
        self.close()

    def _release_name(self) -> None:
        names.give_back(self._settings, self._run)
        self._client.close()

    # --- the thread that asks -----------------------------------------------------------

    def _begin_to_ask(self) -> None:
        """Ask from now on; not before it is known which bundles of an earlier session matter."""
        if self._asker is None:
            name = "pandaflow: outcomes"
            self._asker = threading.Thread(target=self._ask, name=name, daemon=True)
            self._asker.start()

    def _ask(self) -> None:
        """Ask for outcomes again and again; each answer is carried out before the next question."""
        with make_client(self._settings) as client:  # the session may end during a question
            self._ask_with(client)

    def _ask_with(self, client: GridClient) -> None:
        # The first answer tells at once why bundles wait; what nothing happens to can wait longer.
        after, wait, delay = 0, 0.0, _BACK_OFF_S[0]
        while not self._over.is_set():
            try:
                heard = client.outcomes(self._run, after=after, wait=wait, limit=_OUTCOMES)
                delay = _BACK_OFF_S[0]
                self._orders.ask("heard", heard)
            except SiteError as error:
                if not self._orders.put("unheard", str(error)):
                    return
                self._over.wait(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, _BACK_OFF_S[1])
                continue
            wait = min(2 * wait + 1, self._settings.wait)
            if heard.outcomes:
                after, wait = heard.outcomes[-1].seq, min(1.0, self._settings.wait)

    # --- the thread of orders -----------------------------------------------------------

    def _wait(self) -> float:
        if any(flight.ready for flight in self._account.flights.values()):
            return max(0.0, self._send_at - time.monotonic())
        return 60.0

    def _carry_out(self, kind: str, what: Any) -> Any:
        match kind:
            case "submit":
                self._account.take_in([Sent(given.spec, given) for given in what])
                self._send_at = max(self._send_at, time.monotonic() + _GATHER_S)
                self._begin_to_ask()
            case "adopt":
                adopted = self._adopt(what)
                self._begin_to_ask()
                return adopted
            case "cancel":
                self._withdraw(self._account.drop(what))
            case "heard":
                self._heard(what)
            case "unheard":
                self._look(replace(self._view, silence=what))
        return None

    def _turn(self) -> None:
        now = time.monotonic()
        if now < self._send_at:
            return
        try:
            while any(flight.ready for flight in self._account.flights.values()):
                for flight in self._sender.send():
                    flight.sent = time.monotonic()
            self._delay = _BACK_OFF_S[0]
            self._look(replace(self._view, refused=""))
        except SiteError as error:
            if not error.transient:
                self._orders.give_up(str(error))
                return
            self._send_at = now + self._delay * random.uniform(0.5, 1.0)
            self._delay = min(2 * self._delay, _BACK_OFF_S[1])
            told = f"nothing can be put into the pool now: {error}"
            self._look(replace(self._view, refused=told))

    def _note(self, flights: Sequence[Sent]) -> None:
        try:
            self._journal.append([_line(flight) for flight in flights])
        except OSError as error:  # only the next driver would miss it
            logger.warning("%s: the journal cannot be written: %s", self._run, error)

    def _heard(self, heard: Outcomes) -> None:
        for outcome in heard.outcomes:
            self._hearing.hear(outcome)
        self._stopping = self._stopping and heard.running > 0
        slots = max(self._settings.slots, heard.slots)
        waiting = heard.waiting if heard.ready else ""
        self._look(replace(self._view, slots=slots, waiting=waiting, silence=""))

    def _look(self, view: View) -> None:
        """Let people see how things are, if that has changed."""
        if view != self._view:
            self._view = view
            why = view.silence or view.refused or view.waiting
            self._report(SlotsChanged(time.time(), "", view.slots, why, AHEAD_S))

    # --- the end ------------------------------------------------------------------------

    def _withdraw(self, flights: Sequence[Sent]) -> None:
        numbers = [flight.number for flight in flights]
        if numbers:
            self._stopping = True
            self._try(lambda: self._client.cancel(self._run, numbers))

    def _leave(self) -> None:
        """Cancel what is left, wait until pilots have let go of it, and clear up."""
        self._over.set()
        if self._staying:
            return
        if self._account.drop(list(self._account.flights)) or self._stopping:
            self._try(lambda: self._client.cancel(self._run, None))
            self._await_pilots()
        self._try(lambda: self._client.forget_run(self._run))
        self._sender.clear()

    def _await_pilots(self) -> None:
        deadline = time.monotonic() + GONE_S
        try:
            while self._client.outcomes(self._run, after=0, limit=1).running:
                if time.monotonic() > deadline:
                    told = "pilots hold bundles that were cancelled, and may go on"
                    logger.warning("%s: %s", self._run, told)
                    return
                time.sleep(0.1)
        except SiteError as error:
            logger.warning("%s: %s", self._run, error)

    def _try(self, call: Callable[[], object]) -> bool:
        """Ask the server for what can also wait; tell whether it was done."""
        try:
            call()
        except SiteError as error:
            logger.warning("%s: %s", self._run, error)
            return False
        return True

    def _give_up(self, reason: str, untaken: Sequence[Assignment]) -> None:
        self._over.set()
        self._report(SlotsChanged(time.time(), "", 0, reason))
        for flight in list(self._account.flights.values()):
            self._account.tell(refused(flight.spec, reason))
        for given in untaken:
            self._report(refused(given.spec, reason))

    # --- going on with an earlier session -----------------------------------------------

    def _adopt(self, wanted: set[int]) -> set[int]:
        rows = self._client.bundle_rows(self._run, limit=_ROWS)
        here = {int(row["bundle"]) for row in rows if _will_tell(row)}
        for line in self._journal.lines():
            number = line.get("bundle")
            if number in wanted & here:
                with suppress(ValueError):
                    spec, commands = thaw(line["entry"], (Commands,))
                    now = time.monotonic()
                    self._account.flights[number] = Sent(spec, commands=commands, sent=now)
        left = sorted(here - set(self._account.flights))
        if left:
            self._try(lambda: self._client.cancel(self._run, left))
        return set(self._account.flights)


@dataclass(frozen=True, slots=True)
class View:
    """How things are, for people.

    Attributes
    ----------
    slots : int
    silence, refused, waiting : str
        That the server does not answer, that it takes nothing, why bundles wait in the pool.
    """

    slots: int = 0
    silence: str = ""
    refused: str = ""
    waiting: str = ""


def _will_tell(row: Mapping[str, Any]) -> bool:
    """Tell whether there is an end to come of a bundle, or one that no driver has acknowledged.

    The pool keeps those that are over for a while: their drivers have heard how they ended.
    """
    return row["state"] in _LIVE or (row["state"] in _OVER and bool(row["unread"]))


def _line(flight: Sent) -> dict[str, Any]:
    """Return what the next driver must know of a bundle: it has been sent, without its items."""
    entry = (replace(flight.spec, sources={}), flight.commands)
    return {"bundle": flight.number, "entry": freeze(entry)}


def make_client(settings: GridSettings) -> GridClient:
    """Return a client of the server.

    Raises
    ------
    SiteError
        The packages are not installed, or nobody is signed in.
    """
    from pandaflow.grid.http import GridClient

    return GridClient(
        settings.server, credentials=settings.credentials, ca=settings.ca or None, vo=settings.vo
    )
