"""What is asked of an issuer: its metadata, and tokens from its token endpoint.

OpenID Connect Discovery 1.0 and RFC 8414 (metadata), RFC 6749 (tokens), RFC 8707 (resources).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from pandaflow.grid.auth.errors import SignInFailed, plain
from pandaflow.grid.auth.secret import Secret
from pandaflow.grid.auth.web import BadAnswer, Form, get_json, post_form

#: Seconds that a token is taken to last when its issuer does not say.
UNSAID_LIFETIME = 600.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token endpoint gave.

    Attributes
    ----------
    access : Secret
    refresh : Secret or None
    lifetime : float
        Seconds.
    """

    access: Secret
    refresh: Secret | None
    lifetime: float


class Refused(SignInFailed):
    """An issuer said no.

    Attributes
    ----------
    code : str
        As the issuer said it: ``invalid_grant``, ``authorization_pending``, ...
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def discover(issuer: str) -> dict[str, Any]:
    """Return an issuer's metadata.

    Raises
    ------
    BadAnswer
        They are somebody else's, or none.
    IssuerUnavailable
    UnsafeAddress
    """
    found = get_json(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if found.get("issuer") != issuer:
        raise BadAnswer(
            f"{plain(issuer)} says that it is {plain(found.get('issuer'))}: "
            "write the issuer exactly as it calls itself"
        )
    return found


def endpoint(metadata: Mapping[str, Any], name: str) -> str:
    """Return the address of one of an issuer's endpoints.

    Raises
    ------
    BadAnswer
        The issuer has none.
    """
    found = metadata.get(name)
    if not isinstance(found, str):
        raise BadAnswer(f"{plain(metadata.get('issuer'))} has no {name.replace('_', ' ')}")
    return found


def ask_tokens(url: str, form: Form, client: str, secret: Secret | None = None) -> Tokens:
    """Ask a token endpoint.

    Parameters
    ----------
    url : str
    form : mapping of str to str or Secret
        The grant.
    client : str
        Client id.
    secret : Secret, optional
        Of a confidential client; goes into the header, as RFC 6749 prefers.

    Raises
    ------
    Refused
    BadAnswer
    IssuerUnavailable
    """
    status, answer = ask(url, form, client, secret)
    if status != 200:
        raise refusal(url, status, answer)
    return _tokens(url, answer)


def ask(
    url: str, form: Form, client: str, secret: Secret | None = None
) -> tuple[int, dict[str, Any]]:
    """Post a form to an issuer in the name of a client."""
    if secret is None:
        return post_form(url, {**form, "client_id": client})
    # RFC 6749, 2.3.1: both are form-encoded before they become a user name and a password.
    return post_form(url, form, (quote(client, safe=""), secret.quoted()))


def refusal(url: str, status: int, answer: Mapping[str, Any]) -> Refused:
    """Return an issuer's refusal as an error."""
    code = plain(answer.get("error") or status)
    said = answer.get("error_description")
    words = f"{code} ({plain(said)})" if said else code
    return Refused(f"{urlsplit(url).netloc} gave no token: {words}", code)


def targets(audience: str) -> dict[str, str]:
    """Return the parameters that ask for a token that is meant for an audience.

    Issuers differ: some know ``audience`` only, others ``resource``, which must be an address.
    """
    if not audience:
        return {}
    resource = {"resource": audience} if "://" in audience else {}
    return {"audience": audience, **resource}


def _tokens(url: str, answer: Mapping[str, Any]) -> Tokens:
    access, refresh = answer.get("access_token"), answer.get("refresh_token")
    lasting = answer.get("expires_in", UNSAID_LIFETIME)
    if not isinstance(access, str) or not access.isascii() or not access.isprintable():
        raise BadAnswer(f"{urlsplit(url).netloc} answered without a token")
    if not isinstance(lasting, (int, float)) or not 0 < lasting < 1e9:
        lasting = UNSAID_LIFETIME
    kept = Secret(refresh) if isinstance(refresh, str) else None
    return Tokens(Secret(access), kept, float(lasting))
