"""A running Rucio server: accounts, storage elements, files, daemons, and what tests break."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pandaflow.testing.daemons import Daemons, claim_ports, wait_until
from pandaflow.testing.rucio.configuration import ROOT_PASSWORD, write_client, write_server
from pandaflow.testing.rucio.elements import (
    SITE_A,
    SITE_B,
    TAPE_X,
    XROOTD_C,
    Element,
    describe,
    place,
    set_up,
)
from pandaflow.testing.rucio.environment import (
    SCRIPT,
    empty_database,
    make_tables,
    python,
    rucio_environment,
)
from pandaflow.testing.xrootd import XRootD, XRootDMissing

#: A scope that is there from the beginning.
SCOPE = "test"
#: Files that one call registers.
_BULK = 500
#: Seconds for one call of Rucio's daemons.
_PATIENCE = 120.0


class RucioServer:
    """A Rucio server that lives as long as a ``with`` statement.

    It has the account ``root``, the scope ``test``, and storage elements: ``SITE_A``, ``SITE_B``
    and the tape ``TAPE_X`` are folders; ``XROOTD_C`` is an XRootD server, where that is installed.
    Rucio's daemons do not run by themselves: methods run each of them once.

    Parameters
    ----------
    database : str, optional
        SQLAlchemy URL of an empty PostgreSQL database; default: SQLite.
    sections : mapping, optional
        More of the server's ``rucio.cfg``.

    Attributes
    ----------
    url : str
        Stays the same over restarts.
    elements : dict of str to Element

    Raises
    ------
    RucioMissing
        The server cannot be installed.
    TimeoutError
        It does not start; with the end of its log.
    """

    def __init__(
        self, database: str = "", sections: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self._environment = rucio_environment()
        self._database, self._sections = database, sections
        self._claim = claim_ports(2)
        self._port = int(self._claim.getsockname()[1]) + 1
        self.url = f"http://127.0.0.1:{self._port}"
        self.elements: dict[str, Element] = {}
        self._passwords = {"root": ROOT_PASSWORD}
        self._folders: dict[str, Path] = {}
        self._daemons: Daemons | None = None
        self._xrootd: XRootD | None = None
        self._root: Any = None
        self._starts = 0

    def __enter__(self) -> Self:
        try:
            self._daemons = Daemons("pf-rucio-", claim=self._claim)
            self._prepare()
            self.start()
            self._furnish()
        except BaseException:  # also Ctrl-C: nothing may stay
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where configuration, files and logs are."""
        return self._running.folder

    @property
    def xrootd(self) -> XRootD | None:
        """The server behind ``XROOTD_C``; None where there is none."""
        return self._xrootd

    # --- starting and stopping ---

    def start(self) -> None:
        """Start the server, after :meth:`stop` at the same address, and wait until it answers."""
        self._starts += 1
        argv = [str(python(self._environment)), "-P", str(SCRIPT), str(self._port)]
        env = {"RUCIO_HOME": str(self.folder / "server"), "PATH": os.environ["PATH"]}
        self._running.start(f"rucio{self._starts}", argv, env)
        wait_until(self._answers, lambda: f"Rucio to answer:\n{self.log()}")

    def stop(self) -> None:
        """End the server: nobody answers at its address."""
        if self._running.alive(f"rucio{self._starts}"):
            self._running.kill(f"rucio{self._starts}", signal.SIGTERM)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the server down for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def close(self) -> None:
        """End everything and remove it. May be called twice."""
        if self._root is not None:
            self._root.session.close()
        if self._xrootd is not None:
            self._xrootd.close()
        if self._daemons is not None:
            self._daemons.close()
        self._claim.close()

    def log(self) -> str:
        """Return the end of what the server has written since it was started last."""
        path = self.folder / f"rucio{self._starts}.out"
        return path.read_text(errors="replace")[-3_000:] if path.exists() else ""

    # --- accounts ---

    def account(self, name: str) -> str:
        """Make an account with a scope ``user.NAME`` and no limits; return its name."""
        self._passwords[name] = secrets.token_urlsafe(12)
        root, mail = self.client(), f"{name}@example.org"
        root.add_account(name, "USER", mail)
        root.add_identity(name, name, "USERPASS", mail, password=self._passwords[name])
        root.add_scope(name, f"user.{name}")
        for element in self.elements:
            root.set_account_limit(name, element, -1, "local")
        return name

    def environment(self, account: str = "root") -> dict[str, str]:
        """Return variables by which clients in other processes find server and account."""
        folder = self.folder / "accounts" / account
        path = write_client(folder, self.url, account, self._passwords[account])
        return {"RUCIO_CONFIG": str(path), "RUCIO_ACCOUNT": account}

    def client(self, account: str = "root") -> Any:
        """Return a ``rucio.client.Client`` of an account; root's is made once."""
        if account == "root" and self._root is not None:
            return self._root
        client = self._client(account)
        if account == "root":
            self._root = client
        return client

    @contextmanager
    def here(self, account: str = "root") -> Iterator[None]:
        """Let clients that this process makes by itself find server and account."""
        from rucio.common.config import clean_cached_config

        given = self.environment(account)
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        clean_cached_config()
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    # --- files ---

    def upload(
        self,
        scope: str,
        dataset: str,
        paths: Sequence[Path],
        *elements: str,
        events: int | None = None,
    ) -> list[str]:
        """Put files into elements, register them, and attach those that are new to a dataset.

        Parameters
        ----------
        scope, dataset : str
            An empty dataset: they are in none.
        paths : sequence of Path
            Their last parts are the names.
        *elements : str
            Names of RSEs; default: ``SITE_A``.
        events : int, optional
            In each of the files.

        Returns
        -------
        list of str
            Names of the files.
        """
        files = [{"scope": scope, "name": path.name, **describe(path)} for path in paths]
        if events is not None:
            files = [{**file, "meta": {"events": events}} for file in files]
        for element in elements or (SITE_A.name,):
            for path in paths:
                self._put(path, self.path(scope, path.name, element))
            for begin in range(0, len(files), _BULK):
                self.client().add_replicas(element, files[begin : begin + _BULK])
        if dataset:
            self._attach(scope, dataset, [path.name for path in paths])
        return [path.name for path in paths]

    def dataset(
        self,
        scope: str,
        name: str,
        count: int,
        *elements: str,
        size: int = 1_000,
        events: int | None = None,
    ) -> list[str]:
        """Make a dataset of files ``NAME.0000``, ... of random bytes; return their names."""
        folder = self.folder / "made"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{name}.{number:04d}" for number in range(count)]
        for path in paths:
            path.write_bytes(os.urandom(size))
        found = self.upload(scope, name, paths, *elements, events=events)
        for path in paths:
            path.unlink()
        return found

    def path(self, scope: str, name: str, element: str) -> Path:
        """Return where an element has, or would have, a file on this machine."""
        return place(self._folders[element], scope, name)

    def corrupt(self, scope: str, name: str, element: str) -> None:
        """Change a byte of a replica; its size stays."""
        path = self.path(scope, name, element)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))

    def lose(self, scope: str, name: str, element: str) -> None:
        """Remove a replica behind Rucio's back."""
        self.path(scope, name, element).unlink()

    def suspicious(self, scope: str, name: str) -> dict[str, int]:
        """Return how often the replicas of a file were declared suspicious, by element."""
        found: dict[str, int] = {}
        for rows in self.client().list_suspicious_replicas():
            for row in rows:
                if (row["scope"], row["name"]) == (scope, name):
                    found[str(row["rse"])] = int(row["cnt"])
        return found

    # --- daemons ---

    def judge(self) -> None:
        """Let rules follow what was attached to their datasets (judge-evaluator)."""
        self._run("evaluator")

    def repair(self) -> None:
        """Try again what is stuck and may be tried (judge-repairer)."""
        self._run("repairer")

    def clean(self) -> None:
        """Remove rules whose lifetime is over (judge-cleaner)."""
        self._run("cleaner")

    def recover(self) -> None:
        """Act on replicas that were declared bad (minos, necromancer)."""
        self._run("minos", "necromancer")

    def submit(self, *, fail: Sequence[str] = ()) -> None:
        """Make the copies that rules want (conveyor-submitter).

        Parameters
        ----------
        fail : sequence of str
            Names of files whose copies go wrong.
        """
        self._run("submitter", fail=fail)

    def poll(self, limit: int | None = None) -> None:
        """Hear how copies went (conveyor-poller and -finisher).

        Parameters
        ----------
        limit : int, optional
            So many have ended; the others still run.
        """
        self._run("poller", "finisher", limit=limit)

    def conveyor(self, *, fail: Sequence[str] = (), limit: int | None = None) -> None:
        """Make the copies that rules want, and hear how they went."""
        self._run("submitter", "poller", "finisher", fail=fail, limit=limit)

    def counts(self) -> dict[str, int]:
        """Return how often each method and path was asked for since the server was started."""
        with urllib.request.urlopen(f"{self.url}/test/counts", timeout=_PATIENCE) as answer:
            found: dict[str, int] = json.load(answer)
        return {path: count for path, count in found.items() if not path.endswith("/ping")}

    # --- inside ---

    @property
    def _running(self) -> Daemons:
        if self._daemons is None:
            raise RuntimeError("this server was not started: use it in a with statement")
        return self._daemons

    def _prepare(self) -> None:
        home, database = self.folder / "server", self._database
        if not database:
            path = self.folder / "rucio.db"
            shutil.copy(empty_database(self._environment), path)
            database = f"sqlite:///{path}"
        cache = f"127.0.0.1:{self._port - 1}"  # claimed, so nobody is there
        write_server(home, database, self._environment, cache=cache, sections=self._sections)
        if self._database:
            make_tables(self._environment, home)

    def _furnish(self) -> None:
        client = self.client()
        client.add_scope("root", SCOPE)
        for element in (SITE_A, SITE_B, TAPE_X):
            folder = self.folder / "elements" / element.name
            folder.mkdir(parents=True)
            self._add(element, folder, "")
        try:
            self._xrootd = XRootD().__enter__()
        except XRootDMissing:
            pass
        else:
            self._add(XROOTD_C, self._xrootd.folder, self._xrootd.url)
        for source in self.elements:
            for target in self.elements:
                if source != target:
                    client.add_distance(source, target, {"distance": 1})

    def _add(self, element: Element, folder: Path, url: str) -> None:
        set_up(self.client(), element, folder, url)
        self.elements[element.name], self._folders[element.name] = element, folder

    def _client(self, account: str) -> Any:
        from rucio.client import Client

        with self.here(account):
            return Client()

    def _put(self, source: Path, target: Path) -> None:
        new = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        for folder in new:
            folder.chmod(0o777)  # XRootD writes as another user
        shutil.copyfile(source, target)

    def _attach(self, scope: str, dataset: str, names: Sequence[str]) -> None:
        from rucio.common.exception import DataIdentifierAlreadyExists

        client = self.client()
        try:
            client.add_dataset(scope, dataset)
            there = set()
        except DataIdentifierAlreadyExists:
            there = {row["name"] for row in client.list_content(scope, dataset)}
        new = [{"scope": scope, "name": name} for name in names if name not in there]
        for begin in range(0, len(new), _BULK):
            client.attach_dids(scope, dataset, new[begin : begin + _BULK])

    def _run(self, *names: str, fail: Sequence[str] = (), limit: int | None = None) -> None:
        body = json.dumps({"names": names, "fail": list(fail), "limit": limit}).encode()
        request = urllib.request.Request(f"{self.url}/test/daemons", body, method="POST")
        try:
            urllib.request.urlopen(request, timeout=_PATIENCE).close()
        except urllib.error.HTTPError as error:
            error.close()
            raise RuntimeError(f"Rucio's {', '.join(names)} failed:\n{self.log()}") from None

    def _answers(self) -> bool:
        if not self._running.alive(f"rucio{self._starts}"):
            raise RuntimeError(f"Rucio does not start:\n{self.log()}")
        try:
            urllib.request.urlopen(f"{self.url}/ping", timeout=_PATIENCE).close()
        except OSError:
            return False
        return True
