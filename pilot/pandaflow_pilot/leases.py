"""What the server's answers mean: JSON becomes frozen values here, and nowhere else.

Fields that this pilot does not know are left alone: a newer server may send more.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pandaflow_pilot.codes import PilotError

T = TypeVar("T")


@dataclass(frozen=True)
class Input:
    """A file for the work directory: ``name`` there, ``replicas`` nearest first."""

    name: str
    replicas: tuple[str, ...]
    size: int | None
    checksum: str


@dataclass(frozen=True)
class Command:
    """A job that is a command line; see ``CommandJob`` of the server's messages."""

    position: int
    line: str
    shell: bool
    env: Mapping[str, str]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Needs:
    """What a bundle needs: counts, bytes, seconds; an image or nothing."""

    cores: int
    gpus: int
    memory: int | None
    disk: int | None
    walltime: float | None
    container: str


@dataclass(frozen=True)
class Lease:
    """A bundle that this pilot holds; see ``Leased`` of the server's messages.

    Attributes
    ----------
    heartbeat : float
        Seconds without a word after which it is somebody else's.
    inline : int
        Bytes of reply or outputs that may travel in a report.
    walltime : float or None
        Seconds for each job.
    """

    id: int
    word: str
    run: str
    task: str
    bundle: int
    attempt: int
    jobs: tuple[int, ...]
    heartbeat: float
    inline: int
    needs: Needs
    kind: str
    work: bytes | None
    code: str
    commands: tuple[Command, ...]
    requirements: tuple[str, ...]
    walltime: float | None
    data: str


@dataclass(frozen=True)
class Answer:
    """An answer to a question for work.

    Attributes
    ----------
    leases : tuple of Lease
    refused : tuple of (int, str, PilotError)
        Number, lease and trouble of bundles that are not understood.
    commands : frozenset of str
    retry : float
        Seconds.
    """

    leases: tuple[Lease, ...]
    refused: tuple[tuple[int, str, PilotError], ...]
    commands: frozenset[str]
    retry: float


@dataclass(frozen=True)
class Verdict:
    """An answer to a report."""

    id: int
    accepted: bool
    why: str
    commands: frozenset[str]


def parse_answer(body: Any) -> Answer:
    """Parse the answer to a question for work.

    Raises
    ------
    PilotError
        It is no such answer at all.
    """
    leases, refused = [], []
    for item in _many(body, "bundles"):
        try:
            leases.append(parse_lease(item))
        except PilotError as error:
            number, word = item.get("id"), item.get("lease")
            if isinstance(number, int) and isinstance(word, str):
                refused.append((number, word, error))
    retry = _field(body, "retry", float, 0.0)
    return Answer(tuple(leases), tuple(refused), _words(body, "commands"), max(0.0, retry))


def parse_verdicts(body: Any) -> tuple[tuple[Verdict, ...], frozenset[str]]:
    """Parse the answer to reports: verdicts in their order, and commands for the pilot.

    Raises
    ------
    PilotError
    """
    verdicts = tuple(
        Verdict(
            _field(item, "id", int),
            _field(item, "accepted", bool),
            _field(item, "why", str, ""),
            _words(item, "commands"),
        )
        for item in _many(body, "verdicts")
    )
    return verdicts, _words(body, "commands")


def parse_token(body: Any) -> tuple[str, float]:
    """Parse a token of the pilot's own: itself, and the seconds for which it is good.

    Raises
    ------
    PilotError
    """
    token, seconds = _field(body, "token", str), _field(body, "seconds", float)
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise PilotError("protocol", "the server sent a token that is none")
    return token, seconds


def parse_lease(item: Any) -> Lease:
    """Parse a bundle.

    Raises
    ------
    PilotError
    """
    lease = Lease(
        id=_field(item, "id", int),
        word=_field(item, "lease", str),
        run=_field(item, "run", str),
        task=_field(item, "task", str),
        bundle=_field(item, "bundle", int),
        attempt=_field(item, "attempt", int, 1),
        jobs=tuple(_list(item, "jobs", int)),
        heartbeat=max(0.1, _field(item, "heartbeat", float)),
        inline=_field(item, "inline", int),
        needs=_needs(_field(item, "needs", dict, {})),
        kind=_field(item, "kind", str),
        work=_bytes(item.get("work")),
        code=_field(item, "code", str, ""),
        commands=tuple(_command(part) for part in _many(item, "commands")),
        requirements=tuple(_list(item, "requirements", str)),
        walltime=_optional(item, "walltime", float),
        data=_field(item, "data", str, ""),
    )
    if lease.kind not in ("function", "command"):
        raise PilotError("protocol", f"bundles of kind {lease.kind!r} are not known here")
    return lease


def inside(name: str) -> str:
    """Return a path in a work directory, as it may be used.

    Raises
    ------
    PilotError
        It leads out of it.
    """
    parts = name.split("/")
    if not name or name.startswith(("/", "~")) or ".." in parts or not name.isprintable():
        raise PilotError("protocol", f"{name!r} is no path inside the work directory")
    return name


def _needs(body: Any) -> Needs:
    return Needs(
        cores=_field(body, "cores", int, 1),
        gpus=_field(body, "gpus", int, 0),
        memory=_optional(body, "memory", int),
        disk=_optional(body, "disk", int),
        walltime=_optional(body, "walltime", float),
        container=_field(body, "container", str, ""),
    )


def _command(body: Any) -> Command:
    env = _field(body, "env", dict, {})
    return Command(
        position=_field(body, "position", int),
        line=_field(body, "line", str),
        shell=_field(body, "shell", bool, False),
        env={str(name): str(value) for name, value in env.items()},
        inputs=tuple(_input(part) for part in _many(body, "inputs")),
        outputs=tuple(inside(name) for name in _list(body, "outputs", str)),
    )


def _input(body: Any) -> Input:
    return Input(
        name=inside(_field(body, "name", str)),
        replicas=tuple(_list(body, "replicas", str)),
        size=_optional(body, "size", int),
        checksum=_field(body, "checksum", str, ""),
    )


def _field(body: Any, name: str, kind: type[T], default: T | None = None) -> T:
    """Return a field; whole numbers will do where seconds are wanted."""
    if not isinstance(body, Mapping):
        raise PilotError("protocol", f"the server sent {type(body).__name__}, not an object")
    value = body.get(name, default)
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise PilotError("protocol", f"the server sent no proper {name!r}")
    return value


def _optional(body: Any, name: str, kind: type[T]) -> T | None:
    return None if body.get(name) is None else _field(body, name, kind)


def _list(body: Any, name: str, kind: type[T]) -> list[T]:
    values = _field(body, name, list, [])
    if not all(isinstance(value, kind) for value in values):
        raise PilotError("protocol", f"the server sent no proper {name!r}")
    return values


def _many(body: Any, name: str) -> list[dict[str, Any]]:
    return _list(body, name, dict)


def _words(body: Any, name: str) -> frozenset[str]:
    return frozenset(_list(body, name, str))


def _bytes(text: Any) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(str(text).encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError) as error:
        raise PilotError("protocol", f"the server sent damaged bytes: {error}") from None


def encoded(data: bytes) -> str:
    """Return bytes as reports carry them."""
    return base64.urlsafe_b64encode(data).decode("ascii")
