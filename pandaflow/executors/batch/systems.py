"""Executors on batch systems, as users make them: ``Slurm(partition=..., walltime="2h")``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pandaflow.core.errors import SiteError, WorkflowError
from pandaflow.core.quantities import parse_bytes, parse_seconds
from pandaflow.executors.batch.model import Backend
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.ports import Report, Session


class Batch:
    """An executor on a batch system; see :class:`Slurm` for what may be said.

    Parameters
    ----------
    settings : BatchSettings
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings

    @property
    def multi_node(self) -> bool:
        """Whether jobs may have several nodes or ranks: pilots have one node each."""
        return self.settings.mode == "batch"

    def open(self, run_id: str, results: str, report: Report) -> Session:
        """Begin to work for a run.

        Raises
        ------
        SiteError
            The commands of the batch system are not here, or it does not answer.
        """
        if "://" in results:
            raise SiteError(
                f"results in {results} cannot be used by batch jobs: give a store whose folder "
                "the compute nodes see"
            )
        if self.settings.mode == "batch":
            from pandaflow.executors.batch.jobs import BatchJobs

            return BatchJobs(self.settings, run_id, results, report)
        from pandaflow.executors.batch.pilots import PilotSession

        return PilotSession(self.settings, run_id, results, report)

    def __repr__(self) -> str:
        s = self.settings
        where = f", queue={s.queue!r}" if s.queue else ""
        return (
            f"{type(self).__name__}(mode={s.mode!r}{where}, cores={s.cores}, "
            f"max_nodes={s.max_nodes}, walltime={s.walltime:g})"
        )


def make_settings(backend: Backend, queue: str | None, given: Mapping[str, Any]) -> BatchSettings:
    """Parse what a user gave.

    Raises
    ------
    WorkflowError
        Names the setting.
    """
    known = set(BatchSettings.__dataclass_fields__) - {"backend", "queue", "site_name"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise WorkflowError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    said = dict(given)
    if isinstance(said.get("walltime"), str):
        said["walltime"] = float(parse_seconds(said["walltime"], "walltime"))
    for name in ("memory", "disk"):
        if isinstance(said.get(name), str):
            said[name] = parse_bytes(said[name], name)
    if "sites" in said:
        said["sites"] = tuple(said["sites"])
    for name in ("prologue", "extra"):
        if name in said:
            lines: str | Sequence[str] = said[name]
            said[name] = (lines,) if isinstance(lines, str) else tuple(lines)
    return BatchSettings(backend=backend, queue=queue, **said)


class Slurm(Batch):
    """Runs jobs in allocations of Slurm.

    Parameters
    ----------
    partition : str, optional
    account : str, optional
    walltime : float or str
        Of a batch job: seconds, or a text such as ``"02:00:00"``.
    cores : int
        Of a node: so many jobs run on it at once.
    memory : int or str, optional
        Of a node.
    gpus : int
    max_nodes, min_nodes : int
        Nodes to use at most, and to keep although nothing waits.
    mode : {'pilots', 'batch'}
        Workers in allocations, or one batch job per bundle of jobs.
    prologue : str or sequence of str
        Lines of shell that go before everything else: ``"module load python"``.
    sites : sequence of Site, optional
        Partitions to choose from: a job goes where it fits. What a site does not say is as here.
    **settings
        ``env``, ``python``, ``scratch``, ``extra`` directives, ``container``, ``idle_seconds``,
        ``margin``, ``patience``, ``poll_seconds``, ``submit_rate``, ``host``.

    Examples
    --------
    >>> import pandaflow as pf
    >>> pf.executors.Slurm(partition="main", walltime="02:00:00", cores=128, max_nodes=20)
    Slurm(mode='pilots', queue='main', cores=128, max_nodes=20, walltime=7200)
    """

    def __init__(self, partition: str | None = None, **settings: Any) -> None:
        from pandaflow.executors.batch.slurm import Slurm as System

        super().__init__(make_settings(System(), partition, settings))


class SGE(Batch):
    """Runs jobs in allocations of (Sun, Univa, Altair) Grid Engine; settings as for Slurm."""

    def __init__(self, queue: str | None = None, **settings: Any) -> None:
        from pandaflow.executors.batch.sge import SGE as System  # noqa: N811

        super().__init__(make_settings(System(), queue, settings))


class PBS(Batch):
    """Runs jobs in allocations of PBS Pro, OpenPBS or Torque; settings as for Slurm.

    Parameters
    ----------
    queue : str, optional
    dialect : {'openpbs', 'torque', 'slurm'}
        Whose ``qsub`` it is; ``slurm``: the commands that come with Slurm.
    """

    def __init__(
        self, queue: str | None = None, *, dialect: str = "openpbs", **settings: Any
    ) -> None:
        from pandaflow.executors.batch.pbs import PBS as System  # noqa: N811

        super().__init__(make_settings(System(dialect=dialect), queue, settings))  # type: ignore[arg-type]


class HTCondor(Batch):
    """Runs jobs in slots of HTCondor; settings as for Slurm."""

    def __init__(self, **settings: Any) -> None:
        from pandaflow.executors.batch.htcondor import HTCondor as System

        super().__init__(make_settings(System(), None, settings))


class LSF(Batch):
    """Runs jobs in allocations of LSF; settings as for Slurm."""

    def __init__(self, queue: str | None = None, **settings: Any) -> None:
        from pandaflow.executors.batch.lsf import LSF as System  # noqa: N811

        super().__init__(make_settings(System(), queue, settings))
