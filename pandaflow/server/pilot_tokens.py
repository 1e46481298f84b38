"""Pilots' own tokens at the gate: looked up by digest, remembered for a moment.

What was looked up is remembered for some seconds only, so that a token which another instance has
withdrawn is soon refused here as well; and no longer than the policy it was judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from pandaflow.grid.auth.errors import Unauthenticated
from pandaflow.grid.auth.policy import Policy
from pandaflow.grid.auth.verify import Authenticator, bearer
from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.grid.pool.tokens import PREFIX, digest

#: Tells whose token has a digest, and when it expires; takes the time.
Holder: TypeAlias = Callable[[str, float], tuple[Actor, float] | None]
#: Seconds for which a look into the database is good, and how many are remembered.
FRESH, REMEMBERED = 20.0, 20_000
#: Where such tokens are good.
_ROUTES = ("/api/v1/pilot/", "/api/v1/whoami")


def own_token(authorization: str | None) -> str:
    """Return the pilot's own token that a header shows; empty: it shows something else."""
    token = bearer(authorization)
    return token if token.startswith(PREFIX) else ""


def check_route(path: str) -> None:
    """Refuse a pilot's own token where pilots have nothing to ask.

    Raises
    ------
    Forbidden
    """
    if not path.startswith(_ROUTES):
        raise Forbidden("a pilot's own token is good for what pilots ask only")


class PilotTokens:
    """Judges pilots' own tokens; for several threads.

    Parameters
    ----------
    authenticator : Authenticator
        Has the policy.
    holder : callable
    """

    def __init__(self, authenticator: Authenticator, holder: Holder) -> None:
        self._authenticator, self._holder = authenticator, holder
        self._known: dict[str, tuple[Actor, float, Policy]] = {}

    def known(self, token: str, now: float) -> Actor | None:
        """Return whose token it is if that was looked up lately."""
        found = self._known.get(digest(token))
        if found is None or now >= found[1] or found[2] is not self._authenticator.policy:
            return None
        return found[0]

    def prove(self, token: str, now: float) -> Actor:
        """Return whose token it is.

        Raises
        ------
        Unauthenticated
            It is nobody's, has expired, or the policy does not want its holder any more.
        """
        key, policy = digest(token), self._authenticator.policy
        held = self._holder(key, now)
        if held is None:
            self._known.pop(key, None)
            raise Unauthenticated(
                "this token of a pilot has expired or was withdrawn: ask for another with what "
                "the pilot was started with",
                "invalid_token",
            )
        actor, expires = held
        _check(policy, actor)
        if len(self._known) >= REMEMBERED:
            self._known = {}
        self._known[key] = actor, min(expires, now + FRESH), policy
        return actor


def _check(policy: Policy, actor: Actor) -> None:
    """Refuse whom the policy has dropped since the token was made."""
    pilot = actor.bound.pilot if actor.bound else ""
    if actor.subject in policy.deny.subjects or pilot in policy.deny.pilots:
        raise Unauthenticated(
            "this server refuses you by name (its deny list): ask its operator", "invalid_token"
        )
    if not any(rule.vo == actor.vo and "pilot" in rule.roles for rule in policy.rules):
        raise Unauthenticated(
            f"no rule of this server's policy has pilots of VO {actor.vo!r} any more",
            "invalid_token",
        )
