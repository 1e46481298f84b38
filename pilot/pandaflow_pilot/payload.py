"""The command line and the environment of a payload."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.containers import HOST, Box, Runtime, chosen
from pandaflow_pilot.leases import Command, Lease
from pandaflow_pilot.settings import TOKEN_VARIABLE
from pandaflow_pilot.slots import Slot

#: Runs a bundle of functions.
FUNCTIONS = "pandaflow.executors.grid.payload"
#: Variables of the pilot that payloads must not have.
_SECRET = frozenset({TOKEN_VARIABLE, "BEARER_TOKEN", "BEARER_TOKEN_FILE"})
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def command_line(command: Command) -> list[str]:
    """Return the words of a command.

    Raises
    ------
    PilotError
        It cannot be split.
    """
    if command.shell:
        return ["/bin/sh", "-c", command.line]
    try:
        words = shlex.split(command.line)
    except ValueError as error:
        raise PilotError("not_started", f"{command.line!r}: {error}") from None
    if not words:
        raise PilotError("not_started", "the command is empty")
    return words


def environment(lease: Lease, slot: Slot, folder: str) -> dict[str, str]:
    """Return the variables of every payload of a bundle.

    Parameters
    ----------
    lease : Lease
    slot : Slot
        What it may use.
    folder : str
        For temporary files.
    """
    env = {name: value for name, value in os.environ.items() if name not in _SECRET}
    env.update(
        PANDAFLOW_RUN=lease.run,
        PANDAFLOW_TASK=lease.task,
        PANDAFLOW_BUNDLE=str(lease.bundle),
        PANDAFLOW_ATTEMPT=str(lease.attempt),
        PANDAFLOW_CORES=str(slot.cores),
        TMPDIR=folder,
    )
    env.update({name: str(slot.cores) for name in _THREADS if name not in env})
    if slot.gpus or lease.needs.gpus == 0:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    return env


def job_environment(common: Mapping[str, str], lease: Lease, command: Command) -> dict[str, str]:
    """Return the variables of one command."""
    at = command.position
    index = lease.jobs[at] if at < len(lease.jobs) else at
    return {**common, "PANDAFLOW_INDEX": str(index), **command.env}


@dataclass(frozen=True)
class Shell:
    """Where a payload runs: on the node as it is, or in a container.

    Attributes
    ----------
    runtime : Runtime or None
    program : str
        Of the runtime.
    box : Box or None
    """

    runtime: Runtime | None = None
    program: str = ""
    box: Box | None = None

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that is really started."""
        if self.runtime is None or self.box is None:
            return list(argv)
        return self.runtime.wrap(self.program, self.box, argv)

    @property
    def stop(self) -> list[str] | None:
        """The command line that ends what a daemon runs for us, None if nothing does."""
        if self.runtime is None or self.runtime.stop is None or self.box is None:
            return None
        return self.runtime.stop(self.program, self.box.name)


def shell_of(image: str, programs: Mapping[str, str], box: Box) -> Shell:
    """Return where a payload with this image runs.

    Raises
    ------
    PilotError
        No runtime takes the image.
    """
    if not image:
        return Shell()
    runtime, program = chosen(image, programs)
    return Shell(runtime, program, box)


def interpreter(image: str, program: str) -> str:
    """Return the Python that runs functions in an image: another system has its own."""
    return program if image in ("", HOST) else "python3"
