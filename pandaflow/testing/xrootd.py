"""A private XRootD server for tests: one folder of this machine under ``root://`` and HTTP."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from pandaflow.testing.daemons import Daemons, claim_ports, listens, system_path, wait_until

#: XRootD refuses to run as root.
_NOBODY = "nobody"
_CONFIGURATION = """\
all.export /data
oss.localroot {root}
all.adminpath {folder}/admin
all.pidpath {folder}/admin
xrd.port {port}
xrd.protocol http:{http} libXrdHttp.so
xrootd.chksum max 2 adler32
"""


class XRootDMissing(RuntimeError):
    """There is no XRootD to be had here."""


class XRootD:
    """A server that lives as long as a ``with`` statement.

    Attributes
    ----------
    host : str
        Name and port.
    url, http : str
        What the folder ``/data`` is called.
    folder : Path
        Where its files are on this machine.

    Raises
    ------
    XRootDMissing
        With the way to install it.
    TimeoutError
        The server does not start; with the end of its log.
    """

    def __init__(self) -> None:
        for program in ("xrootd", "xrdcp"):
            if shutil.which(program, path=system_path()) is None:
                text = "apt-get install xrootd-server xrootd-client"
                raise XRootDMissing(f"no {program} (Debian: {text})")
        self._claim = claim_ports(2)
        self.port = int(self._claim.getsockname()[1]) + 1
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"root://{self.host}//data"
        self.http = f"http://127.0.0.1:{self.port}/data"
        self._daemons: Daemons | None = None

    def __enter__(self) -> Self:
        try:
            self._daemons = Daemons("pf-xrootd-", claim=self._claim)
            self._configure()
            self.start()
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
        """Where its files are on this machine."""
        return self._running.folder / "root" / "data"

    def start(self) -> None:
        """Start the server, and wait until it listens."""
        place = self._running.folder
        files = ["-c", str(place / "xrootd.cfg"), "-l", str(place / "xrootd.log")]
        user = ["-R", _NOBODY] if os.geteuid() == 0 else []
        self._running.start(
            "xrootd",
            ["xrootd", *files, "-n", "pf", *user],
            {"PATH": system_path(), "HOME": str(place)},
        )
        wait_until(lambda: listens(self.port), lambda: f"xrootd to listen:\n{self._log()}")

    def stop(self) -> None:
        """End the server: nobody answers at its address."""
        if self._running.alive("xrootd"):
            self._running.kill("xrootd")

    def close(self) -> None:
        """End the server and remove its files. May be called twice."""
        if self._daemons is not None:
            self._daemons.close()
        self._claim.close()

    @property
    def _running(self) -> Daemons:
        if self._daemons is None:
            raise RuntimeError("this server was not started: use it in a with statement")
        return self._daemons

    def _configure(self) -> None:
        place = self._running.folder
        text = _CONFIGURATION.format(
            root=place / "root", folder=place, port=self.port, http=self.port
        )
        (place / "xrootd.cfg").write_text(text)
        for folder in (place / "admin", self.folder):
            folder.mkdir(parents=True)
        # It writes as its own user, we as ours.
        for folder in (place, place / "admin", self.folder):
            folder.chmod(0o777)

    def _log(self) -> str:
        files = [*self._running.folder.glob("*.out"), *self._running.folder.glob("**/xrootd.log")]
        return "\n".join(path.read_text(errors="replace")[-1_500:] for path in files)
