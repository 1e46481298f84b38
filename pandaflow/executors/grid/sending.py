"""Bundles on their way to the pool: what they are sent as, many in one request."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from pandaflow import __version__
from pandaflow.core import brokerage
from pandaflow.core.bundle import BundleSpec
from pandaflow.core.errors import DataError, PandaflowError, SiteError, WorkflowError
from pandaflow.core.model import File
from pandaflow.data.plain import NotPlain
from pandaflow.executors.grid.avoiding import Avoided
from pandaflow.executors.grid.commands import Commands, local_name, prepare
from pandaflow.executors.grid.settings import GridSettings
from pandaflow.executors.outcome import JobFailed
from pandaflow.executors.remote import versions, wire
from pandaflow.executors.remote.account import Account, Flight, refused
from pandaflow.executors.remote.outcome import keep_commands
from pandaflow.grid.http import GridClient
from pandaflow.grid.messages import BATCH, INLINE_BYTES, Bundle, Needs

logger = logging.getLogger("pandaflow.executors")

#: Bytes of one request.
_REQUEST = 8_000_000


@dataclass(slots=True, eq=False)
class Sent(Flight):
    """A bundle for the pool, or in it.

    Attributes
    ----------
    message : Bundle or None
        What it is sent as.
    commands : Commands or None
        None: it is one of functions.
    noted : bool
        The next driver would know it.
    """

    message: Bundle | None = None
    commands: Commands | None = None
    noted: bool = False


class Sender:
    """Puts what is ready into the pool.

    Parameters
    ----------
    account : Account
    client : GridClient
    settings : GridSettings
    run : str
    note : callable
        Notes bundles for the next driver.
    avoided : Avoided, optional
        Knows what sites have spoiled.
    """

    def __init__(
        self,
        account: Account[Sent],
        client: GridClient,
        settings: GridSettings,
        run: str,
        note: Callable[[Sequence[Sent]], None],
        avoided: Avoided | None = None,
    ) -> None:
        self._avoided = avoided or Avoided()
        self._account, self._client, self._note = account, client, note
        self._settings, self._run = settings, run
        self._put: set[str] = set()
        self._copies: set[str] = set()
        #: What a run that was left with others brought along, and what payloads mention of it.
        self._told = versions.told_by(account.results)
        self._mentioned: dict[str, tuple[tuple[str, str], ...]] = {}
        #: Where what is too large for the server lies; empty: nowhere.
        self.data = f"{settings.data}/{run}" if settings.data else ""

    def send(self) -> list[Sent]:
        """Send one request of bundles, the most urgent; return those that the pool has taken.

        Raises
        ------
        SiteError
            The server does not answer, or refuses the whole request.
        """
        group: list[Sent] = []
        size = 0
        for flight in self._account.ready():
            message = flight.message or self._prepare(flight)
            if message is None:
                continue
            flight.message = message
            size += _size(message)
            if group and (size > _REQUEST or len(group) == BATCH):
                break
            group.append(flight)
        return self._submit(group) if group else []

    def clear(self) -> None:
        """Remove what was put into the data store for the run."""
        if self.data:
            try:
                wire.remove(self.data)
            except OSError as error:
                logger.warning("%s: %s stays: %s", self._run, self.data, error)

    def _submit(self, group: Sequence[Sent]) -> list[Sent]:
        for flight in group:
            self._put_code(flight)
        self._note([flight for flight in group if not flight.noted])
        for flight in group:
            flight.noted = True
        messages = [flight.message for flight in group if flight.message is not None]
        told = self._client.submit(self._run, messages)
        taken = []
        for flight in group:
            flight.message = None
            if flight.number in told:
                self._account.tell(refused(flight.spec, told[flight.number], "unfit"))
            else:
                taken.append(flight)
        return taken

    def _put_code(self, flight: Sent) -> None:
        """Bring the payload to the server, once for all bundles of a code version."""
        digest = flight.message.code if flight.message is not None else ""
        if digest and digest not in self._put:
            assert flight.given is not None
            self._client.put_payload(self._run, digest, flight.given.code)
            self._put.add(digest)

    # --- what bundles are sent as -------------------------------------------------------

    def _prepare(self, flight: Sent) -> Bundle | None:
        """Make the message of a bundle; if that cannot be, tell how it ended."""
        try:
            if flight.spec.kind == "command":
                with suppress(NotPlain):
                    return self._commands(flight)
            # Also commands whose arguments only their user's code can read: workers may run that.
            return self._functions(flight)
        except DataError as error:
            self._account.lose(flight, str(error))
        except JobFailed as error:
            every = dict.fromkeys(range(len(flight.spec.jobs)), error.failure)
            self._account.tell(replace(refused(flight.spec, ""), failures=every))
        except SiteError:
            raise
        except (PandaflowError, OSError, ValueError, LookupError, TypeError) as error:
            # The last two: a payload that does not fit its own inputs.
            self._account.tell(refused(flight.spec, str(error), "input"))
        return None

    def _functions(self, flight: Sent) -> Bundle:
        given, spec = flight.given, flight.spec
        assert given is not None
        results = self._account.results
        direct = results.local is None
        places = tuple(location or results.place(need) for need, location in given.deps)
        work = wire.Work(
            spec,
            () if direct else tuple(results.get(place) for place in places),
            None,
            places if direct else (),
            direct=direct,
            data=self.data,
            limit=INLINE_BYTES * 4 // 3,
            path=tuple(sys.path),
            versions=self._versions_of(given.code),
        )
        return self._message(
            flight,
            kind="function",
            work=self._small(wire.pack(work), spec),
            code=sha256(given.code).hexdigest(),
            requirements=(*self._settings.requirements, *spec.requirements),
        )

    def _versions_of(self, code: bytes) -> tuple[tuple[str, str], ...]:
        """Return the packages that a payload mentions, once for each payload."""
        digest = sha256(code).hexdigest()
        if digest not in self._mentioned:
            found = versions.mentioned(code)
            if self._told:  # this driver did not write it: its own versions say nothing
                found = {name: self._told[name] for name in found if name in self._told}
            self._mentioned[digest] = tuple(sorted(found.items()))
        return self._mentioned[digest]

    def _commands(self, flight: Sent) -> Bundle | None:
        given, spec, results = flight.given, flight.spec, self._account.results
        assert given is not None
        deps = [
            results.load(where or results.place(need), only_plain=True)
            for need, where in given.deps
        ]
        jobs, made = prepare(spec, given.code, deps, self._upload)
        if not jobs:
            self._account.tell(keep_commands(spec, {}, made.blocked, made.outputs, results))
            return None
        flight.commands = made
        return self._message(flight, kind="command", commands=tuple(jobs))

    def _message(self, flight: Sent, **fields: object) -> Bundle:
        given, spec = flight.given, flight.spec
        assert given is not None
        return Bundle.model_validate(
            {
                "bundle": spec.bundle,
                "task": spec.name,
                "jobs": tuple(spec.jobs),
                "attempt": spec.attempt,
                "priority": given.emit.priority[0] if given.emit.priority else 0,
                "needs": self._needs(spec, functions=fields["kind"] == "function"),
                "walltime": spec.resources.walltime,
                "data": self.data,
                **fields,
            }
        )

    def _needs(self, spec: BundleSpec, *, functions: bool) -> Needs:
        asked, settings = spec.resources, self._settings
        return Needs(
            queue=settings.queue,
            cores=brokerage.cores_on_node(asked),
            gpus=asked.gpus,
            memory=asked.memory,
            disk=asked.disk,
            walltime=None if asked.walltime is None else asked.walltime * len(spec.jobs),
            python=self._told.get(versions.PYTHON, versions.this_python()) if functions else "",
            pandaflow=__version__ if functions else "",
            container=spec.container,
            tags=settings.tags,
            near=settings.near,
            avoid=() if settings.queue else self._avoided.queues(spec),
        )

    # --- what is too large --------------------------------------------------------------

    def _small(self, packed: bytes, spec: BundleSpec) -> bytes:
        """Return what travels through the server: large things lie in the store."""
        if len(packed) <= INLINE_BYTES:
            return packed
        if not self.data:
            raise WorkflowError(
                f"the inputs of {spec.name}[{spec.jobs[0]}] and {len(spec.jobs) - 1} more jobs of "
                f"its bundle have {len(packed)} bytes, and the server takes {INLINE_BYTES}: give "
                "data=, a folder or URL that driver and pilots reach, or pass files instead"
            )
        url = f"{self.data}/works/{spec.bundle}"
        wire.write(url, packed)
        return wire.pack(wire.Ref(url, len(packed)))

    def _may_read(self, path: str) -> bool:
        """Tell whether a file of this machine is one that the run's owner may see.

        A service could read what is not theirs, and a workflow names any path.
        """
        if self._settings.name is None:
            return True
        own = self._account.results.local
        return own is not None and Path(path).resolve().is_relative_to(Path(own).resolve())

    def _upload(self, file: File) -> str | None:
        """Put a file of this machine where pilots reach it, once for all jobs that read it."""
        path = wire.local_path(file.path)
        assert path is not None  # others are not asked about
        if not self.data or not self._may_read(path):
            return None
        url = f"{self.data}/inputs/{local_name(file)}"
        if url not in self._copies:
            with open(path, "rb") as source:
                wire.write(url, source.read())
            self._copies.add(url)
        return url


def _size(message: Bundle) -> int:
    """Return about how many bytes a message takes in a request."""
    work = len(message.work or b"") * 4 // 3
    lines = sum(
        len(job.line) + 300 + sum(200 + len(each.replicas[0]) for each in job.inputs)
        for job in message.commands
    )
    return work + lines + 10 * len(message.jobs) + 500
