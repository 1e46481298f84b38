"""Long polls: who waits for something, and who is woken when it may be there."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

from starlette.requests import ClientDisconnect
from starlette.types import Receive


class Bell:
    """Wakes those who wait, first come first. Use it in one event loop.

    Attributes
    ----------
    closed : bool
        Nobody waits any more: the server goes down.
    """

    def __init__(self) -> None:
        self._sleepers: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.closed = False

    def __len__(self) -> int:
        return len(self._sleepers)

    async def wait(self, seconds: float, receive: Receive) -> bool:
        """Wait until the bell rings; False: it did not within some seconds, or it is closed.

        Parameters
        ----------
        seconds : float
        receive : callable
            Of a request whose body was read: tells when its client goes away.

        Raises
        ------
        starlette.requests.ClientDisconnect
            Nobody waits for the answer any more.
        """
        if self.closed:
            return False
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gone = asyncio.ensure_future(_gone(receive))
        self._sleepers[sleeper] = None
        try:
            await asyncio.wait(
                (sleeper, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            self._sleepers.pop(sleeper, None)
            left = gone.done()
            gone.cancel()
        if left:
            raise ClientDisconnect
        return sleeper.done() and not self.closed

    def ring(self, most: int | None = None) -> None:
        """Wake those who came first, all of them if `most` is None."""
        count = len(self._sleepers) if most is None else min(most, len(self._sleepers))
        for _ in range(count):
            sleeper, _none = self._sleepers.popitem(last=False)
            if not sleeper.done():
                sleeper.set_result(None)

    def close(self) -> None:
        """Wake all, and let nobody wait again."""
        self.closed = True
        self.ring()


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class RunBells:
    """A bell for each run that somebody watches."""

    def __init__(self) -> None:
        self._bells: dict[str, Bell] = {}
        self._closed = False

    async def wait(self, run: str, seconds: float, receive: Receive) -> bool:
        """Wait as :meth:`Bell.wait` for something that happens to a run."""
        if self._closed:
            return False
        bell = self._bells.setdefault(run, Bell())
        try:
            return await bell.wait(seconds, receive)
        finally:
            if self._bells.get(run) is bell and not len(bell):
                del self._bells[run]

    def ring(self, runs: Iterable[str]) -> None:
        """Wake those who watch these runs."""
        for run in runs:
            bell = self._bells.pop(run, None)
            if bell is not None:
                bell.ring()

    def close(self) -> None:
        """Wake all, and let nobody wait again."""
        self._closed = True
        for bell in self._bells.values():
            bell.close()
        self._bells.clear()

    @property
    def closed(self) -> bool:
        """Whether the server goes down."""
        return self._closed


class Leases:
    """Which run a bundle belongs to, for those that were given out here: a hint, not a record.

    Parameters
    ----------
    most : int
        Bundles that are remembered; of more, the last ones.
    """

    def __init__(self, most: int = 200_000) -> None:
        self._runs: OrderedDict[int, str] = OrderedDict()
        self._most = most

    def add(self, bundle: int, run: str) -> None:
        """Note a bundle that was given out."""
        self._runs[bundle] = run
        if len(self._runs) > self._most:
            self._runs.popitem(last=False)

    def run_of(self, bundle: int, *, over: bool) -> str | None:
        """Return the run of a bundle, and forget it if it is over."""
        return self._runs.pop(bundle, None) if over else self._runs.get(bundle)
