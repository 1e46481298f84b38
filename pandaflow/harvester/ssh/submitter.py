"""Pilots on a host that is reached by ssh."""

from __future__ import annotations

import logging
import re
import secrets
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pandaflow.core.errors import SiteError
from pandaflow.harvester.carried import Carried
from pandaflow.harvester.ssh import script
from pandaflow.harvester.ssh.reading import Answer, parse, state
from pandaflow.harvester.submitter import UNKNOWN, Order, PilotState

if TYPE_CHECKING:
    from pandaflow.harvester.ssh.settings import SshSettings

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
#: What ssh says when people must act, and what they must do.
_MATTERS: Sequence[tuple[str, str]] = (
    (
        r"host key verification failed|remote host identification has changed",
        "its host key is not the one that is known: compare it with what its operator says "
        "(ssh-keyscan shows it), then put it into known_hosts",
    ),
    (
        r"permission denied|too many authentication failures",
        "the key is not accepted: put the public key into authorized_keys there, or name another "
        "by 'identity'; keys with a passphrase need an agent",
    ),
    (r"bad configuration option|bad owner or permissions|terminating, \d+ bad", "see ssh_config"),
)


class Ssh:
    """A submitter (:class:`~pandaflow.harvester.submitter.Submitter`) of processes on a host.

    The id of a pilot is its name. Every call is one question to the host, over a connection that
    is kept for the next one.

    Parameters
    ----------
    settings : SshSettings
    label : str
    folder : Path
        Keeps where the token is.
    """

    def __init__(self, settings: SshSettings, label: str, folder: Path) -> None:
        self._settings, self._label = settings, label
        self._carried = Carried(folder)

    def submit(self, order: Order, names: Sequence[str]) -> Mapping[str, str]:
        """Begin pilots, each as the leader of a session that outlives the connection."""
        for name in names:
            if not _NAME.fullmatch(name):
                raise SiteError(f"{name!r} cannot be the name of a pilot's folder")
        files = self._carried.read(order)
        mark = _mark()
        text = script.begin(self._settings, order, names, _texts(files), mark)
        answers = self._ask(text, mark)
        self._carried.brought(files)
        return self._begun(answers)

    def states(self, ids: Collection[str]) -> Mapping[str, PilotState]:
        """Ask the host for the states of pilots; brings it a new token if there is one."""
        named = [one for one in ids if _NAME.fullmatch(one)]
        files, mark = self._renewed(), _mark()
        text = script.look(self._settings, self._label, named, _texts(files), mark)
        answers = self._ask(text, mark)
        if files:
            self._carried.brought(files)
        found = {answer.name: state(answer, self._settings.host) for answer in answers}
        if not found.keys() >= set(named):
            raise SiteError(f"{self._settings.host} answered in part only", transient=True)
        return {one: found.get(one, UNKNOWN) for one in ids}

    def cancel(self, ids: Collection[str]) -> None:
        """End pilots; those that do not within the time given are killed there."""
        mark = _mark()
        named = [one for one in ids if _NAME.fullmatch(one)]
        self._ask(script.stop(self._settings, self._label, named, mark), mark)

    def found(self) -> Mapping[str, str]:
        """Return the pilots of the label that run on the host."""
        mark, host = _mark(), self._settings.host
        answers = self._ask(script.find(self._settings, self._label, mark), mark)
        return {a.name: a.name for a in answers if state(a, host).phase != "gone"}

    def close(self) -> None:
        """End the connection, which would end by itself after a while."""
        words = [*self._settings.options(), "-O", "exit", "--", self._settings.host]
        subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, check=False)

    def _begun(self, answers: Sequence[Answer]) -> dict[str, str]:
        begun = {answer.name: answer.name for answer in answers if answer.kind == "begun"}
        failed = [answer for answer in answers if answer.kind == "failed"]
        for answer in failed:
            _LOG.warning(
                "%s was not begun at %s: %s", answer.name, self._settings.host, answer.text
            )
        if failed and not begun:
            text = failed[0].text or "its keeper did not start"
            raise SiteError(f"no pilot was begun at {self._settings.host}: {text}", transient=True)
        return begun

    def _renewed(self) -> Mapping[str, bytes]:
        try:
            return self._carried.changed()
        except SiteError as error:
            _LOG.warning("the pilots' token is not renewed: %s", error)
            return {}

    def _ask(self, text: str, mark: str) -> list[Answer]:
        host = self._settings.host
        try:
            done = subprocess.run(
                self._settings.words(),
                input=text.encode(),
                capture_output=True,
                timeout=self._settings.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            text = f"{host} has not answered within {self._settings.timeout:g} s"
            raise SiteError(text, transient=True) from error
        except OSError as error:
            raise SiteError(f"ssh cannot be run: {error}", transient=True) from error
        if done.returncode:
            raise _error(host, done.stderr.decode("utf-8", "replace"), done.returncode)
        return parse(done.stdout.decode("utf-8", "replace"), mark, host)


def _mark() -> str:
    return f"@pandaflow-{secrets.token_hex(8)}"


def _texts(files: Mapping[str, bytes]) -> dict[str, str]:
    try:
        return {name: content.decode("utf-8") for name, content in files.items()}
    except UnicodeDecodeError as error:
        raise SiteError(f"a token or certificate is no text: {error}") from error


def _error(host: str, stderr: str, code: int) -> SiteError:
    said = " ".join(stderr.split())[-500:]
    for pattern, remedy in _MATTERS:
        if re.search(pattern, said, re.IGNORECASE):
            return SiteError(f"ssh to {host}: {said}: {remedy}")
    what = "does not answer" if code == 255 else f"ended the script with code {code}"
    return SiteError(f"{host} {what}: {said or 'ssh says nothing'}", transient=True)
