"""What the pool tells of bundles, turned into events of the run: files first, then the event."""

from __future__ import annotations

import logging
from dataclasses import replace

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.errors import DataError
from pandaflow.core.events import BundleEnded
from pandaflow.data.results import ResultStore
from pandaflow.executors.grid.commands import failure, said
from pandaflow.executors.grid.sending import Sent
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.account import Account, refused
from pandaflow.executors.remote.outcome import keep, keep_commands, said_in, unwritten
from pandaflow.executors.remote.wire import Reply
from pandaflow.grid.messages import INLINE_BYTES, Outcome

logger = logging.getLogger("pandaflow.executors")


class Hearing:
    """Turns outcomes into events.

    Parameters
    ----------
    account : Account
    data : str
        Folder or URL for what the run's pilots leave besides; empty: there is none.
    """

    def __init__(self, account: Account[Sent], data: str = "") -> None:
        self._account, self._data = account, data

    def hear(self, outcome: Outcome) -> None:
        """Take an outcome; those of bundles that nobody waits for are left alone."""
        flight = self._account.flights.get(outcome.bundle)
        if flight is None or outcome.attempt != flight.spec.attempt:
            return
        worker = f"{outcome.host}/{outcome.pilot}" if outcome.host else outcome.pilot
        try:
            if outcome.kind == "started":
                self._account.started(flight, outcome.at, worker, outcome.queue)
            elif outcome.kind == "lost":
                self._account.lose(flight, _why(outcome))
            else:
                self._account.started(flight, outcome.at, worker, outcome.queue)
                self._ended(flight, outcome)
        except DataError as error:  # before OSError, which it is as well
            self._account.lose(flight, str(error))
        except OSError as error:
            self._account.tell(unwritten(flight.spec, error, self._account.results))

    def _ended(self, flight: Sent, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._broke(flight, outcome)
        elif flight.commands is not None:
            self._commands(flight, outcome)
        else:
            self._reply(flight, outcome)

    def _broke(self, flight: Sent, outcome: Outcome) -> None:
        """Take the end of a bundle whose process as a whole came to grief."""
        assert outcome.error is not None
        told = failure(outcome.error)
        if not told.charged:
            self._account.lose(flight, _why(outcome))
        elif len(flight.spec.jobs) > 1:  # which of them it was shows when they run apart
            self._account.lose(flight, _why(outcome), charged=True)
        else:
            self._account.ended(replace(refused(flight.spec, ""), failures={0: told}))

    def _reply(self, flight: Sent, outcome: Outcome) -> None:
        reply, url = wire.reply_of(outcome.reply, "the pilot", self._data)
        for each in said_in(reply):
            self._account.report(each)
        if reply.dropped:
            self._account.lose(flight, "it was told to stop")
        elif reply.large:
            self._account.tell(refused(flight.spec, _too_large(flight.spec, reply), "output"))
        else:
            self._keep(flight, keep(reply, flight.spec, self._account.results))
        if url:  # not before its values are kept: the next driver may have to read it again
            wire.discard(url)

    def _keep(self, flight: Sent, ended: BundleEnded | None) -> None:
        if ended is None:
            self._account.lose(flight, "it left no result")
        else:
            self._account.ended(ended)

    def _commands(self, flight: Sent, outcome: Outcome) -> None:
        made = flight.commands
        assert made is not None
        told = {
            each.position: said(each, outcome.host, self._data)
            for each in outcome.results
            if each.position in made.positions
        }
        if set(made.positions) - set(told):
            raise DataError("the pilot did not tell of all its jobs")
        results: ResultStore = self._account.results
        ended = keep_commands(flight.spec, told, made.blocked, made.outputs, results)
        self._account.ended(ended)


def _why(outcome: Outcome) -> str:
    where = f" at {outcome.queue}" if outcome.queue else ""
    if outcome.error is None:
        return f"it was lost{where}"
    trouble = outcome.error
    return f"{trouble.message}{where} ({trouble.source} code {trouble.code})"


def _too_large(spec: BundleSpec, reply: Reply) -> str:
    many = f" and {len(spec.jobs) - 1} more jobs of its bundle" if len(spec.jobs) > 1 else ""
    return (
        f"the results of {spec.name}[{spec.jobs[0]}]{many} have {reply.large} bytes, and the "
        f"server takes {INLINE_BYTES}: give data=, a folder or URL that driver and pilots reach, "
        "or write files and return their names"
    )
