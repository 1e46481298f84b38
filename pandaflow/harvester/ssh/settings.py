"""What ``harvester.toml`` says of a queue whose pilots are begun by ssh."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pandaflow.core.errors import SiteError
from pandaflow.harvester.settings import Line, Seconds
from pandaflow.harvester.submitter import Order, SubmitterSettings

if TYPE_CHECKING:
    from pandaflow.harvester.ssh.submitter import Ssh


class SshSettings(SubmitterSettings):
    """Pilots as processes on a host.

    Attributes
    ----------
    host : str
        Name, address or alias of the ssh configuration; always the same machine.
    user : str
        Empty: as the ssh configuration says.
    port : int or None
    identity : Path or None
        File with the private key.
    known_hosts : Path or None
        File with the host's key; it must be known there.
    config : Path or None
        Instead of ``~/.ssh/config``.
    folder : str
        On the host, for what is kept of pilots; ``~/`` is the home there.
    prologue : tuple of str
        Lines of shell before each pilot.
    grace : float
        Seconds that a cancelled pilot is given to end.
    keep : float
        Seconds for which a pilot's log is kept after its end.
    timeout, connect : float
        Seconds for an answer of the host, and for the connection to it.
    persist : float
        Seconds that a connection is kept for the next question.
    """

    host: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:%-]{0,252}$")
    user: str = Field(default="", pattern=r"^$|^[A-Za-z0-9_][A-Za-z0-9_.@$-]{0,63}$")
    port: int | None = Field(default=None, ge=1, le=65_535)
    identity: Path | None = None
    known_hosts: Path | None = None
    config: Path | None = None
    folder: Line = "~/.pandaflow/pilots"
    prologue: tuple[Line, ...] = ()
    grace: Seconds = 60.0
    keep: Seconds = 86_400.0
    timeout: Seconds = 60.0
    connect: Seconds = 10.0
    persist: Seconds = 60.0

    def open(self, label: str, folder: Path) -> Ssh:
        """Return the submitter.

        Raises
        ------
        SiteError
            There is no ``ssh`` here.
        """
        from pandaflow.harvester.ssh.submitter import Ssh

        if shutil.which("ssh") is None:
            raise SiteError("there is no 'ssh' here: install openssh-client")
        return Ssh(self, label, folder)

    def preview(self, order: Order, name: str) -> str:
        """Return the command line of ssh and the script that goes to its standard input."""
        from shlex import join

        from pandaflow.harvester.carried import AUTHORITIES, TOKEN
        from pandaflow.harvester.ssh.script import begin

        paths = {TOKEN: order.token_file, AUTHORITIES: order.ca}
        files = {key: f"(what is in {path})" for key, path in paths.items() if path}
        script = begin(self, order, [name], files, "preview")
        return f"# {join(self.words())}\n{script}"

    def words(self) -> list[str]:
        """Return the words that run a shell on the host, which reads its script from ssh."""
        return [*self.options(), "--", self.host, "exec /bin/sh -s"]

    def options(self) -> list[str]:
        """Return ``ssh`` and its options: no questions, no forwarding, host keys checked."""
        said = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": f"{max(1, round(self.connect))}",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "3",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
            "EscapeChar": "none",
            "UserKnownHostsFile": _quoted(self.known_hosts),
            "IdentityFile": _quoted(self.identity),
            "IdentitiesOnly": "yes" if self.identity else "",
            "Port": str(self.port or ""),
            "User": self.user,
            "ControlMaster": "auto",
            "ControlPath": str(sockets() / "%C"),
            "ControlPersist": str(max(1, round(self.persist))),
        }
        words = [word for key, value in said.items() if value for word in ("-o", f"{key}={value}")]
        config = ["-F", str(self.config.expanduser())] if self.config else []
        return ["ssh", *config, "-a", "-x", *words]


def _quoted(path: Path | None) -> str:
    # ssh takes blanks as the ends of names, and "%" as its own.
    return "" if path is None else f'"{str(path.expanduser().absolute()).replace("%", "%%")}"'


def sockets() -> Path:
    """Return a folder of this user alone for the sockets of connections.

    Their names may be a hundred bytes long only, so that they cannot lie with the harvester's
    notes.

    Raises
    ------
    SiteError
        Somebody else has made it.
    """
    folder = Path(tempfile.gettempdir()) / f"pandaflow-ssh-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.lstat()
    if seen.st_uid != os.getuid() or seen.st_mode & 0o077 or folder.is_symlink():
        raise SiteError(f"{folder} is somebody else's, or open to others: remove it")
    return folder
