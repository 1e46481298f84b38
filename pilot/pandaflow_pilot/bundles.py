"""One bundle from its lease to its last report: stage in, payload, stage out."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.containers import Box
from pandaflow_pilot.control import Control
from pandaflow_pilot.leases import Command, Lease, encoded
from pandaflow_pilot.monitor import Limits, Metrics, Monitor, together
from pandaflow_pilot.payload import (
    FUNCTIONS,
    Shell,
    command_line,
    environment,
    interpreter,
    job_environment,
    shell_of,
)
from pandaflow_pilot.payloads import Payloads
from pandaflow_pilot.process import Ended, Process, size, tail
from pandaflow_pilot.pythons import Environments
from pandaflow_pilot.settings import Patience
from pandaflow_pilot.slots import Slot
from pandaflow_pilot.stagein import Catalogue, stage_in
from pandaflow_pilot.stageout import Room, Shelf, stage_out
from pandaflow_pilot.transfer import Aborted
from pandaflow_pilot.workdir import WorkDir, made, remove

#: Bytes of what a job printed that travel, and of all jobs of a bundle together.
_END, _ENDS = 10_000, 400_000
#: Characters of the log of what failed.
_LOG = 100_000
#: Bytes that an interpreter with PandaFlow takes before a job begins; jobs' own limits are
#: watched inside, where their growth can be told from it.
INTERPRETER = 512 * 2**20
#: Seconds that an interpreter may take to begin; inside, jobs' own walltimes are watched.
START = 60.0
#: A file system with less than this is full.
_FULL = 1 << 20


@dataclass(frozen=True)
class Site:
    """What bundles share on this node.

    Attributes
    ----------
    work : WorkDir
    environments : Environments
    payloads : Payloads
    runtimes : mapping of str to str
        Container runtimes, and their programs.
    patience : Patience
    hidden : tuple of str
        What containers must not see.
    catalogue : Catalogue, optional
        Of inputs that are named, not located.
    """

    work: WorkDir
    environments: Environments
    payloads: Payloads
    runtimes: Mapping[str, str]
    patience: Patience
    hidden: tuple[str, ...] = ()
    catalogue: Catalogue | None = None


class BundleRun:
    """Runs one bundle.

    Parameters
    ----------
    lease : Lease
    slot : Slot
    site : Site

    Attributes
    ----------
    control : Control
        For those who want something of it.
    phase : {'stagein', 'payload', 'stageout'}
    log : str
        What payloads that failed have printed; whole only once the bundle has ended.
    """

    def __init__(self, lease: Lease, slot: Slot, site: Site) -> None:
        self.lease, self.slot, self._site = lease, slot, site
        self.control, self.phase, self.log = Control(), "stagein", ""
        self._parts: list[Metrics] = []
        self._room = Room(lease.inline)
        self._prints = ("", "")
        self._folder = ""
        self._until: float | None = None

    def run(self) -> dict[str, Any] | None:
        """Run it; return the fields of its last report, None if nobody wants one."""
        try:
            self._folder = self._site.work.folder(f"bundle-{self.lease.id}")
            report = self._functions() if self.lease.kind == "function" else self._commands()
        except PilotError as error:
            report = {"state": "lost", "error": error.trouble()}
        except Aborted:
            report = {"state": "lost"}
        except OSError as error:  # of the work directory: the payload's own never come here
            trouble = PilotError("no_space", f"{type(error).__name__}: {error}")
            report = {"state": "lost", "error": trouble.trouble()}
        finally:
            if self._folder:
                remove(self._folder)
        return self._said(report)

    def _said(self, report: dict[str, Any]) -> dict[str, Any] | None:
        if self.control.dropped:
            return None
        if self.control.lost is not None:
            report = {"state": "lost", "error": self.control.lost.trouble()}
        if report["state"] == "lost" and "error" not in report:
            report["error"] = PilotError("cancelled", "ended before its payload began").trouble()
        return {**report, "phase": self.phase, "metrics": self.metrics()}

    def metrics(self) -> dict[str, float]:
        """Return what it has used so far."""
        return together(list(self._parts)).told()

    def tail(self, limit: int = 20_000) -> str:
        """Return the end of what the running payload has printed."""
        paths = [*_logs(os.path.join(self._folder, "tmp")), *self._prints]
        ends = [tail(path, limit) for path in paths if path]
        return b"\n".join(end for end in ends if end).decode("utf-8", "replace")[-limit:]

    def _keep_log(self, title: str) -> None:
        if len(self.log) < _LOG:
            self.log += f"{title}{self.tail(_LOG)}\n"

    # --- functions ---

    def _functions(self) -> dict[str, Any]:
        site, lease, control = self._site, self.lease, self.control
        if lease.work is None:
            raise PilotError("protocol", "the server sent a function without its work")
        program = site.environments.program(lease.requirements, control.check_soft)
        code = site.payloads.path(lease.run, lease.code, control.check_soft) if lease.code else "-"
        work = made(os.path.join(self._folder, "work"))
        given, reply = os.path.join(work, ".work"), os.path.join(work, ".reply")
        with open(given, "wb") as file:
            file.write(lease.work)
        readable = [path for path in (code, site.environments.folder) if os.path.exists(path)]
        shell = self._shell(work, readable)
        python = interpreter(lease.needs.container, program)
        argv = [python, "-m", FUNCTIONS, given, code, reply]
        env = environment(lease, self.slot, self._temporary(self._folder))
        self.phase = "payload"
        memory = lease.needs.memory
        self._start_clock()
        limits = self._limits(None if memory is None else memory + INTERPRETER, None)
        ended, stopped = self._payload(argv, work, env, shell, limits)
        self.phase = "stageout"
        return self._replied(reply, ended, stopped)

    def _replied(self, reply: str, ended: Ended, stopped: PilotError | None) -> dict[str, Any]:
        """Return the report of a function: its reply, or why there is none."""
        error = stopped or self._failure(ended)
        length = size(reply)
        if error is None and not os.path.exists(reply):
            error = PilotError("no_reply", "the payload ended well but left no reply")
        if error is None and length > self.lease.inline:
            text = f"the reply has {length} bytes; reports carry {self.lease.inline}"
            error = PilotError("reply_size", text)
        if error is None:
            with open(reply, "rb") as file:
                return {"state": "ended", "reply": encoded(file.read())}
        self._keep_log("")
        trouble = error.trouble()
        trouble["message"] = f"{trouble['message']}: {self.tail(1_500)}".rstrip(": \n")
        return {"state": "ended", "error": trouble}

    # --- commands ---

    def _commands(self) -> dict[str, Any]:
        results = []
        for command in self.lease.commands:
            self.control.check()
            if self.control.soft or self._late():
                break
            results.append(self._command(command))
        report: dict[str, Any] = {"state": "ended", "results": results}
        if len(results) < len(self.lease.commands):
            name = "cancelled" if self.control.soft else "bundle_walltime"
            left = len(self.lease.commands) - len(results)
            report["error"] = PilotError(name, f"{left} of its commands did not begin").trouble()
        return report

    def _late(self) -> bool:
        return self._until is not None and time.monotonic() > self._until

    def _command(self, command: Command) -> dict[str, Any]:
        folder = made(os.path.join(self._folder, str(command.position)))
        work, began = made(os.path.join(folder, "work")), time.time()
        self._prints = (os.path.join(folder, "out"), os.path.join(folder, "err"))
        before = len(self._parts)
        ended, error, files = self._phases(command, folder, work)
        result: dict[str, Any] = {
            "position": command.position,
            "code": ended.code if ended is not None else (error.number if error else 0),
            "began": began,
            "ended": time.time(),
            "printed": size(self._prints[0]),
            "files": files,
            "metrics": together(self._parts[before:]).told(),
        }
        limit = min(_END, _ENDS // len(self.lease.commands))
        for name, path in zip(("out", "err"), self._prints):
            result[name] = encoded(tail(path, limit))
        if error is not None:
            result["error"] = error.trouble()
            self._keep_log(f"--- job {command.position}: {error}\n")
        self._prints = ("", "")
        remove(folder)
        return result

    def _phases(
        self, command: Command, folder: str, work: str
    ) -> tuple[Ended | None, PilotError | None, list[dict[str, Any]]]:
        """Return how a command ended, what was wrong, and what it has left."""
        ended: Ended | None = None
        try:
            self.phase = "stagein"
            for given in command.inputs:
                control, catalogue = self.control, self._site.catalogue
                stage_in(given, work, control.check_soft, control.sleep, catalogue)
            self.phase = "payload"
            ended, stopped = self._run_command(command, folder, work)
            error = stopped or self._failure(ended)
            if error is not None:
                return ended, error, []
            self.phase = "stageout"
            control = self.control
            shelf = Shelf(self.lease, command.position, self._room, control.check, control.sleep)
            return ended, None, stage_out(command.outputs, work, shelf)
        except PilotError as error:
            return ended, error, []
        except Aborted:
            self.control.check()
            return ended, PilotError("cancelled", "ended on request, before it began"), []

    def _run_command(
        self, command: Command, folder: str, work: str
    ) -> tuple[Ended, PilotError | None]:
        common = environment(self.lease, self.slot, self._temporary(folder))
        env = job_environment(common, self.lease, command)
        shell = self._shell(work, ())
        self._start_clock()
        limits = self._limits(self.lease.needs.memory, self.lease.walltime)
        return self._payload(command_line(command), work, env, shell, limits, folder)

    # --- both ---

    def _temporary(self, folder: str) -> str:
        """Return a folder for temporary files; containers write into the work directory only."""
        name = os.path.join("work", ".tmp") if self.lease.needs.container else "tmp"
        return made(os.path.join(folder, name))

    def _shell(self, work: str, readable: Sequence[str]) -> Shell:
        needs, name = self.lease.needs, f"pandaflow-{self._site.work.tag}-{self.lease.id}"
        names = tuple(key for key in os.environ if key.startswith(("PANDAFLOW_", "CUDA_")))
        box = Box(
            image=needs.container,
            workdir=work,
            name=name,
            readable=tuple(readable),
            hidden=self._site.hidden,
            gpus=needs.gpus > 0,
            env=names,
        )
        return shell_of(needs.container, self._site.runtimes, box)

    def _limits(self, memory: int | None, walltime: float | None) -> Limits:
        looping = self._site.patience.looping
        return Limits(memory, self.lease.needs.disk, walltime, self._until, looping)

    def _start_clock(self) -> None:
        """The bundle's time runs from its first payload on: staging in is not the jobs' fault."""
        if self._until is None and self.lease.needs.walltime is not None:
            slack = START if self.lease.kind == "function" else 0.0
            self._until = time.monotonic() + self.lease.needs.walltime + slack

    def _payload(
        self,
        argv: Sequence[str],
        work: str,
        env: Mapping[str, str],
        shell: Shell,
        limits: Limits,
        folder: str = "",
    ) -> tuple[Ended, PilotError | None]:
        """Run a payload; return how it ended, and why it was ended if it was."""
        if not any(self._prints):
            self._prints = (os.path.join(self._folder, "out"), os.path.join(self._folder, "err"))
        metrics = Metrics()
        process = Process(
            shell.wrap(argv),
            folder=work,
            env=env,
            out=self._prints[0],
            err=self._prints[1],
            tag=f"{self._site.work.tag}.{self.lease.id}.",
        )
        self._parts.append(metrics)
        watched = folder or self._folder
        try:
            return Monitor(process, watched, limits, self._site.patience, metrics).watch(
                self.control
            )
        finally:
            _stop_container(shell)

    def _failure(self, ended: Ended) -> PilotError | None:
        """Return what an end means; None: the payload did well."""
        self.control.check()
        if ended.code == 0:
            return None
        if self.control.soft:
            return PilotError("cancelled", "ended on request", number=ended.code)
        if self._site.work.free() < _FULL:
            return PilotError(
                "no_space", f"exit code {ended.code}, and the disk of the node is full"
            )
        if ended.code < 0:
            text = f"ended by signal {-ended.code}"
            return PilotError("signalled", text, number=ended.code)
        return PilotError("payload", f"exit code {ended.code}", number=ended.code)


def _logs(folder: str) -> list[str]:
    """Return where functions leave what they print, the newest last: PandaFlow catches it."""
    found = []
    for place, _, names in os.walk(folder):
        if "logs" in place.split(os.sep):
            found += [os.path.join(place, name) for name in names]
    with suppress(OSError):
        found.sort(key=os.path.getmtime)
    return found[-2:]


def _stop_container(shell: Shell) -> None:
    if shell.stop is not None:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(shell.stop, capture_output=True, timeout=30, check=False)
