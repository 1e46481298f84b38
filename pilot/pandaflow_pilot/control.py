"""What others want of a bundle that runs: said by any thread, obeyed by the bundle's own."""

from __future__ import annotations

import threading
import time

from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.transfer import Aborted


class Control:
    """Wishes about one bundle.

    There are three, and the stronger replaces the weaker: *soft* (ask the payload to end, report
    what it has left), *lose* (end it, report it lost) and *drop* (end it, report nothing).
    """

    def __init__(self) -> None:
        self.soft = False
        self.lost: PilotError | None = None
        self.dropped = False
        self._changed = threading.Event()

    def ask_to_end(self) -> None:
        """Let the payload come to an end by itself."""
        self.soft = True
        self._changed.set()

    def lose(self, why: PilotError) -> None:
        """Give the bundle up, and say why."""
        self.lost = self.lost or why
        self._changed.set()

    def drop(self) -> None:
        """Give the bundle up; it is somebody else's."""
        self.dropped = True
        self._changed.set()

    @property
    def hard(self) -> bool:
        """Whether nobody wants its results any more."""
        return self.dropped or self.lost is not None

    def wait(self, seconds: float) -> None:
        """Wait; less long, if there is a wish."""
        if self._changed.wait(seconds):
            time.sleep(min(seconds, 0.02))  # the wish is known; nobody shall spin meanwhile

    def check(self) -> None:
        """Raise what ends a phase whose results nobody wants.

        Raises
        ------
        Aborted
        """
        if self.hard:
            raise Aborted

    def check_soft(self) -> None:
        """As :meth:`check`, for phases that a soft end skips, too.

        Raises
        ------
        Aborted
        """
        if self.soft or self.hard:
            raise Aborted

    def sleep(self, seconds: float) -> None:
        """Wait between two tries.

        Raises
        ------
        Aborted
        """
        self._changed.wait(seconds)
        self.check()
