"""Pilots as jobs of a batch system: Slurm, Grid Engine, PBS, HTCondor, LSF."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.htcondor import HTCondor
from pandaflow.executors.batch.lsf import LSF
from pandaflow.executors.batch.model import Backend, BatchRequest, BatchStatus, plain_name
from pandaflow.executors.batch.pbs import PBS
from pandaflow.executors.batch.script import batch_files
from pandaflow.executors.batch.sge import SGE
from pandaflow.executors.batch.slurm import Slurm
from pandaflow.harvester.listing import LISTINGS, read
from pandaflow.harvester.submitter import (
    UNKNOWN,
    Order,
    Phase,
    PilotState,
    Submitter,
    SubmitterSettings,
)

Line = Annotated[str, Field(min_length=1, max_length=4_000, pattern=r"^[^\x00-\x1f\x7f]+$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
#: Seconds of its walltime that a batch job is given before its pilot begins to count.
_START = 60.0


class BatchSettings(SubmitterSettings):
    """Jobs of a batch system.

    Attributes
    ----------
    account : str or None
        Whom to charge.
    extra : tuple of str
        More directives as the system writes them, without its prefix.
    prologue : tuple of str
        Lines of shell that go before the pilot: ``module load python``.
    folder : Path or None
        For scripts and logs; the nodes must see it. Default: in the harvester's state folder.
    commands_env : dict of str to str
        Variables for the system's own commands: ``SLURM_CONF``.
    """

    account: Line | None = None
    extra: tuple[Line, ...] = ()
    prologue: tuple[Line, ...] = ()
    folder: Path | None = None
    commands_env: dict[Variable, Line] = Field(default_factory=dict)

    def backend(self) -> Backend:
        """Return the functions of the batch system."""
        raise NotImplementedError

    @property
    def where(self) -> str | None:
        """The partition or queue there."""
        return None

    def open(self, label: str, folder: Path) -> Submitter:
        """Return the submitter; the system's commands must be there."""
        control = Control(self.backend(), self.commands_env)
        own = folder if self.folder is None else self.folder.expanduser().absolute() / label
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Batch(self, control, label, own)

    def preview(self, order: Order, name: str) -> str:
        """Return the script, and the description that goes with it."""
        folder = self.folder or Path("FOLDER")
        request = self.request(order, name, folder)
        script = str(folder / f"{name}.sh")
        files = batch_files(self.backend(), script, request, self.body(order, name), self.prologue)
        return "\n".join(
            text if path == script else f"# {path}\n{text}" for path, text in files.items()
        )

    def request(self, order: Order, name: str, folder: Path) -> BatchRequest:
        """Return what a pilot's batch job asks for."""
        shape = order.shape
        return BatchRequest(
            name=plain_name(name),
            queue=self.where,
            account=self.account,
            walltime=shape.walltime or None,
            cores=shape.cores,
            memory=shape.memory or None,
            gpus=shape.gpus,
            stdout=str(folder / f"{name}.log"),
            env=order.env,
            extra=self.extra,
        )

    def body(self, order: Order, name: str) -> str:
        """Return the line of the script that becomes the pilot."""
        walltime = order.shape.walltime
        least = max(walltime - _START, walltime / 2)
        told = replace(order, shape=replace(order.shape, walltime=least)) if walltime else order
        return f"exec {shlex.join(told.command(name))}"


class SlurmSettings(BatchSettings):
    """Jobs of Slurm.

    Attributes
    ----------
    partition : str or None
    """

    partition: Line | None = None

    def backend(self) -> Backend:
        """Return the functions of Slurm."""
        return Slurm()

    @property
    def where(self) -> str | None:
        """The partition."""
        return self.partition


class _Queued(BatchSettings):
    queue: Line | None = None

    @property
    def where(self) -> str | None:
        """The queue."""
        return self.queue


class SgeSettings(_Queued):
    """Jobs of Grid Engine.

    Attributes
    ----------
    queue : str or None
    """

    def backend(self) -> Backend:
        """Return the functions of Grid Engine."""
        return SGE()


class PbsSettings(_Queued):
    """Jobs of PBS.

    Attributes
    ----------
    queue : str or None
    dialect : {'openpbs', 'torque'}
    """

    dialect: Literal["openpbs", "torque"] = "openpbs"

    def backend(self) -> Backend:
        """Return the functions of PBS."""
        return PBS(dialect=self.dialect)


class HtcondorSettings(BatchSettings):
    """Jobs of HTCondor."""

    def backend(self) -> Backend:
        """Return the functions of HTCondor."""
        return HTCondor()


class LsfSettings(_Queued):
    """Jobs of LSF.

    Attributes
    ----------
    queue : str or None
    """

    def backend(self) -> Backend:
        """Return the functions of LSF."""
        return LSF()


class Batch:
    """A :class:`~pandaflow.harvester.submitter.Submitter` of batch jobs, one for each pilot.

    Parameters
    ----------
    settings : BatchSettings
    control : Control
    label : str
    folder : Path
        For scripts and logs.
    """

    def __init__(self, settings: BatchSettings, control: Control, label: str, folder: Path) -> None:
        self._settings, self._control = settings, control
        self._label, self._folder = label, folder
        system = control.backend.name
        dialect = getattr(control.backend, "dialect", system)
        self._listing = LISTINGS[dialect if system == "pbs" else system]

    def submit(self, order: Order, names: Sequence[str]) -> dict[str, str]:
        """Submit a batch job for each pilot, one after the other."""
        begun: dict[str, str] = {}
        for name in names:
            try:
                begun[name] = self._submit(order, name)
            except SiteError:
                if not begun:
                    raise
                break
        return begun

    def _submit(self, order: Order, name: str) -> str:
        request = self._settings.request(order, name, self._folder)
        script = self._folder / f"{name}.sh"
        body = self._settings.body(order, name)
        try:
            return self._control.submit(script, request, body, self._settings.prologue)
        except OSError as error:
            raise SiteError(f"{script} cannot be written: {error}", transient=True) from error

    def states(self, ids: Collection[str]) -> Mapping[str, PilotState]:
        """Return the states of batch jobs, from the queue and then from the history."""
        looked = self._control.look(sorted(ids)) if ids else {}
        # What failed and stays in the queue would be taken for a pilot that still comes.
        self._control.cancel([ref for ref, status in looked.items() if status.remains])
        found = {id: looked.get((id, None)) for id in ids}
        return {id: UNKNOWN if each is None else _state(each) for id, each in found.items()}

    def cancel(self, ids: Collection[str]) -> None:
        """Cancel batch jobs."""
        self._control.cancel([(id, None) for id in sorted(ids)])

    def found(self) -> Mapping[str, str]:
        """Return the user's batch jobs that have names of this label."""
        answer = self._control.ask(self._listing.command(self._control.user))
        names = read(self._listing, *answer)
        return {id: name for id, name in names.items() if name.startswith(f"{self._label}-")}


def _state(status: BatchStatus) -> PilotState:
    phase: Phase = "gone"
    if status.state in ("pending", "held"):
        phase = "waiting"
    elif not status.over:
        phase = "running"
    code = status.exit_code if status.signal is None else -status.signal
    if phase != "gone":
        return PilotState(phase=phase, reason=status.reason)
    words = "" if status.state in ("done", "failed") else status.state.replace("_", " ")
    reason = ": ".join(part for part in (words, status.reason) if part)
    return PilotState(phase=phase, code=code, reason=reason)
