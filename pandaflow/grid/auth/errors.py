"""What goes wrong with identities; no message ever holds a token or a secret."""

from __future__ import annotations

from pandaflow.core.errors import PandaflowError

#: Characters of somebody else's words that a message repeats at most.
_REPEATED = 200


class PolicyError(PandaflowError, ValueError):
    """The policy file is no good; names the line and the key."""


class Unauthenticated(PandaflowError, PermissionError):
    """The server does not know who asks (401).

    Parameters
    ----------
    message : str
        What is wrong, and what to do.
    code : str
        Of RFC 6750: ``invalid_token``, ``invalid_request``; empty: nothing was shown.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code

    @property
    def challenge(self) -> str:
        """Return the value of the header ``WWW-Authenticate`` (RFC 6750)."""
        if not self.code:
            return 'Bearer realm="pandaflow"'
        words = plain(str(self)).replace("\\", "/").replace('"', "'")
        return f'Bearer realm="pandaflow", error="{self.code}", error_description="{words}"'


class IssuerUnavailable(PandaflowError, ConnectionError):
    """An issuer of tokens does not answer (503 at a server); may work again soon."""


class SignInNeeded(PandaflowError, PermissionError):
    """There is no sign-in, or it has ended: ``pandaflow login`` makes another."""


class SignInFailed(PandaflowError, PermissionError):
    """An issuer gave no token: it was refused, it took too long, or a secret is wrong."""


def plain(words: object, length: int = _REPEATED) -> str:
    """Return somebody else's words as printable ASCII on one line, cut short."""
    text = "".join(c if " " <= c <= "~" else "?" for c in str(words))
    return text if len(text) <= length else text[:length] + "..."
