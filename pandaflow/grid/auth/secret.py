"""A string that must not be seen: not in logs, tracebacks, files or other processes."""

from __future__ import annotations

import hmac
from typing import NoReturn
from urllib.parse import quote


class Secret:
    """A token or a password; shows itself as dots.

    Parameters
    ----------
    value : str
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string itself: for the header or the body that it goes into, at once."""
        return self._value

    def quoted(self) -> Secret:
        """Return it as it is written in a form."""
        return Secret(quote(self._value, safe=""))

    def __repr__(self) -> str:
        return "…"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "…"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        # A task graph is pickled: a secret in it would travel and be stored.
        raise TypeError("a secret is not pickled: read it where it is used")
