"""The reading side of Rucio: collections, files and replicas, many to a call.

A call costs the server milliseconds whatever it asks for, so nothing here asks file by file: the
files of any number of collections come as one stream, and their replicas page by page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

from pandaflow.core.errors import DataError, SiteError
from pandaflow.core.model import File
from pandaflow.data.rucio.names import Did

#: Files whose replicas are asked for in one call, and identifiers whose metadata are.
PAGE = 1_000
#: Seconds without an answer after which a call has failed.
_SILENCE = 120
#: Errors that another try does not mend.
_FINAL = (
    "AccessDenied",
    "CannotAuthenticate",
    "ConfigLoadingError",
    "ConfigNotFound",
    "MissingClientParameter",
    "NoAuthInformation",
)
Kind = Literal["file", "dataset", "container"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What Rucio says of a data identifier.

    Attributes
    ----------
    did : Did
    kind : {'file', 'dataset', 'container'}
    open : bool
        More can still be attached to it. Files are not open.
    """

    did: Did
    kind: Kind
    open: bool


@dataclass(frozen=True, slots=True)
class Replica:
    """A copy of a file.

    Attributes
    ----------
    rse : str
        The storage element that has it.
    pfn : str
        Its URL there; of the protocol that Rucio prefers.
    state : str
        ``AVAILABLE``, ``COPYING``, ``UNAVAILABLE``, ``BAD``, ...
    tape : bool
        A rule must copy it to a disk before it can be read.
    """

    rse: str
    pfn: str
    state: str = "AVAILABLE"
    tape: bool = False


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """A file, and where it is.

    Attributes
    ----------
    did : Did
    size : int or None
        Bytes.
    checksum : str or None
        ``"adler32:..."``, or ``"md5:..."`` where there is no other.
    events : int or None
    replicas : tuple of Replica
        In Rucio's order; none: nobody asked for them, or there are none.
    """

    did: Did
    size: int | None = None
    checksum: str | None = None
    events: int | None = None
    replicas: tuple[Replica, ...] = ()

    def file(self) -> File:
        """Return it as an item of a dataset: ``rucio://SCOPE:NAME``, with URLs on disks."""
        disks = tuple(one.pfn for one in self.replicas if not one.tape)
        return File(self.did.url, self.size, self.checksum, self.events, disks)


@dataclass(frozen=True, slots=True)
class Element:
    """A storage element (RSE).

    Attributes
    ----------
    name : str
    tape : bool
    readable : bool
        Nobody has taken it out of service.
    attributes : mapping of str to object
        Such as ``site``.
    """

    name: str
    tape: bool
    readable: bool
    attributes: Mapping[str, Any]


