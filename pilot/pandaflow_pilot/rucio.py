"""Inputs named ``rucio://SCOPE:NAME``: replicas found, checked and, if wrong, declared by Rucio.

It needs the package ``rucio-clients``, which is imported when such an input comes first. Server,
account and credentials are those that Rucio's own configuration has.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pandaflow_pilot import storage, transfer
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.leases import Input
from pandaflow_pilot.log import LOGGER
from pandaflow_pilot.stagein import RUCIO, failed, verify
from pandaflow_pilot.transfer import Check, TransferError

#: What of an RSE's protocols this node can read.
SCHEMES = ("file", "root", "davs", "https", "http")
#: Seconds without an answer of Rucio after which a call has failed.
_SILENCE = 60
_NEEDED = "needs the package rucio-clients in the pilot's Python: pip install rucio-clients"
#: What the end of a URL may hold is a signature.
_QUERY = re.compile(r"\?[^\s'\"]*")


@dataclass(frozen=True)
class Replica:
    """A copy of a file.

    Attributes
    ----------
    pfn : str
        Its URL.
    rse : str
    tape : bool
        It must be staged by a rule before it can be read.
    priority : int
        Rucio's: 1 is what it would take first.
    """

    pfn: str
    rse: str
    tape: bool = False
    priority: int = 0


@dataclass(frozen=True)
class Listed:
    """What Rucio knows of a file: bytes, ``kind:value`` and where it is."""

    size: int | None
    checksum: str
    replicas: tuple[Replica, ...]


class Rucio:
    """Brings files from whichever replica is right, those of the given RSEs first.

    Parameters
    ----------
    rses : sequence of str
        Nearest first. Those of other RSEs come after them, in Rucio's order.
    """

    def __init__(self, rses: Sequence[str] = ()) -> None:
        self._rses = tuple(rses)
        self._lock = threading.Lock()  # a client keeps one connection
        self._client: Any = None
        self._wrong: set[str] = set()

    def bring(self, given: Input, url: str, target: str, check: Check) -> None:
        """Copy a file to ``target``, and check it.

        Parameters
        ----------
        given : Input
        url : str
            ``rucio://SCOPE:NAME``.
        target : str
        check : callable
            Raises ``Aborted`` when the file is no more wanted.

        Raises
        ------
        PilotError
            Names each RSE with what was wrong there.
        Aborted
        """
        scope, name = parse_did(url)
        listed = self._listed(scope, name)
        _compare(url, listed, given)
        errors: list[PilotError] = []
        for one in self._ordered(listed.replicas):
            error = self._tried(one, listed, given, target, check)
            if error is None:
                return
            LOGGER.warning("%s: %s", url, error)
            errors.append(error)
        raise _together(url, errors)

    def _listed(self, scope: str, name: str) -> Listed:
        with self._calling(f"{RUCIO}{scope}:{name}"), self._lock:
            return _listed(self._connected(), scope, name)

    def _connected(self) -> Any:
        if self._client is None:
            from rucio.client import Client

            words = list(sys.argv)
            try:
                self._client = Client(timeout=_SILENCE)
            finally:
                sys.argv[:] = words  # it shortens the first
        return self._client

    def _ordered(self, replicas: Sequence[Replica]) -> list[Replica]:
        """Return replicas, nearest first; those that were wrong before come last."""
        near = {rse: rank for rank, rse in enumerate(self._rses)}

        def rank(one: Replica) -> tuple[bool, int, int]:
            return one.pfn in self._wrong, near.get(one.rse, len(near)), one.priority

        return sorted(replicas, key=rank)

    def _tried(
        self, one: Replica, listed: Listed, given: Input, target: str, check: Check
    ) -> PilotError | None:
        """Try one replica; return what was wrong with it."""
        if one.tape:
            return PilotError("stage_in", f"{one.rse}: is on tape, and no rule has staged it")
        try:
            transfer.fetch(one.pfn, target, check, storage.scheme_of(one.pfn))
            verify(replace(given, size=listed.size, checksum=listed.checksum), one.pfn, target)
        except TransferError as error:
            return self._judged(one, failed(one.pfn, error), error.missing and _lost(one.pfn))
        except PilotError as error:
            with suppress(OSError):
                os.unlink(target)
            return self._judged(one, error, True)
        return None

    def _judged(self, one: Replica, error: PilotError, wrong: bool) -> PilotError:
        """Return the error of a replica as people read it; declare the replica if it is wrong."""
        text = f"{one.rse}: {_told(str(error))}"
        if not wrong:
            return PilotError(error.code.name, text, transient=error.transient)
        if one.pfn not in self._wrong:
            self._wrong.add(one.pfn)
            text += f" ({self._declare(one, text)})"
        return PilotError(error.code.name, text)

    def _declare(self, one: Replica, reason: str) -> str:
        """Tell Rucio that a replica is suspicious; return what came of it."""
        try:
            with self._calling(one.rse), self._lock:
                unknown = self._connected().declare_suspicious_file_replicas(
                    [_bare(one.pfn)], reason[:255]
                )
        except PilotError as error:
            return f"could not be declared suspicious: {error}"
        if unknown:
            return "not declared suspicious: Rucio does not know the PFN"
        return "declared suspicious"

    def _calling(self, what: str) -> _Calling:
        return _Calling(self, what)

    def forget(self) -> None:
        """Connect anew at the next call: a token may be over, or a server be another."""
        self._client = None


class _Calling:
    """Turn what Rucio raises into errors of ours."""

    def __init__(self, owner: Rucio, what: str) -> None:
        self._owner, self._what = owner, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImportError):
            raise PilotError("stage_in", f"{self._what} {_NEEDED}") from None
        if error is None or isinstance(error, PilotError):
            return
        # EOFError: it would ask a person to sign in.
        if isinstance(error, (OSError, EOFError)) or _rucios(error):
            self._owner.forget()
            raise _explained(self._what, error) from None


def _rucios(error: BaseException) -> bool:
    from rucio.common.exception import RucioException

    return isinstance(error, RucioException)


def _explained(what: str, error: BaseException) -> PilotError:
    name = type(error).__name__
    missing = name in ("DataIdentifierNotFound", "ScopeNotFound")
    final = missing or name in (
        "AccessDenied",
        "CannotAuthenticate",
        "ConfigLoadingError",
        "ConfigNotFound",
        "EOFError",
        "MissingClientParameter",
        "NoAuthInformation",
    )
    said = (str(error).strip().splitlines() or [""])[0]
    text = f"{what}: Rucio: {name}: {_told(said)}"
    return PilotError("input_missing" if missing else "stage_in", text, transient=not final)


def parse_did(url: str) -> tuple[str, str]:
    """Return scope and name of ``rucio://SCOPE:NAME``.

    Raises
    ------
    PilotError
    """
    scope, colon, name = url[len(RUCIO) :].partition(":")
    if not (url.startswith(RUCIO) and scope and colon and name):
        raise PilotError("protocol", f"{url!r} is no rucio://SCOPE:NAME")
    return scope, name


def _listed(client: Any, scope: str, name: str) -> Listed:
    """Ask where a file is."""
    from rucio.common.client import detect_client_location

    rows = list(
        client.list_replicas(
            [{"scope": scope, "name": name}],
            schemes=list(SCHEMES),
            client_location=detect_client_location(),
        )
    )
    what = f"{RUCIO}{scope}:{name}"
    if not rows:
        raise PilotError("input_missing", f"{what}: Rucio knows no such file")
    if len(rows) > 1 or rows[0]["name"] != name:
        raise PilotError("stage_in", f"{what} is a dataset or container, not a file")
    return _parsed(rows[0])


def _parsed(row: Mapping[str, Any]) -> Listed:
    kinds = [kind for kind in ("adler32", "md5") if row.get(kind)]
    return Listed(
        size=row.get("bytes"),
        checksum=f"{kinds[0]}:{row[kinds[0]].lower()}" if kinds else "",
        replicas=tuple(
            Replica(pfn, found["rse"], found.get("type") == "TAPE", found.get("priority") or 0)
            for pfn, found in row.get("pfns", {}).items()
        ),
    )


def _compare(url: str, listed: Listed, given: Input) -> None:
    """Refuse a file that is not what the job wants: no replica is to blame for that."""
    if None not in (given.size, listed.size) and given.size != listed.size:
        text = f"{url}: has {listed.size} bytes in Rucio, not {given.size}"
        raise PilotError("input_size", text)
    wanted, found = given.checksum.lower(), listed.checksum
    if wanted.partition(":")[0] == found.partition(":")[0] and wanted != found:
        raise PilotError("input_checksum", f"{url}: its checksum in Rucio is {found}, not {wanted}")


def _lost(pfn: str) -> bool:
    """Whether a file that is not there is the store's fault, not this node's."""
    if not pfn.startswith("file://"):
        return True
    return os.path.isdir(os.path.dirname(transfer.local_path(pfn)))


def _bare(pfn: str) -> str:
    return pfn.partition("?")[0]


def _told(text: str) -> str:
    return _QUERY.sub("?...", text)


def _together(url: str, errors: Sequence[PilotError]) -> PilotError:
    if not errors:
        text = f"{url}: Rucio knows no replica that is there and can be read by "
        return PilotError("input_missing", text + ", ".join(SCHEMES))
    names = {error.code.name for error in errors}
    name = names.pop() if len(names) == 1 else "stage_in"
    text = f"{url}: " + "; ".join(map(str, errors))
    return PilotError(name, text, transient=any(error.transient for error in errors))
