"""Who asks, and what they may do: pure rules, whatever proved the identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from pandaflow.core.errors import PandaflowError

#: ``user``: sees what their VO has, changes their own. ``production``, ``operator``: change what
#: others of their VO have. ``operator``: also queues and pilots. ``pilot``: pulls bundles.
Role: TypeAlias = Literal["user", "production", "operator", "pilot"]
ROLES: frozenset[str] = frozenset(get_args(Role))


class Forbidden(PandaflowError, PermissionError):
    """Somebody asks for what they may not do; says what would be needed."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a pilot's own token is good for, besides being a pilot's.

    Attributes
    ----------
    pilot, queue : str
        The only ones.
    until : float
        Seconds since the epoch: none is renewed beyond.
    """

    pilot: str
    queue: str
    until: float


@dataclass(frozen=True, slots=True)
class Actor:
    """An identity that was proved.

    Attributes
    ----------
    subject : str
        Who: ``sub`` of a token with its issuer, or the subject of a certificate.
    name : str
        For people.
    vo : str
        Virtual organisation that they act for; empty only in anonymous mode.
    roles : frozenset of str
        In that VO.
    bound : Bound or None
        It was proved by a pilot's own token, which is good for no other pilot.
    """

    subject: str
    name: str = ""
    vo: str = ""
    roles: frozenset[str] = field(default_factory=frozenset)
    bound: Bound | None = None

    def check_bound(self, pilot: str, queue: str | None = None) -> None:
        """Refuse a pilot that shows another one's token, or comes from another queue.

        Raises
        ------
        Forbidden
        """
        mine = self.bound
        if mine and (mine.pilot != pilot or queue not in (None, mine.queue)):
            raise Forbidden(
                f"this token is good for pilot {mine.pilot!r} at queue {mine.queue!r} only"
            )

    def require(self, *roles: Role) -> None:
        """Refuse those who have none of these roles.

        Raises
        ------
        Forbidden
        """
        if not self.roles & frozenset(roles):
            raise Forbidden(f"{self.name or self.subject} needs the role {' or '.join(roles)}")

    def may_see(self, vo: str) -> bool:
        """Tell whether what a VO has is theirs to see."""
        return vo == self.vo

    def may_change(self, vo: str, owner: str) -> bool:
        """Tell whether somebody's run is theirs to change."""
        others = self.roles & {"production", "operator"}
        return vo == self.vo and (owner == self.subject or bool(others))


#: Everybody, where a server takes anonymous calls: on loopback only.
ANYBODY = Actor("anonymous", "anonymous", "", ROLES)