class Catalog:
    """Rucio as one account sees it. Not for several threads at once.

    Parameters
    ----------
    client : rucio.client.Client, optional
        Default: one as Rucio's own configuration says.
    schemes : sequence of str
        Protocols that replicas are wanted by; none: the one that each element prefers.
    site : str
        Where the reader is: elements whose attribute ``site`` is this are in its local network.
    page : int
        Files in a page.

    Raises
    ------
    SiteError
        Rucio cannot be reached, or refuses; ``transient`` tells whether it may do later.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        schemes: Sequence[str] = (),
        site: str = "",
        page: int = PAGE,
    ) -> None:
        self._client = connect() if client is None else client
        self._schemes, self._site, self._page = tuple(schemes), site, page
        self._attributes: dict[str, Mapping[str, Any]] = {}
        self._distances: dict[tuple[str, str], int | None] = {}

    # --- collections ---

    def find(self, did: Did) -> tuple[Entry, ...]:
        """Return what a data identifier, or a pattern with ``*`` and ``?``, stands for.

        A pattern stands for datasets and containers, by name. It costs two calls, plus one for
        each page of matches.

        Raises
        ------
        DataError
            There is no such thing.
        SiteError
        """
        names = [did]
        if did.wild:
            with _calling(f"the names {did}"):
                found = self._client.list_dids(did.scope, [{"name": did.name}], "collection")
                names = sorted(Did(did.scope, str(name)) for name in found)
        entries = self.describe(names)
        if not entries:
            raise DataError(f"Rucio has no {did}; `rucio did list {did.scope}:*` tells what it has")
        return entries

    def describe(self, dids: Iterable[Did]) -> tuple[Entry, ...]:
        """Return what data identifiers are, a page of them with a call; unknown ones are left out.

        Raises
        ------
        SiteError
        """
        rest, found = iter(dids), dict[Did, Entry]()
        while asked := list(islice(rest, self._page)):
            with _calling("metadata"):
                for row in self._client.get_metadata_bulk([_row(did) for did in asked]):
                    entry = _entry(row)
                    found[entry.did] = entry
        return tuple(found.values())

    def tree(self, did: Did) -> tuple[Entry, ...]:
        """Return a collection and all that are in it, however deep, each once; no files.

        It costs a call for each container, and one for each page of each level.

        Raises
        ------
        DataError
            There is no such thing.
        SiteError
        """
        level, found = self.find(did), dict[Did, Entry]()
        while level:
            found.update((entry.did, entry) for entry in level)
            inner = [child for entry in level for child in self._inside(entry)]
            level = self.describe(child for child in dict.fromkeys(inner) if child not in found)
        return tuple(found.values())

    def is_open(self, did: Did) -> bool:
        """Whether files can still arrive: in the collection, or in any that is in it.

        Raises
        ------
        DataError, SiteError
        """
        return any(entry.open for entry in self.tree(did))

    def _inside(self, entry: Entry) -> list[Did]:
        """Return the collections in a container."""
        if entry.kind != "container":
            return []
        with _calling(str(entry.did)):
            rows = list(self._client.list_content(entry.did.scope, entry.did.name))
        return [_did(row) for row in rows if row["type"] != "FILE"]

    # --- files ---

    def pages(
        self, dids: Iterable[Did], *, replicas: bool = True, all_states: bool = False
    ) -> Iterator[tuple[CatalogFile, ...]]:
        """Yield the files of collections, a page at a time, each file once.

        The first page is there long before the last: take it while the listing goes on. It costs
        one call for all of them, and one for each page if replicas are wanted.

        Parameters
        ----------
        dids : iterable of Did
            Files, datasets, containers; no patterns.
        replicas : bool
            Ask where the files are, too.
        all_states : bool
            With replicas that are being copied, or are not available.

        Raises
        ------
        DataError
            One of them is a pattern.
        SiteError
        """
        asked = list(dict.fromkeys(dids))
        if wild := [str(did) for did in asked if did.wild]:
            raise DataError(f"{wild[0]} is a pattern: ask Catalog.find what it stands for")
        files = self._listed(asked)
        while True:
            with _calling("a list of files"):
                page = tuple(islice(files, self._page))
            if not page:
                return
            yield self._located(page, all_states) if replicas else page

    def files(self, did: Did, **options: Any) -> Iterator[CatalogFile]:
        """Yield the files of whatever a data identifier or pattern stands for.

        Parameters
        ----------
        did : Did
        **options
            Of :meth:`pages`.

        Raises
        ------
        DataError, SiteError
        """
        for page in self.pages((entry.did for entry in self.find(did)), **options):
            yield from page

    def locate(self, files: Iterable[CatalogFile]) -> Iterator[CatalogFile]:
        """Yield files with the replicas that they have now, in any state.

        Raises
        ------
        SiteError
        """
        rest = iter(files)
        while page := tuple(islice(rest, self._page)):
            yield from self._located(page, True)

    def _listed(self, dids: Sequence[Did]) -> Iterator[CatalogFile]:
        seen: set[Did] = set()
        if not dids:
            return
        for row in self._client.bulk_list_files([_row(did) for did in dids]):
            did = _did(row)
            if did not in seen:
                seen.add(did)
                yield CatalogFile(did, row["bytes"], _checksum(row), row["events"])

    def _located(self, page: Sequence[CatalogFile], all_states: bool) -> tuple[CatalogFile, ...]:
        options: dict[str, Any] = {"all_states": all_states, "resolve_archives": False}
        if self._schemes:
            options["schemes"] = list(self._schemes)
        if self._site:
            options["client_location"] = {"site": self._site}
        else:
            # Else the server looks for the place of each address in a database.
            options["sort"] = "random"
        with _calling("a list of replicas"):
            rows = self._client.list_replicas([_row(file.did) for file in page], **options)
            found = {_did(row): row for row in rows}
        return tuple(_with_replicas(file, found.get(file.did, {})) for file in page)

    # --- elements ---

    def elements(self, expression: str = "") -> dict[str, Element]:
        """Return storage elements by name; attributes are asked for once, a call for each.

        Parameters
        ----------
        expression : str
            RSE expression, such as ``country=FR&type=DATADISK``; empty: all.

        Raises
        ------
        SiteError
        """
        with _calling("storage elements"):
            rows = list(self._client.list_rses(expression or None))
            return {str(row["rse"]): self._element(row) for row in rows}

    def distances(self, target: str, sources: Iterable[str]) -> dict[str, int | None]:
        """Return how far elements are from another, by name; each pair is asked for once.

        Parameters
        ----------
        target : str
        sources : iterable of str

        Returns
        -------
        dict of str to int or None
            0: the target itself; None: Rucio knows no way between them.

        Raises
        ------
        SiteError
        """
        return {source: self._distance(source, target) for source in sources}

    def _element(self, row: Mapping[str, Any]) -> Element:
        name = str(row["rse"])
        if name not in self._attributes:
            self._attributes[name] = dict(self._client.list_rse_attributes(name))
        readable = bool(row.get("availability_read", True))
        return Element(name, row.get("rse_type") == "TAPE", readable, self._attributes[name])

    def _distance(self, source: str, target: str) -> int | None:
        if source == target:
            return 0
        if (source, target) not in self._distances:
            with _calling(f"the distance from {source} to {target}"):
                rows = self._client.get_distance(source, target)
            self._distances[source, target] = int(rows[0]["distance"]) if rows else None
        return self._distances[source, target]


def connect() -> Any:
    """Return a client as Rucio's own configuration says.

    Raises
    ------
    SiteError
        There is no ``rucio-clients``, no configuration, or no answer.
    """
    with _calling("a connection"):
        from rucio.client import Client

        return Client(timeout=_SILENCE)


@contextmanager
def _calling(what: str) -> Iterator[None]:
    """Turn what Rucio's client raises into errors of ours."""
    try:
        yield
    except ImportError as error:
        raise SiteError("no rucio-clients here: pip install 'pandaflow[rucio]'") from error
    except OSError as error:  # of requests, too
        raise SiteError(f"Rucio: {what}: {_first(error)}", transient=True) from error
    except _rucios() as error:
        if type(error).__name__ == "RSENotFound":
            raise DataError(f"Rucio: {what}: {_first(error)}") from error
        transient = type(error).__name__ not in _FINAL
        raise SiteError(f"Rucio: {what}: {_first(error)}", transient=transient) from error


