"""A token of the pilot's own, which the server makes and renews.

What the pilot was started with (a token, a certificate) is shown for the first one only, and again
should that be refused: a token that the batch system hands out may expire soon, and a secret that
lives long need not stay on the node.
"""

from __future__ import annotations

import os
import random
import threading

from pandaflow_pilot.api import Api, ApiError, Pauses, TokenSource
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.leases import parse_token
from pandaflow_pilot.log import LOGGER
from pandaflow_pilot.settings import TOKEN_VARIABLE, Settings

#: Answers of servers that give no tokens: older ones, and anonymous ones.
_NONE = frozenset({404, 405, 409, 501})
#: Share of a token's life after which it is renewed.
_SHARE = 0.5


class Renewer:
    """Asks for the pilot's own token and renews it, on a thread of its own.

    Parameters
    ----------
    api : Api
        Shows what ``tokens`` has.
    tokens : TokenSource
        Gets the token.
    settings : Settings
    """

    def __init__(self, api: Api, tokens: TokenSource, settings: Settings) -> None:
        self._api, self._tokens = api, tokens
        self._body = {"pilot": settings.name, "queue": settings.queue}
        self._over = False
        given = settings.server.token_file or settings.server.cert or TOKEN_VARIABLE in os.environ
        self._thread = threading.Thread(target=self._run, name="token", daemon=True)
        if given:  # else nobody asks who this is
            self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._over = True
        self._tokens.lost.set()

    def _run(self) -> None:
        pauses = Pauses(2.0, 300.0)
        while not self._over:
            self._tokens.lost.clear()
            try:
                pause = self._renewed()
                pauses.reset()
            except (ApiError, PilotError) as error:
                if self._over or getattr(error, "status", 0) in _NONE:
                    LOGGER.info("no token of the pilot's own (%s)", error)
                    return
                LOGGER.warning("the pilot's own token cannot be had (%s); trying again", error)
                pause = pauses.next(getattr(error, "retry_after", 0.0))
            self._tokens.lost.wait(pause)

    def _renewed(self) -> float:
        """Renew the token; return the seconds until it is time again."""
        token, seconds = parse_token(self._api.post("/pilot/token", self._body))
        self._tokens.adopt(token)
        LOGGER.debug("a token of the pilot's own, good for %.0f s", seconds)
        return max(1.0, seconds * _SHARE * random.uniform(0.8, 1.0))
