"""The executors' kit, with pilots in the allocations of a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

import pandaflow as pf
from pandaflow.testing.executors import ExecutorTests
from pandaflow.testing.slurm import Slurm


class TestPilots(ExecutorTests):
    survives_death = True

    @pytest.fixture
    def executor(self, slurm: Slurm) -> pf.executors.Slurm:
        return pf.executors.Slurm(
            walltime=600.0,
            cores=1,
            max_nodes=1,
            poll_seconds=0.2,
            submit_rate=1200.0,
            idle_seconds=2.0,
            patience=10.0,
            margin=5.0,
            host="127.0.0.1",
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            commands_env=slurm.env,
        )