def _rucios() -> type[Exception]:
    """Return the base of Rucio's errors; asked for when something was raised."""
    from rucio.common.exception import RucioException

    return cast(type[Exception], RucioException)


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# --- rows -------------------------------------------------------------------------------


def _row(did: Did) -> dict[str, str]:
    return {"scope": did.scope, "name": did.name}


def _did(row: Mapping[str, Any]) -> Did:
    return Did(str(row["scope"]), str(row["name"]))


def _entry(row: Mapping[str, Any]) -> Entry:
    kind = cast(Kind, str(row["did_type"]).lower())
    return Entry(_did(row), kind, kind != "file" and bool(row["is_open"]))


def _checksum(row: Mapping[str, Any]) -> str | None:
    for kind in ("adler32", "md5"):
        if row.get(kind):
            return f"{kind}:{row[kind].lower()}"
    return None


def _with_replicas(file: CatalogFile, row: Mapping[str, Any]) -> CatalogFile:
    states = row.get("states", {})
    best: dict[str, tuple[int, Replica]] = {}
    for pfn, place in row.get("pfns", {}).items():
        rse, priority = str(place["rse"]), int(place.get("priority") or 0)
        if rse not in best or priority < best[rse][0]:
            state = str(states.get(rse, "AVAILABLE"))
            best[rse] = priority, Replica(rse, pfn, state, place.get("type") == "TAPE")
    return CatalogFile(
        did=file.did,
        size=file.size if file.size is not None else row.get("bytes"),
        checksum=file.checksum or _checksum(row),
        events=file.events,
        replicas=tuple(one for _, one in sorted(best.values(), key=lambda pair: pair[0])),
    )
