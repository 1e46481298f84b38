"""The executors' kit, with one batch job per bundle on a real Slurm."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pandaflow.executors.batch.jobs import BatchJobs
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.batch.slurm import Slurm as SlurmBackend
from pandaflow.ports import Report
from pandaflow.testing.executors import ExecutorTests
from pandaflow.testing.slurm import Slurm


@dataclass(frozen=True)
class InBatch:
    """An executor that opens nothing but batch sessions."""

    settings: BatchSettings

    def open(self, run_id: str, results: str, report: Report) -> BatchJobs:
        return BatchJobs(self.settings, run_id, results, report)


class TestBatchJobs(ExecutorTests):
    survives_death = True
    moments = 5  # each is a batch job of its own
    detaches = False  # nobody in a batch job could join a job that was left running there

    @pytest.fixture
    def executor(self, slurm: Slurm) -> InBatch:
        settings = BatchSettings(
            backend=SlurmBackend(accounting=False),
            mode="batch",
            walltime=600.0,
            cores=4,
            max_nodes=4,
            poll_seconds=0.2,
            submit_rate=1200.0,
            commands_env={"SLURM_CONF": slurm.env["SLURM_CONF"]},
        )
        return InBatch(settings)
