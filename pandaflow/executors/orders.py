"""A session that one thread does: the port's methods, and whoever else, leave it orders.

Rule 1: orders are carried out one at a time, in the order they were given.
Rule 2: nobody is left waiting. However the thread ends, bundles that it was to take in are refused
and questions fail; after that it takes no orders.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pandaflow.core.errors import SiteError
from pandaflow.ports import Assignment

logger = logging.getLogger("pandaflow.executors")

#: The kinds that mean something here: the last order, and the one that brings bundles.
_CLOSE, _SUBMIT = "close", "submit"


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Something to be done by the thread.

    Attributes
    ----------
    kind : str
    what : object
    answer : Future
        Gets what carrying it out returns.
    """

    kind: str
    what: Any
    answer: Future[Any]


class Orders:
    """The thread of a session, its orders, and the loop that it lives in.

    Each round waits for orders, carries out those that there are, and takes a turn. All callables
    run in the thread. If one of them raises, the session is given up.

    Parameters
    ----------
    run_id : str
        For the log.
    partner : str
        Who the session is with, as in "the session with {partner} has ended".
    wait : callable
        Returns the seconds until a turn is due, however many orders come.
    carry_out : callable
        Gets the kind of an order and what it is about. Orders to close do not come here.
    turn : callable
        Does what is due.
    leave : callable
        Winds the session up, unless a mistake ended it.
    give_up : callable
        Gets the reason and, of the bundles that were submitted, those not taken in. To refuse
        them, and all that the session knows of.
    """

    def __init__(
        self,
        run_id: str,
        partner: str,
        *,
        wait: Callable[[], float],
        carry_out: Callable[[str, Any], Any],
        turn: Callable[[], None],
        leave: Callable[[], None],
        give_up: Callable[[str, Sequence[Assignment]], None],
    ) -> None:
        self._run, self._partner = run_id, partner
        self._wait, self._carry_out, self._turn = wait, carry_out, turn
        self._leave, self._give_up = leave, give_up
        self._queue: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._at_hand: Order | None = None
        self._lock, self._over, self._reason = threading.RLock(), False, ""
        #: Whether this is the last round.
        self.closing = False
        name = f"pandaflow: {partner}"
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    # --- for everybody ------------------------------------------------------------------

    def start(self) -> None:
        """Begin. The session must be able to do all it is asked for by now."""
        self._thread.start()

    def put(self, kind: str, what: Any = None) -> bool:
        """Leave an order; return false if the session has ended, and nothing will be done."""
        return self._put(Order(kind, what, Future()))

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Leave bundles to be taken in.

        Raises
        ------
        SiteError
            The session has ended.
        """
        if not self.put(_SUBMIT, list(assignments)):
            raise self._ended()

    def ask(self, kind: str, what: Any) -> Any:
        """Leave an order, wait until it is carried out and return what came of it.

        Raises
        ------
        SiteError
            The session has ended, or does before it comes to that.
        """
        order = Order(kind, what, Future())
        if not self._put(order):
            raise self._ended()
        return order.answer.result()

    def close(self) -> None:
        """End the session after the orders that there are, and wait until it has ended."""
        self.put(_CLOSE)
        self._thread.join()

    def _put(self, order: Order) -> bool:
        with self._lock:
            if not self._over:
                self._queue.put(order)
            return not self._over

    def _ended(self) -> SiteError:
        why = f": {self._reason}" if self._reason else ""
        return SiteError(f"this session with {self._partner} has ended{why}")

    # --- for the session, in the thread -------------------------------------------------

    def give_up(self, reason: str) -> None:
        """Make this the last round, and refuse all that waits.

        Parameters
        ----------
        reason : str
            For people.
        """
        self.closing, self._reason = True, reason
        self._give_up(reason, self._untaken())

    def obey(self, seconds: float) -> None:
        """Carry out the orders that there are; wait for the first, if there is none.

        Parameters
        ----------
        seconds : float
            To wait at most; 0 or more.
        """
        with suppress(queue.Empty):
            self._do(self._queue.get(timeout=seconds) if seconds else self._queue.get(block=False))
            while True:
                self._do(self._queue.get(block=False))

    # --- the thread ---------------------------------------------------------------------

    def _live(self) -> None:
        try:
            while not self.closing:
                self.obey(self._wait())
                self._turn()
            self._leave()
        except BaseException as error:  # a mistake of ours: the run must hear of it, not hang
            reason = f"the session with {self._partner} broke: {type(error).__name__}: {error}"
            logger.exception("%s: %s", self._run, reason)
            self.give_up(reason)
        finally:
            self._finish()

    def _do(self, order: Order) -> None:
        self._at_hand = order
        if order.kind == _CLOSE:
            self.closing, answer = True, None
        else:
            answer = self._carry_out(order.kind, order.what)
        self._at_hand = None
        if not order.answer.done():  # done: the session was given up meanwhile
            order.answer.set_result(answer)

    def _finish(self) -> None:
        with self._lock:
            self._over = True
        late = self._untaken()
        if late:
            self._give_up(str(self._ended()), late)

    def _untaken(self) -> list[Assignment]:
        """Drop the orders that there are: let questions fail, return the bundles."""
        left = [self._at_hand] if self._at_hand is not None else []
        self._at_hand = None
        with suppress(queue.Empty):
            while True:
                left.append(self._queue.get(block=False))
        for order in left:
            order.answer.set_exception(self._ended())
        return [each for order in left if order.kind == _SUBMIT for each in order.what]
