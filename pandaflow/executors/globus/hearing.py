"""What came back of bundles, taken into the account."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from pandaflow.core.errors import DataError
from pandaflow.executors.globus import shell
from pandaflow.executors.globus.flights import Account, Flight, Place
from pandaflow.executors.globus.link import FINAL, http_status
from pandaflow.executors.globus.settings import GlobusSettings
from pandaflow.executors.globus.verdicts import Verdict, judge
from pandaflow.executors.remote import outcome, wire
from pandaflow.executors.remote.account import refused
from pandaflow.executors.remote.wire import Reply

logger = logging.getLogger("pandaflow.executors")

#: Heartbeats after which an endpoint replaces a user endpoint that was killed, and some more.
PATIENCE = 3.5


class Hearing:
    """Turns results and failures of calls into events.

    Parameters
    ----------
    account : Account
    settings : GlobusSettings
    stop : callable
        Stops a bundle that may still run.
    """

    def __init__(
        self, account: Account, settings: GlobusSettings, stop: Callable[[Flight], None]
    ) -> None:
        self._account, self._settings, self._stop = account, settings, stop

    # --- results ------------------------------------------------------------------------

    def heard(self, flight: Flight, at: int, result: Any) -> None:
        """Take the result of a call; with the last one, the bundle has ended."""
        if flight.gone:
            return
        try:
            self._note_place(flight, at)
            if flight.commands is None:
                self._reply(flight, result)
            else:
                self._said(flight, at, result)
        except DataError as error:  # before OSError, which it is as well
            self._account.lose(flight, str(error))
        except OSError as error:
            self._account.tell(outcome.unwritten(flight.spec, error, self._account.results))

    def _note_place(self, flight: Flight, at: int) -> None:
        place = flight.place
        if place is None or not flight.tasks:
            return
        # The queue keeps the order: what was sent before this is not in it any more.
        place.seen = max(place.seen, flight.sent)
        if not place.ended_task:
            place.ended_task, place.asked = flight.tasks[at], flight.sent

    def _reply(self, flight: Flight, result: Any) -> None:
        folder = f"{self._settings.data}/{flight.spec.run}" if self._settings.data else ""
        reply, left = wire.reply_of(result, "an endpoint", folder)
        for message in reply.messages:
            if message["op"] == "started":
                self._account.begun(flight, *outcome.begun(message))
        for said in outcome.said_in(reply):
            self._account.report(said)
        if reply.dropped:
            self._account.lose(flight, "it was told to stop")
        elif reply.large:
            self._account.tell(refused(flight.spec, self._too_large(flight, reply), "output"))
        else:
            self._keep(flight, reply)
        if left:  # not before its values are kept
            wire.discard(left)

    def _keep(self, flight: Flight, reply: Reply) -> None:
        ended = outcome.keep(reply, flight.spec, self._account.results)
        if ended is None:
            self._account.lose(flight, "it was begun before and left no result")
        else:
            self._account.ended(ended)

    def _too_large(self, flight: Flight, reply: Reply) -> str:
        jobs, name = flight.spec.jobs, flight.spec.name
        many = f" and {len(jobs) - 1} more jobs of its bundle" if len(jobs) > 1 else ""
        return (
            f"the results of {name}[{jobs[0]}]{many} have {reply.large} bytes, and the service "
            f"returns {wire.room(self._settings.result_bytes)}: give data=, a folder or URL that "
            "driver and workers reach, or write files and return their names"
        )

    def _said(self, flight: Flight, at: int, result: Any) -> None:
        assert flight.commands is not None
        said = shell.hear(result)
        flight.answers[at] = said
        self._account.begun(flight, said.began, said.host)
        if len(flight.answers) < len(flight.commands.positions):
            return
        if any(each.code == shell.NO_ROOM and not each.host for each in flight.answers.values()):
            self._account.lose(flight, "its worker has no room for a work directory")
            return
        by_position = {flight.commands.positions[n]: s for n, s in sorted(flight.answers.items())}
        self._account.ended(
            outcome.keep_commands(
                flight.spec,
                by_position,
                flight.commands.blocked,
                flight.commands.outputs,
                self._account.results,
            )
        )

    # --- failures -----------------------------------------------------------------------

    def failed(self, flight: Flight, error: BaseException) -> Verdict:
        """Take the failure of a call; return what it means."""
        verdict, told = judge(error)
        if flight.gone or verdict == "unheard":
            return verdict
        match verdict:
            case "endpoint":
                self._close(flight.place, told)
                self._account.lose(flight, told)
            case "worker":
                self._begun(flight)
                self._account.lose(flight, told, charged=True)
            case "node" | "ours":
                self._account.lose(flight, told)
            case "large":
                self._account.tell(refused(flight.spec, told, "output"))
            case "unfit":
                self._account.tell(refused(flight.spec, told, "unfit"))
            case "broken":
                self._account.tell(refused(flight.spec, told))
        return verdict

    def _begun(self, flight: Flight) -> None:
        self._account.begun(flight, time.time())

    def probe_failed(self, place: Place, error: BaseException) -> None:
        """Try again later; an endpoint that runs nothing refuses from now on."""
        verdict, told = judge(error)
        if verdict == "broken" or http_status(error) in FINAL:
            place.refuses = f"endpoint {place.name} runs nothing: {told}"
            place.closed = 0.0
        elif verdict != "unheard":  # a request that was not taken is made again by and by
            self._close(place, told)

    def _close(self, place: Place | None, told: str) -> None:
        if place is not None:
            place.close(time.monotonic(), PATIENCE * place.heartbeat, told)
