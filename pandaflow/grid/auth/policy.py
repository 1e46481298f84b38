"""Whom a server trusts, and what they may do: one TOML file, read strictly.

docs/reference/policy.md describes it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from pandaflow.grid.auth.errors import PolicyError
from pandaflow.grid.auth.web import VO_HEADER, safe
from pandaflow.grid.identity import Forbidden, Role

#: What a signature may be made with: public keys only, so that nobody who can check a token
#: can make one.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)

EXAMPLE = """\
# Whom this server trusts, and what they may do.

[[issuers]]
name = "iam"                                   # how rules call it
issuer = "https://iam.example.org/"            # exactly as it calls itself
audience = ["https://pandaflow.example.org"]   # what its tokens must be meant for
client_id = "pandaflow-cli"                    # public client of 'pandaflow login'
scopes = ["openid", "offline_access", "wlcg.groups"]   # what 'pandaflow login' asks for

# Everybody in the group, by their token.
[[rules]]
issuer = "iam"
groups = ["/atlas"]
vo = "atlas"
roles = ["user"]

[[rules]]
issuer = "iam"
groups = ["/atlas/production"]
vo = "atlas"
roles = ["production"]

# Pilots: a client of their own that got the scope. All conditions of a rule must hold; of
# several values of one condition, one.
[[rules]]
issuer = "iam"
clients = ["pandaflow-pilots"]
scopes = ["pf.pilot"]
vo = "atlas"
roles = ["pilot"]

# Certificates, also behind proxies; '/*' at the end stands for anything below.
[[rules]]
certificates = ["/DC=org/DC=example/OU=Robots/CN=harvester", "/DC=org/DC=example/OU=Ops/*"]
vo = "atlas"
roles = ["operator", "user"]

