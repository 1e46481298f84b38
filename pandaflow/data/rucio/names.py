"""Data identifiers: ``SCOPE:NAME``."""

from __future__ import annotations

from dataclasses import dataclass

from pandaflow.core.errors import WorkflowError

#: Before a data identifier where a path or URL is expected.
PREFIX = "rucio://"
#: Letters that stand for others in a name.
_WILD = "*?"


@dataclass(frozen=True, slots=True, order=True)
class Did:
    """A data identifier.

    Attributes
    ----------
    scope, name : str
    """

    scope: str
    name: str

    def __str__(self) -> str:
        return f"{self.scope}:{self.name}"

    @property
    def url(self) -> str:
        """How pilots and ``pandaflow.File`` call it."""
        return f"{PREFIX}{self}"

    @property
    def wild(self) -> bool:
        """Whether it is a pattern for several names."""
        return any(letter in self.name for letter in _WILD)


def parse_did(text: str) -> Did:
    """Parse ``SCOPE:NAME``, with ``rucio://`` before it or without.

    Raises
    ------
    WorkflowError
    """
    scope, colon, name = text.removeprefix(PREFIX).partition(":")
    if not (scope and colon and name) or "/" in scope or any(letter in scope for letter in _WILD):
        raise WorkflowError(f"{text!r} is no data identifier; write SCOPE:NAME, as in mc23:zmumu")
    return Did(scope, name)
