"""Pilots as processes of this machine, which outlive the harvester.

Each has a shell above it that writes down its process id before the pilot begins and its exit code
when it has ended. So the next harvester finds what an earlier one has begun.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil
from pydantic import Field

from pandaflow.core.errors import SiteError
from pandaflow.harvester.submitter import (
    UNKNOWN,
    Order,
    PilotState,
    Submitter,
    SubmitterSettings,
)

#: Lets the next shell go on alone, and notes it: all of it is done even if the harvester dies now.
_LAUNCH = """\
name=$1 guard=$2; shift 2
/bin/sh -c "$guard" pandaflow-guard "$name" "$@" &
echo $! >"$name.part" && mv "$name.part" "$name.pid"
"""
#: The first signal lets what a pilot runs go on, the second one does not.
_GUARD = """\
name=$1; shift
trap 'kill -TERM $pilot; sleep 0.3; kill -TERM $pilot' TERM INT
"$@" >"$name.log" 2>&1 </dev/null &
pilot=$!
exec 2>/dev/null
echo $pilot >"$name.pilot"
while :; do wait $pilot; code=$?; kill -0 $pilot || break; done
echo $code >"$name.end" && mv "$name.end" "$name.exit"
"""
#: Seconds from telling a pilot to end until it is made to.
_GRACE = 30.0
#: Bytes of a log's end that are looked at for the reason why a pilot died.
_END = 2_000


class LocalSettings(SubmitterSettings):
    """Processes of this machine.

    Attributes
    ----------
    nice : int
        How much other processes go first.
    """

    program: ClassVar[tuple[str, ...]] = (sys.executable, "-m", "pandaflow_pilot")
    settles: ClassVar[float] = 5.0

    nice: int = Field(default=0, ge=0, le=19)

    def open(self, label: str, folder: Path) -> Submitter:
        """Return the submitter."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Local(self, label, folder)

    def preview(self, order: Order, name: str) -> str:
        """Return the command line."""
        return shlex.join(self.command(order, name))

    def command(self, order: Order, name: str) -> list[str]:
        """Return the words that start a pilot."""
        first = ["nice", "-n", str(self.nice)] if self.nice else []
        return [*first, *order.command(name)]


class Local:
    """A :class:`~pandaflow.harvester.submitter.Submitter` of processes; ids are pilots' names.

    Parameters
    ----------
    settings : LocalSettings
    label : str
    folder : Path
    """

    def __init__(self, settings: LocalSettings, label: str, folder: Path) -> None:
        self._settings, self._label, self._folder = settings, label, folder

    def submit(self, order: Order, names: Sequence[str]) -> dict[str, str]:
        """Begin pilots."""
        for name in names:
            if self._file(name, "pid").exists():
                continue  # an earlier harvester was faster
            try:
                self._start(order, name)
            except (OSError, subprocess.SubprocessError) as error:
                if name == names[0]:
                    raise SiteError(f"no process can be begun: {error}", transient=True) from error
                return {each: each for each in names[: names.index(name)]}
        return {name: name for name in names}

    def _start(self, order: Order, name: str) -> None:
        words = [str(self._folder / name), _GUARD, *self._settings.command(order, name)]
        subprocess.run(
            ["/bin/sh", "-c", _LAUNCH, "pandaflow-launch", *words],
            env={**_surroundings(), **order.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self._folder,
            timeout=_GRACE,
            check=True,
        )

    def states(self, ids: Collection[str]) -> dict[str, PilotState]:
        """Return the states of pilots."""
        return {name: self._state(name) for name in ids}

    def _state(self, name: str) -> PilotState:
        code = self._code(name)
        if code is None and any(self._processes(name)):
            return PilotState(phase="running")
        # It may have ended between two looks.
        code = self._code(name) if code is None else code
        if code is not None:
            return PilotState(phase="gone", code=code, reason=self._last_words(name, code))
        if self._file(name, "pid").exists():
            return PilotState(phase="gone", reason="its processes are gone without a word")
        return UNKNOWN

    def cancel(self, ids: Collection[str]) -> None:
        """End pilots: the shells above tell them; what does not go is killed."""
        for name in ids:
            processes = list(self._processes(name))
            asked = self._file(name, "cancelled")
            if processes and not asked.exists():
                asked.touch()
            for process in processes[:1]:
                late = time.time() - asked.stat().st_mtime > _GRACE
                with suppress(psutil.NoSuchProcess):
                    if late:
                        process.kill()
                    else:
                        processes[-1].terminate()

    def found(self) -> dict[str, str]:
        """Return the pilots that run."""
        names = {path.name.removesuffix(".pid") for path in self._folder.glob("*.pid")}
        mine = {name for name in names if name.startswith(f"{self._label}-")}
        return {name: name for name in sorted(mine) if self._state(name).phase == "running"}

    def _file(self, name: str, kind: str) -> Path:
        if "/" in name or name.startswith("."):
            return Path(os.devnull) / "none"  # nobody's: such a name was never given
        return self._folder / f"{name}.{kind}"

    def _code(self, name: str) -> int | None:
        try:
            code = int(self._file(name, "exit").read_text())
            return 128 - code if code > 128 else code
        except (OSError, ValueError):
            return None

    def _processes(self, name: str) -> Iterator[psutil.Process]:
        """Yield the pilot and then the shell above it, as far as they live."""
        for kind in ("pilot", "pid"):
            # Another process may have got the number since.
            with suppress(OSError, ValueError, psutil.Error):
                process = psutil.Process(int(self._file(name, kind).read_text()))
                words = process.cmdline()
                if process.status() != psutil.STATUS_ZOMBIE and any(name in w for w in words):
                    yield process

    def _last_words(self, name: str, code: int) -> str:
        """Return the last line that a pilot which failed has said."""
        if not code:
            return ""
        try:
            with self._file(name, "log").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].strip()[:500] if lines else ""


def _surroundings() -> dict[str, str]:
    """Return the environment of pilots: without what proves who this harvester is."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PANDAFLOW_", "BEARER_TOKEN"))
    }