[deny]
# Refused whatever the rules say; 'pandaflow whoami' prints a subject in this form.
subjects = ["https://iam.example.org/#2f0c8d9e-gone", "/DC=org/DC=example/CN=Lost Key"]
"""

_Word = Annotated[
    str, StringConstraints(min_length=1, max_length=1_000, pattern=r"^[^\x00-\x1f\x7f]+$")
]
_Words = Annotated[tuple[_Word, ...], Field(min_length=1, max_length=1_000)]
_Vo = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
_MOMENTS = re.compile(r" \(at line (\d+), column \d+\)| \(at end of document\)")


def _issuer(url: str) -> str:
    if "#" in url or "?" in url:
        raise ValueError("an issuer's address has neither '?' nor '#'")
    return safe(url)


def _subject(pattern: str) -> str:
    if not pattern.startswith("/") or "*" in pattern.removesuffix("/*"):
        raise ValueError("give a subject as /DC=org/CN=..., with '/*' at its very end at most")
    return pattern


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Issuer(_Table):
    """An issuer whose tokens are taken.

    Attributes
    ----------
    name : str
        How rules call it.
    issuer : str
        Its address, exactly as it calls itself.
    audience : tuple of str
        One of them must be among a token's.
    algorithms : tuple of str
        Of signatures.
    groups_claims : tuple of str
        Claims that hold groups.
    client_id : str
        The public client of ``pandaflow login``; empty: nobody signs in there.
    scopes : tuple of str
        What ``pandaflow login`` asks for.
    """

    name: _Word
    issuer: Annotated[str, AfterValidator(_issuer)]
    audience: _Words
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = get_args(Algorithm)
    groups_claims: _Words = ("wlcg.groups", "groups")
    client_id: Annotated[str, StringConstraints(max_length=1_000)] = ""
    scopes: tuple[_Word, ...] = ("openid", "offline_access")


class Rule(_Table):
    """Who gets which roles in a VO: all conditions that are given must hold.

    Attributes
    ----------
    vo : str
    roles : tuple of str
    issuer : str
        Name of the issuer of a token; empty for certificates.
    subjects, groups, scopes, clients : tuple of str
        Of a token: one of them; groups are the same with and without a first ``/``.
    certificates : tuple of str
        Subjects; with ``/*`` at the end, also all below.
    """

    vo: _Vo
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    issuer: str = ""
    subjects: tuple[_Word, ...] = ()
    groups: tuple[_Word, ...] = ()
    scopes: tuple[_Word, ...] = ()
    clients: tuple[_Word, ...] = ()
    certificates: tuple[Annotated[_Word, AfterValidator(_subject)], ...] = ()

    @model_validator(mode="after")
    def _has_one_kind(self) -> Self:
        tokens = bool(self.subjects or self.groups or self.scopes or self.clients)
        if self.certificates and (tokens or self.issuer):
            raise ValueError("a rule is about tokens or about certificates: make two")
        if not self.certificates and not (self.issuer and tokens):
            raise ValueError(
                "give an issuer with subjects, groups, scopes or clients; or give certificates"
            )
        return self

    def fits(self, who: Identity) -> bool:
        """Tell whether the rule is about somebody."""
        if self.certificates:
            return not who.issuer and any(_below(one, who.subject) for one in self.certificates)
        return who.issuer == self.issuer and (
            _meet(self.subjects, (who.local,))
            and _meet(map(_group, self.groups), map(_group, who.groups))
            and _meet(self.scopes, who.scopes)
            and _meet(self.clients, (who.client,))
        )


@dataclass(frozen=True, slots=True)
class Identity:
    """What a token or a certificate proves.

    Attributes
    ----------
    subject : str
        ``issuer#sub`` of a token, ``/DC=...`` of a certificate: unique among all.
    name : str
        For people.
    issuer : str
        Name of a token's issuer; empty for certificates.
    local : str
        ``sub`` at the issuer.
    groups, scopes : tuple of str
    client : str
        That the token was made for.
    """

    subject: str
    name: str
    issuer: str = ""
    local: str = ""
    groups: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    client: str = ""


class Deny(_Table):
    """Who is refused, whatever the rules say.

    Attributes
    ----------
    subjects : tuple of str
    pilots : tuple of str
        Names of pilots whose own tokens are.
    """

    subjects: tuple[_Word, ...] = ()
    pilots: tuple[_Word, ...] = ()


class Policy(_Table):
    """A policy file.

    Attributes
    ----------
    issuers : tuple of Issuer
    rules : tuple of Rule
    deny : Deny
    """

    issuers: tuple[Issuer, ...] = ()
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    deny: Deny = Deny()

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> Self:
        names = [one.name for one in self.issuers]
        for what in (names, [one.issuer for one in self.issuers]):
            if len(what) != len(set(what)):
                raise ValueError("issuers: two have the same name or address")
        for number, rule in enumerate(self.rules, 1):
            if rule.issuer and rule.issuer not in names:
                known = ", ".join(names) or "none"
                raise ValueError(f"rule {number}: no issuer is named {rule.issuer!r} ({known})")
        return self

    def roles(self, who: Identity) -> dict[str, frozenset[str]]:
        """Return the roles that somebody has, by VO."""
        found: dict[str, frozenset[str]] = {}
        for rule in self.rules:
            if rule.fits(who):
                found[rule.vo] = found.get(rule.vo, frozenset()) | frozenset(rule.roles)
        return found

    def offers(self) -> dict[str, list[dict[str, Any]]]:
        """Return where people sign in: the answer to ``GET /api/v1/auth``, open to everybody.

        Returns
        -------
        dict
            ``{"issuers": [{"issuer", "client_id", "audience", "scopes"}]}``.
        """
        return {
            "issuers": [
                {
                    "issuer": one.issuer,
                    "client_id": one.client_id,
                    "audience": one.audience[0],
                    "scopes": list(one.scopes),
                }
                for one in self.issuers
                if one.client_id
            ]
        }


def choose(
    roles: Mapping[str, frozenset[str]], wish: str | None, subject: str
) -> tuple[str, frozenset[str]]:
    """Return the VO that somebody acts for, and their roles in it.

    Parameters
    ----------
    roles : mapping of str to frozenset of str
        That they have, by VO.
    wish : str or None
        ``vo`` or ``vo.role``, as in the header; with a role they act as that, and as a user if
        they are one, but not as what else they may be.
    subject : str
        Who they are, for messages.

    Raises
    ------
    Forbidden
        They have not got that VO or role, or none at all, or several and do not say which.
    """
    if not roles:
        raise Forbidden(
            "no rule of this server's policy gives you a role: ask its operator for one, and "
            f"name your subject, {subject}"
        )
    if wish:
        return _wished(roles, wish)
    if len(roles) > 1:
        raise Forbidden(
            f"you belong to {', '.join(sorted(roles))}: say for which you act, by the header "
            f"{VO_HEADER} or the variable PANDAFLOW_VO"
        )
    return next(iter(roles.items()))


def _wished(roles: Mapping[str, frozenset[str]], wish: str) -> tuple[str, frozenset[str]]:
    if wish in roles:  # first: names of VOs have dots
        return wish, roles[wish]
    vo, _, role = wish.rpartition(".")
    if role in roles.get(vo, ()):
        return vo, roles[vo] & {role, "user"}
    yours = ", ".join(f"{one}.{role}" for one in sorted(roles) for role in sorted(roles[one]))
    raise Forbidden(f"you may not act for {wish[:100]!r}; what you have: {yours}")


def load_policy(path: str | Path) -> Policy:
    """Read a policy file.

    Raises
    ------
    PolicyError
        It cannot be read, or is no good; names the line and the key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot read the policy {path}: {error}") from error
    return parse_policy(text, str(path))


def parse_policy(text: str, name: str = "policy") -> Policy:
    """Parse the text of a policy file.

    Parameters
    ----------
    text : str
        TOML.
    name : str
        Of the file, for messages.

    Raises
    ------
    PolicyError
    """
    try:
        return Policy.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        where = _MOMENTS.search(str(error))
        line = (where and where[1]) or len(text.splitlines())
        raise PolicyError(f"{name}, line {line}: {_MOMENTS.sub('', str(error))}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where_to = _place(text, first["loc"])
        words = first["msg"].removeprefix("Value error, ")
        raise PolicyError(f"{name}{where_to}: {words}") from error


def _place(text: str, loc: tuple[int | str, ...]) -> str:
    """Return the line and the key of a value, as far as a look at the text tells."""
    if not loc:
        return ""
    key = str(loc[0]) + "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in loc[1:])
    line = _line(text, loc)
    return f", line {line}, {key}" if line else f", {key}"


def _line(text: str, loc: tuple[int | str, ...]) -> int | None:
    """Return the number of the line of a key; of its table where the key is missing."""
    table = str(loc[0])
    number = loc[1] + 1 if len(loc) > 1 and isinstance(loc[1], int) else 1
    inner = next((part for part in loc[1:] if isinstance(part, str)), None)
    seen, found = 0, None
    for at, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].strip()
        if words.startswith("["):
            seen += words.strip("[] ") == table
            if words.strip("[] ") == table and seen == number:
                found = at
            elif found:
                break
        elif found and inner and re.match(rf"{re.escape(inner)}\s*=", words):
            return at
        elif not found and re.match(rf"{re.escape(table)}\s*=", words):
            return at
    return found


def _meet(wanted: Iterable[str], had: Iterable[str]) -> bool:
    """Tell whether one of the values is there; a condition without values holds."""
    values = set(wanted)
    return not values or not values.isdisjoint(had)


def _group(name: str) -> str:
    return name.removeprefix("/")


def _below(pattern: str, subject: str) -> bool:
    if pattern.endswith("/*"):
        return subject.startswith(pattern[:-1]) and len(subject) >= len(pattern)
    return subject == pattern
