"""A container of the stand-in: a process in bubblewrap that sees its pod's volumes."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Folders of this machine that a container does not see.
_HIDDEN = ("/dev", "/proc", "/run", "/sys", "/tmp", "/work")


class SandboxMissing(RuntimeError):
    """Containers cannot be run here."""


def require() -> None:
    """Check that containers can be run.

    Raises
    ------
    SandboxMissing
        With what to install.
    """
    for program, package in (("bwrap", "bubblewrap"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            raise SandboxMissing(f"no {program} here: install {package}")
    if any(Path(sys.base_prefix).is_relative_to(folder) for folder in _HIDDEN):
        raise SandboxMissing(f"Python lies in {sys.base_prefix}, which containers do not see")
    probe = [*_start(1000), *_root(), "--proc", "/proc", "true"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode:
        raise SandboxMissing(f"bubblewrap does not work here: {tried.stderr.strip()}")


class Sandbox:
    """A container that runs.

    Parameters
    ----------
    pod : dict
        Its spec has one container.
    folder : Path
        For its volumes and its log.
    image : mapping of str to Path
        Files of the image, by where containers see them.
    secrets : mapping of str to dict
        Secrets by name.
    """

    def __init__(
        self,
        pod: Mapping[str, Any],
        folder: Path,
        image: Mapping[str, Path],
        secrets: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.folder, self.log = folder, folder / "log"
        folder.mkdir(parents=True)
        self._hooks = _hook(pod["spec"])
        self._volumes = _volumes(pod["spec"], folder, secrets)
        read, write = os.pipe()
        command = _command(pod["spec"], image, self._volumes, write)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(pod["spec"]),
                pass_fds=(write,),
                start_new_session=True,
            )
        os.close(write)
        with os.fdopen(read) as told:
            said = told.read()
        self._inside = json.loads(said)["child-pid"] if said else 0

    def renew(self, secrets: Mapping[str, Mapping[str, Any]]) -> None:
        """Write secrets that have changed, as kubelets do."""
        for name, secret in secrets.items():
            target = self.folder / "secrets" / name
            if target.is_dir():
                _write(secret, target)

    def code(self) -> int | None:
        """Return the exit code as container runtimes say it; None while it runs."""
        code = self._process.poll()
        return None if code is None else 128 - code if code < 0 else code

    def end(self, grace: float) -> None:
        """Ask it to end as kubelets do, and kill it after ``grace`` seconds; returns at once."""
        threading.Thread(target=self._end, args=(grace,), daemon=True).start()

    def kill(self) -> None:
        """Kill all of it, and wait for that."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()

    def _end(self, grace: float) -> None:
        if self._hooks:
            enter = ["nsenter", "-t", str(self._inside), "-U", "-m", "-p", "--preserve-credentials"]
            subprocess.run([*enter, *self._hooks], capture_output=True, check=False)
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        # Not bubblewrap itself: it would end and take the container with it.
        try:
            os.kill(self._inside or self._process.pid, number)
        except ProcessLookupError:
            pass


def _hook(spec: Mapping[str, Any]) -> list[str]:
    hooks = spec["containers"][0].get("lifecycle", {})
    found: list[str] = hooks.get("preStop", {}).get("exec", {}).get("command", [])
    return found


def _environment(spec: Mapping[str, Any]) -> dict[str, str]:
    found = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    for pair in spec["containers"][0].get("env", ()):
        found[pair["name"]] = _expanded(pair["value"], found)
    return found


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)``, and ``$$`` by ``$``, as kubelets do; unknown names stay."""

    def put(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else env.get(match[2], match[0])

    return re.sub(r"\$(\$|\(([^()]*)\))", put, text)


def _command(
    spec: Mapping[str, Any], image: Mapping[str, Path], volumes: Mapping[str, Path], info: int
) -> list[str]:
    container = spec["containers"][0]
    user = spec.get("securityContext", {}).get("runAsUser", 0)
    words = [*_start(user), "--as-pid-1", "--info-fd", str(info), *_root()]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for mount in container.get("volumeMounts", ()):
        how = "--ro-bind" if mount.get("readOnly") else "--bind"
        words += [how, str(volumes[mount["name"]]), mount["mountPath"]]
    for place, path in image.items():
        words += ["--ro-bind", str(path), place]
    if container.get("securityContext", {}).get("readOnlyRootFilesystem"):
        words += ["--remount-ro", "/"]
    env = _environment(spec)
    said = (_expanded(word, env) for word in (*container["command"], *container.get("args", ())))
    return [*words, "--", *said]


def _start(user: int) -> list[str]:
    who = ["--unshare-user", "--uid", str(user), "--gid", str(user)]
    return ["bwrap", *who, "--unshare-pid", "--die-with-parent", "--new-session"]


def _root() -> list[str]:
    """Return what makes this machine's folders the container's, to be read only."""
    words: list[str] = []
    for path in sorted(Path("/").iterdir()):
        if str(path) in _HIDDEN:
            continue
        how = ["--symlink", os.readlink(path)] if path.is_symlink() else ["--ro-bind", str(path)]
        words += [*how, str(path)]
    return words


def _volumes(
    spec: Mapping[str, Any], folder: Path, secrets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for volume in spec.get("volumes", ()):
        name = volume["name"]
        if "secret" in volume:
            source = volume["secret"]["secretName"]
            found[name] = folder / "secrets" / source
            found[name].mkdir(parents=True)
            _write(secrets[source], found[name])
        else:
            found[name] = folder / "volumes" / name
            found[name].mkdir(parents=True)
    return found


def _write(secret: Mapping[str, Any], folder: Path) -> None:
    for name, text in secret["data"].items():
        scratch = folder / f".{name}"
        scratch.write_bytes(base64.b64decode(text))
        scratch.replace(folder / name)
